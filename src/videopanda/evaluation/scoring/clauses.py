"""The clauses of a reply, which are read one by one."""

from collections.abc import Iterator

from videopanda.evaluation.scoring.choice_patterns import CLAUSE_END, CONDITION, SENTENCE_END


def clauses(text: str) -> Iterator[tuple[int, int, str]]:
    """Start and end of every clause, and whether its sentence is a "question" or a "condition", else ""."""
    start = 0
    for match in [*SENTENCE_END.finditer(text), None]:
        end = match.start() if match else len(text)
        sentence = text[start:end]
        kind = "question" if match and "?" in match[0] else "condition" if CONDITION.search(sentence) else ""
        begin = 0
        for inner in [*CLAUSE_END.finditer(sentence), None]:
            stop = inner.start() if inner else len(sentence)
            if sentence[begin:stop].strip():
                yield start + begin, start + stop, kind
            begin = inner.end() if inner else stop
        start = match.end() if match else end
