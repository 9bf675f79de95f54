"""Accuracy and speed of an ELVA over how much of the video merges, and over low frames added to the high ones.

    python benchmarks/elva_curve.py --model out/nano-elva --output out/elva-curve     # curve.json and curve.png there

*Merging* (the paper's Figure 3 in kind): the questions of `evaluate scenes`, unmerged and with a falling share of patch
tokens kept at every merge layer. Each row has its difference to the unmerged one, question by question, with a 95 %
interval (bootstrap over clips), the planner's FLOPs, and the time from decoded frames to the first token, in turns.

*Hybrid*: on the longest clips of Scenes, `--high` frames alone; the same frames with `--every` - 1 low ones between any
two of them; and all of these frames high. Differences are to the high frames alone.

Every row is written when it is measured; the same command continues after an interruption.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import torch

from videopanda.bench.timing import in_turns, interval, machine, ratios, seconds
from videopanda.data.worlds.scenes.make import clip_name, clip_questions, ensure_clip
from videopanda.data.worlds.scenes.questions import Question
from videopanda.data.worlds.scenes.world import DURATIONS, make_scene
from videopanda.evaluation.benchmarks.item import Item
from videopanda.evaluation.provenance import versions, weights_sha256
from videopanda.evaluation.reporting.report import bootstrap
from videopanda.evaluation.scenes_report import MAX_NEW_TOKENS, SCORER, scenes_report, wilson
from videopanda.evaluation.scoring.scorers import scorer
from videopanda.inference.answer import ask, build_prompt, question_messages
from videopanda.inference.batch import Prompt, prefill
from videopanda.inference.clip import encode_clips
from videopanda.inference.kv_prefix import CacheLayout
from videopanda.inference.load import load
from videopanda.models.merge_schedule import MergeSchedule, published_layers
from videopanda.plan.planner import planner_for
from videopanda.video.read import read_video

MAIN = 0.5  # the operating point of the paper
KEEPS = (0.9, 0.75, 0.6, MAIN, 0.4, 0.3, 0.25)
UNMERGED, HIGH = "unmerged", "high alone"
FILE = "curve.json"
SPLIT = "test"
FIRST_SCENE = 100_000  # of the hybrid part: others than `evaluate scenes` asks about
SPEED_QUESTION = "How many objects are there?"

Right = dict[str, tuple[str, float]]  # by question: the clip, and 1 if the answer is right


def difference(row: Right, base: Right) -> dict[str, Any]:
    """The mean of the differences question by question, in points, with its interval over clips."""
    deltas = [row[name][1] - base[name][1] for name in base]
    ends = bootstrap([([base[name][0] for name in base], deltas)])
    return {"points": round(100 * float(np.mean(deltas)), 2), "ci95": ends and [round(100 * end, 2) for end in ends]}


def accuracy(right: Right) -> dict[str, Any]:
    """Share of right answers and its interval."""
    values = [value for _, value in right.values()]
    ends = wilson(round(sum(values)), len(values))
    return {"accuracy": round(float(np.mean(values)), 4), "n": len(values), "ci95": [round(end, 4) for end in ends]}


# -- merging -----------------------------------------------------------------------------------------------------------
def schedules(layers: Sequence[int]) -> dict[str, dict[str, Any]]:
    """The settings of every row, by its name."""
    merging = {f"keep {keep:g}": {"merge.layers": list(layers), "merge.keep": keep} for keep in KEEPS}
    return {UNMERGED: {"merge.layers": []}, **{name: {**own, "merge.mode": "ratio"} for name, own in merging.items()}}


def right_of(file: Path) -> Right:
    """What a file of scores says."""
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    return {row["id"]: (row["video"], row["metrics"].get("accuracy", 0.0)) for row in rows}


def merging_row(options: argparse.Namespace, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Ask all questions with one schedule."""
    model, processor = load(options.model, "cpu", settings=settings)
    folder = options.output / name.replace(" ", "-")
    scenes_report(
        folder,
        (model, processor),
        options.model,
        options.num,
        options.seed,
        baselines=False,
        workers=1,
        media_root=options.media_root,
    )
    right = right_of(folder / "full.scores.jsonl")
    base = right_of(options.output / UNMERGED / "full.scores.jsonl")
    plan = planner_for(model, processor.video_processor).plan(processor.video_processor.num_frames, 96, 128)
    return {
        **accuracy(right),
        "difference": difference(right, base),
        "layer_tokens": plan.layer_tokens,
        "prefill_gflops": round(plan.flops["prefill"] / 1e9, 3),
    }


