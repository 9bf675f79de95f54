"""Protects token merging inside a language model: it equals a slow reference with loops, values and gradients, on
every kind of decoder that is supported, and never touches text."""

from math import ceil

import pytest
import torch
from torch import Tensor
from transformers import AutoModel, LlamaConfig, Phi3Config, Qwen2Config, Qwen3Config

from videopanda.models.generation import CACHE_NAME
from videopanda.models.layer_cache import MergedCache
from videopanda.models.merge_schedule import MergeSchedule
from videopanda.models.merging import PADDING, Merger, VisualPlaces, add_layer_hooks
from videopanda.models.visual import CELL, CONTEXT, ROW_END
from videopanda.training.freezing import recompute_activations

SMALL = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 5,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
FAMILIES = {
    "llama": LlamaConfig(**SMALL),
    "qwen2": Qwen2Config(**SMALL),
    "qwen3": Qwen3Config(**SMALL, head_dim=8),
    "phi3": Phi3Config(**SMALL),
}
SCHEDULES = {
    "ratio": MergeSchedule((1, 3), 0.5),
    "embeddings": MergeSchedule((0, 2), 0.6),
    "threshold": MergeSchedule((1, 2), threshold=0.4, mode="threshold"),
    "drop": MergeSchedule((0, 1, 3), 0.5, mode="drop"),
    "deep": MergeSchedule((1, 3), 0.5, 0.4, "threshold", deep_layers=(3,)),
}


def layout(frames: int, rows: int, columns: int, start: int = 0) -> list[tuple[int, int, int, int]]:
    found = []
    for t in range(start, start + frames):
        found.append((t, -1, -1, CONTEXT))
        for y in range(rows):
            found += [(t, y, x, CELL) for x in range(columns)] + [(t, -1, -1, ROW_END)]
    return found


def model_of(name: str) -> torch.nn.Module:
    torch.manual_seed(0)
    model = AutoModel.from_config(FAMILIES[name]).eval()
    add_layer_hooks(model)
    return model


def batch(seed: int = 0) -> tuple[Tensor, Tensor, list[Tensor], Tensor]:
    """Embeddings of two rows: two clips (one with frames of two sizes) and one clip; left padding in the second."""
    generator = torch.Generator().manual_seed(seed)
    clips = [layout(4, 2, 3), layout(2, 2, 2) + layout(2, 1, 2, 2) + layout(1, 2, 2, 4), layout(5, 1, 3)]
    texts = [(2, 3, 4), (3, 5)]
    first = texts[0][0] + len(clips[0]) + texts[0][1] + len(clips[1]) + texts[0][2]
    second = texts[1][0] + len(clips[2]) + texts[1][1]
    is_visual = torch.zeros(2, first, dtype=torch.bool)
    is_visual[0, 2 : 2 + len(clips[0])] = True
    start = 2 + len(clips[0]) + 3
    is_visual[0, start : start + len(clips[1])] = True
    start = first - second + texts[1][0]
    is_visual[1, start : start + len(clips[2])] = True
    alike = torch.randn(32, generator=generator)  # so that some pairs are similar and others are not
    embeds = 0.8 * alike + torch.randn(2, first, 32, generator=generator)
    mask = torch.ones(2, first, dtype=torch.long)
    mask[1, : first - second] = 0
    return embeds, is_visual, [torch.tensor(clip) for clip in clips], mask


