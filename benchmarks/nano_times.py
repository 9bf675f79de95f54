"""How exactly the bundled model says when something happens, in scenes at other speeds and moments than usual.

    python benchmarks/nano_times.py --num 500                  # writes benchmarks/nano-times.json

The truth is what the frames tell: the times of the two between which it happens. Questions are in wordings that were
not trained on. Next to the model: the same shown one color, and the answer that takes always the same two frames.
"""

import argparse
import json
import re
import time
from collections import Counter
from pathlib import Path

import numpy as np

from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.data.worlds.scenes.exact_times import EVENTFUL, part_of, visible_events
from videopanda.data.worlds.scenes.render import Renderer
from videopanda.data.worlds.scenes.selection import TEST
from videopanda.data.worlds.scenes.world import Difficulty, make_scene
from videopanda.evaluation.scenes_report import wilson
from videopanda.inference.answer import ask
from videopanda.inference.load import load

NUM_FRAMES, BLIND_EVERY = 8, 5
WORDINGS = (
    "Give me the exact time at which {s}.",
    "Precisely when does it happen that {s}?",
    "I want to know the exact moment {s}.",
    "Exact time, please: {s}.",
    "What's the precise time when {s}?",
    "Can you pinpoint when {s}?",
    "{s} - at what exact time?",
    "When is the moment {s}, in tenths of a second?",
)
NUMBER = re.compile(r"\d+(?:\.\d+)?")


def times(answer: str) -> list[float]:
    """The numbers in an answer."""
    return [float(number) for number in NUMBER.findall(answer)]


def rows(model, processor, num: int, seed: int):
    """One question about each clip, and its answers."""
    index = number = 0
    while number < num:
        rng = np.random.default_rng([seed, index, 9])
        part = part_of(make_scene(seed, TEST, index, Difficulty(4, EVENTFUL)), NUM_FRAMES, rng)
        index += 1
        events = list(visible_events(part, rng))
        if not events:
            continue
        statement, truth = events[int(rng.integers(len(events)))]
        question = WORDINGS[number % len(WORDINGS)].format(s=statement)
        frames = Renderer(part.scene).frames(part.times)
        (said,) = ask(model, processor, Clip(frames, part.times, part.duration), [question], max_new_tokens=24)
        row = {"question": question, "truth": truth, "answer": said.answer, "frames": part.times}
        if number % BLIND_EVERY == 0:
            blank = np.broadcast_to(frames.mean((0, 1, 2)).round().astype(np.uint8), frames.shape)
            (blind,) = ask(model, processor, Clip(blank, part.times, part.duration), [question], max_new_tokens=24)
            row["one_color"] = blind.answer
        yield row
        number += 1


def report(found: list[dict]) -> dict:
    """Figures of the rows."""
    right = sum(row["answer"] == row["truth"] for row in found)
    errors = [
        abs(np.mean(times(row["answer"])) - np.mean(times(row["truth"]))) for row in found if times(row["answer"])
    ]
    said = [(f"{t:.1f}", row["frames"]) for row in found for t in times(row["answer"])]
    gaps = Counter([f"{t:.1f}" for t in row["frames"]].index(str(times(row["truth"])[0])) for row in found)
    blind = [row for row in found if "one_color" in row]
    return {
        "questions": len(found),
        "right": round(right / len(found), 4),
        "ci95": [round(v, 4) for v in wilson(right, len(found))],
        "answered_with_two_times": round(float(np.mean([len(times(row["answer"])) == 2 for row in found])), 4),
        "times_of_frames": round(float(np.mean([t in {f"{u:.1f}" for u in frames} for t, frames in said])), 4)
        if said else None,
        "median_error_seconds": round(float(np.median(errors)), 3) if errors else None,
        "seconds_between_frames": round(float(np.median([np.diff(row["frames"]).mean() for row in found])), 3),
        "always_the_same_two_frames": round(gaps.most_common(1)[0][1] / len(found), 4),
        "one_color": {"questions": len(blind), "right": sum(row["one_color"] == row["truth"] for row in blind)},
        "wrong": [{name: row[name] for name in ("question", "truth", "answer")}
                  for row in found if row["answer"] != row["truth"]][:12],
    }  # fmt: skip


def main() -> None:
    """Write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--seed", type=int, default=2041)
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("nano-times.json"))
    arguments = parser.parse_args()
    began = time.process_time()
    found = list(rows(*load(arguments.model), arguments.num, arguments.seed))
    told = {
        "command": f"python benchmarks/nano_times.py --num {arguments.num} --seed {arguments.seed}",
        "date": time.strftime("%Y-%m-%d"),
        "cpu_seconds": round(time.process_time() - began),
        **report(found),
    }
    arguments.output.write_text(json.dumps(told, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(told, indent=2))


if __name__ == "__main__":
    main()
