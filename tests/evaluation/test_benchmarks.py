"""Protects the readers: every original layout, every row accounted for, known errors, ids joined and kept unique."""

import json
from pathlib import Path

import pytest
from benchmark_files import VIDEO_MME_ROW, WRITERS, question, write_json, write_lines, write_parquet

from command import run
from videopanda.evaluation.benchmarks import subtitles
from videopanda.evaluation.benchmarks.files import AnnotationError
from videopanda.evaluation.benchmarks.inspect import inspect
from videopanda.evaluation.benchmarks.table import BENCHMARKS, load
from videopanda.evaluation.benchmarks.videos import Videos

SHARED = Path(__file__).parents[3] / "shared" / "annotations"
needs_annotations = pytest.mark.skipif(not SHARED.is_dir(), reason="the real annotation files are not here")


def only(name: str, path: Path, mode: str = "as-published"):
    """What a benchmark of one question reads as."""
    (item,) = load(name, path, mode).items
    return item


# -- every layout ------------------------------------------------------------------------------------------------------
IDS = {
    "msvd-qa": ["7", "8"],
    "msrvtt-qa": ["v_video9001_1"],
    "tgif-qa": ["COUNT3", "FRAMEQA11", "TRANS1", "TRANS2"],
    "activitynet-qa": ["v_zzINVENT0_0", "v_zzINVENT0_1", "v_zzINVENT0_2"],
    "video-chatgpt": [
        "consistency/v_INVENT_01/0/Q1",
        "consistency/v_INVENT_01/0/Q2",
        "generic/v_INVENT_01/0",
        "generic/v_INVENT_01/1",
        "temporal/v_INVENT_01/0",
    ],
    "egoschema": ["u-1", "u-2"],
    "video-mme": ["901-2", "902-1"],
    "video-mme-subtitles": ["901-2", "902-1"],
    "mvbench": [
        "action_sequence/inv_12/0",
        "action_sequence/inv_12/1",
        "counterfactual_inference/video_1/0",
        "episodic_reasoning/show_s01e01_clip/0",
    ],
    "mlvu": [
        "1_plotQA/inv_3/0",
        "1_plotQA/inv_3/1",
        "2_needle/inv_3/0",
        "6_anomaly_reco/inv_3/0",
        "7_topic_reasoning/inv_3/0",
        "9_summary/inv_3/0",
    ],
    "longvideobench": ["INVENT00001_2", "INVENT00001_3"],
    "longvideobench-subtitles": ["INVENT00001_2", "INVENT00001_3"],
    "lvbench": ["17"],
    "next-qa": ["4010_6", "4010_7"],
    "next-qa-open": ["4010_6", "4010_7"],
    "tempcompass": [
        "caption_matching/9001/action/0",
        "captioning/9001/action/0",
        "multi-choice/9001/action/0",
        "yes_no/9001/action/0",
    ],
    "hourvideo": ["INV_1", "INV_2"],
    "video-mme-v2": [f"{video}-{n}" for video in ("001", "002") for n in range(1, 5)],
    "videoeval-pro": ["inv_3/0", "inv_3/1"],
    "videoeval-pro-choice": ["inv_3/0", "inv_3/1"],
    "ovo-bench": ["0", "1/0", "2/0", "2/1", "3/0", "3/1"],
    "charades-sta": ["INV01/0", "INV01/1"],
    "timelens-bench": ["charades/INV01/0", "charades/INV01/1", "qvhighlights/v_1.0/0"],
    "scenes": ["test-0-1/0", "test-0-1/1"],
    "custom": ["clips/sad/b/0", "clips/sad/b/1"],
}


def test_every_benchmark_has_a_miniature():
    assert set(WRITERS) == set(BENCHMARKS) == set(IDS)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_original_files_are_read(name, tmp_path):
    loaded = load(name, WRITERS[name](tmp_path))
    assert [item.id for item in loaded.items] == IDS[name]
    assert loaded.duplicates == ()
    for item in loaded.items:
        assert item.question
        assert item.place
        if item.task == "choice":
            assert all(not option.startswith(("A.", "(A)", "A)")) for option in item.options)
            assert all(item.options[i] == item.answers[0] for i in item.right)


