"""Needle accuracy over the length of a clip: nano-long in its memory, and what else could be shown to it.

    python benchmarks/long_video.py --data out/long --output benchmarks/long-video.json --picture docs/images/needle.png

Asks all questions about the first clips of each length of the frozen test split (`videopanda scenes make --long`).
Methods, all with the same weights, which were trained for "memory":

memory        every second, at most 2,048 visual tokens, steps merged by similarity: `answer --fps 1`
memory 512    the same with at most 512 tokens
pooling       every second; as many consecutive steps are averaged as 2,048 tokens require (compression.pool_time)
sampling      every second; every n-th step is kept (compression.keep_every)
tome          every second; similar cells of four steps merge (compression.merge_tokens), after pooling to the budget
uniform 8, uniform 64, uniform all     frames at even distances: 8, 64, and as many as 2,048 tokens allow
last 4        the last 4 seconds: the baseline of streaming
blind         the question and the length of the clip alone
file          "memory", from H.264 files that are written to --data and read by the command's own path
motion 64     64 frames by the sizes of packets of these files
look twice    "file" first, then 64 frames where the question points to

All but the last three are shown frames as they are drawn: chunks that repeat are encoded once, so hours cost seconds.
"file" tells what the difference to decoded video amounts to; it and the methods after it are asked about fewer clips.
Results are added to a .jsonl file beside the output, and a run that is repeated continues from there.
"""

import argparse
import json
import os
import platform
import time
from collections import defaultdict
from collections.abc import Callable
from datetime import date
from fractions import Fraction
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from nano_long import CHUNK, Encoder, Seen, remembered
from torch import Tensor

from videopanda.data.worlds.long.make import FROZEN, frames, name_of, pictures
from videopanda.data.worlds.long.world import FPS, HEIGHT, WIDTH, LongQuestion, Story, make_questions, make_story
from videopanda.data.worlds.scenes.render import write_frames
from videopanda.evaluation.needle import DEPTHS, write_needle
from videopanda.evaluation.scenes_report import wilson
from videopanda.inference.answer import Chat, build_prompt, question_messages
from videopanda.inference.clip import EncodedClip
from videopanda.inference.engine import Engine
from videopanda.inference.load import load
from videopanda.inference.look_twice import ask_twice
from videopanda.inference.request import Failed, GenerateRequest
from videopanda.models.compression import group_means, merge_similar, pooled_groups
from videopanda.models.compression_config import CompressionConfig

BUDGET = 2048
CLIPS = {"memory": "1:20,3:20,10:20,30:20,60:20,120:20", "file": "1:10,3:10,10:10,30:4,60:2,120:1"}


def file_of(story: Story, data: Path) -> Path:
    """The clip as an H.264 file, written once."""
    path = data / "clips" / f"{name_of(story)}.mp4"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        write_frames(frames(story), (WIDTH, HEIGHT), Fraction(FPS).limit_denominator(1001), part)
        part.replace(path)
    return path


def from_file(**options: Any) -> Callable[..., list[str]]:
    """Answers of `Chat` about a file, with these options."""

    def answers(model: Any, processor: Any, story: Story, questions: list[str], data: Path) -> list[str]:
        chat = Chat(model, processor, file_of(story, data), max_new_tokens=6, **options)
        return [answer.answer for answer in chat.ask_each(questions)]

    return answers


def frames_at(times: Callable[[Story], list[float]], seconds: float | None = None) -> Callable[..., list[str]]:
    """Answers of `Chat` about the frames at some seconds, of a clip as long as the story or as told."""

    def answers(model: Any, processor: Any, story: Story, questions: list[str], data: Path) -> list[str]:
        moments = [int(moment * FPS) / FPS for moment in times(story)]
        shown = np.stack(list(pictures(story, moments)))
        video = SimpleNamespace(frames=shown, timestamps=np.array(moments), duration=seconds or story.seconds)
        chat = Chat(model, processor, video, max_new_tokens=6)
        return [answer.answer for answer in chat.ask_each(questions)]

    return answers


def evenly(count: int) -> Callable[[Story], list[float]]:
    """The middles of so many equal parts; all frames, where there are fewer."""

    def times(story: Story) -> list[float]:
        parts = min(count, round(story.seconds * FPS))
        return [(i + 0.5) * story.seconds / parts for i in range(parts)]

    return times


def twice(model: Any, processor: Any, story: Story, questions: list[str], data: Path) -> list[str]:
    """Answers of two looks."""
    found = ask_twice(model, processor, file_of(story, data), questions, num_frames=64, max_new_tokens=6)
    return [answer.answer for answer in found]


