"""Protects ELVA's training as stages run it: a teacher guides the last layer, live or from disk; heads and teacher stay
out of the weights; a stopped run resumes bit for bit; two processes learn what one does; a later stage switches merging
on.
"""

import json
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
from clips import Disturbed, Timed, timed
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, CLIPVisionConfig, SiglipVisionConfig, SiglipVisionModel

from media import write_video
from tiny import randomize, tiny_config, tiny_tokenizer
from videopanda.checkpoints.tensors import HEAD_FILE
from videopanda.data.sample import Sample
from videopanda.encoders.open import open_teacher
from videopanda.models.elva import ElvaConfig, ElvaForConditionalGeneration, ElvaProcessor
from videopanda.models.languagebind import LanguageBindTower
from videopanda.models.merge_schedule import published_layers
from videopanda.training.build import config_of
from videopanda.training.callbacks import RunStoppedError
from videopanda.training.dry_run import _small
from videopanda.training.guidance import WholeFrames, last_hidden_state
from videopanda.training.run import make_features, make_task, run_stage, shutdown_distributed, train
from videopanda.training.stages import GUIDED, make_config

SETTINGS = (
    *("global_batch=0", "batch_size=2", "max_steps=3", "dtype=float32", "log_steps=1", "save_steps=2"),
    *("gradient_checkpointing=false", "strategy=ddp", "vision_lr=0.01", "language_model_lr=0.01", "epochs=3"),
    *("num_frames=4", "group_by_length=false", "validation=0"),
)
PARTS = ("text_loss", "tube_loss", "frame_loss")


def elva(**fields) -> ElvaForConditionalGeneration:
    torch.manual_seed(0)
    text = tiny_config().text_config
    text.num_hidden_layers = 4
    config = ElvaConfig(
        text_config=text,
        embedding_config={"hidden_size": 32, "patch_size": 4, "num_heads": 4},
        video_token_id=tiny_config().video_token_id,
        image_token_id=tiny_config().image_token_id,
        max_frame_cells=12,
        **fields,
    )
    model = ElvaForConditionalGeneration(config)
    randomize(model.model.embedding)
    return model


