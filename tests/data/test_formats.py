"""Protects the training formats: every published form read into one record, everything else refused with its name.

The rows of `fixtures/` are invented; their shapes are those of the published files.
"""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from videopanda.data.formats.llava import llava, llava_video, valley, videochatgpt
from videopanda.data.formats.messages import Names, llama_factory, ms_swift
from videopanda.data.formats.mixture import parse_strategy
from videopanda.data.formats.opening import open_sources
from videopanda.data.formats.record import Medium, Record, RowError
from videopanda.data.formats.sources import FORMATS, detect
from videopanda.data.formats.videochat2 import videochat2
from videopanda.data.sample import Turn

FIXTURES = Path(__file__).parent / "fixtures"


def video(path: str, *times: float) -> tuple[Medium, ...]:
    return (Medium("video", path, *times),)


def records(data: str | Path, **settings) -> list[Record]:
    found = [record for source in open_sources(data, **settings) for _, record in source.records()]
    assert [record for record in found if isinstance(record, RowError)] == []
    assert all(turn.is_trained for record in found for turn in record.turns)
    return [replace(record, turns=tuple(turn[:2] for turn in record.turns)) for record in found]


READ = {
    "llava.json": (
        "llava",
        [
            Record(
                *("x0001", "llava", video("clips/kite.mp4", 1.5, 4.0)),
                turns=(
                    ("<video>\nWhat flies over the beach?", "A yellow kite."),
                    ("Who holds it?", "A girl in a raincoat."),
                ),
            ),
            Record(
                *("2", "llava", (Medium("image", "pictures/pier.jpg"),)),
                turns=(("<image>\nDescribe the picture.", "A wooden pier at low tide."),),
            ),
            Record(
                *("2", "llava", (*video("clips/one.mp4"), *video("clips/two.mp4"))),
                turns=(("<video>\n<video>\nWhich clip is older?", "The second."),),
            ),
            Record("talk", "llava", (), (("Wie spät ist es?", "Kurz vor acht."),)),
        ],
    ),
    "valley_.json": (
        "llava",
        [
            Record(
                *("000779", "valley_", video("valley/000101_000150/1011223346.mp4")),
                turns=(("<video>\nGive a short caption.", "Snow falls on a row of parked bicycles."),),
            )
        ],
    ),
    "valley.json": (
        "valley",
        [
            Record(
                *("000777", "valley", video("webvid/000101_000150/1011223344.mp4")),
                turns=(("<video>\nDescribe the clip briefly.", "Waves roll over a pebble beach at dusk."),),
            ),
            Record(
                *("000778", "valley", video("webvid/000101_000150/1011223345.mp4")),
                turns=(("<video>\nWhat happens?", "A gull lands."),),
            ),
        ],
    ),
    "videochatgpt.json": (
        "videochatgpt",
        [
            Record(
                *("v_AbCdEfGhIjK", "videochatgpt", video("v_AbCdEfGhIjK")),
                turns=(("What sport is shown?", "Two people play table tennis indoors."),),
            )
        ],
    ),
    "videochatgpt_converted.json": (
        "videochatgpt",
        [
            Record(
                *("v_AbCdEfGhIjK", "videochatgpt_converted", video("v_AbCdEfGhIjK")),
                turns=(("<video>\nWhat sport is shown?", "Table tennis."),),
            ),
            Record(
                *("v_AbCdEfGhIjK", "videochatgpt_converted", video("v_AbCdEfGhIjK")),
                turns=(("<video>\nWhere are they?", "In a gym."),),
            ),
        ],
    ),
    "llava_video.json": (
        "llava_video",
        [
            Record(
                *("77-1", "0_30_s_youtube_v0_1", video("liwei_youtube_videos/videos/inv/77.mp4")),
                turns=(
                    ("<video>\nWhich tool is used?\nOptions:\nA. Saw\nB. Hammer\nAnswer with the letter.", "B. Hammer"),
                ),
            )
        ],
    ),
    "videochat2.json": (
        "videochat2",
        [
            Record(
                *("0", "videochat2", video("didemo/invented_3.avi", 5.0, 10.5)),
                turns=(
                    ("Watch the clip and answer.\nWhat is poured?", "Green tea."),
                    ("Into what?", "A clay cup."),
                ),
            ),
            Record(
                *("1", "videochat2", (Medium("image", "coco/invented_9.jpg"),)),
                turns=(("Write a caption.", "A dog asleep on a stair."),),
            ),
        ],
    ),
    "llama_factory.json": (
        "llama_factory",
        [
            Record(
                *("0", "llama_factory", video("harbour/7.mp4")),
                turns=(("<video>How many boats pass?", "Three"),),
                system="Answer in one word.",
            ),
            Record(
                *("1", "llama_factory", (*video("harbour/8.mp4"), *video("harbour/9.mp4"))),
                turns=(("First <video>, then <video>: which is faster?", "The first."),),
            ),
        ],
    ),
    "ms_swift.jsonl": (
        "ms_swift",
        [
            Record(
                *("0", "ms_swift", video("cat.mp4")), turns=(("<video>What is the cat doing?", "It sleeps."),)
            ),
            Record(
                *("1", "ms_swift", (*video("cat.mp4"), *video("night.mp4"))),
                turns=(
                    ("<video><video>\nLook at them:", "I did."),
                    ("And what is the difference between the two?", "One is darker."),
                ),
                system="Be exact.",
            ),
            Record("2", "ms_swift", (), (("What is two and two?", "Four."),)),
        ],
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", READ)
def test_a_published_form_is_read(name):
    format, expected = READ[name]
    assert records(FIXTURES / name, format=format) == expected


def test_every_format_has_a_fixture():
    assert {format for format, _ in READ.values()} == set(FORMATS)


# -- which format a file has -------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [name for name in READ if name not in ("valley.json", "ms_swift.jsonl")])
def test_the_format_is_told_from_the_rows(name):
    assert detect(FIXTURES / name) == READ[name][0]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": 1, "video": "a/1", "source": "webvid", "conversations": []}, "--format valley"),
        ({"id": 1, "video": "a/1", "conversations": []}, "a folder of frames"),
        ({"caption": "a dog", "url": "x"}, "a row with caption, url is not known: pass --format"),
        ({}, "a row with no keys"),
    ],
)
def test_a_format_that_cannot_be_told_is_asked_for(tmp_path, row, message):
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    with pytest.raises(ValueError, match=message):
        open_sources(tmp_path / "rows.json")


