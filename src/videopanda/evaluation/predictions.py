"""Predictions as they are stored: one JSON object per line, one line per question, complete enough to be scored again.

    {"id": "v_abc_3", "prediction": "yes", "failure": null, "reason": "", "finish_reason": "stop",
     "video": "v_abc.mp4", "frame_indices": [12, 36, …], "frame_times": [0.4, 1.2, …], "decoder": "pyav 18.1.0",
     "prompt_sha256": "…",
     "protocol": {"benchmark": "activitynet-qa", "errata": "as-published", "condition": "full", "model": "…", …}}

`id` and `prediction` are enough to be scored; what is missing in a foreign file stays unknown. A question whose video
or answer failed is also a row: its prediction is null and `failure` says why. Predictions never hold scores.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, get_args

from rich.console import Console
from rich.progress import track

from videopanda.data.growing_file import append_lines
from videopanda.evaluation.benchmarks.files import (
    AnnotationError,
    AnnotationRow,
    AnnotationRowError,
    Rejected,
    question_rows,
    read_object,
    rows,
)
from videopanda.evaluation.benchmarks.options import LETTERS

Failure = Literal["missing_video", "unreadable_video", "error"]
FAILURES: tuple[Failure, ...] = get_args(Failure)
CONDITIONS = ("full", "no_video", "one_frame", "shuffled", "reversed", "wrong_video")  # what is shown


@dataclass(frozen=True)
class Protocol:
    """The settings shared by all questions of a run. Numbers of different protocols are not comparable."""

    benchmark: str
    errata: str  # as-published, corrected or strict
    condition: str = "full"  # one of CONDITIONS
    model: str = ""
    model_sha256: str | None = None  # of the weight files
    vision_parameters: int | None = None  # of all that turns pixels into tokens of the language model
    num_frames: int | None = None
    sampling: str = ""  # rule by which frames are chosen
    prompt_sha256: str = ""  # of the templates
    generation: Mapping[str, Any] = field(default_factory=dict)  # max_new_tokens, do_sample, ...
    seed: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)  # of packages
    settings: Mapping[str, Any] = field(default_factory=dict)  # changed when the model was loaded: {"merge.keep": 0.5}


@dataclass(frozen=True)
class Prediction:
    """The answer of a model to one question, or why there is none."""

    id: str
    prediction: str | None
    failure: Failure | None = None
    reason: str = ""  # what went wrong, for people
    finish_reason: str = ""  # "stop", or "length" where the reply was cut short by max_new_tokens; "" if unknown
    video: str = ""  # what was shown, by its path below the folder of videos
    frame_indices: tuple[int, ...] = ()  # of the frames shown, in the order shown
    frame_times: tuple[float, ...] = ()  # seconds
    decoder: str = ""  # "pyav 18.1.0"
    prompt_sha256: str = ""  # of the whole prompt of this question
    protocol: Protocol | None = None
    place: str = field(default="", compare=False)  # where it stands, "predictions.jsonl line 3"

    def __post_init__(self) -> None:
        if (self.prediction is None) == (self.failure is None):
            raise ValueError(f"prediction {self.id!r} must have either a text or a failure")

    @property
    def is_cut(self) -> bool:
        """Whether the reply was cut short by a limit of tokens."""
        return self.finish_reason == "length"

    def as_json(self) -> str:
        """One line without its line end; equal for equal predictions."""
        content = asdict(self)
        del content["place"]
        return json.dumps(content, allow_nan=False)


def append_predictions(path: Path, predictions: Iterable[Prediction]) -> None:
    """Add predictions to a file, as `append_lines` does."""
    append_lines(path, [prediction.as_json() for prediction in predictions])


def check_appendable(path: Path, row_start: bytes) -> None:
    """Check that a file contains only rows that begin like this; the last one may be partial. The file is not changed.

    Raises:
        ValueError: the file begins or ends otherwise.
    """
    if not path.exists():
        return
    lines = path.read_bytes().splitlines()
    for line in (lines[0], lines[-1]) if lines else ():
        if line[: len(row_start)] != row_start[: len(line)]:
            raise ValueError(f"{path} exists and was not written by this command: choose another --output or remove it")


def watched(steps: Iterable[Any], what: str, total: int | None = None) -> Iterable[Any]:
    """The steps of a long run, with a bar on stderr where that is a terminal."""
    console = Console(stderr=True)
    return track(steps, what, total, console=console, disable=not console.is_terminal)


def read_predictions(path: Path) -> Iterator[Prediction | Rejected]:
    """The predictions of a file (`.jsonl` or `.json`) in their order; rows that are not predictions are listed.

    Common formats are also understood: `question_id` or `uid` for `id`; `pred`, `response` or
    `option` for `prediction`; questions that are grouped by video under `questions` (Video-MME); and one object of
    replies by id (LVBench), where whole numbers alone stand for options, counted from 0 (EgoSchema). Ids may be
    numbers.

    Raises:
        AnnotationError: the file is missing or of another kind.
    """
    for row in _submitted(path):
        if isinstance(row, Rejected):
            yield row
            continue
        try:
            yield prediction_of(row)
        except (AnnotationRowError, ValueError, TypeError) as error:
            yield Rejected(row.place, str(error), _id_or_none(row))


def _submitted(path: Path) -> Iterator[AnnotationRow | Rejected]:
    """Rows of a file; those of one object, and of groups, as if they stood alone."""
    if path.suffix.lower() == ".json" and path.is_file() and _starts_with_brace(path):
        replies = _object_of_replies(path)
        if replies is not None:
            yield from (
                AnnotationRow(f"{path.name} {id_}", {"id": id_, "pred": reply}) for id_, reply in replies.items()
            )
            return
    for row in rows(path):
        grouped = row.get("questions") if isinstance(row, AnnotationRow) else None
        if isinstance(grouped, list):
            yield from question_rows(row.place, grouped, {})
        else:
            yield row


def _starts_with_brace(path: Path) -> bool:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        return file.read(1000).lstrip().startswith("{")


def _object_of_replies(path: Path) -> Mapping[str, Any] | None:
    """Replies by id; None where the file holds one object per line."""
    try:
        replies = read_object(path)
    except AnnotationError:
        if isinstance(next(rows(path), None), AnnotationRow):
            return None
        raise
    if not replies.keys().isdisjoint((*_ID, *_PREDICTION)):
        return None
    numbers = [reply for reply in replies.values() if type(reply) is int and 0 <= reply < len(LETTERS)]
    if len(numbers) == len(replies):
        return {id_: LETTERS[number] for id_, number in replies.items()}
    return replies


def _id_or_none(row: AnnotationRow) -> str | None:
    try:
        return row.id(*_ID)
    except AnnotationRowError:
        return None


_ID = ("id", "question_id", "uid")
_PREDICTION = ("prediction", "pred", "response", "option")
_PROTOCOL_KEYS = {entry.name for entry in fields(Protocol)}


def prediction_of(row: AnnotationRow) -> Prediction:
    """Parse a row as a prediction.

    Raises:
        AnnotationRowError, ValueError, TypeError: it is not a prediction.
    """
    failure = row.get("failure")
    if failure is not None and failure not in FAILURES:
        raise AnnotationRowError(f"unknown failure {failure!r:.40}; choose from {', '.join(FAILURES)}")
    text = row.get(*_PREDICTION)
    if text is None and failure is None:
        raise AnnotationRowError("neither a prediction nor a failure")
    if isinstance(text, (int, float)) and not isinstance(text, bool):
        text = str(text)
    if text is not None and not isinstance(text, str):
        raise AnnotationRowError(f"prediction is not a string: {text!r:.40}")
    protocol = row.get("protocol")
    if protocol is not None and (not isinstance(protocol, dict) or not protocol.keys() <= _PROTOCOL_KEYS):
        raise AnnotationRowError("the protocol is from another version")
    return Prediction(
        id=row.id(*_ID),
        prediction=text,
        failure=failure,
        reason=str(row.get("reason") or ""),
        finish_reason=str(row.get("finish_reason") or ""),
        video=str(row.get("video") or ""),
        frame_indices=tuple(row.get("frame_indices") or ()),
        frame_times=tuple(row.get("frame_times") or ()),
        decoder=str(row.get("decoder") or ""),
        prompt_sha256=str(row.get("prompt_sha256") or ""),
        protocol=Protocol(**protocol) if protocol is not None else None,
        place=row.place,
    )
