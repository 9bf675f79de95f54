"""Protects ELVA's video patch embedding: ragged frames without loops give what one frame after the other gives."""

import pytest
import torch
from torch import Tensor

from videopanda.models.elva.configuration_elva import ElvaEmbeddingConfig, frame_tokens, grid_of
from videopanda.models.elva.modeling_elva_embedding import ElvaVideoEmbedding, token_layout
from videopanda.models.visual import CELL, CONTEXT, ROW_END

GRIDS = torch.tensor([[0, 0, 2, 3], [0, 1, 1, 2], [0, 2, 4, 4], [1, 0, 3, 1], [1, 1, 3, 1]])
VARIANTS = {
    "default": {},
    "mean": {"reduction": "mean"},
    "no markers": {"markers": False},
    "frame link": {"frame_link": True},
    "convolution": {"kind": "convolution"},
    "linear": {"kind": "linear"},
}


def embedding_of(**fields) -> ElvaVideoEmbedding:
    torch.manual_seed(0)
    embedding = ElvaVideoEmbedding(ElvaEmbeddingConfig(hidden_size=32, patch_size=4, num_heads=4, **fields), 24)
    for parameter in embedding.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return embedding


def cells(seed: int = 1) -> Tensor:
    count = int((GRIDS[:, 2] * GRIDS[:, 3]).sum())
    return torch.randn(count, 4, 48, generator=torch.Generator().manual_seed(seed))


def attended(embedding: ElvaVideoEmbedding, query: Tensor, tokens: Tensor) -> Tensor:
    """One query over some tokens, head by head."""
    attention, width = embedding.attention, 32 // 4
    q, k, v = attention.q(query), attention.k(tokens), attention.v(tokens)
    heads = []
    for h in range(4):
        part = slice(h * width, (h + 1) * width)
        share = torch.softmax(k[:, part] @ q[part] / width**0.5, 0)
        heads.append(share @ v[:, part])
    return attention.o(torch.cat(heads))


