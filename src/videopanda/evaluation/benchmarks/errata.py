"""Known errors of published annotations, found by rule, and three modes of handling them.

    as-published   nothing is changed
    corrected      certain errors are repaired; a question that cannot be repaired is left out
    strict         every question that an erratum touches is left out

Omitted questions are listed. The rules look at content, so they find the errors in any copy of the files; where the
literature or a count of the real files says how many there are, the benchmark's table says so (`Erratum.documented`).
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

from videopanda.evaluation.benchmarks.files import Rejected
from videopanda.evaluation.benchmarks.item import Item

MODES = ("as-published", "corrected", "strict")


@dataclass(frozen=True)
class Erratum:
    """One kind of error."""

    name: str
    what: str
    is_in: Callable[[Item], bool]
    repair: Callable[[Item], Item | None]  # None: no repair is certain
    documented: str = ""  # what is known of the published files


def without(key: str) -> Callable[[Item], Item]:
    """A repair that drops a wrong entry of `extra`."""
    return lambda item: replace(item, extra={k: v for k, v in item.extra.items() if k != key})


def _accept_equal_options(item: Item) -> Item:
    texts = {item.options[i] for i in item.right}
    return replace(item, right=tuple(i for i, option in enumerate(item.options) if option in texts))


def _find_reworded_option(item: Item) -> Item | None:
    """The one option that is part of the longer answer, or that the answer is part of."""
    answer = item.answers[0].casefold() if item.answers else ""
    options = [option.casefold() for option in item.options]
    near = [i for i, option in enumerate(options) if option and answer and (option in answer or answer in option)]
    return replace(item, right=(near[0],)) if len(near) == 1 else None


DUPLICATE_OPTIONS = Erratum(
    "duplicate-options",
    "two options are the same text: when the right one is among them, the key is ambiguous; all of them are accepted",
    lambda item: item.task == "choice" and len({*filter(None, item.options)}) < len([*filter(None, item.options)]),
    _accept_equal_options,
)
EMPTY_OPTION = Erratum(
    "empty-option",
    "an option is empty; a question whose options are all empty cannot be asked",
    lambda item: item.task == "choice" and "" in item.options,
    lambda item: item if any(item.options) else None,
)
ANSWER_NOT_AN_OPTION = Erratum(
    "answer-not-an-option",
    "the answer is none of the options; it is matched to the one option that contains it or is contained in it",
    lambda item: item.task == "choice" and item.has_answer and not item.right,
    _find_reworded_option,
)
SINGLE_OPTION = Erratum(
    "single-option",
    "there is only one option, so every answer is right",
    lambda item: item.task == "choice" and len(item.options) == 1,
    lambda item: None,
)
REPEATED_KEY = Erratum(
    "repeated-key",
    "a JSON key appears in the row more than once; the last one counts",
    lambda item: "repeated_keys" in item.extra,
    lambda item: item,
)
COMMON = (DUPLICATE_OPTIONS, EMPTY_OPTION, ANSWER_NOT_AN_OPTION, SINGLE_OPTION, REPEATED_KEY)


def apply(item: Item, errata: tuple[Erratum, ...], mode: str) -> tuple[Item | Rejected, tuple[str, ...]]:
    """The item in this mode, or why it is left out; and the names of the errata in its published form."""
    hits = tuple(erratum for erratum in errata if erratum.is_in(item))
    names = tuple(erratum.name for erratum in hits)
    if mode == "as-published" or not hits:
        return item, names
    if mode == "strict":
        return Rejected(item.place, f"erratum: {', '.join(names)}", item.id), names
    for erratum in hits:
        repaired = erratum.repair(item)
        if repaired is None:
            return Rejected(item.place, f"erratum without a repair: {erratum.name}", item.id), names
        item = repaired
    return item, names