# -- the slow reference: one row, one place, one token at a time -------------------------------------------------------
def reference_merge(tokens: list, stage: int, number: int, schedule: MergeSchedule, first_counts: dict) -> list:
    """Merge a list of (hidden, position, place, n); `place` is None or (visual, row, column, grid)."""
    if schedule.mode == "drop":
        return reference_drop(tokens, stage, schedule, first_counts)
    pairs = []
    by_place: dict = {}
    for i, (hidden, _, place, _) in enumerate(tokens):
        if place is None:
            continue
        if place in by_place:
            before = by_place[place]
            similarity = torch.nn.functional.cosine_similarity(hidden, tokens[before][0], dim=0).item()
            pairs.append((place, before, i, similarity))
        by_place[place] = i
    joins = {b for _, _, b, s in pairs if schedule.mode == "threshold" and s >= schedule.threshold}
    if schedule.mode == "ratio" or number in schedule.deep_layers:
        for visual in {place[0] for place, *_ in pairs}:
            mine = [pair for pair in pairs if pair[0][0] == visual]
            now = sum(1 for token in tokens if token[2] is not None and token[2][0] == visual)
            surplus = now - ceil(schedule.keep ** (stage + 1) * first_counts[visual] - 1e-9)
            done = len([pair for pair in mine if pair[2] in joins])
            left = sorted((pair for pair in mine if pair[2] not in joins), key=lambda pair: -pair[3])
            joins |= {pair[2] for pair in left[: max(0, surplus - done)]}
    before = {b: a for _, a, b, _ in pairs}
    runs: dict[int, list[int]] = {}
    for i in range(len(tokens)):
        first = i
        while first in joins:
            first = before[first]
        runs.setdefault(first, []).append(i)
    merged = []
    for first, members in sorted(runs.items()):
        total = sum(tokens[i][3] for i in members)
        mean = sum(tokens[i][0] * tokens[i][3] for i in members) / total if len(members) > 1 else tokens[first][0]
        merged.append((mean, tokens[first][1], tokens[first][2], total))
    return merged


