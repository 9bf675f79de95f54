"""Protects what a run shows: one line while it trains, a page in its folder, and nothing from other packages."""

import io
import json
import re
import subprocess
import sys
from types import SimpleNamespace

from clips import STAGE, Clips, run_clips
from rich.console import Console

from videopanda.data.sample_sheet import sample_sheet
from videopanda.inference.load import BUNDLED_MODEL
from videopanda.training.progress import ProgressLine
from videopanda.training.run_folder import write_record
from videopanda.training.run_page import write_page


def state(step, last=100):
    return SimpleNamespace(global_step=step, max_steps=last, is_world_process_zero=True)


def test_the_line_has_loss_parts_speed_time_and_validation(capsys):
    line = ProgressLine()
    line.on_train_begin(None, state(0), None)
    line.on_log(None, state(0), None, logs={"validation_accuracy": 0.25, "validation_accuracy_no_video": 0.2})
    line.on_log(None, state(10), None, logs={"loss": 2.0, "text_loss": 1.5, "align_loss": 0.5, "rows_per_second": 8.0})
    line.on_log(
        None, state(20), None, logs={"loss": 1.0, "text_loss": 0.75, "align_loss": 0.25, "rows_per_second": 9.0}
    )
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("step 10/100  loss 2.000 (text 1.500, align 0.500)  8.0 rows/s  ")
    assert second.startswith("step 20/100  loss 1.500 (text 0.750, align 0.250)  9.0 rows/s  ")
    assert second.endswith("left  held out: 25.0% right, 20.0% without video")


def test_a_resumed_run_says_so(capsys):
    ProgressLine().on_train_begin(None, state(40), None)
    assert capsys.readouterr().err == "resumed         at step 40 of 100\n"


def test_on_a_terminal_it_is_one_line_and_log_messages_go_above(monkeypatch):
    import logging

    terminal = io.StringIO()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setattr(
        "videopanda.training.progress.Console", lambda **_: Console(file=terminal, force_terminal=True, width=120)
    )
    handler = logging.StreamHandler()
    logging.getLogger().addHandler(handler)
    try:
        line = ProgressLine()
        line.on_train_begin(None, state(0), None)
        line.on_log(None, state(1), None, logs={"loss": 2.0, "text_loss": 2.0, "rows_per_second": 8.0})
        line.on_step_end(None, state(1), None)
        logging.getLogger("x").warning("a message")
        line.on_train_end(None, state(1), None)
        assert handler.stream is terminal
    finally:
        logging.getLogger().removeHandler(handler)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    assert "a message" in shown
    assert shown.rstrip().splitlines()[-1].count("step 1/100") == 1
    assert "loss 2.000" in shown


def test_a_narrow_terminal_shows_all_of_it(monkeypatch):
    terminal = io.StringIO()
    console = Console(file=terminal, force_terminal=True, width=80)
    monkeypatch.setattr("videopanda.training.progress.Console", lambda **_: console)
    line = ProgressLine()
    line.on_train_begin(None, state(0), None)
    line.on_log(None, state(9), None, logs={"validation_accuracy": 0.25, "validation_accuracy_no_video": 0.2})
    parts = {"text_loss": 2.0, "align_loss": 1.0, "distill_loss": 1.0}
    line.on_log(None, state(10), None, logs={"loss": 4.0, **parts, "rows_per_second": 8.0})
    line.on_step_end(None, state(10), None)
    line.on_train_end(None, state(10), None)
    shown = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue())
    words = " ".join(shown.rpartition("step 10/100")[2].split())
    assert words.startswith("loss 4.000 (text 2.000, align 1.000, distill 1.000) 8.0 rows/s ")
    assert words.endswith(" left held out: 25.0% right, 20.0% without video")


def test_a_run_folder_has_a_page(tmp_path):
    folder = run_clips(tmp_path / "run", max_steps=3, held_out=[Clips()[i] for i in range(4)])
    page = (folder / "index.html").read_text()
    for text in ("Finished.", "vision_lr", "curves.png", "samples.png", "Held-out clips"):
        assert text in page
    assert "videopanda serve --model" in page
    assert (folder / "samples.png").stat().st_size > 5000
    assert not re.findall(r'(?:src|href)="(?!curves\.png|samples\.png)', page)
    (tmp_path / "open").mkdir()
    write_record(tmp_path / "open", STAGE, [], {"samples": 1})
    write_page(tmp_path / "open")
    assert "the command that started this run continues it" in (tmp_path / "open" / "index.html").read_text()


def test_text_alone_has_no_picture():
    assert sample_sheet([Clips()[5]]) is None
    assert sample_sheet([Clips()[0], Clips()[1]]).height > 200


def test_the_command_says_nothing_of_other_packages_and_resumes(tmp_path):
    data = tmp_path / "rows.jsonl"
    clip = BUNDLED_MODEL.parent / "demo.mp4"
    turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "red"}]
    rows = [json.dumps({"id": str(i), "video": clip.name, "conversations": turns}) for i in range(4)]
    data.write_text("\n".join(rows))
    words = ["finetune", "--data", data, "--media-root", clip.parent, "--model", BUNDLED_MODEL]
    words += ["--output", tmp_path / "out"]
    words += [word for setting in ("max_steps=2", "batch_size=2", "group_by_clip=false") for word in ("--set", setting)]
    command = [sys.executable, "-m", "videopanda", *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    steps = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert [line.split()[1] for line in steps] == ["1/2", "2/2"]
    known = r"step |stab |projector |language_model |validation |rows "
    assert [line for line in done.stderr.splitlines() if not re.match(known, line)] == []
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    assert not [line for line in again.stderr.splitlines() if line.startswith("step ")]
