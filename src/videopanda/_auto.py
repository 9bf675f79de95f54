"""Makes transformers' Auto classes know our models, without importing transformers for those who do not use it.

`install()` watches the imports of transformers and of this package: as soon as an Auto module is loaded and none of
these imports is in progress any more, our classes are registered in it. Auto modules that are loaded already are served
at once. In the same way processors are given `read_video`: models decode nothing themselves.
"""

import sys
import threading
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def _register_config(auto: ModuleType) -> None:
    from videopanda.models.videopanda.configuration_videopanda import VideoPandaConfig, VideoPandaStabConfig

    auto.AutoConfig.register("videopanda", VideoPandaConfig, exist_ok=True)
    auto.AutoConfig.register("videopanda_stab", VideoPandaStabConfig, exist_ok=True)


def _register_models(auto: ModuleType) -> None:
    from videopanda.models.videopanda.configuration_videopanda import VideoPandaConfig
    from videopanda.models.videopanda.modeling_videopanda import VideoPandaForConditionalGeneration, VideoPandaModel

    auto.AutoModel.register(VideoPandaConfig, VideoPandaModel, exist_ok=True)
    auto.AutoModelForImageTextToText.register(VideoPandaConfig, VideoPandaForConditionalGeneration, exist_ok=True)
    auto.AutoModelForMultimodalLM.register(VideoPandaConfig, VideoPandaForConditionalGeneration, exist_ok=True)


def _register_video_processor(auto: ModuleType) -> None:
    from videopanda.models.videopanda.configuration_videopanda import VideoPandaConfig
    from videopanda.models.videopanda.video_processing_videopanda import VideoPandaVideoProcessor

    auto.AutoVideoProcessor.register(VideoPandaConfig, VideoPandaVideoProcessor, exist_ok=True)


def _register_processor(auto: ModuleType) -> None:
    from videopanda.models.videopanda.configuration_videopanda import VideoPandaConfig
    from videopanda.models.videopanda.processing_videopanda import VideoPandaProcessor

    auto.AutoProcessor.register(VideoPandaConfig, VideoPandaProcessor, exist_ok=True)


def _register_reader(media: ModuleType) -> None:
    def read_video(source: Any, **arguments: Any) -> Any:
        from videopanda.video.read import read_video

        return read_video(source, **arguments)

    media.use_reader(read_video)


_REGISTER: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _register_config,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.video_processing_auto": _register_video_processor,
    "transformers.models.auto.processing_auto": _register_processor,
    "videopanda.models.media": _register_reader,
}


class _Watcher(MetaPathFinder):
    """Finds modules where Python finds them, and looks at what is loaded after each of them."""

    def __init__(self) -> None:
        self.waiting = dict(_REGISTER)
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
        """Register in every Auto module that is loaded and waits."""
        for name in [name for name in self.waiting if name in sys.modules]:
            register = self.waiting.pop(name, None)
            if register is not None:
                register(sys.modules[name])
        if not self.waiting and self in sys.meta_path:
            sys.meta_path.remove(self)


class _WatchedLoader(Loader):
    """The loader of a module, followed by a look at what is loaded once the outermost import is complete."""

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
    """Start watching, once; register at once where the Auto modules are loaded already."""
    if any(isinstance(finder, _Watcher) for finder in sys.meta_path):
        return
    watcher = _Watcher()
    sys.meta_path.insert(0, watcher)
    watcher.settle()