def reference_drop(tokens: list, stage: int, schedule: MergeSchedule, first_counts: dict) -> list:
    """Of the patch tokens of each visual, the k that are first in their k equal parts; they count for their part."""
    kept: list = []
    for visual in first_counts:
        mine = [i for i, token in enumerate(tokens) if token[2] is not None and token[2][0] == visual]
        k = max(1, ceil(schedule.keep ** (stage + 1) * first_counts[visual] - 1e-9))
        parts: dict[int, list[int]] = {}
        for rank, i in enumerate(mine):
            parts.setdefault(rank * k // len(mine), []).append(i)
        assert len(parts) == k
        kept += [(part[0], sum(tokens[i][3] for i in part)) for part in parts.values()]
    kept += [(i, token[3]) for i, token in enumerate(tokens) if token[2] is None]
    return [(*tokens[i][:3], count) for i, count in sorted(kept)]


def reference(model, embeds: Tensor, is_visual: Tensor, layouts: list[Tensor], mask: Tensor, schedule) -> list[list]:
    """Every row alone, through the layers one by one with merging between; final tokens with positions and counts."""
    places = []
    for visual, rows in enumerate(layouts):
        grids: dict = {}
        for t, y, x, _ in rows.tolist():
            grids[t] = (max(grids.get(t, (-1, -1))[0], y), max(grids.get(t, (-1, -1))[1], x))
        places += [(visual, y, x, grids[t]) if kind == CELL else None for t, y, x, kind in rows.tolist()]
    queue = iter(places)
    done = []
    for b in range(len(embeds)):
        columns = mask[b].nonzero().squeeze(1).tolist()
        tokens = [
            (embeds[b, n], position, next(queue) if is_visual[b, n] else None, 1) for position, n in enumerate(columns)
        ]
        counts: dict = {}
        for _, _, place, _ in tokens:
            if place is not None:
                counts[place[0]] = counts.get(place[0], 0) + 1
        for number in range(model.config.num_hidden_layers + 1):
            if number:
                hidden = torch.stack([token[0] for token in tokens])[None]
                positions = torch.tensor([[token[1] for token in tokens]])
                output = model.layers[number - 1](
                    hidden,
                    attention_mask=None,
                    position_ids=positions,
                    position_embeddings=model.rotary_emb(hidden, positions),
                )
                output = output[0] if isinstance(output, tuple) else output
                tokens = [(h, *token[1:]) for h, token in zip(output.reshape(len(tokens), -1), tokens)]
            if number in schedule.layers:
                tokens = reference_merge(tokens, schedule.layers.index(number), number, schedule, counts)
        done.append([(model.norm(hidden), *rest) for hidden, *rest in tokens])
    return done


def run(model, embeds, is_visual, layouts, mask, schedule, **kwargs):
    merger = Merger(schedule, VisualPlaces.of(is_visual, layouts), mask == 0)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    kwargs = {"use_cache": False, **kwargs}
    output = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, token_merger=merger, **kwargs)
    return output, merger


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_values_and_gradients_equal_a_reference_with_loops(family, schedule):
    model, (embeds, is_visual, layouts, mask) = model_of(family), batch()
    fast, slow = embeds.clone().requires_grad_(), embeds.clone().requires_grad_()
    output, merger = run(model, fast, is_visual, layouts, mask, SCHEDULES[schedule])
    expected = reference(model, slow, is_visual, layouts, mask, SCHEDULES[schedule])
    weights = torch.randn(output.last_hidden_state.shape, generator=torch.Generator().manual_seed(1))
    loss, reference_loss = 0.0, 0.0
    for b, tokens in enumerate(expected):
        kept = ~merger.is_padding[-1][b]
        got = output.last_hidden_state[b, kept]
        want = torch.stack([token[0] for token in tokens])
        assert merger.counts[-1][b, kept].tolist() == [token[2 + 1] for token in tokens]
        torch.testing.assert_close(got, want, atol=1e-5, rtol=0)  # measured: 2e-6
        loss = loss + (got * weights[b, kept]).sum()
        reference_loss = reference_loss + (want * weights[b, kept]).sum()
    assert any(merge is not None for merge in merger.merges)
    loss.backward()
    reference_loss.backward()
    torch.testing.assert_close(fast.grad, slow.grad, atol=1e-5 * float(slow.grad.abs().max()), rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unreachable_threshold_changes_no_bit(family):
    model, (embeds, is_visual, layouts, mask) = model_of(family), batch()
    never = MergeSchedule((0, 2, 4), threshold=1.01, mode="threshold")
    output, _ = run(model, embeds, is_visual, layouts, mask, never)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    plain = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=False)
    assert torch.equal(output.last_hidden_state, plain.last_hidden_state)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_static_clip_collapses_to_one_frame(family):
    """One token is left per place and grid, with the number of its frames; row 0 has two clips, one of mixed grids."""
    model, (embeds, is_visual, layouts, mask) = model_of(family), batch()
    first: dict = {}
    for b, n, clip, (row, column, kind, grid) in tokens_in_order(is_visual, layouts):
        embeds[b, n] = embeds[first.setdefault((clip, row, column, kind, grid), (b, n))]
    schedule = MergeSchedule((0,), threshold=0.999, mode="threshold")
    _, merger = run(model, embeds, is_visual, layouts, mask, schedule)
    kept = merger.place[-1] != PADDING
    found = [merger.counts[-1][b, kept[b]].tolist() for b in range(2)]
    assert [sorted(counts) for counts in found] == [[2.0] * 2 + [3.0] * 4 + [4.0] * 6, [5.0] * 3]
    marks = [int((layout[:, 3] != CELL).sum()) for layout in layouts]
    left = (~merger.is_padding[-1]).sum(1).tolist()
    assert left == [9 + sum(marks[:2]) + 12, 8 + marks[2] + 3]  # text, FRAME and LINE, one cell per place


def tokens_in_order(is_visual: Tensor, layouts: list[Tensor]):
    """Row, column, clip and (row, column, kind, grid) of every visual token."""
    places = is_visual.nonzero().tolist()
    for clip, layout in enumerate(layouts):
        grids = {t: layout[layout[:, 0] == t][:, 1:3].amax(0) for t in layout[:, 0].tolist()}
        for t, row, column, kind in layout.tolist():
            yield (*places.pop(0), clip, (row, column, kind, tuple(grids[t].tolist())))


