"""Train on your own clips in one call: label, check, split by recording, train, measure on unseen recordings.

    report = teach(Path("clips"), "Which word is signed?", Path("out/mine"))   # or: videopanda teach clips --question …
    report = teach(Path("questions.jsonl"), "", Path("out/mine"))              # or: videopanda teach questions.jsonl …
    report["after"]["accuracy"], report["without_video"]["accuracy"]

Three parts of the recordings never mix: rows to train on, a tenth of these held out for early stopping, and the test
recordings, on which the model is measured before and after, and without the video. Everything is kept in the output
folder, which is an ordinary model folder at the end; the same call resumes.
"""

import hashlib
import html
import json
import logging
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from videopanda.data.class_folders import find_classes, write_labeled
from videopanda.data.doctor import check
from videopanda.data.manifest import file_sha256
from videopanda.data.question_files import split_questions
from videopanda.evaluation.predict import PredictJob, predict
from videopanda.evaluation.predictions import Prediction, read_predictions
from videopanda.hub import name_of
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.models.load import check_checkpoint
from videopanda.training.run import custom_settings, train
from videopanda.training.run_folder import write_text
from videopanda.video.contact_sheet import SheetRow, contact_sheet
from videopanda.video.read import read_video

logger = logging.getLogger(__name__)

FEW = 20  # with fewer test recordings, accuracy says little
_ERRORS_SHOWN, _CLASSES_SHOWN = 12, 30
_SHORT = 5  # words of an answer that may be compared word for word
_OTHER = "(another answer)"  # no class can be called so
# By parameters in millions, up to: passes over the data at most, learning rate. A small model needs many large steps.
_SIZES = ((50, 16, 5e-4), (1000, 20, 1e-4), (float("inf"), 5, 2e-5))
_LORA_RATE = 2e-4
_COPIES, _FEW_TO_LEARN = 4, 200


def teach(
    clips: Path,
    question: str,
    output: Path,
    model: Path | None = None,
    *,
    lora: bool = False,
    quantize: bool = False,
    test_share: float = 0.25,
    copies: int | None = None,
    seed: int = 0,
    settings: Sequence[str] = (),
    media_root: Path | None = None,
) -> dict[str, Any]:
    """Teach a model the classes of a folder of clips, or the answers to a file of questions about clips.

    Args:
        clips: a folder of clips per class, see `data.class_folders`, or a file in any format of training data.
        question: asked about every clip of a folder; the class is the answer. A file has its own: "".
        model: the model to start from; None is the bundled one.
        lora, quantize: train adapters, on weights of 4 bits, with which the model is measured as well.
        test_share: share of each class's recordings held out of training.
        copies: altered copies of each training recording. None is 4 up to 200 recordings, which a model would
            otherwise learn by heart, and 0 above, or if a class has a single recording, which is refused. A file has
            none: its answers need not hold for them.
        settings: further settings of training, `key=value`.
        media_root: folder of the clips of a file; default: its own.

    Returns:
        The report, also in `teach.json` and `teach.html`: accuracy before, after and without the video, confusions, and
        warnings about what the numbers cannot show.

    Raises:
        ValueError: the clips cannot be used; the message says why.
    """
    start, data, is_folder = model or BUNDLED_MODEL, output / "data", clips.is_dir()
    _require_fitting(clips, question, copies, media_root)
    if not is_folder:
        copies = 0
    elif copies is None:
        counts = [len(paths) for paths in find_classes(clips).values()]
        copies = _COPIES if sum(counts) <= _FEW_TO_LEARN and min(counts) > 1 else 0
    asked = {"clips": str(clips), "question": question, "model": str(start), "lora": lora, "quantize": quantize}
    asked |= {"test_share": test_share, "copies": copies, "seed": seed, "settings": list(settings)}
    if media_root:
        asked["media_root"] = str(media_root)
    settings_file = output / "teach_settings.json"
    _require_same(settings_file, asked)
    noted = data / "source.sha256"
    if not (data / "train.jsonl").exists():
        try:
            if is_folder:
                write_labeled(clips, data, question, test_share, copies, seed)
            else:
                split_questions(clips, data, test_share, seed, media_root=media_root)
        except ValueError:
            settings_file.unlink()  # nothing was made of them
            raise
        write_text(noted, _content(clips))
    elif noted.exists() and noted.read_text(encoding="utf-8") != _content(clips):
        raise ValueError(f"{clips} changed since {data} was made of it: choose another --output, or delete {output}")
    files = [data / "train.jsonl", data / "test.jsonl"]
    checked = check([str(file) for file in files], data / "manifest.jsonl")
    if checked.bad_clips:
        raise ValueError(
            f"{checked.bad_clips} clips cannot be read: list them with  videopanda data check {data / 'train.jsonl'} "
            f"{data / 'test.jsonl'}; remove them from {clips}, delete {data}, and start again"
        )
    bits = "nf4" if quantize else ""
    answers = {"before": _ask(start, data, output / "before.jsonl", "full", bits)}
    if not (output / "config.json").exists():  # written last: the model is complete
        chosen = [*custom_settings(str(files[0]), None, lora, quantize), *_scaled(start, files[0], lora, copies)]
        chosen += [f"seed={seed}", f"manifest={data / 'manifest.jsonl'}", *settings]
        train("finetune", "custom", chosen, start, output)
    answers["after"] = _ask(output, data, output / "after.jsonl", "full", bits)
    answers["without_video"] = _ask(output, data, output / "without_video.jsonl", "no_video", bits)
    report = _report(question or clips.name, _rows(files[1]), answers, name_of(start))
    _write(report, output, data)
    return report


