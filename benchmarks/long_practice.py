"""Questions to learn from: the six families of the long world, about every visit of a story and not only its needles.

    practice_questions(make_story(0, "train", index=3, minutes=2), np.random.default_rng(3))

A clip that is encoded once then teaches a dozen times. The words are those of `make_questions`, and so are the rules:
only what the story answers for certain is asked.
"""

from collections import defaultdict
from itertools import combinations

import numpy as np

from videopanda.data.worlds.long.world import (
    Kind,
    LongQuestion,
    Story,
    count,
    lamp_questions,
    order,
    part_of,
    when,
    which,
)

_AT_MOST = {"which": 5, "when": 4, "order": 4, "count": 2, "now": 1, "before": 1}  # about one clip


def practice_questions(story: Story, rng: np.random.Generator) -> list[LongQuestion]:
    """Up to 17 questions, those of each family drawn by `rng`."""
    kinds = sorted({visit.kind for visit in story.visits})
    times = {kind: story.times(kind) for kind in kinds}
    once = {kind: shown[0] for kind, shown in times.items() if len(shown) == 1}
    depths = {kind: (visit.start + visit.end) / 2 / story.seconds for kind, visit in once.items()}
    alike: dict[tuple[str, str, str], set[Kind]] = defaultdict(set)
    for kind in kinds:
        alike[kind.size, kind.shape, kind.motion].add(kind)
    found: dict[str, list[LongQuestion]] = defaultdict(list)
    for same in alike.values():
        if len(same) == 1:
            (kind,) = same
            found["which"].append(LongQuestion("which", which(kind), kind.colour, depths.get(kind), None))
    for kind, depth in depths.items():
        part = part_of(depth)
        if part is not None:
            found["when"].append(LongQuestion("when", when(kind), part, depth, None))
    for a, b in combinations(once, 2):
        if a.colour != b.colour:
            text, named = order(a, b)
            earlier = min(named, key=lambda kind: once[kind].start)
            found["order"].append(LongQuestion("order", text, earlier.colour, depths[earlier], None))
    # Most kinds appear once: as many questions about those as about all that appear again.
    several = [kind for kind in kinds if len(times[kind]) > 1]
    alone = [list(once)[i] for i in rng.permutation(len(once))]
    for kind in [*several, *alone[: max(1, len(several))]]:
        found["count"].append(LongQuestion("count", count(kind), str(len(times[kind])), None, None))
    for question in lamp_questions(story):
        found[question.family].append(question)
    chosen = []
    for family, questions in found.items():
        chosen += [questions[i] for i in rng.permutation(len(questions))[: _AT_MOST[family]]]
    return chosen
