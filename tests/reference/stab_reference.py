"""A slow reference implementation of STAB: loops over frames, windows, heads and taps, one token at a time.

It shares no arithmetic with `modeling_videopanda_stab.py` (no folding, no masks, no batching), so equal results mean
that both follow the equations. Use it for small sizes: its time grows with every patch. It is differentiable.

Names: a *place* is (row, column) of a patch or cell; a *frame* is a dict from place to its vector (D,). Places that are
not in the dict do not exist: convolutions read zero there, and attention skips them.
"""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from videopanda.models.videopanda.configuration_videopanda import PADDING_FRAME_CELLS, VideoPandaStabConfig

Place = tuple[int, int]
Frame = dict[Place, Tensor]
WINDOW = ((0, 0), (0, 1), (1, 0), (1, 1))


def slow_stab(
    config: VideoPandaStabConfig,
    state_dict: Mapping[str, Tensor],
    pixel_values_BTXY: Tensor,
    placement_B6: Tensor,
    is_image: bool = False,
) -> Tensor:
    """Tokens (V, D) of all videos, as `VideoPandaStab` in eval mode computes them from the same arguments.

    Args:
        config: the configuration of STAB.
        state_dict: its parameters and buffers, named as in `VideoPandaStab.state_dict()`.
        pixel_values_BTXY: normalized frames (B, T, 3, height, width).
        placement_B6: top, left, rows, columns of the picture in cells, frames that send tokens, real frames.
        is_image: use the image path (T = 1).

    Raises:
        ValueError: with `mask_padding`, a segment consists of padding frames only and cannot be summarized.
    """
    reference = _Reference(config, dict(state_dict))
    tokens: list[Tensor] = []
    for pixels_TXY, placement in zip(pixel_values_BTXY, placement_B6.tolist()):
        tokens += reference.image(pixels_TXY, placement) if is_image else reference.video(pixels_TXY, placement)
    return torch.stack(tokens)