def reference(embedding: ElvaVideoEmbedding, pixels: Tensor) -> Tensor:
    """Frame by frame, row by row, cell by cell."""
    config, tokens, first, earlier = embedding.config, [], 0, {}
    for video, _, rows, columns in GRIDS.tolist():
        frame = []
        for cell in pixels[first : first + rows * columns]:
            if config.kind == "linear":
                place = len(frame)
                token = embedding.norm(embedding.patch(embedding.norm_pixels(cell.flatten())))
                token = token + embedding.row_position.weight[place // columns]
                token = embedding.norm_placed(token + embedding.column_position.weight[place % columns])
                frame.append(token * (token.square().mean() + 1e-6).rsqrt())
                continue
            patches = torch.stack([torch.nn.functional.gelu(embedding.patch(patch)) for patch in cell])
            if config.kind == "convolution":
                frame.append(embedding.reduce(patches.flatten()))
                continue
            mean = patches.mean(0)
            asked = config.reduction == "attention"
            frame.append(mean + attended(embedding, embedding.norm(mean), embedding.norm(patches)) if asked else mean)
        first += rows * columns
        lines = [embedding.line_token for _ in range(rows)]
        opening = embedding.frame_token
        if config.kind == "vpel" and config.markers:
            normed = embedding.norm(torch.stack(frame))
            ask_line, ask_frame = map(embedding.norm_marker, (embedding.line_token, embedding.frame_token))
            opening = opening + attended(embedding, ask_frame, normed)
            lines = [
                line + attended(embedding, ask_line, normed[r * columns : (r + 1) * columns])
                for r, line in enumerate(lines)
            ]
        if config.kind == "vpel" and config.frame_link:
            seen = [*earlier.get(video, []), embedding.norm(opening)]
            earlier[video] = seen
            opening = opening + attended(embedding, seen[-1], torch.stack(seen))
        tokens.append(opening)
        for r in range(rows):
            tokens += [*frame[r * columns : (r + 1) * columns], lines[r]]
    return embedding.output(torch.stack(tokens))


@pytest.mark.parametrize("variant", VARIANTS)
def test_values_and_gradients_equal_a_reference_with_loops(variant):
    embedding = embedding_of(**VARIANTS[variant])
    fast, slow = cells().requires_grad_(), cells().requires_grad_()
    got, want = embedding(fast, GRIDS), reference(embedding, slow)
    torch.testing.assert_close(got, want, atol=1e-5 * float(want.detach().abs().max()), rtol=0)  # measured: 4e-7
    weights = torch.randn(want.shape, generator=torch.Generator().manual_seed(2))
    gradients = []
    for output, leaf in ((got, fast), (want, slow)):
        embedding.zero_grad()
        (output * weights).sum().backward()
        gradients.append([leaf.grad, *(p.grad for p in embedding.parameters() if p.grad is not None)])
    assert len(gradients[0]) == len(gradients[1])
    for one, two in zip(*gradients):
        torch.testing.assert_close(one, two, atol=1e-5 * float(two.abs().max()), rtol=0)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_video_embeds_alike_alone_and_in_a_batch(variant):
    embedding, pixels = embedding_of(**VARIANTS[variant]), cells()
    both = embedding(pixels, GRIDS)
    alone = embedding(pixels[-6:], GRIDS[3:])
    torch.testing.assert_close(both[-len(alone) :], alone, atol=1e-5 * float(alone.detach().abs().max()), rtol=0)


def test_the_default_layout_has_the_parameters_of_the_table():
    embedding = ElvaVideoEmbedding(ElvaEmbeddingConfig(), 3584)
    maps = sum(p.numel() for p in embedding.parameters() if p.ndim == 2)
    assert maps == 588 * 1024 + 4 * 1024**2 + 1024 * 3584  # 8.47 M
    assert round(maps / 1e6, 2) == 8.47


def test_the_linear_embedding_has_the_parameters_of_gemma_4():
    """35,176,704 of the embedder and 14,745,600 of the projection, without our FRAME and LINE."""
    fields = {"kind": "linear", "hidden_size": 3840, "patch_size": 24, "max_side": 1120}
    with torch.device("meta"):
        embedding = ElvaVideoEmbedding(ElvaEmbeddingConfig(**fields), 3840)
    assert sum(p.numel() for p in embedding.parameters()) - 2 * 3840 == 35_176_704 + 14_745_600


def test_every_frame_has_one_opening_and_one_mark_per_row():
    layout = token_layout(GRIDS)
    lengths = [frame_tokens(rows, columns) for _, _, rows, columns in GRIDS.tolist()]
    assert len(layout) == sum(lengths)
    first = 0
    for (_, number, rows, columns), length in zip(GRIDS.tolist(), lengths):
        frame = layout[first : first + length]
        assert frame[:, 0].eq(number).all()
        expected = [CONTEXT] + ([CELL] * columns + [ROW_END]) * rows
        assert frame[:, 3].tolist() == expected
        places = frame[frame[:, 3] == CELL][:, 1:3].tolist()
        assert places == [[r, c] for r in range(rows) for c in range(columns)]
        first += length


@pytest.mark.parametrize(
    ("height", "width", "grid"),
    [(336, 336, (12, 12)), (280, 420, (9, 14)), (720, 1280, (9, 16)), (28, 28, (1, 1)), (28, 2800, (1, 100))],
)
def test_a_frame_keeps_its_aspect(height, width, grid):
    assert grid_of(height, width, 28, 144) == grid


def test_no_frame_has_more_cells_than_allowed():
    for height in range(28, 3000, 97):
        for width in range(28, 3000, 89):
            rows, columns = grid_of(height, width, 28, 144)
            assert rows >= 1
            assert columns >= 1
            assert rows * columns <= 144


def test_a_frame_smaller_than_a_patch_is_refused():
    with pytest.raises(ValueError, match="30 × 20 pixels is smaller than a patch of 28 × 28"):
        grid_of(20, 30, 28, 144)
