"""Six million rows of annotations: memory and time to open them, and whether 64 ranks and a resumed run see every row.

    python benchmarks/rows_6m.py --rows 6000000 --output benchmarks/rows-6m.json

Writes a mixture (YAML, the layout of VideoChat-Flash) of three files in the formats of Video-LLaVA and Valley, opens it
in a process of its own, and builds the batches of simulated ranks: one sample per row, and rows of several clips. Clips
are only named: nothing is decoded.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from datetime import date
from pathlib import Path

import numpy as np

from videopanda.bench.timing import machine
from videopanda.data.conversations import ConversationDataset
from videopanda.data.loader import BatchStream

WORLD, BATCH, ROW_TOKENS = 64, 8, 4096
TEXT = "a person opens the red door and walks slowly along a wet street while two dogs play near the tall tree "
WORDS = (TEXT * 3).split(" ")


def write(folder: Path, count: int) -> Path:
    """A mixture of `count` rows: two files of questions about clips, a third of captions without a question mark."""
    rng = np.random.default_rng(0)
    shares = {"llava": 0.5, "chats": 0.3, "valley": 0.2}
    entries = []
    for name, share in shares.items():
        rows = round(share * count)
        with (folder / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            lengths, turns = rng.integers(4, 40, rows), rng.integers(1, 11 if name == "chats" else 3, rows)
            for i in range(rows):
                answer = " ".join(WORDS[i % 21 : i % 21 + lengths[i]])
                said = [{"from": "human", "value": "<video>\nWhat happens here?"}, {"from": "gpt", "value": answer}]
                for _ in range(turns[i] - 1):
                    said += [{"from": "human", "value": "And then?"}, {"from": "gpt", "value": answer[:40]}]
                row = {"id": f"{name}-{i}", "video": f"clips/{i // 3}.mp4", "conversations": said}
                if name == "valley":
                    row |= {"v_id": str(i), "source": "webvid"}
                file.write(json.dumps(row) + "\n")
        kind = "valley" if name == "valley" else "llava"
        entries.append(f"  - json_path: {name}.jsonl\n    video_read_type: fake\n    format: {kind}\n")
    (folder / "mixture.yaml").write_text("datasets:\n" + "".join(entries))
    return folder / "mixture.yaml"


def examine(file: Path) -> dict[str, float | int | bool]:
    """Open the mixture and follow one epoch on all ranks. Every `is_…` of the result must hold."""
    began = time.perf_counter()
    dataset = ConversationDataset(file, seed=7, held_out=64)
    found: dict[str, float | int | bool] = {
        "rows": len(dataset),
        "open_seconds": round(time.perf_counter() - began, 1),
        "open_peak_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2),
    }
    for way, tokens in (("plain", 0), ("packed", ROW_TOKENS)):
        began = time.perf_counter()
        ranks = [BatchStream(dataset, BATCH, 0, WORLD, row_tokens=tokens)]
        found[f"{way}_epoch_seconds"] = round(time.perf_counter() - began, 1)
        for rank in (1, WORLD - 1):  # ranks are made alike, from the same numbers
            ranks.append(BatchStream(dataset, BATCH, rank, WORLD, row_tokens=tokens))
        plan = ranks[0].order
        found[f"{way}_steps"] = len(plan)
        found[f"{way}_is_same_on_ranks"] = all(np.array_equal(plan, other.order) for other in ranks)
        rows = plan.reshape(-1)
        seen = ranks[0].rows.samples[_members(ranks[0].rows.bounds, rows)]
        found[f"{way}_is_each_row_once"] = len(np.unique(seen)) == len(seen)
        found[f"{way}_dropped_rows"] = len(dataset) - len(seen)
        middle = len(plan) // 2
        resumed = BatchStream(dataset, BATCH, WORLD - 1, WORLD, row_tokens=tokens)
        resumed.load_state_dict({"epoch": 0, "given": middle})
        resumed.dataset = _Names(dataset)
        again = next(iter(resumed))
        batch = _batch(ranks[-1], dataset, middle)
        found[f"{way}_is_resumed_exactly"] = batch == (again.number, again.samples)
    found["peak_gb"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9, 2)
    return found


def _members(bounds: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Places of the samples of these rows."""
    sizes = bounds[rows + 1] - bounds[rows]
    firsts = np.repeat(bounds[rows] - np.concatenate([[0], np.cumsum(sizes)[:-1]]), sizes)
    return firsts + np.arange(sizes.sum())


class _Names:
    """A data set of the names of rows: clips are not read."""

    def __init__(self, dataset: ConversationDataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> str:
        return self.dataset.records(index)[0][0]


def _batch(stream: BatchStream, dataset: ConversationDataset, number: int) -> tuple[int, list[str]]:
    """The batch with this number, from the plan alone."""
    indices = [index for row in stream.order[number, stream.rank] for index in stream.rows[row]]
    return number * stream.world_size + stream.rank, [dataset.records(index)[0][0] for index in indices]


def main() -> None:
    """Write, examine in a fresh process, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=6_000_000)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--load", default="", help="What else the machine did, for the record.")
    parser.add_argument("--examine", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.examine:
        print(json.dumps(examine(given.examine)))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = write(Path(folder), given.rows)
        size = sum(path.stat().st_size for path in Path(folder).iterdir())
        done = subprocess.run(
            [sys.executable, __file__, "--examine", str(file)], check=True, stdout=subprocess.PIPE, text=True
        )
    found = {"file_gb": round(size / 1e9, 2), **json.loads(done.stdout)}
    assert all(value for name, value in found.items() if "_is_" in name), found
    settings = {"ranks": WORLD, "batch_size": BATCH, "row_tokens": ROW_TOKENS, "load": given.load}
    command = f"python benchmarks/rows_6m.py --rows {given.rows}"
    report = {"date": str(date.today()), "command": command, "machine": machine(), "settings": settings, **found}
    print(json.dumps(report, indent=1))
    if given.output:
        given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
