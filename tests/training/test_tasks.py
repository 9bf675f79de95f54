"""Protects what a training step computes: the loss by hand, what runs for it, and where its gradient goes."""

import math

import pytest
import torch

from tiny import tiny_model, tiny_processor, tiny_stab
from videopanda.data.collate import Collator
from videopanda.data.worlds.scenes.dataset import ScenesDataset
from videopanda.models.visual import CELL, CONTEXT, ROW_END, EncodedVisual
from videopanda.training.tasks import VideoLanguage

STAB = {"mask_padding": True, "dropout": 0.0}


@pytest.fixture(scope="module")
def batch():
    processor = tiny_processor(stab=tiny_stab("paper", **STAB), preset="paper", canvas="tight")
    data = ScenesDataset(2, num_frames=2, captions=0)
    return Collator(processor, 4096, cell_words=True)([data[0], data[1]])


@pytest.fixture
def model():
    return tiny_model("paper", **STAB).train()


def without_words(batch) -> dict:
    return {key: value for key, value in batch.items() if key != "cell_words"}


@pytest.fixture
def runs(model) -> list:
    """One entry for every time the language model runs."""
    calls: list = []
    model.model.language_model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def test_cells_without_words_are_not_aligned(model, batch):
    """A batch that shows only clips of other worlds has a loss, of zero, and gradients."""
    words = torch.full_like(batch["cell_words"], -100)
    tokens = torch.cat([visual.tokens for visual in model.encode(without_words(batch))])
    loss = VideoLanguage(align_weight=1.0).alignment(tokens, words, model.get_input_embeddings().weight)
    assert loss.item() == 0
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


# -- alignment by hand -------------------------------------------------------------------------------------------------
def by_hand(tokens, words, vocabulary, temperature, longest) -> float:
    """The alignment in plain loops over numbers: mean over cells with a thing + mean over empty ones + length."""

    def norm(vector):
        return math.sqrt(sum(x * x for x in vector))

    mean_word = sum(norm(word) for word in vocabulary) / len(vocabulary)
    things, empty, excess = [], [], []
    for token, cell in zip(tokens, words):
        known = [word for word in cell if word >= 0]
        if not known:
            continue
        cosines = [sum(a * b for a, b in zip(token, word)) / norm(token) / norm(word) for word in vocabulary]
        total = math.log(sum(math.exp(cosine / temperature) for cosine in cosines))
        losses = [total - cosines[word] / temperature for word in known]
        (things if len(known) > 1 else empty).append(sum(losses) / len(losses))
        excess.append(max(0.0, math.log(norm(token) / mean_word / longest)) ** 2)
    return sum(things) / len(things) + sum(empty) / len(empty) + sum(excess) / len(excess)


def alignment_inputs():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(6, 5, generator=generator, dtype=torch.float64)
    tokens[1] *= 20  # far longer than words are
    vocabulary = torch.randn(9, 5, generator=generator, dtype=torch.float64)
    words = torch.tensor([[1, 4, 7], [2, 4, 8], [0, -100, -100], [-100] * 3, [0, -100, -100], [1, 5, 7]])
    return tokens, words, vocabulary


def test_alignment_equals_a_hand_computation():
    """Measured error: 9.3e-7 of 25.1, relative 3.7e-8; the task computes in float32."""
    task = VideoLanguage(align_weight=1.0)
    tokens, words, vocabulary = alignment_inputs()
    expected = by_hand(tokens.tolist(), words.tolist(), vocabulary.tolist(), task.temperature, task.longest)
    assert task.alignment(tokens, words, vocabulary).item() == pytest.approx(expected, rel=4e-7)
    shortened = tokens.clone()
    shortened[1] /= 20
    assert task.alignment(shortened, words, vocabulary).item() < expected - 0.1  # the length had its part


def test_a_token_without_words_does_not_count():
    task = VideoLanguage(align_weight=1.0)
    tokens, words, vocabulary = alignment_inputs()
    changed = tokens.clone()
    changed[3] = 1e3
    assert task.alignment(changed, words, vocabulary) == task.alignment(tokens, words, vocabulary)


