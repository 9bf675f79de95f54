"""Protects what the loss sees: answers and nothing else, packed conversations that do not see each other, and words
that stand at the visual token which shows them."""

from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tiny import clip, tiny_model, tiny_processor, tiny_stab, tiny_tokenizer
from videopanda.data.collate import IGNORE, Collator, render
from videopanda.data.sample import Sample
from videopanda.data.worlds.scenes.dataset import ScenesDataset, draw
from videopanda.data.worlds.scenes.questions import place
from videopanda.data.worlds.scenes.world import COLOURS, SHAPES, SIZES, Background, Scene, Thing
from videopanda.models.families import fresh_config, processor_class
from videopanda.models.videopanda import VideoPandaProcessor
from videopanda.models.visual import CELL
from videopanda.training.nano import CHAT_TEMPLATE, make_tokenizer

PACKED = Sample(
    "three",
    (clip(3, 30, 40, seed=1),),
    (
        (("What colour is the circle?", "The circle is red."),),
        (("What shape?", "round"), ("And where?", "left of the square")),
        (("How many?", "2"),),
    ),
)
OTHER = Sample("two", (clip(5, 48, 24, seed=2),), ((("Hi", "Hello there"),), (("How many circles?", "none"),)))
TEXT = Sample("text", (), ((("Who are you?", "A model."), ("Really?", "Yes")), (("Who?", "me"),)))


def supervised(labels) -> list[int]:
    return [int(token) for token in labels if token != IGNORE]


def answers(processor, turns) -> list[int]:
    """What the answers of a conversation must be: the text after `ASSISTANT:`, then the end token."""
    tokenizer = getattr(processor, "tokenizer", processor)
    ids = []
    for _, answer in turns:
        ids += [*tokenizer.encode(f" {answer}", add_special_tokens=False), tokenizer.eos_token_id]
    return ids


def alone(sample: Sample, k: int) -> Sample:
    return replace(sample, id=f"{sample.id}-{k}", conversations=(sample.conversations[k],))


@cache
def text_tokenizer():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


# -- labels ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("turns", [c for s in (PACKED, OTHER) for c in s.conversations])
def test_a_conversation_supervises_its_answers_and_end_tokens(turns):
    processor = tiny_processor("paper")
    batch = Collator(processor, 4096)([Sample("one", PACKED.videos, (turns,))])
    labels, ids = batch["labels"][0], batch["input_ids"][0]
    assert supervised(labels) == answers(processor, turns)
    assert (ids[labels != IGNORE] == labels[labels != IGNORE]).all()
    question = processor.tokenizer.encode(turns[0][0], add_special_tokens=False)
    assert set(question) <= set(ids[labels == IGNORE].tolist())


def test_packed_conversations_supervise_the_answers_of_all():
    processor = tiny_processor("paper")
    batch = Collator(processor, 4096)([PACKED])
    expected = [token for turns in PACKED.conversations for token in answers(processor, turns)]
    assert supervised(batch["labels"][0]) == expected


@pytest.mark.parametrize("time_prompt", [False, True])
@pytest.mark.parametrize("videos", [1, 2])
def test_a_row_reads_as_the_processor_would_write_it(time_prompt, videos):
    processor = tiny_processor("paper", time_prompt=time_prompt)
    scene = ScenesDataset(1)[0].videos[0].scene
    clips = tuple(draw(scene, 2 + i) for i in range(videos))
    turns = PACKED.conversations[1]
    text, _ = render(processor, turns, videos)
    expected = processor(text=[text], videos=list(clips))["input_ids"].tolist()
    batch = Collator(processor, 4096)([Sample("both", clips, (turns,))])
    assert batch["input_ids"].tolist() == expected
    assert supervised(batch["labels"][0]) == answers(processor, turns)


