"""A machine's speed at inference, measured once with real modules, and the resulting times of a plan.

machine = measure("cpu", torch.float32)      # under a minute on a small machine
machine.save()
load("cpu", torch.float32)                    # None if nothing was measured
"""

import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import torch

from videopanda.models.families import DEFAULT, fresh_config, model_class, processor_class
from videopanda.plan.planner import Plan, Planner

REPEATS = 3
STEPS = 8  # tokens written, per repeat
FRAMES, HEIGHT, WIDTH = 8, 360, 640
# Two layers as wide as those of a 1B language model: more weights than any cache of a processor holds.
TEXT: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 2,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 1024,
    "max_position_embeddings": 4096,
}


@dataclass(frozen=True)
class Machine:
    """Rates of one device with one data type, all per second.

    pixels: source pixels resized and normalized. vision_flops, prefill_flops: FLOPs of the vision part and of a
        prefill. bytes: weights and caches read for each new token.
    measured: the day, as 2026-11-21; None for assumed rates.
    """

    device: str
    dtype: str
    name: str
    threads: int
    pixels: float
    vision_flops: float
    prefill_flops: float
    bytes: float
    measured: str | None = None

    def first_token_seconds(self, plan: Plan) -> dict[str, float]:
        """Seconds from decoded frames to the first token: "prepare", "vision", "prefill" and their "total"."""
        parts = {
            "prepare": plan.frames * plan.height * plan.width / self.pixels,
            "vision": plan.flops["vision"] / self.vision_flops,
            "prefill": plan.flops["prefill"] / self.prefill_flops,
        }
        return {**parts, "total": sum(parts.values())}

    def tokens_per_second(self, plan: Plan) -> float:
        """New tokens, one reply at a time: each reads the language model and the cache once."""
        return self.bytes / (plan.planner.text_bytes + plan.kv_bytes)

    def save(self, folder: Path | None = None) -> Path:
        """Write the profile, by default to the cache folder of the user."""
        file = _file(self.device, self.dtype, folder)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")
        return file


# Round numbers of a small CPU and of a large GPU, for machines that were not measured.
ASSUMED = {
    "cpu": Machine("cpu", "any", "an assumed CPU", 1, 20e6, 100e9, 100e9, 10e9),
    "cuda": Machine("cuda", "any", "an assumed GPU", 1, 20e6, 100e12, 100e12, 1e12),
}


def load(device: str, dtype: torch.dtype, folder: Path | None = None) -> Machine | None:
    """The measured profile of this machine; None if there is none. Raises:
    ValueError: the file is corrupt.
    """
    file = _file(device, _name(dtype), folder)
    if not file.exists():
        return None
    try:
        return Machine(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{file} is corrupt: measure again with  videopanda plan --measure") from error


def _file(device: str, dtype: str, folder: Path | None) -> Path:
    return (folder or Path.home() / ".cache" / "videopanda") / f"machine-{device}-{dtype}.json"


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


@torch.inference_mode()
def measure(device: str, dtype: torch.dtype, text: dict[str, Any] | None = None) -> Machine:
    """Time a random model of the default family with `text` as its language model (default `TEXT`)."""
    torch.manual_seed(0)
    text = text or TEXT
    vocabulary = int(text["vocab_size"])
    ids = {"video_token_id": vocabulary - 2, "image_token_id": vocabulary - 1}
    config = fresh_config(DEFAULT, "", {}, text_config=text, **ids)
    processor = processor_class(config).video_processor_for(config)
    model = model_class(config)(config).to(device, dtype).eval()
    plan = Planner(config, processor, dtype).plan(FRAMES, HEIGHT, WIDTH, text_tokens=0, new_tokens=STEPS)
    frames = torch.randint(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=torch.uint8).numpy()
    prepare, inputs = _timed(device, lambda: processor(videos=[frames], return_tensors="pt"))
    vision, encoded = _timed(device, lambda: model.encode(inputs))
    embeds = encoded[0].tokens[None]
    prefill, read = _timed(device, lambda: model(inputs_embeds=embeds, use_cache=True, logits_to_keep=1))
    one = torch.zeros(1, 1, dtype=torch.long, device=device)

    def write() -> None:
        for _ in range(STEPS):
            model(input_ids=one, cache=read[model.cache_name], use_cache=True)

    written, _ = _timed(device, write)
    return Machine(
        device,
        _name(dtype),
        torch.cuda.get_device_name() if device == "cuda" else processor_name(),
        torch.get_num_threads(),
        FRAMES * HEIGHT * WIDTH / prepare,
        plan.flops["vision"] / vision,
        plan.flops["prefill"] / prefill,
        STEPS * (plan.planner.text_bytes + plan.kv_bytes) / written,
        date.today().isoformat(),
    )


def _timed(device: str, call: Callable[[], Any]) -> tuple[float, Any]:
    """Median seconds of a call after a warm-up call, and its result."""
    seconds, result = [], call()
    for _ in range(REPEATS):
        _wait(device)
        began = time.perf_counter()
        result = call()
        _wait(device)
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds), result


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def processor_name() -> str:
    """Name of the processor."""
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or "unknown"