@pytest.mark.parametrize("family", FAMILIES)
def test_unmerging_restores_the_shape_with_copies(family):
    model, (embeds, is_visual, layouts, mask) = model_of(family), batch()
    output, merger = run(model, embeds, is_visual, layouts, mask, SCHEDULES["ratio"])
    merged = output.last_hidden_state
    whole = merger.unmerge(merged)
    assert whole.shape == embeds.shape
    source = merger.source(2)
    for b in range(2):
        for m in (~merger.is_padding[-1][b]).nonzero().squeeze(1).tolist():
            copies = [n for n in range(whole.shape[1]) if torch.equal(whole[b, n], merged[b, m])]
            members = [n for n in copies if mask[b, n]]
            assert int(source[b, m]) == members[0]
            assert len(members) == int(merger.counts[-1][b, m])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_later_text_never_changes_merging(family):
    model, (embeds, is_visual, layouts, mask) = model_of(family), batch()
    _, merger = run(model, embeds, is_visual, layouts, mask, SCHEDULES["ratio"])
    other = embeds.clone()
    other[:, -3:] = torch.randn(2, 3, 32)
    _, again = run(model, other, is_visual, layouts, mask, SCHEDULES["ratio"])
    for one, two in zip(merger.merges, again.merges):
        assert torch.equal(one.source, two.source)
        assert torch.equal(one.target, two.target)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_merges_alike_alone_and_in_a_batch(family):
    model, (embeds, is_visual, layouts, mask) = model_of(family), batch()
    output, merger = run(model, embeds, is_visual, layouts, mask, SCHEDULES["ratio"])
    kept = mask[1] == 1
    alone, _ = run(model, embeds[1:, kept], is_visual[1:, kept], layouts[2:], mask[1:, kept], SCHEDULES["ratio"])
    got = output.last_hidden_state[1, ~merger.is_padding[-1][1]]
    torch.testing.assert_close(got, alone.last_hidden_state[0], atol=1e-5, rtol=0)  # measured: 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_recomputed_activations_merge_alike(family):
    embeds, is_visual, layouts, mask = batch()
    gradients = []
    for recompute in (False, True):
        model = model_of(family).train()
        if recompute:
            recompute_activations(model)
        leaf = embeds.clone().requires_grad_()
        output, merger = run(model, leaf, is_visual, layouts, mask, SCHEDULES["ratio"])
        merger.unmerge(output.last_hidden_state).square().sum().backward()
        gradients.append(leaf.grad)
    torch.testing.assert_close(*gradients, atol=1e-6 * float(gradients[0].abs().max()), rtol=0)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cache_remembers_positions_per_layer(family):
    model, (embeds, is_visual, layouts, mask) = model_of(family), batch()
    cache = MergedCache(model.config)
    _, merger = run(model, embeds, is_visual, layouts, mask, SCHEDULES["ratio"], use_cache=True, **{CACHE_NAME: cache})
    lengths = [layer.keys.shape[2] for layer in cache.layers]
    assert lengths == [layer.positions.shape[1] for layer in cache.layers]
    assert lengths[0] > lengths[1] == lengths[2] > lengths[3] == lengths[4]
    for layer, stage in zip(cache.layers, (0, 1, 1, 2, 2)):
        assert torch.equal(layer.positions == PADDING, merger.is_padding[stage])


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (MergeSchedule((3, 1)), "increasing"),
        (MergeSchedule((1, 9)), r"in \[0, 4\]"),
        (MergeSchedule((1,), keep=0.0), "keep must be in"),
        (MergeSchedule((1,), mode="best"), "ratio, threshold or drop"),
        (MergeSchedule((1,), deep_layers=(2,)), "among the layers"),
    ],
)
def test_a_schedule_that_makes_no_sense_is_refused(schedule, message):
    with pytest.raises(ValueError, match=message):
        schedule.check(5)
