"""Three classes of clips that differ by motion only, taught to the bundled model by `videopanda teach`.

    python benchmarks/teach_motion.py --output out/teach_motion       # writes benchmarks/teach-motion.json

A thing circles, swings from left to right, or hops up and down: shape, colour, size, place, background, speed and phase
are drawn at random in every class. 30 clips per class; the test recordings are in no training row. 24 of them say
little, so the model is also measured on 150 fresh clips.
"""

import argparse
import json
import platform
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from videopanda.data.worlds.scenes.render import write_clip
from videopanda.data.worlds.scenes.world import COLOURS, SHAPES, Difficulty, Scene, Thing, make_scene
from videopanda.inference.answer import ask
from videopanda.inference.load import load

CLASSES = ("circling", "swinging", "hopping")
QUESTION = "How does the thing move?"


def moving_scene(label: str, seed: int) -> Scene:
    """A scene whose first thing moves in the way of its class, with a random phase, speed and place."""
    rng = np.random.default_rng([seed, CLASSES.index(label)])
    scene = make_scene(seed, "train", int(rng.integers(1 << 30)), Difficulty(max_things=1, themes=("still",)))
    width, height = scene.extent
    reach, turns, phase = rng.uniform(0.2, 0.28), rng.choice([1.0, 1.5, 2.0]), rng.uniform(0, 2 * np.pi)
    sense = rng.choice([-1.0, 1.0])
    center = rng.uniform(0.42, width - 0.42), rng.uniform(0.42, height - 0.42)
    path = []
    for second in np.linspace(0, scene.duration, 65):
        angle = phase + sense * 2 * np.pi * turns * second / scene.duration
        x, y = reach * np.cos(angle), reach * np.sin(angle)
        path.append((second, center[0] + x * (label != "hopping"), center[1] + y * (label != "swinging")))
    shape, colour = str(rng.choice(SHAPES)), str(rng.choice(list(COLOURS)))
    thing = Thing(shape, colour, "small", rng.uniform(0.23, 0.27), tuple(path))
    return replace(scene, things=(thing,))


def write_clips(folder: Path, numbers: range) -> None:
    """Write the clips of all classes that are not there yet."""
    for label in CLASSES:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for number in numbers:
            path = folder / label / f"{number}.mp4"
            if not path.exists():
                write_clip(moving_scene(label, number), path)


def fresh_accuracy(model: Path, folder: Path, numbers: range) -> float:
    """Share of right answers on clips that are neither in the training nor in the test part."""
    write_clips(folder, numbers)
    loaded = load(model)
    clips = [(label, folder / label / f"{number}.mp4") for label in CLASSES for number in numbers]
    said = [ask(*loaded, path, [QUESTION], max_new_tokens=8)[0].answer for _, path in clips]
    return sum(answer.strip(" .") == label for answer, (label, _) in zip(said, clips)) / len(clips)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--each", type=int, default=30)
    parser.add_argument("--fresh", type=int, default=50, help="further clips per class to measure on")
    arguments = parser.parse_args()
    write_clips(arguments.output / "clips", range(arguments.each))
    words = [
        "teach",
        str(arguments.output / "clips"),
        "--question",
        QUESTION,
        "--output",
        str(arguments.output / "model"),
    ]
    began, before = time.time(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-m", "videopanda", *words, "--json"], stdout=subprocess.PIPE, check=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    report = json.loads(done.stdout)
    del report["errors"]
    record = {
        "command": "python benchmarks/teach_motion.py",
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, {torch.get_num_threads()} threads, shared with other work",
        "cpu_seconds": round(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime),
        "wall_seconds": round(time.time() - began),
        "clips": len(CLASSES) * arguments.each,
        **report,
        "fresh_clips": len(CLASSES) * arguments.fresh,
        "fresh_accuracy": fresh_accuracy(
            arguments.output / "model", arguments.output / "fresh", range(1000, 1000 + arguments.fresh)
        ),
    }
    Path(__file__).with_name("teach-motion.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))
