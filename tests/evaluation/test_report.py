"""Protects the report: its numbers and intervals, what it refuses to mix, and that losses and baselines are shown."""

import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from benchmark_files import VIDEO_MME_ROW, question, write_json, write_lines
from rich.console import Console

from command import run
from videopanda.evaluation.predictions import CONDITIONS
from videopanda.evaluation.reporting.published import PUBLISHED
from videopanda.evaluation.reporting.report import bootstrap, measure, report
from videopanda.evaluation.reporting.write import markdown, overview, write
from videopanda.evaluation.scoring.score import score_file

IDS = [f"v_{i}" for i in range(40)]


@pytest.fixture(scope="module")
def asked(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("asked")
    write_json(folder / "test_q.json", [question(f"clip{i // 2}", "what?", id_) for i, id_ in enumerate(IDS)])
    answers = [{"answer": "dog" if i % 4 else "cat", "type": i % 2, "question_id": id_} for i, id_ in enumerate(IDS)]
    write_json(folder / "test_a.json", answers)
    return folder


def scores(asked: Path, folder: Path, name: str, replies: dict[str, str], scorer=None, **protocol) -> Path:
    """Score the replies of a run; questions without a reply have none."""
    full = {"benchmark": "msvd-qa", "errata": "as-published", "condition": "full", "model": "m", "num_frames": 8}
    rows = [{"id": id_, "prediction": text, "protocol": {**full, **protocol}} for id_, text in replies.items()]
    predictions = write_lines(folder / f"{name}.predictions.jsonl", *rows)
    out = folder / f"{name}.jsonl"
    score_file("msvd-qa", asked, predictions, out, scorer)
    return out


# -- numbers -----------------------------------------------------------------------------------------------------------
def test_intervals_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(60):
        videos = [str(i // 3) for i in range(180)]
        rate = np.repeat(rng.beta(2, 2, 60), 3)  # questions about one video go together; the mean is 1/2
        low, high = bootstrap([(videos, rng.random(180) < rate)], seed=trial)
        hits += low <= 0.5 <= high
    assert hits / 60 >= 0.88  # measured: 0.983


def test_intervals_are_the_same_every_time_and_wider_for_fewer_videos():
    values = [1.0, 0.0] * 20
    many = bootstrap([([str(i) for i in range(40)], values)])
    assert many == bootstrap([([str(i) for i in range(40)], values)])
    together = bootstrap([([str(i // 10) for i in range(40)], sorted(values))])
    assert together[1] - together[0] > many[1] - many[0]
    assert bootstrap([(["a"] * 40, values)]) is None
    assert bootstrap([(["a", "b"], [1.0, 1.0])]) == (1.0, 1.0)


def test_means_are_over_the_questions_that_have_the_metric():
    rows = [
        {"video": "a", "metrics": {"accuracy": 1.0}},
        {"video": "b", "metrics": {"accuracy": 0.0, "miou": 0.5}},
    ]
    measured = measure(rows)
    assert (measured["questions"], measured["metrics"]["accuracy"]["value"]) == (2, 0.5)
    assert (measured["metrics"]["miou"]["value"], measured["metrics"]["miou"]["questions"]) == (0.5, 1)


# -- one table ---------------------------------------------------------------------------------------------------------
@pytest.fixture
def battery(asked, tmp_path) -> list[Path]:
    """A model that says "dog" to three quarters of the questions; without a video it leaves out some."""
    full = {id_: "a dog" if i % 4 else "cat" for i, id_ in enumerate(IDS)}
    blind = dict.fromkeys(IDS[:36], "dog") | {IDS[35]: "…"}
    return [
        scores(asked, tmp_path, "blind", blind, condition="no_video", vision_parameters=30_000_000),
        scores(asked, tmp_path, "full", full, vision_parameters=30_000_000),
    ]


def test_a_report_says_it_all(battery, tmp_path):
    measured = report(battery)
    (table,) = measured["benchmarks"]
    (model,) = table["models"]
    assert list(model["conditions"]) == ["full", "no_video"]  # in the order of the battery
    full, blind = model["conditions"].values()
    assert (full["metrics"]["accuracy"]["value"], full["coverage"]) == (1.0, 1.0)
    assert blind["metrics"]["accuracy"]["value"] == 26 / 40
    assert blind["wrong_without_being_read"] == {"missing_prediction": IDS[36:], "unparsable": [IDS[35]]}
    assert blind["coverage"] == 35 / 40
    assert {name: part["questions"] for name, part in full["types"].items()} == {"0": 20, "1": 20}
    # "cat" and "dog" are equally frequent in type 0; in type 1 it is always "dog".
    assert table["most_frequent_answer"]["metrics"]["accuracy"] == 0.75
    text = markdown(table)
    for piece in (
        "## MSVD-QA",
        "| m | full | 40 | 100.0 % | 100.0 [100.0, 100.0] |",
        "| model | full | no video | most frequent answer | chance |",
        "| 75.0 | – |",
        "- m, no_video: missing prediction 4: `v_36`, `v_37`, `v_38`, `v_39`",
        "- m, no_video: unparsable 1: `v_35`",
        "| model | part | accuracy | score | m, measured here | protocol |",
        "| Video-Panda | all | 64.7 | 3.8 | 100.0 [",
        "normalized 3 (short_answer, ",
        "- protocol: num_frames: 8",
    ):
        assert piece in text
    files = write(measured, tmp_path / "out")
    assert sorted(path.name for path in files) == [
        "msvd-qa.types.png",
        "msvd-qa.vision_size.png",
        "report.json",
        "report.md",
    ]
    assert json.loads((tmp_path / "out" / "report.json").read_text()) == measured
    for path in files:
        if path.suffix == ".png":
            assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
            assert f"![{path.name}]({path.name})" in (tmp_path / "out" / "report.md").read_text()


def test_equal_scores_give_equal_bytes(battery, tmp_path):
    for name in ("one", "two"):
        write(report(battery), tmp_path / name)
    for path in (tmp_path / "one").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", ["report.md", "report.json", "msvd-qa.types.png"])
def test_a_report_replaces_reports_only(battery, tmp_path, name):
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_bytes(b"mine")
    with pytest.raises(ValueError, match="was not written by this command"):
        write(report(battery), out)
    assert (out / name).read_bytes() == b"mine"
    (out / name).unlink()
    for _ in range(2):
        write(report(battery), out)


def test_lengths_reach_the_report_and_published_numbers_stand_beside_their_own_part(tmp_path):
    videos = {"short": 3, "medium": 4, "long": 5}
    rows = [
        {**VIDEO_MME_ROW, "duration": length, "videoID": f"{length}{i}", "question_id": f"{length}{i}-1"}
        for length, count in videos.items()
        for i in range(count)
    ]
    write_lines(tmp_path / "test.jsonl", *rows)
    right = {"short": "B", "medium": "A", "long": "B"}  # wrong for all of medium length but the first
    replies = [
        {"id": row["question_id"], "pred": "B" if row["question_id"] == "medium0-1" else right[row["duration"]]}
        for row in rows
    ]
    predictions = write_lines(tmp_path / "p.jsonl", *replies)
    summary = score_file("video-mme", tmp_path / "test.jsonl", predictions, tmp_path / "s.jsonl")
    found = {name: (part["questions"], part["metrics"]["accuracy"]) for name, part in summary["groups"].items()}
    assert list(found.items()) == [("short", (3, 1.0)), ("medium", (4, 0.25)), ("long", (5, 1.0))]
    (table,) = report([tmp_path / "s.jsonl"])["benchmarks"]
    text = markdown(table)
    assert "by group (accuracy)" in text
    assert "| medium | 4 | 25.0 [" in text
    # Tab. 11 of the Video-Panda paper is about the medium part, the others about all questions.
    assert "| Video-Panda | medium | 37.9 | 25.0 [" in text
    assert "| EVE | all | 29.3 | 75.0 [" in text
    code, out, _ = run(
        *("evaluate", "score", "video-mme", tmp_path / "test.jsonl", predictions, "--output", tmp_path / "s.jsonl")
    )
    assert code == 0
    assert "medium" in out


def test_five_aspects_have_their_average():
    points = {"correctness": 3.0, "detail": 2.0, "context": 4.0, "temporal": 1.0, "consistency": 5.0}
    rows = [{"video": v, "metrics": {name: value}} for v in "ab" for name, value in points.items()]
    measured = measure(rows)["metrics"]
    assert next(iter(measured)) == "average"
    assert measured["average"] == {"value": 3.0, "ci95": [3.0, 3.0], "questions": 10}
    assert "average" not in measure(rows[:4])["metrics"]
    rng = np.random.default_rng(0)
    rows = [{"video": str(v), "metrics": {name: float(rng.integers(0, 6))}} for v in range(40) for name in points]
    both = measure(rows)["metrics"]
    assert both["average"]["value"] == pytest.approx(np.mean([both[name]["value"] for name in points]), abs=1e-6)
    # Five aspects of the same videos are more certain than one.
    assert np.ptp(both["average"]["ci95"]) < min(np.ptp(both[name]["ci95"]) for name in points)
    averages = {entry.model: entry.metrics["average"] for entry in PUBLISHED["video-chatgpt"]}
    assert averages == {"Video-Panda": 2.57, "Video-LLaVA": 2.40, "Video-ChatGPT": 2.38}  # the paper's Tab. 2


def test_names_in_the_plot_cover_nothing(battery, tmp_path, monkeypatch):
    from matplotlib.text import Text

    from videopanda.evaluation.reporting import plots

    drawn = []
    monkeypatch.setattr(plots, "png", lambda figure, software: drawn.append(figure) or b"")
    (table,) = report(battery)["benchmarks"]
    plots.plot_vision_size(table, "accuracy", tmp_path / "p.png")
    (figure,) = drawn
    axes = figure.axes[0]
    renderer = figure.canvas.get_renderer()
    boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]
    assert {text.get_text() for text in axes.texts} == {*(e["model"] for e in table["published"]), "m"}
    for i, box in enumerate(boxes):
        assert axes.bbox.x0 <= box.x0
        assert box.x1 <= axes.bbox.x1
        assert not any(box.overlaps(other) for other in boxes[:i])
    bubbles = {mark.get_offsets()[0][1]: mark for mark in axes.collections if len(mark.get_offsets()) == 1}
    other, same = bubbles[70.7], bubbles[64.8]  # Video-LLaVA, of 765,000 samples and of 100,000
    assert other.get_sizes()[0] / same.get_sizes()[0] == pytest.approx(7.65)
    assert (other.get_facecolor() != same.get_facecolor()).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_frames": 16}, r"differ in protocol: num_frames \(8, 16\)"),
        ({"prompt_sha256": "other"}, "differ in protocol: prompt_sha256"),
        ({"generation": {"max_new_tokens": 9}}, "differ in protocol: max_new_tokens"),
        ({"scorer": "contains"}, "differ in scorer or judge"),
        ({"model": "m", "condition": "full"}, "are both of model m, condition full"),
    ],
)
def test_what_is_not_comparable_is_refused(asked, battery, tmp_path, change, message):
    other = scores(asked, tmp_path, "other", dict.fromkeys(IDS, "dog"), **{"model": "n", **change})
    with pytest.raises(ValueError, match=message):
        report([*battery, other])
    assert report([other])  # alone it is fine
    code, out, err = run("evaluate", "report", *battery, other, "--output", tmp_path / "out")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert not (tmp_path / "out").exists()


def test_models_conditions_and_batch_sizes_may_differ(asked, battery, tmp_path):
    other = scores(asked, tmp_path, "other", dict.fromkeys(IDS, "dog"), model="n", generation={"batch_size": 9})
    (table,) = report([*battery, other])["benchmarks"]
    assert [model["model"] for model in table["models"]] == ["m", "n"]


def test_predictions_without_a_protocol_are_a_table_of_their_own(asked, battery, tmp_path):
    predictions = write_lines(tmp_path / "p.jsonl", *({"id": id_, "pred": "dog"} for id_ in IDS))
    score_file("msvd-qa", asked, predictions, tmp_path / "foreign.jsonl")
    (table,) = report([tmp_path / "foreign.jsonl"])["benchmarks"]
    assert table["models"][0]["model"] == "foreign"
    assert "the predictions do not say how they were made" in markdown(table)
    with pytest.raises(ValueError, match="differ in protocol"):
        report([battery[1], tmp_path / "foreign.jsonl"])


def test_damaged_scores_are_refused(battery, tmp_path):
    lines = battery[0].read_text().splitlines(keepends=True)
    battery[0].write_text("".join(lines[:-1]))
    with pytest.raises(ValueError, match="has 39 scores, but its summary has 40"):
        report(battery)
    battery[0].write_text("".join(lines) + "{torn")
    with pytest.raises(ValueError, match="not valid JSON"):
        report(battery)
    battery[0].with_suffix(".summary.json").write_text("{}")
    with pytest.raises(ValueError, match=r"not a summary of scores|not valid JSON"):
        report(battery[:1])
    battery[0].with_suffix(".summary.json").unlink()
    with pytest.raises(ValueError, match="is missing"):
        report(battery)


def test_the_command_reports(battery, tmp_path):
    code, out, err = run("evaluate", "report", *battery, "--output", tmp_path / "out")
    assert (code, err) == (0, "")
    assert re.search(r"MSVD-QA +40 +100.0 +100–100 +65.0 +–", out)
    code, out, _ = run("evaluate", "report", *battery, "--output", tmp_path / "out", "--json")
    assert json.loads(out) == report(battery)


def test_the_printed_table_fits_80_columns_and_names_the_models(battery):
    (table,) = report(battery)["benchmarks"]
    (model,) = table["models"]
    whole = model["conditions"]["full"]
    names = ("video-panda-7b-finetuned", "video-llava-7b")
    models = [{**model, "model": name, "conditions": dict.fromkeys(CONDITIONS, whole)} for name in names]
    several = [{**table, "title": title, "models": models} for title in ("Video-MME with subtitles", "MVBench")]
    console = Console(width=80, file=io.StringIO())
    console.print(overview({"benchmarks": several}))
    printed = console.file.getvalue()
    assert max(map(len, printed.splitlines())) <= 80
    assert "…" not in printed
    first = "".join(line[:17].strip() for line in printed.splitlines())  # a long name goes on in the next line
    for name in (*names, "MVBench"):
        assert name in first


def test_published_numbers_name_their_protocol():
    for entries in PUBLISHED.values():
        for entry in entries:
            assert entry.protocol
            assert all(0 < value <= 100 for value in entry.metrics.values())
    panda = {
        name: next(e for e in PUBLISHED[name] if e.model == "Video-Panda").metrics for name in ("msvd-qa", "tgif-qa")
    }
    assert panda == {"msvd-qa": {"accuracy": 64.7, "score": 3.8}, "tgif-qa": {"accuracy": 42.9, "score": 3.2}}
    assert CONDITIONS[0] == "full"
