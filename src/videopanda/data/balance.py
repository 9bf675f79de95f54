"""How even training data is: which answers a question gets, and which words the answers contain.

A model learns what is frequent: the Video-Panda paper blames 7,807 dogs against 5,050 cats for a wrong answer.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any

from videopanda.data.formats.record import Record

MOST = 20  # words and questions that are reported
OFTEN = 20  # times that a question must be asked before its answers are compared
_SHORT = 5  # words; longer answers are descriptions, of which no two are alike
_FUNCTION_WORDS = (
    "a about after all also an and are as at back be been before being but by can do does down each for from front "
    "has have he her him his how i in into is it its just left like no not of off on one or other out over right "
    "scene see seen she shown shows side so some such than that the their them then there these they this those "
    "through to two under up video was we were what when where which while who with yes you your"
)


@dataclass
class Balance:
    """Counts of a data set.

    answers: short answers (at most five words), by how often they are given.
    questions: of every question that is asked often with short answers, how often it got each.
    words: rows whose answers contain a word; function words are left out.
    """

    rows: int = 0
    answers: Counter[str] = field(default_factory=Counter)
    questions: defaultdict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    words: Counter[str] = field(default_factory=Counter)

    def add(self, record: Record) -> None:
        """Count a row."""
        self.rows += 1
        held: set[str] = set()
        for turn in record.turns:
            held |= set(re.findall(r"[^\W\d_]+", turn.answer.lower()))
            answer = turn.answer.strip().rstrip(".").lower()
            if len(answer.split()) <= _SHORT:
                question = " ".join(re.sub("<(?:image|video)>", " ", turn.question).split())
                self.answers[answer] += 1
                self.questions[question][answer] += 1
        self.words.update(held)

    def report(self, words: Iterable[str] = ()) -> dict[str, Any]:
        """Plain values: the most frequent answers and words, and the questions with the most one-sided answers.

        Args:
            words: to count as well, whether frequent or not.
        """
        often = [(name, counts) for name, counts in self.questions.items() if counts.total() >= OFTEN]
        sided = [OneSided(name, n.total(), *n.most_common(1)[0]) for name, n in often]
        sided.sort(key=lambda found: (-found.share, -found.asked))
        skipped = set(_FUNCTION_WORDS.split())
        content = [(word, n) for word, n in self.words.most_common() if len(word) > 1 and word not in skipped][:MOST]
        return {
            "rows": self.rows,
            "answers": dict(self.answers.most_common(MOST)),
            "short_answers": self.answers.total(),
            "questions": [{**asdict(found), "share": round(found.share, 4)} for found in sided[:MOST]],
            "words": dict(content) | {word: self.words[word.lower()] for word in words},
        }


@dataclass(frozen=True)
class OneSided:
    """A question with its most frequent answer."""

    question: str
    asked: int
    answer: str
    given: int

    @property
    def share(self) -> float:
        """Of the most frequent answer: what a model scores that always gives it."""
        return self.given / self.asked
