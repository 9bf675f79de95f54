"""Protects the meaning of a row: its keys are honored or refused, and what would stop training is found before."""

import bz2
import gzip
import json
import lzma
import re
from pathlib import Path

import pytest
import torch
from jinja2 import TemplateError

from media import write_video
from tiny import clip, tiny_processor, tiny_tokenizer
from videopanda.data import doctor
from videopanda.data.collate import IGNORE, Collator
from videopanda.data.conversations import ConversationDataset
from videopanda.data.formats.llava import llava, llava_video, valley, videochatgpt
from videopanda.data.formats.messages import llama_factory, ms_swift
from videopanda.data.formats.record import RowError
from videopanda.data.formats.sources import detect
from videopanda.data.formats.videochat2 import videochat2
from videopanda.data.sample import Sample, Turn
from videopanda.data.shards import ShardDataset, write_shards
from videopanda.training import nano
from videopanda.training.chat_template import visual_chat_template

CASES = Path(__file__).parents[2] / "shared" / "cases" / "data"


def form(name: str, answers: list[dict], **more) -> dict:
    """A row of a format with one question before each answer; `answers` have "a" and flags."""
    asks = ["<video>\nQ" if k == 0 else "R" for k in range(len(answers))]
    if name in ("llama_factory", "ms_swift"):
        key, role, text, user, assistant, media = (
            "messages",
            "role",
            "content",
            "user",
            "assistant",
            {"videos": ["a.mp4"]},
        )
    elif name == "videochat2":
        return {
            "video": "a.mp4",
            "QA": [{"q": q.removeprefix("<video>\n"), **a} for q, a in zip(asks, answers)],
            **more,
        }
    else:
        key, role, text, user, assistant = "conversations", "from", "value", "human", "gpt"
        media = {"video": "a.mp4"}
    turns = []
    for ask, answer in zip(asks, answers):
        turns.append({role: user, text: ask})
        turns.append({role: assistant, text: answer["a"], **{k: v for k, v in answer.items() if k != "a"}})
    return {key: turns, **media, **({"data_source": "x"} if name == "llava_video" else {}), **more}


READERS = {
    "llava": llava,
    "llava_video": llava_video,
    "valley": valley,
    "videochat2": videochat2,
    "llama_factory": llama_factory,
    "ms_swift": ms_swift,
}
every_format = pytest.mark.parametrize("name", READERS)


def read(name: str, row: dict):
    return READERS[name](row, 0, "rows")


# -- answers that are not trained on -----------------------------------------------------------------------------------
@every_format
@pytest.mark.parametrize("flag", [("loss", False), ("weight", 0), ("weight", 0.0), ("train", False)])
def test_a_flag_takes_an_answer_out_of_the_loss(name, flag):
    key, off = flag
    record = read(name, form(name, [{"a": "bad", key: off}, {"a": "good", key: type(off)(1)}, {"a": "fine"}]))
    assert [(turn.answer, turn.is_trained) for turn in record.turns] == [("bad", False), ("good", True), ("fine", True)]


@every_format
@pytest.mark.parametrize(
    "flags", [{"loss": "false"}, {"weight": 0.5}, {"train": [0]}, {"loss_scale": 0.1}, {"mask": 1}]
)
def test_a_flag_that_cannot_be_honored_is_refused(name, flags):
    with pytest.raises(RowError, match=f"schema: .*{next(iter(flags))}"):
        read(name, form(name, [{"a": "x", **flags}]))


@every_format
def test_a_row_without_a_trained_answer_is_refused(name):
    with pytest.raises(RowError, match="empty: the row has no answer to train on"):
        read(name, form(name, [{"a": "x", "loss": False}]))


def test_questions_cannot_be_trained_on():
    with pytest.raises(RowError, match="only answers can be trained on"):
        ms_swift({"messages": [{"role": "user", "content": "Q", "loss": True}], "videos": []}, 0, "s")


def test_an_answer_out_of_the_loss_is_read_all_the_same(tmp_path):
    turns = (Turn("Q", "bad", False), Turn("R", "good"))
    processor = tiny_processor()
    batches = [Collator(processor, 1000)([Sample("x", (), (said,))]) for said in (turns, tuple(t[:2] for t in turns))]
    assert torch.equal(batches[0]["input_ids"], batches[1]["input_ids"])
    words = [processor.tokenizer.decode(b["labels"][b["labels"] != IGNORE]) for b in batches]
    assert words == [" good</s>", " bad</s> good</s>"]


