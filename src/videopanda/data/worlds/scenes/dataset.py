"""Scenes as an endless training set: drawn on the fly, only at the times that the model sees.

dataset = ScenesDataset(num=100_000, seed=0)
dataset[0].videos[0].frames.shape, dataset[0].conversations
"""

import hashlib
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from videopanda.data.sample import Sample, Turn
from videopanda.data.worlds.scenes.exact_times import EVENTFUL, exact_questions, part_of
from videopanda.data.worlds.scenes.outside import outside_frames, unanswerable
from videopanda.data.worlds.scenes.questions import (
    DESCRIBE,
    Question,
    brief_captions,
    describe,
    in_random_order,
    make_captions,
    make_questions,
    phrases,
    place,
)
from videopanda.data.worlds.scenes.render import Renderer, coverage
from videopanda.data.worlds.scenes.wordings import DECLINE, follow_up, intent_of, outside_question, reworded
from videopanda.data.worlds.scenes.world import THEMES, Difficulty, Scene, Thing, make_scene

# Most questions of one family about one clip. What is learned late gets more room; rare families are not bounded.
_AT_MOST = {
    "shape": 1,
    "size": 1,
    "existence": 1,
    "spatial_relation": 1,
    "count": 2,
    "event_count": 2,
    "colour": 2,
    "duration": 6,
}

# Training sees the themes that rare families need more often than the world that tests use.
TRAINING_THEMES = (*THEMES, "move", "race", "race", "order", "order", "change")


@dataclass(frozen=True)
class Clip:
    """Frames of a scene that were never written to a file. Same fields as `videopanda.video.read.Video`."""

    frames: np.ndarray  # uint8 (T, height, width, 3)
    timestamps: tuple[float, ...]  # seconds
    duration: float  # seconds
    scene: Scene | None = None  # what it was drawn from

    def frame_phrases(self) -> list[list[str]]:
        """What a person would name in each frame, thing by thing: "small red circle top left"."""
        if self.scene is None:
            raise ValueError("this clip was decoded from a file, so nothing is known of its frames")
        return [phrases(self.scene, second) for second in self.timestamps]

    def cell_words(self, rows: int, columns: int) -> list[tuple[str, ...]]:
        """What each cell of a `rows` × `columns` grid shows, frame by frame in reading order.

        (size, colour, shape, one or two words for the cell's place) of the thing that covers most of the cell, or
        ("nothing",) where none covers a fifth.
        """
        if self.scene is None:
            raise ValueError("this clip was decoded from a file, so the contents of its cells are unknown")
        words: list[tuple[str, ...]] = []
        for second in self.timestamps:
            for (row, column), owner in np.ndenumerate(coverage(self.scene, second, rows, columns)):
                if owner < 0:
                    words.append(("nothing",))
                    continue
                thing = self.scene.things[owner]
                where = place((column + 0.5) / columns, (row + 0.5) / rows).split()
                words.append((thing.size, thing.colour_at(second), thing.shape, *where))
        return words


class OutsideClip(Clip):
    """Frames that show no scene."""

    def cell_words(self, rows: int, columns: int) -> list[tuple[str, ...]]:
        """No words for any cell: the words of Scenes do not describe it."""
        return [()] * (rows * columns * len(self.timestamps))


