"""Protects `--set` of the evaluations: the changed model answers, every prediction says so, and files of different
settings are neither mixed nor confused."""

import json

import pytest
from benchmark_files import question, write_json

from command import run
from media import write_video
from videopanda.evaluation.reporting.report import report
from videopanda.inference.answer import ask
from videopanda.inference.load import load

SETTINGS = {"merge.keep": 0.2, "merge.layers": [0]}
MERGING = ("--set", "merge.layers=0", "--set", "merge.keep=0.2")
SHORT = ("--num-frames", 4, "--max-new-tokens", 6)


@pytest.fixture
def bench(tmp_path):
    folder = tmp_path / "bench"
    write_json(folder / "test_q.json", [question(name, f"what is {name}?", i) for i, name in enumerate("ab")])
    write_json(folder / "test_a.json", [{"answer": "x", "question_id": i} for i in range(2)])
    for first, name in enumerate("ab"):
        write_video(folder / f"{name}.mp4", range(500 * first, 500 * first + 20), fps=10)
    return folder


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_predictions_are_of_the_changed_model_and_say_so(bench, model, tmp_path):
    out = tmp_path / "merged.jsonl"
    words = ("evaluate", "predict", "msvd-qa", bench, "--model", model, *SHORT)
    code, _, err = run(*words, "--output", out, *MERGING)
    assert code == 0, err
    rows = rows_of(out)
    assert [row["protocol"]["settings"] for row in rows] == [SETTINGS] * 2
    changed, plain = (load(model, "cpu", settings=settings) for settings in (SETTINGS, {}))
    expected, unmerged = (
        [ask(*loaded, bench / f"{name}.mp4", [f"what is {name}?"], num_frames=4, max_new_tokens=6)[0] for name in "ab"]
        for loaded in (changed, plain)
    )
    assert [row["prediction"] for row in rows] == [answer.answer for answer in expected]
    assert [answer.answer for answer in expected] != [answer.answer for answer in unmerged]
    before = out.read_bytes()
    for others in ((), ("--set", "merge.layers=0", "--set", "merge.keep=0.3")):
        code, _, err = run(*words, "--output", out, *others)
        assert (code, len(err.strip().splitlines())) == (2, 1), err
        assert "contains predictions of another run (settings {'merge.keep': 0.2, 'merge.layers': " in err
    assert run(*words, "--output", out, *reversed_pairs(MERGING))[0] == 0  # the order of options does not matter
    assert out.read_bytes() == before


def reversed_pairs(words):
    return (*words[2:], *words[:2])


def test_a_run_compares_settings_of_one_model_in_one_table(bench, model, tmp_path):
    words = ("evaluate", "run", f"msvd-qa={bench}", "--model", model, *SHORT, "--condition", "full")
    names = []
    for name, more in (("plain", ()), ("merged", MERGING)):
        code, printed, err = run(*words, "--output", tmp_path / name, "--json", *more)
        assert code == 0, err
        names.append(json.loads(printed)["benchmarks"][0]["models"][0]["model"])
    assert names == [model.name, f"{model.name}, merge.keep=0.2 merge.layers=[0]"]
    both = report([tmp_path / name / "msvd-qa" / "full.scores.jsonl" for name in ("plain", "merged")])
    assert [entry["model"] for entry in both["benchmarks"][0]["models"]] == names


def test_scenes_take_settings_and_report_them(model, tmp_path):
    words = ("evaluate", "scenes", "--model", model, "--num", 12, "--no-baselines", "--output", tmp_path, "--json")
    code, printed, err = run(*words, *MERGING)
    assert code == 0, err
    assert json.loads(printed)["model"]["settings"] == SETTINGS
    code, _, err = run(*words)
    assert (code, "another run (settings" in err) == (2, True), err


@pytest.mark.parametrize("verb", [("predict", "msvd-qa", "x"), ("scenes",), ("run", "msvd-qa=x")])
def test_a_setting_that_is_none_is_one_line(verb, bench, model, tmp_path):
    named = [str(word).replace("x", str(bench)) for word in verb]
    output = tmp_path / ("out.jsonl" if verb[0] == "predict" else "out")
    words = ("evaluate", *named, "--model", model, "--output", output)
    for setting, message in (("merge.keep", "write it as key=value"), ("merge.kep=1", "did you mean 'merge.keep'?")):
        code, _, err = run(*words, "--set", setting)
        assert (code, message in err, len(err.strip().splitlines())) == (2, True, 1), err
    assert not output.exists()
