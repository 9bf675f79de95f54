"""How well `videopanda find` places events of Scenes in time.

    python benchmarks/find.py --num 500 --rows rows.jsonl      # writes benchmarks/find.json; resumes row by row
    python benchmarks/find.py --num 60 --seed 2033 --kind hits --blind-every 1 --rows hits.jsonl --output hits.json

One event per clip, of scenes that neither training nor the design of the search has seen (`--seed`; the search was
tuned on seed 101): an object appears, vanishes or turns another colour, two objects hit each other (each lasts the
second around its moment), an object is visible for a part of the clip, or has its new colour (states, from end to end).
Of the intervals that are found the first one counts: IoU with the true one, R1@0.5 the share with an IoU of at least
0.5. Beside it the same model shown a clip of one colour, and the best answer that looks at nothing: for each kind of
event the fixed part of the clip with the best mean IoU over these very events. Every tenth clip is also asked for
something that happens in none of its frames: how often nothing is found, as it should be. Told apart where nothing is
found: the model denies the description, or it cannot tell when.

Clips are files of 32 frames, which is what the search reads of any file.
"""

import argparse
import json
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch

from videopanda.data.worlds.scenes.dataset import draw
from videopanda.data.worlds.scenes.render import write_frames
from videopanda.data.worlds.scenes.world import COLOURS, SHAPES, Scene, make_scene
from videopanda.inference.find import NUM_FRAMES, find
from videopanda.inference.load import load

KINDS = ("appears", "vanishes", "turns", "hits", "is visible", "has its new colour")
NEVER_EVERY = 10


@dataclass(frozen=True)
class Event:
    """What happens in a scene, in words, and when."""

    kind: str
    description: str
    start: float
    end: float


def events(scene: Scene) -> Iterator[Event]:
    """All events of a scene."""

    def moment(kind: str, description: str, second: float) -> Event:
        return Event(kind, description, max(0.0, second - 0.5), min(scene.duration, second + 0.5))

    for thing in scene.things:
        leaves = min(thing.leaves, scene.duration)
        if thing.enters > 0:
            yield moment("appears", f"the {thing.name} appears", thing.enters)
        if leaves < scene.duration:
            yield moment("vanishes", f"the {thing.name} vanishes", leaves)
        if thing.enters > 0 or leaves < scene.duration:
            yield Event("is visible", f"the {thing.name} is visible", thing.enters, leaves)
        if thing.turns:
            second, colour = thing.turns
            yield moment("turns", f"the {thing.name} turns {colour}", second)
            yield Event("has its new colour", f"there is a {colour} {thing.shape}", second, scene.duration)
    pair = [thing for thing in scene.things if thing.role == "collides"]
    if pair:
        yield moment("hits", f"the {pair[0].name} hits the {pair[1].name}", pair[0].path[1][0])


def drawn(seed: int, num: int, kinds: Sequence[str]) -> Iterator[tuple[Scene, Event]]:
    """`num` events of different scenes, the kinds in turn."""
    index = number = 0
    while number < num:
        scene = make_scene(seed, "test", index)
        index += 1
        found = next((event for event in events(scene) if event.kind == kinds[number % len(kinds)]), None)
        if found is not None:
            yield scene, found
            number += 1


def absent(scene: Scene, number: int) -> str:
    """An object of a colour and a shape that the scene never shows together appears."""
    shown = {(t.colour, t.shape) for t in scene.things} | {(t.turns[1], t.shape) for t in scene.things if t.turns}
    names = [f"{colour} {shape}" for colour in COLOURS for shape in SHAPES if (colour, shape) not in shown]
    return f"the {names[number * 7 % len(names)]} {('appears', 'is visible')[number // NEVER_EVERY % 2]}"


def iou(found: tuple[float, float], event: Event) -> float:
    """Intersection over union of two intervals."""
    shared = min(found[1], event.end) - max(found[0], event.start)
    return max(0.0, shared) / (max(found[1], event.end) - min(found[0], event.start))


def ask(model: tuple, video: object, event: Event, description: str = "") -> dict:
    """The first interval that is found, and its IoU."""
    found = find(video, description or event.description, model=model)
    first = next(((one.start, one.end) for one in found.intervals), None)
    told = {"found": first, "most_likely": found.most_likely, "reason": found.reason}
    return {**told, "iou": 0.0 if first is None else iou(first, event)}