@dataclass(frozen=True)
class ScenesDataset:
    """Map-style data set of `num` scenes; item `i` depends on (seed, split, i) only."""

    num: int
    seed: int = 0
    split: str = "train"
    num_frames: int = 8
    captions: int = 2  # of the clip and of single frames, per sample
    # Captions only name the things. Not in the repr, which identifies data: runs compare this setting themselves.
    brief: bool = field(default=False, repr=False)
    chats: float = 0.15  # share of samples in which some questions form one longer conversation
    text_only: bool = False  # no video: its description stands in the question
    described: Literal["frames", "whole"] = "frames"  # that description: of every frame, or of the clip as a whole
    max_things: int = 4
    ramp: float = 0.0  # share of the set over which the number of things grows from 1 to `max_things`
    plain: float = 0.0  # share of scenes on a plain, still background
    wordings: float = 0.0  # share of questions in other words; above 0, some that the clip does not answer are added
    outside: float = 0.0  # share of clips that show no scene, about which every question is declined
    # Share of clips that are parts of a scene at another speed, asked for exact times. Not in the repr either.
    exact_times: float = field(default=0.0, repr=False)
    themes: tuple[str, ...] = TRAINING_THEMES  # what the scenes are about; in "still" ones nothing moves or changes

    def __len__(self) -> int:
        return self.num

    def set_epoch(self, epoch: int) -> None:
        """Does nothing: scenes never repeat, so there is only one order."""

    def content(self) -> str:
        """A hash of the settings, which determine every scene."""
        return hashlib.sha256(repr(self).encode()).hexdigest()

    def lengths(self) -> np.ndarray:
        """All scenes count as equally long, (num,)."""
        return np.ones(self.num, np.int64)

    def files(self, index: int) -> list[str]:
        """Nothing is read; the name of the scene."""
        return [f"scene {self.split}-{self.seed}-{index}"]

    def validation(self, num: int) -> "ScenesDataset":
        """`num` scenes of the split that is never trained on, at full difficulty."""
        return replace(self, num=num, split="validation", ramp=0.0)

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < self.num:
            raise IndexError(index)
        name = f"{self.split}-{self.seed}-{index}"
        other = np.random.default_rng([self.seed, index, 4])
        if not self.text_only and other.random() < self.outside:
            return self._outside(name, index, other)
        rng = np.random.default_rng([self.seed, index, 1])
        grown = 1 + int(index / (self.num * self.ramp) * self.max_things) if self.ramp else self.max_things
        difficulty = Difficulty(min(grown, self.max_things), self.themes, plain=bool(rng.random() < self.plain))
        if not self.text_only and other.random() < self.exact_times:
            eventful = replace(difficulty, themes=EVENTFUL)
            return self._exact(name, make_scene(self.seed, self.split, index, eventful), other)
        scene = make_scene(self.seed, self.split, index, difficulty)
        conversations = self._conversations(scene, rng)
        if self.wordings:
            conversations = self._in_words(scene, conversations, rng)
        if self.text_only:
            text = frame_log(scene, self.num_frames) if self.described == "frames" else summary(scene)
            conversations = [(Turn(f"{text}\n{turns[0][0]}", turns[0][1]), *turns[1:]) for turns in conversations]
            return Sample(name, (), tuple(conversations))
        return Sample(name, (draw(scene, self.num_frames),), tuple(conversations))

    def _conversations(self, scene: Scene, rng: np.random.Generator) -> list[tuple[Turn, ...]]:
        # Asked twice, in other words and pairs: rare questions are worth more than common ones of yet another clip.
        drawn = {q.question: q for _ in range(2) for q in make_questions(scene, rng)}
        questions = balanced([drawn[text] for text in rng.permutation(sorted(drawn))])
        captions = brief_captions(scene) if self.brief else make_captions(scene, self.num_frames)
        captions = [captions[i] for i in rng.permutation(len(captions))[: self.captions]]
        turns = [Turn(q.question, q.answer) for q in (*captions, *questions)]
        if rng.random() < self.chats and len(turns) > 4:
            return [tuple(turns[:3]), *((turn,) for turn in turns[3:])]
        return [(turn,) for turn in turns]

    def _in_words(
        self, scene: Scene, conversations: list[tuple[Turn, ...]], rng: np.random.Generator
    ) -> list[tuple[Turn, ...]]:
        """Some of the questions in other words, a follow-up, and questions that are declined; in random order."""

        def said(turn: Turn) -> Turn:
            if not _can_be_reworded(turn.question) or rng.random() >= self.wordings:
                return turn
            question = reworded(Question("", turn.question, turn.answer), "train", rng)
            return Turn(question.question, question.answer)

        # Twice: asking the same in other words costs less than another clip.
        told = [tuple(said(turn) for turn in turns) for _ in range(2) for turns in conversations]
        described = Question("caption", DESCRIBE, describe(scene))
        absent = ((0.75, unanswerable(scene, rng)) for _ in range(2))
        more = (*absent, (0.5, outside_question("train", rng)), (0.12, described))
        told += [(said(Turn(q.question, q.answer)),) for share, q in more if rng.random() < share]
        if rng.random() < self.chats * 2 and (pair := _same_about_two(scene, make_questions(scene, rng))):
            written, second = pair[0], follow_up(pair[1], "train", rng, is_other=len(scene.things) == 2)
            first = said(Turn(written.question, written.answer))
            if first.answer != written.answer:  # "And the other one?" after a question for yes or no asks for that too
                first = Turn(written.question, written.answer)
            told.append((first, Turn(second.question, second.answer)))
        told = list(dict.fromkeys(told))
        return [told[i] for i in rng.permutation(len(told))]

    def _exact(self, name: str, scene: Scene, rng: np.random.Generator) -> Sample:
        part = part_of(scene, self.num_frames, rng)
        questions = exact_questions(part, rng) or [outside_question("train", rng)]
        if part.is_whole:  # whatever does not depend on the speed is as true as before
            usual = [q for q in make_questions(part.scene, rng) if q.family != "duration"]
            if self.wordings:
                usual = [reworded(q, "train", rng) if rng.random() < self.wordings else q for q in usual]
            questions = in_random_order((*questions, *usual[:8]), rng)
        frames = Renderer(part.scene).frames(part.times)
        clip = Clip(frames, part.times, part.duration, part.scene)
        return Sample(name, (clip,), tuple((Turn(q.question, q.answer),) for q in questions))

    def _outside(self, name: str, index: int, rng: np.random.Generator) -> Sample:
        duration = float(rng.choice([rng.uniform(0.3, 4), rng.uniform(3, 12), rng.uniform(8, 90)]))
        frames = outside_frames(rng, self.num_frames)
        times = tuple((i + 0.5) * duration / self.num_frames for i in range(self.num_frames))
        questions = [q.question for q in make_questions(make_scene(self.seed, self.split, index), rng)[:10]]
        texts = [
            reworded(Question("", text, DECLINE), "train", rng).question if rng.random() < self.wordings else text
            for text in (DESCRIBE, DESCRIBE, *questions)
        ] + [outside_question("train", rng).question for _ in range(4)]
        clip = OutsideClip(frames, times, duration)
        return Sample(name, (clip,), tuple((Turn(text, DECLINE),) for text in texts))