def test_all_supervises_everything_but_visual_tokens_and_the_start_of_later_segments():
    processor = tiny_processor("paper")
    collator = Collator(processor, 4096, supervise="all")
    batch = collator([PACKED])
    marker = processor.video_token_id
    row = collator.pack(PACKED, ["<video>" * int((batch["input_ids"] == marker).sum())])
    starts = [row.segments.index(k) for k in (2, 3)]
    expected = [
        IGNORE if token == marker or i in starts else token for i, token in enumerate(batch["input_ids"][0].tolist())
    ]
    assert batch["labels"][0].tolist() == expected
    # What is left out are real words that differ between the conversations, not the same token twice.
    assert all(row.ids[start] != marker for start in starts)


@pytest.mark.parametrize("supervise", ["answers", "all"])
def test_a_visual_token_is_never_supervised(supervise):
    processor = tiny_processor("paper")
    # An answer that spells the marker out is tokenised as the marker.
    sample = Sample("odd", (clip(2),), ((("What?", "an <image> of red"),),))
    batch = Collator(processor, 4096, supervise=supervise)([sample, PACKED])
    visual = {processor.video_token_id, processor.image_token_id}
    assert visual & set(batch["input_ids"].flatten().tolist()) == visual
    assert not visual & set(batch["labels"].flatten().tolist())


def test_a_template_that_rewrites_earlier_turns_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['role'] }}{% endfor %}"
    with pytest.raises(ValueError, match="rewrites earlier turns"):
        render(tokenizer, [("a", "b"), ("c", "d")], 0)


# -- images ------------------------------------------------------------------------------------------------------------
IMAGES = [np.random.default_rng(i).integers(0, 256, (30 + 10 * i, 40, 3), dtype=np.uint8) for i in range(2)]
IMAGE = Sample("image", (), ((("What is this?", "a square"),), (("How many?", "one"),)), images=(IMAGES[0],))
BOTH = Sample(
    "both",
    PACKED.videos,
    ((("Compare <image>\nwith <video>", "red"), ("And this one? <image>", "blue, too")),),
    images=tuple(IMAGES),
)


@pytest.mark.parametrize("preset", ["paper", "released"])
def test_a_row_with_images_reads_as_the_processor_would_write_it(preset):
    """Also where a marker stands in a later question, behind an answer."""
    processor = tiny_processor(preset)
    for sample in (alone(IMAGE, 0), BOTH):
        (turns,) = sample.conversations
        text, _ = render(processor, turns, len(sample.videos), "", len(sample.images))
        videos = {"videos": list(sample.videos)} if sample.videos else {}
        expected = processor(text=[text], images=list(sample.images), **videos, return_tensors="pt")
        batch = Collator(processor, 4096)([sample])
        assert batch["input_ids"].tolist() == expected["input_ids"].tolist()
        for name in processor.video_processor.image_input_names:
            assert torch.equal(batch[name], expected[name])
        assert supervised(batch["labels"][0]) == answers(processor, turns)


def test_images_train_in_mixed_batches():
    """Logits of every row of a batch are those of the row alone, and every part of the model gets a gradient."""
    model, processor = tiny_model("paper"), tiny_processor("paper")
    collator = Collator(processor, 4096)
    samples = [IMAGE, OTHER, TEXT, BOTH]
    batch = collator(samples)
    assert len(batch["pixel_values"]) == 3
    assert len(batch["pixel_values_videos"]) == 2
    inputs = {name: value for name, value in batch.items() if name != "labels"}
    with torch.no_grad():
        together = model(**inputs).logits
        for number, sample in enumerate(samples):
            single = collator([sample])
            del single["labels"]
            expected = model(**single).logits[0]
            # measured: 7.6e-6
            torch.testing.assert_close(together[number, : len(expected)], expected, rtol=0, atol=4e-5)
    other = Sample("image", (), IMAGE.conversations, images=(IMAGES[1][:30],))
    with torch.no_grad():
        assert (model(**collator([other])).loss - model(**collator([IMAGE])).loss).abs() > 1e-4
    model.train()
    model(**collator([IMAGE])).loss.backward()
    for part in (model.model.stab.patch_embedding, model.model.projector, model.model.language_model):
        assert all(p.grad is not None and p.grad.abs().max() > 0 for p in part.parameters())


