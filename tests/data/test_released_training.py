"""Training on the released terms: prompts and labels token for token, mirrored clips on request."""

import json
from copy import deepcopy
from itertools import groupby
from pathlib import Path

import pytest
import torch

from golden_checks.data import PLACEHOLDER, load_tokenizer
from tiny import clip, tiny_processor, tiny_stab
from videopanda.data.collate import IGNORE, Collator, is_flipped
from videopanda.data.sample import Sample
from videopanda.models.prompts import TRAINING_SYSTEM_PROMPT, place_marker
from videopanda.models.videopanda import VideoPandaProcessor, VideoPandaVideoProcessor
from videopanda.training.chat_template import with_system_prompt
from videopanda.training.stages import make_config

GOLDEN = Path(__file__).parent.parent / "golden"
PROMPTS = json.loads((GOLDEN / "prompts_and_labels.json").read_text())


@pytest.fixture(scope="module")
def released():
    return VideoPandaProcessor(
        VideoPandaVideoProcessor.for_stab(tiny_stab()), load_tokenizer(GOLDEN / "tiny_tokenizer")
    )


@pytest.fixture(scope="module")
def processor(released):
    """The released one, as the preset `scripts` trains with it."""
    found = deepcopy(released)
    found.chat_template = with_system_prompt(found.chat_template, make_config("finetune", "scripts").system_prompt)
    return found


def is_about_a_video(row):
    return "<image>" not in row["conversations"][0]["value"]


@pytest.mark.parametrize("row", [row for row in PROMPTS["train"] if is_about_a_video(row)])
def test_a_training_row_has_the_official_ids_and_labels(processor, row):
    has_video = "<video>" in json.dumps(row["conversations"])
    texts = [place_marker(turn["value"]) for turn in row["conversations"]]
    turns = tuple(zip(texts[::2], texts[1::2]))
    collator = Collator(processor, 1000)
    batch = collator([Sample("x", (clip(),) if has_video else (), (turns,))])
    found = list(zip(batch["input_ids"][0].tolist(), batch["labels"][0].tolist()))
    collapsed = []
    for (token, label), run in groupby(found):
        is_visual = token == processor.video_token_id
        collapsed += [(PLACEHOLDER, IGNORE)] * 8 if is_visual else [(token, label)] * len(list(run))
    assert collapsed == list(zip(row["input_ids"], row["labels"]))


@pytest.mark.parametrize("row", PROMPTS["infer"])
def test_a_question_has_the_official_ids(released, row):
    """By `apply_chat_template` with `tokenize`, and by template and processor one after the other."""
    messages = [
        {"role": "user", "content": [{"type": "video", "video": clip()}, {"type": "text", "text": row["question"]}]}
    ]
    direct = released.apply_chat_template(messages, add_generation_prompt=True, tokenize=True, return_dict=True)
    text = released.apply_chat_template(messages, add_generation_prompt=True)
    later = released(text=text, videos=clip())
    for out in (direct, later):
        ids = out["input_ids"][0].tolist()
        collapsed = []
        for token, run in groupby(ids):
            is_visual = token == released.video_token_id
            collapsed += [PLACEHOLDER] * row["num_frames"] if is_visual else list(run)
        assert collapsed == row["input_ids"]


@pytest.mark.parametrize(
    ("message", "placed"),
    [
        ("What moves?\n<video>", "<video>\nWhat moves?"),
        ("What moves? <image>", "<image>\nWhat moves?"),
        ("What moves?<image><image>", "<image><image>\nWhat moves?"),
        ("<video>\nWhat moves?", "<video>\nWhat moves?"),
        ("In <video> what moves?", "In <video> what moves?"),
        ("What moves?", "What moves?"),
    ],
)
def test_a_marker_at_the_end_moves_to_the_front(message, placed):
    assert place_marker(message) == placed


