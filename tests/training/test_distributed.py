"""Protects runs on several processes: over gloo, every strategy gives the losses of one process at the same global
batch, is stopped and gone on with, and leaves ordinary folders.

Torchrun starts four real processes, once. Each job is a fork of all of them, or of the first two, with a process group
of its own: what takes long is importing torch and DeepSpeed.
"""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from clips import Clips, held_out, metrics, run_clips, timed
from safetensors.torch import load_file
from transformers import SiglipVisionConfig, SiglipVisionModel

from tiny import randomize, tiny_model
from tiny_elva import elva
from videopanda.checkpoints.tensors import HEAD_FILE
from videopanda.data.sample import Sample
from videopanda.models.load import load_checkpoint
from videopanda.models.videopanda import VideoPandaForConditionalGeneration, VideoPandaProcessor
from videopanda.training.adapter import add_adapter
from videopanda.training.callbacks import RunStoppedError
from videopanda.training.run import make_task, run_stage, shutdown_distributed
from videopanda.training.stages import make_config

# What only this strategy writes: accelerate falls back to DDP without a word.
WRITES = {
    "ddp": "optimizer.pt",
    "fsdp2": "pytorch_model_fsdp.bin",
    "zero2": "global_step20/zero_pp_rank_1_mp_rank_00_optim_states.pt",
    "zero3": "global_step20/zero_pp_rank_1_mp_rank_00_model_states.pt",
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1700)]  # two minutes of CPU time; machines may be busy
STRATEGIES = tuple(WRITES)
STEPS, STOP = 20, 7
FORK = multiprocessing.get_context("fork")
FIELDS = {"batch_size": 1, "max_steps": STEPS, "save_steps": 10, "keep_checkpoints": 2}


class Stopping(Clips):
    """The cluster asks the first process to stop while it reads a clip."""

    def __getitem__(self, index: int) -> Sample:
        if index == 2 * STOP - 2 and int(os.environ["RANK"]) == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        return super().__getitem__(index)


class Timed(Clips):
    """Clips that know the times of their frames, with answers of very different lengths."""

    def __getitem__(self, index: int) -> Sample:
        sample = timed(super().__getitem__(index))
        return replace(sample, conversations=(((f"Question {index}?", "yes " * (1 + 7 * (index % 3))),),))


# -- what the processes do ---------------------------------------------------------------------------------------------
def run_whole(folder: Path, strategy: str) -> None:
    run_clips(folder, strategy=strategy, **FIELDS)


def run_until_stopped(folder: Path, strategy: str) -> None:
    with pytest.raises(RunStoppedError, match=f"stopped after step {STOP}"):
        run_clips(folder, strategy=strategy, dataset=Stopping(), **FIELDS)


def run_on(folder: Path, strategy: str) -> None:
    run_clips(folder, resume=True, strategy=strategy, **FIELDS)


def run_synchronized(folder: Path, strategy: str) -> None:
    run_still(folder, batch_size=1, strategy=strategy, sync_batch_norm=True)


def run_still(folder: Path, **fields) -> None:
    run_clips(folder, model=tiny_model(dropout=0.0), max_steps=8, **fields)


def run_validated(folder: Path, strategy: str) -> None:
    """Three samples on two processes: the last one is measured by one of them alone."""
    run_clips(folder, held_out=held_out(), strategy=strategy, batch_size=1, max_steps=2)


def run_native(folder: Path, strategy: str) -> None:
    native(folder, strategy=strategy, batch_size=1, accumulation=2)


def native(folder: Path, **fields) -> Path:
    """An ELVA that merges with parameters per modality, guided by a teacher, its activations recomputed. In the second
    and third of four steps one of two processes has a batch without clips.
    """
    torch.set_num_threads(1)
    stage = make_config("spatiotemporal", "elva", NATIVE)
    stage = replace(stage, data="clips", teacher=str(folder.parent / "teacher"), **fields)
    model, processor = load_checkpoint(folder.parent / "split", torch.float32)
    task, collator = make_task(stage, model, processor, None)
    return run_stage(stage, model, processor, Timed(), folder, False, task, collator)


def run_adapted(folder: Path, strategy: str) -> None:
    merging(folder, strategy=strategy, batch_size=1, lora_rank=4)


def run_merging(folder: Path, strategy: str) -> None:
    merging(folder, strategy=strategy, batch_size=1)


def merging(folder: Path, **fields) -> Path:
    """An ELVA that merges, or an adapter on it; in the third step one of two processes has no clip."""
    torch.set_num_threads(1)
    stage = replace(make_config("finetune", "elva", NATIVE), data="clips", **fields)
    model, processor = load_checkpoint(folder.parent / "merging", torch.float32)
    model = add_adapter(model, stage) if stage.lora_rank else model
    return run_stage(stage, model, processor, Timed(), folder)


