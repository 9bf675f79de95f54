"""Registers our models with transformers' Auto classes, without importing transformers before it is needed.

`install()` watches the imports of transformers and of this package: as soon as an Auto module is loaded and none of
these imports is in progress anymore, our classes are registered in it. Auto modules that are already loaded are
handled at once. Processors get `read_video` the same way, because models do not decode video themselves.
"""

import sys
import threading
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any

# The Auto modules of transformers, and which of their classes find something of ours.
_AUTO = {
    "transformers.models.auto.configuration_auto": ("AutoConfig",),
    "transformers.models.auto.modeling_auto": ("AutoModel", "AutoModelForImageTextToText", "AutoModelForMultimodalLM"),
    "transformers.models.auto.video_processing_auto": ("AutoVideoProcessor",),
    "transformers.models.auto.processing_auto": ("AutoProcessor",),
}

_READER = "videopanda.models.media"  # where processors ask for `read_video`


def _read_video(source: Any, **arguments: Any) -> Any:
    from videopanda.video.read import read_video

    return read_video(source, **arguments)


def _register(auto: ModuleType) -> None:
    """Register the `AUTO_MAP` of every family in `models/`."""
    from videopanda.models import folders

    for family in folders():
        home = import_module(f"videopanda.models.{family}.configuration_{family}")

        def find(name: str, home: ModuleType = home) -> Any:
            file, _, wanted = home.AUTO_MAP[name].partition(".")
            return getattr(import_module(f"{home.__package__}.{file}"), wanted)

        config = find("AutoConfig")
        for name in _AUTO[auto.__name__]:
            if name != "AutoConfig":
                getattr(auto, name).register(config, find(name), exist_ok=True)
                continue
            for kind in (config, *config.sub_configs.values()):
                if getattr(kind, "model_type", ""):  # not `AutoConfig`, which stands for any
                    auto.AutoConfig.register(kind.model_type, kind, exist_ok=True)


class _Watcher(MetaPathFinder):
    """A pass-through module finder that checks for loaded Auto modules after each import."""

    def __init__(self) -> None:
        self.waiting = {*_AUTO, _READER}
        self.local = threading.local()
        self.local.depth = 0

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname.partition(".")[0] not in ("transformers", "videopanda"):
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _WatchedLoader(spec.loader, self)
        return spec

    def settle(self) -> None:
        """Register in every loaded Auto module that is still pending."""
        for name in [name for name in self.waiting if name in sys.modules]:
            self.waiting.discard(name)
            if name == _READER:
                sys.modules[name].use_reader(_read_video)
            else:
                _register(sys.modules[name])
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


class _WatchedLoader(Loader):
    """A module's loader that checks for loaded Auto modules once the outermost import is complete."""

    def __init__(self, loader: Loader, watcher: _Watcher):
        self.loader, self.watcher = loader, watcher

    def __getattr__(self, name: str) -> Any:
        # `python -m` and inspection ask a loader for code and sources.
        return getattr(self.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self.loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        spec = module.__spec__
        if spec is not None:
            spec.loader = self.loader  # tools that read source or resources ask the module's own loader
        module.__loader__ = self.loader
        local = self.watcher.local
        local.depth = vars(local).get("depth", 0) + 1
        try:
            self.loader.exec_module(module)
        finally:
            local.depth -= 1
        if local.depth == 0:
            self.watcher.settle()


def install() -> None:
    """Start watching, once; register at once if the Auto modules are already loaded."""
    if any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        return
    watcher = _Watcher()
    sys.meta_path.insert(0, watcher)
    watcher.settle()
