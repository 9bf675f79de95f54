"""Visual tokens on disk: a clip that any process has encoded is neither decoded nor encoded again.

    cache = TokenDiskCache("~/.cache/videopanda/tokens", 10 * 2**30)
    key = cache.key(vision_key(model, processor), clip_key("clip.mp4", num_frames=8, sampling="uniform"))
    entry = cache.get(key)            # None if there is none, or it is corrupt
    cache.put(key, tokens, {"frame_times": [...]})

An entry is a safetensors file whose name is a hash of everything that decides the tokens: content of the clip, frames
chosen, decoders, weights, configuration, data type.
"""

import hashlib
import json
import weakref
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from videopanda.video.disk_cache import DiskCache, content_sha256, decoders

FORMAT = 3  # part of every key: incremented when the vision part's arithmetic or the format of entries changes


@dataclass(frozen=True)
class CacheEntry:
    """tokens: (V, E). facts: what was kept with them, plain values. layout: of the tokens; see `EncodedVisual`."""

    tokens: Tensor
    facts: dict[str, Any]
    layout: Tensor | None = None


class TokenDiskCache(DiskCache):
    """A folder of entries, of at most `max_bytes` in total; the least recently used ones are evicted."""

    suffix = ".safetensors"
    corrupt = (*DiskCache.corrupt, SafetensorError)

    @staticmethod
    def key(*parts: str) -> str:
        """The name of an entry."""
        return hashlib.sha256(json.dumps([FORMAT, torch.__version__, *parts]).encode()).hexdigest()

    def parse(self, content: bytes) -> CacheEntry:
        """Tokens and facts. Raises what `corrupt` lists."""
        # A copy: unaligned buffers change the summation order of kernels.
        tensors = {name: tensor.clone() for name, tensor in load(content).items()}
        facts = _metadata(content)
        if facts["sha256"] != _sha256(tensors, facts["facts"]):
            raise SafetensorError("checksum mismatch")
        return CacheEntry(tensors["tokens"], json.loads(facts["facts"]), tensors.get("layout"))

    def put(self, key: str, tokens: Tensor, facts: dict[str, Any], layout: Tensor | None = None) -> None:
        """Write an entry and evict old ones if needed. A full disk is logged, not raised."""
        given = {"tokens": tokens} if layout is None else {"tokens": tokens, "layout": layout}
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in given.items()}
        told = json.dumps(facts)
        self.write(key, save(tensors, {"facts": told, "sha256": _sha256(tensors, told)}))


def _metadata(content: bytes) -> dict[str, str]:
    """Of a safetensors file: eight bytes with the length of a JSON header, then the header."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return dict(header["__metadata__"])


def _sha256(tensors: dict[str, Tensor], facts: str) -> str:
    content = hashlib.sha256(facts.encode())
    for _, tensor in sorted(tensors.items()):
        content.update(tensor.contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return content.hexdigest()


# -- keys --------------------------------------------------------------------------------------------------------------
def clip_key(
    video: Any,
    *,
    num_frames: int | None,
    sampling: str,
    start: float | None = None,
    end: float | None = None,
    fps: float | None = None,
) -> str | None:
    """Content of a clip and the choice of its frames; None for sources that can be read only once or are missing.

    Raises:
        OSError: the file cannot be read.
    """
    if hasattr(video, "frames"):
        content = hashlib.sha256()
        for frame in map(np.asarray, video.frames):  # which may differ in size
            content.update(json.dumps(frame.shape).encode())
            content.update(frame.tobytes())
        times = [float(moment) for moment in video.timestamps]
        content.update(json.dumps([float(video.duration), times, bool(getattr(video, "is_still", False))]).encode())
        return f"frames {content.hexdigest()}"
    if (found := content_sha256(video)) is None:
        return None
    choice = json.dumps([num_frames, sampling, start, end, decoders(), *([] if fps is None else [fps])])
    return f"file {found} {choice}"


_VISION_KEYS: "weakref.WeakKeyDictionary[Any, str]" = weakref.WeakKeyDictionary()


def vision_key(model: Any, processor: Any) -> str:
    """Weights of the vision modules, their configuration, data type, device, and settings of the processor.

    Hashed once for each model: later changes of the weights are not noticed.
    """
    if model not in _VISION_KEYS:
        vision = {name: v for name, v in model.config.to_dict().items() if name not in ("text_config", "_name_or_path")}
        content = hashlib.sha256(json.dumps(vision, sort_keys=True, default=str).encode())
        for part in model.vision_modules().values():
            for name, tensor in part.state_dict().items():
                content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
                content.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        _VISION_KEYS[model] = content.hexdigest()
    settings = [processor.time_prompt, processor.timestamps, processor.video_processor.to_json_string()]
    return json.dumps([_VISION_KEYS[model], str(model.dtype), model.device.type, *settings])
