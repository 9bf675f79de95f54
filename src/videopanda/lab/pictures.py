"""Where two models differ: frames with the question, the truth and both answers, as in the papers' Figures 4–8."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from videopanda.evaluation.benchmarks.table import load
from videopanda.evaluation.predictions import Prediction, read_predictions
from videopanda.lab.run import clips_folder
from videopanda.video.contact_sheet import SheetRow, contact_sheet
from videopanda.video.read import read_video

MOST = 3  # clips in each direction


def write_pictures(lines: Sequence[dict[str, Any]], found: dict[str, Any], runs: Path, out: Path) -> list[str]:
    """For every row whose evaluations still exist, a sheet against the compared row, of their first common seed.

    Args:
        lines: rows of the file of results.
        found: the report.
        runs: folder of the evaluations.

    Returns:
        The names of the files in `out`.
    """
    evaluations: dict[tuple[str, int], Path] = {}
    for line in lines:
        folder = runs / line["runs"][-1] if line["runs"] else runs
        if line["budget"] == found["budget"] and (folder / "full.scores.jsonl").exists():
            evaluations[line["row"], line["seed"]] = folder
    written = []
    for row in found["rows"]:
        name, compare = row["row"], row["compare"]
        seeds = [seed for seed in row["seeds"] if {(name, seed), (compare, seed)} <= evaluations.keys()]
        if name == compare or not seeds:
            continue
        full, other = (evaluations[each, seeds[0]] for each in (compare, name))
        test = clips_folder(runs, found["questions"])
        sheet = where_they_differ((compare, full), (name, other), test) if test.is_dir() else None
        if sheet:
            file = f"{found['table']}.{''.join(c if c.isalnum() else '-' for c in name)}.png"
            out.mkdir(parents=True, exist_ok=True)
            sheet.save(out / file)
            written.append(file)
    return written


def where_they_differ(full: tuple[str, Path], other: tuple[str, Path], test: Path) -> Image.Image | None:
    """A sheet of clips: first those that the full model alone is right about, then the other way round.

    Args:
        full, other: name of each row, and the folder of its evaluation.
        test: folder of the clips and questions.

    Returns:
        None if both answer the same questions correctly.
    """
    right = [_right(folder) for _, folder in (full, other)]
    said = [
        {row.id: row.prediction or "" for row in read_predictions(folder / "full.jsonl") if isinstance(row, Prediction)}
        for _, folder in (full, other)
    ]
    items = [item for item in load("scenes", test).items if item.id in right[0] and item.id in right[1]]
    rows: list[SheetRow] = []
    for better in (0, 1):
        chosen: dict[str, Any] = {}  # one question per family: a picture of many kinds
        for item in items:
            if right[better][item.id] and not right[1 - better][item.id]:
                chosen.setdefault(item.types[0], item)
        for item in list(chosen.values())[:MOST]:
            video = read_video(test / item.video, num_frames=8)
            lines = [f"{item.question}  Truth: {item.answers[0]}"]
            lines += [f"{name}: {answers.get(item.id, '–')}" for (name, _), answers in zip((full, other), said)]
            rows.append(SheetRow(video.frames, lines, video.timestamps))
    return contact_sheet(rows) if rows else None


def _right(folder: Path) -> dict[str, bool]:
    lines = (folder / "full.scores.jsonl").read_text(encoding="utf-8").splitlines()
    return {row["id"]: sum(row["metrics"].values()) > 0 for row in map(json.loads, lines)}