# -- text only ---------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", ["tokenizer", "processor"])
def test_samples_without_videos(kind):
    processor = text_tokenizer() if kind == "tokenizer" else tiny_processor("paper")
    batch = Collator(processor, 512)([TEXT])
    assert set(batch) == {"input_ids", "labels", "position_ids", "attention_mask"}
    expected = [token for turns in TEXT.conversations for token in answers(processor, turns)]
    assert supervised(batch["labels"][0]) == expected


def test_text_of_a_row_without_packing_is_the_chat_template():
    tokenizer = text_tokenizer()
    batch = Collator(tokenizer, 512)([alone(TEXT, 0)])
    assert tokenizer.decode(batch["input_ids"][0]) == (
        "USER: Who are you? ASSISTANT: A model.</s>USER: Really? ASSISTANT: Yes</s>"
    )
    assert batch["position_ids"][0].tolist() == list(range(batch["input_ids"].shape[1]))


def test_without_text_only_the_visual_tensors_are_made():
    batch = Collator(tiny_processor("paper"), 1, text=False)([PACKED, OTHER])
    assert set(batch) == {"pixel_values_videos", "video_placement"}
    assert len(batch["pixel_values_videos"]) == 2


# -- packing equals separate rows --------------------------------------------------------------------------------------
@pytest.mark.parametrize("text", ["llama", "qwen3"])
@pytest.mark.parametrize("pad_to", [None, 400])
def test_packing_equals_separate_rows(text, pad_to):
    """Float32. Worst error measured: 7.6e-6 in logits of up to 5.9, 8.6e-6 in hidden states of up to 26."""
    model, processor = tiny_model("paper", text), tiny_processor("paper")
    collator = Collator(processor, 4096, pad_to=pad_to)
    batch = collator([OTHER, PACKED])
    with torch.no_grad():
        together = model(**batch, output_hidden_states=True)
    assert together.logits.isfinite().all()
    totals = []
    for number, sample in enumerate([OTHER, PACKED]):
        one = Collator(processor, 4096)([alone(sample, 0)])
        packed = collator.pack(sample, ["<video>" * int((one["input_ids"] == processor.video_token_id).sum())])
        total = 0.0
        for k in range(len(sample.conversations)):
            single = Collator(processor, 4096)([alone(sample, k)])
            with torch.no_grad():
                expected = model(**single, output_hidden_states=True)
            places = [i for i, segment in enumerate(packed.segments) if segment in (0, k + 1)]
            assert batch["input_ids"][number, places].tolist() == single["input_ids"][0].tolist()
            found = together.logits[number, places]
            torch.testing.assert_close(found, expected.logits[0], rtol=0, atol=4e-5)
            states = [state[number, places] for state in together.hidden_states]
            for state, reference in zip(states, expected.hidden_states, strict=True):
                torch.testing.assert_close(state, reference[0], rtol=0, atol=4e-5)
            total += _loss_sum(expected.logits[0], single["labels"][0])
        totals.append(total)
        found_total = _loss_sum(together.logits[number], batch["labels"][number])
        assert found_total == pytest.approx(total, rel=2e-6)  # measured: 2.1e-7
    count = sum(len(answers(processor, turns)) for s in (OTHER, PACKED) for turns in s.conversations)
    assert together.loss.item() == pytest.approx(sum(totals) / count, rel=2e-6)  # measured: 2.1e-7


def _loss_sum(logits: torch.Tensor, labels: torch.Tensor) -> float:
    placeholders = torch.tensor(tiny_tokenizer().convert_tokens_to_ids(["<video>", "<image>"]))
    logits = logits.index_fill(1, placeholders, float("-inf"))  # they are never answers
    return F.cross_entropy(logits[:-1], labels[1:], ignore_index=IGNORE, reduction="sum").item()


