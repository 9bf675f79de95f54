"""The model card of a checkpoint: what it was trained on, how it was measured, what it cannot do. No local paths."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from videopanda import __version__
from videopanda.checkpoints.export import TAUGHT

_SHOWN = ("num_frames", "lora_rank", "epochs", "max_steps", "batch_size", "vision_lr", "language_model_lr")
_LIMITS = (
    "It answers every question, even about clips unlike those it was trained on; those answers mean nothing.",
    "The scores hold only for the questions, frames and scorers that are listed with them.",
)


def model_card(
    folder: Path, name: str, *, scores: Sequence[Path] = (), license_: str = "", limits: Sequence[str] = ()
) -> str:
    """The card of the model in `folder` as Markdown, with the metadata that the Hub reads.

    Args:
        name: on the Hub, `org/name`.
        scores: summaries that `videopanda evaluate score` wrote.
        license_: identifier of the Hub, such as apache-2.0; "" omits it.
        limits: what else it cannot do.

    Raises:
        ValueError: a file of `scores` is not a summary.
    """
    head = ["library_name: transformers", "pipeline_tag: video-text-to-text", "tags: [videopanda, video]"]
    if license_:
        head.insert(0, f"license: {license_}")
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    use = (
        f'```python\nimport videopanda\nprint(videopanda.answer("clip.mp4", "What happens?", model="{name}"))\n```\n\n'
        f"The folder brings its own code: without the package, `AutoModelForImageTextToText.from_pretrained"
        f'("{name}", trust_remote_code=True)` loads it.'
    )
    parts = [
        "---\n" + "\n".join(head) + "\n---",
        f"# {name.partition('/')[2]}\n\nA video-language model of the type `{config['model_type']}`, "
        f"with a language model of the type `{config['text_config']['model_type']}`.",
        f"## Use\n\n{use}",
        f"## Training\n\n{_training(folder)}",
        f"## Scores\n\n{_scores(folder, scores)}",
        "## Limits\n\n" + "\n".join(f"- {limit}" for limit in (*limits, *_LIMITS)),
        f"Made with videopanda {__version__}.",
    ]
    return "\n\n".join(parts) + "\n"


def _training(folder: Path) -> str:
    if not (folder / "run.json").is_file():
        return "The folder has no record of its training."
    record = json.loads((folder / "run.json").read_text(encoding="utf-8"))
    lines = [f"Started from {record['start']}.\n"] if record.get("start") else []
    for number, one in enumerate([*record.get("earlier", []), record], 1):
        stage = one["stage"]
        facts = [f"{key} {stage[key]}" for key in _SHOWN if stage.get(key) not in (None, "", 0)]
        data = f"{Path(stage['data']).name}, {one['data']['samples']:,} samples"
        lines.append(f"{number}. {stage['stage']}: {'; '.join([data, *facts])}")
    after = record.get("validation", {}).get("after", {})
    if "validation_accuracy" in after:
        text = f"\nOn clips held out of training: {after['validation_accuracy']:.1%} of answers right"
        if "validation_accuracy_no_video" in after:
            text += f", {after['validation_accuracy_no_video']:.1%} without the video"
        lines.append(f"{text}.")
    return "\n".join(lines)


def _scores(folder: Path, files: Sequence[Path]) -> str:
    taught = _taught(folder)
    if not files:
        return taught or "None were given."
    rows = ["| benchmark | shown | questions | metric | value | frames | scorer |", "|---|---|---|---|---|---|---|"]
    for file in files:
        try:
            summary: Mapping[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            protocol = (summary["protocols"] or [{}])[0].get("protocol") or {}
            scorer = ", ".join(sorted({f"{entry['name']} {entry['version']}" for entry in summary["scorers"]}))
            for metric, value in summary["metrics"].items():
                cells = (summary["benchmark"], protocol.get("condition", "full"), f"{summary['questions']:,}", metric)
                rows.append(f"| {' | '.join(cells)} | {value:.4f} | {protocol.get('num_frames', '–')} | {scorer} |")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{file} is not a summary of `videopanda evaluate score`") from error
    return "\n".join([*([taught, ""] if taught else []), *rows])


def _taught(folder: Path) -> str:
    """What `videopanda teach` measured on recordings that training did not see; "" for other models."""
    if not (folder / TAUGHT).is_file():
        return ""
    report = json.loads((folder / TAUGHT).read_text(encoding="utf-8"))
    values = {when: report[when]["accuracy"] for when in ("after", "before", "without_video")}
    return (
        f"{report['question']}: {values['after']:.1%} of {report['test_questions']} questions about "
        f"{report['test_recordings']} held-out clips ({', '.join(report['kinds'])}); before training "
        f"{values['before']:.1%}, without the video {values['without_video']:.1%}, most frequent answer "
        f"{report['most_frequent_class']:.1%}. An answer is right if its words match."
    )


def local_paths(folder: Path) -> list[str]:
    """Local paths in the JSON files and the card of a folder, each with its file."""
    found = []

    def look(file: str, value: Any) -> None:
        if isinstance(value, Mapping):
            for each in value.values():
                look(file, each)
        elif isinstance(value, list):
            for each in value:
                look(file, each)
        elif isinstance(value, str) and value.startswith(("/", "~")) and len(Path(value).parts) > 2:
            found.append(f"{file}: {value}")

    for path in sorted(folder.glob("*.json")):
        if path.name not in ("tokenizer.json", "vocab.json", "model.safetensors.index.json"):
            look(path.name, json.loads(path.read_text(encoding="utf-8")))
    card = folder / "README.md"
    if card.is_file():
        for word in re.split(r"[\s\"'`()\[\]<>|,;]+", card.read_text(encoding="utf-8")):
            look(card.name, word.removeprefix("file://"))
    return found
