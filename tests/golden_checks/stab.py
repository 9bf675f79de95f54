"""Sections 1 to 3 of the golden README: tokens of the small and of the published STAB."""

import re
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from golden_checks.findings import Findings
from videopanda.models.videopanda import VideoPandaProjector, VideoPandaStab, VideoPandaStabConfig
from videopanda.models.videopanda.convert.names import official_to_ours
from videopanda.models.videopanda.layout_videopanda import token_layout
from videopanda.models.videopanda.modeling_videopanda import encode_frames

TOLERANCE = 1e-4  # measured worst: 3.6e-5 at the real size, 2.2e-5 at the small one, 8.6e-6 inside
HEADS = {1408: 11}  # of the tower, where they are not 8
Weights = Mapping[str, Tensor]


class Vision(torch.nn.Module):
    """Tower and projector under the names of the whole model."""

    def __init__(self, config: VideoPandaStabConfig, output_size: int):
        super().__init__()
        self.stab = VideoPandaStab(config)
        self.projector = VideoPandaProjector(config.hidden_size, output_size)

    @classmethod
    def from_official(cls, weights: Weights, image_size: int | None = None) -> "Vision":
        """A released model of the size that the weights have; no tensor may be missing, none left over."""
        d, _, patch, _ = weights["video_tower.patch_embedding.weight"].shape
        config = VideoPandaStabConfig(
            hidden_size=d, patch_size=patch, image_size=image_size or 32 * patch, num_heads=HEADS.get(d, 8)
        )
        vision = cls(config, weights["video_projector.0.weight"].shape[0])
        ours = vision.state_dict()
        renamed = {official_to_ours(name): tensor for name, tensor in weights.items()}
        renamed.pop(None, None)
        vision.load_state_dict({name: tensor.reshape(ours[name].shape) for name, tensor in renamed.items()})
        return vision.eval()

    @torch.no_grad()
    def forward(self, pixels: Tensor, placement: Tensor, is_image: bool = False) -> Tensor:
        return self.projector(self.stab(pixels, placement, is_image))

    @torch.no_grad()
    def lean(self, pixels: Tensor, placement: Tensor, is_image: bool = False) -> Tensor:
        """The same tokens as inference computes them."""
        return encode_frames(self.stab, self.projector, pixels, placement, is_image)


def videos_in(golden: Weights, kind: str) -> list[int]:
    """Numbers of the videos for which there is a tensor `kind.vN`."""
    return sorted(int(match[1]) for name in golden if (match := re.fullmatch(rf"{kind}\.v(\d+)", name)))


def read_pixels(golden: Weights, video: int, frames: int) -> Tensor:
    """Rebuild the pixels (T, 3, S, S) of a video."""
    if f"frames_q.v{video}" in golden:
        assert len(golden[f"frames_q.v{video}"]) == frames, f"video {video} has not {frames} frames"
        return golden[f"frames_q.v{video}"].float() / 64
    top, left, height, width, side, real = golden[f"placement.v{video}"].tolist()
    if f"valid_half_q.v{video}" in golden:
        valid = golden[f"valid_half_q.v{video}"].repeat_interleave(2, 2).repeat_interleave(2, 3)
    else:
        valid = golden[f"valid_q.v{video}"]
    pixels = torch.zeros(frames, 3, side, side)
    pixels[:real] = golden["pad_q"].float().view(3, 1, 1) / 64
    pixels[:real, :, top : top + height, left : left + width] = valid.float() / 64
    return pixels