def test_shards_keep_what_is_trained_on(tmp_path):
    write_video(tmp_path / "a.mp4", range(9), fps=3)
    (tmp_path / "rows.json").write_text(json.dumps([form("llava", [{"a": "bad", "loss": False}, {"a": "good"}])]))
    dataset = ConversationDataset(tmp_path / "rows.json", num_frames=2)
    write_shards(dataset, tmp_path / "shards")
    assert ShardDataset(tmp_path / "shards", num_frames=2)[0].conversations == dataset[0].conversations
    assert [turn.is_trained for turn in dataset[0].conversations[0]] == [False, True]


# -- ranges ------------------------------------------------------------------------------------------------------------
@every_format
@pytest.mark.parametrize("keys", [("start", "end"), ("start_time", "end_time"), ("video_start", "video_end")])
def test_a_range_is_used_in_every_format(name, keys):
    (medium,) = read(name, form(name, [{"a": "x"}], **dict(zip(keys, (1, 2.5))))).media
    assert (medium.start, medium.end) == (1.0, 2.5)


def test_a_range_of_videochatgpt_is_used():
    record = videochatgpt({"q": "Q", "a": "A", "video_id": "v", "start": 1, "end": 2}, 0, "s")
    assert (record.media[0].start, record.media[0].end) == (1.0, 2.0)


@every_format
@pytest.mark.parametrize(
    "more",
    [
        {"end": float("inf")},
        {"start": float("nan")},
        {"end": 10**400},
        {"start": "0:01:"},
        {"start": -1},
        {"segment": [1, 2]},
        {"clip": [1.5, 3]},
        {"start": 1, "start_time": 2},
        {"weight": 0},
        {"loss": False},
        {"label": False},
        {"tools": "[{}]"},
        {"fps": 0},
        {"fps": "fast"},
        {"start_ms": 1000, "end_ms": 2000},
        {"startFrame": 12},
        {"trim_end": "0:02"},
        {"ts": "1.0-2.0"},
        {"clip": "0:01 - 0:05"},
        {"segments": [{"start": 1, "end": 2}]},
        {"timestamps": [[1.0, 2.0]]},
        {"max_frames": 16},
        {"sample_weight": 0.5},
        {"clip_range": [1, 3]},
        {"relevantWindows": [[1, 3], [5, 6], [8, 9]]},
        {"time_reference": "00:01-00:05"},
        {"frame_indices": [0, 8, 16]},
        {"loss_weight": 0},
        {"systemMessage": "Answer in French."},
        {"video2": "b.mp4"},
        {"reference_video": "b.mp4"},
        {"clip_path_b": ["b.mp4"]},
        {"rotate": 90},
        {"hflip": 1},
        {"reverse": True},
        {"speed": 2},
        {"nframes": 4},
        {"from": 1, "to": 3},
        {"t0": 1},
        {"time_offset": 2.5},
        {"label_mask": [1, 0]},
        {"train_on": "last"},
        {"repeat_time": 3},
        {"skip": True},
        {"is_valid": False},
        {"options": ["red", "blue"]},
        {"instruction": "Answer in French."},
    ],
    ids=str,
)
def test_a_key_that_changes_the_meaning_is_refused(name, more):
    with pytest.raises(RowError, match="schema"):
        read(name, form(name, [{"a": "x"}], **more))


@every_format
def test_keys_that_say_nothing_about_training_are_accepted(name):
    more = {"duration": 12.5, "width": 640, "type": "caption", "weight": 1, "tools": "", "timestamp": "2026-01-02"}
    more |= {"results": [1, 2], "comments": ["a", "b"], "num_frames": 64, "moments": ["noon", "night"]}
    more |= {"weekend": 1, "end_of_turn": True, "video_end": None, "timestamps": [0.0, 0.5, 1.0], "trending_score": 3}
    more |= {"loss_weight": 1, "speed": "fast", "playback_speed": 1.0, "rotation": 0, "skip": 0, "valid": True}
    more |= {"from": "web", "options": ["Q"], "instruction": "", "clip_1": 3}
    assert len(read(name, form(name, [{"a": "x"}], **more)).turns) == 1


# -- media -------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("key", ["video_id", "video_path", "vid", "clip_name", "media", "image_url"])
def test_a_medium_under_another_name_does_not_make_a_row_of_text(key):
    turns = [{"from": "human", "value": "What?"}, {"from": "gpt", "value": "red"}]
    assert llava({"conversations": turns}, 0, "s").media == ()
    with pytest.raises(RowError, match=f"no 'video' and no 'image', but '{key}': rename it"):
        llava({"conversations": turns, key: "a.mp4"}, 0, "s")