class _Reference:
    def __init__(self, config: VideoPandaStabConfig, weights: dict[str, Tensor]):
        self.config, self.weights = config, weights
        self.cells_are_patches = config.downsampling == "half_resolution"

    # -- the order of things -------------------------------------------------------------------------------------------
    def video(self, pixels_TXY: Tensor, placement: Sequence[int]) -> list[Tensor]:
        """Tokens of one video, frame by frame."""
        config = self.config
        num_frames, num_real = placement[4:]
        patches = [self.patch_embedding(frame_XY) for frame_XY in pixels_TXY[:num_frames]]
        rows, columns = self.canvas_cells(pixels_TXY)
        sending = [self.sending_cells(placement, t < num_real, rows, columns) for t in range(num_frames)]
        corners = [min(cells) for cells in sending]
        if config.downsample_first:
            patches = [self.downsample(*each) for each in zip(patches, sending, corners)]
        encoded, on_cells = patches, config.downsample_first or self.cells_are_patches
        taking = []  # places that may influence others
        for t, frame in enumerate(patches):
            inside = sending[t] if on_cells else [p for cell in sending[t] for p in window(cell)]
            taking.append((inside if t < num_real else []) if config.mask_padding else list(frame))
        if config.lste:
            encoded = []
            for segment in self.segments(num_frames):
                encoded += self.lste([patches[t] for t in segment], [taking[t] for t in segment])
        tokens = encoded
        if config.lste and config.dense_connection:
            tokens = [{place: e[place] + p[place] for place in e} for e, p in zip(encoded, patches)]
        if not config.downsample_first:
            tokens = [self.downsample(*each) for each in zip(tokens, sending, corners)]
        frame_summaries = [self.fsra([frame[c] for c in cells]) for frame, cells in zip(tokens, sending)]
        contexts = frame_summaries
        if config.gstra:
            contexts = []
            for segment in self.segments(num_frames):
                if config.gstra_input == "full":
                    keys = [encoded[t][place] for t in segment for place in taking[t]]
                else:
                    real = [t for t in segment if t < num_real or not config.mask_padding]
                    keys = [tokens[t][cell] for t in real for cell in sending[t]]
                if not keys:
                    raise ValueError("A segment of padding frames only cannot be summarized: disable padding.")
                summary = self.gstra(keys)
                contexts += [self.fuse(summary, frame_summaries[t]) for t in segment]
        out = []
        for t, (frame, cells, context) in enumerate(zip(tokens, sending, contexts)):
            out += self.lay_out(self.add_coordinates(frame, cells, placement, t), cells, context)
        return out

    def image(self, pixels_TXY: Tensor, placement: Sequence[int]) -> list[Tensor]:
        """Tokens of one image: no LSTE, no GSTRA, and the frame summary itself is the context token."""
        rows, columns = self.canvas_cells(pixels_TXY)
        cells = self.sending_cells(placement, True, rows, columns)
        tokens = self.downsample(self.patch_embedding(pixels_TXY[0]), cells, min(cells))
        summary = self.fsra([tokens[cell] for cell in cells])
        return self.lay_out(self.add_coordinates(tokens, cells, placement, 0), cells, summary)

    # -- geometry -----------------------------------------------------------------------------------------------------
    def canvas_cells(self, pixels_TXY: Tensor) -> Place:
        cell = 2 * self.config.patch_size
        return pixels_TXY.shape[-2] // cell, pixels_TXY.shape[-1] // cell

    def sending_cells(self, placement: Sequence[int], is_real: bool, rows: int, columns: int) -> list[Place]:
        """Cells of a frame that become tokens, row by row; a padding frame sends a corner of the canvas."""
        top, left, height, width = placement[:4]
        if not is_real:
            top = left = 0
            height = width = min(PADDING_FRAME_CELLS, rows, columns)
        return [(r, c) for r in range(top, top + height) for c in range(left, left + width)]

    def segments(self, num_frames: int) -> list[range]:
        """Consecutive segments of `segment_frames` frames; the last one may be shorter."""
        length = self.config.segment_frames or num_frames
        return [range(first, min(first + length, num_frames)) for first in range(0, num_frames, length)]

    # -- building blocks ----------------------------------------------------------------------------------------------
    def linear(self, name: str, x: Tensor) -> Tensor:
        bias = self.weights.get(f"{name}.bias")
        return self.weights[f"{name}.weight"] @ x + (0 if bias is None else bias)

    def layer_norm(self, name: str, x: Tensor) -> Tensor:
        mean = x.mean()
        variance = ((x - mean) ** 2).mean()
        normal = (x - mean) / (variance + self.config.layer_norm_eps) ** 0.5
        return normal * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def attend(self, query: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float) -> Tensor:
        """Softmax attention of one query, head by head (Eq. 4)."""
        size = len(query) // self.config.num_heads
        heads = []
        for first in range(0, len(query), size):
            part = slice(first, first + size)
            scores = torch.stack([query[part] @ key[part] * scale for key in keys])
            weights = (scores - scores.max()).exp()
            weights = weights / weights.sum()
            heads.append(sum(weight * value[part] for weight, value in zip(weights, values)))
        return torch.cat(heads)

    def pool(self, module: str, query: Tensor, members: Sequence[Tensor]) -> Tensor:
        """The part shared by LSD and FSRA: norm and project the query and the members, attend, project."""
        d = self.config.hidden_size
        width = d if self.config.attention_scale == "width" else d // self.config.num_heads
        q = self.linear(f"{module}.query_proj", self.layer_norm(f"{module}.query_norm", query))
        both = [self.linear(f"{module}.kv_proj", self.layer_norm(f"{module}.key_norm", x)) for x in members]
        pooled = self.attend(q, [kv[:d] for kv in both], [kv[d:] for kv in both], width**-0.5)
        return self.linear(f"{module}.out_proj", pooled)

    # -- patches ------------------------------------------------------------------------------------------------------
    def patch_embedding(self, frame_XY: Tensor) -> Frame:
        """One linear map per patch, without bias."""
        if self.cells_are_patches:
            frame_XY = average([frame_XY[:, i::2, j::2] for i, j in WINDOW])
        p, kernel = self.config.patch_size, self.weights["patch_embedding.weight"]
        return {
            (y, x): kernel.flatten(1) @ frame_XY[:, y * p : y * p + p, x * p : x * p + p].flatten()
            for y in range(frame_XY.shape[1] // p)
            for x in range(frame_XY.shape[2] // p)
        }

    # -- LSTE (Eqs. 2 and 3) -------------------------------------------------------------------------------------------
    def lste(self, frames: list[Frame], taking: list[list[Place]]) -> list[Frame]:
        """Temporal bottleneck, then position encoding, both added; excluded places are zero."""
        zero = torch.zeros_like(next(iter(frames[0].values())))
        x = [{place: f[place] if place in set(part) else zero for place in f} for f, part in zip(frames, taking)]
        bottleneck = [{place: self.reduce(x[t][place]) for place in part} for t, part in enumerate(taking)]
        for t, part in enumerate(taking):
            for place in part:
                near = [(tap, bottleneck[t + tap - 1].get(place)) for tap in range(3) if 0 <= t + tap - 1 < len(x)]
                x[t][place] = x[t][place] + self.expand([(tap, h) for tap, h in near if h is not None])
        return [{(r, c): x[t][r, c] + self.position(x, t, r, c) for r, c in x[t]} for t in range(len(x))]

    def reduce(self, x: Tensor) -> Tensor:
        """Batch norm with running statistics, then 1 × 1 × 1 convolution to the bottleneck."""
        if self.config.lste_batch_norm:
            mean, variance = self.weights["lste.norm.running_mean"], self.weights["lste.norm.running_var"]
            x = (x - mean) / (variance + 1e-5) ** 0.5 * self.weights["lste.norm.weight"] + self.weights[
                "lste.norm.bias"
            ]
        return self.weights["lste.reduce.weight"][:, :, 0, 0, 0] @ x + self.weights["lste.reduce.bias"]

    def expand(self, taps: list[tuple[int, Tensor]]) -> Tensor:
        """3 × 1 × 1 convolution over the neighbours in time that exist, then 1 × 1 × 1 back to D channels."""
        kernel, h = self.weights["lste.temporal.weight"], self.weights["lste.temporal.bias"]
        for tap, neighbour in taps:
            weight = kernel[:, :, tap, 0, 0]
            h = h + (weight[:, 0] * neighbour if self.config.lste_depthwise else weight @ neighbour)
        return self.weights["lste.expand.weight"][:, :, 0, 0, 0] @ h + self.weights["lste.expand.bias"]

    def position(self, x: list[Frame], t: int, r: int, c: int) -> Tensor:
        """Depth-wise 3 × 3 × 3 convolution."""
        out = self.weights["lste.position.bias"]
        for i in range(3):
            for j in range(3):
                for k in range(3):
                    if 0 <= t + i - 1 < len(x) and (r + j - 1, c + k - 1) in x[t + i - 1]:
                        weight = self.weights["lste.position.weight"][:, 0, i, j, k]
                        out = out + weight * x[t + i - 1][r + j - 1, c + k - 1]
        return out

    # -- downsampling (Eqs. 5 to 7) ------------------------------------------------------------------------------------
    def downsample(self, frame: Frame, sending: list[Place], corner: Place) -> Frame:
        """Patches to cells, for every cell of the canvas."""
        kind = self.config.downsampling
        if kind == "half_resolution":
            return frame
        cells = [(r // 2, c // 2) for r, c in frame if r % 2 == 0 and c % 2 == 0]
        if kind == "average":
            return {cell: average([frame[place] for place in window(cell)]) for cell in cells}
        if kind == "perceiver":
            seen = [frame[place] for cell in sending for place in window(cell)]
            return {cell: self.perceive(cell, corner, seen) for cell in cells}
        return {cell: self.lsd([frame[place] for place in window(cell)]) for cell in cells}

    def lsd(self, members: list[Tensor]) -> Tensor:
        """One query attends to the four patches of its window."""
        query = self.weights["lsd.query"] if self.config.lsd_query == "learned" else average(members)
        out = self.pool("lsd", query, members)
        return out + query if self.config.query_residual else out

    def perceive(self, cell: Place, corner: Place, seen: list[Tensor]) -> Tensor:
        """Ablation: a learned query for the cell's place in the picture attends to all patches of the picture."""
        last = self.config.max_cells - 1
        r, c = (min(max(at - first, 0), last) for at, first in zip(cell, corner))
        d, query = self.config.hidden_size, self.weights["lsd.query"][r, c]
        q = self.linear("lsd.query_proj", self.layer_norm("lsd.query_norm", query))
        both = [self.linear("lsd.kv_proj", self.layer_norm("lsd.key_norm", x)) for x in seen]
        scale = (d // self.config.num_heads) ** -0.5
        pooled = self.attend(q, [kv[:d] for kv in both], [kv[d:] for kv in both], scale)
        out = query + self.linear("lsd.out_proj", pooled)
        h = self.linear("lsd.mlp_up", self.layer_norm("lsd.mlp_norm", out))
        h = h * (1 + torch.erf(h / math.sqrt(2))) / 2
        return out + self.linear("lsd.mlp_down", h)

    # -- summaries (Eqs. 8 to 14) --------------------------------------------------------------------------------------
    def fsra(self, cells: list[Tensor]) -> Tensor | None:
        """One learned query, the same for all frames, attends to the tokens of its frame."""
        if not self.config.fsra:
            return None
        query = self.weights["fsra.query"]
        out = self.pool("fsra", query, cells)
        return out + query if self.config.query_residual else out

    def gstra(self, keys: list[Tensor]) -> Tensor:
        """One learned query attends to a segment; then, as a field says, an MLP with x · sigmoid(1.702 x)."""
        d, query = self.config.hidden_size, self.weights["gstra.query"]
        packed, bias = self.weights["gstra.in_proj.weight"], self.weights["gstra.in_proj.bias"]
        normal = [self.layer_norm("gstra.key_norm", key) for key in keys]
        q = packed[:d] @ self.layer_norm("gstra.query_norm", query) + bias[:d]
        k = [packed[d : 2 * d] @ x + bias[d : 2 * d] for x in normal]
        v = [packed[2 * d :] @ x + bias[2 * d :] for x in normal]
        z = self.linear("gstra.out_proj", self.attend(q, k, v, (d // self.config.num_heads) ** -0.5))
        if self.config.query_residual:
            z = z + query
        if not self.config.gstra_mlp:
            return z
        h = self.linear("gstra.mlp_up", self.layer_norm("gstra.mlp_norm", z))
        return z + self.linear("gstra.mlp_down", h / (1 + torch.exp(-1.702 * h)))

    def fuse(self, segment: Tensor, frame: Tensor | None) -> Tensor:
        """(1 - α) · segment + α · frame, then a linear map (Eq. 14)."""
        gated = self.config.fusion == "gated"
        mixed = segment
        if frame is not None:
            balance = self.weights["fusion.balance"]
            alpha = 1 / (1 + torch.exp(-balance)) if gated else balance
            mixed = (1 - alpha) * segment + alpha * frame
        if gated:
            mixed = self.layer_norm("fusion.norm", mixed)
        return self.linear("fusion.proj", mixed)

    # -- order of tokens ----------------------------------------------------------------------------------------------
    def add_coordinates(self, frame: Frame, cells: list[Place], placement: Sequence[int], t: int) -> Frame:
        """Waves of the cell's centre in clip and picture; only where `coordinates` asks for them."""
        if not self.config.coordinates:
            return frame
        top, left, rows, columns, num_frames = placement[:5]
        weight, located = self.weights["coordinates.projection.weight"], {}
        for r, c in cells:
            at = ((t + 0.5) / num_frames, (r + 0.5 - top) / rows, (c + 0.5 - left) / columns)
            waves = [wave(math.pi * k * x) for x in at for wave in (math.cos, math.sin) for k in range(1, 9)]
            located[r, c] = frame[r, c] + weight @ torch.tensor(waves, dtype=weight.dtype)
        return located

    def lay_out(self, frame: Frame, cells: list[Place], context: Tensor | None) -> list[Tensor]:
        """[context], then each row of cells followed by the row token."""
        out = [] if context is None else [context]
        for row in sorted({r for r, _ in cells}):
            out += [frame[cell] for cell in cells if cell[0] == row]
            if self.config.row_tokens:
                out.append(self.weights["row_token"])
        return out


def window(cell: Place) -> list[Place]:
    """The four patches of a cell."""
    return [(2 * cell[0] + i, 2 * cell[1] + j) for i, j in WINDOW]


def average(members: Sequence[Tensor]) -> Tensor:
    """The mean of some vectors."""
    return torch.stack(list(members)).mean(0)