def test_items_say_what_the_files_say(tmp_path):
    def items(name):
        folder = tmp_path / name
        return load(name, WRITERS[name](folder)).items

    first, second = items("msvd-qa")
    assert (first.answers, second.answers) == (("run",), ("man",))  # by id, not by position; ids are int or str
    yes, colour, number = items("activitynet-qa")
    assert (yes.video, yes.task, yes.types) == ("v_zzINVENT0", "yes_no", ("yes/no",))
    assert (colour.types, number.types, number.task) == (("colour",), ("number",), "short_answer")
    count, frame, before, _ = items("tgif-qa")
    assert (count.answers, count.types, frame.types) == (("4",), ("count",), ("number",))
    assert (before.options[before.right[0]], before.types) == ("sit", ("transition",))
    consistency, *_, temporal = items("video-chatgpt")
    assert consistency.extra == {"aspects": ["consistency"], "pair": "consistency/v_INVENT_01/0"}
    assert temporal.extra["aspects"] == ["temporal"]
    private, public = items("egoschema")
    assert (private.has_answer, public.right, public.extra["cut_from"]["starting_sec"]) == (False, (3,), 60)
    assert (public.options, public.answers) == (("Bake", "Fix", "Paint", "Wash", "Plant"), ("Wash",))
    mme, _ = items("video-mme-subtitles")
    assert (mme.video, mme.right, mme.options) == ("INVENTED_01", (1,), ("One.", "Two.", "Three.", "Four."))
    assert mme.extra["options_as_published"][0] == "A. One."
    assert mme.extra["subtitles"] == "subtitle/INVENTED_01.srt"
    part, whole, one, frames = items("mvbench")
    assert (part.start, part.end, whole.start) == (2.0, 14.5, None)
    assert part.video == "star/Charades_v1_480/inv_12.mp4"
    assert (one.options, frames.extra["fps"], frames.video) == (
        ("It stops",),
        3,
        "tvqa/frames_fps3_hq/show_s01e01_clip",
    )
    plot, *_, summary = items("mlvu")
    assert (plot.video, plot.right, summary.task) == ("1_plotQA/inv_3.mp4", (1,), "description")
    five, three = items("longvideobench")
    assert (len(five.options), len(three.options), five.right) == (5, 3, (1,))
    assert (five.extra["subtitles"], five.extra["subtitle_offset"]) == ("subtitles/INVENT00001_en.json", 5)
    (lv,) = items("lvbench")
    assert (lv.question, lv.options) == ("Which side kicks off?", ("Red", "Blue", "White", "Black"))
    assert (lv.types, lv.right) == (("entity recognition", "reasoning"), (1,))
    assert lv.extra["evidence"] == [101 * 60 + 10, 101 * 60 + 25]
    how, why = items("next-qa-open")
    assert (how.answers, why.answers, how.task) == (("strum", "pluck the strings"), ("he was happy",), "short_answer")
    assert (how.video, how.types) == ("1164/4010", ("causal how",))
    assert (mme.groups, five.groups) == (("short",), ("15 to 60 s",))
    assert plot.groups == ("single detail", "up to 10 min")
    how, why = items("next-qa")
    assert (how.question, how.right, how.types) == ("how do they play, together", (2,), ("causal how",))
    assert (how.video, why.types) == ("1164/4010", ("causal why",))
    matching, captioning, choice, yes_no = items("tempcompass")
    assert (matching.options, matching.right) == (("He runs.", "He hops."), (1,))
    assert (captioning.task, captioning.answers) == ("description", ("hop",))
    assert (choice.question, choice.options, choice.right) == ("What does he do?", ("run", "hop", "sit"), (1,))
    assert (yes_no.task, yes_no.types) == ("yes_no", ("yes_no", "action"))
    block, columns = items("hourvideo")
    assert (block.options, block.right, columns.right) == (("Saw", "Plane", "Chisel", "Drill", "File"), (2,), (4,))
    fold, _ = items("charades-sta")
    assert (fold.task, fold.interval, fold.question) == ("grounding", (4.2, 11.0), "a person folds a blanket.")
    existence, number_of = items("scenes")
    assert (existence.question, existence.task, number_of.answers) == ("Is there a cross?", "yes_no", ("3",))


