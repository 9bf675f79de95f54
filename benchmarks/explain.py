"""Whether `answer --explain` finds the frames that an answer rests on, on Scenes whose needle is in known frames.

    python benchmarks/explain.py --num 80 --seed 31      # writes benchmarks/explain.json

Every clip shows one or two things all the time, and another one in k of the eight frames that the model looks at (k is
1, 2 or 3, in a row). The question asks for the shape or the size of that one. Counted are clips that are answered
right: how often the k frames whose absence lowers the probability of the answer most are exactly the k true ones, and
which share of them is true; beside it the same for k frames drawn at random.
"""

import argparse
import json
import platform
import tempfile
import time
from dataclasses import replace
from math import comb
from pathlib import Path

import numpy as np
import torch

from videopanda.data.worlds.scenes.render import write_clip
from videopanda.data.worlds.scenes.world import COLOURS, SHAPES, SIZES, Difficulty, Scene, Thing, make_scene
from videopanda.inference.explain import explain
from videopanda.inference.load import load

FRAMES = 8


def needle_scene(seed: int, number: int) -> tuple[Scene, str, str, list[int]]:
    """A scene, a question about the thing that is seen in few frames, the answer, and those frames."""
    rng = np.random.default_rng([2026, seed, number])
    scene = make_scene(seed, "test", 100_000 + number, Difficulty(max_things=2, themes=("still",)))
    count, first = int(rng.integers(1, 4)), 0
    first = int(rng.integers(0, FRAMES - count + 1))
    part = scene.duration / FRAMES
    free = [colour for colour in COLOURS if colour not in {thing.colour for thing in scene.things}]
    colour, shape, size = str(rng.choice(free)), str(rng.choice(SHAPES)), str(rng.choice(list(SIZES)))
    diameter = float(rng.uniform(*SIZES[size]))
    width, height = scene.extent
    x, y = rng.uniform(diameter / 2, width - diameter / 2), rng.uniform(diameter / 2, height - diameter / 2)
    needle = Thing(shape, colour, size, diameter, ((0.0, x, y),), first * part, (first + count) * part)
    asked = [(f"What shape is the {colour} object?", shape), (f"Is the {colour} {shape} small or large?", size)]
    question, answer = asked[int(rng.integers(2))]
    return replace(scene, things=(*scene.things, needle)), question, answer, list(range(first, first + count))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--num", type=int, default=80)
    parser.add_argument("--seed", type=int, default=31, help="The method was designed on seed 7.")
    given = parser.parse_args()
    number = given.num
    model, processor = load(None, "cpu")
    began = time.process_time()
    rows = []
    with tempfile.TemporaryDirectory() as place:
        for i in range(number):
            scene, question, answer, true = needle_scene(given.seed, i)
            clip = Path(place, "clip.mp4")
            write_clip(scene, clip)
            found = explain(model, processor, clip, question, regions=False)
            top = found.ranking[: len(true)]
            hits = len(set(top) & set(true))
            rows.append(
                {"k": len(true), "right": str(found.answer) == answer, "hits": hits, "exact": hits == len(true)}
            )
    answered = [row for row in rows if row["right"]]

    def measured(part: list[dict]) -> dict:
        """How often the frames were found."""
        return {
            "clips": len(part),
            "top_k_exact": round(float(np.mean([row["exact"] for row in part])), 4),
            "top_k_share": round(float(np.mean([row["hits"] / row["k"] for row in part])), 4),
            "random_exact": round(float(np.mean([1 / comb(FRAMES, row["k"]) for row in part])), 4),
            "random_share": round(float(np.mean([row["k"] / FRAMES for row in part])), 4),
        }

    record = {
        "command": f"python benchmarks/explain.py --num {number} --seed {given.seed}",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, one thread, shared with other work",
        "model": "bundled nano",
        "asked": len(rows),
        "answered_right": len(answered),
        **measured(answered),
        "by_k": {k: measured([row for row in answered if row["k"] == k]) for k in (1, 2, 3)},
        "cpu_seconds_per_clip": round((time.process_time() - began) / number, 2),
        "torch": torch.__version__,
    }
    Path(__file__).with_suffix(".json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
