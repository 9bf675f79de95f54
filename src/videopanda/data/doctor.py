"""Finds what is wrong with training data before training does: `videopanda data check`.

Every row is read, every clip is probed once. Nothing is repaired or replaced: each bad row becomes one entry of the
manifest, with a category and an explanation.
"""

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from videopanda.data import manifest
from videopanda.data.balance import Balance
from videopanda.data.formats.opening import open_sources
from videopanda.data.formats.record import Record, RowError
from videopanda.data.formats.rows import iter_rows
from videopanda.data.formats.sources import VIDEO_SUFFIXES, Source
from videopanda.data.manifest import BadRow, CheckedClip, CheckedSource, Entry
from videopanda.data.probe import ProbeJob, fingerprint, probe_all
from videopanda.video.read import Sampling

_ONE_SIDED = 10  # questions in a table
_SHOWN = 3  # examples per kind in the report; the manifest has all
# Where annotations of tests and benchmarks name their clip.
_CLIP_KEYS = ("video", "videos", "video_name", "video_id", "videoID", "video_uid", "video_path", "q_uid")


@dataclass
class DataReport:
    """What a check found. `duplicates` are groups of paths with equal content, `contaminated` clips of the test set."""

    manifest: str
    rows: int = 0
    bad_rows: int = 0
    problems: dict[str, int] = field(default_factory=dict)
    examples: list[BadRow] = field(default_factory=list)
    clips: int = 0
    bad_clips: int = 0
    probed: int = 0  # clips that the manifest did not know yet
    hours: float = 0.0
    gigabytes: float = 0.0
    duplicates: list[list[str]] = field(default_factory=list)
    contaminated: list[str] | None = None  # None: nothing to compare with
    balance: dict[str, Any] = field(default_factory=dict)  # of the good rows, see `Balance.report`
    seconds: float = 0.0

    @property
    def passed(self) -> bool:
        """Whether there are no bad rows and no clips of the test set. Duplicates alone are not a mistake."""
        return not self.bad_rows and not self.contaminated

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"passed": self.passed, **asdict(self)}


def check(
    data: Sequence[str | Path],
    out: Path,
    format: str = "auto",
    media_root: Path | None = None,
    against: Path | None = None,
    workers: int = 1,
    num_frames: int = 8,
    sampling: Sampling = "uniform",
    words: Sequence[str] = (),
) -> DataReport:
    """Check annotations and all clips that they name; `out` is the manifest to write or resume.

    `words` are counted in the answers, in addition to the most frequent ones.

    Reads the same frames of every clip, or of a row's part of it, as training with `num_frames` and uniform sampling; a
    processor with another `frame_sampling` reads different ones.

    Raises:
        ValueError: the data, `against` or `out` is not a valid file.
    """
    began = time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    test_names = clip_names(against) if against else None
    sources = [source for name in data for source in open_sources(name, format, media_root)]
    jobs = _jobs(sources, num_frames, sampling)
    known = _known(out, jobs)
    todo = [job for path, job in sorted(jobs.items()) if path not in known]
    manifest.append(out, _shown(probe_all(todo, workers), len(todo)))
    found = {entry.path: entry for entry in manifest.read_manifest(out) if isinstance(entry, CheckedClip)}
    clips = {path: found[path] for path in sorted(jobs)}
    report = DataReport(str(out), clips=len(clips), probed=len(todo))
    report.bad_clips = sum(clip.is_damaged for clip in clips.values())
    report.hours = sum(clip.duration for clip in clips.values()) / 3600
    report.gigabytes = sum(clip.size for clip in clips.values()) / 1e9
    report.duplicates = duplicates(clips.values())
    others = [entry for path, entry in sorted(found.items()) if path not in clips]
    balance = Balance()
    manifest.rewrite(out, _entries(sources, clips, others, report, balance))
    report.balance = balance.report(words)
    if test_names is not None:
        report.contaminated = [path for path in clips if _bare(path) in test_names]
    report.seconds = round(time.monotonic() - began, 3)
    return report


def _jobs(sources: Sequence[Source], num_frames: int, sampling: Sampling) -> dict[str, ProbeJob]:
    """One job per clip, with the ranges of all rows."""
    jobs: dict[str, ProbeJob] = {}
    for source in sources:
        for _, record in source.records():
            for medium in record.media if isinstance(record, Record) else ():
                path = str(source.locate(medium))
                ranges = {(medium.start, medium.end)} | (jobs[path].ranges if path in jobs else set())
                is_image = medium.kind == "image"
                jobs[path] = ProbeJob(path, is_image, medium.fps, frozenset(ranges), num_frames, sampling)
    return jobs


def _known(out: Path, jobs: dict[str, ProbeJob]) -> set[str]:
    """Clips of an earlier check that have not changed since; missing ones are checked again."""
    known = set()
    if out.exists():
        for entry in manifest.read_manifest(out):
            if isinstance(entry, CheckedClip) and entry.path in jobs and _covers(entry, jobs[entry.path]):
                try:
                    is_same = fingerprint(entry.path) == (entry.size, entry.modified)
                except OSError:
                    is_same = False
                if is_same:
                    known.add(entry.path)
    return known


def _covers(entry: CheckedClip, job: ProbeJob) -> bool:
    seen = {(start, end) for start, end, _ in entry.ranges}
    return bool(entry.sha256) and entry.frames == job.frames and job.ranges <= seen