NATIVE = (
    *("global_batch=0", "max_steps=4", "save_steps=2", "dtype=float32", "log_steps=1", "group_by_length=false"),
    *("vision_lr=0.001", "language_model_lr=0.001", "validation=0", "gradient_checkpointing=true"),
)
GUIDED = ("ddp", "fsdp2", "zero2")  # with zero3 a teacher in the loop is refused
JOBS = [
    *((run_whole, 4, strategy) for strategy in STRATEGIES),
    *((run, 2, strategy) for strategy in STRATEGIES for run in (run_until_stopped, run_on)),
    (run_synchronized, 2, "ddp"),
    *((run_validated, 2, strategy) for strategy in ("ddp", "fsdp2", "zero2")),
    *((run_native, 2, strategy) for strategy in GUIDED),
    *((run_adapted, 2, strategy) for strategy in ("ddp", "fsdp2")),
    (run_merging, 2, "zero3"),
]
NAMES = {
    run_synchronized: "synchronized",
    run_validated: "validated-{}",
    run_native: "native-{}",
    run_adapted: "adapted-{}",
    run_merging: "merging-{}",
}


def folder_of(root: Path, processes: int, strategy: str) -> Path:
    return root / f"{strategy}-{processes}"


def work(root: Path) -> None:
    """What every process runs."""
    import deepspeed  # noqa: F401 - here, and not once per job

    rank = int(os.environ["RANK"])
    for number, (run, processes, strategy) in enumerate(JOBS):
        if rank < processes:
            job = FORK.Process(target=_work, args=(root, number, run, processes, strategy))
            job.start()
            job.join()
            if job.exitcode:
                sys.exit(f"{run.__name__} with {strategy} failed on rank {rank} of {processes}")


def _work(root: Path, number: int, run, processes: int, strategy: str) -> None:
    os.environ["WORLD_SIZE"] = os.environ["LOCAL_WORLD_SIZE"] = str(processes)
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    store = dist.PrefixStore(f"job {number}", store)
    dist.init_process_group("gloo", store=store, rank=int(os.environ["RANK"]), world_size=processes)
    run(folder_of(root, processes, NAMES.get(run, "{}").format(strategy)), strategy)
    shutdown_distributed()


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    """All jobs are done here; a run of one process lies beside those of several."""
    root = tmp_path_factory.mktemp("distributed")
    for part in elva("llama", {"layers": [1, 2]}, modality_split="norm+ffn"):
        part.save_pretrained(root / "split")
    for part in elva("llama", {"layers": [1, 2]}):
        part.save_pretrained(root / "merging")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    teacher = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=24, patch_size=8))
    randomize(teacher, scale=0.3)
    teacher.save_pretrained(root / "teacher")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=4"]
    paths = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*command, __file__, str(root)], env=environment, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr[-5000:]
    for rows in (2, 4):
        run_clips(folder_of(root, 1, f"alone{rows}"), accumulation=rows, **FIELDS)
    native(folder_of(root, 1, "native"), batch_size=4)
    merging(folder_of(root, 1, "adapted"), batch_size=2, lora_rank=4)
    merging(folder_of(root, 1, "merging"), batch_size=2)
    return root


def losses(folder: Path) -> np.ndarray:
    return np.array([row["loss"] for row in metrics(folder)])


# -- what must hold ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_losses_are_those_of_one_process(root, strategy, processes):
    """Those of two processes were stopped and gone on with; the record is that of a run that ran through."""
    found = losses(folder_of(root, processes, strategy))
    alone = losses(folder_of(root, 1, f"alone{processes}"))
    assert len(found) == len(alone) == STEPS
    assert np.abs(found - alone).max() <= 1e-5  # measured worst: 9.6e-7


@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_checkpoints_load_anywhere(root, strategy, processes):
    folder = folder_of(root, processes, strategy)
    assert (folder / "checkpoint-20" / WRITES[strategy]).exists()
    expected = load_file(folder_of(root, 1, f"alone{processes}") / "model.safetensors")
    for part in ("checkpoint-20", "."):
        model, report = VideoPandaForConditionalGeneration.from_pretrained(folder / part, output_loading_info=True)
        assert not any(report.values())
        assert VideoPandaProcessor.from_pretrained(folder / part).video_token_id == model.config.video_token_id
        state = model.state_dict()
        trained = [name for name in expected if ".running_" not in name]  # each process has statistics of its own
        worst = max((state[name] - expected[name]).abs().max().item() for name in trained)
        assert worst <= 1e-5  # measured worst: 2.4e-7


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_another_run_starts_from_a_checkpoint(root, strategy, tmp_path):
    """One process goes on with the weights of four: the optimiser and the order of the data begin anew."""
    found = {}
    for name in (folder_of(root, 4, strategy), folder_of(root, 1, "alone4")):
        model, _ = load_checkpoint(name / "checkpoint-10", torch.float32)
        found[name] = losses(run_clips(tmp_path / name.name, model=model, batch_size=2, max_steps=2, save_steps=2))
    one, other = found.values()
    assert np.abs(one - other).max() <= 1e-5  # measured worst: 4.8e-7


