"""Exact-match accuracy on Scenes, with the baselines that tell whether a model looks at the video at all.

    report = evaluate(model, processor, num=2000)         # or: videopanda evaluate scenes --num 2000
    report["accuracy"], report["families"]["speed"]["accuracy"], report["baselines"]["blind"]["accuracy"]

Every clip is written as an H.264 file and read back with `read_video`, as a user's would be. Every question stands
alone in its prompt. What cannot be read counts as wrong and is listed.
"""

import hashlib
import json
import math
import multiprocessing
import os
import platform
import re
import tempfile
import time
from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import transformers
from rich import box
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from videopanda import __version__
from videopanda.data.worlds.scenes.dataset import Clip
from videopanda.data.worlds.scenes.make import QUESTIONS_PER_CLIP, clip_name, clip_questions, write_and_read
from videopanda.data.worlds.scenes.questions import FAMILIES, Question
from videopanda.inference.answer import EncodedClip, Message, encode, question_messages, reply
from videopanda.video.read import Video

BASELINES = ("blind", "one_frame", "shuffled", "wrong_video")
SPLIT = "test"
MAX_NEW_TOKENS = 16  # the longest right answer is two words

_Row = dict[str, Any]


# -- what is asked -----------------------------------------------------------------------------------------------------
@dataclass(frozen=True)
class ClipPlan:
    """The questions that are asked about one scene."""

    index: int
    questions: tuple[Question, ...]