def test_addresses_of_files_are_paths_and_others_are_refused():
    row = form("llava", [{"a": "x"}])
    assert llava({**row, "video": "file:///clips/a%20b.mp4"}, 0, "s").media[0].path == "/clips/a b.mp4"
    for address in ("https://x.org/a.mp4", "file://clips/a.mp4", "s3://bucket/a.mp4"):
        with pytest.raises(RowError, match="download the clip"):
            llava({**row, "video": address}, 0, "s")


def test_one_row_per_line_of_any_format_is_no_object_of_rows(tmp_path):
    (tmp_path / "rows.jsonl").write_text((json.dumps(form("videochat2", [{"a": "x"}])) + "\n") * 2)
    assert detect(tmp_path / "rows.jsonl") == "videochat2"


def test_columns_of_null_do_not_choose_the_format(tmp_path):
    row = {**form("llava", [{"a": "x"}]), "videos": None, "messages": None, "audios": None}
    (tmp_path / "rows.json").write_text(json.dumps([row]))
    assert detect(tmp_path / "rows.json") == "llava"


@every_format
@pytest.mark.parametrize("end", ["</s>", "<eos>", "<|return|>", "<|im_end|>", "<|eot_id|>", "<end_of_turn>"])
def test_an_end_marker_in_the_data_would_be_learned_twice(name, end):
    with pytest.raises(RowError, match=f"a turn ends with {re.escape(end)}, which the chat template adds"):
        read(name, form(name, [{"a": f"red{end}"}]))


# -- roles -------------------------------------------------------------------------------------------------------------
@every_format
@pytest.mark.parametrize("key", ["system", "system_prompt"])
def test_a_system_prompt_is_kept(name, key):
    assert read(name, form(name, [{"a": "x"}], **{key: "Be brief."})).system == "Be brief."


@pytest.mark.parametrize("name", ["llava", "llama_factory", "ms_swift"])
@pytest.mark.parametrize("role", ["system", "developer", "tool", "function", "observation"])
def test_no_other_role_becomes_a_turn(name, role):
    row = form(name, [{"a": "x"}])
    turns = row.get("messages") or row["conversations"]
    key, text = ("role", "content") if "messages" in row else ("from", "value")
    turns.insert(0, {key: role, text: "Be brief."})
    if role == "system":
        assert read(name, row).system == "Be brief."
        turns.append(turns.pop(0))
    with pytest.raises(RowError, match=f"roles: turns must alternate user, assistant, but are .*{role}"):
        read(name, row)


@pytest.mark.parametrize("name", ["llava", "llava_video", "valley"])
def test_an_answer_in_front_of_the_first_question_is_left_out(name):
    """As the official code does; formats of other projects refuse it, as those do."""
    row = form(name, [{"a": "x"}])
    row["conversations"].insert(0, {"from": "gpt", "value": "Hello!"})
    assert read(name, row).turns == (Turn("<video>\nQ", "x"),)


@pytest.mark.parametrize("name", ["llama_factory", "ms_swift"])
def test_an_answer_in_front_of_the_first_message_is_refused(name):
    row = form(name, [{"a": "x"}])
    row["messages"].insert(0, {"role": "assistant", "content": "Hello!"})
    with pytest.raises(RowError, match="roles"):
        read(name, row)


VICUNA_LIKE = (
    "{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} {% else %}ASSISTANT: "
    "{{ m['content'] }}</s>{% endif %}{% endfor %}{% if add_generation_prompt %}ASSISTANT:{% endif %}"
)


@pytest.mark.parametrize("template", [VICUNA_LIKE, nano.CHAT_TEMPLATE, "vicuna"])
@pytest.mark.parametrize("role", ["developer", "tool", "function", "unknown"])
def test_unknown_roles_never_become_the_models_own_turn(template, role):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = visual_chat_template(tokenizer, template)
    messages = [{"role": "user", "content": "Hi"}, {"role": role, "content": "I am the tool."}]
    with pytest.raises(TemplateError, match=f"Unknown role {role}"):
        tokenizer.apply_chat_template(messages, tokenize=False)


def test_the_bundled_template_knows_two_roles_only():
    folder = Path(nano.__file__).parents[1] / "assets" / "nano"
    assert (folder / "chat_template.jinja").read_text() == nano.CHAT_TEMPLATE


@pytest.mark.parametrize("template", [VICUNA_LIKE, nano.CHAT_TEMPLATE])
def test_a_system_prompt_that_the_template_has_no_place_for_is_refused(template):
    processor = tiny_processor()
    processor.chat_template = visual_chat_template(processor.tokenizer, template)
    with pytest.raises(ValueError, match=r"sample 'x': the chat template .*system"):
        Collator(processor, 1000)([Sample("x", (clip(),), ((Turn("Q", "A"),),), system="Be brief.")])


