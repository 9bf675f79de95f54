"""Does a Mamba layer before averaging over time help? STORM's claim, with 4 and 8 times fewer tokens than nano has.

    python benchmarks/mamba_pooling.py --runs out/mamba_pooling       # writes benchmarks/mamba-pooling.json row by row

Every row starts from the bundled nano with a compressor, which it never had, and is trained with the same steps, clips
and questions of Scenes; then it answers the same questions of the test split. One seed after the other; rows that are
in the file are not run again, and a training that was interrupted resumes. The difference of two rows has an interval
over seeds and clips (`videopanda.lab.report.interval`).
"""

import argparse
import json
import platform
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from videopanda.inference.load import BUNDLED_MODEL
from videopanda.lab.report import interval

POOLING = {4: "mean of 4 frames", 8: "mean of 8 frames"}
TRAINING = {
    "align_weight": 0,  # a compressed token shows no single cell
    "scenes_captions": 0,
    "vision_lr": 1e-4,
    "lr.compressor": 1e-3,
    "language_model_lr": 3e-4,
    "warmup_ratio": 0.05,
    "compile": "false",
    "validation": 0,
    "num_workers": 0,
}


def main() -> None:
    """Run what is missing."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=Path, required=True, help="folder of models and trainings")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=400, help="of 4 clips")
    parser.add_argument("--questions", type=int, default=900)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("mamba-pooling.json"))
    arguments = parser.parse_args()
    told = json.loads(arguments.output.read_text(encoding="utf-8")) if arguments.output.exists() else {"rows": []}
    budget = {"steps": arguments.steps, "questions": arguments.questions}
    if told["rows"] and told["budget"] != budget:
        parser.error(f"{arguments.output} has rows of another budget, {told['budget']}: choose another --output")
    for seed in range(arguments.seeds):
        for frames in POOLING:
            for kind in ("pool", "mamba"):
                key = {"kind": kind, "frames": frames, "seed": seed}
                if not any(row | key == row for row in told["rows"]):
                    told["rows"].append(key | measured(key, arguments))
                    write(told, budget, arguments.output)
    print(json.dumps({name: value for name, value in told.items() if name != "rows"}, indent=2))


def measured(key: dict, arguments: argparse.Namespace) -> dict:
    """Train and test one row."""
    name = "{kind}-{frames}-{seed}".format(**key)
    start, model, test = (arguments.runs / f"{name}-{part}" for part in ("start", "model", "test"))
    began = time.monotonic()
    fields = {"compression.kind": key["kind"], "compression.pool_time": key["frames"]}
    if not (start / "config.json").exists():
        call("init", "--model", BUNDLED_MODEL, *settings(fields), "--seed", key["seed"], start)
    if not (model / "config.json").exists():
        steps = {"max_steps": arguments.steps, "seed": 200 + key["seed"]}
        call("train", "finetune", "--config", "nano", "--model", start, "--output", model, *settings(TRAINING | steps))
    asked = ["--num", arguments.questions, "--seed", 0, "--no-baselines", "--media-root", arguments.runs / "clips"]
    call("evaluate", "scenes", "--model", model, *asked, "--output", test, "--json")
    report = json.loads((test / "report.json").read_text(encoding="utf-8"))
    scores = [json.loads(line) for line in (test / "full.scores.jsonl").read_text(encoding="utf-8").splitlines()]
    clips = {name: number for number, name in enumerate(dict.fromkeys(score["video"] for score in scores))}
    return {
        "accuracy": report["accuracy"],
        "families": {name: round(part["accuracy"], 4) for name, part in report["families"].items()},
        "minutes": round((time.monotonic() - began) / 60, 1),
        "right": "".join(str(int(next(iter(score["metrics"].values())))) for score in scores),
        "clips": [clips[score["video"]] for score in scores],
    }


def settings(values: dict) -> list[str]:
    """As options."""
    return [text for name, value in values.items() for text in ("--set", f"{name}={value}")]


def call(*words: object) -> None:
    """Run a command; its log goes to stderr."""
    command = [sys.executable, "-m", "videopanda", *map(str, words)]
    subprocess.run(command, check=True, stdin=subprocess.DEVNULL, stdout=sys.stderr)


def write(told: dict, budget: dict, path: Path) -> None:
    """Write the rows, and the differences of the seeds that have both."""

    def right(kind: str, frames: int) -> dict[int, np.ndarray]:
        rows = (row for row in told["rows"] if (row["kind"], row["frames"]) == (kind, frames))
        return {row["seed"]: np.array([int(bit) for bit in row["right"]], float) for row in rows}

    told |= {"budget": budget, "date": time.strftime("%Y-%m-%d"), "settings": TRAINING}
    told["machine"] = f"{platform.machine()}, {torch.get_num_threads()} threads"
    told["command"] = f"python benchmarks/mamba_pooling.py --steps {budget['steps']} --questions {budget['questions']}"
    clips = np.array(told["rows"][0]["clips"])
    told["differences"] = {}
    for frames, name in POOLING.items():
        mamba, pool = right("mamba", frames), right("pool", frames)
        if both := sorted(mamba.keys() & pool.keys()):
            found = interval([mamba[seed] - pool[seed] for seed in both], clips)
            told["differences"][f"Mamba and {name}, to {name}"] = {"seeds": both, **found}
    told["rows"] = told.pop("rows")  # at the end
    head = json.dumps({key: value for key, value in told.items() if key != "rows"}, indent=1)
    lines = ",\n".join(json.dumps(row) for row in told["rows"])
    path.write_text(f'{head[:-2]},\n "rows": [\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