def test_other_published_layouts_are_read(tmp_path):
    row = {**VIDEO_MME_ROW, "question_id": "901-2"}
    shared = {key: row.pop(key) for key in ("video_id", "duration", "domain", "sub_category", "url", "videoID")}
    result = write_json(tmp_path / "mme.json", [{**shared, "questions": [{**row, "response": "A"}]}])
    assert only("video-mme", result).video == "INVENTED_01"
    clean = {
        "video": "00009999",
        "type": "sport",
        "question": "Which side kicks off?",
        "candidates": ["(A) Red", "(B) Blue"],
        "answer": "(B) Blue",
        "question_type": ["reasoning"],
        "time_reference": "1:41:10-1:41:25",
    }
    item = only("lvbench", write_json(tmp_path / "lvbench_clean.json", [clean]))
    assert (item.id, item.options, item.right) == ("00009999/0", ("Red", "Blue"), (1,))
    assert item.extra["evidence"] == [6070, 6085]
    filled = {
        "id": "x_1",
        "video_path": "x.mp4",
        "question": "What?",
        "question_category": "S2E",
        "correct_choice": 2,
        **{f"option{i}": text for i, text in enumerate(("a", "b", "c", "N/A", "N/A"))},
    }
    item = only("longvideobench", write_parquet(tmp_path / "validation-0.parquet", [filled]))
    assert (item.options, item.right) == (("a", "b", "c"), (2,))
    hosted = {"video_name": "m_1.mp4", "duration": 3.5, "question": "Which?\n(A) red\n(B) blue", "answer": "B"}
    hosted |= {"candidates": ["red", "blue"], "task_type": "plotQA", "question_id": "q1"}
    item = only("mlvu", write_parquet(tmp_path / "mlvu_dev.parquet", [hosted]))
    assert (item.id, item.question, item.right) == ("q1", "Which?", (1,))
    charades = [{"video": "AB.mp4", "caption": "person sits.", "timestamp": [0, 2.5]}]
    assert only("charades-sta", write_json(tmp_path / "charades.json", charades)).interval == (0.0, 2.5)
    hosted = [{"video_idx": "u", "question": "Q?", "option": [f"{c}. {c * 2}" for c in "ABCDE"], "answer": "4"}]
    item = only("egoschema", write_parquet(tmp_path / "ego.parquet", hosted))
    assert (item.options, item.right) == (("AA", "BB", "CC", "DD", "EE"), (4,))
    frame = write_lines(tmp_path / "q.jsonl", {"video": "7010", "question": "what?", "answer": "cake", "id": 3})
    assert (only("msrvtt-qa", frame).video, only("msrvtt-qa", frame).id) == ("video7010", "3")


