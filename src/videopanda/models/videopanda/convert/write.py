"""Writes the new checkpoint shard by shard; an interrupted conversion never looks complete."""

import json
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor
from transformers import set_seed

from videopanda.checkpoints import checksums
from videopanda.checkpoints.shards import SHARD_BYTES, Outgoing, write_shards
from videopanda.checkpoints.tensors import HEAD_FILE, CheckpointError, TensorLocation, chunks_of
from videopanda.models.prompts import VICUNA_CHAT_TEMPLATE
from videopanda.models.videopanda import VideoPandaForConditionalGeneration, VideoPandaProcessor
from videopanda.models.videopanda.convert.plan import TensorPlan, tensor_plan

REPORT_FILE = "conversion.json"


def convert(
    source: str | Path, target: str | Path, allow: Sequence[str] = (), shard_bytes: int = SHARD_BYTES
) -> TensorPlan:
    """Convert an official Video-Panda or EVE checkpoint to a videopanda checkpoint; values are kept bit for bit.

    The work is done in `<target>.incomplete`, which becomes `target` when everything is written.

    Args:
        allow: names of unknown tensors that may be dropped; `*` stands for any text.
        shard_bytes: largest size of a file of weights.

    Raises:
        FileNotFoundError: the folder `source` does not exist.
        CheckpointError: `source` is not a complete official checkpoint, or `target` already exists.
        OSError: there is not enough free disk space.
    """
    source, target = Path(source), Path(target)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise CheckpointError(f"{target} already exists: choose another path, or remove it")
    work = target.absolute().with_name(target.absolute().name + ".incomplete")
    if work.exists():
        raise CheckpointError(f"{work} was left by an interrupted conversion, or one is still running: remove it")
    plan = tensor_plan(source, allow)
    plan.check_aliases()
    work.parent.mkdir(parents=True, exist_ok=True)
    _check_room(plan, work.parent)
    work.mkdir()
    try:
        _write(plan, work, shard_bytes)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return plan


def _write(plan: TensorPlan, folder: Path, shard_bytes: int) -> None:
    settings = plan.settings
    config = settings.config
    config.dtype = plan.dtype
    config.save_pretrained(folder)
    settings.generation_config.save_pretrained(folder)
    VideoPandaProcessor(settings.video_processor, settings.tokenizer, VICUNA_CHAT_TEMPLATE).save_pretrained(folder)
    checksums.write(folder, write_shards(folder, outgoing_weights(plan), shard_bytes=shard_bytes))
    if plan.head:
        head = [Outgoing(name, place.dtype, place.shape, place.chunks) for name, place in plan.head.items()]
        write_shards(folder, head, stem=Path(HEAD_FILE).stem, shard_bytes=2**63)
    text = json.dumps(plan.as_dict(), indent=1, ensure_ascii=False) + "\n"
    (folder / REPORT_FILE).write_text(text, encoding="utf-8")


def outgoing_weights(plan: TensorPlan) -> list[Outgoing]:
    """Every weight of the new checkpoint, in the order in which the official files hold them."""
    outgoing = [
        Outgoing(name, place.dtype, plan.shapes[name], partial(_grown, place, plan.added_rows.get(name, 0)))
        for name, place in plan.weights.items()
    ]
    for name, tensor in reinitialized_weights(plan).items():
        outgoing.append(Outgoing(name, tensor.dtype, tuple(tensor.shape), partial(chunks_of, tensor)))
    return outgoing


def _grown(place: TensorLocation, rows: int) -> Iterator[bytes]:
    """The bytes of a tensor, followed by rows of zeros."""
    yield from place.chunks()
    if rows:
        yield bytes(place.num_bytes // place.shape[0] * rows)


def reinitialized_weights(plan: TensorPlan) -> dict[str, Tensor]:
    """Initial values of the weights that EVE lacks, by name, in the dtype of the other weights."""
    if not plan.reinitialized:
        return {}
    with torch.device("meta"):
        model = VideoPandaForConditionalGeneration(plan.settings.config)
    stab = model.model.stab.to_empty(device="cpu")
    set_seed(0)
    stab.apply(model._init_weights)
    found = stab.state_dict()
    return {name: found[name.removeprefix("model.stab.")].to(plan.dtype) for name in plan.reinitialized}


def _check_room(plan: TensorPlan, folder: Path) -> None:
    needed = sum(place.num_bytes for place in [*plan.weights.values(), *plan.head.values()])
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OSError(f"{folder} has {free / 1e9:.1f} GB free, the new checkpoint needs {needed / 1e9:.1f} GB")