def test_a_conversation_does_not_see_the_one_before():
    """The comparison above would hold for any mask if conversations did not matter to each other."""
    model, processor = tiny_model("paper"), tiny_processor("paper")
    batch = Collator(processor, 4096)([PACKED])
    with torch.no_grad():
        right = model(**batch).logits[0, -3:]
        length = batch["input_ids"].shape[1]
        everything = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
        seen = model(**{**batch, "attention_mask": everything}).logits[0, -3:]
        moved = model(**{**batch, "position_ids": torch.arange(length)[None]}).logits[0, -3:]
    assert (right - seen).abs().max() > 0.01
    assert (right - moved).abs().max() > 0.01


def test_conversations_that_ask_the_same_learn_whole_answers():
    """The first token by which their answers differ follows one that they share, which is beside each of them."""
    turns = ("red thing", "blue thing", "red")
    same = Sample("same", (clip(3, 30, 40, seed=1),), tuple((("What is it?", answer),) for answer in turns))
    processor = tiny_processor()
    row = Collator(processor, 4096)([same])
    expected = [token for turn in same.conversations for token in answers(processor, turn)]
    assert supervised(row["labels"][0]) == expected
    model = tiny_model()
    losses = []
    for batch in (row, Collator(processor, 4096, windows=None)([same])):
        with torch.no_grad():
            losses.append(model(**batch).loss.item())
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


# -- lengths -----------------------------------------------------------------------------------------------------------
def test_conversations_that_do_not_fit_are_left_out_whole(caplog):
    tokenizer = text_tokenizer()
    conversations = ((("a?", "first"),), (("b?", "second " * 30),), (("c?", "third"),))
    sample = Sample("long", (), conversations)
    row = Collator(tokenizer, 4096).pack(sample, [])
    long = row.segments.count(2)
    short = Collator(tokenizer, len(row) - long).pack(sample, [])
    expected = [*answers(tokenizer, conversations[0]), *answers(tokenizer, conversations[2])]
    assert supervised(short.labels) == expected
    assert len(short) == len(row) - long
    assert sorted(set(short.segments)) == [0, 1, 2]
    one_less = Collator(tokenizer, len(short) - 1)
    caplog.clear()
    with caplog.at_level("WARNING"):
        assert supervised(one_less.pack(sample, []).labels) == answers(tokenizer, conversations[0])
        one_less.pack(replace(sample, id="other"), [])
    (told,) = caplog.messages
    assert told.startswith(f"sample 'long': 2 of its 3 conversations do not fit into max_length={len(short) - 1} and")


def test_a_first_conversation_that_does_not_fit_is_an_error():
    tokenizer = text_tokenizer()
    sample = Sample("clip-7", (), ((("a?", "first"),), (("b?", "second"),)))
    length = len(Collator(tokenizer, 4096).pack(alone(sample, 0), []))
    assert supervised(Collator(tokenizer, length).pack(sample, []).labels) == answers(tokenizer, (("a?", "first"),))
    with pytest.raises(ValueError, match=rf"'clip-7' needs {length} tokens but max_length is {length - 1}"):
        Collator(tokenizer, length - 1).pack(sample, [])


def test_no_conversation_is_longer_than_the_context_and_a_row_may_be():
    tokenizer = text_tokenizer()
    turns = ((("a?", "first"),), (("b?", "second " * 30),), (("c?", "third"),))
    sample = Sample("long", (), turns)
    counts = [len(Collator(tokenizer, 4096).pack(alone(sample, k), [])) for k in range(3)]
    assert max(counts) == counts[1]
    row = Collator(tokenizer, 4096, context=counts[1]).pack(sample, [])
    assert max(row.positions) + 1 == counts[1] < len(row)
    row = Collator(tokenizer, 4096, context=counts[1] - 1).pack(sample, [])
    assert supervised(row.labels) == [*answers(tokenizer, turns[0]), *answers(tokenizer, turns[2])]
    with pytest.raises(
        ValueError, match=rf"'long-1' needs {counts[1]} tokens but the language model has positions for"
    ):
        Collator(tokenizer, 4096, context=counts[1] - 1).pack(alone(sample, 1), [])