def processor_of(model: ElvaForConditionalGeneration) -> ElvaProcessor:
    return ElvaProcessor.for_config(model.config, tiny_tokenizer())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A model, a teacher of 3 × 3 patches, and five clips of two aspects; one has fewer frames than are sampled."""
    folder = tmp_path_factory.mktemp("guided")
    elva().save_pretrained(folder / "model")
    processor_of(elva()).save_pretrained(folder / "model")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    teacher = SiglipVisionModel(SiglipVisionConfig(**sizes, image_size=24, patch_size=8))
    randomize(teacher, scale=0.3)
    teacher.save_pretrained(folder / "teacher")
    rows = []
    for i in range(5):
        write_video(folder / f"{i}.mp4", range(9 * i, 9 * i + (3 if i == 2 else 9)), fps=3)
        turns = [{"from": "human", "value": "<video>\nWhat?"}, {"from": "gpt", "value": "yes " * (i + 1)}]
        rows.append({"id": str(i), "video": f"{i}.mp4", "conversations": turns})
    (folder / "rows.json").write_text(json.dumps(rows))
    return folder


def settings(folder: Path, *more: str) -> list[str]:
    return [*SETTINGS, f"data={folder / 'rows.json'}", f"teacher={folder / 'teacher'}", *more]


def trace(folder: Path, names: tuple[str, ...] = ("loss", *PARTS)) -> np.ndarray:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return np.array([[row[name] for name in names] for row in rows if "loss" in row])


@pytest.fixture(scope="module")
def guided(folder, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("run")
    return train("spatiotemporal", "elva", settings(folder), folder / "model", out, False)


def test_a_stage_learns_by_three_losses(guided):
    losses = trace(guided)
    assert losses.shape == (3, 4)
    np.testing.assert_allclose(losses[:, 0], losses[:, 1:].sum(1), rtol=1e-5)  # all weights are 1
    assert (losses[:, 1:] > 0).all()
    assert (losses[:, 2] < 4).all()  # squared distance of unit vectors


def test_the_weight_of_the_text_counts_beside_a_teacher(folder, tmp_path):
    wanted = settings(folder, "text_weight=0.5", "max_steps=1")
    (losses,) = trace(train("spatiotemporal", "elva", wanted, folder / "model", tmp_path, False))
    assert losses[0] == pytest.approx(0.5 * losses[1] + losses[2] + losses[3], rel=1e-5)


def test_heads_and_teacher_are_not_among_the_weights(folder, guided):
    names = set(load_file(folder / "model" / "model.safetensors"))
    for path in (guided, guided / "checkpoint-2"):
        assert set(load_file(path / "model.safetensors")) == names
    assert {name.split(".")[0] for name in load_file(guided / HEAD_FILE)} == {"tube_head", "frame_head"}


def test_a_teacher_on_disk_is_as_good_as_one_in_the_loop(folder, guided, tmp_path):
    """Up to the rounding of the stored features to bfloat16; frames of a short clip have no features to be missed."""
    wanted = settings(folder)
    assert make_features("spatiotemporal", "elva", wanted, folder / "model", tmp_path / "features") == 5
    stored = [*wanted, f"teacher_features={tmp_path / 'features'}", "teacher=nowhere"]
    train("spatiotemporal", "elva", stored, folder / "model", tmp_path / "disk", False)
    np.testing.assert_allclose(trace(tmp_path / "disk"), trace(guided), rtol=2e-3)
    distilled = make_config("pretrain", "paper", [*stored, "distill_weight=1"])
    with pytest.raises(ValueError, match="was written for tube_weight and frame_weight"):
        make_task(distilled, elva(), processor_of(elva()), None)


@pytest.fixture(scope="module")
def video_teacher(tmp_path_factory) -> Path:
    """A LanguageBind that reads eight frames together, twice as many as a clip has here."""
    folder = tmp_path_factory.mktemp("video_teacher")
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = {**sizes, "image_size": 24, "patch_size": 8}
    tower = LanguageBindTower(CLIPVisionConfig(**config), 8)
    randomize(tower)
    save_file(
        {f"vision_model.{name}": weight for name, weight in tower.state_dict().items()}, folder / "model.safetensors"
    )
    vision = {**config, "add_time_attn": True, "num_frames": 8}
    (folder / "config.json").write_text(json.dumps({"model_type": "LanguageBindVideo", "vision_config": vision}))
    return folder


def test_a_video_teacher_sees_every_clip_alone(folder, video_teacher, tmp_path):
    """Also a clip of three frames beside one of four; features on disk, which are made clip by clip, give the same."""
    wanted = [*settings(folder), f"teacher={video_teacher}"]
    live = train("spatiotemporal", "elva", wanted, folder / "model", tmp_path / "live", False)
    assert make_features("spatiotemporal", "elva", wanted, folder / "model", tmp_path / "features") == 5
    stored = [*wanted, f"teacher_features={tmp_path / 'features'}"]
    train("spatiotemporal", "elva", stored, folder / "model", tmp_path / "disk", False)
    np.testing.assert_allclose(trace(tmp_path / "disk"), trace(live), rtol=2e-3)
    teacher = open_teacher(str(video_teacher), None)
    seen = WholeFrames(teacher.image_size, teacher.mean, teacher.std, 6)
    clips = [np.random.default_rng(count).integers(0, 256, (count, 30, 40, 3), dtype=np.uint8) for count in (3, 6)]
    together, alone = (
        teacher({"teacher_pixels": seen.place(part)["pixel_values_videos"]}) for part in (clips, clips[:1])
    )
    torch.testing.assert_close(together[:1, :3], alone[:, :3], atol=1e-5, rtol=0)  # measured: 5e-7


def test_only_the_last_hidden_state_is_kept_and_it_is_unmerged():
    model = elva(merge_config={"layers": [1, 2]}).train()
    ids = torch.full((1, 60), model.config.video_token_id)
    ids[:, -4:] = 5
    grid = torch.tensor([[0, t, 2, 3] for t in range(6)])
    ids[:, : 60 - 4 - 54] = 7
    with last_hidden_state(model) as found:
        model(input_ids=ids, pixel_values_videos=torch.randn(36, 4, 48), video_placement=grid)
    assert [tuple(state.shape) for state in found] == [(1, 60, model.config.text_config.hidden_size)]
    merged = model.model.schedule()
    assert merged.layers == (1, 2)


def test_a_later_stage_switches_merging_on_and_its_model_keeps_it(folder, guided, tmp_path):
    assert GUIDED["finetune"].model_fields["merge.layers"] == "published"
    sets = settings(folder, "merge.layers=1,2", "merge.random_keep=0.5", "max_steps=2", "gradient_checkpointing=true")
    out = train("finetune", "elva", sets, guided, tmp_path / "tuned", False)
    merge = AutoConfig.from_pretrained(out).merge_config
    assert (merge.layers, merge.random_keep) == ([1, 2], 0.5)
    assert AutoConfig.from_pretrained(guided).merge_config.layers == []
    with pytest.raises(ValueError, match=r"embedding.patch_size can only be set when a model is created"):
        train("finetune", "elva", [*sets, "embedding.patch_size=8"], guided, tmp_path / "no", False)


def test_layers_that_a_model_does_not_have_are_refused_before_weights_and_data_are_read(folder, tmp_path):
    """The preset merges after layers of a deep model; this one has four. Neither its weights nor the data exist."""
    for path in (folder / "model").glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    fields = ["data=nowhere.json", "merge.layers=3,9,17"]
    with pytest.raises(ValueError, match=r"merge layers must be increasing numbers in \[0, 3\], got \[3, 9, 17\]"):
        train("finetune", "elva", [*SETTINGS, *fields], tmp_path, tmp_path / "out", False)


def test_the_published_layers_follow_the_depth_of_the_language_model(folder):
    wanted = {2: [1], 4: [1, 2], 6: [1, 2, 4], 24: [3, 8, 15], 28: [3, 9, 17], 32: [3, 10, 19], 48: [5, 15, 29]}
    assert {layers: published_layers(layers) for layers in (1, *wanted)} == {1: [], **wanted}
    planned = config_of(make_config("finetune", "elva"), folder / "model")  # of four layers
    assert planned.merge_config.layers == [1, 2]
    assert type(planned)(**planned.to_dict()).merge_config.layers == [1, 2]


def test_the_trial_is_as_deep_as_its_merges(folder, tmp_path):
    model, _ = _small(make_config("finetune", "elva", ["merge.layers=1,3"]), folder / "model", tmp_path)
    assert (model.config.text_config.num_hidden_layers, model.config.merge_config.layers) == (4, [1, 3])
    model, _ = _small(make_config("spatial", "elva"), folder / "model", tmp_path)
    assert (model.config.text_config.num_hidden_layers, model.config.merge_config.layers) == (2, [])


def test_guidance_needs_text_and_no_other_teacher():
    with pytest.raises(ValueError, match="compare the frames of a whole step: set loss_mean=step"):
        make_config("spatiotemporal", "elva", ["loss_mean=batch"])
    for wrong in ("distill_weight=1", "align_weight=1", "text_weight=0"):
        with pytest.raises(ValueError, match=r"tube_weight and frame_weight require|nothing to learn"):
            make_config("spatiotemporal", "elva", [wrong])
    with pytest.raises(ValueError, match=r"--set tube_weight=0 --set frame_weight=0"):
        make_task(make_config("spatiotemporal", "elva"), elva(), processor_of(elva()), None)


# -- resuming and several processes ------------------------------------------------------------------------------------
def stop() -> None:
    os.kill(os.getpid(), signal.SIGUSR1)


class Decoded(Disturbed):
    """Clips that know the times of their frames."""

    def __init__(self, index: int, disturb, still: bool = False):
        super().__init__(index, disturb)
        self.still = still

    def __getitem__(self, index: int) -> Sample:
        """Still: images and single frames in turns."""
        sample = timed(super().__getitem__(index))
        if not self.still or not sample.videos:
            return sample
        (clip,) = sample.videos
        first = Timed(clip.frames[:1])
        return replace(sample, videos=(first,)) if index % 2 else replace(sample, videos=(), images=(first,))


def run_guided(
    folder: Path, teacher: Path, name: str = "spatiotemporal", resume: bool = False, disturb=None, **fields
) -> Path:
    """A stage of the curriculum; the last one merges a random share, at a random resolution."""
    torch.set_num_threads(1)
    frozen = ["language_model_lr=0"] * (name == "prealign")
    stage = make_config(name, "elva", [*SETTINGS, *frozen])
    stage = replace(stage, data="clips", save_steps=3, model_fields={}, teacher=str(teacher), **fields)
    model = elva(merge_config={"layers": [2], "random_keep": 0.4} if name == "finetune" else None)
    processor = processor_of(model)
    task, collator = make_task(stage, model, processor, None)
    dataset = Decoded(5, disturb or (lambda: None), still=name in ("prealign", "spatial"))
    return run_stage(stage, model, processor, dataset, folder, resume, task, collator)


@pytest.mark.parametrize("name", GUIDED)
def test_a_stopped_stage_resumes_bit_for_bit(name, folder, tmp_path):
    teacher = folder / "teacher"
    run_guided(tmp_path / "whole", teacher, name, max_steps=6)
    with pytest.raises(RunStoppedError):
        run_guided(tmp_path / "part", teacher, name, disturb=stop, max_steps=6)
    run_guided(tmp_path / "part", teacher, name, resume=True, max_steps=6)
    parts = ("loss", *PARTS) if name == "spatiotemporal" else ("loss",)
    assert np.array_equal(trace(tmp_path / "part", parts), trace(tmp_path / "whole", parts))
    for file in ("model.safetensors", *[HEAD_FILE] * (name == "spatiotemporal")):
        one, other = (load_file(tmp_path / run / file) for run in ("whole", "part"))
        assert [key for key in one if not torch.equal(one[key], other[key])] == []
    start, one = elva().state_dict(), load_file(tmp_path / "part" / "model.safetensors")
    moved = {key.split(".")[1] for key in one if not torch.equal(one[key], start[key])}
    assert ("language_model" in moved) is (name != "prealign")
    assert "embedding" in moved


def test_two_processes_learn_what_one_does(folder, tmp_path):
    """Also where one of them has no clip, as in every sixth sample. The negatives are those of all processes."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", __file__]
    paths = os.pathsep.join([*sys.path])
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command += [str(folder / "teacher"), str(tmp_path / "two")]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    run_guided(tmp_path / "one", folder / "teacher", batch_size=2, max_steps=6)
    two, one = trace(tmp_path / "two"), trace(tmp_path / "one")
    np.testing.assert_allclose(two, one, rtol=1e-4)


if __name__ == "__main__":
    dist.init_process_group("gloo")
    run_guided(Path(sys.argv[2]), Path(sys.argv[1]), batch_size=1, max_steps=6)
    shutdown_distributed()