def _require_fitting(clips: Path, question: str, copies: int | None, media_root: Path | None) -> None:
    """Refuse what has no meaning for a folder, or for a file."""
    if clips.is_dir():
        if not question:
            raise ValueError(f"{clips} is a folder of clips: pass the question about them with --question")
        if media_root:
            raise ValueError("--media-root is for a file of questions: omit it")
    elif question:
        raise ValueError(f"{clips} has its own questions: omit --question")
    elif copies:
        raise ValueError(f"--copies is for folders of classes: the answers in {clips} may not hold for altered clips")


def _content(clips: Path) -> str:
    """A hash of a file, or of the names and sizes of the clips of a folder."""
    if clips.is_file():
        return file_sha256(clips)
    found = {label: [(p.name, p.stat().st_size) for p in paths] for label, paths in find_classes(clips).items()}
    return hashlib.sha256(json.dumps(found).encode()).hexdigest()


def _require_same(file: Path, asked: dict[str, Any]) -> None:
    """Refuse to mix different settings in one folder."""
    if file.exists():
        before = json.loads(file.read_text(encoding="utf-8"))
        if other := [name for name in asked if before.get(name) != asked[name]]:
            raise ValueError(
                f"{file.parent} was made with {other[0]} {before.get(other[0])!r}: use the same, or another --output"
            )
    else:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(asked, indent=2) + "\n")