def blind(model: Any, processor: Any, story: Story, questions: list[str], data: Path) -> list[str]:
    """Answers to the questions alone, with the length of the clip as the prompt tells it."""
    told = processor.video_text(torch.zeros(0, 4), story.seconds, None)
    prompts = [
        build_prompt(processor, question_messages(processor, told + text, has_video=False)) for text in questions
    ]
    return replies(model, processor, [GenerateRequest(prompt, [], 6) for prompt in prompts])


def replies(model: Any, processor: Any, requests: list[GenerateRequest]) -> list[str]:
    """What the model answers."""
    results = Engine(model, processor).generate(requests)
    assert not any(isinstance(result, Failed) for result in results), results
    return [result.text for result in results]  # type: ignore[union-attr]  # a failure ends the run here


def from_drawn(reduce: Callable[[Any, Encoder, Seen], tuple[Tensor, Tensor]]) -> Callable[..., list[str]]:
    """Answers about the tokens (V, E) and their layout that `reduce` makes of a clip at one frame per second."""

    @torch.inference_mode()
    def answers(model: Any, processor: Any, story: Story, questions: list[str], data: Path) -> list[str]:
        encoder = Encoder(model, processor)
        try:
            tokens, layout = reduce(model, encoder, encoder(story))
        finally:
            model.model.stab.coordinates = encoder.coordinates
        text = processor.video_text(layout, story.seconds, None)
        clip = EncodedClip(name_of(story), "video", text, tokens=tokens, layout=layout)
        prompts = [build_prompt(processor, question_messages(processor, text), [clip]) for text in questions]
        return replies(model, processor, [GenerateRequest(prompt, [clip], 6) for prompt in prompts])

    return answers


def numbered(encoder: Encoder, count: int) -> Tensor:
    """The layout of so many steps."""
    layout = encoder.layout.repeat(count, 1)
    layout[:, 0] = torch.arange(count).repeat_interleave(len(encoder.layout))
    return layout


def in_memory(model: Any, encoder: Encoder, seen: Seen, budget: int) -> tuple[Tensor, Tensor]:
    """`TokenMemory`, as from files."""
    kept = remembered(encoder, model.model.projector(encoder.steps(seen)), budget)
    return kept.flatten(0, 1), numbered(encoder, len(kept))