def test_variants_of_the_layouts_are_read(tmp_path):
    write_json(tmp_path / "val_q.json", [question("v1", "who?", 1), question("v2", "when?", 2)])
    types = [{"answer": "he", "type": "9", "question_id": 1}, {"answer": "now", "type": 2, "question_id": 2}]
    path = write_json(tmp_path / "val_a.json", types).with_name("val_q.json")
    loaded = load("activitynet-qa", path)
    assert [(item.answers, item.types) for item in loaded.items] == [(("he",), ("9",)), (("now",), ("temporal",))]
    hosted = {"video_path": "k.mp4", "question": "Which?\n(A) red\n(B) blue", "answer": "B"}
    item = only("lvbench", write_parquet(tmp_path / "lvbench.parquet", [hosted]))
    assert (item.options, item.right, item.types) == (("red", "blue"), (1,), ())
    hosted = {"video_name": "m_1.mp4", "question": hosted["question"], "answer": "(B) blue", "task_type": "plotQA"}
    item = only("mlvu", write_parquet(tmp_path / "mlvu_dev.parquet", [hosted]))
    assert (item.task, item.options, item.right) == ("choice", ("red", "blue"), (1,))
    write_parquet(tmp_path / "pair" / "test_q.parquet", [question("x", "who?", 4)])
    write_parquet(tmp_path / "pair" / "test_a.parquet", [{"answer": "she", "question_id": "4"}])
    assert only("msvd-qa", tmp_path / "pair").answers == ("she",)
    for folder, answer in (("MC", None), ("Subset", "3")):
        row = {"video_idx": "u", "question": "Q?", "option": list("abcde"), "answer": answer}
        write_parquet(tmp_path / "ego" / folder / "test-00000-of-00001.parquet", [row])
    item = only("egoschema", tmp_path / "ego")
    assert (item.right, item.place) == ((3,), "Subset/test-00000-of-00001.parquet row 1")
    row = {"video": "a.mp4", "question": "Q?", "candidates": ["x", "y"], "answer": "x"}
    write_json(tmp_path / "mv" / "action_count.json", [row, {**row, "fps": "many"}])
    (refused,) = load("mvbench", tmp_path / "mv").rejected
    assert refused.reason == "'fps' is not a number: 'many'"


@needs_annotations
def test_real_files_have_the_rows_of_their_manifests():
    loaded = load("activitynet-qa", SHARED / "activitynet-qa")
    counts = inspect("activitynet-qa", SHARED / "activitynet-qa")
    assert (len(loaded.items), loaded.rejected, loaded.duplicates) == (8000, (), ())
    assert (counts["rows"], counts["questions"]) == (8000, 8000)
    assert (counts["videos"], counts["tasks"]) == (
        800,
        {"short_answer": 5905, "yes_no": 2095},
    )  # one "no" of another type
    assert counts["types"] == {
        "motion": 800,
        "spatial": 800,
        "temporal": 800,
        "yes/no": 2094,
        "colour": 697,
        "object": 318,
        "location": 386,
        "number": 606,
        "other": 1499,
    }
    loaded = load("video-chatgpt", SHARED / "video-chatgpt-benchmark")
    counts = inspect("video-chatgpt", SHARED / "video-chatgpt-benchmark")
    assert (counts["rows"], counts["questions"]) == (1996 + 499 + 499, 1996 + 499 + 2 * 499)
    assert counts["types"] == {
        "consistency": 2 * 499,
        "generic": 1996,
        "temporal": 499,
    }
    assert loaded.rejected == ()
    assert {duplicate.kind for duplicate in loaded.duplicates} == {"other id, same content"}


# -- what is wrong is listed -------------------------------------------------------------------------------------------
def test_malformed_rows_are_listed_and_the_rest_is_read(tmp_path):
    questions = [
        question("a", "what?", 1),
        question("a", "what else?", 2),  # no answer
        {"video_name": "a", "question_id": 3},  # no question
        question("a", "who?", None),
        "a string",
        question("a", "where?", 5),
    ]
    answers = [
        {"answer": "x", "question_id": "1"},
        {"answer": "", "question_id": 5},
        {"answer": "y", "question_id": 3},
        {"answer": "z", "question_id": 9},
        {"answer": "again", "question_id": 1},
    ]
    write_json(tmp_path / "test_q.json", questions)
    write_json(tmp_path / "test_a.json", answers)
    loaded = load("msvd-qa", tmp_path)
    assert [(item.id, item.answers) for item in loaded.items] == [("1", ("x",))]
    assert {(row.place, row.reason) for row in loaded.rejected} == {
        ("test_a.json row 5", "a second answer for this question; the first is test_a.json row 1"),
        ("test_q.json row 2", "test_a.json has no answer for this question"),
        ("test_q.json row 3", "'question' is missing"),
        ("test_q.json row 4", "'question_id' is missing"),
        ("test_q.json row 5", "not an object"),
        ("test_q.json row 6", "'answer' is empty"),
        ("test_a.json row 4", "test_q.json has no question for this answer"),
    }