def measure(number: int, scene: Scene, event: Event, model: tuple, folder: Path, blind_every: int) -> dict:
    """One row."""
    clip, path = draw(scene, NUM_FRAMES), folder / "clip.mp4"
    write_frames(clip.frames, (scene.width, scene.height), Fraction(NUM_FRAMES, int(scene.duration)), path)
    began = time.process_time()
    row = {"number": number, "kind": event.kind, "duration": scene.duration, "true": (event.start, event.end)}
    row |= ask(model, path, event) | {"cpu_seconds": time.process_time() - began}
    if number % blind_every == 0:
        color = clip.frames.mean((0, 1, 2)).round().astype(np.uint8)
        frames = np.broadcast_to(color, clip.frames.shape)
        blank = SimpleNamespace(frames=frames, timestamps=clip.timestamps, duration=clip.duration)
        row["blind"] = ask(model, blank, event)
    if number % NEVER_EVERY == 0:
        row["never"] = ask(model, path, event, absent(scene, number))
    return row


def best_fixed(rows: list[dict]) -> tuple[float, float]:
    """Mean IoU, and share of at least 0.5, of the fixed part of the clip that is best for these events."""
    parts = [(a, b) for a in np.arange(0, 1, 0.025) for b in np.arange(a + 0.025, 1.001, 0.025)]
    table = []
    for a, b in parts:
        found = [iou((a * row["duration"], b * row["duration"]), Event("", "", *row["true"])) for row in rows]
        table.append((float(np.mean(found)), float(np.mean(np.array(found) >= 0.5))))
    return max(table)


def summary(rows: list[dict]) -> dict:
    """Figures of some rows."""
    own = np.array([row["iou"] for row in rows])
    blind = np.array([row["blind"]["iou"] for row in rows if "blind" in row])
    draws = np.random.default_rng(0).choice(own, (2000, len(own))).mean(1) if len(own) else []
    fixed = best_fixed(rows)
    return {
        "events": len(rows),
        "mIoU": round(float(own.mean()), 4),
        "mIoU_ci95": np.quantile(draws, [0.025, 0.975]).round(4).tolist(),
        "R1@0.5": round(float((own >= 0.5).mean()), 4),
        "found": round(float(np.mean([row["found"] is not None for row in rows])), 4),
        "denied": _share(rows, "not found"),
        "cannot_tell": _share(rows, "cannot tell"),
        "best_fixed_part": {"mIoU": round(fixed[0], 4), "R1@0.5": round(fixed[1], 4)},
        "one_colour": {
            "events": len(blind),
            "mIoU": round(float(blind.mean()), 4) if len(blind) else None,
            "R1@0.5": round(float((blind >= 0.5).mean()), 4) if len(blind) else None,
            "denied": _share([row["blind"] for row in rows if "blind" in row], "not found"),
        },
    }


def _share(rows: list[dict], reason: str) -> float | None:
    """Of the rows whose reason to find nothing begins so."""
    return round(float(np.mean([row["reason"].startswith(reason) for row in rows])), 4) if rows else None


def main() -> None:
    """Measure what is missing in the rows, and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--seed", type=int, default=2031)
    parser.add_argument("--kind", choices=KINDS, help="Of event; all if not given.")
    parser.add_argument("--blind-every", type=int, default=10, help="Clips per clip of one color.")
    parser.add_argument("--rows", type=Path, required=True, help="One JSON object per event; kept and continued.")
    parser.add_argument("--output", type=Path, default=Path(__file__).with_suffix(".json"))
    given = parser.parse_args()
    kinds = (given.kind,) if given.kind else KINDS
    done = [json.loads(line) for line in given.rows.read_text().splitlines()] if given.rows.exists() else []
    model = load(None, "cpu")
    with tempfile.TemporaryDirectory() as folder, given.rows.open("a") as file:
        for number, (scene, event) in enumerate(drawn(given.seed, given.num, kinds)):
            if number >= len(done):
                done.append(measure(number, scene, event, model, Path(folder), given.blind_every))
                file.write(json.dumps(done[-1]) + "\n")
                file.flush()
    rows = done[: given.num]
    fixed = [best_fixed([row for row in rows if row["kind"] == kind]) for kind in kinds]
    of_kinds = {"mIoU": round(float(np.mean([pair[0] for pair in fixed])), 4)}
    of_kinds["R1@0.5"] = round(float(np.mean([pair[1] for pair in fixed])), 4)
    never = [row["never"]["found"] is None for row in rows if "never" in row]
    report = {
        "command": shlex.join(["python", "benchmarks/find.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": f"{platform.machine()}, one thread, shared with other work",
        "model": "bundled nano",
        "frames": NUM_FRAMES,
        "all": {**summary(rows), "best_fixed_part_of_each_kind": of_kinds},
        "by_kind": {kind: summary([row for row in rows if row["kind"] == kind]) for kind in kinds},
        "what_never_happens": {"asked": len(never), "nothing_found": round(float(np.mean(never)), 4)},
        "cpu_seconds_per_event": round(float(np.mean([row["cpu_seconds"] for row in rows])), 2),
        "torch": torch.__version__,
    }
    given.output.write_text(json.dumps(report, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
