"""Protects a training run from folder to folder: what it writes, what it leaves alone, and that it resumes exactly.

The nano model at its real size, for four steps of two rows in float32; the bookkeeping of steps on a tiny one.
"""

import json
import shutil
import sys
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from tiny import tiny_config, tiny_model, tiny_tokenizer
from videopanda.data.sample import Sample
from videopanda.data.worlds.scenes.world import COLOURS, SHAPES, SIZES
from videopanda.inference.load import load
from videopanda.training import nano
from videopanda.training.nano import CHAT_TEMPLATE
from videopanda.training.run import _start, run_stage, train
from videopanda.training.run_folder import check_settings, write_record
from videopanda.training.stages import StageConfig, make_config

SMALL = [
    *("max_steps=4", "batch_size=2", "compile=false", "num_workers=0", "dtype=float32", "validation=2"),
    *("save_steps=2", "log_steps=1", "keep_checkpoints=2"),
]
STAGES = ("language", "prealign", "pretrain")


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> dict[str, Path]:
    """Output folders of three stages, each started from the one before."""
    folder = tmp_path_factory.mktemp("runs")
    outputs: dict[str, Path] = {}
    model = None
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nano, "make_tokenizer", partial(nano.make_tokenizer, 400))  # a tenth of the text
        for stage in STAGES:
            model = outputs[stage] = train(stage, "nano", SMALL, model, folder / stage, False)
    return outputs


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rows(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def trace(folder: Path) -> dict[int, tuple]:
    """Per step: what must repeat exactly."""
    keys = ("loss", "text_loss", "align_loss", "grad_norm", "learning_rate")
    return {row["step"]: tuple(row.get(key) for key in keys) for row in rows(folder) if "loss" in row}


def assert_same_weights(one: Path, other: Path) -> None:
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


# -- what a run leaves behind ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_records_itself(runs, stage):
    folder = runs[stage]
    record = json.loads((folder / "run.json").read_text())
    assert record["stage"]["stage"] == stage
    assert (record["stage"]["max_steps"], record["stage"]["dtype"]) == (4, "float32")
    assert record["versions"]["torch"] == version("torch")
    assert {"parts", "versions", "machine", "git_revision"} < set(record)
    before = list(STAGES[: list(STAGES).index(stage)])
    assert [one["stage"]["stage"] for one in record.get("earlier", [])] == before
    assert record.get("start") == (before[-1] if before else None)
    assert (folder / "curves.png").read_bytes()[:4] == b"\x89PNG"
    steps = trace(folder)
    assert list(steps) == [1, 2, 3, 4]
    assert all(torch.tensor(values[0]).isfinite() for values in steps.values())
    wanted = {"language": {"text_loss"}, "prealign": {"align_loss"}, "pretrain": {"text_loss", "align_loss"}}
    assert {key for row in rows(folder) for key in row if key in ("text_loss", "align_loss")} == wanted[stage]


@pytest.mark.parametrize(("native", "found"), [(True, "bfloat16"), (False, "float32")])
def test_a_run_computes_in_bfloat16_only_where_the_hardware_has_it(native, found, tmp_path, monkeypatch):
    monkeypatch.setattr("videopanda.training.run.multiplies_bfloat16", lambda device: native)
    monkeypatch.setattr(nano, "make_tokenizer", partial(nano.make_tokenizer, 400))
    settings = [name for name in SMALL if not name.startswith(("dtype", "max_steps"))]
    train("language", "nano", [*settings, "max_steps=1"], None, tmp_path, False)
    assert json.loads((tmp_path / "run.json").read_text())["stage"]["dtype"] == found


def test_language_gives_an_ordinary_causal_language_model(runs):
    model = AutoModelForCausalLM.from_pretrained(runs["language"])
    tokenizer = AutoTokenizer.from_pretrained(runs["language"])
    assert model.config.model_type == "qwen3"
    assert sum(p.numel() for p in model.parameters()) == 5_246_976
    assert len(tokenizer) <= model.config.vocab_size
    for word in (*COLOURS, *SHAPES, *SIZES, "nothing"):  # alignment names a cell by single tokens
        assert len(tokenizer.encode(f" {word}", add_special_tokens=False)) == 1


@pytest.mark.parametrize("stage", ["prealign", "pretrain"])
@pytest.mark.parametrize("part", [".", "checkpoint-2", "checkpoint-4"])
def test_every_output_and_checkpoint_is_an_ordinary_folder(runs, stage, part):
    model, processor = load(runs[stage] / part, device="cpu")
    assert processor.time_prompt
    assert len(processor.tokenizer) <= model.config.text_config.vocab_size
    state = model.state_dict()
    saved = weights(runs[stage] / part)
    assert all(torch.equal(state[name], tensor) for name, tensor in saved.items())


# -- what is trained ---------------------------------------------------------------------------------------------------
def test_prealign_leaves_the_language_model_bit_identical(runs):
    before, after = weights(runs["language"]), weights(runs["prealign"])
    renamed = {name.replace("model.", "model.language_model.", 1): tensor for name, tensor in before.items()}
    assert renamed.keys() == {name for name in after if name.startswith("model.language_model.")}
    assert all(torch.equal(after[name], tensor) for name, tensor in renamed.items())


def test_prealign_trains_stab_and_projector(runs):
    early, late = weights(runs["prealign"] / "checkpoint-2"), weights(runs["prealign"])
    moved = {".".join(name.split(".")[:2]) for name in late if not torch.equal(early[name], late[name])}
    assert moved == {"model.stab", "model.projector"}


def test_pretrain_trains_every_part(runs):
    early, late = weights(runs["prealign"]), weights(runs["pretrain"])
    moved = {".".join(name.split(".")[:2]) for name in late if not torch.equal(early[name], late[name])}
    assert moved == {"model.stab", "model.projector", "model.language_model"}


# -- resuming ----------------------------------------------------------------------------------------------------------
def stopped_after(run: Path, step: int, folder: Path) -> Path:
    """What an interrupted run would have left: its first checkpoint and its record."""
    shutil.copytree(run / f"checkpoint-{step}", folder / f"checkpoint-{step}")
    shutil.copy(run / "run.json", folder)
    return folder


@pytest.mark.parametrize("stage", ["prealign", "pretrain"])
def test_a_resumed_run_ends_bit_identical(runs, tmp_path, stage):
    folder = stopped_after(runs[stage], 2, tmp_path / "again")
    train(stage, "nano", SMALL, runs[STAGES[STAGES.index(stage) - 1]], folder, True)
    whole, second_half = trace(runs[stage]), trace(folder)
    assert second_half == {step: whole[step] for step in (3, 4)}
    assert_same_weights(folder, runs[stage])


def test_a_used_output_folder_is_refused(runs):
    before = (runs["pretrain"] / "run.json").stat().st_mtime_ns
    with pytest.raises(ValueError, match="already contains a run: choose another"):
        train("pretrain", "nano", SMALL, runs["prealign"], runs["pretrain"], False)
    assert (runs["pretrain"] / "run.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("stage", ["prealign", "pretrain", "finetune"])
def test_stages_after_language_need_a_model(tmp_path, stage):
    with pytest.raises(ValueError, match=f"stage {stage} needs a model to start from: pass --model DIR"):
        train(stage, "nano", SMALL, None, tmp_path / "out", False)
    assert not (tmp_path / "out").exists()


def test_stage_language_reads_scenes_only(tmp_path):
    with pytest.raises(ValueError, match=r"stage language reads descriptions of Scenes, .*: set data=scenes"):
        _start(make_config("language", "nano", ["data=rows.json"]), None, None)


def test_scenes_need_a_number_of_steps(tmp_path):
    with pytest.raises(ValueError, match="--set max_steps=N"):
        train("pretrain", "nano", [*SMALL, "max_steps=0"], None, tmp_path, False)


# -- steps, epochs, accumulation: a tiny language model on eight short texts -------------------------------------------
@dataclass
class Texts:
    """Eight short texts, in an order of their own in every epoch."""

    word: str = "yes"

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> Sample:
        i = (index * 3 + self.epoch) % 8
        return Sample(str(i), (), (((f"Question {i}?", f"{self.word} " * (i + 1)),),))

    def content(self) -> str:
        return self.word

    def lengths(self) -> np.ndarray:
        return np.array([(index * 3 + self.epoch) % 8 for index in range(8)])

    def files(self, index: int) -> list[str]:
        return [f"text {index}"]


EIGHT = StageConfig(
    "language",
    data="texts",
    batch_size=2,
    dtype="float32",
    language_model_lr=1e-2,
    vision_lr=0.0,
    save_steps=1,
    log_steps=1,
    keep_checkpoints=20,
)


def run_tiny(folder: Path, resume: bool = False, word: str = "yes", **settings) -> Path:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(tiny_config(text="qwen3").text_config)
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHAT_TEMPLATE
    stage = StageConfig(**{**EIGHT.as_dict(), **settings})
    return run_stage(stage, model, tokenizer, Texts(word), folder, resume)


@pytest.mark.parametrize(
    ("settings", "steps", "stop"),
    [
        ({"epochs": 1.0}, 4, 1),
        ({"epochs": 1.0}, 4, 3),
        ({"epochs": 2.0}, 8, 3),
        ({"epochs": 2.0}, 8, 4),
        ({"epochs": 2.0}, 8, 6),
        ({"max_steps": 7}, 7, 5),
        ({"epochs": 2.0, "accumulation": 2}, 4, 3),
    ],
    ids=str,
)
def test_resuming_works_at_every_step_of_every_epoch(tmp_path, settings, steps, stop):
    whole = run_tiny(tmp_path / "whole", **settings)
    assert list(trace(whole)) == list(range(1, steps + 1))
    folder = run_tiny(stopped_after(whole, stop, tmp_path / "again"), resume=True, **settings)
    assert trace(folder) == {step: values for step, values in trace(whole).items() if step > stop}
    assert_same_weights(folder, whole)


def test_resuming_a_finished_run_changes_nothing(tmp_path):
    whole = run_tiny(tmp_path / "whole")
    before = weights(whole)
    run_tiny(whole, resume=True)
    after = weights(whole)
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


def test_a_run_goes_on_with_its_own_settings_and_data_only(tmp_path):
    run_tiny(tmp_path, max_steps=2)
    recorded = json.loads((tmp_path / "run.json").read_text())
    assert recorded["data"] == {"samples": 8, "sha256": "yes"}
    for settings, told in (
        ({"language_model_lr": 0.1}, "language_model_lr was 0.01 and is 0.1"),
        ({"max_steps": 3, "seed": 7}, "max_steps was 2 and is 3, seed was 42 and is 7"),
        ({"strategy": "zero2"}, "strategy was ddp and is zero2"),
        ({"module_lr": {"language_model": 1e-3}}, "lr.language_model was not set and is 0.001"),
        ({"word": "no"}, "the training data changed"),
    ):
        with pytest.raises(ValueError, match=f"^{tmp_path} contains a run with different settings: {told}[.] Use the"):
            run_tiny(tmp_path, resume=True, **{"max_steps": 2, **settings})
    assert json.loads((tmp_path / "run.json").read_text()) == recorded
    run_tiny(tmp_path, resume=True, max_steps=2, log_steps=5, save_steps=9)


def test_a_run_goes_on_without_fields_that_it_had_or_from_another_model_only_if_asked(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    one, other = tmp_path / "one", tmp_path / "other"
    write_record(tmp_path, replace(EIGHT, module_lr={"language_model": 1e-3}), [], {"sha256": ""}, 1, one)
    with pytest.raises(ValueError, match=r"settings: lr.language_model was 0.001 and is not set[.] Use"):
        check_settings(tmp_path, EIGHT, "", 1, one)
    with pytest.raises(ValueError, match=r"settings: the run started from one, this one from other[.] Use"):
        check_settings(tmp_path, replace(EIGHT, module_lr={"language_model": 1e-3}), "", 1, other)


def test_a_run_goes_on_from_the_same_weights_and_teacher_only(tmp_path):
    start, out = tmp_path / "start", tmp_path / "out"
    out.mkdir()
    (out / "metrics.jsonl").write_text('{"step": 1}\n')
    tiny_model().save_pretrained(start)
    stage = replace(EIGHT, teacher="here/siglip")
    write_record(out, stage, [], {"sha256": ""}, 1, start)
    shutil.copytree(start, tmp_path / "moved" / "start")
    check_settings(out, replace(stage, teacher="there/siglip"), "", 1, tmp_path / "moved" / "start")
    with pytest.raises(ValueError, match="settings: teacher was siglip and is clip"):
        check_settings(out, replace(stage, teacher="here/clip"), None, 1, start)
    model = tiny_model()
    with torch.no_grad():
        next(model.model.projector.parameters()).add_(1e-3)
    model.save_pretrained(start)  # trained again, into the same folder
    with pytest.raises(ValueError, match=f"settings: the model in {start} changed since"):
        check_settings(out, stage, None, 1, start)


def test_other_settings_are_refused_before_a_model_is_read(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    missing = tmp_path / "missing"
    write_record(tmp_path, make_config("pretrain", "nano", SMALL), [], {"sha256": ""}, 1, missing)
    with pytest.raises(ValueError, match=r"settings: seed was 45 and is 8[.] Use"):
        train("pretrain", "nano", [*SMALL, "seed=8"], missing, tmp_path)


def test_what_a_step_is_the_mean_over_does_not_change_in_a_run_of_before_there_was_a_choice(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    write_record(tmp_path, EIGHT, [], {"sha256": ""})
    record = json.loads((tmp_path / "run.json").read_text())
    del record["stage"]["loss_mean"]
    (tmp_path / "run.json").write_text(json.dumps(record))
    check_settings(tmp_path, EIGHT, "", 1)  # one batch per step: the same
    with pytest.raises(ValueError, match="loss_mean was batch and is step"):
        check_settings(tmp_path, replace(EIGHT, accumulation=2), "", 1)


def test_a_run_that_made_no_step_leaves_the_folder_free(tmp_path):
    with pytest.raises(ValueError, match="are fewer than one optimizer step of 64 rows: lower batch_size"):
        run_tiny(tmp_path, batch_size=64, max_steps=1)
    run_tiny(tmp_path, resume=True, max_steps=1)  # with other settings


@pytest.mark.parametrize("logger", ["tensorboard", "trackio", "wandb"])
def test_what_is_logged_elsewhere(tmp_path, monkeypatch, logger):
    monkeypatch.chdir(tmp_path)
    for name, value in {"WANDB_MODE": "offline", "WANDB_DIR": tmp_path, "TRACKIO_DIR": tmp_path / "trackio"}.items():
        monkeypatch.setenv(name, str(value))
    pytest.importorskip(logger)  # trackio takes its folder when it is imported
    folder = run_tiny(tmp_path / "run", report_to=logger, max_steps=2)
    assert list(trace(folder)) == [1, 2]
    written = {"tensorboard": "run/runs/*/events*", "trackio": "**/*.db", "wandb": "wandb/offline-run-*/*.wandb"}
    assert list(tmp_path.glob(written[logger]))


def test_a_logger_that_is_not_installed_is_told(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r"report_to=trackio needs that package: pip install 'videopanda\[loggers\]'"):
        run_tiny(tmp_path, report_to="trackio")
    assert not (tmp_path / "run.json").exists()


def test_a_saved_folder_has_the_configuration_of_the_model(tmp_path):
    """The Trainer turns the cache of keys and values off while it trains."""
    run_tiny(tmp_path, max_steps=1, gradient_checkpointing=True)
    fresh = tiny_config(text="qwen3").text_config
    assert fresh.use_cache is True
    for folder in (tmp_path, tmp_path / "checkpoint-1"):
        saved = json.loads((folder / "config.json").read_text())
        assert {name: saved[name] for name in ("use_cache", "hidden_size", "tie_word_embeddings")} == {
            "use_cache": True,
            "hidden_size": 48,
            "tie_word_embeddings": False,
        }
        assert json.loads((folder / "generation_config.json").read_text())["use_cache"] is True


def test_adam_is_that_of_the_settings(tmp_path):
    """Read from the optimizer that a checkpoint holds, and seen in what it does to the weights."""
    folders = {}
    for beta2 in (0.5, 0.999):
        folders[beta2] = run_tiny(tmp_path / str(beta2), max_steps=3, adam_beta2=beta2, weight_decay=0.125)
        groups = torch.load(folders[beta2] / "checkpoint-3" / "optimizer.pt", weights_only=True)["param_groups"]
        assert {(group["betas"], group["eps"]) for group in groups} == {((0.9, beta2), 1e-8)}
        assert {group["weight_decay"] for group in groups} == {0.0, 0.125}
        assert {group["initial_lr"] for group in groups} == {1e-2}
    one, other = (weights(folder) for folder in folders.values())
    assert any(not torch.equal(one[name], other[name]) for name in one)


def test_accumulated_batches_are_averaged(tmp_path):
    """The logged loss is that of the task: twice the rows per step do not double it."""
    (one,) = trace(run_tiny(tmp_path / "one", accumulation=4)).values()
    loss, text_loss, *_ = one
    assert loss == pytest.approx(text_loss, rel=1e-5)
