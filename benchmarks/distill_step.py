"""Time and peak memory of one distillation step on CPU: the nine states that the head reads, or all of them stacked.

    python benchmarks/distill_step.py --out benchmarks/distill-step.json

Each way runs in a process of its own, since peak memory is that of a process. `all` does what the official code does:
it asks for every hidden state and stacks them to (B, N, layers + 1, E).
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time

import torch

from videopanda.models.videopanda import VideoPandaConfig, VideoPandaForConditionalGeneration, VideoPandaStabConfig
from videopanda.training.distill import (
    Distillation,
    DistillVideoLanguage,
    FusedHead,
    StoredFeatures,
    every_fourth_layer,
)

LAYERS, WIDTH, FRAMES, ROWS, TEXT = 32, 512, 8, 2, 64


def build() -> tuple[VideoPandaForConditionalGeneration, DistillVideoLanguage, dict[str, torch.Tensor]]:
    """A decoder as deep as the released one at an eighth of its width, and two rows of 8 square frames."""
    torch.manual_seed(0)
    stab = VideoPandaStabConfig.released(hidden_size=256)
    text = {
        **{"model_type": "llama", "vocab_size": 4002, "hidden_size": WIDTH, "intermediate_size": 2 * WIDTH},
        **{"num_hidden_layers": LAYERS, "num_attention_heads": 8, "num_key_value_heads": 8},
    }
    config = VideoPandaConfig(text_config=text, stab_config=stab, video_token_id=4000, image_token_id=4001)
    model = VideoPandaForConditionalGeneration(config).train()
    model.activation_checkpointing_enable()
    layers = every_fourth_layer(LAYERS)
    task = DistillVideoLanguage(Distillation(FusedHead(WIDTH, 256, len(layers)), stab), StoredFeatures(), layers)
    cells = stab.max_cells
    visual = FRAMES * (cells * (cells + 1) + 1)
    ids = torch.randint(0, 4000, (ROWS, visual + TEXT))
    ids[:, 1 : visual + 1] = 4000
    labels = ids.clone()
    labels[:, : -TEXT // 2] = -100
    batch = {
        "input_ids": ids,
        "labels": labels,
        "pixel_values_videos": torch.randn(ROWS, FRAMES, 3, stab.image_size, stab.image_size),
        "video_placement": torch.tensor([[0, 0, cells, cells, FRAMES, FRAMES]] * ROWS),
        "teacher_features": torch.randn(ROWS, FRAMES, cells, cells, 256),
    }
    return model, task, batch


def step_with_all_states(model, task, batch) -> torch.Tensor:
    """The same losses from all hidden states, stacked."""
    batch = dict(batch)
    teacher = task.teacher(batch)
    out = model(**batch, output_hidden_states=True)
    states = torch.stack(out.hidden_states, 2)
    visual = batch["input_ids"] == model.config.video_token_id
    at_tokens = [states[:, :, i][visual] for i in task.layers]
    return out.loss + task.distillation(at_tokens, batch["video_placement"], teacher)


def measure(way: str) -> dict[str, float]:
    """Seconds of the second of two steps, and peak memory of this process."""
    model, task, batch = build()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for _ in range(2):
        began = time.process_time()
        loss = task.step(model, batch)["loss"] if way == "needed" else step_with_all_states(model, task, batch)
        loss.backward()
        seconds = time.process_time() - began
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    rows_per_second = ROWS / seconds
    return {"loss": loss.item(), "cpu_seconds": seconds, "rows_per_cpu_second": rows_per_second, "peak_mb": peak / 1e3,
            "model_mb": before / 1e3}  # fmt: skip


def main() -> None:
    """Measure both ways and write them beside the arithmetic."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out")
    parser.add_argument("--way")
    arguments = parser.parse_args()
    if arguments.way:
        print(json.dumps(measure(arguments.way)))
        return
    ways = {}
    for way in ("needed", "all"):
        done = subprocess.run([sys.executable, __file__, "--way", way], capture_output=True, text=True, check=True)
        ways[way] = json.loads(done.stdout)
    tokens = 8 * (16 * 17 + 1)
    states = {
        "all_states_mb": ROWS * (tokens + TEXT) * (LAYERS + 1) * WIDTH * 4 / 1e6,
        "needed_states_mb": ROWS * tokens * len(every_fourth_layer(LAYERS)) * WIDTH * 4 / 1e6,
        "released_all_gb": 8 * 2300 * 33 * 4096 * 2 / 1e9,
        "released_needed_gb": 8 * 2184 * 9 * 4096 * 2 / 1e9,
    }
    report = {
        "command": "python benchmarks/distill_step.py",
        "machine": {"processor": platform.machine(), "threads": torch.get_num_threads(), "torch": torch.__version__},
        "measured": ways,
        "arithmetic": {name: round(value, 1) for name, value in states.items()},
    }
    text = json.dumps(report, indent=2) + "\n"
    if arguments.out:
        with open(arguments.out, "w", encoding="utf-8") as file:
            file.write(text)
    print(text)


if __name__ == "__main__":
    main()
