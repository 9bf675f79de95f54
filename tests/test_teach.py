"""Protects `videopanda teach`: recordings never mix, the numbers say what they can show, the same command resumes."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from command import run
from media import write_video
from tiny import save_wide, tiny_model, tiny_processor
from videopanda.evaluation.predictions import Prediction
from videopanda.teach import FEW, _report, _warnings, tables, teach


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Two classes of six recordings, and a tiny random model."""
    folder = tmp_path_factory.mktemp("teach")
    for label, shift in (("left_hand", 0), ("right_hand", 40)):
        (folder / "clips" / label).mkdir(parents=True)
        for number in range(6):
            write_video(folder / "clips" / label / f"{number}.mp4", range(shift + number, shift + number + 8), fps=4)
    tiny_model().save_pretrained(folder / "model")
    tiny_processor().save_pretrained(folder / "model")
    return folder


def test_one_command_from_clips_to_a_measured_model(place):
    words = (
        "teach",
        place / "clips",
        "--question",
        "Which hand?",
        "--model",
        place / "model",
        "--output",
        place / "out",
    )
    words += ("--set", "max_steps=4", "--set", "dtype=float32")
    code, printed, err = run(*words)
    assert code == 0, err
    out = place / "out"
    rows = {name: (out / "data" / f"{name}.jsonl").read_text().splitlines() for name in ("train", "test")}
    videos = {name: {json.loads(row)["video"] for row in found} for name, found in rows.items()}
    assert not videos["train"] & videos["test"]
    report = json.loads((out / "teach.json").read_text())
    assert report["test_recordings"] == len(rows["test"]) == 4
    assert len(rows["train"]) == 8 * (1 + 4)  # few recordings: four altered copies of each
    assert all("altered" not in row for row in rows["test"])
    assert set(report["classes"]) == {"left hand", "right hand"}
    assert f"fewer than {FEW}" in err
    for part in ("videopanda serve --model", "videopanda push", "most frequent class", "teach.html"):
        assert part in printed
    page = (out / "teach.html").read_text()
    assert "Confusions" in page
    assert "most frequent class" in page
    assert (out / "errors.png").exists() == bool(report["errors"])
    written = (out / "model.safetensors").stat().st_mtime_ns
    again, printed_again, _ = run(*words)
    assert (again, printed_again) == (0, printed)
    assert (out / "model.safetensors").stat().st_mtime_ns == written
    code, _, err = run(*words[:3], "Which other hand?", *words[4:])
    assert code == 2
    assert "was made with question" in err
    added = place / "clips" / "left_hand" / "6.mp4"
    write_video(added, range(8), fps=4)
    try:
        code, _, err = run(*words)  # would measure again what was learned without the new clip
    finally:
        added.unlink()
    assert code == 2
    assert "changed since" in err
    assert run(*words)[0] == 0


def test_clips_that_cannot_be_used_leave_the_folder_free(tmp_path):
    (tmp_path / "empty").mkdir()
    for question in ("What?", "Which one?"):  # the second call is not refused because of the first
        with pytest.raises(ValueError, match="contains 0 classes"):
            teach(tmp_path / "empty", question, tmp_path / "out")


def test_a_single_recording_of_a_class_is_refused_unless_copies_are_asked_for(tmp_path):
    for label, count in (("a", 1), ("b", 2)):
        (tmp_path / "clips" / label).mkdir(parents=True)
        for number in range(count):
            write_video(tmp_path / "clips" / label / f"{number}.mp4", range(4), fps=4)
    with pytest.raises(ValueError, match=r"1 classes have a single recording \('a'\)"):
        teach(tmp_path / "clips", "What?", tmp_path / "out")


def answers(*texts):
    return {f"{number}/0": Prediction(f"{number}/0", text) for number, text in enumerate(texts)}


def rows(*labels, kind="unseen recording"):
    return [
        {
            "id": str(number),
            "video": f"{number}.mp4",
            "kind": kind,
            "conversations": [{"value": "<video>\nq"}, {"value": label}],
        }
        for number, label in enumerate(labels)
    ]


