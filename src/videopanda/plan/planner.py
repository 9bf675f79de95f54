"""The cost of a clip and its questions: computed by running the model itself on the meta device.

    planner = planner_for(model, processor.video_processor)    # of a loaded model; kept as long as the model is
    plan = planner.plan(64, 720, 1280, text_tokens=40, new_tokens=64)
    plan.visual_tokens, plan.peak_bytes
    plan.require(budget(model))                                 # raises DoesNotFitError, which says what would fit

Tokens are counted by the processor, shapes are those of its outputs; FLOPs and memory are counted while the
model's own code runs. A FLOP is a multiplication or an addition: two per multiply-accumulate.
"""

import weakref
from bisect import bisect_left
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import psutil
import torch
from torch import nn
from transformers import Cache, DynamicCache, DynamicLayer

from videopanda.models.configuration import context_length, fix_rope
from videopanda.models.families import model_class
from videopanda.models.merging import ARGUMENT as MERGER
from videopanda.models.merging import Merger, VisualPlaces, add_layer_hooks
from videopanda.plan.trace import trace

TEXT_TOKENS = 64  # tokens of a prompt in addition to its clip, if unknown
NEW_TOKENS = 64  # of a reply


class DoesNotFitError(ValueError):
    """A request that exceeds the context of the language model or the memory; the message says what would fit."""


@dataclass(frozen=True)
class Plan:
    """What one request costs.

    visual_tokens: tokens of the clip, exactly as the processor places them in the prompt.
    stamp_tokens: text tokens of the times of its frames, where the processor writes them.
    context: maximum length of prompt and reply together.
    flops: "vision" (vision modules), "prefill" (language model, clip and text) and "per_token" (each new token).
    weight_bytes: all weights, as they lie in memory.
    phase_bytes: peak memory beyond the weights while the clip is prepared ("prepare", host) and encoded ("vision"),
        during the prefill ("prefill") and while the reply is generated ("generate"). On a CPU all phases include the
        decoded frames.
    kv_bytes: keys and values of prompt and reply at the end, a part of "generate".
    layer_tokens: visual tokens that each layer of the language model reads; fewer after a merge.
    """

    frames: int
    height: int
    width: int
    visual_tokens: int
    stamp_tokens: int
    text_tokens: int
    new_tokens: int
    context: int
    flops: dict[str, int]
    weight_bytes: int
    phase_bytes: dict[str, int]
    kv_bytes: int
    layer_tokens: list[int]
    planner: "Planner" = field(repr=False, compare=False)

    @property
    def tokens(self) -> int:
        """Tokens of prompt and reply."""
        return self.visual_tokens + self.stamp_tokens + self.text_tokens + self.new_tokens

    @property
    def peak_bytes(self) -> int:
        """Peak memory on the model's device, weights included."""
        on_host = self.planner.on_host
        return self.weight_bytes + max(size for name, size in self.phase_bytes.items() if on_host or name != "prepare")

    def require(self, budget_bytes: int | None = None) -> None:
        """Check that the request fits into the context and, if given, into the memory budget.

        Raises:
            DoesNotFitError: it does not; the message says how many frames would.
        """
        size = {"text_tokens": self.text_tokens, "new_tokens": self.new_tokens}
        self.planner.require_context(self.frames, self.height, self.width, **size)
        if budget_bytes is not None and self.peak_bytes > budget_bytes:
            most = self.planner.most_frames(self.height, self.width, budget_bytes, **size, at_most=self.frames)
            raise DoesNotFitError(
                f"{self.frames} frames of {self.width}x{self.height} need {in_gib(self.peak_bytes)} of memory, "
                f"{in_gib(self.weight_bytes)} of it for the weights, but only {in_gib(budget_bytes)} is available: "
                f"{_advice(most)}"
            )

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        names = ("frames", "height", "width", "visual_tokens", "stamp_tokens", "text_tokens", "new_tokens", "context")
        clip_flops = self.planner.prefill_flops(self.frames, self.height, self.width)
        return {name: getattr(self, name) for name in names} | {
            "flops": {**self.flops, "prefill_clip": clip_flops},
            "layer_tokens": self.layer_tokens,
            "memory_bytes": {
                "weights": self.weight_bytes,
                "kv_cache": self.kv_bytes,
                **self.phase_bytes,
                "peak": self.peak_bytes,
            },
        }