def test_rows_are_padded_with_what_no_loss_and_no_query_sees():
    processor = tiny_processor("paper")
    batch = Collator(processor, 4096, pad_to=500)([PACKED, OTHER])
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape == (2, 500)
    assert batch["attention_mask"].shape == (2, 1, 500, 500)
    for row in range(2):
        real = 500 - (batch["input_ids"][row].flip(0) != processor.tokenizer.pad_token_id).int().argmax()
        assert (batch["labels"][row, real:] == IGNORE).all()
        assert not batch["attention_mask"][row, 0, :real, real:].any()
        assert batch["attention_mask"][row, 0].any(-1).all()  # no query without a key: that would be NaN


def test_an_empty_conversation_is_refused():
    for conversations in ((), ((),), ((("a", "b"),), ())):
        with pytest.raises(ValueError, match="'x' has an empty conversation"):
            Sample("x", (), conversations)


# -- words of cells ----------------------------------------------------------------------------------------------------
@cache
def world_tokenizer():
    return make_tokenizer(num_scenes=100)


def world_processor(preset: str = "paper", **stab) -> VideoPandaProcessor:
    """A processor whose tokenizer knows the words of the world."""
    fitting = tiny_stab(preset, mask_padding=True, **stab)
    visual = tiny_processor(stab=fitting, preset=preset, canvas="tight", pad_frames=False).video_processor
    return VideoPandaProcessor(visual, world_tokenizer(), chat_template=CHAT_TEMPLATE)


def words_of(row) -> tuple[str, ...]:
    return tuple(world_tokenizer().decode([token]).strip() for token in row.tolist() if token != IGNORE)


def test_every_word_of_the_world_is_one_token():
    for word in (*COLOURS, *SHAPES, *SIZES, "nothing"):
        assert len(world_tokenizer().encode(f" {word}", add_special_tokens=False)) == 1


def corner_scene() -> Scene:
    """One square that fills exactly the top left quarter of a square frame and turns blue at two seconds."""
    side = 0.88  # half of a square is 0.88 of its radius
    thing = Thing("square", "red", "large", 0.5 / side, path=((0.0, 0.25, 0.25),), turns=(2.0, "blue"))
    background = Background("plain", ((10, 10, 10), (10, 10, 10)), 0.3, (0.0, 0.0), 0, 0)
    return Scene(0, "train", 0, "change", 96, 96, 10.0, 4.0, background, (thing,))


@pytest.mark.parametrize("row_tokens", [True, False])
def test_cell_words_say_where_a_thing_is(row_tokens):
    processor = world_processor(row_tokens=row_tokens)
    video = draw(corner_scene(), 2)  # one frame before and one after the turn
    batch = Collator(processor, 4096, cell_words=True)([Sample("corner", (video,), ((("What?", "red"),),))])
    expected = []
    for colour in ("red", "blue"):
        expected.append(())  # context token
        for r in range(6):
            for c in range(6):
                where = place((c + 0.5) / 6, (r + 0.5) / 6).split()
                expected.append(("large", colour, "square", *where) if r < 3 and c < 3 else ("nothing",))
            expected += [()] * row_tokens
    assert [words_of(row) for row in batch["cell_words"]] == expected
    assert len(expected) == (batch["input_ids"] == processor.video_token_id).sum()


def test_cell_words_follow_the_videos_of_a_batch():
    """Clips of other shapes and lengths, one after the other, as the model lays their tokens out."""
    processor = world_processor()
    clips = [draw(ScenesDataset(5)[i].videos[0].scene, 2 + i) for i in range(5)]
    assert len({clip.frames.shape[1:3] for clip in clips}) > 1
    samples = [Sample(str(i), (video,), ((("What?", "red"),),)) for i, video in enumerate(clips)]
    collator = Collator(processor, 4096, cell_words=True)
    batch = collator(samples)
    counts = [len(processor.video_processor.token_layout(batch, i)) for i in range(len(batch["video_placement"]))]
    found = torch.split(batch["cell_words"], counts)  # fails unless the counts add up
    for sample, words in zip(samples, found):
        assert torch.equal(collator([sample])["cell_words"], words)


