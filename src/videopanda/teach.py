"""Train on your own clips in one call: label, check, split by recording, train, measure on unseen recordings.

    report = teach(Path("clips"), "Which word is signed?", Path("out/mine"))   # or: videopanda teach clips --question …
    report["after"]["accuracy"], report["without_video"]["accuracy"]

Three parts of the recordings never mix: rows to train on, a tenth of these held out for early stopping, and the test
recordings, on which the model is measured before and after, and without the video. Everything is kept in the output
folder, which is an ordinary model folder at the end; the same call resumes.
"""

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
from videopanda.evaluation.predict import PredictJob, predict
from videopanda.evaluation.predictions import Prediction, read_predictions
from videopanda.inference.load import BUNDLED_MODEL, load
from videopanda.models.load import check_checkpoint
from videopanda.training.run import custom_settings, train
from videopanda.training.run_folder import write_text
from videopanda.video.contact_sheet import SheetRow, contact_sheet
from videopanda.video.read import read_video

logger = logging.getLogger(__name__)

FEW = 20  # with fewer test recordings, accuracy says little
_ERRORS_SHOWN = 12
_OTHER = "other"
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
) -> dict[str, Any]:
    """Teach a model the classes of a folder of clips.

    Args:
        clips: a folder of clips per class, see `data.class_folders`.
        question: asked about every clip; the class is the answer.
        model: the model to start from; None is the bundled one.
        lora, quantize: train adapters, on weights of 4 bits.
        test_share: share of each class's recordings held out of training.
        copies: altered copies of each training recording. None is 4 up to 200 recordings, which a model would
            otherwise learn by heart, and 0 above, or if a class has a single recording, which is refused.
        settings: further settings of training, `key=value`.

    Returns:
        The report, also in `teach.json` and `teach.html`: accuracy before, after and without the video, confusions, and
        warnings about what the numbers cannot show.

    Raises:
        ValueError: the clips cannot be used; the message says why.
    """
    start, data = model or BUNDLED_MODEL, output / "data"
    if copies is None:
        counts = [len(paths) for paths in find_classes(clips).values()]
        copies = _COPIES if sum(counts) <= _FEW_TO_LEARN and min(counts) > 1 else 0
    asked = {"clips": str(clips), "question": question, "model": str(start), "lora": lora, "quantize": quantize}
    asked |= {"test_share": test_share, "copies": copies, "seed": seed, "settings": list(settings)}
    settings_file = output / "teach_settings.json"
    _require_same(settings_file, asked)
    if not (data / "train.jsonl").exists():
        try:
            write_labeled(clips, data, question, test_share, copies, seed)
        except ValueError:
            settings_file.unlink()  # nothing was made of them
            raise
    files = [data / "train.jsonl", data / "test.jsonl"]
    checked = check([str(file) for file in files], data / "manifest.jsonl")
    if checked.bad_clips:
        raise ValueError(
            f"{checked.bad_clips} clips cannot be read: list them with  videopanda data check {data / 'train.jsonl'} "
            f"{data / 'test.jsonl'}; remove them from {clips}, delete {data}, and start again"
        )
    answers = {"before": _ask(start, data, output / "before.jsonl", "full")}
    if not (output / "config.json").exists():  # written last: the model is complete
        chosen = [*custom_settings(str(files[0]), None, lora, quantize), *_scaled(start, files[0], lora, copies)]
        chosen += [f"seed={seed}", f"manifest={data / 'manifest.jsonl'}", *settings]
        train("finetune", "custom", chosen, start, output)
    answers["after"] = _ask(output, data, output / "after.jsonl", "full")
    answers["without_video"] = _ask(output, data, output / "without_video.jsonl", "no_video")
    report = _report(question, _rows(files[1]), answers, _model_name(model))
    _write(report, output, data)
    return report


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
    batch = min(4, max(1, len(_rows(rows)) // 4))
    return [
        *(f"epochs={passes}", f"batch_size={batch}", "warmup_ratio=0.05", "early_stop=3", "log_steps=5"),
        *(f"vision_lr={rate}", f"language_model_lr={_LORA_RATE if lora else rate}"),
    ]


def _rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _model_name(model: Path | None) -> str:
    return "nano" if model is None else model.name


def _ask(model: Path, data: Path, file: Path, condition: str) -> dict[str, Prediction]:
    """The answers to the test rows, by id."""
    job = PredictJob("custom", data / "test.jsonl", data, model, condition, max_new_tokens=16)
    predict(job, file, loaded=load(model))
    return {row.id: row for row in read_predictions(file) if isinstance(row, Prediction)}


# -- the report --------------------------------------------------------------------------------------------------------
def _report(
    question: str, rows: Sequence[Mapping[str, Any]], answers: Mapping[str, Mapping[str, Prediction]], model: str
) -> dict[str, Any]:
    truth = {f"{row['id']}/0": row["conversations"][1]["value"] for row in rows}
    labels = sorted(set(truth.values()))
    known = {_plain(label): label for label in labels}
    said = {
        when: {id_: known.get(_plain(found[id_].prediction or ""), _OTHER) for id_ in truth}
        for when, found in answers.items()
    }
    counts = Counter(truth.values())
    after = said["after"]
    report: dict[str, Any] = {
        "question": question,
        "model": model,
        "test_recordings": len(truth),
        "kinds": dict(Counter(row["kind"] for row in rows)),
        "most_frequent_class": max(counts.values()) / len(truth),
        **{
            when: {"accuracy": sum(found[id_] == truth[id_] for id_ in truth) / len(truth)}
            for when, found in said.items()
        },
        "classes": {
            label: {
                "n": counts[label],
                "right": sum(after[id_] == label for id_ in truth if truth[id_] == label),
                "said": sum(one == label for one in after.values()),
            }
            for label in labels
        },
        "confusion": {
            label: dict(Counter(after[id_] for id_ in truth if truth[id_] == label).most_common()) for label in labels
        },
        "errors": [
            {
                "id": id_,
                "truth": label,
                "answer": answers["after"][id_].prediction,
                "video": answers["after"][id_].video,
            }
            for id_, label in truth.items()
            if after[id_] != label
        ],
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
    gain = report["after"]["accuracy"] - max(report["without_video"]["accuracy"], report["most_frequent_class"])
    if gain < 0.1:
        found.append("accuracy is hardly better with the video than without it: the model has not learned to look")
    return found


def tables(report: Mapping[str, Any]) -> list[Table]:
    """Accuracy before, after and without the video; then every class with its most frequent wrong answers."""
    first = Table(box=box.SIMPLE, padding=(0, 1, 0, 0), title="Test recordings, percent right", title_justify="left")
    for name in ("clips", "before", "after", "after, no video", "most frequent class"):
        first.add_column(name, justify="right")
    values = [report[when]["accuracy"] for when in ("before", "after", "without_video")]
    first.add_row(
        str(report["test_recordings"]), *(f"{100 * value:.1f}" for value in (*values, report["most_frequent_class"]))
    )
    second = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name, side in (("class", "left"), ("clips", "right"), ("right", "right"), ("taken for", "left")):
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
        rows.append(SheetRow(video.frames, [f"{error['truth']}, answered: {error['answer']}"], video.timestamps))
    if rows:
        contact_sheet(rows).save(output / "errors.png")
    labels = [*report["classes"], _OTHER]
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
        f"<h1>{html.escape(report['question'])}</h1><p>{report['test_recordings']} test clips: {scores}.</p>"
        f"<ul>{notes}</ul><h2>Confusions: rows are the truth</h2><table><tr>{head}</tr>{body}</table>"
        + ('<h2>Errors</h2><img src="errors.png" alt="frames of wrong answers">' if rows else "")
        + '<p><a href="index.html">The training run</a></p></html>\n'
    )
    write_text(output / "teach.html", page)


def next_commands(output: Path) -> str:
    """Commands for what to do next with the model."""
    folder = shlex.quote(str(output))
    return f"videopanda serve --model {folder}\nvideopanda push {folder} ORG/NAME"