def _entries(
    sources: Sequence[Source],
    clips: dict[str, CheckedClip],
    others: Sequence[CheckedClip],
    report: DataReport,
    balance: Balance,
) -> Iterator[Entry]:
    """All entries of the manifest; counts them for the report."""
    problems: Counter[str] = Counter()
    shown: Counter[str] = Counter()
    yield from sorted([*clips.values(), *others], key=lambda clip: clip.path)
    for source in sources:
        rows = bad = 0
        for row, record in source.records():
            rows += 1
            error = record if isinstance(record, RowError) else _clip_error(source, record, clips)
            if error is None:
                assert isinstance(record, Record)
                balance.add(record)
                continue
            bad += 1
            problems[error.kind] += 1
            name = record.id if isinstance(record, Record) else str((row.value or {}).get("id", ""))
            entry = BadRow(str(source.path), row.number, name, error.kind, error.reason)
            if shown[error.kind] < _SHOWN:
                shown[error.kind] += 1
                report.examples.append(entry)
            yield entry
        report.rows += rows
        report.bad_rows += bad
        yield CheckedSource(str(source.path), manifest.file_sha256(source.path), rows, bad)
    report.problems = dict(sorted(problems.items()))


def _clip_error(source: Source, record: Record, clips: dict[str, CheckedClip]) -> RowError | None:
    for medium in record.media:
        clip = clips[str(source.locate(medium))]
        if clip.kind:
            return RowError(clip.kind, clip.reason)  # type: ignore[arg-type]
        for start, end, found in clip.ranges:
            if found and (start, end) == (medium.start, medium.end):
                kind, _, reason = found.partition(": ")
                return RowError(kind, reason)  # type: ignore[arg-type]
    return None


def duplicates(clips: Any) -> list[list[str]]:
    """Groups of two or more paths whose content is equal, in order of their first path."""
    groups: dict[str, list[str]] = {}
    for clip in clips:
        if clip.sha256:
            groups.setdefault(clip.sha256, []).append(clip.path)
    return sorted(sorted(group) for group in groups.values() if len(group) > 1)


def clip_names(annotations: Path) -> set[str]:
    """Names of the clips of a test set, without folders, suffix and the "v_" that ActivityNet puts in front.

    Raises:
        ValueError: a row that names no clip.
    """
    names = set()
    for row in iter_rows(annotations):
        values = [row.value[key] for key in _CLIP_KEYS if key in row.value] if row.error is None else []
        if not values:
            reason = row.error or f"none of the keys {', '.join(_CLIP_KEYS)}"
            raise ValueError(f"{annotations}: row {row.number} names no clip: {reason}")
        for value in values:
            names |= {_bare(str(path)) for path in (value if isinstance(value, list) else [value])}
    return names


def _bare(path: str) -> str:
    name = PurePosixPath(path).name
    stem, dot, suffix = name.rpartition(".")
    return (stem if dot and f".{suffix.lower()}" in (*VIDEO_SUFFIXES, ".gif", ".pkl") else name).removeprefix("v_")


def _shown(clips: Iterator[CheckedClip], total: int) -> Iterator[CheckedClip]:
    """The same clips, with a progress bar on stderr."""
    counts = MofNCompleteColumn(), TimeRemainingColumn(), TextColumn("{task.fields[bad]}")
    columns = TextColumn("probing clips"), BarColumn(), *counts
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task, bad = progress.add_task("", total=total, bad=""), 0
        for clip in clips:
            bad += bool(clip.kind)
            progress.update(task, advance=1, bad=f"{bad} bad" if bad else "")
            yield clip


def tables(report: DataReport) -> list[Table]:
    """The report as tables."""
    clips = f"{report.clips} ({report.bad_clips} bad), {report.hours:.2f} h, {report.gigabytes:.3f} GB"
    counts = {
        "rows": f"{report.rows} ({report.bad_rows} bad)",
        "clips": f"{clips}; {report.probed} probed now",
        "equal clips": f"{len(report.duplicates)} groups",
    }
    if report.contaminated is not None:
        counts["clips of the test set"] = str(len(report.contaminated))
    bad = []
    for kind, count in report.problems.items():
        example = next(entry for entry in report.examples if entry.kind == kind)
        place = f"{Path(example.source).name} row {example.row}"
        bad.append((kind, str(count), f"{place} ({example.id or '?'}): {example.reason}"))
    words = ", ".join(f"{word} {count:,}" for word, count in report.balance["words"].items())
    sided = [
        (f"{100 * entry['share']:.0f} %", f"{entry['asked']:,}", entry["answer"], entry["question"])
        for entry in report.balance["questions"][:_ONE_SIDED]
    ]
    shown = (
        _table("Data", list(counts.items())),
        _table("Bad rows", bad, ("kind", "rows", "for example")),
        _table("Equal clips", _first([", ".join(group) for group in report.duplicates])),
        _table("Clips of the test set", _first(report.contaminated or [])),
        _table("Words of answers, in how many rows", [(words,)] if words else []),
        _table("Questions by the share of their most frequent answer", sided, ("share", "asked", "answer", "question")),
    )
    return [table for table in shown if table.row_count]


def _first(lines: Sequence[str]) -> list[tuple[str]]:
    """The first lines, and how many more there are."""
    more = [f"... and {len(lines) - _SHOWN} more (see --json)"] * (len(lines) > _SHOWN)
    return [(line,) for line in (*lines[:_SHOWN], *more)]


def _table(title: str, rows: Sequence[tuple[str, ...]], columns: Sequence[str] = ()) -> Table:
    table = Table(title=title, title_justify="left", show_header=bool(columns))
    for column in columns:
        table.add_column(column, justify="right" if column in ("rows", "share", "asked") else "left")
    for row in rows:
        table.add_row(*row)
    return table