def test_frames_of_two_resolutions_have_the_words_of_their_own_cells():
    """ELVA with hybrid resolution: the first and last frame in full, the others at half the side."""
    fields = {"hybrid.every": 4, "embedding.patch_size": 8}
    text = {"model_type": "qwen3", "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = fresh_config("elva", "nano", fields, text_config=text, video_token_id=1, image_token_id=2)
    processor = processor_class(config).for_config(config, world_tokenizer(), CHAT_TEMPLATE)
    video = draw(corner_scene(), 4)
    batch = Collator(processor, 4096, text=False, cell_words=True)([Sample("corner", (video,), ((("a", "b"),),))])
    layout = processor.video_processor.token_layout(batch, 0)
    rows = [int((layout[(layout[:, 0] == t) & (layout[:, 3] == CELL)][:, 1]).unique().numel()) for t in range(4)]
    assert rows == [4, 2, 2, 4]
    for (t, row, column, kind), words in zip(layout.tolist(), batch["cell_words"]):
        if kind == CELL:
            shown = row + 0.5 < rows[t] / 2 and column + 0.5 < rows[t] / 2
            assert ("square" in words_of(words)) == shown
            assert not shown or ("red", "blue")[t >= 2] in words_of(words)


def test_frames_that_fill_a_short_clip_have_no_words():
    """The released model sends tokens of all-padding frames, too: they stand behind those of the real ones."""
    videos = [draw(corner_scene(), 2), draw(corner_scene(), 8)]
    samples = [Sample(str(i), (video,), ((("What?", "red"),),)) for i, video in enumerate(videos)]
    batch = Collator(tiny_processor(), 4096, text=False, cell_words=True)(samples)
    assert batch["video_placement"][:, 4:].tolist() == [[8, 2], [8, 8]]
    features = [visual.tokens for visual in tiny_model().encode(batch)]
    known = (batch["cell_words"] != IGNORE).any(1)
    assert len(known) == sum(map(len, features)) == 2 * 8 * (1 + 6 * 7)
    assert [frame.sum().item() for frame in known.view(16, -1)] == [36, 36, *[0] * 6, *[36] * 8]


@dataclass
class Marked:
    """A clip with one cell that is said to be red."""

    frames: np.ndarray
    cell: tuple[int, int, int]
    timestamps: tuple[float, ...] = (0.0, 1.0, 2.0)
    duration: float = 3.0

    def cell_words(self, rows: int, columns: int) -> list[tuple[str, ...]]:
        cells = np.ndindex(len(self.frames), rows, columns)
        return [("red",) if cell == self.cell else ("nothing",) for cell in cells]


@pytest.mark.parametrize("cell", [(0, 0, 0), (1, 2, 5), (2, 3, 1)])
def test_cell_words_stand_at_the_token_that_sees_the_cell(cell):
    """EVE* sends frames on one by one, so a cell changes its own token and the context token of its frame only."""
    stab = {"mask_padding": True, "image_size": 48}
    model, processor = tiny_model("eve_star", **stab), world_processor("eve_star")
    frames = clip(3, 32, 48)  # 4 × 6 cells of 8 pixels: nothing is resized
    t, r, c = cell
    changed = frames.copy()
    changed[t, 8 * r : 8 * r + 8, 8 * c : 8 * c + 8] ^= 255
    batches = [
        Collator(processor, 4096, text=False, cell_words=True)([Sample("x", (Marked(f, cell),), ((("a", "b"),),))])
        for f in (frames, changed)
    ]
    with torch.no_grad():
        one, two = (torch.cat([visual.tokens for visual in model.encode(b)]) for b in batches)
    moved = ((one - two).abs().amax(1) > 1e-4).nonzero().flatten().tolist()
    words = [words_of(row) for row in batches[0]["cell_words"]]
    context = t * (1 + 4 * 7)
    assert moved == [context, words.index(("red",))]
    assert words.count(("red",)) == 1
    assert words[context] == ()