@torch.inference_mode()
def speeds(options: argparse.Namespace, ways: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Seconds from the decoded frames of a clip of `--speed-frames` to the first token, and the speed-up, in turns."""
    model, processor = load(options.model, "cpu")
    file = min((options.media_root / "clips").glob("*.mp4"))
    video = read_video(file, num_frames=options.speed_frames)
    layout = CacheLayout.of(model.config.get_text_config())

    def first_token(settings: Mapping[str, Any]) -> None:
        fields = {key.removeprefix("merge."): value for key, value in settings.items()}
        model.model.merge_schedule = MergeSchedule(tuple(fields.pop("layers")), **fields)
        (clip,) = encode_clips(model, processor, [video])
        prompt = build_prompt(processor, question_messages(processor, SPEED_QUESTION), [clip])
        prefill(model, layout, [Prompt(prompt, [clip])])[1].argmax().item()

    calls: dict[str, Callable[[], float]] = {
        name: lambda own=own: seconds(lambda: first_token(own))  # type: ignore[misc]  # bound for each row
        for name, own in ways.items()
    }
    in_turns(calls, 1)  # warm up
    taken = in_turns(calls, options.rounds)
    return {
        name: {"first_token_seconds": interval(values), "speedup": ratios(taken[UNMERGED], values)}
        for name, values in taken.items()
    }


# -- hybrid resolution -------------------------------------------------------------------------------------------------
def long_scenes(options: argparse.Namespace) -> Iterator[tuple[int, list[Question]]]:
    """Scenes of the longest duration with their questions, `--long` questions in all."""
    asked, index = 0, FIRST_SCENE
    while asked < options.long:
        if make_scene(options.seed, SPLIT, index).duration == max(DURATIONS):
            questions = clip_questions(options.seed, SPLIT, index)[: options.long - asked]
            asked += len(questions)
            yield index, questions
        index += 1


def shown_times(options: argparse.Namespace, name: str, duration: float) -> list[float]:
    """Seconds of the frames of one way: the high ones are the same in all ways."""
    frames = options.every * (options.high - 1) + 1
    times = (np.arange(frames) + 0.5) * duration / frames
    return list(times[:: options.every] if name == HIGH else times)


def answered(file: Path) -> dict[str, dict[str, Any]]:
    """The rows of a file of `hybrid_row`, by clip."""
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return {row["clip"]: row for row in map(json.loads, lines)}


def hybrid_row(options: argparse.Namespace, name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Ask the questions about long scenes in one way; answers are kept clip by clip."""
    model, processor = load(options.model, "cpu", settings=settings)
    judge, file = scorer(SCORER).judge, options.output / f"{name.replace(' ', '-')}.jsonl"
    done, clips = answered(file), options.output / "long"
    clips.mkdir(exist_ok=True)
    for index, questions in long_scenes(options):
        clip = clip_name(options.seed, SPLIT, index)
        if clip in done:
            continue
        path = ensure_clip(clips, options.seed, SPLIT, index)
        video = read_video(path, timestamps=shown_times(options, name, max(DURATIONS)))
        texts = [question.question for question in questions]
        answers = ask(model, processor, video, texts, max_new_tokens=MAX_NEW_TOKENS)
        right = []
        for question, answer in zip(questions, answers, strict=True):
            item = Item("", clip, question.question, "short_answer", answers=(question.answer,))
            verdict = judge(item, answer.answer)
            right.append(verdict.metrics["accuracy"] if verdict else 0.0)
        done[clip] = {"clip": clip, "right": right, "tokens": answers[0].visual_tokens}
        with file.open("a") as rows:
            rows.write(json.dumps(done[clip]) + "\n")
    right_of_way, right_of_high = (
        {f"{clip}/{i}": (clip, value) for clip, row in rows.items() for i, value in enumerate(row["right"])}
        for rows in (done, answered(options.output / f"{HIGH.replace(' ', '-')}.jsonl"))
    )
    tokens = float(np.mean([row["tokens"] for row in done.values()]))
    return {
        **accuracy(right_of_way),
        "difference": difference(right_of_way, right_of_high),
        "tokens": round(tokens, 1),
    }


def hybrid_ways(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """The settings of the three ways."""
    low = {"hybrid.every": options.every, "hybrid.policy": "every", "hybrid.scale": 0.5}
    return {HIGH: {"hybrid.every": 0}, "with low between": low, "all high": {"hybrid.every": 0}}


# -- the record --------------------------------------------------------------------------------------------------------
def draw(record: Mapping[str, Any], path: Path) -> None:
    """Accuracy with its interval over the share kept, the speed-up behind it; the three hybrid ways beside."""
    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4), layout="constrained", width_ratios=(2, 1))
    rows, bars = record["merging"], left.twinx()
    places = range(len(rows))
    bars.bar(places, [record["speed"][name]["speedup"]["median"] for name in rows], color="#a9c6e3", width=0.6)
    bars.set_ylabel(f"speed-up of the first token, {record['settings']['speed_frames']} frames")
    left.set_zorder(bars.get_zorder() + 1)
    left.patch.set_visible(False)
    for axes, part in ((left, rows), (right, record["hybrid"])):
        values = [100 * row["accuracy"] for row in part.values()]
        ends = [[100 * abs(row["ci95"][end] - row["accuracy"]) for row in part.values()] for end in (0, 1)]
        axes.errorbar(
            range(len(part)), values, yerr=ends, fmt="o-" if axes is left else "o", color="#222222", capsize=3
        )
        axes.set_ylabel("right answers (%)")
    left.set_xticks(places, [name.removeprefix("keep ") for name in rows])
    left.set_xlabel("patch tokens kept at each of the layers " + ", ".join(map(str, record["settings"]["layers"])))
    names = [f"{name}\n{row['tokens']:.0f} tokens" for name, row in record["hybrid"].items()]
    right.set_xticks(range(len(names)), names)
    right.margins(x=0.2)
    figure.savefig(path, dpi=150)
    plt.close(figure)


