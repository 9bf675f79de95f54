"""Inspects annotation files: `videopanda evaluate inspect mvbench MVBench/json`."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Group
from rich.table import Table

from videopanda.evaluation.benchmarks.item import Item
from videopanda.evaluation.benchmarks.table import Loaded, benchmark, load
from videopanda.evaluation.benchmarks.videos import Videos

_SHOWN = 10  # of a list, for people; JSON has all


def inspect(name: str, path: Path, mode: str = "as-published", videos: Path | None = None) -> dict[str, Any]:
    """Counts, and lists of everything irregular; with `videos`, also the missing videos.

    "rows" are those of the files, also of those that were rejected; a row may hold two questions (Video-ChatGPT).

    Raises:
        AnnotationError: the files are missing or contain no questions.
        ValueError: unknown benchmark or mode, no such folder of videos.
    """
    loaded = load(name, path, mode)
    items = loaded.items
    entry = benchmark(name)
    return {
        "benchmark": name,
        "title": entry.title,
        "errata_mode": mode,
        "rows": len({item.place for item in items} | {row.place for row in loaded.rejected}),
        "questions": len(items),
        "published_rows": entry.published_rows,
        "videos": len({item.video for item in items}),
        "without_public_answer": sum(not item.has_answer for item in items),
        "with_subtitles": sum("subtitles" in item.extra for item in items),
        "tasks": _counts(item.task for item in items),
        "types": _counts(type_ for item in items for type_ in item.types),
        "options": {str(n): count for n, count in sorted(Counter(len(i.options) for i in items if i.options).items())},
        "chance": chance(items),
        "items_sha256": loaded.sha256,
        "rejected": [asdict(row) for row in loaded.rejected],
        "duplicates": [asdict(row) for row in loaded.duplicates],
        "errata": [
            {"name": e.name, "what": e.what, "documented": e.documented, "ids": list(loaded.errata[e.name])}
            for e in entry.errata
            if e.documented or loaded.errata[e.name]
        ],
        **({"missing_videos": missing_videos(loaded, videos)} if videos else {}),
    }


def _counts(values: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(values).items()))


def chance(items: Iterable[Item]) -> float | None:
    """Expected accuracy of guessing among the options, or yes and no; None for other kinds of answers."""
    answered = [item for item in items if item.has_answer]
    shares = [share for item in answered if (share := _share(item)) is not None]
    return round(sum(shares) / len(shares), 6) if shares and len(shares) == len(answered) else None


def _share(item: Item) -> float | None:
    if item.task == "yes_no":
        return 0.5
    return len(item.right) / len(item.options) if item.options else None


def missing_videos(loaded: Loaded, folder: Path) -> list[str]:
    """The items' videos that are missing from the folder, sorted."""
    videos = Videos(folder)
    return sorted(video for video in {item.video for item in loaded.items} if videos.find(video) is None)


def table(report: dict[str, Any]) -> Group:
    """The report as text; long lists are cut."""
    top = Table(box=None, show_header=False, padding=(0, 2, 0, 0), title=report["title"], title_justify="left")
    published = f" (published: {report['published_rows']})" if report["published_rows"] else ""
    top.add_row("rows read", f"{report['rows']:,}{published}")
    for key in ("questions", "videos", "without_public_answer", "with_subtitles"):
        if report[key] or key != "with_subtitles":
            top.add_row(key.replace("_", " "), f"{report[key]:,}")
    for key in ("tasks", "options"):
        listed = ", ".join(f"{name} {count:,}" for name, count in report[key].items()) or "–"
        top.add_row(key if key == "tasks" else "options per question", listed)
    if report["chance"] is not None:
        top.add_row("chance", f"{100 * report['chance']:.2f} %")
    top.add_row("errata mode", report["errata_mode"])
    top.add_row("rejected rows", f"{len(report['rejected']):,}")
    top.add_row("duplicates", f"{len(report['duplicates']):,}")
    if "missing_videos" in report:
        top.add_row("missing videos", f"{len(report['missing_videos']):,}")
    top.add_row("sha256 of the items", report["items_sha256"][:16])
    parts: list[Any] = [top]
    if report["types"]:
        parts.append(_grid("type", "questions", rows=[(name, f"{n:,}") for name, n in report["types"].items()]))
    if report["errata"]:
        found = [(e["name"], f"{len(e['ids'])}", e["documented"] or "–") for e in report["errata"]]
        parts.append(_grid("erratum", "found", "documented", rows=found))
    if report["rejected"]:
        lines = [(row["place"], row["reason"]) for row in report["rejected"]]
        parts.append(_grid("rejected", "reason", rows=lines))
    if report["duplicates"]:
        lines = [(row["place"], f"{row['kind']} as {row['first']}") for row in report["duplicates"]]
        parts.append(_grid("duplicate", "of", rows=lines))
    if report.get("missing_videos"):
        parts.append(_grid("missing video", rows=[(video,) for video in report["missing_videos"]]))
    return Group(*parts)


def _grid(*headers: str, rows: Sequence[tuple[str, ...]]) -> Table:
    limit = len(rows) if headers[0] in ("type", "erratum") else _SHOWN
    caption = f"and {len(rows) - limit:,} more: see --json" if len(rows) > limit else None
    grid = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), caption=caption, caption_justify="left")
    for header in headers:
        grid.add_column(header, justify="right" if header in ("questions", "found") else "left", overflow="fold")
    for row in rows[:limit]:
        grid.add_row(*row)
    return grid
