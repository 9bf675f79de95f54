"""Protects ELVA's guidance losses: they equal a reference with loops, and several batches or
processes give those of one."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from transformers import Trainer

from videopanda.models.visual import CELL, CONTEXT, ROW_END
from videopanda.training.distill import StoredFeatures
from videopanda.training.guidance import NEAR_SECONDS, TEMPERATURE, GuidedVideoLanguage, VideoGuidance, resized

E, D, T, G = 12, 8, 4, 2
GRIDS = [[(2, 3)] * 4, [(4, 4)] * 2 + [(1, 2)] * 2, [(2, 2)] * 4]  # of the frames of three videos
TIMES = torch.tensor([[0.0, 0.4, 2.0, 5.0], [0.0, 1.0, 2.0, 3.0], [1.0, 1.5, 2.0, 9.0]])


def inputs(videos: list[int]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    layout, video = [], []
    for b, number in enumerate(videos):
        for t, (rows, columns) in enumerate(GRIDS[number]):
            frame = [(t, -1, -1, CONTEXT)]
            for y in range(rows):
                frame += [(t, y, x, CELL) for x in range(columns)] + [(t, -1, -1, ROW_END)]
            layout += frame
            video += [b] * len(frame)
    hidden, teacher = [], []
    for number in videos:  # a video has the same numbers whatever is beside it
        generator = torch.Generator().manual_seed(number)
        tokens = sum(rows * columns + rows + 1 for rows, columns in GRIDS[number])
        hidden.append(torch.randn(tokens, E, generator=generator))
        teacher.append(torch.randn(T, G, G, D, generator=generator))
    return torch.cat(hidden), torch.tensor(layout), torch.tensor(video), torch.stack(teacher), TIMES[videos]


def guidance_of() -> VideoGuidance:
    torch.manual_seed(0)
    return VideoGuidance(E, D)


def reference(guidance: VideoGuidance, hidden, layout, video, teacher, times) -> tuple[Tensor, Tensor]:
    tubes, frames = [], []
    for b in range(len(teacher)):
        by_grid: dict = {}
        for t in range(T):
            mine = [
                (int(layout[v, 1]), int(layout[v, 2]), hidden[v])
                for v in range(len(hidden))
                if video[v] == b and layout[v, 0] == t and layout[v, 3] == CELL
            ]
            grid = max(y for y, _, _ in mine) + 1, max(x for _, x, _ in mine) + 1
            by_grid.setdefault(grid, []).append((t, {(y, x): h for y, x, h in mine}))
            frames.append((b, float(times[b, t]), sum(h for *_, h in mine) / len(mine), teacher[b, t].mean((0, 1))))
        for (rows, columns), members in by_grid.items():
            tube = torch.stack(
                [
                    torch.stack([sum(cells[y, x] for _, cells in members) / len(members) for x in range(columns)])
                    for y in range(rows)
                ]
            )
            student = guidance.tube_head(resized(tube.permute(2, 0, 1)[None], G)[0].permute(1, 2, 0))
            target = sum(teacher[b, t] for t, _ in members) / len(members)
            for y in range(G):
                for x in range(G):
                    apart = F.normalize(student[y, x], dim=0) - F.normalize(target[y, x], dim=0)
                    tubes.append((apart**2).sum())
    losses = []
    for b, time, mean, _ in frames:
        asked = F.normalize(guidance.frame_head(mean), dim=0)
        scores = {}
        for other, (c, moment, _, target) in enumerate(frames):
            itself = c == b and moment == time
            if itself:
                place = other
            if itself or c != b or abs(moment - time) >= NEAR_SECONDS:
                scores[other] = asked @ F.normalize(target, dim=0) / TEMPERATURE
        losses.append(torch.logsumexp(torch.stack(list(scores.values())), 0) - scores[place])
    return torch.stack(tubes).mean(), torch.stack(losses).mean()


def test_values_and_gradients_equal_a_reference_with_loops():
    guidance = guidance_of()
    hidden, *rest = inputs([0, 1, 2])
    results = []
    for way in (lambda leaf: guidance(leaf, *rest).values(), lambda leaf: reference(guidance, leaf, *rest)):
        leaf = hidden.clone().requires_grad_()
        guidance.zero_grad()
        losses = list(way(leaf))
        sum(losses).backward()
        results.append([*losses, leaf.grad, *(p.grad.clone() for p in guidance.parameters())])
    for fast, slow in zip(*results):
        torch.testing.assert_close(fast, slow, atol=1e-6, rtol=1e-5)  # measured: 5e-7 on values up to 9


def test_the_head_of_places_runs_once_however_many_sizes_a_process_has():
    """Each call is a collective under ZeRO-3: a process that calls once more waits forever."""
    guidance, calls = guidance_of(), []
    guidance.tube_head.register_forward_hook(lambda *_: calls.append(1))
    for videos in ([0], [1], [0, 1, 2]):
        guidance(*inputs(videos))
    assert len(calls) == 3


def test_a_perfect_student_has_no_tube_loss():
    guidance = VideoGuidance(D, D)
    guidance.tube_head = torch.nn.Identity()
    teacher = torch.randn(1, T, G, G, D)
    teacher = teacher[:, :1].expand(-1, T, -1, -1, -1)
    layout = torch.tensor([(t, y, x, CELL) for t in range(T) for y in range(G) for x in range(G)])
    losses = guidance(teacher.flatten(0, 3), layout, torch.zeros(len(layout), dtype=torch.long), teacher, TIMES[:1])
    assert float(losses["tube_loss"]) < 1e-10


def prepared(parts: list[list[int]], guidance: VideoGuidance) -> list[dict]:
    """Batches of these videos, as the only ones of a step on this process."""
    batches = []
    for videos in parts:
        *_, teacher, times = inputs(videos)
        grids = torch.tensor([GRIDS[number] for number in videos])
        labels = torch.zeros(1, 2, dtype=torch.long)
        batches.append({"teacher_features": teacher, "frame_times": times, "frame_grids": grids, "labels": labels})
    GuidedVideoLanguage(guidance, StoredFeatures()).prepare(batches, torch.device("cpu"))
    return batches


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_frames_are_told_apart_by_their_seconds_whatever_type_a_trainer_casts_batches_to(dtype):
    """DeepSpeed casts every tensor of a batch, in dictionaries and tuples too: seconds of an hour become equal."""
    (batch,) = prepared([[0, 1, 2]], guidance_of())
    bank = batch["bank"]
    args = SimpleNamespace(device="cpu")
    config = SimpleNamespace(dtype=lambda: dtype)
    state = SimpleNamespace(deepspeed_plugin=SimpleNamespace(hf_ds_config=config))
    trainer = SimpleNamespace(args=args, is_deepspeed_enabled=True, accelerator=SimpleNamespace(state=state))
    trainer._prepare_input = partial(Trainer._prepare_input, trainer)
    found = trainer._prepare_input(batch)
    assert found["teacher_features"].dtype == dtype
    assert torch.equal(found["bank"].identity, bank.identity)
    assert found["bank"].vectors.dtype == torch.float32


def weighted(parts: list[list[int]]) -> list[Tensor]:
    """Both losses of each part, and their gradients."""
    guidance, found = guidance_of(), []
    for videos, batch in zip(parts, prepared(parts, guidance)):
        hidden, *rest = inputs(videos)
        hidden.requires_grad_()
        losses = guidance(hidden, *rest, batch["bank"])
        total = sum(batch["weights"][f"{name}s"] * losses[f"{name}_loss"] for name in ("tube", "frame"))
        total.backward()
        found.append((total.detach(), hidden.grad))
    return found


def _rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    torch.save(weighted([[[0, 1]], [[2]]][rank]), f"{folder}/{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


@pytest.mark.parametrize("processes", [1, 2])
def test_two_batches_give_the_losses_and_negatives_of_one(tmp_path: Path, processes):
    """Whether one process has both, one after the other, or two have one each."""
    if processes == 1:
        parts = weighted([[0, 1], [2]])
    else:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path])}
        command = [sys.executable, __file__, str(tmp_path)]
        ranks = [subprocess.Popen([*command, str(rank)], env=environment) for rank in (0, 1)]
        assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
        parts = [part for rank in (0, 1) for part in torch.load(tmp_path / f"{rank}.pt", weights_only=True)]
    ((loss, gradient),) = weighted([[0, 1, 2]])
    torch.testing.assert_close(sum(part[0] for part in parts) / 2, loss, atol=1e-6, rtol=1e-6)
    together = torch.cat([part[1] / 2 for part in parts])  # accumulation and data-parallel training average
    torch.testing.assert_close(together, gradient, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("shape", [(4, 4), (3, 5), (2, 2)])
def test_maps_that_are_finer_are_averaged(shape):
    maps = torch.ones(1, 1, *shape) * 3.0
    assert torch.equal(resized(maps, 2), torch.full((1, 1, 2, 2), 3.0))


if __name__ == "__main__":
    _rank(int(sys.argv[2]), sys.argv[1])