def test_the_report_counts_and_confuses():
    asked = {
        "before": answers("x", "x", "x"),
        "after": answers("A.", "b", "a"),
        "without_video": answers("a", "a", "a"),
    }
    report = _report("q", rows("a", "b", "b"), asked, "m")
    assert [round(report[when]["accuracy"], 3) for when in asked] == [0, 0.667, 0.333]
    assert report["confusion"] == {"a": {"a": 1}, "b": {"b": 1, "a": 1}}
    assert report["most_frequent_class"] == pytest.approx(2 / 3)
    assert [error["id"] for error in report["errors"]] == ["2/0"]
    assert [table.row_count for table in tables(report)] == [1, 2]


def test_what_the_numbers_cannot_show_is_said():
    asked = {when: answers(*"ab" * 15) for when in ("before", "after", "without_video")}
    report = _report("q", rows(*"ab" * 15), asked, "m")
    assert [warning.partition(":")[0] for warning in report["warnings"]] == [
        "training changed no answer",
        "accuracy is hardly better with the video than without it",
    ]
    copies = _report("q", rows(*"ab" * 15, kind="altered copy of a training recording"), asked, "m")
    assert any("copies of training clips" in warning for warning in copies["warnings"])
    assert _warnings({**report, "without_video": {"accuracy": 0.5}, "most_frequent_class": 0.5}, changed=3) == []


def test_many_different_answers_are_counted_and_the_rarest_shown_together():
    labels = [f"answer {number:02}" for number in range(40)] + ["answer 00"]
    asked = {when: answers(*labels[:-1], "answer 39") for when in ("before", "after", "without_video")}
    report = _report("q", rows(*labels), asked, "m")
    assert report["after"]["accuracy"] == 40 / 41
    assert len(report["classes"]) == 31
    assert report["classes"]["(another answer)"] == {"n": 10, "right": 10, "said": 11}
    assert report["classes"]["answer 00"] == {"n": 2, "right": 1, "said": 1}
    long = _report("q", rows("one two three four five six", "b"), {when: answers("x", "b") for when in asked}, "m")
    assert not any("judge" in warning for warning in long["warnings"])  # 3.5 words on average
    long = _report("q", rows("one two three four five six"), {when: answers("x") for when in asked}, "m")
    assert any("6 words on average" in warning for warning in long["warnings"])


# -- a file of questions -----------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def questions(place):
    """A question and a chat about each clip, as LLaMA-Factory writes them."""
    file = place / "questions.jsonl"
    kept = []
    for label, right in (("left_hand", "left"), ("right_hand", "right")):
        for number in range(6):
            video = {"videos": [f"clips/{label}/{number}.mp4"]}
            said = [{"role": "user", "content": "<video>Which hand?"}, {"role": "assistant", "content": right}]
            kept.append({**video, "messages": said})
            said = [{"role": "user", "content": "<video>Is it a hand?"}, {"role": "assistant", "content": "yes"},
                    {"role": "user", "content": "Which one?"}, {"role": "assistant", "content": right}]  # fmt: skip
            kept.append({**video, "messages": said})
    file.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return file


def test_a_file_of_questions_is_split_by_recording(questions, tmp_path):
    from videopanda.data.question_files import split_questions

    counts = split_questions(questions, tmp_path, 0.25)
    assert counts == {"train": 18, "test": 6, "test_recordings": 3}
    rows = {
        name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
        for name in ("train", "test")
    }
    recordings = {name: {row["recording"] for row in found} for name, found in rows.items()}
    assert not recordings["train"] & recordings["test"]
    assert all((tmp_path / row["video"]).is_file() for found in rows.values() for row in found)
    assert {len(row["conversations"]) for row in rows["train"]} == {2, 4}
    assert {len(row["conversations"]) for row in rows["test"]} == {2}  # of a chat the first question alone
    with pytest.raises(ValueError, match="already contains"):
        split_questions(questions, tmp_path)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"id": "1", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, "one video"),
        ({"id": "1", "video": "a.mp4", "conversations": []}, "empty"),
        ({"id": "1", "video": "a.mp4",
          "conversations": [{"from": "human", "value": "<video>q"}, {"from": "gpt", "value": "a"}]},
         "about 1 recordings"),
    ],
)  # fmt: skip
def test_what_cannot_be_split_is_refused(tmp_path, row, reason):
    from videopanda.data.question_files import split_questions

    (tmp_path / "rows.jsonl").write_text(json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=reason):
        split_questions(tmp_path / "rows.jsonl", tmp_path / "out")


