"""Protects the pictures of clips about which two rows differ: which are chosen, and that nothing else is shown."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videopanda.data.worlds.scenes.selection import make_test_set
from videopanda.evaluation.benchmarks.table import load
from videopanda.lab.pictures import MOST, where_they_differ, write_pictures


@pytest.fixture(scope="module")
def test_set(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "test-0-12"
    make_test_set(folder, 12, seed=0, workers=1, progress=False)
    return folder


def evaluation(folder: Path, test: Path, wrong: set[str]) -> Path:
    """What an evaluation leaves, of a model that is wrong about some families."""
    folder.mkdir()
    scores, said = [], []
    for item in load("scenes", test).items:
        is_right = item.types[0] not in wrong
        scores.append({"id": item.id, "metrics": {"accuracy": float(is_right)}})
        said.append({"id": item.id, "prediction": item.answers[0] if is_right else "nonsense"})
    for name, rows in (("full.scores.jsonl", scores), ("full.jsonl", said)):
        (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_clips_that_differ_are_shown_one_per_family(test_set, tmp_path):
    families = [item.types[0] for item in load("scenes", test_set).items]
    full = evaluation(tmp_path / "a", test_set, {families[0]})
    other = evaluation(tmp_path / "b", test_set, set(families[1:6]))
    sheet = where_they_differ(("full", full), ("ablated", other), test_set)
    assert sheet is not None
    one = where_they_differ(("full", full), ("same", evaluation(tmp_path / "c", test_set, set())), test_set)
    assert one is not None
    assert sheet.height > MOST * one.height > 0  # at most three that only the first is right about, and one more
    assert where_they_differ(("full", full), ("full", full), test_set) is None


def test_sheets_are_written_for_rows_whose_runs_exist(test_set, tmp_path):
    runs = test_set.parent
    families = [item.types[0] for item in load("scenes", test_set).items]
    evaluation(runs / "evaluate-1", test_set, set())
    evaluation(runs / "evaluate-2", test_set, set(families[:2]))
    lines = [
        {"row": "full", "seed": 0, "budget": "small", "runs": ["pretrain-1", "evaluate-1"]},
        {"row": "no row token", "seed": 0, "budget": "small", "runs": ["pretrain-2", "evaluate-2"]},
        {"row": "gone", "seed": 0, "budget": "small", "runs": ["pretrain-3", "evaluate-3"]},
    ]
    rows = [{"row": line["row"], "compare": "full", "seeds": [0]} for line in lines]
    found = {"table": "micro", "budget": "small", "compare": "full", "questions": 12, "rows": rows}
    assert write_pictures(lines, found, runs, tmp_path / "out") == ["micro.no-row-token.png"]
    assert np.asarray(Image.open(tmp_path / "out" / "micro.no-row-token.png")).std() > 10
    assert write_pictures(lines, {**found, "questions": 24}, runs, tmp_path / "out") == []  # those clips are gone
