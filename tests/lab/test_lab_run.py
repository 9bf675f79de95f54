"""Protects `videopanda lab run`: a table of two rows, killed in the middle, continued, reported."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from micro import write_language_model, write_table

from command import run as command
from videopanda.lab.results import ResultsFile
from videopanda.lab.run import Cell, LabCommand, LabStoppedError, _Runner
from videopanda.lab.table import read


@pytest.mark.slow
def test_a_table_is_killed_continued_and_reported(tmp_path):
    table, language = write_table(tmp_path), write_language_model(tmp_path / "language")
    runs, results = tmp_path / "runs", tmp_path / "results.json"
    arguments = ["lab", "run", table, "--model", language, "--runs", runs, "--output", results]
    program = [sys.executable, "-m", "videopanda", *map(str, arguments)]
    process = subprocess.Popen(program, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    deadline = time.monotonic() + 240
    while not list(runs.glob("pretrain-*/checkpoint-2/complete")) and time.monotonic() < deadline:
        assert process.poll() is None, process.stdout.read().decode()
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)  # without a chance to clean up
    process.wait()
    assert not results.exists()
    assert not list(runs.glob("pretrain-*/config.json"))

    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    content = json.loads(results.read_text())
    assert [(row["row"], row["seed"], row["budget"]) for row in content["rows"]] == [
        ("full", 0, "small"), ("no row token", 0, "small")
    ]  # fmt: skip
    full, other = content["rows"]
    logged = [json.loads(line) for line in (runs / full["runs"][0] / "metrics.jsonl").read_text().splitlines()]
    steps = [entry["step"] for entry in logged if "loss" in entry]
    assert steps == list(range(1, 9))  # continued, not started again: every step once
    assert len(full["right"]) == len(content["tests"][full["test"]]["clips"]) == 12
    assert full["cost"]["visual_tokens"] > other["cost"]["visual_tokens"]  # of row tokens
    assert full["cost"]["cpu_hours"] > 0
    assert set(full["battery"]) > {"no_video", "one_frame", "shuffled", "reversed", "wrong_video"}
    assert str(tmp_path) not in results.read_text()

    before = results.stat().st_mtime_ns
    code, out, _ = command(*arguments)
    assert code == 0
    assert "4 of 4 runs done" in out
    assert results.stat().st_mtime_ns == before  # nothing was left to do
    report = tmp_path / "report"
    assert command("lab", "report", table, "--input", results, "--runs", runs, "--output", report)[0] == 0
    assert "no row token" in (report / "micro.md").read_text()


def test_a_failed_command_is_told_with_its_error(tmp_path):
    unit = LabCommand(
        "pretrain", tmp_path / "pretrain-1", ("answer", str(tmp_path / "none.mp4"), "What?"), 1, "config.json"
    )
    runner = _Runner([Cell("full", 0, (unit,), {})], 1, print)
    with pytest.raises(ValueError, match=r"full, seed 0: pretrain failed, see .*: videopanda: error: no video at"):
        runner.run(Cell("full", 0, (unit,), {}))
    assert unit.cost["cpu_seconds"] > 0
    runner.stop()
    with pytest.raises(LabStoppedError):
        runner.run(Cell("full", 0, (unit,), {}))


def test_a_command_that_is_killed_is_told_so(tmp_path):
    """As by the kernel when memory runs out: its output says nothing of it."""
    unit = LabCommand("pretrain", tmp_path / "pretrain-1", (), 1, "config.json")
    runner = _Runner([Cell("full", 0, (unit,), {})], 1, print)
    runner.program = [sys.executable, "-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"]
    with pytest.raises(ValueError, match=r"was ended by SIGKILL \(is there enough memory.*the same command continues"):
        runner.run(Cell("full", 0, (unit,), {}))


def test_the_time_left_is_that_of_the_commands_at_a_time(tmp_path):
    units = [LabCommand("pretrain", tmp_path / str(number), (), 100, "config.json") for number in range(5)]
    runner = _Runner([Cell(str(number), 0, (unit,), {}) for number, unit in enumerate(units)], 2, print)
    assert runner.left() == "0 of 5 runs done, time left not known yet"
    units[0].folder.mkdir()
    (units[0].folder / "config.json").touch()
    (units[0].folder / "lab.json").write_text('{"seconds": 600, "cpu_seconds": 600}')
    assert runner.left() == "1 of 5 runs done, 20 min left"  # four of ten minutes, two at a time


def test_results_of_another_table_are_refused(tmp_path):
    table = read(write_table(tmp_path))
    results = tmp_path / "results.json"
    ResultsFile(results, table).add({"row": "full", "seed": 0, "budget": "small", "test": "t"}, {"clips": [0]})
    assert len(ResultsFile(results, table).content["rows"]) == 1
    with pytest.raises(ValueError, match="has the results of table micro, not of table4"):
        ResultsFile(results, read("table4"))
    results.write_text("[1, 2]")
    with pytest.raises(ValueError, match="was not written by this command"):
        ResultsFile(results, table)


def test_two_runs_of_a_table_keep_the_rows_of_each_other(tmp_path):
    """As two commands with another --row each: both have read the file before either writes."""
    table, path = read(write_table(tmp_path)), tmp_path / "results.json"
    one, other = ResultsFile(path, table), ResultsFile(path, table)
    one.add({"row": "full", "seed": 0, "budget": "small", "test": "t"}, {"clips": [0]})
    other.add({"row": "no row token", "seed": 0, "budget": "small", "test": "t"}, {"clips": [0]})
    assert [row["row"] for row in ResultsFile(path).content["rows"]] == ["full", "no row token"]


def test_a_row_replaces_the_same_cell_only(tmp_path):
    file = ResultsFile(tmp_path / "results.json", read(write_table(tmp_path)))
    for number, (row, seed) in enumerate([("full", 0), ("full", 1), ("full", 0)]):
        file.add({"row": row, "seed": seed, "budget": "small", "test": "t", "number": number}, {"clips": [0]})
    again = ResultsFile(tmp_path / "results.json").content["rows"]
    assert [(row["seed"], row["number"]) for row in again] == [(1, 1), (0, 2)]
