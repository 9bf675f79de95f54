"""Decides what happens to every tensor of an official checkpoint before any byte is copied."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from videopanda.checkpoints.checksums import checksum
from videopanda.checkpoints.tensors import DTYPE_NAMES, HEAD_FILE, CheckpointError, TensorLocation, find_tensors
from videopanda.models.videopanda import VideoPandaForConditionalGeneration
from videopanda.models.videopanda.convert.names import TensorAction, action_for
from videopanda.models.videopanda.convert.settings import Settings, read_config, read_settings

TEMPORAL = ("model.stab.lste.", "model.stab.gstra.", "model.stab.fusion.")  # what EVE does not have


@dataclass(frozen=True)
class TensorEntry:
    """A line of the report: one tensor of the official checkpoint.

    action: "used" under its own name, "renamed", "alias" of a tensor that is used, "head" (kept for training in
        `distillation_head.safetensors`), "dropped" or "unknown".
    to: its name in the new checkpoint, where it has one.
    why: reason of a tensor that is not used.
    """

    key: str
    file: str
    dtype: str
    shape: tuple[int, ...]
    action: str
    to: str = ""
    why: str = ""


@dataclass(frozen=True)
class TensorPlan:
    """A conversion to be done.

    layout: "videopanda", or "eve" for a start of stage 1.
    weights: our names and where their values lie, in the order of the source.
    added_rows: names whose first axis grows by this many rows of zeros, for `<video>` and `<image>`.
    head: tensors of the distillation head by name.
    aliases: pairs of places that must contain the same values.
    reinitialized: our names that start from their initial value, because EVE does not have them.
    """

    source: Path
    layout: str
    settings: Settings
    entries: tuple[TensorEntry, ...]
    weights: dict[str, TensorLocation]
    shapes: dict[str, tuple[int, ...]]
    added_rows: dict[str, int]
    head: dict[str, TensorLocation]
    aliases: tuple[tuple[TensorLocation, TensorLocation], ...]
    reinitialized: tuple[str, ...]

    @property
    def dtype(self) -> torch.dtype:
        """The type of most weights."""
        elements: Counter[torch.dtype] = Counter()
        for place in self.weights.values():
            elements[place.dtype] += place.num_elements
        return elements.most_common(1)[0][0]

    def check_aliases(self) -> None:
        """Compare tensors that have two names.

        Raises:
            CheckpointError: they hold different values.
        """
        for first, second in self.aliases:
            if first.same_bytes != second.same_bytes and checksum(first) != checksum(second):
                raise CheckpointError(
                    f"{self.source} contradicts itself: {first.key} and {second.key} are two names of one tensor, but "
                    "their values differ"
                )

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        totals: Counter[str] = Counter(entry.action for entry in self.entries)
        return {
            "source": self.source.name,
            "layout": self.layout,
            "dtype": DTYPE_NAMES[self.dtype],
            "notes": list(self.settings.notes),
            "totals": dict(totals),
            "missing": [],  # a plan with missing weights is never made
            "reinitialized": list(self.reinitialized),
            "added_rows": dict(self.added_rows),
            "keys": [asdict(entry) for entry in self.entries],
        }


def tensor_plan(source: str | Path, allow: Sequence[str] = ()) -> TensorPlan:
    """Decide about every tensor of the official checkpoint in `source`.

    Args:
        allow: names of unknown tensors that may be dropped; `*` stands for any text.

    Raises:
        FileNotFoundError: the folder does not exist.
        CheckpointError: it is not an official checkpoint, is incomplete, or has missing or unexpected weights.
    """
    source = Path(source)
    read_config(source)  # says what a folder is, where it is no official checkpoint
    places = find_tensors(source)
    settings = read_settings(source, places)
    with torch.device("meta"):
        model = VideoPandaForConditionalGeneration(settings.config)
    shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    actions = {key: _known(action_for(key), shapes) for key in places}
    chosen: dict[tuple[str, str], str] = {}
    for key, action in sorted(actions.items(), key=lambda item: item[1].rank):
        if action.target:
            chosen.setdefault((action.kind, action.target), key)
    entries, aliases = [], []
    for key, place in places.items():
        action = actions[key]
        first = chosen.get((action.kind, action.target), key)
        kind, to, why = _line(key, action, first, allow)
        if kind == "alias":
            aliases.append((places[first], place))
        dtype = DTYPE_NAMES[place.dtype]
        entries.append(TensorEntry(key, place.path.name, dtype, place.shape, kind, to, why))
    _refuse_unknown(source, [entry.key for entry in entries if entry.action == "unknown"])
    taken = {target: places[key] for (kind, target), key in chosen.items() if kind == "weight"}
    order = {key: number for number, key in enumerate(places)}
    weights = dict(sorted(taken.items(), key=lambda item: order[item[1].key]))
    head = {target: places[key] for (kind, target), key in chosen.items() if kind == "head"}
    missing = [name for name in shapes if name not in weights]
    if settings.config.tie_word_embeddings:
        missing = [name for name in missing if name != "lm_head.weight"]
    eve = not any(name.startswith(TEMPORAL) for name in weights) and not any(
        key.startswith("model.video_tower.") for key in places
    )
    reinitialized = tuple(name for name in missing if eve and name.startswith(TEMPORAL))
    _refuse_missing(source, [name for name in missing if name not in reinitialized])
    return TensorPlan(
        source=source,
        layout="eve" if eve else "videopanda",
        settings=settings,
        entries=tuple(entries),
        weights=weights,
        shapes=shapes,
        added_rows=_fit(source, weights, shapes),
        head=head,
        aliases=tuple(aliases),
        reinitialized=reinitialized,
    )


def _known(action: TensorAction, shapes: dict[str, tuple[int, ...]]) -> TensorAction:
    """A weight that our model does not have is unknown."""
    return TensorAction("unknown") if action.kind == "weight" and action.target not in shapes else action


def _line(key: str, action: TensorAction, first: str, allow: Sequence[str]) -> tuple[str, str, str]:
    """Action, new name and reason for the report; `first` is the tensor that was chosen for the same target."""
    if action.kind == "weight":
        if key != first:
            return "alias", action.target, f"the same tensor as {first}"
        return ("used" if key == action.target else "renamed"), action.target, ""
    if action.kind == "head":
        if key != first:
            return "dropped", "", "image distillation head; only the video distillation head is kept"
        return "head", f"{HEAD_FILE}:{action.target}", ""
    if action.kind == "dropped":
        return "dropped", "", action.why
    pattern = next((pattern for pattern in allow if fnmatchcase(key, pattern)), None)
    return ("unknown", "", "") if pattern is None else ("dropped", "", f"unknown, allowed by --allow {pattern}")


def _refuse_unknown(source: Path, keys: list[str]) -> None:
    if keys:
        raise CheckpointError(
            f"{source} holds {len(keys)} tensors that are unknown to the conversion: {_some(keys)}; drop them with "
            f"--allow '{keys[0]}' or a pattern such as --allow '{keys[0].rpartition('.')[0] or keys[0]}.*'"
        )


def _refuse_missing(source: Path, names: list[str]) -> None:
    if names:
        statistics = any("running_" in name for name in names)
        hint = " (batch norm statistics are part of the model)" if statistics else ""
        raise CheckpointError(f"{source} lacks {len(names)} of the model's weights: {_some(names)}{hint}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "")


def _fit(source: Path, weights: dict[str, TensorLocation], shapes: dict[str, tuple[int, ...]]) -> dict[str, int]:
    """Check all shapes, up to axes of size one; returns the number of vocabulary rows to add, by name."""
    added = {}
    for name, place in weights.items():
        ours, theirs = shapes[name], place.shape
        if name in ("lm_head.weight", "model.language_model.embed_tokens.weight") and theirs[1:] == ours[1:]:
            if theirs[0] < ours[0]:
                added[name] = ours[0] - theirs[0]
        elif [n for n in ours if n != 1] != [n for n in theirs if n != 1]:
            raise CheckpointError(
                f"{source}: {place.key} has the shape {theirs}, but the configuration requires {ours}"
            )
    if len(set(added.values())) > 1:
        raise CheckpointError(f"{source}: word embedding and language-model head differ in their number of rows")
    return added