@pytest.mark.parametrize(
    ("name", "row", "reason"),
    [
        ("video-mme", {**VIDEO_MME_ROW, "answer": "E"}, "the answer 'E' is none of the 4 options"),
        ("video-mme", {**VIDEO_MME_ROW, "options": "A. One."}, "'options' is not a list"),
        ("mvbench", {"video": "a.mp4", "question": "?", "candidates": [], "answer": "x"}, "there are no candidates"),
        (
            "mvbench",
            {"video": "a.mp4", "question": "?", "candidates": ["x"], "answer": "x", "start": "soon", "end": 3},
            "'start' is not a number: 'soon'",
        ),
        (
            "charades-sta",
            {"video": "a.mp4", "caption": "x", "timestamp": [1]},
            "'timestamp' has 1 values instead of two",
        ),
        (
            "longvideobench",
            {"id": "1", "video_path": "a", "question": "?", "candidates": ["x"], "correct_choice": 3},
            "'correct_choice' is 3, not a whole number from 0 to 0",
        ),
        ("lvbench", {"key": "k", "question": "no options", "answer": "A"}, "the text has no lettered options"),
    ],
)
def test_a_bad_row_is_rejected_with_its_reason(name, row, reason, tmp_path):
    good = load(name, WRITERS[name](tmp_path / "good")).items[0]
    with pytest.raises(AnnotationError, match="contains no usable questions") as error:
        load(name, write_json(tmp_path / "action_sequence.json", [row]))
    assert reason in str(error.value)
    assert good.id


def test_the_same_id_twice_counts_once(tmp_path):
    rows = [
        {**VIDEO_MME_ROW},
        {**VIDEO_MME_ROW},
        {**VIDEO_MME_ROW, "answer": "C"},
        {**VIDEO_MME_ROW, "question_id": "x"},
    ]
    loaded = load("video-mme", write_json(tmp_path / "mme.json", rows))
    assert [item.id for item in loaded.items] == ["901-2", "x"]
    assert [(duplicate.place, duplicate.kind) for duplicate in loaded.duplicates] == [
        ("mme.json row 2", "same id, same content"),
        ("mme.json row 3", "same id, other content"),
        ("mme.json row 4", "other id, same content"),
    ]
    assert [row.place for row in loaded.rejected] == ["mme.json row 2", "mme.json row 3"]


def test_files_that_are_not_there_are_an_error(tmp_path):
    for path, message in [(tmp_path / "none", "no such file or folder"), (tmp_path, "contains none of these files")]:
        with pytest.raises(AnnotationError, match=message):
            load("mvbench", path)
    with pytest.raises(ValueError, match="unknown benchmark 'mvbnch'; did you mean 'mvbench'"):
        load("mvbnch", tmp_path)
    with pytest.raises(ValueError, match="unknown errata mode 'fixed'"):
        load("msvd-qa", tmp_path, "fixed")


