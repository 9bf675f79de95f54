"""The data card that `make_long` writes beside the clips: what they show, how they are scored, how to cite them."""

from collections.abc import Mapping
from typing import Any

from videopanda.data.worlds.long.world import IDLE_SHARE, VERSION

_TEXT = """---
license: apache-2.0
task_categories:
- visual-question-answering
language:
- en
tags:
- video
- long-video
- synthetic-data
---

# Long scenes, version {version}

Generated videos of {lengths} minutes, {num} of each length, split `{split}`, seed {seed}. Made by `videopanda
scenes make --long`, without any real footage or people.

- **What the clips show.** An empty dark picture of 96 × 72 pixels at 4 frames per second, in which a circle, square,
  triangle or cross appears for some seconds now and then, and a lamp in the corner that changes its color one
  to three times. At least about {idle:.0%} of a clip shows nothing but the lamp.
- **What is asked.** `which` color a shape has that is named by size, shape and motion; `when` (in which fifth of
  the clip) and how often (`count`) a shape appears; which of two comes first (`order`); the color of the lamp at
  the end (`now`) and before its last change (`before`). Every answer is certain from the clip.
- **What makes it hard.** The shapes asked about (needles) are shown for {needle_seconds:g} seconds. Distractors share
  two or three of the four attributes of a needle: no attribute, and no pair of them, identifies it.
- **Scoring.** An answer is right if it is the expected word, apart from case and a final period. Report accuracy by
  length with its interval, next to the same model without the video and with the last 4 frames only: `videopanda
  evaluate predict scenes DIR`, `evaluate score`, `evaluate needle`; in lmms-eval the task is
  `long_scenes_videopanda`.
- **Splits** are drawn from separate random numbers. Do not train on `test`.
- **Identity.** SHA-256 of `annotations.json`: `{digest}`. The clips are re-encoded by the local x264, so their
  bytes may differ between machines, but not what they show.
- **Citation.** "Long scenes (videopanda), version {version}, split {split}, seed {seed}, digest {short}".
"""


def card(header: Mapping[str, Any]) -> str:
    """The card of a data set with this `long.json`."""
    lengths = ", ".join(f"{minutes:g}" for minutes in header["minutes"])
    values = {**header, "lengths": lengths, "version": VERSION, "idle": IDLE_SHARE, "short": header["digest"][:12]}
    return _TEXT.format(**values)
