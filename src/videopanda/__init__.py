"""Train, verify, run and serve encoder-free video-language models.

Five names make the public interface; each is imported on first use, so that `import videopanda` stays light:

    import videopanda
    print(videopanda.answer("clip.mp4", "What colour is the circle?"))
"""

from importlib import import_module
from typing import Any

from videopanda import _auto

__version__ = "0.1.0"
__all__ = ["VideoPandaConfig", "VideoPandaForConditionalGeneration", "VideoPandaProcessor", "answer", "read_video"]

_HOME = {
    "VideoPandaConfig": "videopanda.models.videopanda",
    "VideoPandaForConditionalGeneration": "videopanda.models.videopanda",
    "VideoPandaProcessor": "videopanda.models.videopanda",
    "answer": "videopanda.inference.answer",
    "read_video": "videopanda.video.read",
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


_auto.install()