# -- errata ------------------------------------------------------------------------------------------------------------
def test_the_three_modes(tmp_path):
    folder = WRITERS["mlvu"](tmp_path)
    published, corrected, strict = (load("mlvu", folder, mode) for mode in ("as-published", "corrected", "strict"))
    assert published.errata == corrected.errata == strict.errata
    assert {name: ids for name, ids in published.errata.items() if ids} == {
        "duplicate-options": ("1_plotQA/inv_3/1",),
        "empty-option": ("7_topic_reasoning/inv_3/0",),
        "answer-not-an-option": ("2_needle/inv_3/0",),
        "implausible-duration": ("6_anomaly_reco/inv_3/0",),
    }
    as_published, repaired = ({item.id: item for item in loaded.items} for loaded in (published, corrected))
    assert as_published["1_plotQA/inv_3/1"].right == (1,)
    assert repaired["1_plotQA/inv_3/1"].right == (1, 2)
    assert (as_published["2_needle/inv_3/0"].right, repaired["2_needle/inv_3/0"].right) == ((), (2,))
    assert "duration" not in repaired["6_anomaly_reco/inv_3/0"].extra
    assert [row.id for row in corrected.rejected] == ["7_topic_reasoning/inv_3/0"]
    assert [item.id for item in strict.items] == ["1_plotQA/inv_3/0", "9_summary/inv_3/0"]
    assert len({loaded.sha256 for loaded in (published, corrected, strict)}) == 3


def test_an_answer_near_two_options_cannot_be_repaired(tmp_path):
    row = {"video": "a.mp4", "duration": 9, "question": "?", "candidates": ["a tent", "a dog"], "question_type": "x"}
    good = {**row, "answer": "a dog"}
    path = write_json(tmp_path / "2_needle.json", [good, {**row, "answer": "a tent and a dog"}])
    (rejected,) = load("mlvu", path, "corrected").rejected
    assert (rejected.id, rejected.reason) == ("2_needle/a/1", "erratum without a repair: answer-not-an-option")


def test_errors_of_other_sets_are_found(tmp_path):
    assert load("mvbench", WRITERS["mvbench"](tmp_path / "mv")).errata["single-option"]
    assert load("charades-sta", WRITERS["charades-sta"](tmp_path / "ch")).errata["empty-interval"] == ("INV01/1",)
    tgif = WRITERS["tgif-qa"](tmp_path / "tgif")
    assert "fiFRAMEQAlace" in load("tgif-qa", tgif).items[1].question
    assert "fireplace" in load("tgif-qa", tgif, "corrected").items[1].question
    path = write_lines(tmp_path / "v.jsonl", '{"video": "a", "question": "x", "question": "y", "answer": "b", "id": 1}')
    assert (only("msvd-qa", path).question, load("msvd-qa", path).errata["repeated-key"]) == ("y", ("1",))


# -- what belongs to a question ----------------------------------------------------------------------------------------
def test_subtitles_at_the_frames_shown(tmp_path):
    srt = tmp_path / "a.srt"
    srt.write_text("1\n00:00:01,000 --> 00:00:02,500\n<i>Two</i>\ncups.\n\n2\n01:00:00.000 --> 01:00:01.000\nEnd.\n")
    cues = subtitles.read(srt)
    assert cues == [subtitles.Cue(1.0, 2.5, "Two cups."), subtitles.Cue(3600.0, 3601.0, "End.")]
    assert subtitles.at_times(cues, [0.5, 2.5]) == cues[:1]
    srt.write_text("1\n00:00:59,200 --> 00:00:60,000\nTo the minute.\n\n2\n01:02,5 --> 01:03,5\nWithout hours.\n")
    assert [(cue.start, cue.end) for cue in subtitles.read(srt)] == [(59.2, 60.0), (62.5, 63.5)]
    srt.write_text("1\n00:00:61,000 --> 00:01:02,000\nNo such second.\n")
    with pytest.raises(subtitles.SubtitleError, match=r"no time that can be read in '1.*00:00:61"):
        subtitles.read(srt)
    rows = [{"timestamp": [7, 8.5], "text": " a "}, {"timestamp": [9, "None"], "text": "b"}]
    found = subtitles.read(write_json(tmp_path / "b.json", rows), offset=5.0)
    assert [(cue.start, cue.end, cue.text) for cue in found] == [(2.0, 3.5, "a"), (4.0, float("inf"), "b")]
    rows = [{"start": "00:01:05.250", "end": "00:01:06.000", "line": "c"}]
    assert subtitles.read(write_json(tmp_path / "c.json", rows)) == [
        subtitles.Cue(65.125, 66.125, "c")
    ]  # a second long
    with pytest.raises(subtitles.SubtitleError, match="contains no subtitles"):
        subtitles.read(write_json(tmp_path / "d.json", [{"x": 1}]))