def arguments() -> argparse.Namespace:
    """What the command line says."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--media-root", type=Path, help="scenes of the same number and seed that exist already")
    parser.add_argument("--num", type=int, default=2000, help="questions per schedule")
    parser.add_argument("--long", type=int, default=1200, help="questions about long clips")
    parser.add_argument("--seed", type=int, default=11)
    parser.add_argument("--layers", type=int, nargs="+", help="default: the model's own, or 3, 9 and 17 of 28, scaled")
    parser.add_argument("--high", type=int, default=4, help="high frames of the hybrid part")
    parser.add_argument("--every", type=int, default=3, help="one frame in so many is high")
    parser.add_argument("--speed-frames", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=15)
    return parser.parse_args()


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The record of all rows; those that the output folder has already are not measured again."""
    if not options.layers:
        config = load(options.model, "cpu")[0].config
        own = getattr(config, "merge_config", None)
        options.layers = (own and own.layers) or published_layers(config.get_text_config().num_hidden_layers)
    options.output.mkdir(parents=True, exist_ok=True)
    options.media_root = options.media_root or options.output / "scenes"
    file = options.output / FILE
    settings = {name: value for name, value in vars(options).items() if name not in ("model", "output", "media_root")}
    settings["model_sha256"] = weights_sha256(options.model)
    record: dict[str, Any] = {
        "what": __doc__.splitlines()[0],
        "command": shlex.join(["python", "benchmarks/elva_curve.py", *sys.argv[1:]]),
        "date": time.strftime("%Y-%m-%d"),
        "machine": machine(),
        "versions": versions(),
        "settings": settings,
        "merging": {},
        "hybrid": {},
        "speed": {},
    }
    if file.exists():
        record = json.loads(file.read_text())
        if record["settings"] != settings:
            raise SystemExit(f"{file} was measured with other settings or weights: choose another --output")

    def keep(part: str, rows: dict[str, dict[str, Any]]) -> None:
        record[part] |= rows
        draft = file.with_suffix(".part")
        draft.write_text(json.dumps(record, indent=1) + "\n")
        draft.replace(file)
        for name, row in rows.items():
            print(part, name, json.dumps(row), flush=True)

    ways = schedules(options.layers)

    def merge(names: Iterable[str]) -> None:
        for name in names:
            if name not in record["merging"]:
                keep("merging", {name: merging_row(options, name, ways[name])})

    merge([UNMERGED, f"keep {MAIN:g}"])  # what is asked first, first
    for name, way in hybrid_ways(options).items():
        if name not in record["hybrid"]:
            keep("hybrid", {name: hybrid_row(options, name, way)})
    if not record["speed"]:
        keep("speed", speeds(options, ways))
    merge(ways)
    record["merging"] = {name: record["merging"][name] for name in ways}
    return record


if __name__ == "__main__":
    chosen = arguments()
    draw(measured(chosen), (chosen.output / FILE).with_suffix(".png"))
