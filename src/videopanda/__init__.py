"""Train, verify, run and serve encoder-free video-language models.

Public names are imported on first use, so that `import videopanda` stays light. They include the classes of all model
families.

    import videopanda
    print(videopanda.answer("clip.mp4", "What colour is the circle?"))

    chat = videopanda.Chat(*videopanda.load(), "clip.mp4")
    for text in chat.stream("What colour is the circle?"):
        print(text, end="", flush=True)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from videopanda import _auto
from videopanda.models import home_of

__version__ = "0.1.0"
__all__ = [
    "Answer",
    "Chat",
    "Sampling",
    "VideoSession",
    "aanswer",
    "answer",
    "astream",
    "explain",
    "find",
    "load",
    "read_video",
    "stream",
    "stream_video",
]

_HOME = {
    **dict.fromkeys(("Chat", "aanswer", "answer", "astream", "stream"), "videopanda.inference.answer"),
    "Answer": "videopanda.inference.reply",
    "Sampling": "videopanda.inference.sampling",
    "explain": "videopanda.inference.explain",
    "find": "videopanda.inference.find",
    "load": "videopanda.inference.load",
    "read_video": "videopanda.video.read",
    "VideoSession": "videopanda.inference.session",
    "stream_video": "videopanda.video.stream",
}


if TYPE_CHECKING:
    from videopanda.inference.answer import Chat, aanswer, answer, astream, stream
    from videopanda.inference.explain import explain
    from videopanda.inference.find import find
    from videopanda.inference.load import load
    from videopanda.inference.reply import Answer
    from videopanda.inference.sampling import Sampling
    from videopanda.inference.session import VideoSession
    from videopanda.video.read import read_video
    from videopanda.video.stream import stream_video


def __getattr__(name: str) -> Any:
    home = _HOME.get(name) or home_of(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)


_auto.install()