def test_files_of_two_formats_are_refused(tmp_path):
    rows = [{"q": "a", "a": "b", "video_id": "c"}, {"QA": [], "video": "a.mp4"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with pytest.raises(ValueError, match="videochat2 and videochatgpt"):
        detect(tmp_path / "rows.json")


# -- what is wrong with a row ------------------------------------------------------------------------------------------
ASK, TELL = {"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "A cat."}
CHAT = [ASK, TELL]


@pytest.mark.parametrize(
    ("reader", "row", "kind", "reason"),
    [
        (llava, {"video": "a.mp4"}, "empty", "no conversation"),
        (llava, {"video": "a.mp4", "conversations": []}, "empty", "no conversation"),
        (llava, {"video": "a.mp4", "conversations": [ASK, {**TELL, "value": " "}]}, "empty", "assistant has no text"),
        (llava, {"video": "a.mp4", "conversations": [TELL, ASK]}, "roles", "are user"),
        (llava, {"video": "a.mp4", "conversations": [ASK]}, "roles", "alternate"),
        (llava, {"video": "a.mp4", "conversations": [{"from": "tool", "value": "x"}, TELL]}, "roles", "are tool"),
        (llava, {"video": "a.mp4", "conversations": ["What?"]}, "schema", "an object with 'from' and 'value'"),
        (llava, {"video": "a.mp4", "conversations": "What?"}, "schema", "must be a list, got str"),
        (llava, {"video": "a.mp4", "conversations": [{**ASK, "value": 3}, TELL]}, "schema", "got int"),
        (llava, {"video": 7, "conversations": CHAT}, "schema", "'video' must be a list"),
        (llava, {"video": [""], "conversations": CHAT}, "schema", "a path or a list of paths"),
        (llava, {"video": "a.mp4", "image": "b.jpg", "conversations": CHAT}, "schema", "both 'video' and 'image'"),
        (llava, {"video": "a.pkl", "conversations": CHAT}, "schema", "--format videochatgpt"),
        (llava, {"conversations": CHAT}, "extra_marker", "1 visual placeholders for 0"),
        (llava, {"video": "a.mp4", "conversations": [{**ASK, "value": "<video> <video>"}, TELL]}, "extra_marker", "2"),
        (llava, {"video": "a.mp4", "conversations": [*CHAT, ASK, TELL]}, "extra_marker", "2 visual placeholders for 1"),
        (llava, {"video": "a.mp4", "conversations": [ASK, {**TELL, "value": "<image>"}]}, "extra_marker", "an answer"),
        (llava, {"video": "a.mp4", "conversations": [{**ASK, "value": "Eh?"}, TELL]}, "missing_marker", "0 visual"),
        (llava, {"video": ["a.mp4", "b.mp4"], "conversations": CHAT}, "missing_marker", "1 visual placeholders for 2"),
        (llava, {"video": "a.mp4", "conversations": CHAT, "start": "soon"}, "schema", "'start' must be a time"),
        (llava, {"video": "a.mp4", "conversations": CHAT, "end": -1}, "schema", "'end' must be a time"),
        (llava, {"video": "a.mp4", "conversations": CHAT, "end": float("nan")}, "schema", "'end' must be a time"),
        (llava, {"video": "a.mp4", "conversations": CHAT, "start": 4, "end": 4}, "range", "not later than start"),
        (llava_video, {"video": "a.mp4", "conversations": CHAT}, "schema", "'data_source' is missing"),
        (valley, {"video": "a", "source": 3, "conversations": CHAT}, "schema", "name of a folder"),
        (videochatgpt, {"q": "x", "a": "y"}, "schema", "'video_id' is missing"),
        (videochatgpt, {"q": "", "a": "y", "video_id": "v_1"}, "empty", "user has no text"),
        (videochatgpt, {"q": "x", "a": 1, "video_id": "v_1"}, "schema", "'a' must be a string"),
        (videochat2, {"QA": [{"q": "x", "a": "y"}]}, "schema", "got 0"),
        (videochat2, {"video": "a.mp4", "QA": [{"i": "", "q": "", "a": "y"}]}, "empty", "user has no text"),
        (videochat2, {"video": "a.mp4", "QA": ["x"]}, "schema", "a member of 'QA'"),
        (videochat2, {"video": "a.mp4", "QA": []}, "empty", "no conversation"),
        (llama_factory, {"conversations": CHAT, "videos": ["a.mp4", "b.mp4"]}, "missing_marker", "1 visual"),
        (llama_factory, {"conversations": CHAT, "videos": ["a.mp4"], "images": ["b.jpg"]}, "schema", "their order"),
        (llama_factory, {"messages": ["x"]}, "schema", "an object with 'role' and 'content'"),
        (llama_factory, {"conversations": CHAT, "videos": ["a.mp4"], "system": 3}, "schema", "system prompt"),
        (ms_swift, {"messages": [], "audios": ["a.wav"]}, "schema", "not supported"),
        (ms_swift, {"query": "x", "response": "y", "history": ["z"]}, "schema", "pairs of question and answer"),
        (ms_swift, {"query": "x"}, "schema", "'response' is missing"),
    ],
)  # fmt: skip
def test_a_row_that_cannot_be_used_is_refused_by_name(reader, row, kind, reason):
    with pytest.raises(RowError) as caught:
        reader(row, 0, "rows")
    assert caught.value.kind == kind
    assert reason in caught.value.reason


# -- DATA_ROOT, dataset_info.json, where media lie ---------------------------------------------------------------------
def test_the_official_layout_is_taken_as_it_is(tmp_path):
    annotations = tmp_path / "train" / "train_json"
    annotations.mkdir(parents=True)
    shutil.copy(FIXTURES / "valley_.json", annotations)
    clip = tmp_path / "train" / "valley" / "000101_000150" / "1011223346.mp4"
    clip.parent.mkdir(parents=True)
    clip.touch()
    for named in (tmp_path, tmp_path / "train", annotations / "valley_.json"):
        (source,) = open_sources(named)
        ((_, record),) = source.records()
        assert source.locate(record.media[0]) == clip


def test_a_folder_without_annotations_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train/train_json/\*\.json: name a file of annotations"):
        open_sources(tmp_path)


@pytest.mark.parametrize("suffix", [".mp4", ".avi", ".mov", ".mkv", ".webm"])
def test_a_name_without_suffix_finds_its_clip(tmp_path, suffix):
    shutil.copy(FIXTURES / "videochatgpt.json", tmp_path)
    (tmp_path / f"v_AbCdEfGhIjK{suffix}").touch()
    (source,) = open_sources(tmp_path / "videochatgpt.json")
    ((_, record),) = source.records()
    assert source.locate(record.media[0]) == tmp_path / f"v_AbCdEfGhIjK{suffix}"


def test_dataset_info_gives_columns_their_names():
    found = records(f"{FIXTURES / 'dataset_info.json'}#own_names")
    expected = [
        Record(
            *("0", "llama_factory_own_names", video("candle.mp4")),
            turns=(("<video> What burns?", "A candle."),),
            system="Be brief.",
        )
    ]
    assert found == expected
    assert records(f"{FIXTURES / 'dataset_info.json'}#harbour") == READ["llama_factory.json"][1]


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("", "describes harbour, own_names, text: name one, as in"),
        ("#boats", "name one"),
        ("#text", "only local files"),
    ],
)
def test_dataset_info_that_does_not_say_enough_is_refused(part, message):
    with pytest.raises(ValueError, match=message):
        open_sources(f"{FIXTURES / 'dataset_info.json'}{part}")


def test_names_may_differ_for_every_column():
    row = {"talk": [{"who": "q", "what": "What? <video>"}, {"who": "a", "what": "This."}], "films": ["x.mp4"]}
    names = Names("talk", videos="films", role_tag="who", content_tag="what", user_tag="q", assistant_tag="a")
    assert llama_factory(row, 3, "s", names).turns == (Turn("<video>\nWhat?", "This."),)


# -- mixtures ----------------------------------------------------------------------------------------------------------
def test_a_mixture_takes_the_named_part_of_every_file():
    found = records(FIXTURES / "mixture.yaml")
    # 25 % of five rows are two, rounded up; then the second two; the last one; all of another file
    assert [record.id for record in found] == ["m0", "m1", "m2", "m3", "m4", "000777", "000778"]
    sources = open_sources(FIXTURES / "mixture.yaml", media_root=Path("/media"))
    assert [str(source.root) for source in sources] == ["/media/videos", "/media/videos", "/media", "/media"]


@pytest.mark.parametrize(
    ("strategy", "rows"),
    [
        ("all", range(10)),
        ("first:3", range(3)),
        ("first:25%", range(3)),
        ("first2:3", range(3, 6)),
        ("first3:3", range(6, 9)),
        ("first4:3", range(9, 10)),
        ("first2:30%", range(3, 6)),
        ("end:4", range(6, 10)),
        ("end:25%", range(7, 10)),
        ("first:99", range(10)),
        ("end:99", range(10)),
    ],
)
def test_a_strategy_takes_its_rows_of_ten(strategy, rows):
    selection = parse_strategy(strategy, "x.json")
    chosen = range(10) if selection is None else range(10)[selection.of(10)]
    assert list(chosen) == list(rows)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("json_path: rows.json\n    sampling_strategy: 'random:5'", "'random:5' is not all, first:N"),
        ("json_path: rows.json\n    sampling_strategy: 'first5:5'", "'first5:5' is not all"),
        ("json_path: rows.json\n    weight: 3", "unknown key 'weight'"),
        ("json_path: rows.json\n    video_read_type: decoord", "video_read_type must be one of"),
        ("json_path: rows.json\n    format: webvid", "unknown format 'webvid'"),
        ("json_path: missing.json", "missing.json does not exist"),
        ("json_path: s3://bucket/rows.json", "is not a local path"),
        ("json_path: rows.json\n    data_root: https://example.invalid/x", "is not a local path"),
        ("json_path: rows.json\n    data_root: a\n    data_root: b", "'data_root' appears twice"),
        ("json_path: rows.json\n    data_root: nowhere", "nowhere/a.mp4 does not exist, and neither do the next files"),
        ("json_path: [", "while parsing"),
    ],
)
def test_a_mixture_that_cannot_be_read_is_refused(tmp_path, entry, message):
    (tmp_path / "rows.json").write_text(json.dumps([{"video": "a.mp4", "conversations": CHAT}]))
    (tmp_path / "mix.yaml").write_text(f"datasets:\n  - {entry}\n")
    with pytest.raises(ValueError, match=message):
        open_sources(tmp_path / "mix.yaml")


@pytest.mark.parametrize("text", ["- a\n", "datasets: 3\n", "datasets: [a, b]\n", "\xff\xfe"])
def test_a_yaml_without_entries_is_refused(tmp_path, text):
    (tmp_path / "mix.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(ValueError, match=r"mix\.yaml"):
        open_sources(tmp_path / "mix.yaml")


@pytest.mark.parametrize(("name", "rate"), [("tvqa_100k", 3.0), ("other_100k", 1.0)])
def test_folders_of_frames_have_a_rate(tmp_path, name, rate):
    (tmp_path / f"{name}.json").write_text(json.dumps([{"video": "frames", "conversations": CHAT}]))
    (tmp_path / "frames").mkdir()
    (tmp_path / "mix.yaml").write_text(
        f"datasets:\n  - json_path: {name}.json\n    video_read_type: img\n    format: llava\n"
    )
    assert records(tmp_path / "mix.yaml")[0].media[0].fps == rate
