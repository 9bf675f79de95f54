"""TempCompass: the same videos asked about in four ways, on five temporal aspects.

    questions/multi-choice.json       {video: {aspect: [{"question", "answer"}]}}, the question with its options in
                                      lines "A. …", the answer one of these lines
    questions/yes_no.json             the same with the answer "yes" or "no"
    questions/caption_matching.json   options in lines "Option 1: …", "Caption A: …" or "Sentence A: …"
    questions/captioning.json         a caption is asked for, which a judge compares with the right option

Ids are `<way>/<video>/<aspect>/<number>`; a question counts for its way and for its aspect. The re-hosted tables, one
folder per way with `video_id`, `question`, `answer` and `dim`, are read, too. (Format: the repository's files.)
"""

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from videopanda.evaluation.benchmarks.files import (
    AnnotationRow,
    AnnotationRowError,
    Rejected,
    find,
    question_rows,
    read_object,
    rows,
)
from videopanda.evaluation.benchmarks.item import Item, RunningNumber, items
from videopanda.evaluation.benchmarks.options import letter_index, same_text, split_question, unmark

WAYS = ("multi-choice", "yes_no", "caption_matching", "captioning")
_CAPTION = re.compile(r"(?:Option|Caption|Sentence) ([1-9A-Z])\s*: *(.*)")


def read(path: Path) -> Iterator[Item | Rejected]:
    """Read the questions of a folder, or one file."""
    files = [file for file in find(path, "questions/*.json", "*.json", "*.parquet") if _way(file) in WAYS]
    for file in files or find(path, *(f"{way}.json" for way in WAYS)):
        read_rows = rows if file.suffix == ".parquet" else _nested
        yield from items(read_rows(file), partial(_item, way=_way(file), number=RunningNumber()))


def _way(file: Path) -> str:
    return file.parent.name if file.suffix == ".parquet" else file.stem


def _nested(file: Path) -> Iterator[AnnotationRow | Rejected]:
    for video, aspects in read_object(file).items():
        if not isinstance(aspects, dict):
            yield Rejected(f"{file.name} {video}", "not an object of aspects")
            continue
        for aspect, questions in aspects.items():
            listed = questions if isinstance(questions, list) else [questions]
            yield from question_rows(f"{file.name} {video} {aspect}", listed, {"video_id": video, "dim": aspect})


def _item(row: AnnotationRow, way: str, number: RunningNumber) -> Item:
    video, aspect = row.id("video_id"), row.text("dim")
    name = number(f"{way}/{video}/{aspect}")
    question, answer = row.text("question"), row.text("answer")
    options: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    if way == "multi-choice":
        question, options = split_question(question)
        right = (letter_index(row, "answer", options=options),)
    elif way == "caption_matching":
        question, options = _captions(question)
        match = _CAPTION.fullmatch(answer)
        right = same_text(options, match[2] if match else answer)
    elif way == "captioning":
        answer = next((bare for i in range(26) if (bare := unmark(answer, i)) != answer), answer)
    elif answer.lower() not in ("yes", "no"):
        raise AnnotationRowError(f"the answer {answer!r:.40} is neither yes nor no")
    return Item(
        id=name,
        video=video,
        question=question,
        task="yes_no" if way == "yes_no" else "description" if way == "captioning" else "choice",
        types=(way, aspect),
        options=options,
        right=right,
        answers=tuple(options[i] for i in right) or (answer,),
        extra=row.extra("mc_question", "mc_answer"),
    )


def _captions(text: str) -> tuple[str, tuple[str, ...]]:
    lines = text.splitlines()
    found = [match[2].strip() for line in lines if (match := _CAPTION.fullmatch(line.strip()))]
    if len(found) < 2:
        raise AnnotationRowError("the text has no lettered or numbered captions")
    return "\n".join(line for line in lines if not _CAPTION.fullmatch(line.strip())).strip(), tuple(found)