def test_synchronized_batch_norm_sees_the_clips_of_all_processes(root, tmp_path):
    """Two processes with a row each are one with both rows; where a row is text alone, the other one's clip decides."""
    found = folder_of(root, 2, "synchronized")
    run_still(tmp_path / "together", batch_size=2)
    run_still(tmp_path / "apart", batch_size=1, accumulation=2)
    # measured worst: 9.6e-7
    assert np.abs(losses(found) - losses(tmp_path / "together")).max() <= 1e-5
    assert np.abs(losses(tmp_path / "apart") - losses(tmp_path / "together")).max() > 1e-3
    states = [load_file(folder / "model.safetensors") for folder in (found, tmp_path / "together")]
    for name in ("running_mean", "running_var"):
        one, other = (state[f"model.stab.lste.norm.{name}"] for state in states)
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)  # measured worst: 2.4e-7


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2", "zero2"])
def test_validation_is_over_all_processes(root, strategy, tmp_path):
    """Before the first step, when the processes have the same statistics of batch norm."""
    alone = run_clips(tmp_path, held_out=held_out(), batch_size=1, accumulation=2, max_steps=2)
    folders = folder_of(root, 2, f"validated-{strategy}"), alone
    one, other = (json.loads((folder / "run.json").read_text())["validation"] for folder in folders)
    assert one["before"].keys() == other["before"].keys() >= {"validation_loss", "validation_loss_no_video"}
    assert one["after"]["step"] == 2
    assert max(abs(one["before"][name] - other["before"][name]) for name in one["before"]) <= 1e-5


@pytest.mark.parametrize("strategy", GUIDED)
def test_a_guided_model_that_merges_learns_what_one_process_does(root, strategy):
    """Four rows at once are those of two processes and two batches each, with all frames of the step as negatives.
    Also its parameters per modality, of which a process without clips uses none; the heads are saved whole.
    """
    found, alone = folder_of(root, 2, f"native-{strategy}"), folder_of(root, 1, "native")
    for name in ("loss", "text_loss", "tube_loss", "frame_loss"):
        one, other = (np.array([row[name] for row in metrics(folder)]) for folder in (found, alone))
        assert len(one) == 4
        assert np.abs(one - other).max() <= 1e-5 * np.abs(other).max()
    for file in ("model.safetensors", HEAD_FILE):
        one, other, start = (load_file(folder / file) for folder in (found, alone, found / "checkpoint-2"))
        assert one.keys() == other.keys()
        assert max((one[name] - other[name]).abs().max().item() for name in one) <= 1e-4
        assert any(not torch.equal(one[name], start[name]) for name in one)
    assert any("visual_parameters" in name for name in load_file(found / "model.safetensors"))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_an_adapter_on_a_model_that_merges_learns_what_one_process_does(root, strategy):
    found, alone = folder_of(root, 2, f"adapted-{strategy}"), folder_of(root, 1, "adapted")
    assert len(losses(found)) == len(losses(alone)) == 4
    assert np.abs(losses(found) - losses(alone)).max() <= 1e-5  # measured worst: 4.8e-7
    for file in ("model.safetensors", "adapter/adapter_model.safetensors"):
        one, other = (load_file(folder / file) for folder in (found, alone))
        assert one.keys() == other.keys()
        assert max((one[key] - other[key]).abs().max().item() for key in one) <= 1e-5  # measured worst: 2.9e-7
    start, one = (load_file(folder / "model.safetensors") for folder in (root / "merging", found))
    changed = [key for key in one if not torch.equal(one[key], start[key])]
    assert any("embedding.patch" in key for key in changed)
    assert any("q_proj" in key for key in changed)


def test_a_model_that_merges_learns_in_shards_what_one_process_does(root):
    found, alone = folder_of(root, 2, "merging-zero3"), folder_of(root, 1, "merging")
    assert len(losses(found)) == len(losses(alone)) == 4
    assert np.abs(losses(found) - losses(alone)).max() <= 1e-5  # measured worst: 4.8e-7
    one, other = (load_file(folder / "model.safetensors") for folder in (found, alone))
    assert one.keys() == other.keys()
    assert max((one[key] - other[key]).abs().max().item() for key in one) <= 1e-5  # measured worst: 1.2e-7


if __name__ == "__main__":
    work(Path(sys.argv[1]))
