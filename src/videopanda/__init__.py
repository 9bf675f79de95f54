"""Train, verify, run and serve encoder-free video-language models.

The public names are imported on first use, so that `import videopanda` stays light; beside those below, the classes of
all model families:

    import videopanda
    print(videopanda.answer("clip.mp4", "What colour is the circle?"))
"""

from importlib import import_module
from typing import Any

from videopanda import _auto
from videopanda.models import home_of

__version__ = "0.1.0"
__all__ = ["answer", "read_video"]

_HOME = {"answer": "videopanda.inference.answer", "read_video": "videopanda.video.read"}


def __getattr__(name: str) -> Any:
    home = _HOME.get(name) or home_of(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(home), name)


def __dir__() -> list[str]:
    return sorted(__all__)


_auto.install()