def quotas(num: int) -> dict[str, int]:
    """Questions per family: as even as `num` allows, the first families take the rest."""
    if num < len(FAMILIES):
        raise ValueError(f"num must be at least {len(FAMILIES)}, one question per family, not {num}")
    return {family: num // len(FAMILIES) + (i < num % len(FAMILIES)) for i, family in enumerate(FAMILIES)}


def plan(num: int, seed: int) -> list[ClipPlan]:
    """Walk over the test scenes until every family has its questions."""
    missing, clips, index = quotas(num), [], 0
    while any(missing.values()):
        taken: list[Question] = []
        for question in clip_questions(seed, SPLIT, index):
            if missing[question.family] and len(taken) < QUESTIONS_PER_CLIP:
                missing[question.family] -= 1
                taken.append(question)
        if taken:
            clips.append(ClipPlan(index, tuple(taken)))
        index += 1
    return clips


# -- what is shown -----------------------------------------------------------------------------------------------------
def one_frame_order(num_frames: int) -> np.ndarray:
    """The middle frame in every place."""
    return np.full(num_frames, num_frames // 2)


def shuffled_order(num_frames: int, rng: np.random.Generator) -> np.ndarray:
    """A random order that is never the right one.

    Raises:
        ValueError: a single frame has no other order.
    """
    if num_frames < 2:
        raise ValueError("the baseline 'shuffled' needs at least two frames")
    while True:
        order = rng.permutation(num_frames)
        if (order != np.arange(num_frames)).any():
            return order


def rearrange(video: Video | Clip, order: np.ndarray) -> Clip:
    """Other frames of a clip in the same places: time stamps and duration stay as they are."""
    return Clip(video.frames[order], tuple(float(t) for t in video.timestamps), video.duration)


def told_length(processor: Any, clip: Video | Clip) -> str:
    """What the prompt tells about a clip besides its tokens: "12.5 seconds: ", or nothing."""
    inputs = processor.video_processor(videos=[clip], return_tensors="pt", return_metadata=True)
    return str(processor.placeholder_text(inputs, 0)).replace(processor.video_token, "")


@dataclass(frozen=True)
class _Shown:
    """An encoded clip and the seconds at which its pictures were taken, in the order shown."""

    clip: EncodedClip
    times: tuple[float, ...]


def _views(model: Any, processor: Any, video: Video, index: int, seed: int, baselines: bool) -> dict[str, _Shown]:
    """The clip as it is and, for the baselines, rearranged; encoded in one batch."""
    orders = {"full": np.arange(len(video))}
    if baselines:
        orders["one_frame"] = one_frame_order(len(video))
        orders["shuffled"] = shuffled_order(len(video), np.random.default_rng([seed, index, 3]))
    encoded = encode(model, processor, [rearrange(video, order) for order in orders.values()])
    return {
        name: _Shown(clip, tuple(round(float(t), 4) for t in video.timestamps[order]))
        for (name, order), clip in zip(orders.items(), encoded)
    }


def _read_all(task: partial, indices: Sequence[int], workers: int) -> Iterator[Video | str]:
    """Read clips in order, some ahead of the model."""
    if workers == 0:
        yield from map(task, indices)
        return
    # Fresh processes: a forked copy of a program that runs threads can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        waiting: deque[Future[Video | str]] = deque()
        for index in indices:
            waiting.append(pool.submit(task, index))
            if len(waiting) > 8 * workers:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def with_next(items: Iterable[tuple[Any, Any]]) -> Iterator[tuple[Any, Any, Any]]:
    """Turn (item, content) into (item, content, next content that is not None); the last one gets the first.

    The third is None where there is no other content.
    """
    waiting: list[tuple[Any, Any]] = []
    first = None
    for item, content in items:
        if content is not None:
            first = content if first is None else first
            yield from ((*pair, content) for pair in waiting)
            waiting = []
        waiting.append((item, content))
    yield from ((item, content, None if first is content else first) for item, content in waiting)


# -- scores ------------------------------------------------------------------------------------------------------------
def normalise(text: str) -> str:
    """Lower case, no white space around, no full stop at the end, no article in front."""
    text = text.strip().lower().removesuffix(".").strip()
    return re.sub(r"^(?:an?|the)\s+", "", text)


def wilson(correct: int, total: int) -> tuple[float, float]:
    """The 95 % score interval of a share (Wilson, 1927)."""
    if total == 0:
        return 0.0, 1.0
    z = 1.959964
    share, z2 = correct / total, z * z / total
    centre = (share + z2 / 2) / (1 + z2)
    half = z * math.sqrt(share * (1 - share) / total + z2 / (4 * total)) / (1 + z2)
    return max(0.0, centre - half), min(1.0, centre + half)


def score(rows: Sequence[_Row]) -> dict[str, Any]:
    """Accuracy of prediction rows with keys "family" and "correct": accuracy, ci95, families."""

    def part(rows: Sequence[_Row]) -> dict[str, Any]:
        correct = sum(row["correct"] for row in rows)
        return {
            "accuracy": round(correct / len(rows), 4),
            "n": len(rows),
            "ci95": [round(v, 4) for v in wilson(correct, len(rows))],
        }

    families = {family: part([row for row in rows if row["family"] == family]) for family in FAMILIES}
    return {**part(rows), "families": families}


def most_frequent_answers(rows: Sequence[_Row]) -> dict[str, Any]:
    """What the best constant answer per family would score: the floor for a model that knows only the families."""
    answers: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for row in rows:
        answers[row["family"]][row["answer"]] += 1
    best = {family: answers[family].most_common(1)[0] for family in FAMILIES}
    return {
        "accuracy": round(sum(n for _, n in best.values()) / len(rows), 4),
        "families": {
            family: {"answer": answer, "accuracy": round(n / answers[family].total(), 4)}
            for family, (answer, n) in best.items()
        },
    }


# -- the run -----------------------------------------------------------------------------------------------------------
class _Asker:
    """Collects prompts per condition and answers them in batches."""

    def __init__(self, model: Any, processor: Any, batch_size: int):
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.pending: defaultdict[str, list[tuple[_Row, list[Message], EncodedClip | None]]] = defaultdict(list)

    def add(self, row: _Row, shown: _Shown | None, told: str = "") -> None:
        """Ask what stands in `row`, after `told`; its "prediction" and "correct" are filled in later."""
        condition = row["condition"]
        messages = question_messages(self.processor, told + row["question"], has_video=shown is not None)
        self.pending[condition].append((row, messages, shown.clip if shown else None))
        if len(self.pending[condition]) == self.batch_size:
            self._flush(condition)

    def finish(self) -> None:
        """Answer what is left."""
        for condition in list(self.pending):
            self._flush(condition)

    def _flush(self, condition: str) -> None:
        batch = self.pending.pop(condition)
        prompts = [(messages, clip) for _, messages, clip in batch]
        for (row, _, _), text in zip(batch, reply(self.model, self.processor, prompts, MAX_NEW_TOKENS)):
            row["prediction"] = text
            row["correct"] = normalise(text) == normalise(row["answer"])


def evaluate(
    model: Any,
    processor: Any,
    num: int = 2000,
    seed: int = 0,
    batch_size: int = 32,
    baselines: bool = True,
    num_frames: int | None = None,
    out: str | Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Ask `num` questions about test scenes and score the answers.

    Args:
        num: number of questions, spread evenly over the twelve families.
        seed: chooses the scenes.
        batch_size: prompts per batch.
        baselines: ask again blind (no video, only its length), with the middle frame only, with shuffled frames, and
            with another clip.
        num_frames: frames per clip; default the number that the processor was saved with.
        out: folder for report.json, predictions.jsonl and the clips; default nothing is kept.
        workers: processes that write and read clips, 0 for none; default one per CPU, at most four. With workers, a
            script must call this under `if __name__ == "__main__":`.
        progress: show a bar on stderr.

    Returns:
        The report; `table` prints it. Intervals treat questions as independent, although some share a clip.
    """
    began = time.perf_counter()
    num_frames = num_frames or processor.video_processor.num_frames
    workers = min(4, os.cpu_count() or 1) if workers is None else workers
    clips = plan(num, seed)
    conditions = ("full", *BASELINES) if baselines else ("full",)
    rows: list[_Row] = []
    failures: list[dict[str, str]] = []
    decoders: set[str] = set()
    asker, video_token = _Asker(model, processor, batch_size), processor.video_token
    with ExitStack() as stack:
        folder = Path(out) / "clips" if out else Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        bar = stack.enter_context(Progress(console=Console(stderr=True), disable=not progress))
        task = bar.add_task("questions", total=num)

        def seen() -> Iterator[tuple[ClipPlan, dict[str, _Shown] | None]]:
            read = partial(write_and_read, folder, seed, SPLIT, num_frames)
            for clip, video in zip(clips, _read_all(read, [clip.index for clip in clips], workers)):
                if isinstance(video, str):
                    failures.append({"id": clip_name(seed, SPLIT, clip.index), "reason": video})
                    yield clip, None
                else:
                    decoders.add(f"{video.decoder} {video.decoder_version}")
                    yield clip, _views(model, processor, video, clip.index, seed, baselines)

        for clip, views, others in with_next(seen()):
            shown = {**(views or {}), "wrong_video": others and others["full"]}
            for number, question in enumerate(clip.questions):
                for condition in conditions:
                    row = _new_row(clip_name(seed, SPLIT, clip.index), number, condition, question)
                    rows.append(row)
                    view = shown.get(condition)
                    if condition == "blind":  # without the tokens of the clip, but with its length
                        asker.add(row, None, views["full"].clip.marker.replace(video_token, "") if views else "")
                    elif view is not None:
                        row["frame_times"] = list(view.times)
                        asker.add(row, view)
                bar.advance(task)
        asker.finish()
    by_condition = {name: [row for row in rows if row["condition"] == name] for name in conditions}
    full = score(by_condition["full"])
    scores = {name: score(by_condition[name]) for name in conditions[1:]}
    report = {
        "accuracy": full["accuracy"],
        "ci95": full["ci95"],
        "families": full["families"],
        "baselines": {name: {"accuracy": s["accuracy"], "families": s["families"]} for name, s in scores.items()},
        "most_frequent_answer": most_frequent_answers(by_condition["full"]),
        "num_questions": num,
        "num_clips": len(clips),
        "failures": failures,
        "seed": seed,
        "model": {"path": model.name_or_path, "sha256": weights_sha256(Path(model.name_or_path))},
        "protocol": {
            "split": SPLIT,
            "frames": num_frames,
            "sampling": "uniform in time, the frame shown in the middle of each part",
            "decoder": ", ".join(sorted(decoders)),
            "generation": {"decoding": "greedy", "max_new_tokens": MAX_NEW_TOKENS, "questions_per_prompt": 1},
            "scoring": "exact match; case, white space, final full stop and leading article do not count",
        },
        "versions": versions(),
        "seconds": round(time.perf_counter() - began, 1),
    }
    if out:
        _write(Path(out), report, rows)
    return report


def _new_row(clip: str, number: int, condition: str, question: Question) -> _Row:
    return {
        "id": f"{clip}/{number}",
        "condition": condition,
        "family": question.family,
        "question": question.question,
        "answer": question.answer,
        "prediction": None,
        "correct": False,
        "frame_times": [],
    }


def weights_sha256(folder: Path) -> str | None:
    """Digest of a checkpoint's weight files, in the order of their names; None for a model that was never saved."""
    files = sorted(folder.glob("*.safetensors")) if folder.name else []
    digest = hashlib.sha256()
    for path in files:
        digest.update(path.read_bytes())
    return digest.hexdigest() if files else None


def versions() -> dict[str, str]:
    """Versions of the packages that decide what a model says."""
    modules = {"torch": torch, "transformers": transformers, "numpy": np, "av": av}
    named = {name: module.__version__ for name, module in modules.items()}
    return {"videopanda": __version__, "python": platform.python_version(), **named}


def _write(folder: Path, report: dict[str, Any], rows: Sequence[_Row]) -> None:
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "predictions.jsonl").write_text(lines, encoding="utf-8")
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def table(report: dict[str, Any]) -> Table:
    """The report for people, in percent: one line per family, 80 columns wide."""
    baselines, floor = report["baselines"], report["most_frequent_answer"]
    title = f"Scenes: {report['num_questions']} questions about {report['num_clips']} clips, percent right"
    caption = "const: always the most frequent answer of the family"
    grid = Table(title=title, caption=caption, box=box.SIMPLE, padding=(0, 1, 0, 0), title_justify="left")
    headers = [name.replace("_", "\n") for name in baselines]
    for name in ("family", "n", "accuracy", "95 %", *headers, "const"):
        grid.add_column(name, justify="left" if name == "family" else "right", no_wrap=True)

    def add(name: str, part: dict[str, Any], others: Sequence[float], last: bool = False) -> None:
        low, high = part["ci95"]
        values = (f"{100 * value:.1f}" for value in (part["accuracy"], *others))
        accuracy, *rest = values
        grid.add_row(name, str(part["n"]), accuracy, f"{100 * low:.0f}–{100 * high:.0f}", *rest, end_section=last)

    for name, part in report["families"].items():
        others = [baseline["families"][name]["accuracy"] for baseline in baselines.values()]
        add(name, part, [*others, floor["families"][name]["accuracy"]], last=name == FAMILIES[-1])
    overall = {"n": report["num_questions"], "accuracy": report["accuracy"], "ci95": report["ci95"]}
    add("all", overall, [*(baseline["accuracy"] for baseline in baselines.values()), floor["accuracy"]])
    return grid