def test_options_with_letters_of_other_places_are_refused(tmp_path):
    """The letter of the answer would name another option than the place does."""
    row = {"video": "a.mp4", "options": ["B. red", "A. blue"], "answer": "B", "answer_text": "red", "qa_type": "x"}
    write_parquet(tmp_path / "test-0.parquet", [{**row, "question": "Q", "qa_subtype": "y", "source": "z"}])
    with pytest.raises(AnnotationError, match="carry the letters B, A: put them into order"):
        load("videoeval-pro-choice", tmp_path)


def test_a_part_with_one_end_is_shown_and_one_without_length_refused(tmp_path):
    row = {"video": "a.mp4", "question": "Q", "candidates": ["x", "y"], "answer": "x"}
    write_json(tmp_path / "moving_count.json", [{**row, "start": 3}, {**row, "start": 5, "end": 3}])
    loaded = load("mvbench", tmp_path)
    assert [(item.start, item.end) for item in loaded.items] == [(3.0, None)]
    assert [bad.reason for bad in loaded.rejected] == ["end (3 s) is not later than start (5 s)"]


def test_videos_are_found_below_a_folder(tmp_path):
    for name in ("a/clip.mp4", "b/clip.mp4", "x.y.avi", "frames/show_1/00001.jpg"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    videos = Videos(tmp_path)
    assert videos.find("b/clip.mp4") == tmp_path / "b/clip.mp4"
    assert videos.find("clip.mp4") is None  # two have the name and nothing tells which
    assert videos.find("x.y") == tmp_path / "x.y.avi"
    assert videos.find("tvqa/show_1") == tmp_path / "frames/show_1"
    assert videos.find("none") is None
    with pytest.raises(ValueError, match="no such folder"):
        Videos(tmp_path / "none")


def test_links_to_folders_of_videos_are_followed_once(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "clip.mp4").touch()
    folder = tmp_path / "videos"
    folder.mkdir()
    (folder / "part").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(folder)  # a link to a folder above it
    assert Videos(folder).find("clip") == folder / "part" / "clip.mp4"


# -- the command -------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", ["mlvu", "hourvideo", "activitynet-qa"])
def test_inspect_prints_one_object_or_tables(name, tmp_path):
    folder = WRITERS[name](tmp_path)
    code, out, err = run("evaluate", "inspect", name, folder, "--errata", "corrected", "--json")
    assert (code, err) == (0, "")
    report = json.loads(out)
    assert report == inspect(name, folder, "corrected")
    assert report["questions"] + len(report["rejected"]) == {"mlvu": 6, "hourvideo": 3, "activitynet-qa": 3}[name]
    code, out, _ = run("evaluate", "inspect", name, folder)
    assert code == 0
    assert all(type_ in out for type_ in load(name, folder).items[0].types)


def test_inspect_tells_which_videos_are_missing(tmp_path):
    folder = WRITERS["activitynet-qa"](tmp_path / "qa")
    (tmp_path / "videos").mkdir()
    assert inspect("activitynet-qa", folder, videos=tmp_path / "videos")["missing_videos"] == ["v_zzINVENT0"]
    (tmp_path / "videos" / "v_zzINVENT0.mkv").touch()
    assert inspect("activitynet-qa", folder, videos=tmp_path / "videos")["missing_videos"] == []


def test_a_mistake_is_one_line(tmp_path):
    for arguments, message in [
        (("mvbnch", tmp_path), "unknown benchmark"),
        (("mvbench", tmp_path / "none"), "no such file"),
        (("mvbench", tmp_path, "--errata", "x"), "unknown errata mode"),
    ]:
        code, out, err = run("evaluate", "inspect", *arguments)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert message in err
