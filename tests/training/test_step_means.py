"""Protects what an optimizer step is the mean over: all supervised tokens, frames and cells of the step, however they
are divided into batches, rows and accumulation steps.

Several processes: `test_distributed.py`, `test_guidance.py`.
"""

from dataclasses import replace

import pytest
import torch
from clips import Timed

from tiny import clip, tiny_model, tiny_processor, tiny_stab
from tiny_elva import elva
from videopanda.data.collate import Collator, frame_grids
from videopanda.data.sample import Sample
from videopanda.data.worlds.scenes.dataset import ScenesDataset
from videopanda.training.distill import Distillation, DistillVideoLanguage, LastLayerHead, StoredFeatures
from videopanda.training.guidance import GuidedVideoLanguage, VideoGuidance
from videopanda.training.tasks import VideoLanguage
from videopanda.training.trainer import TaskModule

E, D = 48, 16
WORDS = (1, 40, 7, 3)
DIVISIONS = ([4], [2, 2], [1, 1, 1, 1], [3, 1])


def samples() -> list[Sample]:
    """Answers of very different lengths; the second sample asks twice about its clip, the last has none."""
    found = []
    for i, words in enumerate(WORDS):
        videos = () if i == 3 else (Timed(clip(2 + i, 30, 40 + 20 * i, seed=i)),)
        conversations = (((f"Question {i}?", "yes " * words),), (("And?", "no " * 12),))
        found.append(Sample(str(i), videos, conversations[: 1 + (i == 1)]))
    return found


def features(side: int):
    def read(chosen: list[Sample]) -> dict[str, torch.Tensor]:
        found = []
        for sample in chosen:
            for video in sample.videos:
                generator = torch.Generator().manual_seed(int(sample.id))
                found.append(torch.randn(len(video.frames), side, side, D, generator=generator))
        return {"teacher_features": torch.nn.utils.rnn.pad_sequence(found, batch_first=True)}

    return read


def text():
    model, processor = elva()
    return VideoLanguage(), model, Collator(processor, 4096), samples()


def packed():
    model, processor = elva(merge={})
    return VideoLanguage(), model, Collator(processor, 900, fill_rows=True), samples()


def cells():
    stab = {"mask_padding": True, "dropout": 0.0}
    model = tiny_model("paper", **stab).eval()
    processor = tiny_processor(stab=tiny_stab("paper", **stab), preset="paper", canvas="tight")
    data = ScenesDataset(4, num_frames=2, captions=0)
    return VideoLanguage(0.5, 2.0), model, Collator(processor, 4096, cell_words=True), [data[i] for i in range(4)]


def phrases():
    model, processor = elva()
    data = ScenesDataset(4, num_frames=2, captions=0)
    shown = [replace(data[i], conversations=data[i].conversations[: 1 + i]) for i in range(4)]
    return VideoLanguage(0.5, 2.0, 3), model, Collator(processor, 4096, frame_phrases=True), shown


def distilled():
    model, processor = tiny_model().eval(), tiny_processor()
    side = model.config.stab_config.max_cells
    task = DistillVideoLanguage(Distillation(LastLayerHead(E, D), side), StoredFeatures(), (2,), 2.0)
    return task, model, Collator(processor, 4096, teacher_features=features(6)), samples()


def guided():
    model, processor = elva()
    task = GuidedVideoLanguage(VideoGuidance(E, D, 2.0, 3.0), StoredFeatures())
    return task, model, Collator(processor, 4096, frame_times=True, teacher_features=features(3)), samples()


def step(make, division: list[int], prepare: bool = True) -> tuple[float, dict[str, torch.Tensor]]:
    """Loss and gradients of a step whose samples are divided into batches of these sizes."""
    torch.manual_seed(0)
    task, model, collator, chosen = make()
    parts = torch.arange(len(chosen)).split(division)
    batches = [collator([chosen[i] for i in part]) for part in parts]
    if prepare:
        task.prepare(batches, torch.device("cpu"))
    losses = [task.step(model, batch)["loss"] / len(batches) for batch in batches]
    sum(losses).backward()
    module = TaskModule(model, task, seed=0)
    return sum(losses).item(), {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("make", [text, packed, cells, phrases, distilled, guided])
def test_a_step_does_not_depend_on_its_division_into_batches(make):
    loss, gradients = step(make, [4], prepare=False)  # one batch is its own mean
    largest = max(gradient.abs().max().item() for gradient in gradients.values())
    for division in DIVISIONS:
        found, divided = step(make, division)
        assert found == pytest.approx(loss, rel=1e-5)
        assert divided.keys() == gradients.keys()
        worst = max((divided[name] - gradients[name]).abs().max().item() for name in gradients)
        assert worst <= 1e-5 * largest  # measured worst: 1.5e-6, and 1.3e-7 of the loss
    if make is not guided:  # which is always prepared
        _, means = step(make, DIVISIONS[-1], prepare=False)  # the means of batches are something else
        assert max((means[name] - gradients[name]).abs().max().item() for name in gradients) > 1e-2 * largest


def test_frames_know_their_rows_and_columns():
    _, processor = elva()
    clips = [clip(2, 24, 40), clip(3, 40, 24)]
    inputs = processor.video_processor(videos=clips, return_tensors="pt", do_sample_frames=False)
    for i, frames in enumerate((2, 3)):
        rows = inputs["video_placement"][inputs["video_placement"][:, 0] == i]
        found = frame_grids(processor.video_processor.token_layout(inputs, i))
        assert torch.equal(found, rows[:, 2:])
        assert len(found) == frames