def pooled(model: Any, encoder: Encoder, seen: Seen) -> tuple[Tensor, Tensor]:
    """Averages of as many steps as the budget requires: pool_time = 4 × that many."""
    steps = encoder.steps(seen)
    layout = numbered(encoder, len(steps))
    times = -(-steps.shape[0] * steps.shape[1] // BUDGET)
    groups = pooled_groups(layout, torch.zeros(len(layout), dtype=torch.long), times, 1)
    return model.model.projector(group_means(steps.flatten(0, 1), groups)), groups.layout


def sampled(model: Any, encoder: Encoder, seen: Seen) -> tuple[Tensor, Tensor]:
    """Every n-th step: keep_every."""
    steps = encoder.steps(seen)
    steps = steps[:: -(-steps.shape[0] * steps.shape[1] // BUDGET)]
    return model.model.projector(steps).flatten(0, 1), numbered(encoder, len(steps))


def tome(model: Any, encoder: Encoder, seen: Seen) -> tuple[Tensor, Tensor]:
    """Cells of four steps merge to half, then pooling to the budget."""
    config = CompressionConfig(kind="pool", merge_tokens=int(encoder.is_cell.sum()) * 2, merge_frames=4)
    steps = encoder.steps(seen)
    share = 4 * (steps.shape[1] - int(encoder.is_cell.sum())) + config.merge_tokens  # tokens of four steps
    times = max(1, -(-steps.shape[0] // 4 * share // BUDGET))
    layout = numbered(encoder, len(steps))
    groups = pooled_groups(layout, torch.zeros(len(layout), dtype=torch.long), times, 1)
    tokens = group_means(steps.flatten(0, 1), groups)
    visual = torch.zeros(len(tokens), dtype=torch.long)
    tokens, kept = merge_similar(tokens, groups.layout, visual, config.merge_tokens, config.merge_frames)
    return model.model.projector(tokens), groups.layout[kept]


METHODS: dict[str, Callable[..., list[str]]] = {
    "blind": blind,
    "last 4": frames_at(lambda story: [story.seconds - 4 + i for i in range(4)], 4.0),
    "uniform 8": frames_at(evenly(8)),
    "memory": from_drawn(partial(in_memory, budget=BUDGET)),
    "uniform 64": frames_at(evenly(64)),
    "pooling": from_drawn(pooled),
    "sampling": from_drawn(sampled),
    "tome": from_drawn(tome),
    "memory 512": from_drawn(partial(in_memory, budget=512)),
    "uniform all": frames_at(evenly(BUDGET // 9 * CHUNK)),
    "file": from_file(fps=1.0, max_visual_tokens=BUDGET),
    "motion 64": from_file(num_frames=64, frames_by="motion"),
    "look twice": twice,
}
OF_FILES = ("file", "motion 64", "look twice")


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accuracy with 95 % intervals for every method and length: all questions, needles alone, and families."""
    parts: dict[tuple[str, float], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        part = parts[row["method"], row["minutes"]]
        part["all"].append(row["right"])
        part[row["family"]].append(row["right"])
        if row["family"] in ("which", "when", "order"):
            part["needles"].append(row["right"])
    order = {name: place for place, name in enumerate(METHODS)}
    found = []
    for (method, minutes), part in sorted(parts.items(), key=lambda item: (order[item[0][0]], item[0][1])):
        entry: dict[str, Any] = {"method": method, "minutes": minutes}
        for name, right in part.items():
            low, high = wilson(sum(right), len(right))
            entry[name] = {"accuracy": round(sum(right) / len(right), 4), "n": len(right)}
            entry[name]["ci95"] = [round(low, 3), round(high, 3)]
        found.append(entry)
    return found


def heat_map(rows: list[dict[str, Any]], picture: Path) -> None:
    """Draw accuracy of the memory by length and depth, as `videopanda evaluate needle` does."""
    cells: dict[tuple[float, int], list[bool]] = defaultdict(list)
    for row in rows:
        if row["method"] == "memory" and row["depth"] is not None:
            cells[row["minutes"], min(DEPTHS - 1, int(DEPTHS * row["depth"]))].append(row["right"])
    report = {
        "scores": "memory",
        "lengths": [{"minutes": minutes} for minutes in sorted({minutes for minutes, _ in cells})],
        "cells": [
            {
                "minutes": minutes,
                "depth": [part / DEPTHS, (part + 1) / DEPTHS],
                "accuracy": sum(right) / len(right),
                "n": len(right),
            }
            for (minutes, part), right in sorted(cells.items())
        ],
    }
    files = write_needle(report, picture.parent / ".needle")
    files[1].replace(picture)
    files[0].unlink()
    files[0].parent.rmdir()


def main() -> None:
    """Ask, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="nano-long")
    parser.add_argument("--data", type=Path, required=True, help="folder of clips")
    parser.add_argument("--clips", help="minutes:clips, …; default: what the figures were made with")
    parser.add_argument("--methods", default=",".join(METHODS))
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows_file = options.output.with_suffix(".jsonl")
    rows = [json.loads(line) for line in rows_file.read_text().splitlines()] if rows_file.exists() else []
    done = {(row["method"], row["clip"]) for row in rows}
    model, processor = load(options.model, "cpu")
    for method in options.methods.split(","):
        clips_of = (options.clips or CLIPS["file" if method in OF_FILES else "memory"]).split(",")
        counts = {float(minutes): int(clips) for minutes, clips in (part.split(":") for part in clips_of)}
        for minutes, clips in counts.items():
            for index in range(clips):
                story = make_story(FROZEN["seed"], FROZEN["split"], index, minutes)
                if (method, name_of(story)) in done:
                    continue
                questions: list[LongQuestion] = make_questions(story)
                began = time.perf_counter()
                texts = METHODS[method](model, processor, story, [q.question for q in questions], options.data)
                for question, text in zip(questions, texts):
                    row = {"method": method, "clip": name_of(story), "minutes": minutes, "family": question.family}
                    row |= {"depth": question.depth, "truth": question.answer, "answer": text}
                    row["right"] = text.strip().rstrip(".").lower() == question.answer
                    row["seconds"] = round((time.perf_counter() - began) / len(questions), 2)
                    rows.append(row)
                    with rows_file.open("a") as file:
                        file.write(json.dumps(row) + "\n")
            write(options, rows)
    write(options, rows)
    if options.picture:
        heat_map(rows, options.picture)


def write(options: argparse.Namespace, rows: list[dict[str, Any]]) -> None:
    """Write the figures so far."""
    record = {
        "command": "python benchmarks/long_video.py --data out/long --output benchmarks/long-video.json",
        "model": options.model,
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}, shared with other work; one thread",
        "date": date.today().isoformat(),
        "rows": summary(rows),
    }
    options.output.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