def _scaled(model: Path, rows: Path, lora: bool, copies: int) -> list[str]:
    """Length and learning rates for the size of the model; training stops earlier if held-out clips stop improving.
    Copies of a recording share its passes, of which there are twice as many, since none is seen twice alike.
    """
    size = sum(file.stat().st_size for file in model.glob("*.safetensors")) / 2e6  # in two bytes each, or fewer
    check_checkpoint(model)
    passes, rate = next((passes, rate) for most, passes, rate in _SIZES if size <= most)
    if copies:
        passes = max(1, round(2 * passes / (1 + copies)))
    batch = min(4, max(1, len({row["video"] for row in _rows(rows)}) // 4))  # all questions about a clip share a row
    return [
        *(f"epochs={passes}", f"batch_size={batch}", "warmup_ratio=0.05", "early_stop=3", "log_steps=5"),
        *(f"vision_lr={rate}", f"language_model_lr={_LORA_RATE if lora else rate}"),
    ]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _ask(model: Path, data: Path, file: Path, condition: str, quantize: str) -> dict[str, Prediction]:
    """The answers to the test rows, by id."""
    words = max(len(row["conversations"][1]["value"].split()) for row in _rows(data / "test.jsonl"))
    job = PredictJob("custom", data / "test.jsonl", data, model, condition, max_new_tokens=max(16, 3 * words + 8))
    predict(job, file, loaded=load(model, quantize=quantize))
    return {row.id: row for row in read_predictions(file) if isinstance(row, Prediction)}


# -- the report --------------------------------------------------------------------------------------------------------
def _report(
    question: str, rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Mapping[str, Prediction]], model: str
) -> dict[str, Any]:
    truth = {f"{row['id']}/0": row["conversations"][1]["value"] for row in rows}
    named = dict(Counter(truth.values()).most_common(_CLASSES_SHOWN))  # one by one; the others are `_OTHER`
    known = {_plain(label): label for label in named}
    said = {
        when: {id_: known.get(_plain(found[id_].prediction or ""), _OTHER) for id_ in truth}
        for when, found in answers.items()
    }
    right = {
        when: {id_ for id_, label in truth.items() if _plain(found[id_].prediction or "") == _plain(label)}
        for when, found in answers.items()
    }
    classes: dict[str, list[str]] = {label: [] for label in sorted(named)}
    for id_, label in truth.items():
        classes.setdefault(label if label in named else _OTHER, []).append(id_)
    after = said["after"]
    asked = {f"{row['id']}/0": row["conversations"][0]["value"].replace("<video>", "").strip() for row in rows}
    report: dict[str, Any] = {
        "question": question,
        "model": model,
        "test_recordings": len({row["video"] for row in rows}),
        "test_questions": len(truth),
        "kinds": dict(Counter(row["kind"] for row in rows)),
        "most_frequent_class": max(named.values()) / len(truth),
        **{when: {"accuracy": len(ids) / len(truth)} for when, ids in right.items()},
        "classes": {
            label: {
                "n": len(ids),
                "right": len(right["after"].intersection(ids)),
                "said": sum(one == label for one in after.values()),
            }
            for label, ids in classes.items()
        },
        "confusion": {label: dict(Counter(after[id_] for id_ in ids).most_common()) for label, ids in classes.items()},
        "errors": [
            {
                "id": id_,
                "question": asked[id_],
                "truth": label,
                "answer": answers["after"][id_].prediction,
                "video": answers["after"][id_].video,
            }
            for id_, label in truth.items()
            if id_ not in right["after"]
        ],
        "mean_words": sum(len(label.split()) for label in truth.values()) / len(truth),
    }
    changed = sum(
        (answers["before"][id_].prediction or "") != (answers["after"][id_].prediction or "") for id_ in truth
    )
    report["warnings"] = _warnings(report, changed)
    return report


def _plain(text: str) -> str:
    return " ".join(text.casefold().strip(" .").split())


def _warnings(report: Mapping[str, Any], changed: int) -> list[str]:
    found = []
    if report["test_recordings"] < FEW:
        found.append(
            f"only {report['test_recordings']} test clips: with fewer than {FEW}, accuracy says little; add recordings"
        )
    if not changed:
        found.append("training changed no answer: train longer or faster (--set epochs=…, --set vision_lr=…)")
    if any(kind.startswith("altered") for kind in report["kinds"]):
        found.append("some test clips are copies of training clips: they only show whether a recording is recognized")
    if report["mean_words"] > _SHORT:
        found.append(
            f"answers have {report['mean_words']:.0f} words on average, and only equal ones count as right: score "
            "after.jsonl with a judge as well (videopanda evaluate judge)"
        )
    gain = report["after"]["accuracy"] - max(report["without_video"]["accuracy"], report["most_frequent_class"])
    if gain < 0.1:
        found.append("accuracy is hardly better with the video than without it: the model has not learned to look")
    return found


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Accuracy before, after and without the video; then every class with its most frequent wrong answers."""
    first = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title="Test recordings, percent right", title_justify="left")
    for name in ("clips", "questions", "before", "after", "after, no video", "most frequent class"):
        first.add_column(name, justify="right")
    values = [report[when]["accuracy"] for when in ("before", "after", "without_video")]
    sizes = str(report["test_recordings"]), str(report["test_questions"])
    first.add_row(*sizes, *(f"{100 * value:.1f}" for value in (*values, report["most_frequent_class"])))
    second = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name, side in (("answer", "left"), ("questions", "right"), ("right", "right"), ("taken for", "left")):
        second.add_column(name, justify=side, overflow="fold")  # type: ignore[arg-type]
    for label, part in report["classes"].items():
        wrong = ", ".join(f"{name} ({n})" for name, n in report["confusion"][label].items() if name != label)
        second.add_row(label, str(part["n"]), str(part["right"]), wrong)
    return [first, second]


def _write(report: Mapping[str, Any], output: Path, data: Path) -> None:
    write_text(output / "teach.json", json.dumps(report, indent=2, ensure_ascii=False) + "\n")
    rows = []
    for error in report["errors"][:_ERRORS_SHOWN]:
        video = read_video(data / error["video"], num_frames=8, max_side=240)
        told = [error["question"], f"{error['truth']}, answered: {error['answer']}"]
        rows.append(SheetRow(video.frames, told, video.timestamps))
    if rows:
        contact_sheet(rows).save(output / "errors.png")
    labels = [*report["classes"], *([] if _OTHER in report["classes"] else [_OTHER])]
    head = "".join(f"<th>{html.escape(label)}</th>" for label in ("", *labels))
    body = "".join(
        f"<tr><th>{html.escape(label)}</th>{''.join(f'<td>{found.get(one, 0)}</td>' for one in labels)}</tr>"
        for label, found in report["confusion"].items()
    )
    scores = ", ".join(
        f"{name.replace('_', ' ')} {report[name]['accuracy']:.1%}" for name in ("before", "after", "without_video")
    )
    notes = "".join(f"<li>{html.escape(warning)}</li>" for warning in report["warnings"])
    page = (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>teach</title>'
        "<style>body{font:16px system-ui;max-width:72rem;margin:2rem auto;padding:0 1rem}"
        "td,th{padding:.2rem .6rem;text-align:right}img{max-width:100%}</style>"
        f"<h1>{html.escape(report['question'])}</h1>"
        f"<p>{report['test_recordings']} test clips, {report['test_questions']} questions: {scores}, "
        f"most frequent class {report['most_frequent_class']:.1%}.</p>"
        f"<ul>{notes}</ul><h2>Confusions (rows: right answers, columns: given answers)</h2>"
        f"<table><tr>{head}</tr>{body}</table>"
        + ('<h2>Errors</h2><img src="errors.png" alt="frames of wrong answers">' if rows else "")
        + '<p><a href="index.html">About the training run</a></p></html>\n'
    )
    write_text(output / "teach.html", page)


def next_commands(output: Path) -> str:
    """Commands for what to do next with the model."""
    folder = shlex.quote(str(output))
    return f"videopanda serve --model {folder}\nvideopanda push {folder} ORG/NAME"