class Planner:
    """Plans requests to one model.

    Args:
        config, video_processor: of the model.
        dtype: of weights and arithmetic.
        on_host: the model runs on the CPU, so decoded frames are in the same memory.
        weight_bytes: of a loaded model; default: computed from `dtype` and `quantize`.
        quantize: "int8" or "nf4": the layers of the language model as `inference.quantize` makes them; "" as `dtype`.
        grain: prompts are traced at lengths rounded up to a multiple of this. A server with many clips traces less;
            its FLOPs and memory are then upper bounds. Tokens stay exact.
        stamp_tokens: text tokens of the times of a number of frames; default none. See `VisualProcessor.stamp_tokens`.
    """

    def __init__(
        self,
        config: Any,
        video_processor: Any,
        dtype: torch.dtype,
        *,
        on_host: bool = True,
        weight_bytes: int | None = None,
        quantize: str = "",
        grain: int = 1,
        stamp_tokens: Callable[[int], int] = lambda frames: 0,
    ):
        self.video_processor, self.dtype, self.on_host, self.grain = video_processor, dtype, on_host, grain
        self.stamp_tokens, self.quantize = stamp_tokens, quantize
        config = deepcopy(config)
        config._attn_implementation = None  # SDPA where the language model can be computed so
        self.context = context_length(config.text_config)
        fix_rope(config.text_config)
        with torch.inference_mode(False), torch.device("meta"):
            self.model = model_class(config)(config).eval().to(dtype)
        self._held = [*self.model.parameters(), *self.model.buffers()]
        saved = _saved_bytes(self.model, quantize)
        self.weight_bytes = weight_bytes or sum(tensor.nbytes for tensor in self._held) - saved
        text = (*self.model.get_decoder().parameters(), self.model.get_output_embeddings().weight)
        embedding = self.model.get_input_embeddings().weight  # of which a new token reads one row
        read = {id(weight): weight.nbytes for weight in text if weight is not embedding or weight is text[-1]}
        self.text_bytes = sum(read.values()) - saved  # that each new token reads
        self._vision: dict[str, tuple[int, int]] = {}
        self._text: dict[tuple[int, tuple[int, ...], Any], _Text] = {}

    def plan(
        self, frames: int, height: int, width: int, *, text_tokens: int = TEXT_TOKENS, new_tokens: int = NEW_TOKENS
    ) -> Plan:
        """Plan a request about a clip of `frames` frames of `height` × `width` source pixels.

        `text_tokens` counts the prompt without the clip. Nothing is refused: see `Plan.require`.
        """
        visual_tokens = self.video_processor.token_count(frames, height, width)
        vision_flops, vision_bytes, pixel_bytes = self._trace_vision(frames, height, width)
        stamp_tokens = self.stamp_tokens(frames)
        prompt = visual_tokens + stamp_tokens + text_tokens
        merged = self._merged_columns(frames, height, width)
        text = self._trace_text(-(-prompt // self.grain) * self.grain, merged)
        frame_bytes = frames * height * width * 3 if self.on_host else 0
        visual_bytes = visual_tokens * self.model.config.text_config.hidden_size * self.dtype.itemsize
        grown = new_tokens * text.kv_growth
        return Plan(
            frames=frames,
            height=height,
            width=width,
            visual_tokens=visual_tokens,
            stamp_tokens=stamp_tokens,
            text_tokens=text_tokens,
            new_tokens=new_tokens,
            context=self.context,
            flops={"vision": vision_flops, "prefill": text.prefill_flops, "per_token": text.step_flops},
            weight_bytes=self.weight_bytes,
            phase_bytes={
                # Canvas and resized pictures, both in 32 bits, and the frames as they were decoded.
                "prepare": frames * height * width * 3 + 2 * pixel_bytes,
                "vision": frame_bytes + vision_bytes,
                "prefill": frame_bytes + visual_bytes + text.prefill_bytes,
                "generate": frame_bytes + visual_bytes + text.step_bytes + grown,
            },
            kv_bytes=text.kv_bytes + grown,
            layer_tokens=[visual_tokens - gone for gone in self._gone_per_layer(merged)],
            planner=self,
        )

    def prefill_flops(self, frames: int, height: int, width: int) -> int:
        """FLOPs of the language model for the visual tokens alone."""
        tokens = self.video_processor.token_count(frames, height, width)
        return self._trace_text(tokens, self._merged_columns(frames, height, width)).prefill_flops

    def prompt_flops(self, tokens: int) -> int:
        """FLOPs of the language model for a prompt in which nothing merges."""
        return self._trace_text(tokens).prefill_flops

    def fits_context(self, frames: int, height: int, width: int, *, text_tokens: int, new_tokens: int) -> bool:
        """Whether prompt and reply fit into the context. Counts tokens only, so it is cheap for any request."""
        clip = self.video_processor.token_count(frames, height, width) + self.stamp_tokens(frames)
        return clip + text_tokens + new_tokens <= self.context

    def require_context(self, frames: int, height: int, width: int, *, text_tokens: int, new_tokens: int) -> None:
        """Check that prompt and reply fit into the context, at no cost.

        Raises:
            DoesNotFitError: they do not; the message says how many frames would.
        """
        size = {"text_tokens": text_tokens, "new_tokens": new_tokens}
        if not self.fits_context(frames, height, width, **size):
            tokens, stamps = self.video_processor.token_count(frames, height, width), self.stamp_tokens(frames)
            most = self.most_frames(height, width, **size, at_most=frames)
            raise DoesNotFitError(
                f"{frames} frames of {width}x{height} take {tokens:,} visual tokens; with "
                + f"{stamps:,} of time stamps, " * bool(stamps)
                + f"{text_tokens:,} of text and " * bool(text_tokens)
                + f"up to {new_tokens:,} new tokens they exceed the context of {self.context:,} tokens of the "
                f"language model: {_advice(most)}"
            )

    def most_frames(
        self,
        height: int,
        width: int,
        budget_bytes: int | None = None,
        *,
        text_tokens: int = TEXT_TOKENS,
        new_tokens: int = NEW_TOKENS,
        at_most: int | None = None,
    ) -> int:
        """The largest number of frames that fits into the context and the budget; 0 if not even one fits."""
        size = {"text_tokens": text_tokens, "new_tokens": new_tokens}

        def in_context(frames: int) -> bool:
            return self.fits_context(frames, height, width, **size)

        def peak_bytes(frames: int) -> int:
            return self.plan(frames, height, width, **size).peak_bytes

        high = 1
        while in_context(high) and (at_most is None or high < at_most):
            high *= 2
        high = high if at_most is None else min(high, at_most)
        most = bisect_left(range(1, high + 1), True, key=lambda frames: not in_context(frames))
        return most if budget_bytes is None else _largest_within(peak_bytes, budget_bytes, most)

    def sequence_bytes(self) -> tuple[int, int]:
        """Memory of a KV cache: bytes per token, and bytes of the states of a sequence of any length."""
        text = self._trace_text(self.grain)
        return text.kv_growth, text.kv_bytes - self.grain * text.kv_growth

    def _trace_vision(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """FLOPs, peak bytes and bytes of the pixels in 32 bits."""
        inputs = self.video_processor.layout([(frames, height, width)])
        names = [name for name, tensor in inputs.items() if tensor.is_meta]
        key = str([tuple(tensor.shape) if tensor.is_meta else tensor.tolist() for tensor in inputs.values()])
        if key not in self._vision:

            def encode() -> Any:
                pixels = {name: torch.empty_like(inputs[name], dtype=self.dtype) for name in names}
                return [visual.tokens for visual in self.model.encode({**inputs, **pixels})]

            found = trace(encode, self._held)
            self._vision[key] = found.flops, found.peak_bytes
        return *self._vision[key], sum(inputs[name].nbytes for name in names)

    def _merged_columns(self, frames: int, height: int, width: int) -> tuple[int, ...]:
        """Tokens of the clip that are left after each merge inside the language model; () where nothing merges.

        How many similar tokens a threshold merges depends on the clip, so none is counted.
        """
        schedule = self.model.model.schedule()
        if schedule is None or not schedule.layers or schedule.mode == "threshold":
            return ()
        layout = self.video_processor.token_layout(self.video_processor.layout([(frames, height, width)]), 0)
        places = VisualPlaces.of(torch.ones(1, len(layout), dtype=torch.bool), [layout])
        merger = Merger(schedule, places)
        return tuple(len(layout) - columns for columns in merger.planned_columns)

    def _gone_per_layer(self, merged: tuple[int, ...]) -> list[int]:
        """Visual tokens that are merged away before each layer."""
        layers = range(self.model.config.text_config.num_hidden_layers)
        if not merged:
            return [0 for _ in layers]
        stages = [sum(k <= layer for k in self.model.model.schedule().layers) for layer in layers]
        return [merged[stage - 1] if stage else 0 for stage in stages]

    def _trace_text(self, length: int, merged: tuple[int, ...] = ()) -> "_Text":
        """Prefill a prompt, of which `merged` tokens are gone after each merge, and write one token."""
        key = (length, merged, self.model.model.schedule() if merged else None)
        if key not in self._text:
            hidden_size = self.model.config.text_config.hidden_size

            def read() -> Any:
                embeds = torch.empty(1, length, hidden_size, dtype=self.dtype, device="meta")
                cache = full_cache(self.model.config.text_config)
                given: dict[str, Any] = {self.model.cache_name: cache}
                if merged:
                    add_layer_hooks(self.model.get_decoder())
                    given[MERGER] = _PlannedMerger(self.model.model.schedule(), length, merged)
                output = self.model.get_decoder()(inputs_embeds=embeds, use_cache=True, **given)
                self.model.compute_logits(output.last_hidden_state[:, -1])
                return output[self.model.cache_name]

            prefill = trace(read, self._held)
            cache = prefill.result
            before = _cache_bytes(cache)
            one = torch.zeros(1, 1, dtype=torch.long, device="meta")
            step = trace(
                lambda: self.model(input_ids=one, cache=cache, use_cache=True)[self.model.cache_name],
                self._held,
                held=_cache_tensors(cache),
            )
            self._text[key] = _Text(
                prefill.flops, prefill.peak_bytes, before, step.flops, step.peak_bytes, _cache_bytes(cache) - before
            )
        return self._text[key]


class _PlannedMerger:
    """Shortens the sequence between the layers as token merging will, on the meta device."""

    def __init__(self, schedule: Any, length: int, merged: tuple[int, ...]):
        self.schedule, self.columns = schedule, [length, *(length - gone for gone in merged)]
        self.is_padding = [None] * len(self.columns)

    def stage_of(self, layer: int) -> int:
        return sum(k <= layer for k in self.schedule.layers)

    def source(self, stage: int) -> torch.Tensor | None:
        return torch.zeros(1, self.columns[stage], dtype=torch.long, device="meta") if stage else None

    def after_layer(self, number: int, hidden: torch.Tensor) -> torch.Tensor:
        if number not in self.schedule.layers:
            return hidden
        return hidden.new_empty(1, self.columns[self.stage_of(number)], hidden.shape[2])


class _Text(NamedTuple):
    """Language model costs: a prompt, then one token; `step_bytes` includes the cache, growing by `kv_growth`."""

    prefill_flops: int
    prefill_bytes: int
    kv_bytes: int
    step_flops: int
    step_bytes: int
    kv_growth: int


def full_cache(config: Any) -> Cache:
    """An empty KV cache in which every attention layer keeps all positions; the masks alone bound sliding windows.

    Inference needs this to cut and join sequences.
    """
    cache = DynamicCache(config=config)
    layers = [layer if has_state(layer) else DynamicLayer() for layer in cache.layers]
    cache.layers, cache.layer_class_to_replicate = layers, None
    return cache


def has_state(layer: Any) -> bool:
    """Whether a layer of a cache keeps a recurrent state instead of keys and values."""
    return hasattr(layer, "update_recurrent_state")


def cache_tensors(layer: Any) -> Iterator[torch.Tensor]:
    """All tensors of a layer of a cache."""
    for value in vars(layer).values():
        for tensor in value.values() if isinstance(value, dict) else [value]:
            if isinstance(tensor, torch.Tensor):
                yield tensor


def _cache_tensors(cache: Any) -> list[torch.Tensor]:
    return [tensor for layer in cache.layers for tensor in cache_tensors(layer)]


def _cache_bytes(cache: Any) -> int:
    return sum(tensor.nbytes for tensor in _cache_tensors(cache))


def _largest_within(size: Callable[[int], int], limit: int, high: int) -> int:
    """The largest number up to `high` whose size is at most `limit`; 0 if none. Sizes grow about evenly."""
    if not high or size(high) <= limit:
        return high
    low, small, large = 1, size(1), size(high)
    if small > limit:
        return 0
    halve = False
    while high - low > 1:
        share = 0.5 if halve else (limit - small) / (large - small)
        middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        halve = not halve
        if (found := size(middle)) <= limit:
            low, small = middle, found
        else:
            high, large = middle, found
    return low


def shown_frames(video_processor: Any, most: int, seconds: float, fps: float) -> int:
    """Number of frames shown to a model that takes up to `most`, by the rule of its processor."""
    if video_processor.frame_sampling == "released":
        return len(video_processor.released_frames(round(seconds * fps), fps, most))
    return most


_PLANNERS: "weakref.WeakKeyDictionary[Any, Planner]" = weakref.WeakKeyDictionary()


def planner_for(model: Any, video_processor: Any) -> Planner:
    """The planner of a loaded model, made once and kept as long as the model."""
    if model not in _PLANNERS:
        _PLANNERS[model] = Planner(
            model.config,
            video_processor,
            model.dtype,
            on_host=model.device.type == "cpu",
            weight_bytes=weight_bytes(model),
            grain=256,
        )
    _PLANNERS[model].model.model.merge_schedule = model.model.merge_schedule
    return _PLANNERS[model]


def budget(model: Any) -> int:
    """Bytes that a loaded model may take on its device: the memory of its weights plus what is free."""
    if model.device.type != "cuda":
        return weight_bytes(model) + psutil.virtual_memory().available
    cached = torch.cuda.memory_reserved(model.device) - torch.cuda.memory_allocated(model.device)
    return weight_bytes(model) + torch.cuda.mem_get_info(model.device)[0] + cached


def weight_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers, including the scales of quantized weights."""
    tensors = [*model.parameters(), *model.buffers()]
    for weight in list(tensors):
        scales = getattr(getattr(weight, "quant_state", None), "absmax", getattr(weight, "SCB", None))
        if isinstance(scales, torch.Tensor):
            tensors.append(scales)
    return sum({id(x): x.nbytes for x in tensors}.values())


def _saved_bytes(model: Any, quantize: str) -> int:
    """Bytes that quantizing the linear maps of the language model's layers saves.

    8 bits have a scale of 32 bits per row, 4 bits one of 8 bits for 64 weights.
    """
    if not quantize:
        return 0
    saved = 0
    for linear in (module for module in model.get_decoder().modules() if type(module) is nn.Linear):
        count = linear.weight.numel()
        small = count + 4 * linear.out_features if quantize == "int8" else -(-count // 2) + -(-count // 64)
        saved += linear.weight.nbytes - small
    return saved


def _advice(most: int) -> str:
    return f"at most {most} frames fit" if most else "not even one frame fits"


def in_gib(size: int) -> str:
    """A size in bytes, as text."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"
