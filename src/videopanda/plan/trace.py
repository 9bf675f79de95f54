"""Counts the FLOPs and memory of model code by running it on the meta device: shapes without data.

It runs the model's own code, so plans cannot diverge from the model.
"""

import weakref
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


class Trace(NamedTuple):
    """result: what the call returned, on the meta device. flops: two per multiply-accumulate. peak_bytes: peak memory
    of the tensors of the call.
    """

    result: Any
    flops: int
    peak_bytes: int


@torch.inference_mode(False)  # torch's FLOP counter does not support inference mode
@torch.no_grad()
def trace(call: Callable[[], Any], known: Iterable[Tensor], held: Iterable[Tensor] = ()) -> Trace:
    """Run `call` and count. Memory of `known` tensors (weights) is not counted; that of `held` ones (a cache of an
    earlier call) counts until the call releases them.

    Attention is counted as one fused kernel: all products, including masked ones, as torch counts them on a
    GPU, and no memory for its weights. Workspace inside kernels is not counted.
    """
    attention, memory = _FusedAttention(), _Memory(known, held)
    with FlopCounterMode(display=False) as counter, attention, memory:
        result = call()
    return Trace(result, counter.get_total_flops() + attention.flops, memory.peak)


class _FusedAttention(TorchFunctionMode):
    """Replaces attention, which would be decomposed on the meta device and counted as zero on a CPU."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not torch.nn.functional.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        query, key, value = args[:3]  # (..., M, K), (..., N, K), (..., N, L)
        out = query.new_empty(*query.shape[:-1], value.shape[-1])
        self.flops += 2 * query[..., 0].numel() * key.shape[-2] * (query.shape[-1] + value.shape[-1])
        return out


class _Memory(TorchDispatchMode):
    """Adds up the storages that are alive; views share one."""

    def __init__(self, known: Iterable[Tensor], held: Iterable[Tensor]):
        super().__init__()
        self.live = self.peak = 0
        self.sizes = {tensor.untyped_storage()._cdata: 0 for tensor in known}
        for tensor in held:
            self._add(tensor.untyped_storage())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and leaf.device.type == "meta":
                self._add(leaf.untyped_storage())
        return out

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage._cdata in self.sizes:
            return
        self.sizes[storage._cdata] = storage.nbytes()
        self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        weakref.finalize(storage, self._drop, storage._cdata)

    def _drop(self, key: int) -> None:
        self.live -= self.sizes.pop(key)
