"""How much memory `videopanda pull` takes: download, conversion and verification of official checkpoints.

    python benchmarks/pull_memory.py --output benchmarks/pull.json

The checkpoints have names, types and shapes of the published 7B one with fewer layers, in two shards of `torch.save`,
all zeros; a stand-in of the Hub on loopback serves them. The one of 1 layer is also run by `pull`; those of 4 and
8 layers are only checked, as the published one with its 32. Needs 8 GB of disk for a while, and `fallocate`.
"""

import argparse
import json
import mmap
import os
import subprocess
import sys
import tempfile
import threading
import time
from datetime import date
from pathlib import Path

import torch

from videopanda.bench.timing import machine

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "tests")]

# Helpers of the tests, found by the path above.
from hub_server import Hub  # noqa: E402
from official import official_config, released_shapes, write_official, write_vocabulary  # noqa: E402

NAME = "org/official"
# Sums over a large file before it is served take longer than the client waits.
PATIENCE = {"HF_HUB_ETAG_TIMEOUT": "600", "HF_HUB_DOWNLOAD_TIMEOUT": "600", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}


def write(folder: Path, layers: int) -> int:
    """A checkpoint of so many layers in bfloat16; returns the bytes of its weights."""
    shapes = released_shapes()
    weights = {
        name: torch.zeros(shape, dtype=torch.bfloat16)  # pages of zeros that are never written take no memory
        for name, shape in shapes.items()
        if not name.startswith("model.layers.") or int(name.split(".")[2]) < layers
    }
    config = official_config(
        hidden_size=4096, intermediate_size=11008, num_hidden_layers=layers, num_attention_heads=32,
        num_key_value_heads=32, vocab_size=32000, mm_hidden_size=1024, video_hidden_size=1024, torch_dtype="bfloat16",
    )  # fmt: skip
    write_official(folder, weights, config, preprocessor=False)
    write_vocabulary(folder / "tokenizer.model", 32000)
    for path in folder.glob("*.bin"):
        subprocess.run(["fallocate", "--dig-holes", path], check=True)  # zeros need no disk
    return sum(weight.nbytes for weight in weights.values())


def files_of(folder: Path) -> dict[str, bytes | memoryview]:
    """The files by name; those of weights are mapped, not read."""
    found: dict[str, bytes | memoryview] = {}
    for path in filter(Path.is_file, folder.rglob("*")):
        if path.suffix == ".bin":
            with path.open("rb") as file:
                content: bytes | memoryview = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
        else:
            content = path.read_bytes()
        found[path.relative_to(folder).as_posix()] = content
    return found


def watched(process: subprocess.Popen, peaks: dict[str, int]) -> None:
    """The largest values of VmHWM (all pages, those of files included) and RssAnon (without them), in bytes."""
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            return
        for line in status.splitlines():
            name, _, value = line.partition(":")
            if name in peaks:
                peaks[name] = max(peaks[name], 1024 * int(value.split()[0]))
        time.sleep(0.02)


def measure(layers: int, place: Path) -> dict:
    """Pull a checkpoint; the peak memory of the process, and what it says."""
    size = write(place / "official", layers)
    command = [sys.executable, "-m", "videopanda", "pull", NAME, "--output", str(place / "ours")]
    with Hub({NAME: files_of(place / "official")}) as hub:
        environment = {**os.environ, **hub.environment(place / "home", **PATIENCE), "COLUMNS": "200"}
        began = time.monotonic()
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        peaks = {"VmHWM": 0, "RssAnon": 0}
        watching = threading.Thread(target=watched, args=(process, peaks))
        watching.start()
        said, _ = process.communicate()
        watching.join()
        seconds = time.monotonic() - began
    if process.returncode:
        raise SystemExit(said)
    (greedy,) = [line for line in said.splitlines() if "greedy" in line]
    return {
        "layers": layers,
        "weight_bytes": size,
        "peak_bytes": peaks["VmHWM"],
        "peak_bytes_without_files": peaks["RssAnon"],
        "model_is_run": "passed" in greedy,
        "seconds": round(seconds, 1),
    }


def main() -> None:
    """Measure, and write the rows to the report, which keeps those of other numbers of layers."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, metavar="FILE")
    parser.add_argument("--layers", type=int, nargs="+", default=[1, 4, 8], metavar="N")
    options = parser.parse_args()
    kept = json.loads(options.output.read_text(encoding="utf-8"))["rows"] if options.output.exists() else []
    rows = {row["layers"]: row for row in kept}
    for layers in options.layers:
        with tempfile.TemporaryDirectory() as place:
            rows[layers] = measure(layers, Path(place))
        print(json.dumps(rows[layers]), flush=True)
    report = {
        "command": "python benchmarks/pull_memory.py --output benchmarks/pull.json",
        "date": date.today().isoformat(),
        "machine": machine("cpu"),
        "rows": [rows[layers] for layers in sorted(rows)],
    }
    options.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