def to_cells(placement: Tensor, frames: int, cell: int) -> Tensor:
    """Our placement row from (top, left, height, width, side, real) in pixels."""
    top, left, height, width, _, real = placement.tolist()
    return torch.tensor([top // cell, left // cell, height // cell, width // cell, frames, real])


def placement_of_mask(mask_TXY: Tensor) -> Tensor:  # noqa: N803
    """(top, left, height, width, side, real) from a mask of pixels or patches; without real frames the whole canvas."""
    side, real = mask_TXY.shape[-1], int(mask_TXY.flatten(1).any(1).sum())
    if not real:
        return torch.tensor([0, 0, side, side, side, 0])
    rows, columns = mask_TXY[0].any(1).nonzero(), mask_TXY[0].any(0).nonzero()
    top, left = int(rows[0]), int(columns[0])
    return torch.tensor([top, left, int(rows[-1]) + 1 - top, int(columns[-1]) + 1 - left, side, real])


def check_stab(golden: Weights, weights: Weights) -> Findings:
    """Tokens of all videos of a file in one batch, and of each alone; intermediate results where the file has them."""
    findings, videos = Findings(), videos_in(golden, "placement")
    frames, side = golden["patch_hw"].shape[1], int(golden["placement.v0"][4])
    vision = Vision.from_official(weights, side)
    cell, is_image = vision.stab.config.cell_size, frames == 1
    pixels = torch.stack([read_pixels(golden, v, frames) for v in videos])
    placement = torch.stack([to_cells(golden[f"placement.v{v}"], frames, cell) for v in videos])
    tokens = vision(pixels, placement, is_image)
    stab = vision.stab.config
    context_token = stab.image_context_token if is_image else stab.context_token
    counts = [len(token_layout(row, side // cell, stab.row_tokens, context_token)) for row in placement]
    grids = [[row[2:4]] * row[5] + [[min(8, side // cell)] * 2] * (frames - row[5]) for row in placement.tolist()]
    findings.compare("patch_hw", grids, golden["patch_hw"], 0.0)
    inferred = vision.lean(pixels, placement, is_image)
    for v, together, lean in zip(videos, tokens.split(counts), inferred.split(counts)):
        alone = vision(pixels[v : v + 1], placement[v : v + 1], is_image) if len(videos) > 1 else together
        expected = [golden[f"tokens.v{v}.f{t:02}"] for t in range(frames)]
        findings.compare(f"tokens.v{v}", together, torch.cat(expected), TOLERANCE)
        findings.compare(f"tokens.v{v} alone", alone, torch.cat(expected), TOLERANCE)
        findings.compare(f"tokens.v{v} lean", lean, torch.cat(expected), TOLERANCE)
        if f"mask.v{v}" in golden:
            found = placement_of_mask(golden[f"mask.v{v}"])
            findings.compare(f"mask.v{v}", found, golden[f"placement.v{v}"], 0.0)
    if any(name.startswith("inter.") for name in golden):
        compare_steps(findings, golden, vision, pixels[:1], placement[:1])
    return findings


def compare_steps(findings: Findings, golden: Weights, vision: Vision, pixels: Tensor, placement: Tensor) -> None:
    """What every module of STAB gives for the first video, which must have more than one frame."""
    seen: dict[str, Any] = {}
    hooks = [
        vision.stab.get_submodule(name).register_forward_hook(
            lambda _, args, out, name=name: seen.update({name: (args, out)})
        )
        for name in ("patch_embedding", "lste", "gstra", "lsd", "fsra", "fusion.norm", "fusion")
    ]
    vision(pixels, placement)
    for hook in hooks:
        hook.remove()
    with torch.no_grad():
        x, mask = seen["lste"][0]
        branch = vision.stab.lste.temporal_branch(x, mask)
        position = vision.stab.lste.position_branch(x + branch)
    top, left, rows, columns, frames, _ = placement[0].tolist()
    patches = slice(2 * top, 2 * (top + rows)), slice(2 * left, 2 * (left + columns))
    cells = slice(top, top + rows), slice(left, left + columns)
    steps = {
        "patch_embed": seen["patch_embedding"][1][0].permute(0, 3, 1, 2),
        "lmhra_branch": branch.permute(0, 4, 1, 2, 3),
        "dpe_branch": position.permute(0, 4, 1, 2, 3),
        "gstra_keys": seen["gstra"][0][0].transpose(0, 1),
        "gstra_out": seen["gstra"][1][None],
    }
    for t in range(frames):
        steps[f"lsd_in.f{t:02}"] = seen["lsd"][0][0][0, t][patches].permute(2, 0, 1)[None]
        steps[f"lsd_out.f{t:02}"] = seen["lsd"][1][0, t][cells].flatten(0, 1)[None]
        steps[f"fsra_out.f{t:02}"] = seen["fsra"][1][:, t][None]
        steps[f"context_in.f{t:02}"] = seen["fusion.norm"][0][0][:, t]
        steps[f"context_out.f{t:02}"] = seen["fusion"][1][:, t]
    for name in golden:
        if name.startswith("inter."):
            findings.compare(name, steps[name.removeprefix("inter.")], golden[name], TOLERANCE)


def check_stab_weights(weights: Weights) -> Findings:
    """Whether every tensor has its place."""
    findings = Findings()
    Vision.from_official(weights)
    findings.require(f"{len(weights)} tensors load", True)
    return findings


# -- section 3: the real size with formula weights ---------------------------------------------------------------------
def formula(key: str, shape: tuple[int, ...]) -> np.ndarray:
    """Pseudo-random integers below 2^32 that follow from a name."""
    i = np.arange(1, np.prod(shape, dtype=np.int64) + 1, dtype=np.uint32)
    u = np.uint32(zlib.crc32(key.encode())) + np.uint32(0x9E3779B1) * i
    u = (u ^ (u >> np.uint32(16))) * np.uint32(0x85EBCA6B)
    u = (u ^ (u >> np.uint32(13))) * np.uint32(0xC2B2AE35)
    return (u ^ (u >> np.uint32(16))).reshape(shape)


def formula_weight(key: str, shape: tuple[int, ...]) -> Tensor:
    """The weight that follows from its official name."""
    if key.endswith("running_var"):
        offset, gain = 1.25, 1.0
    elif key.endswith(("running_mean", "bias")):
        offset, gain = 0.0, 0.4
    elif key.rsplit(".", 1)[-1] in ("class_embedding", "split_embedding", "temporal_cls_token", "balance"):
        offset, gain = 0.0, 2.0
    elif len(shape) == 1:
        offset, gain = 1.0, 0.5
    else:
        strong = key.endswith((".q.1.weight", ".kv.1.weight", "in_proj_weight"))
        offset, gain = 0.0, (6.0 if strong else 3.5) / np.sqrt(np.prod(shape[1:]))
    r = formula(key, shape).astype(np.float64) / 2**32 - 0.5
    return torch.from_numpy((offset + gain * r).astype(np.float32))


def real_shapes(d: int = 1024, e: int = 4096) -> dict[str, tuple[int, ...]]:
    """Official names and shapes of the tower and projector of the published model, without lmhra2."""
    u, linear = int(d / 1.5), {}
    norms = ["dec.ln_1", "dec.ln_2", "dec.ln_3", "proj.0", "lmhra1.pos_embed.0"]
    for attention in ("local_attention", "global_attention"):
        norms += [f"{attention}.q.0", f"{attention}.kv.0"]
        linear |= {f"{attention}.q.1": (d, d, False), f"{attention}.kv.1": (2 * d, d, False)}
        linear[f"{attention}.proj"] = (d, d, True)
    linear |= {"dec.attn.out_proj": (d, d, True), "proj.2": (d, d, True)}
    linear |= {"dec.mlp.c_fc": (4 * d, d, True), "dec.mlp.c_proj": (d, 4 * d, True)}
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("class_embedding", "split_embedding", "balance"), (d,))
    shapes |= {"temporal_cls_token": (1, 1, d), "patch_embedding.weight": (d, 3, 14, 14)}
    shapes |= {f"{name}.{kind}": (d,) for name in norms for kind in ("weight", "bias")}
    shapes |= {f"lmhra1.pos_embed.0.running_{kind}": (d,) for kind in ("mean", "var")}
    for i, shape in enumerate([(u, d, 1, 1, 1), (u, 1, 3, 1, 1), (d, u, 1, 1, 1)], start=1):
        shapes |= {f"lmhra1.pos_embed.{i}.weight": shape, f"lmhra1.pos_embed.{i}.bias": shape[:1]}
    shapes |= {"dpe.weight": (d, 1, 3, 3, 3), "dpe.bias": (d,)}
    shapes |= {"dec.attn.in_proj_weight": (3 * d, d), "dec.attn.in_proj_bias": (3 * d,)}
    for name, (rows, columns, has_bias) in linear.items():
        shapes[f"{name}.weight"] = (rows, columns)
        if has_bias:
            shapes[f"{name}.bias"] = (rows,)
    shapes = {f"video_tower.{name}": shape for name, shape in shapes.items()}
    for i, columns in ((0, d), (2, e)):
        shapes |= {f"video_projector.{i}.weight": (e, columns), f"video_projector.{i}.bias": (e,)}
    return shapes


def check_real(golden: Weights, stem: str) -> Findings:
    """Selected rows, row norms and row sums of the published size; pixels and weights follow from names."""
    findings = Findings()
    weights = {name: formula_weight(name, shape) for name, shape in real_shapes().items()}
    top, left, height, width, side, real = golden["placement.v0"].tolist()
    frames = golden["patch_hw"].shape[1]
    valid = (formula(f"pixels.{stem}", (real, 3, height, width)) >> np.uint32(24)).astype(np.float32)
    pixels = torch.zeros(1, frames, 3, side, side)
    pixels[:, :real] = torch.tensor([-1.0, 2.0, -3.0]).view(3, 1, 1) / 64
    pixels[0, :real, :, top : top + height, left : left + width] = torch.from_numpy((valid - 128) / 64)
    for name in golden:
        if name == "check.frames.f00.first8_valid":
            findings.compare(name, pixels[0, 0, 0, top, left : left + 8], golden[name], 0.0)
        elif name.startswith("check.") and name.endswith(".first8"):
            key = name.removeprefix("check.").removesuffix(".first8")
            findings.compare(name, weights[key].flatten()[:8], golden[name], 0.0)
    vision = Vision.from_official(weights)
    del weights
    tokens = vision(pixels, to_cells(golden["placement.v0"], frames, 28)[None], is_image=frames == 1)
    counts = [rows * (columns + 1) + 1 for rows, columns in golden["patch_hw"][0].tolist()]
    for t, frame in enumerate(tokens.split(counts)):
        if f"token_l2.f{t:02}" in golden:
            findings.compare(
                f"token_l2.f{t:02}, relative",
                frame.norm(dim=1) / golden[f"token_l2.f{t:02}"],
                torch.ones(len(frame)),
                TOLERANCE,
            )
        if f"token_sum.f{t:02}" in golden:  # a sum of 4096 values has 64 times their noise
            findings.compare(f"token_sum.f{t:02} / 64", frame.sum(1) / 64, golden[f"token_sum.f{t:02}"] / 64, TOLERANCE)
        if f"rows.f{t:02}" in golden:
            findings.compare(
                f"tokens_rows.f{t:02}", frame[golden[f"rows.f{t:02}"]], golden[f"tokens_rows.f{t:02}"], TOLERANCE
            )
    return findings