@pytest.mark.parametrize("kept", [[0, 1, 5], [2, 4]], ids=["only things", "only empty cells"])
def test_alignment_is_finite_without_things_or_without_empty_cells(kept):
    tokens, words, vocabulary = alignment_inputs()
    assert VideoLanguage(align_weight=1.0).alignment(tokens[kept], words[kept], vocabulary).isfinite()


def test_a_token_that_points_at_its_word_costs_little():
    task = VideoLanguage(align_weight=1.0)
    vocabulary = torch.eye(8)
    words = torch.tensor([[0, -100, -100], [2, 2, 2]])
    right = task.alignment(vocabulary[[0, 2]] * 3, words, vocabulary)
    wrong = task.alignment(vocabulary[[1, 3]] * 3, words, vocabulary)
    # Two means of ln(1 + 7·e^-20), against ln(e^20 + 7): one over the temperature is 20.
    assert right.item() == pytest.approx(0.0, abs=1e-6)  # measured: 0
    assert wrong.item() == pytest.approx(40.0, abs=1e-4)  # measured: 40 exactly


# -- the step ----------------------------------------------------------------------------------------------------------
def test_without_alignment_the_step_is_the_model_loss(model, batch, runs):
    losses = VideoLanguage().step(model, without_words(batch))
    assert len(runs) == 1
    assert set(losses) == {"loss", "text_loss"}
    assert losses["loss"] == losses["text_loss"] == model(**without_words(batch)).loss
    assert not losses["text_loss"].requires_grad


def test_both_parts_are_weighted_and_the_clip_is_encoded_once(model, batch, runs):
    encoded: list = []
    model.model.stab.register_forward_hook(lambda *_: encoded.append(1))
    losses = VideoLanguage(text_weight=0.5, align_weight=2.0).step(model, batch)
    assert (len(runs), len(encoded)) == (1, 1)
    assert set(losses) == {"loss", "text_loss", "align_loss"}
    features = torch.cat([visual.tokens for visual in model.encode(batch)])
    align = VideoLanguage().alignment(features, batch["cell_words"], model.get_input_embeddings().weight)
    assert losses["align_loss"] == align
    assert losses["text_loss"] == model(**without_words(batch)).loss
    assert losses["loss"] == 2.0 * align + 0.5 * losses["text_loss"]


def test_without_text_weight_the_language_model_does_not_run(model, batch, runs):
    losses = VideoLanguage(text_weight=0.0, align_weight=3.0).step(model, batch)
    assert runs == []
    assert set(losses) == {"loss", "align_loss"}
    assert losses["loss"] == 3.0 * losses["align_loss"]


def test_the_batch_stays_as_it_was(model, batch):
    keys = set(batch)
    VideoLanguage(align_weight=1.0).step(model, batch)
    assert set(batch) == keys


def test_alignment_trains_the_visual_parts_and_not_the_words(model, batch):
    VideoLanguage(text_weight=0.0, align_weight=1.0).step(model, batch)["loss"].backward()
    moved = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert model.get_input_embeddings().weight.grad is None
    assert {name.split(".")[1] for name in moved} == {"stab", "projector"}
    visual = {name for name, _ in model.named_parameters() if name.startswith(("model.stab.", "model.projector."))}
    # Row tokens and the token of a frame show no cell, so alignment says nothing about what makes them.
    silent = {name.removeprefix("model.stab.").split(".")[0] for name in visual - moved}
    assert silent == {"row_token", "gstra", "fsra", "fusion"}


