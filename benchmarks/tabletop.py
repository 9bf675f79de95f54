"""How fast the 3-D world is drawn, and how far one gets without looking at it.

    python benchmarks/tabletop.py --output benchmarks/tabletop.json            # needs videopanda[worlds]

CPU seconds of one process, in two ways: the eight frames that training sees, drawn and encoded as an H.264 file; and
the whole clip at its own frame rate, as `videopanda scenes make --world tabletop` writes it.
"""

import argparse
import json
import platform
import tempfile
import time
from collections import Counter, defaultdict
from fractions import Fraction
from importlib.metadata import version
from pathlib import Path

from videopanda.data.worlds.scenes.make import clip_questions
from videopanda.data.worlds.scenes.render import write_frames
from videopanda.data.worlds.tabletop.questions import FAMILIES
from videopanda.data.worlds.tabletop.render import draw, write_clip
from videopanda.data.worlds.tabletop.world import make_scene


def speed(clips: int, folder: Path) -> dict[str, float]:
    """Clips per CPU second, after ten that warm up."""
    scenes = [make_scene(0, "train", index) for index in range(clips + 10)]
    for scene in scenes[:10]:
        draw(scene, 8)
    found = {}
    for name in ("8 frames, drawn", "8 frames, drawn and encoded", "whole clip, drawn and encoded"):
        began = time.process_time()
        for scene in scenes[10:]:
            if name.startswith("whole"):
                write_clip(scene, folder / "clip.mp4")
                continue
            clip = draw(scene, 8)
            if "encoded" in name:
                write_frames(clip.frames, (scene.width, scene.height), Fraction(2), folder / "clip.mp4")
        found[name] = round(clips / (time.process_time() - began), 1)
    return found


def floor(clips: int) -> dict[str, float]:
    """The share of the most frequent answer of each family, in the questions of written data."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for index in range(clips):
        for question in clip_questions(0, "test", index, "tabletop"):
            answers[question.family][question.answer] += 1
    shares = {name: round(max(answers[name].values()) / answers[name].total(), 4) for name in FAMILIES}
    return {"mean of families": round(sum(shares.values()) / len(shares), 4), **shares}


def main() -> None:
    """Measure and write the file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=60)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measured = speed(given.clips, Path(folder))
    report = {
        "command": "python benchmarks/tabletop.py --output benchmarks/tabletop.json",
        "machine": {"processor": platform.machine(), "panda3d": version("panda3d"), "av": version("av")},
        "date": time.strftime("%Y-%m-%d"),
        "clips": given.clips,
        "clips_per_cpu_second": measured,
        "most_frequent_answer": floor(3000),
    }
    given.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