def _can_be_reworded(question: str) -> bool:
    try:
        intent_of(question)
    except ValueError:  # a description of a single frame
        return False
    return True


def _same_about_two(scene: Scene, questions: list[Question]) -> tuple[Question, Question] | None:
    """Two questions of one intent about different objects, if there are any."""
    seen: dict[str, tuple[Question, Thing]] = {}
    for question in questions:
        intent, slots = intent_of(question.question)
        thing = _called(scene, slots["a"]) if set(slots) == {"a"} else None
        if thing is None or intent.name == "existence":
            continue
        if intent.name in seen and seen[intent.name][1] is not thing:
            return seen[intent.name][0], question
        seen.setdefault(intent.name, (question, thing))
    return None


def _called(scene: Scene, name: str) -> Thing | None:
    """The only thing of that name."""
    found = [t for t in scene.things if name in (t.name, t.shape, f"{t.colour} object", f"{t.size} {t.shape}")]
    return found[0] if len(found) == 1 else None


def balanced(questions: list[Question]) -> list[Question]:
    """Limit the questions of each common family; the rare families come first."""
    kept: list[Question] = []
    for question in questions:
        most = _AT_MOST.get(question.family)
        if most is None or sum(q.family == question.family for q in kept) < most:
            kept.append(question)
    return sorted(kept, key=lambda q: q.family in _AT_MOST)


def draw(scene: Scene, num_frames: int) -> Clip:
    """The frames that a decoder would show at `num_frames` uniform times."""
    wanted = (np.arange(num_frames) + 0.5) * scene.duration / num_frames
    shown = np.floor(wanted * scene.fps + 1e-6) / scene.fps
    return Clip(Renderer(scene).frames(shown), tuple(float(t) for t in shown), scene.duration, scene)


def frame_log(scene: Scene, num_frames: int) -> str:
    """The clip in words, frame by frame, for a language model that cannot see it."""
    frames = make_captions(scene, num_frames)[1:]
    return f"{scene.duration:.1f} seconds: " + " ".join(f"{i}: {q.answer}." for i, q in enumerate(frames, start=1))


def summary(scene: Scene) -> str:
    """The clip in words as a whole, as a person would describe it."""
    return f"{scene.duration:.1f} seconds: {describe(scene)}"
