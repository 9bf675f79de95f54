"""Whether the bundled model answers in bfloat16 as in float32, and what it costs on a CPU.

    python benchmarks/dtype_answers.py --output benchmarks/dtype-answers.json

Questions about unseen scenes, ten of each, asked in both types in turns; CPU seconds are those of the process.
"""

import argparse
import json
import time
from datetime import date
from pathlib import Path

from videopanda.bench.timing import machine
from videopanda.data.worlds.scenes.dataset import ScenesDataset
from videopanda.inference.answer import ask
from videopanda.inference.load import load

TYPES = ("float32", "bfloat16")
PER_SCENE = 10


def measure(num: int, seed: int) -> dict:
    """Share of equal answers, accuracy and CPU seconds of each type, on `num` scenes."""
    models = {name: load(None, "cpu", name) for name in TYPES}
    scenes = ScenesDataset(num, seed, "test", captions=0, chats=0.0)
    said, seconds, truth = {name: [] for name in TYPES}, dict.fromkeys(TYPES, 0.0), []
    for index in range(num):
        sample = scenes[index]
        turns = [conversation[0] for conversation in sample.conversations][:PER_SCENE]
        questions = [turn.question.replace("<video>", "").strip() for turn in turns]
        truth += [turn.answer for turn in turns]
        for name, (model, processor) in models.items():
            began = time.process_time()
            said[name] += [one.answer for one in ask(model, processor, sample.videos[0], questions, max_new_tokens=32)]
            seconds[name] += time.process_time() - began
    return {
        "questions": len(truth),
        "equal_answers": sum(a == b for a, b in zip(*said.values())) / len(truth),
        "accuracy": {name: sum(a == b for a, b in zip(said[name], truth)) / len(truth) for name in TYPES},
        "cpu_seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=40, help="number of scenes")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    report = {
        "command": f"python benchmarks/dtype_answers.py --num {options.num} --seed {options.seed}",
        "date": str(date.today()),
        "machine": machine(),
        **measure(options.num, options.seed),
    }
    text = json.dumps(report, indent=1)
    if options.output:
        options.output.write_text(text + "\n", encoding="utf-8")
    print(text)


if __name__ == "__main__":
    main()
