"""Time and peak memory of a distillation step on CPU: the nine states that the head reads, or all of them.

    python benchmarks/distill_step.py --output benchmarks/distill-step.json

    needed    the task as it trains: nine of 33 states, at visual tokens only
    kept      all states of the whole row are asked for, nine of them are read
    stacked   as the official code does: all states, stacked to (B, N, 33, E) before nine are read

A decoder of the released depth at an eighth of its width, with the released head, activations recomputed. A step is
the losses and their gradients; no optimiser. Times are CPU seconds of one process in which the ways take turns, and
their ratio is taken within each turn. Memory is the peak of a fresh process per way, before the first step and after
the second.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import time
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import Tensor

from videopanda.evaluation.provenance import versions
from videopanda.models.videopanda import VideoPandaConfig, VideoPandaForConditionalGeneration, VideoPandaStabConfig
from videopanda.training.distill import (
    Distillation,
    DistillVideoLanguage,
    FusedHead,
    StoredFeatures,
    every_fourth_layer,
)

LAYERS, WIDTH, TEACHER, FRAMES, ROWS, TEXT = 32, 512, 256, 8, 2, 64
STAB = VideoPandaStabConfig(hidden_size=256, image_size=224)  # 8 × 8 cells
VISUAL = FRAMES * (STAB.max_cells * (STAB.max_cells + 1) + 1)
WAYS = ("needed", "kept", "stacked")
T_95 = {3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}  # Student's t by degrees of freedom


def build() -> tuple[VideoPandaForConditionalGeneration, DistillVideoLanguage, dict[str, Tensor]]:
    """Model, task and a batch of square frames."""
    torch.manual_seed(0)
    text = {
        **{"model_type": "llama", "vocab_size": 4002, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH},
        **{"num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 8},
    }
    config = VideoPandaConfig(text_config=text, stab_config=STAB, video_token_id=4000, image_token_id=4001)
    model = VideoPandaForConditionalGeneration(config).train()
    model.activation_checkpointing_enable()
    layers, cells = every_fourth_layer(LAYERS), STAB.max_cells
    distillation = Distillation(FusedHead(WIDTH, TEACHER, len(layers)), STAB.max_cells)
    task = DistillVideoLanguage(distillation, StoredFeatures(), layers)
    ids = torch.randint(0, 4000, (ROWS, VISUAL + TEXT))
    ids[:, 1 : VISUAL + 1] = 4000
    labels = ids.clone()
    labels[:, : -TEXT // 2] = -100
    batch = {
        "input_ids": ids,
        "labels": labels,
        "pixel_values_videos": torch.randn(ROWS, FRAMES, 3, STAB.image_size, STAB.image_size),
        "video_placement": torch.tensor([[0, 0, cells, cells, FRAMES, FRAMES]] * ROWS),
        "teacher_features": torch.randn(ROWS, FRAMES, cells, cells, TEACHER),
    }
    return model, task, batch


def loss_of(way: str, model: Any, task: DistillVideoLanguage, batch: dict[str, Tensor]) -> Tensor:
    """The loss of a step, the same in every way."""
    if way == "needed":
        return task.step(model, batch)["loss"]
    batch = dict(batch)
    teacher_features = task.teacher(batch)
    out = model(**batch, output_hidden_states=True)
    visual = batch["input_ids"] == model.config.video_token_id
    if way == "stacked":
        states = torch.stack(out.hidden_states, 2)
        at_tokens = [states[:, :, i][visual] for i in task.layers]
    else:
        at_tokens = [out.hidden_states[i][visual] for i in task.layers]
    layouts = [visual.layout for visual in model.encode(batch)]
    return out.loss + task.weight * task.distillation(at_tokens, layouts, teacher_features)


def step(way: str, model: Any, task: DistillVideoLanguage, batch: dict[str, Tensor]) -> tuple[float, float]:
    """CPU seconds and loss of one step."""
    began = time.process_time()
    loss = loss_of(way, model, task, batch)
    loss.backward()
    return time.process_time() - began, loss.item()


def memory(way: str) -> dict[str, float]:
    """Peak memory of this process in MB (10^6 bytes) before the first step and after the second."""
    parts = build()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    losses = [step(way, *parts)[1] for _ in range(2)]
    after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"before_mb": round(before * 1024 / 1e6), "peak_mb": round(after * 1024 / 1e6), "loss": losses[-1]}


def times(turns: int) -> dict[str, Any]:
    """CPU seconds per step, and the ratio to `needed` within a turn with its 95 % interval."""
    parts = build()
    taken: dict[str, list[float]] = {way: [] for way in WAYS}
    for turn in range(turns + 1):
        # Each way comes first equally often; the first turn warms up.
        for way in WAYS[turn % len(WAYS) :] + WAYS[: turn % len(WAYS)]:
            seconds, _ = step(way, *parts)
            if turn:
                taken[way].append(seconds)
    found: dict[str, Any] = {}
    for way, seconds in taken.items():
        ratios = [b / a for a, b in zip(taken["needed"], seconds, strict=True)]
        half = T_95[turns - 1] * stdev(ratios) / turns**0.5
        found[way] = {
            "cpu_seconds": [round(s, 2) for s in seconds],
            "rows_per_cpu_second": round(ROWS / mean(seconds), 4),
            "ratio_to_needed": round(mean(ratios), 4),
            "ratio_ci95": [round(mean(ratios) - half, 4), round(mean(ratios) + half, 4)],
        }
    return found


def arithmetic() -> dict[str, float]:
    """Bytes of the states alone, here (float32, MB) and at the released size (bfloat16, 8 rows of 2300 tokens, GB)."""
    nine = len(every_fourth_layer(LAYERS))
    return {
        "all_states_mb": round(ROWS * (VISUAL + TEXT) * (LAYERS + 1) * WIDTH * 4 / 1e6, 1),
        "needed_states_mb": round(ROWS * VISUAL * nine * WIDTH * 4 / 1e6, 1),
        "released_all_states_gb": round(8 * 2300 * 33 * 4096 * 2 / 1e9, 2),
        "released_needed_states_gb": round(8 * 2184 * 9 * 4096 * 2 / 1e9, 2),
    }


def main() -> None:
    """Measure and write the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, help="file for the report")
    parser.add_argument("--turns", type=int, default=5, choices=range(4, 11), metavar="4…10")
    parser.add_argument("--memory-of", choices=WAYS, help="only measure the memory of one way, in this process")
    given = parser.parse_args()
    if given.memory_of:
        print(json.dumps(memory(given.memory_of)))
        return
    peaks = {}
    for way in WAYS:
        command = [sys.executable, __file__, "--memory-of", way]
        # Large blocks go back to the system at once: the peak is that of what lives, not of holes between it.
        environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536"}
        done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=environment)
        peaks[way] = json.loads(done.stdout)
    report = {
        "command": "python benchmarks/distill_step.py --output benchmarks/distill-step.json",
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), **versions()},
        "size": {"layers": LAYERS, "width": WIDTH, "rows": ROWS, "visual_tokens": VISUAL, "text_tokens": TEXT},
        "memory": peaks,
        "time": times(given.turns),
        "arithmetic": arithmetic(),
    }
    text = json.dumps(report, indent=2) + "\n"
    if given.output:
        given.output.write_text(text, encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
