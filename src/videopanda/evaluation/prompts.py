"""Prompts: one template per kind of question.

The wording is our own. A JSON file with templates of the same names replaces it, for those who need an official one:

    {"choice": "Question: {question}\\nOptions:\\n{options}\\nOnly give the best option."}
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

from videopanda.evaluation.benchmarks.files import read_object
from videopanda.evaluation.benchmarks.item import Item
from videopanda.evaluation.benchmarks.options import LETTERS


@dataclass(frozen=True)
class Prompts:
    """Templates. `{question}` is what is asked; `{options}` are lines "A. …", `{subtitles}` lines of subtitles.

    Questions with a short answer are asked unchanged, as in the usual zero-shot protocol.
    """

    short_answer: str = "{question}"
    yes_no: str = "{question}"
    description: str = "{question}"
    choice: str = "{question}\n{options}\nAnswer with the letter of the right option."
    grounding: str = (
        "When does this happen: {question}\nAnswer with the seconds at which it starts and ends, such as "
        '"from 1.5 to 4 seconds".'
    )
    subtitles: str = "Subtitles of the video:\n{subtitles}\n{question}"  # put around the others

    def __post_init__(self) -> None:
        needed = {"choice": ("{question}", "{options}"), "subtitles": ("{question}", "{subtitles}")}
        for name, template in asdict(self).items():
            for slot in needed.get(name, ("{question}",)):
                if not isinstance(template, str) or slot not in template:
                    raise ValueError(f"the template {name!r} must contain {slot}")

    @property
    def sha256(self) -> str:
        """Digest of all templates."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()

    def ask(self, item: Item, subtitles: Sequence[str] = ()) -> str:
        """The text of a question."""
        options = "\n".join(f"{LETTERS[i]}. {option}" for i, option in enumerate(item.options))
        template: str = getattr(self, item.task)
        text = _fill(template, question=item.question, options=options)
        return _fill(self.subtitles, subtitles="\n".join(subtitles), question=text) if subtitles else text


def _fill(template: str, **values: str) -> str:
    """Put values into their slots; braces in values and other braces of the template stay."""
    for name, value in values.items():
        template = template.replace(f"{{{name}}}", value.replace("{", "\0"))
    return template.replace("\0", "{")


def read_prompts(path: Path | None) -> Prompts:
    """The templates, overridden by those of a JSON file. Raises:
    ValueError: the file contains anything but templates.
    """
    if path is None:
        return Prompts()
    given = read_object(path)
    names = [field.name for field in fields(Prompts)]
    if unknown := sorted(given.keys() - set(names)):
        raise ValueError(f"{path}: unknown template {unknown[0]!r}; choose from {', '.join(names)}")
    return replace(Prompts(), **given)
