"""OVO-Bench: questions at a moment of a video, of which only what came before may be seen.

    ovo_bench_new.json   [{"id", "video", "task", "question", "options", "gt" (index), "realtime" (seconds)}, …], and
        REC   {"activity", "test_info": [{"realtime", "count"}, …]}: how often so far?
        SSR   {"test_info": [{"realtime", "step", "type" (1: yes, 0: no)}, …]}: is it this step now?
        CRR   {"question", "test_info": [{"realtime", "type"}, …]}: can it be answered yet?
    the source videos; each is shown from its start to "realtime", in whole seconds

The clips that come with the benchmark are cut at whole seconds, rounded up (0.03 s: one second), and those are what
published numbers are of. A moment of 0 is shown as one second, too: the official script cuts a clip without frames
there, which no model can answer.

A question of the last three tasks is asked at several moments: `7/0`, `7/1`. Their wording is ours. The mean over the
twelve tasks is the "Total Avg." of the official script, whose averages of the three kinds are also means over tasks;
the groups here are means over questions. Limits: the official script joins all digits of a reply to a count, and looks
for "Yes" or "No" anywhere in a reply; here the reply must state the number, or yes or no. Files and scoring as in
https://github.com/JoeLeelyf/OVO-Bench (utils/OVOBench.py, utils/OVOBenchScore.py).
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from videopanda.evaluation.benchmarks.files import AnnotationRow, AnnotationRowError, Rejected, find, rows, unnested
from videopanda.evaluation.benchmarks.item import Item, RunningNumber, items
from videopanda.evaluation.benchmarks.options import published, unmark_all

_KINDS = {
    "backward": ("EPM", "ASI", "HLD"),
    "realtime": ("STU", "OJR", "ATR", "ACR", "OCR", "FPD"),
    "forward": ("REC", "SSR", "CRR"),
}
GROUPS = tuple(_KINDS)
_COUNT = "How many times in total did they {activity}? Every complete motion counts. Answer with one number."
_STEP = "A step of a tutorial: {step}\nIs this step being performed now, at the end of the video? Answer yes or no."
_READY = (
    "A question about the end of the video: {question}\nIs what was shown so far enough to answer it? Answer yes or no."
)


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the annotations of a folder, or the file named."""
    number = RunningNumber()
    for file in find(path, "ovo_bench_new.json", "ov*bench*.json", "*.json*"):
        yield from items(unnested(rows(file), "test_info"), lambda row: _item(row, number))


def _item(row: AnnotationRow, number: RunningNumber) -> Item:
    task, name = row.text("task"), row.id("id")
    kind = next((kind for kind, tasks in _KINDS.items() if task in tasks), None)
    if kind is None:
        raise AnnotationRowError(f"unknown task {task!r:.40}")
    return Item(
        id=number(name) if kind == "forward" else name,
        video=row.text("video"),
        types=(task,),
        groups=(kind,),
        start=0.0,
        end=float(max(1, math.ceil(row.number("realtime")))),
        **(_forward(row, task) if kind == "forward" else _choice(row)),
    )


def _choice(row: AnnotationRow) -> dict[str, Any]:
    given = row.texts("options")
    options = unmark_all(given)
    right = (row.index("gt", below=len(options)),)
    extra = published(given, options)
    return {"task": "choice", "question": row.text("question"), "options": options, "right": right, "extra": extra}


def _forward(row: AnnotationRow, task: str) -> dict[str, Any]:
    if task == "REC":
        count = f"{row.number('count'):g}"
        question = _COUNT.format(activity=row.text("activity"))
        return {"task": "short_answer", "question": question, "answers": (count,)}
    question = _STEP.format(step=row.text("step")) if task == "SSR" else _READY.format(question=row.text("question"))
    return {"task": "yes_no", "question": question, "answers": (("no", "yes")[row.index("type", below=2)],)}