def test_a_marker_inside_a_question_stays_there(processor):
    """Pieces are tokenised as the official code does it: each on its own, and without start token but for the first."""
    turns = (("In <video> what moves?", "A cat."),)
    collator = Collator(processor, 1000)
    ids = collator([Sample("x", (clip(),), (turns,))])["input_ids"][0].tolist()
    before, after = f"{TRAINING_SYSTEM_PROMPT} USER: In <video> what moves? ASSISTANT: A cat.</s>".split("<video>")
    visual = [processor.video_token_id] * ids.count(processor.video_token_id)
    blank = processor.tokenizer.convert_tokens_to_ids("▁")  # SentencePiece puts it even before a piece that has one
    before_ids, after_ids = (processor.tokenizer(piece)["input_ids"] for piece in (before, after))
    assert ids == before_ids + visual + [blank] + after_ids[1:]


def test_an_unknown_word_is_not_taken_for_padding(processor):
    """Both have the id 0, and the official attention mask hides both."""
    text = "See <unk> there"
    inputs = processor(text=[text, f"{text} and more"])
    unknown = inputs["input_ids"] == processor.tokenizer.unk_token_id
    assert processor.tokenizer.pad_token_id == processor.tokenizer.unk_token_id
    assert (unknown & inputs["attention_mask"].bool()).sum(1).tolist() == [1, 1]
    batch = Collator(processor, 1000)([Sample("x", (), (((text, "A cat."),),))])
    (place,) = (batch["input_ids"][0] == processor.tokenizer.unk_token_id).nonzero().flatten().tolist()
    assert batch["attention_mask"][0, place]


def test_other_chat_templates_get_the_system_prompt_too():
    processor = tiny_processor()
    for prompt in ("Be long.", "Be brief."):  # that of the last stage counts
        processor.chat_template = with_system_prompt(processor.chat_template, prompt)
    ids = Collator(processor, 1000)([Sample("x", (), ((("What?", "A cat."),),))])["input_ids"][0]
    assert processor.tokenizer.decode(ids) == "<s> Be brief. USER: What? ASSISTANT: A cat.</s>"


# -- mirrored clips ----------------------------------------------------------------------------------------------------
def samples(count):
    return [Sample(str(i), (clip(2, 30, 40, seed=i),), ((("What?", "A cat."),),)) for i in range(count)]


def test_half_of_the_clips_are_mirrored_and_always_the_same():
    plain = Collator(tiny_processor(), 1000)(samples(24))
    mirrored = Collator(tiny_processor(), 1000, flip_seed=7)(samples(24))
    chosen = [is_flipped(str(i), 0, 7) for i in range(24)]
    assert 6 <= sum(chosen) <= 18
    for i, flip in enumerate(chosen):
        before, after = plain["pixel_values_videos"][i], mirrored["pixel_values_videos"][i]
        assert torch.equal(after, before.flip(-1) if flip else before)
        assert not torch.equal(before, before.flip(-1))
    assert torch.equal(plain["video_placement"], mirrored["video_placement"])
    alone = Collator(tiny_processor(), 1000, flip_seed=7)([samples(24)[3]])
    assert torch.equal(alone["pixel_values_videos"][0, :2], mirrored["pixel_values_videos"][3, :2])
    assert [is_flipped(str(i), 0, 8) for i in range(24)] != chosen


def test_nothing_is_mirrored_unless_asked_for():
    assert make_config("pretrain").official_flip is False
    assert make_config("pretrain", "scripts").official_flip is True  # the published scripts, which do
    assert Collator(tiny_processor(), 1000).flip_seed is None
    frames = clip()
    processor = tiny_processor()
    first = processor(text="<video>", videos=frames)["pixel_values_videos"]
    for _ in range(8):
        assert torch.equal(processor(text="<video>", videos=frames)["pixel_values_videos"], first)


def test_mirroring_where_it_would_do_harm_is_refused():
    with pytest.raises(ValueError, match="square"):
        Collator(tiny_processor("paper", canvas="tight"), 1000, flip_seed=0)
    with pytest.raises(ValueError, match="align_weight"):
        make_config("pretrain", overrides=["official_flip=true", "align_weight=1"])
