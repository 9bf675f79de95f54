"""Protects the numbers of the report: intervals against a bootstrap, paired differences, directions."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from micro import TABLE, write_table

from command import run as command
from videopanda.lab.report import direction, interval, report
from videopanda.lab.table import Table, read
from videopanda.lab.write import markdown, write
from videopanda.training import stages

QUESTIONS, CLIPS = 240, 80


def line(row: str, seed: int, right: np.ndarray, test: str = "t", table: Table | None = None) -> dict:
    return {
        "row": row,
        "seed": seed,
        "budget": "small",
        "accuracy": float(right.mean()),
        "battery": {"no_video": 0.3, "most_frequent_answer": 0.4},
        "test": test,
        "right": "".join(str(int(value)) for value in right),
        "cost": {"vision_parameters": 1e6, "visual_tokens": 50, "vision_gflops": 0.1, "hours": 0.5},
        "runs": [],
        **({"experiment": table.experiment(row, seed, "small")} if table else {}),
    }


def results(rows: list[dict]) -> dict:
    clips = [question // 3 for question in range(QUESTIONS)]
    families = [("shape", "count")[question % 2] for question in range(QUESTIONS)]
    return {"table": "micro", "tests": {"t": {"clips": clips, "families": families}}, "rows": rows}


def drawn(share: float, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    lean = np.repeat(rng.normal(0, 0.2, CLIPS), 3)  # questions about one clip are right and wrong together
    return (rng.random(QUESTIONS) < share + lean).astype(float)


@pytest.fixture
def table(tmp_path):
    return read(write_table(tmp_path))


def test_an_interval_over_clips_is_that_of_a_bootstrap_over_clips():
    values, clips = drawn(0.6, 0), np.arange(QUESTIONS) // 3
    rng = np.random.default_rng(0)
    means = [values.reshape(CLIPS, 3)[rng.integers(0, CLIPS, CLIPS)].mean() for _ in range(4000)]
    low, high = np.percentile(means, [2.5, 97.5])
    assert interval([values], clips)["ci95"] == pytest.approx([low, high], abs=0.01)  # measured worst: 0.002
    naive = 1.96 * np.sqrt(values.mean() * (1 - values.mean()) / QUESTIONS)
    assert np.ptp(interval([values], clips)["ci95"]) > 2 * naive


def test_seeds_widen_an_interval_by_students_t():
    clips = np.arange(QUESTIONS)
    alike = [np.full(QUESTIONS, 0.5)] * 3
    apart = [np.full(QUESTIONS, value) for value in (0.4, 0.5, 0.6)]
    assert interval(alike, clips)["ci95"] is interval(alike, clips)["detectable"] is None  # no spread is not certainty
    half = 4.303 * 0.1 / np.sqrt(3)
    assert interval(apart, clips)["ci95"] == pytest.approx([0.5 - half, 0.5 + half], abs=1e-4)
    assert interval(apart, clips)["detectable"] == pytest.approx(half * 2.80 / 1.96, abs=1e-4)
    many = [np.full(QUESTIONS, 0.5 + 0.1 * (-1) ** seed) for seed in range(12)]  # 11 degrees of freedom: 2.201
    half = 2.201 * np.std([seed[0] for seed in many], ddof=1) / np.sqrt(12)
    assert np.ptp(interval(many, clips)["ci95"]) / 2 == pytest.approx(half, abs=1e-4)


def test_an_interval_covers_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(1)
    clips, inside = np.arange(60) // 2, 0
    for _ in range(300):
        of_seed, of_clip = rng.normal(0, 0.05, 3), np.repeat(rng.normal(0, 0.2, 30), 2)
        values = [0.5 + of_clip + own + rng.normal(0, 0.3, 60) for own in of_seed]
        low, high = interval(values, clips)["ci95"]
        inside += low <= 0.5 <= high
    assert inside / 300 >= 0.95  # measured: 0.993; rather too wide than too narrow


def test_one_clip_has_no_interval():
    assert interval([np.array([0.0, 1.0])], np.array([7, 7])) == {"mean": 0.5, "ci95": None, "detectable": None}


def test_a_difference_is_paired(table):
    full = drawn(0.6, 2)
    worse = full.copy()
    worse[np.flatnonzero(full)[:30]] = 0
    found = report(results([line("full", 0, full), line("no row token", 0, worse)]), table, "small")
    assert [row["row"] for row in found["rows"]] == ["full", "no row token"]
    row = found["rows"][1]
    assert row["difference"]["mean"] == pytest.approx(-30 / QUESTIONS, abs=1e-4)
    assert np.ptp(row["difference"]["ci95"]) < np.ptp(row["accuracy"]["ci95"])
    assert (row["published_difference"], row["direction"]) == ({"Bench": -10}, "agrees")
    assert "difference" not in found["rows"][0]
    assert set(row["families"]) == set(row["family_differences"]) == {"shape", "count"}


def test_only_seeds_that_both_rows_have_are_compared(table):
    full = np.ones(QUESTIONS)
    rows = [line("full", 0, full), line("no row token", 0, full), line("no row token", 1, np.zeros(QUESTIONS))]
    found = report(results(rows), table, "small")["rows"][1]
    assert found["seeds"] == [0, 1]
    assert found["accuracy"]["mean"] == 0.5
    assert found["difference"]["mean"] == 0


def test_a_row_can_name_the_row_that_it_is_compared_with(tmp_path):
    text = TABLE + "  - {name: neither, compare: no row token, published: {Bench: 40}}\n"
    table = read(write_table(tmp_path, text))
    full, none = np.ones(QUESTIONS), np.zeros(QUESTIONS)
    half = (np.arange(QUESTIONS) % 2).astype(float)
    rows = [line("full", 0, full), line("no row token", 0, half), line("neither", 0, none)]
    found = report(results(rows), table, "small")
    assert [row.get("difference", {}).get("mean") for row in found["rows"]] == [None, -0.5, -0.5]
    assert found["rows"][2]["published_difference"] == {"Bench": -10}
    assert "| neither | no row token | -50.0" in markdown(found)
    with pytest.raises(ValueError, match="no row 'nobody'"):
        read(write_table(tmp_path, text.replace("compare: no row token", "compare: nobody")))


def test_a_paper_may_give_no_more_than_a_difference(tmp_path):
    text = TABLE.replace("published: {Bench: 50}", "published_differences: {Other: -2.5}")
    found = report(
        results([line("full", 0, np.ones(QUESTIONS)), line("no row token", 0, drawn(0.5, 0))]),
        read(write_table(tmp_path, text)),
        "small",
    )["rows"][1]
    assert (found["published_difference"], found["direction"]) == ({"Other": -2.5}, "agrees")


@pytest.mark.parametrize(
    ("ci95", "published", "expected"),
    [
        ([-0.2, -0.1], {"a": -1, "b": -2}, "agrees"),
        ([0.1, 0.2], {"a": -1, "b": -2}, "disagrees"),
        ([-0.1, 0.2], {"a": -1}, "undecided"),
        (None, {"a": -1}, "undecided"),
        ([0.1, 0.2], {"a": -1, "b": 2}, "mixed"),
        ([0.1, 0.2], {}, "not published"),
    ],
)
def test_directions(ci95, published, expected):
    mean = sum(ci95) / 2 if ci95 else 0.1
    assert direction({"mean": mean, "ci95": ci95}, published) == expected


def test_other_questions_are_refused(table):
    rows = [line("full", 0, np.ones(QUESTIONS)), line("no row token", 0, np.ones(QUESTIONS), "other")]
    with pytest.raises(ValueError, match="2 different sets of questions"):
        report(results(rows), table, "small")
    with pytest.raises(ValueError, match="no budget 'full'"):
        report(results(rows[:1]), table, "full")
    with pytest.raises(ValueError, match="no results for budget small"):
        report(results([]), table, "small")


def test_rows_that_are_older_than_the_table_are_told(tmp_path):
    table, right = read(write_table(tmp_path)), np.ones(QUESTIONS)
    rows = [line(name, seed, right, table=table) for seed in (0, 1) for name in ("full", "no row token")]
    rows += [line("wide", 0, right)]
    found = report(results(rows), read(write_table(tmp_path, TABLE + "  - {name: wide}\n")), "small")
    assert [row["outdated"] for row in found["rows"]] == [{}, {}, {0: ["its settings were not recorded"]}]
    text = TABLE.replace("stab.row_tokens: false}", "stab.row_tokens: false}, stages: {pretrain: {align_weight: 0.5}}")
    found = report(results(rows), read(write_table(tmp_path, text)), "small")
    change = ["pretrain: align_weight was the default, is 0.5"]
    assert [row["outdated"] for row in found["rows"]] == [{}, {0: change, 1: change}]
    page = markdown(found)
    assert "- no row token, seed 1: pretrain: align_weight was the default, is 0.5" in page
    assert "| no row token | 0*, 1* |" in page
    assert "| full | 0, 1 |" in page
    assert "no longer has them: wide." in page
    with pytest.raises(ValueError, match="only of rows that the table does not have: wide"):
        report(results(rows[-1:]), table, "small")


def test_a_change_of_a_preset_of_questions_or_of_a_stage_is_told(tmp_path, monkeypatch):
    table, right = read(write_table(tmp_path)), np.ones(QUESTIONS)
    rows = [line("full", 0, right, table=table), line("no row token", 0, right, "other", table)]
    longer = read(
        write_table(tmp_path, TABLE.replace("questions: 12", "questions: 24").replace("[pret", "[language, pret"))
    )
    (older,) = report(results(rows[:1]), longer, "small")["rows"]
    assert older["outdated"] == {0: ["language is new", "evaluate: questions was 12, is 24"]}
    with pytest.raises(ValueError, match="run these again, they are older than the table: full, no row token"):
        report(results(rows), longer, "small")
    monkeypatch.setitem(stages.NANO, "pretrain", replace(stages.NANO["pretrain"], max_grad_norm=0.5, log_steps=7))
    (older,) = report(results(rows[:1]), table, "small")["rows"]
    assert older["outdated"] == {0: ["pretrain: max_grad_norm was the default, is 0.5"]}


def test_rows_from_different_language_models_are_told(tmp_path):
    table, right = read(write_table(tmp_path)), np.ones(QUESTIONS)
    full, other = (line(name, 0, right, table=table) for name in ("full", "no row token"))
    full["experiment"]["start"] = {"model": "1a2b"}
    found = report(results([full, other]), table, "small")["rows"]
    assert [row["outdated"] for row in found] == [{}, {0: ["it starts from another language model than full"]}]


def test_the_committed_rows_are_those_of_the_tables():
    for file in sorted((Path(__file__).parents[2] / "benchmarks/lab").glob("*.json")):
        table, content = read(file.stem), json.loads(file.read_text())
        for budget in {row["budget"] for row in content["rows"]}:
            found = report(content, table, budget)
            assert not found["removed"], file.name
            assert all(row["outdated"] == {} for row in found["rows"]), file.name


def test_the_page_says_what_is_missing_and_how_sure_it_is(table, tmp_path):
    found = report(results([line("full", 0, drawn(0.6, 3))]), table, "small")
    text = markdown(found)
    assert "\n\nBudget small: 1 seed per row" in text  # no source of its own
    assert "Not run yet: no row token" in text
    assert "Rows with one seed" in text
    full, other = drawn(0.6, 3), drawn(0.5, 4)
    rows = [
        line(name, seed, right, table=table)
        for seed in (0, 1)
        for name, right in (("full", full), ("no row token", other))
    ]
    found = report(results(rows), table, "small")
    files = write(found, tmp_path)
    assert [file.name for file in files] == ["micro.md", "micro.json", "micro.png", "micro.costs.png"]
    assert all(file.stat().st_size > 100 for file in files)
    assert json.loads((tmp_path / "micro.json").read_text())["rows"][1]["seeds"] == [0, 1]
    text = (tmp_path / "micro.md").read_text()
    assert "Rows with one seed" not in text
    assert "| no row token | 0, 1 |" in text
    assert "Bench -10" in text


def test_a_foreign_file_is_not_replaced(table, tmp_path):
    (tmp_path / "micro.md").write_text("my notes")
    found = report(results([line("full", 0, np.ones(QUESTIONS))]), table, "small")
    with pytest.raises(ValueError, match="was not written by this command"):
        write(found, tmp_path)
    assert Path(tmp_path / "micro.md").read_text() == "my notes"


def test_a_report_before_a_run_names_the_command(tmp_path):
    path = write_table(tmp_path)
    code, _, err = command("lab", "report", path, "--runs", tmp_path / "runs", "--output", tmp_path / "report")
    assert code == 2
    assert f"no results at {tmp_path / 'runs/micro.json'}: run  videopanda lab run {path} --budget small" in err