def test_a_file_is_taught_and_its_options_are_checked(place, questions, tmp_path):
    out = tmp_path / "out"
    words = ("teach", questions, "--model", place / "model", "--output", out)
    for more, reason in (
        (("--question", "Which?"), "has its own questions"),
        (("--copies", "2"), "may not hold for altered clips"),
    ):
        code, _, err = run(*words, *more)
        assert (code, reason in err) == (2, True), err
    code, _, err = run("teach", place / "clips", *words[2:])
    assert (code, "with --question" in err) == (2, True)
    code, printed, err = run(*words, "--set", "max_steps=2", "--set", "dtype=float32")
    assert code == 0, err
    report = json.loads((out / "teach.json").read_text())
    assert (report["question"], report["test_recordings"], report["test_questions"]) == ("questions.jsonl", 3, 6)
    assert set(report["classes"]) <= {"left", "right", "yes"}
    assert "videopanda serve --model" in printed


def test_a_large_model_is_taught_by_adapters_on_four_bits(place, tmp_path):
    """As the released 7B is on one GPU, on a stand-in whose maps bitsandbytes can pack."""
    pytest.importorskip("bitsandbytes")
    save_wide(tmp_path / "model")
    words = ("teach", place / "clips", "--question", "Which hand?", "--model", tmp_path / "model", "--output")
    settings = ("--copies", "0", "--set", "max_steps=2", "--set", "dtype=float32")
    code, _, err = run(*words, tmp_path / "out", "--lora", "--quantize", "nf4", *settings)
    assert code == 0, err
    assert (tmp_path / "out" / "adapter" / "adapter_model.safetensors").is_file()
    assert json.loads((tmp_path / "out" / "teach.json").read_text())["test_questions"] == 4
    weights = load_file(tmp_path / "out" / "model.safetensors")
    kinds = {weight.dtype for name, weight in weights.items() if name.endswith("_proj.weight")}
    assert kinds == {torch.bfloat16}


def test_training_ends_early_with_the_best_weights(tmp_path):
    from videopanda.training.callbacks import EarlyStop

    model = torch.nn.Linear(1, 1, bias=False)
    control = type("Control", (), {"should_training_stop": False})()
    state = type("State", (), {"is_world_process_zero": True, "global_step": 1})()
    stop = EarlyStop(model, 2, tmp_path / "best")
    for value, loss in ((1.0, 3.0), (2.0, 1.0), (3.0, 2.0)):
        model.weight.data.fill_(value)
        stop.on_evaluate(None, state, control, metrics={"validation_loss": loss})
    assert not control.should_training_stop
    stop.on_evaluate(None, state, control, metrics={"validation_loss": 1.0})
    assert control.should_training_stop
    stop.restore()
    assert model.weight.item() == 2.0


def test_a_step_has_no_more_rows_than_clips(tmp_path):
    """All questions about a clip share a row: forty about two clips are two rows."""
    from videopanda.inference.load import BUNDLED_MODEL
    from videopanda.teach import _scaled

    rows = tmp_path / "train.jsonl"
    rows.write_text("".join(json.dumps({"video": f"{i % 2}.mp4"}) + "\n" for i in range(40)))
    assert "batch_size=1" in _scaled(BUNDLED_MODEL, rows, False, 0)


def test_clips_that_cannot_be_read_are_named(place, tmp_path):
    import shutil

    clips = Path(shutil.copytree(place / "clips", tmp_path / "clips"))
    (clips / "left_hand" / "0.mp4").write_bytes(b"no video" * 100)
    code, _, err = run("teach", clips, "--question", "Which?", "--model", place / "model", "--output", tmp_path / "out")
    assert code == 2
    assert "1 clips cannot be read" in err
