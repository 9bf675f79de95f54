"""Protects the compressors: the tokens that are planned are those that are made, pooling is a mean over the right
tokens, a new compressor is plain pooling, chunks give what the whole clip gives, and merging keeps all mass."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from videopanda.models.compression import Compressor, compressed_layout, interleaved, merge_similar, pooled_groups
from videopanda.models.compression_config import CompressionConfig
from videopanda.models.visual import CELL, CONTEXT, ROW_END

D = 32


def clip_layout(grids: list[tuple[int, int]], context: bool = True, row_ends: bool = True) -> list[tuple]:
    found = []
    for t, (rows, columns) in enumerate(grids):
        if context:
            found.append((t, -1, -1, CONTEXT))
        for y in range(rows):
            found += [(t, y, x, CELL) for x in range(columns)]
            if row_ends:
                found.append((t, -1, -1, ROW_END))
    return found


def batch(clips: list[list[tuple]], seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    layout = torch.tensor([row for clip in clips for row in clip])
    visual = torch.tensor([b for b, clip in enumerate(clips) for _ in clip])
    return torch.randn(len(layout), D, generator=torch.Generator().manual_seed(seed)), layout, visual


def compressor_of(seed: int = 0, random_output: bool = True, **fields) -> Compressor:
    torch.manual_seed(seed)
    compressor = Compressor(CompressionConfig(**{"kind": "pool", "pool_time": 1, **fields}), D).eval()
    if random_output:  # else a mixer adds nothing
        for name, parameter in compressor.named_parameters():
            if name.endswith("out_proj.weight"):
                torch.nn.init.normal_(parameter, std=0.3)
    return compressor


def reference_pool(tokens: Tensor, layout: Tensor, visual: Tensor, time: int, space: int) -> tuple[list, list]:
    """Means by hand, in reading order."""
    groups: dict = {}
    row = {}
    for v, (t, y, x, kind) in enumerate(layout.tolist()):
        b = int(visual[v])
        if kind == ROW_END:
            y = row.get((b, t), 0)
            row[b, t] = y + 1
        place = (-1, 0) if kind == CONTEXT else (y // space, x // space if kind == CELL else 1 << 30)
        groups.setdefault((b, t // time, *place, kind), []).append(tokens[v])
    keys = sorted(groups)
    return [torch.stack(groups[key]).mean(0) for key in keys], keys


@pytest.mark.parametrize(("time", "space"), [(1, 1), (2, 1), (4, 1), (1, 2), (3, 2)])
def test_pooling_equals_means_by_hand(time, space):
    tokens, layout, visual = batch([clip_layout([(3, 4)] * 7), clip_layout([(2, 2)] * 4, row_ends=False)])
    pooled, new_layout, new_visual, _ = compressor_of(pool_time=time, pool_space=space)(tokens, layout, visual)
    expected, keys = reference_pool(tokens, layout, visual, time, space)
    torch.testing.assert_close(pooled, torch.stack(expected), atol=1e-6, rtol=1e-6)
    assert new_visual.tolist() == [key[0] for key in keys]
    assert new_layout[:, 0].tolist() == [key[1] for key in keys]
    assert new_layout[:, 3].tolist() == [key[4] for key in keys]
    cells = [[key[2], key[3]] for key in keys if key[4] == CELL]
    assert new_layout[new_layout[:, 3] == CELL][:, 1:3].tolist() == cells


def test_frames_of_different_grids_are_not_averaged():
    tokens, layout, visual = batch([clip_layout([(2, 2), (1, 1), (2, 2), (1, 1)])])
    _, new_layout, _, _ = compressor_of(pool_time=4)(tokens, layout, visual)
    assert int((new_layout[:, 3] == CELL).sum()) == 4 + 1
    assert int((new_layout[:, 3] == CONTEXT).sum()) == 2


@pytest.mark.parametrize("kind", ["mamba", "mamba2"])
@pytest.mark.parametrize("queries", [False, True])
def test_a_new_compressor_is_plain_pooling(kind, queries):
    tokens, layout, visual = batch([clip_layout([(2, 3)] * 6), clip_layout([(2, 2)] * 3)])
    fresh = compressor_of(random_output=False, kind=kind, queries=queries, bidirectional=True, pool_time=3)
    plain = compressor_of(pool_time=3)
    assert torch.equal(fresh(tokens, layout, visual)[0], plain(tokens, layout, visual)[0])


@pytest.mark.parametrize("mixer_layers", [1, 2])
@pytest.mark.parametrize("cuts", [[4], [8], [4, 8, 12]])
def test_chunks_equal_the_whole_clip(mixer_layers, cuts):
    tokens, layout, visual = batch([clip_layout([(2, 3)] * 16)])
    compressor = compressor_of(kind="mamba", mixer_layers=mixer_layers, pool_time=4)
    whole, whole_layout, _, _ = compressor(tokens, layout, visual)
    parts, layouts, state, first = [], [], None, 0
    for end in [*cuts, 16]:
        chosen = (layout[:, 0] >= first) & (layout[:, 0] < end)
        chunk = layout[chosen] - torch.tensor([first, 0, 0, 0])
        made, made_layout, _, state = compressor(tokens[chosen], chunk, visual[chosen], state)
        parts.append(made)
        layouts.append(made_layout + torch.tensor([first // 4, 0, 0, 0]))
        first = end
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-5, rtol=0)  # measured: 5e-7
    assert torch.equal(torch.cat(layouts), whole_layout)


def test_a_clip_compresses_alike_alone_and_in_a_batch():
    clips = [clip_layout([(2, 3)] * 5), clip_layout([(1, 2)] * 9)]
    tokens, layout, visual = batch(clips)
    compressor = compressor_of(kind="mamba", bidirectional=True, queries=True, pool_time=2, merge_tokens=3)
    both, _, whose, _ = compressor(tokens, layout, visual)
    mine = visual == 1
    alone, *_ = compressor(tokens[mine], layout[mine], visual[mine] - 1)
    torch.testing.assert_close(both[whose == 1], alone, atol=1e-5, rtol=0)  # measured: 4e-7


@pytest.mark.parametrize("fields", [{"bidirectional": True}, {"queries": True}])
def test_what_needs_the_whole_clip_does_not_stream(fields):
    tokens, layout, visual = batch([clip_layout([(2, 2)] * 4)])
    compressor = compressor_of(kind="mamba", pool_time=2, **fields)
    *_, state = compressor(tokens, layout, visual)
    with pytest.raises(ValueError, match="needs the whole clip"):
        compressor(tokens, layout, visual, state)


def test_queries_stand_evenly_and_the_others_keep_their_order():
    tokens, _, visual = batch([clip_layout([(2, 2)] * 4), clip_layout([(1, 3)] * 2)])
    queries, whose = torch.randn(7, D), torch.tensor([0, 0, 0, 0, 0, 1, 1])
    slots, joint, of = interleaved(tokens, visual, queries, whose)
    assert torch.equal(joint[slots], queries)
    others = torch.ones(len(joint), dtype=torch.bool)
    others[slots] = False
    assert torch.equal(joint[others], tokens)
    lengths = torch.bincount(of).tolist()
    assert slots[4] == lengths[0] - 1
    assert slots[6] == sum(lengths) - 1
    gaps = torch.diff(slots[:5])
    assert int(gaps.max() - gaps.min()) <= 1


def test_merging_keeps_the_most_different_cells_and_all_mass():
    layout = clip_layout([(2, 2)] * 4, context=False, row_ends=False)
    tokens, layout, visual = batch([layout])
    tokens[:] = torch.eye(D)[torch.tensor([0, 0, 1, 1, 2, 2, 3, 3] * 2)]  # pairs side by side, so none is lost
    merged, kept = merge_similar(tokens, layout, visual, keep=8, frames=4)
    assert len(kept) == 8
    assert torch.equal(merged, torch.eye(D)[torch.tensor([0, 1, 2, 3] * 2)])
    tokens, layout, visual = batch([clip_layout([(2, 2)] * 8, context=False, row_ends=False)])
    for keep in (1, 3, 7):
        merged, kept = merge_similar(tokens[:, :1].expand(-1, D) * 0 + 2.0, layout, visual, keep, 4)
        assert len(kept) == 2 * keep
        assert torch.equal(merged, torch.full_like(merged, 2.0))  # a mean by mass of equal tokens


def test_marks_survive_merging():
    tokens, layout, visual = batch([clip_layout([(3, 3)] * 4)])
    merged, new_layout, _, _ = compressor_of(merge_tokens=5)(tokens, layout, visual)
    assert int((new_layout[:, 3] == CELL).sum()) == 5
    marks = layout[:, 3] != CELL
    assert torch.equal(merged[new_layout[:, 3] != CELL], tokens[marks])


grids = st.tuples(st.integers(1, 4), st.integers(1, 4))
clips = st.lists(st.tuples(grids, st.integers(1, 9), st.booleans(), st.booleans()), min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(
    clips,
    st.fixed_dictionaries(
        {
            "kind": st.sampled_from(["pool", "mamba", "mamba2"]),
            "pool_time": st.integers(1, 5),
            "pool_space": st.integers(1, 3),
            "keep_every": st.integers(1, 3),
            "merge_tokens": st.sampled_from([0, 1, 4, 9]),
            "merge_frames": st.integers(1, 4),
            "queries": st.booleans(),
        }
    ),
)
def test_the_planned_tokens_are_the_made_tokens(clips, fields):
    fields["queries"] &= fields["kind"] != "pool"
    tokens, layout, visual = batch(
        [clip_layout([grid] * frames, context, ends) for grid, frames, context, ends in clips]
    )
    compressor = compressor_of(**fields)
    made, new_layout, new_visual, _ = compressor(tokens, layout, visual)
    assert len(made) == len(new_layout) == len(new_visual)
    planned = compressed_layout(compressor.config, layout, visual)
    assert len(planned) == len(made)
    if not fields["merge_tokens"]:
        assert torch.equal(planned, new_layout)
    assert torch.isfinite(made).all()


def test_every_token_is_in_one_group():
    _, layout, visual = batch([clip_layout([(3, 5)] * 6)])
    groups = pooled_groups(layout, visual, 4, 2)
    assert torch.equal(groups.group.unique(), torch.arange(len(groups.layout)))
    assert int(torch.bincount(groups.group).sum()) == len(layout)


def test_gradients_reach_the_mixers_and_the_tokens():
    tokens, layout, visual = batch([clip_layout([(2, 2)] * 8)])
    compressor = compressor_of(kind="mamba", bidirectional=True, queries=True, pool_time=4).train()
    leaf = tokens.clone().requires_grad_()
    compressor(leaf, layout, visual)[0].square().sum().backward()
    assert float(leaf.grad.abs().min(1).values.max()) > 0
    assert all(parameter.grad is not None for parameter in compressor.parameters())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"kind": "attention"}, "none, pool, mamba, mamba2"),
        ({"kind": "pool", "pool_time": 0}, "pool_time` must be a positive integer"),
        ({"merge_tokens": -1}, "merge_tokens` must be an integer of at least 0"),
        ({"kind": "pool", "queries": True}, "queries needs compression.kind=mamba"),
        ({"pool_space": 2}, "changes nothing without compression.kind=pool"),
    ],
)
def test_settings_that_make_no_sense_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        CompressionConfig(**fields)