def test_a_template_that_swallows_the_system_prompt_is_refused():
    processor = tiny_processor()
    silent = "{% for m in messages %}{% if m['role'] != 'system' %}{{ m['role'] }}: {{ m['content'] }}{% endif %}"
    processor.chat_template = visual_chat_template(processor.tokenizer, silent + "{% endfor %}")
    with pytest.raises(ValueError, match="sample 'x': the chat template drops the system prompt"):
        Collator(processor, 1000)([Sample("x", (clip(),), ((Turn("Q", "A"),),), system="Be brief.")])


# -- what training would stop at ---------------------------------------------------------------------------------------
def lost_tail(path: Path) -> None:
    """A clip of 40 s whose last part is cut off, as by a broken download; the header still says 40 s."""
    write_video(path, range(80), fps=2)
    size = path.stat().st_size
    with path.open("rb+") as file:
        file.truncate(int(size * 0.95))


def check(tmp_path: Path, rows: list[dict], **settings):
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    return doctor.check([tmp_path / "rows.json"], tmp_path / "manifest.jsonl", **settings)


def test_a_range_in_a_lost_tail_is_found(tmp_path):
    lost_tail(tmp_path / "a.mkv")
    turns = form("llava", [{"a": "x"}])["conversations"]
    base = {"video": "a.mkv", "conversations": turns}
    rows = [{**base, "id": "head", "start": 1, "end": 4}, {**base, "id": "tail", "start": 39, "end": 40}]
    report = check(tmp_path, rows)
    assert [(bad.id, bad.kind) for bad in report.examples] == [("tail", "unreadable")]
    path, manifest = tmp_path / "rows.json", tmp_path / "manifest.jsonl"
    dataset = ConversationDataset(path, manifest=manifest, max_bad_share=1.0)
    assert [dataset[i].id for i in range(len(dataset))] == ["head"]
    again = check(tmp_path, [*rows, {**base, "id": "new", "start": 39.5}])  # a range that was not looked at before
    assert (again.probed, sorted(bad.id for bad in again.examples)) == (1, ["new", "tail"])


@pytest.mark.parametrize(("frames", "is_bad"), [(2, False), (64, True)])
def test_the_frames_that_training_will_read_are_read(tmp_path, frames, is_bad):
    lost_tail(tmp_path / "a.mkv")
    report = check(tmp_path, [{**form("llava", [{"a": "x"}]), "video": "a.mkv", "id": "x"}], num_frames=frames)
    assert bool(report.bad_rows) is is_bad
    dataset = ConversationDataset(tmp_path / "rows.json", num_frames=frames)
    if is_bad:
        with pytest.raises(Exception, match="cannot read video"):
            dataset[0]
    else:
        dataset[0]


# -- files that are no JSON --------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("pack", "reason"),
    [
        (gzip.compress, "is compressed by gzip, not JSON: unpack"),
        (bz2.compress, "is compressed by bzip2, not JSON"),
        (lzma.compress, "is compressed by xz, not JSON"),
        (lambda data: b"PAR1" + data, "is a Parquet file, not JSON"),
        (lambda data: data.decode().encode("utf-16"), "is UTF-16, not UTF-8"),
        (lambda data: data.decode().encode("utf-32-le"), "is UTF-32, not UTF-8"),
    ],
)
def test_a_file_that_is_no_json_is_called_what_it_is(tmp_path, pack, reason):
    (tmp_path / "rows.jsonl").write_bytes(pack(b'{"video": "a.mp4", "question": "What?", "answer": "red"}\n'))
    with pytest.raises(ValueError, match=reason):
        ConversationDataset(tmp_path / "rows.jsonl")


# -- the cases of others -----------------------------------------------------------------------------------------------
@pytest.mark.skipif(not CASES.is_dir(), reason="the folder of cases is not here")
def test_cases(tmp_path):
    def rows(name):
        dataset = ConversationDataset(CASES / name, num_frames=2)
        return [dataset[i] for i in range(len(dataset))]

    assert [turn.is_trained for turn in rows("case_loss_flag.jsonl")[0].conversations[0]] == [False, True]
    assert rows("case_lf_system.jsonl")[0].system == "Be brief"
    (sample,) = rows("case_lf_start_end_row.jsonl")
    assert (sample.videos[0].start, sample.videos[0].end) == (1.0, 2.0)
    for name, reason in (
        ("case_utf16.json", "is UTF-16, not UTF-8"),
        ("case_dict_of_rows.json", "values are the rows"),
    ):
        with pytest.raises(ValueError, match=reason):
            rows(name)
    for name, kind in (("case_end_inf.jsonl", "schema"), ("range_tail.json", "unreadable")):
        report = doctor.check([CASES / name], tmp_path / f"{name}.manifest")
        assert report.problems == {kind: 1}
