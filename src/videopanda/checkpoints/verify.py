"""Proof that a checkpoint is what it claims to be.

report = verify("out/video-panda-7b", against="Video-Panda-7B/videopanda_fitu")
print(report.passed, [check.reasons for check in report.checks])
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Group
from rich.table import Table

from videopanda.checkpoints import checksums
from videopanda.checkpoints.behavior_checks import FLOAT32_LIMIT, check_greedy
from videopanda.checkpoints.tensors import find_tensors
from videopanda.checkpoints.weight_checks import (
    Check,
    Expected,
    check_against,
    check_checksums,
    check_keys,
    check_parameters,
    check_values,
    read_values,
)
from videopanda.models.load import check_checkpoint


@dataclass(frozen=True)
class VerifyReport:
    """All checks of one checkpoint; `recorded` says that checksums were written."""

    checkpoint: str
    against: str | None
    checks: tuple[Check, ...]
    recorded: bool = False

    @property
    def passed(self) -> bool:
        """Whether no check failed."""
        return all(check.status != "failed" for check in self.checks)

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**asdict(self), "passed": self.passed}


def verify(
    folder: str | Path, against: str | Path | None = None, record: bool = False, max_bytes: int | None = None
) -> VerifyReport:
    """Check a checkpoint folder, and with `against` compare it with the official checkpoint it came from.

    Args:
        record: write the checksums next to the weights if everything else passes.
        max_bytes: do not run a model whose weights take more memory; all other checks need little.

    Raises:
        FileNotFoundError: a folder is missing.
        ValueError: a folder is not a checkpoint, or one of its files is damaged or incomplete.
    """
    folder = Path(folder)
    config = check_checkpoint(folder)
    places = find_tensors(folder)
    expected = Expected(config)
    keys, parameters = check_keys(expected, places), check_parameters(expected, places)
    values = read_values(places)
    checks = [keys, parameters, check_values(config, places, values)]
    if not record:
        checks.append(check_checksums(folder, values))
    if against is not None:
        checks.append(check_against(Path(against), values))
    if keys.status == "passed":
        total = parameters.details["total"]["expected"]
        size = 4 * total if total <= FLOAT32_LIMIT else sum(place.num_bytes for place in places.values())
        if max_bytes is not None and size > max_bytes:
            reason = f"the weights take {size / 1e9:.1f} GB of memory: run  videopanda verify  where they fit"
            checks.append(Check("greedy", "skipped", reasons=(reason,)))
        else:
            checks.append(check_greedy(folder, config, total))
    else:
        checks.append(Check("greedy", "skipped", reasons=("weights are missing or wrong",)))
    report = VerifyReport(str(folder), None if against is None else str(against), tuple(checks))
    if record and report.passed:
        checksums.write(folder, values.checksums)
        report = replace(report, recorded=True)
    return report


def tables(report: VerifyReport) -> Group:
    """The report as tables: parameters by part, then every check with its reasons."""
    parts = Table(title="Parameters", title_justify="left")
    for column in ("part", "found", "expected"):
        parts.add_column(column, justify="left" if column == "part" else "right")
    details = next(check.details for check in report.checks if check.name == "parameters")
    rows = [*details["parts"].items(), ("vision modules", details["vision"]), ("all", details["total"])]
    for part, counts in rows:
        parts.add_row(part, f"{counts['found']:,}", f"{counts['expected']:,}")
    checks = Table(title=f"Verification of {report.checkpoint}", title_justify="left")
    for column in ("check", "result", "finding"):
        checks.add_column(column)
    for check in report.checks:
        shown = list(check.reasons[:5]) + [f"… and {len(check.reasons) - 5} more"] * (len(check.reasons) > 5)
        checks.add_row(check.name, check.status, "\n".join(shown or [check.summary]))
    return Group(parts, checks)
