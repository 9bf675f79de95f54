"""Checks without running the model: names, shapes, counts, values, checksums, the official source."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from videopanda.checkpoints import checksums
from videopanda.checkpoints.tensors import DTYPE_NAMES, CheckpointError, TensorLocation
from videopanda.models.families import converter, model_class

STATISTICS = ("running_mean", "running_var")


@dataclass(frozen=True)
class Check:
    """The result of one check.

    reasons: why it failed, or why it was skipped; empty when it passed.
    summary: the finding, in a few words.
    details: the same as data.
    """

    name: str
    status: Literal["passed", "failed", "skipped"]
    summary: str = ""
    reasons: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, reasons: Iterable[str], summary: str, **details: Any) -> "Check":
        """A check that passes if there are no reasons against it."""
        reasons = tuple(reasons)
        return cls(name, "failed" if reasons else "passed", summary, reasons, details)


class Expected:
    """The model that the configuration describes, on the meta device."""

    def __init__(self, config: Any):
        with torch.device("meta"):
            model = model_class(config)(config)
        self.shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        self.parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        paths = {module: path for path, module in model.named_modules()}
        self.vision = {
            name: (paths[module], any(list(child.children()) for child in module.children()))
            for name, module in model.vision_modules().items()
        }
        # Second name → first name of one tensor; a file needs only the first.
        self.tied: dict[str, str] = dict(model._tied_weights_keys) if config.tie_word_embeddings else {}

    def part_of(self, name: str) -> str:
        """Part of the model that a weight belongs to; a vision module with modules of several levels has parts."""
        for part, (path, children) in self.vision.items():
            if name.startswith(path + "."):
                child = name.removeprefix(path + ".").partition(".")[0]
                return f"{part}.{child}" if children else part
        return name.split(".")[1] if name.startswith("model.") else name.split(".")[0]

    def is_vision(self, part: str) -> bool:
        """Whether a part belongs to a vision module."""
        return part.partition(".")[0] in self.vision


def check_keys(expected: Expected, places: dict[str, TensorLocation]) -> Check:
    """Check that every weight exists with its name and shape, and no others."""
    missing = [name for name in expected.shapes if name not in places and name not in expected.tied]
    unexpected = [name for name in places if name not in expected.shapes]
    other_shape = [name for name, shape in expected.shapes.items() if name in places and places[name].shape != shape]
    statistic = " (batch norm statistic; a loader would put its initial value there)"
    reasons = [
        *(f"{name} is missing{statistic if is_statistic(name) else ''}" for name in missing),
        *(
            f"{n} has the shape {places[n].shape}, but the configuration requires {expected.shapes[n]}"
            for n in other_shape
        ),
        *(f"{name} is not part of this model" for name in unexpected),
    ]
    for second, first in expected.tied.items():
        if {first, second} <= places.keys() and checksums.checksum(places[first]) != checksums.checksum(places[second]):
            reasons.append(f"{first} and {second} are two names of one tensor, but their values differ")
    summary = f"{len(places)} tensors, no name missing or unexpected"
    details = {"found": len(places), "missing": missing, "unexpected": unexpected, "other_shape": other_shape}
    return Check.of("keys", reasons, summary, **details)


def is_statistic(name: str) -> bool:
    """Whether a weight is a batch norm statistic."""
    return name.rpartition(".")[2] in STATISTICS


def check_parameters(expected: Expected, places: dict[str, TensorLocation]) -> Check:
    """Compare the number of parameters of each part with the configuration."""
    wanted: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for name, shape in expected.shapes.items():
        if name in expected.parameters and name not in expected.tied:
            part = expected.part_of(name)
            wanted[part] += torch.Size(shape).numel()
            found[part] += places[name].num_elements if name in places else 0
    parts = {part: {"found": found[part], "expected": wanted[part]} for part in wanted}
    visual = {
        key: sum(counts[key] for part, counts in parts.items() if expected.is_vision(part))
        for key in ("found", "expected")
    }
    total = {key: sum(counts[key] for counts in parts.values()) for key in ("found", "expected")}
    reasons = [
        f"{part} has {counts['found']:,} parameters instead of {counts['expected']:,}"
        for part, counts in parts.items()
        if counts["found"] != counts["expected"]
    ]
    summary = f"{total['found']:,}, {visual['found']:,} of them in vision modules"
    return Check.of("parameters", reasons, summary, parts=parts, vision=visual, total=total)


@dataclass(frozen=True)
class Values:
    """Results of one pass over all values, by name: the checksum, and any problems."""

    checksums: dict[str, str]
    not_finite: dict[str, int]
    negative: tuple[str, ...]


def read_values(places: dict[str, TensorLocation]) -> Values:
    """Read every tensor once."""
    found: dict[str, str] = {}
    not_finite: dict[str, int] = {}
    negative = []
    for name, place in places.items():
        digest = checksums.start(place.dtype, place.shape)
        bad, lowest = 0, 0.0
        for chunk in place.chunks():
            digest.update(chunk)
            if place.dtype.is_floating_point:
                values = torch.frombuffer(bytearray(chunk), dtype=place.dtype)
                bad += int((~values.isfinite()).sum())
                lowest = min(lowest, float(values.min()))
        found[name] = digest.hexdigest()
        if bad:
            not_finite[name] = bad
        if name.endswith("running_var") and lowest < 0:
            negative.append(name)
    return Values(found, not_finite, tuple(negative))


def check_values(config: Any, places: dict[str, TensorLocation], values: Values) -> Check:
    """Values are finite numbers, of the type that the configuration names."""
    reasons = [f"{name} holds {count:,} values that are not finite" for name, count in values.not_finite.items()]
    reasons += [f"{name} is negative somewhere: it is a variance" for name in values.negative]
    reasons += [
        f"{name} has the type {DTYPE_NAMES[place.dtype]}: weights are floating-point numbers"
        for name, place in places.items()
        if not place.dtype.is_floating_point
    ]
    elements: Counter[str] = Counter()
    for place in places.values():
        elements[DTYPE_NAMES[place.dtype]] += place.num_elements
    declared = DTYPE_NAMES[config.dtype] if isinstance(config.dtype, torch.dtype) else str(config.dtype)
    most = elements.most_common(1)[0][0]
    if declared not in ("None", most):
        reasons.append(f"the configuration says {declared}, but most weights have the type {most}")
    types = ", ".join(f"{name} × {count:,}" for name, count in elements.most_common())
    return Check.of("values", reasons, types, types=dict(elements))


def check_checksums(folder: Path, values: Values) -> Check:
    """Check values against the checksums recorded when the checkpoint was written."""
    recorded = checksums.read(folder)
    if recorded is None:
        return Check("checksums", "skipped", reasons=(f"no {checksums.FILE_NAME}: write it with --record",))
    reasons = _compare(values.checksums, recorded, "recorded")
    return Check.of("checksums", reasons, f"{len(recorded)} tensors as recorded", recorded=len(recorded))


def _compare(found: dict[str, str], wanted: dict[str, str], origin: str) -> list[str]:
    """Name the tensors that differ, and those that contain the values of another."""
    owners = {digest: name for name, digest in wanted.items()}
    reasons = []
    for name, digest in wanted.items():
        if name not in found:
            reasons.append(f"{name} is missing")
        elif found[name] != digest:
            owner = owners.get(found[name])
            what = f"holds the values of {owner}" if owner else "differs in value, type or shape"
            reasons.append(f"{name} {what}, against what was {origin}")
    return reasons + [f"{name} was not {origin}" for name in found if name not in wanted]


def check_against(source: Path, values: Values) -> Check:
    """Check that every weight equals the official checkpoint bit for bit.

    Raises:
        FileNotFoundError, CheckpointError: `source` is not a complete official checkpoint.
    """
    plan = converter().tensor_plan(source, allow=["*"])  # what the model does not use matters to `convert`, not here
    reasons = []
    try:
        plan.check_aliases()
    except CheckpointError as error:
        reasons.append(str(error))
    wanted = {t.name: checksums.of_bytes(t.dtype, t.shape, t.chunks()) for t in converter().outgoing_weights(plan)}
    reasons += _compare(values.checksums, wanted, "in the official checkpoint")
    return Check.of("against", reasons, f"{len(wanted)} tensors equal {source.name} bit for bit", compared=len(wanted))
