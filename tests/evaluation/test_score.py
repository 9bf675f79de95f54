"""Protects scores: what each scorer accepts, every rule of the denominator, equal bytes, hashes, the command."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from benchmark_files import WRITERS, question, write_json, write_lines
from wordnet_files import write_wordnet

from command import run
from videopanda.evaluation.benchmarks.item import Item
from videopanda.evaluation.benchmarks.options import LETTERS
from videopanda.evaluation.benchmarks.table import load
from videopanda.evaluation.predictions import FAILURES
from videopanda.evaluation.scoring.score import score_file
from videopanda.evaluation.scoring.scorers import DEFAULTS, SCORERS, iou, scorer, wups
from videopanda.evaluation.scoring.wordnet import WordNet, WordNetError

DEBIAN = Path("/usr/share/wordnet")


def item(*answers: str, task: str = "short_answer", **fields) -> Item:
    return Item("1", "v", "what?", task, answers=answers, **fields)


# -- scorers -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("name", "answer", "reply", "expected"),
    [
        ("exact", "dog", " dog ", 1.0),
        ("exact", "dog", "Dog", 0.0),
        ("normalized", "dog", "The dogs.", 1.0),
        ("normalized", "2", "two", 1.0),
        ("normalized", "dog", "a small dog", 0.0),
        ("normalized", "it doesn't", "It does not.", 1.0),
        ("normalized", "he cannot", "he can't", 1.0),
        ("normalized", "dog", "...", None),
        ("normalized", "dog", "<think>Is it a cat?</think>\n\nDog.", 1.0),
        ("normalized", "dog", "<think>It is a dog", None),
        ("normalized", "dog", "The animal is shown at 0:03: \\boxed{\\text{dog}}", 1.0),
        ("normalized", "dog", "**Answer:** dog<|im_end|>", 1.0),
        ("contains", "dog", "<think>A dog or a cat?</think>It is a cat.", 0.0),
        ("contains", "dog", "This is not a dog.", 0.0),
        ("contains", "dog", "It is a dog, not a cat.", 1.0),
        ("contains", "no dog", "There is no dog.", 1.0),
        ("contains", "salt and pepper", "salt, and pepper", 1.0),
        ("contains", "dog", "a small dog", 1.0),
        ("contains", "dog", "dogma", 0.0),
        ("yes-no", "yes", "Yes, it is.", 1.0),
        ("yes-no", "yes", "no", 0.0),
        ("yes-no", "yes", "perhaps", None),
    ],
)
def test_text_scorers(name, answer, reply, expected):
    verdict = SCORERS[name].judge(item(answer), reply)
    assert (verdict.metrics["accuracy"] if verdict else None) == expected


def test_choices_and_intervals():
    asked = item("b", task="choice", options=("a red cup", "a dog", "A dog."), right=(1,))
    for reply, expected in [("B", 1.0), ("(C)", 0.0), ("a dog", 1.0), ("a red cup", 0.0), ("none", None)]:
        verdict = SCORERS["choice"].judge(asked, reply)
        assert (verdict.metrics["accuracy"] if verdict else None) == expected
    asked = item(task="grounding", interval=(4.0, 8.0))
    assert SCORERS["iou"].judge(asked, "from 6 to 10 s").metrics == {
        "miou": pytest.approx(1 / 3),  # shared 2 of 6 seconds
        "r1@0.3": 1.0,
        "r1@0.5": 0.0,
        "r1@0.7": 0.0,
    }
    assert SCORERS["iou"].judge(asked, "later") is None
    assert (iou((0, 4), (4, 8)), iou((1, 2), (1, 2)), iou((3, 3), (1, 4))) == (0.0, 1.0, 0.0)


def test_defaults_accept_what_they_are_used_for():
    for task, name in DEFAULTS.items():
        assert task in SCORERS[name].tasks
    with pytest.raises(ValueError, match="unknown scorer 'bleu'; choose from exact, normalized"):
        scorer("bleu")
    with pytest.raises(ValueError, match="needs a WordNet database"):
        scorer("wups")


def test_a_hash_names_the_code_and_the_data(tmp_path):
    hashes = {entry.sha256 for entry in SCORERS.values()}
    assert len(hashes) == len(SCORERS)
    assert replace(SCORERS["exact"], version="2").sha256 not in hashes
    words = WordNet(write_wordnet(tmp_path / "a"))
    other = write_wordnet(tmp_path / "b")
    (other / "noun.exc").write_text("mice mouse\n")
    assert scorer("wups", words).sha256 == scorer("wups", words).sha256 != scorer("wups", WordNet(other)).sha256
    for part in ("noun", "verb", "adj", "adv"):  # newer databases are published without them
        (other / f"{part}.exc").unlink()
    assert WordNet(other).similarity("dogs", "dog") == 1.0
    assert WordNet(other).similarity("geese", "goose") == 0.0


# -- WordNet -----------------------------------------------------------------------------------------------------------
def test_wordnet_files_are_read(tmp_path):
    words = WordNet(write_wordnet(tmp_path))
    assert words.synonyms("sofa", "couch")
    assert words.synonyms("dog", "domestic dog")
    assert not words.synonyms("dog", "cat")
    # Depths: entity 1, animal 2, dog and cat 3, puppy 4.
    assert words.similarity("dog", "cat") == pytest.approx(2 * 2 / (1 + 1 + 2 * 2))
    assert words.similarity("puppies", "cat") == pytest.approx(2 * 2 / (2 + 1 + 2 * 2))
    assert words.similarity("geese", "goose") == words.similarity("unknown", "unknown") == 1.0
    assert words.similarity("run", "walked") == pytest.approx(2 * 2 / (1 + 1 + 2 * 2))  # root of all verbs above move
    assert words.similarity("dog", "unknown") == 0.0
    with pytest.raises(WordNetError, match=r"contains no WordNet database \(index.noun is missing\)"):
        WordNet(tmp_path / "none")


def test_wups_and_synonyms(tmp_path):
    words = WordNet(write_wordnet(tmp_path))
    assert wups(["dog"], ["cat"], 0.0, words) == pytest.approx(2 / 3)
    assert wups(["dog"], ["cat"], 0.9, words) == pytest.approx(0.1 * 2 / 3)
    assert wups(["dog", "sofa"], ["dog"], 0.0, words) == pytest.approx(words.similarity("sofa", "dog"))
    assert wups([], ["dog"], 0.0, words) == 0.0
    synonyms, similar = scorer("synonyms", words), scorer("wups", words)
    assert synonyms.judge(item("couch"), "The sofa.").metrics == {"accuracy": 1.0}
    assert synonyms.judge(item("couch"), "dog").metrics == {"accuracy": 0.0}
    assert similar.judge(item("couch"), "sofas").metrics == {"wups@0.0": 1.0, "wups@0.9": 1.0}


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="the WordNet database of the system is not here")
def test_the_real_wordnet():
    words = WordNet(DEBIAN)
    assert words.similarity("dog", "cat") == pytest.approx(6 / 7, abs=1e-9)
    assert words.synonyms("couch", "sofa")
    assert not words.synonyms("dog", "guitar")


# -- denominators ------------------------------------------------------------------------------------------------------
@pytest.fixture
def asked(tmp_path) -> Path:
    """Four questions, the ids of two of them numbers."""
    ids = (1, 2, "v_3", "v_4")
    write_json(tmp_path / "test_q.json", [question("a", f"what? {i}", i) for i in ids])
    write_json(tmp_path / "test_a.json", [{"answer": "dog", "type": "x", "question_id": i} for i in ids])
    return tmp_path


def scored(asked: Path, *rows) -> dict:
    predictions = write_lines(asked / "predictions" / "p.jsonl", *rows)
    return score_file("msvd-qa", asked, predictions, asked / "scores.jsonl")


def right(*ids) -> list[dict]:
    return [{"id": id_, "prediction": "a dog"} for id_ in ids]


def test_all_right(asked):
    summary = scored(asked, *right(1, 2, "v_3", "v_4"))
    assert (summary["questions"], summary["metrics"]) == (4, {"accuracy": 1.0})
    assert summary["wrong_without_being_read"] == {}


@pytest.mark.parametrize("failure", FAILURES)
def test_a_question_without_a_video_is_wrong(asked, failure):
    summary = scored(asked, *right(1, 2, "v_3"), {"id": "v_4", "prediction": None, "failure": failure})
    assert (summary["questions"], summary["metrics"]) == (4, {"accuracy": 0.75})
    assert summary["wrong_without_being_read"] == {failure: ["v_4"]}


def test_a_question_without_a_prediction_is_wrong(asked):
    summary = scored(asked, *right(1, 2, "v_3"))
    assert (summary["questions"], summary["metrics"]) == (4, {"accuracy": 0.75})
    assert summary["wrong_without_being_read"] == {"missing_prediction": ["v_4"]}


def test_an_unparsable_reply_is_wrong(asked):
    summary = scored(asked, *right(1, 2, "v_3"), {"id": "v_4", "prediction": "!!!"})
    assert (summary["questions"], summary["metrics"]) == (4, {"accuracy": 0.75})
    assert summary["wrong_without_being_read"] == {"unparsable": ["v_4"]}


def test_an_id_with_two_predictions_is_wrong(asked):
    summary = scored(asked, *right(1, 2, "v_3", "v_4", "v_4"))
    assert (summary["questions"], summary["metrics"]) == (4, {"accuracy": 0.75})
    assert summary["wrong_without_being_read"] == {"duplicate_id": ["v_4"]}


def test_replies_that_were_cut_short_are_counted_and_read_with_care(tmp_path):
    folder = WRITERS["next-qa"](tmp_path)
    asked, *others = [item for item in load("next-qa", folder).items if item.has_answer]
    reply = f"Let's look at each option:\n\n{LETTERS[asked.right[0]]}. {asked.options[asked.right[0]]}\nThe video shows"
    rows = [{"id": item.id, "prediction": "?", "finish_reason": "stop"} for item in others]
    for reason, status in (("stop", "scored"), ("length", "unparsable")):
        predictions = write_lines(
            tmp_path / "p.jsonl", {"id": asked.id, "prediction": reply, "finish_reason": reason}, *rows
        )
        summary = score_file("next-qa", folder, predictions, tmp_path / "scores.jsonl")
        first = json.loads((tmp_path / "scores.jsonl").read_text().splitlines()[0])
        assert (first["id"], first["status"], summary["cut_short"]) == (asked.id, status, int(reason == "length"))


def test_numbers_and_strings_are_the_same_id(asked):
    assert scored(asked, *right("1", 2.0, "v_3", "v_4"))["metrics"] == {"accuracy": 1.0}


def test_predictions_for_no_question_do_not_count(asked):
    summary = scored(asked, *right(1, 2, "v_3", "v_4", "v_5"), {"id": "6"}, "torn{")
    assert (summary["questions"], summary["metrics"]) == (4, {"accuracy": 1.0})
    assert summary["predictions_for_unknown_ids"] == ["v_5"]
    assert [row["place"] for row in summary["malformed_predictions"]] == ["p.jsonl line 6", "p.jsonl line 7"]


def test_questions_without_public_answer_or_scorer_are_counted_apart(tmp_path):
    predictions = write_lines(tmp_path / "p.jsonl", {"id": "u-2", "prediction": "(D)"})
    folder = WRITERS["egoschema"](tmp_path / "ego")
    summary = score_file("egoschema", folder, predictions, tmp_path / "s.jsonl")
    assert (summary["questions"], summary["metrics"]["accuracy"]) == (1, 1.0)
    assert summary["not_scored"]["without_public_answer"] == 1
    folder = WRITERS["mlvu"](tmp_path / "mlvu")
    predictions = write_lines(tmp_path / "q.jsonl", {"id": load("mlvu", folder).items[0].id, "prediction": "(D)"})
    summary = score_file("mlvu", folder, predictions, tmp_path / "s.jsonl")
    assert summary["not_scored"]["no_scorer_for_the_task"] == {"description": 1}
    assert summary["questions"] == 5


def test_types_and_their_mean(tmp_path):
    folder = WRITERS["mvbench"](tmp_path / "mv")
    ids = [entry.id for entry in load("mvbench", folder).items]
    predictions = write_lines(tmp_path / "p.jsonl", *({"id": id_, "prediction": "B"} for id_ in ids))
    summary = score_file("mvbench", folder, predictions, tmp_path / "s.jsonl")
    accuracies = {name: part["metrics"]["accuracy"] for name, part in summary["types"].items()}
    # "B" is right where there are three options, and no option where there is one.
    assert accuracies == {"action_sequence": 1.0, "counterfactual_inference": 0.0, "episodic_reasoning": 1.0}
    assert summary["metrics"]["accuracy"] == 0.75
    assert summary["mean_over_types"]["accuracy"] == pytest.approx(2 / 3, abs=1e-6)
    assert summary["chance"] == pytest.approx((3 * 1 / 3 + 1) / 4)


def test_the_most_frequent_answer_is_measured_with_the_same_scorer(tmp_path):
    folder = WRITERS["mvbench"](tmp_path / "mv")
    predictions = write_lines(tmp_path / "p.jsonl", {"id": load("mvbench", folder).items[0].id, "prediction": "?"})
    summary = score_file("mvbench", folder, predictions, tmp_path / "s.jsonl")
    assert summary["metrics"]["accuracy"] == 0.0
    assert summary["most_frequent_answer"]["metrics"] == {"accuracy": 1.0}  # one letter per task
    folder = WRITERS["charades-sta"](tmp_path / "ch")
    predictions = write_lines(tmp_path / "p.jsonl", {"id": load("charades-sta", folder).items[0].id, "prediction": "?"})
    assert score_file("charades-sta", folder, predictions, tmp_path / "s.jsonl")["most_frequent_answer"] is None


# -- damaged and foreign files -----------------------------------------------------------------------------------------
def test_a_bad_byte_costs_its_row_and_is_listed(asked):
    predictions = write_lines(asked / "p.jsonl", *right(1, 2, "v_3", "v_4"))
    whole = score_file("msvd-qa", asked, predictions, asked / "s.jsonl")
    lines = predictions.read_bytes().splitlines(keepends=True)
    predictions.write_bytes(lines[0].replace(b'"id": ', b'"x": "\xff", "id": ') + b"".join(lines[1:]))
    damaged = score_file("msvd-qa", asked, predictions, asked / "s.jsonl")
    questions = whole["questions"]
    assert whole["metrics"]["accuracy"] == 1.0
    assert damaged["metrics"]["accuracy"] == pytest.approx((questions - 1) / questions, abs=1e-6)
    assert damaged["malformed_predictions"] == [
        {"place": "p.jsonl line 1", "reason": "not UTF-8: byte 0xff", "id": None}
    ]
    code, out, _ = run("evaluate", "score", "msvd-qa", asked, predictions, "--output", asked / "s.jsonl")
    assert code == 0
    assert "not a prediction: p.jsonl line 1: not UTF-8: byte 0xff" in out


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("p.json", b'{"1": "yes\xff", "2": "no"}', "is not valid JSON"),  # one object of replies by id
        ("p.jsonl", "[]".encode("utf-16"), "is UTF-16, not UTF-8: convert it"),
        ("p.jsonl", b"", r"contains no predictions \(0 rows\)"),
        ("p.jsonl", b'{"id": "someone else\'s", "pred": "x"}\n', "no prediction matches a question of MSVD-QA"),
    ],
)
def test_files_of_something_else_are_no_zero(asked, name, content, message):
    (asked / name).write_bytes(content)
    with pytest.raises(ValueError, match=message):
        score_file("msvd-qa", asked, asked / name, asked / "s.jsonl")


@pytest.mark.parametrize("name", ["s.jsonl", "s.summary.json"])
@pytest.mark.parametrize("content", [b"my notes", b'{"id": "1", "pred": "a dog"}\n', b'[{"id": 1}]', b"\xff\xfe"])
def test_output_replaces_scores_only(asked, name, content):
    predictions = write_lines(asked / "p.jsonl", *right(1, 2))
    (asked / name).write_bytes(content)
    with pytest.raises(ValueError, match="was not written by this command: choose another --output"):
        score_file("msvd-qa", asked, predictions, asked / "s.jsonl")
    assert (asked / name).read_bytes() == content
    (asked / name).unlink()
    for _ in range(2):
        score_file("msvd-qa", asked, predictions, asked / "s.jsonl")
    assert {path.name for path in asked.iterdir() if path.name.startswith((".", "s."))} == {"s.jsonl", "s.summary.json"}


# -- files -------------------------------------------------------------------------------------------------------------
def test_equal_predictions_give_equal_bytes(asked):
    scored(asked, *right(1, 2, "v_3", "v_4"))
    first = [(asked / name).read_bytes() for name in ("scores.jsonl", "scores.summary.json")]
    scored(asked, *right("v_4", 2, "v_3", 1))
    assert [(asked / name).read_bytes() for name in ("scores.jsonl", "scores.summary.json")] == first
    row = json.loads(first[0].splitlines()[0])
    assert row == {
        "id": "1",
        "video": "a",
        "status": "scored",
        "scorer": "normalized",
        "groups": [],
        "metrics": {"accuracy": 1.0},
        "types": ["x"],
        "parsed": "dog",
        "prediction": "a dog",
    }


def test_predictions_of_something_else_are_refused(asked):
    protocol = {"benchmark": "msvd-qa", "errata": "as-published", "condition": "full"}
    rows = [{"id": "1", "prediction": "x", "protocol": {**protocol, "benchmark": "mvbench"}}]
    with pytest.raises(ValueError, match="for mvbench, not for msvd-qa"):
        scored(asked, *rows)
    rows = [{"id": str(i), "prediction": "x", "protocol": {**protocol, "condition": c}} for i, c in enumerate("ab")]
    with pytest.raises(ValueError, match="mix conditions"):
        scored(asked, *rows)
    with pytest.raises(ValueError, match="does not apply to MSVD-QA; available question kinds: short_answer"):
        score_file("msvd-qa", asked, write_lines(asked / "p" / "p.jsonl", rows[0]), asked / "s.jsonl", "choice")


def test_the_command_scores(asked, tmp_path):
    predictions = write_lines(tmp_path / "p" / "p.jsonl", *right(1, 2), {"id": "v_3", "prediction": "couch"})
    common = ("evaluate", "score", "msvd-qa", asked, predictions, "--output", tmp_path / "out" / "s.jsonl")
    code, out, err = run(*common, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads((tmp_path / "out" / "s.summary.json").read_text())
    assert json.loads(out)["metrics"] == {"accuracy": 0.5}
    code, out, _ = run(*common, "--scorer", "wups", "--wordnet", write_wordnet(tmp_path / "wn"))
    assert code == 0
    assert "wups@0.9" in out
    assert "missing prediction 1" in out
    for arguments, message in [
        (("--scorer", "bleu"), "unknown scorer"),
        (("--scorer", "synonyms"), "--wordnet DIR"),
        (("--output", predictions), "is the predictions file"),
    ]:
        code, out, err = run(*common, *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