# -- alignment with what a caption names -------------------------------------------------------------------------------
def phrases_by_hand(task, tokens, frames, phrases, vocabulary) -> float:
    """In plain loops: -log of the mean probability of each phrase over the cells of its frame, per word, mean over
    phrases; minus the mean log-probability that a cell shows nothing or a phrase of its frame.
    """
    logs = []
    for token in tokens.tolist():
        norm = math.sqrt(sum(x * x for x in token))
        scores = [
            sum(a * b for a, b in zip(token, word)) / norm / math.sqrt(sum(b * b for b in word)) / task.temperature
            for word in vocabulary.tolist()
        ]
        total = math.log(sum(math.exp(score) for score in scores))
        logs.append([score - total for score in scores])
    shown, explained = [], []
    for frame, words in phrases:
        cells = [c for c, at in enumerate(frames) if at == frame]
        even = len(words) * math.log(len(words))
        likely = sum(math.exp(sum(logs[c][w] for w in words) + even) for c in cells) / len(cells)
        shown.append(-math.log(likely) / len(words))
    for c, at in enumerate(frames):
        ways = [math.exp(logs[c][task.nothing])]
        for frame, words in phrases:
            if frame == at:
                ways.append(math.exp(sum(logs[c][w] for w in words) / len(words) + math.log(len(words))))
        explained.append(math.log(sum(ways)))
    return sum(shown) / len(shown) - sum(explained) / len(explained)


def test_alignment_with_phrases_equals_a_hand_computation():
    generator = torch.Generator().manual_seed(0)
    task = VideoLanguage(align_weight=1.0, nothing=3)
    vocabulary = torch.randn(9, 5, generator=generator)
    first, second = (torch.randn(n, 5, generator=generator) for n in (7, 3))
    # Two frames of the first video, one of the second; FRAME and LINE tokens are no cells.
    layouts = [[(t, 0, x, CELL) for t in (0, 1) for x in range(3)], [(0, 0, x, CELL) for x in range(2)]]
    layouts[0].insert(3, (0, -1, -1, ROW_END))
    layouts[1].append((0, -1, -1, CONTEXT))
    visuals = [EncodedVisual(tokens, torch.tensor(rows)) for tokens, rows in zip((first, second), layouts)]
    phrases = torch.tensor([[0, 0, 1, 4, -100], [0, 0, 2, 4, 5], [1, 0, 6, 7, 8]])
    cells = torch.cat([first[[0, 1, 2, 4, 5, 6]], second[:2]])
    frames = [(0, 0)] * 3 + [(0, 1)] * 3 + [(1, 0)] * 2
    named = [((0, 0), [1, 4]), ((0, 0), [2, 4, 5]), ((1, 0), [6, 7, 8])]
    found = task.alignment_to_phrases(visuals, phrases, vocabulary).item()
    assert found == pytest.approx(phrases_by_hand(task, cells, frames, named, vocabulary), rel=1e-4)
    empty = task.alignment_to_phrases(visuals, phrases[:0], vocabulary)  # a batch that shows nothing
    assert empty.item() == pytest.approx(-task.log_words(cells, vocabulary)[:, 3].mean().item(), rel=1e-5)


def test_phrases_find_the_cells_that_show_them():
    """One of nine cells has the color that the phrase names; nobody says which. After 100 steps 10 of 12 words are
    right (chance: 1).
    """
    generator = torch.Generator().manual_seed(0)
    torch.manual_seed(0)
    task, words = VideoLanguage(align_weight=1.0, nothing=0), torch.eye(12)
    layer = torch.nn.Linear(12, 12)
    layout = torch.tensor([(0, 0, x, CELL) for x in range(9)])
    optimizer = torch.optim.Adam(layer.parameters(), lr=0.05)
    for _ in range(100):
        named = torch.randint(1, 12, (16,), generator=generator)
        shown = torch.zeros(16, 9, dtype=torch.long)
        shown[torch.arange(16), torch.randint(0, 9, (16,), generator=generator)] = named
        visuals = [EncodedVisual(layer(words[frame]), layout) for frame in shown]
        phrases = torch.stack([torch.arange(16), torch.zeros(16, dtype=torch.long), named], 1)
        optimizer.zero_grad()
        task.alignment_to_phrases(visuals, phrases, words).backward()
        optimizer.step()
    right = task.log_words(layer(words), words).argmax(1) == torch.arange(12)
    assert int(right.sum()) >= 8
