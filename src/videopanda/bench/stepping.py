"""Time and peak memory of a training step, with and without activation checkpointing, float32 and bfloat16."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from videopanda.bench.timing import in_turns, interval, machine, peak_bytes, ratios, seconds, synchronize
from videopanda.data.collate import Collator
from videopanda.data.worlds.scenes.dataset import ScenesDataset
from videopanda.inference.load import load
from videopanda.models.configuration import context_length
from videopanda.training.freezing import recompute_activations
from videopanda.training.tasks import VideoLanguage

WAYS = {
    "float32": (torch.float32, False),
    "float32, activations recomputed": (torch.float32, True),
    "bfloat16 autocast": (torch.bfloat16, False),
    "bfloat16 autocast, activations recomputed": (torch.bfloat16, True),
}


def measure(model: Path | None, rows: int, rounds: int, device: str | None = None) -> dict[str, Any]:
    """Time full steps (forward, backward, AdamW) on `rows` clips of Scenes, each way in turn on the same weights.

    Returns {"machine", "settings", "rows"}; a row has step_seconds, times_float32 and peak_bytes, beyond weights and
    optimizer states.
    """
    network, processor = load(model, device)
    network.float().train()
    task, place = VideoLanguage(), network.device
    scenes = ScenesDataset(num=rows, seed=0)
    collate = Collator(processor, context_length(network.config.text_config))
    batch = {name: value.to(place) for name, value in collate([scenes[i] for i in range(rows)]).items()}
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-6)

    def step(dtype: torch.dtype, recompute: bool) -> None:
        recompute_activations(network, recompute)
        with torch.autocast(place.type, dtype, enabled=dtype != torch.float32):
            loss = task.step(network, batch)["loss"]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize(place)

    def timed(name: str) -> Callable[[], float]:
        return lambda: seconds(lambda: step(*WAYS[name]))

    step(*WAYS["float32"])  # creates the optimizer states
    peaks = {name: peak_bytes(timed(name), place) for name in WAYS}
    taken = in_turns({name: timed(name) for name in WAYS}, rounds)
    found = [
        {
            "way": name,
            "step_seconds": interval(values),
            "times_float32": ratios(values, taken["float32"]),
            "peak_bytes": peaks[name],
        }
        for name, values in taken.items()
    ]
    tokens = batch["input_ids"].numel()
    name = Path(network.name_or_path).name
    settings = {"model": name, "clips": rows, "tokens": tokens, "rounds": rounds, "device": place.type}
    return {"machine": machine(place.type), "settings": settings, "rows": found}
