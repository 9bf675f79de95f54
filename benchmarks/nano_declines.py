"""How often the bundled model says that it cannot tell: about real clips, and where a scene does not answer.

    python benchmarks/nano_declines.py --clips shared/media --questions shared/annotations/activitynet-qa/test_q.json

`--clips`: a folder of footage that the model was not trained on; every readable video in it is asked six questions.
`--questions`: a JSON list of objects with a "question" about other videos; they are asked about scenes. How often the
model declines falsely is in the reports of `videopanda evaluate scenes`.
"""

import argparse
import json
from pathlib import Path

import numpy as np

import videopanda
from videopanda.data.worlds.scenes.dataset import draw
from videopanda.data.worlds.scenes.outside import unanswerable
from videopanda.data.worlds.scenes.selection import TEST
from videopanda.data.worlds.scenes.wordings import DECLINE, outside_question, reworded
from videopanda.data.worlds.scenes.world import make_scene
from videopanda.evaluation.scenes_report import wilson
from videopanda.inference.answer import ask
from videopanda.inference.load import load
from videopanda.video.read import VideoReadError

ABOUT_CLIPS = (
    "How many objects are there in total?",
    "What shape is the red object?",
    "Which way does the white circle move?",
    "When does the blue object appear?",
    "What is happening?",
    "what color is the big one",
)
MAX_NEW_TOKENS = 32


def share(answers):
    """How many of the answers decline, with the interval of Wilson and a few of the others."""
    declined = sum(answer == DECLINE for _, answer in answers)
    return {
        "declined": round(declined / len(answers), 4),
        "n": len(answers),
        "ci95": [round(v, 4) for v in wilson(declined, len(answers))],
        "others": [f"{question} {answer}" for question, answer in answers if answer != DECLINE][:12],
    }


def real_clips(model, processor, folder):
    """Six questions about every video below a folder that can be read."""
    answers, clips = [], 0
    for path in sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix not in (".md", ".txt", ".json")):
        try:
            found = ask(model, processor, path, list(ABOUT_CLIPS), max_new_tokens=MAX_NEW_TOKENS)
        except (VideoReadError, ValueError) as error:
            print(f"{path.name}: {error}", flush=True)
            continue
        clips += 1
        answers += [(f"{path.name}: {a.question}", a.answer) for a in found]
    return {**share(answers), "clips": clips}


def about_scenes(model, processor, num, seed, ask_about):
    """`num` scenes, each asked what `ask_about` makes of it."""
    answers = []
    for index in range(num):
        scene, rng = make_scene(seed, TEST, index), np.random.default_rng([seed, index, 7])
        questions = [ask_about(scene, rng)]
        found = ask(model, processor, draw(scene, 8), questions, max_new_tokens=MAX_NEW_TOKENS)
        answers += [(a.question, a.answer) for a in found]
    return share(answers)


def main():
    """Print one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--clips", type=Path)
    parser.add_argument("--questions", type=Path)
    parser.add_argument("--num", type=int, default=500)
    parser.add_argument("--seed", type=int, default=11)
    arguments = parser.parse_args()
    model, processor = load(arguments.model)
    asked = {
        "absent_as_written": lambda scene, rng: unanswerable(scene, rng).question,
        "absent_held_out": lambda scene, rng: reworded(unanswerable(scene, rng), "held_out", rng).question,
        "outside_held_out": lambda _, rng: outside_question("held_out", rng).question,
    }
    if arguments.questions:
        texts = [row["question"] for row in json.loads(arguments.questions.read_text(encoding="utf-8"))]
        asked["of_other_videos"] = lambda _, rng: texts[int(rng.integers(len(texts)))]
    report = {name: about_scenes(model, processor, arguments.num, arguments.seed, make) for name, make in asked.items()}
    if arguments.clips:
        report["real_clips"] = real_clips(model, processor, arguments.clips)
    print(json.dumps({"versions": {"videopanda": videopanda.__version__}, **report}, indent=2))


if __name__ == "__main__":
    main()
