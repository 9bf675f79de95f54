"""The distillation head and its loss: released layout, teacher grids, what takes part, and the task around them."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tiny import clip, layouts_of, randomize, tiny_model, tiny_processor, tiny_stab
from videopanda.encoders.open import teacher_video_processor
from videopanda.models.videopanda import VideoPandaVideoProcessor
from videopanda.models.videopanda.convert.names import action_for
from videopanda.training.distill import (
    Distillation,
    DistillVideoLanguage,
    FusedHead,
    LastLayerHead,
    StoredFeatures,
    every_fourth_layer,
    hidden_states,
    real_cells,
)
from videopanda.training.freezing import recompute_activations
from videopanda.training.tasks import VideoLanguage

E, D = 48, 16


def batch_for(processor, clips):
    """A batch with one question and answer per clip, and random teacher features on the grid of cells."""
    asked = [[{"role": "user", "content": [{"type": "video", "video": frames}]}] for frames in clips]
    batch = processor.apply_chat_template(asked, add_generation_prompt=True, tokenize=True, return_dict=True)
    batch = dict(batch)
    batch["labels"] = batch["input_ids"].clone()
    batch["labels"][:, :-4] = -100
    videos, frames = batch["pixel_values_videos"].shape[:2]
    batch["teacher_features"] = torch.randn(videos, frames, 6, 6, D, generator=torch.Generator().manual_seed(1))
    return batch


def make_task(model, **fields):
    head = FusedHead(E, D, num_states=2, num_heads=4)
    randomize(head)
    return DistillVideoLanguage(
        Distillation(head, model.config.stab_config.max_cells), StoredFeatures(), (2, 0), **fields
    )


def loss_of(head, stab, state, placement, teacher, *distance):
    distillation = Distillation(head, stab.max_cells, *distance)
    return distillation([state], layouts_of(torch.tensor(placement), stab), teacher)


def test_released_layers():
    assert every_fourth_layer(32) == (32, 28, 24, 20, 16, 12, 8, 4, 0)
    assert every_fourth_layer(30) == (30, 26, 22, 18, 14, 10, 6, 2)


def test_released_head_has_the_official_names_and_size():
    with torch.device("meta"):
        head = FusedHead(4096, 1024)
    names = [f"norm_layer.{j}.{part}" for j in range(9) for part in ("0.weight", "0.bias", "1.weight")]
    names += [f"{layer}.{kind}" for layer in ("input_layer", "output_layer") for kind in ("weight", "bias")]
    assert sorted(head.state_dict()) == sorted(names)
    assert sum(parameter.numel() for parameter in head.parameters()) == 43_067_392
    assert {action_for(f"model.video_tower_compressor.{name}").target for name in names} == set(names)


@pytest.mark.parametrize(("num_states", "teacher_size"), [(1, 16), (3, 18)])
def test_impossible_heads_are_refused(num_states, teacher_size):
    with pytest.raises(ValueError, match="divisible by its number of heads"):
        FusedHead(E, teacher_size, num_states, num_heads=4)


def test_cells_are_found_among_context_row_and_padding_tokens():
    stab = tiny_stab(image_size=24)  # 3 × 3 cells
    placement = torch.tensor([[1, 0, 1, 3, 3, 2], [0, 1, 3, 2, 1, 1]])
    cells = real_cells(layouts_of(placement, stab), 3)
    # First video: two frames of [context, 3 cells, row token], then a padding frame of 1 + 3 × 4 tokens.
    assert cells.token.tolist() == [1, 2, 3, 6, 7, 8, *(10 + 13 + i for i in (1, 2, 4, 5, 7, 8))]
    assert cells.frame.tolist() == [0] * 3 + [1] * 3 + [3] * 6
    assert cells.row.tolist() == [1] * 6 + [0, 0, 1, 1, 2, 2]
    assert cells.column.tolist() == [0, 1, 2, 0, 1, 2, 1, 2, 1, 2, 1, 2]
    assert cells.weight.tolist() == pytest.approx([1 / 9] * 6 + [1 / 18] * 6)


def test_identical_features_cost_nothing_and_opposite_ones_two():
    stab = tiny_stab(image_size=16)
    placement = [[0, 0, 2, 2, 2, 1]]
    head = LastLayerHead(D, D)
    with torch.no_grad():
        head.input_layer.weight.copy_(torch.eye(D))
        head.input_layer.bias.zero_()
    state = torch.randn(7 + 7, D, generator=torch.Generator().manual_seed(0))
    teacher = torch.randn(1, 2, 2, 2, D)
    for i, token in enumerate((1, 2, 4, 5)):
        teacher[0, 0, i // 2, i % 2] = 3 * state[token]
    assert loss_of(head, stab, state, placement, teacher).item() == pytest.approx(0, abs=1e-6)
    assert loss_of(head, stab, state, placement, -teacher).item() == pytest.approx(2, abs=1e-6)
    expected = 4 * state[[1, 2, 4, 5]].square().mean().item()  # the difference is twice the state
    assert Distillation(head, stab.max_cells, "mse")(
        [state], layouts_of(placement, stab), teacher
    ).item() == pytest.approx(expected, rel=1e-5)


def test_grids_that_do_not_fit_are_refused():
    stab, state = tiny_stab(image_size=32), torch.zeros(21, E)
    head = LastLayerHead(E, D)
    with pytest.raises(ValueError, match="neither divides"):
        Distillation(head, stab.max_cells)(
            [state], layouts_of(torch.tensor([[0, 0, 4, 4, 1, 1]]), stab), torch.zeros(1, 1, 3, 3, D)
        )
    with pytest.raises(ValueError, match="boundary cuts through"):
        Distillation(head, stab.max_cells)(
            [state], layouts_of(torch.tensor([[0, 0, 3, 4, 1, 1]]), stab), torch.zeros(1, 1, 2, 2, D)
        )
    with pytest.raises(ValueError, match="cosine or mse"):
        Distillation(head, stab.max_cells, "l1")
    with pytest.raises(ValueError, match="reads 1 states"):
        DistillVideoLanguage(Distillation(head, stab.max_cells), StoredFeatures(), (2, 0))


def test_one_row_works():
    """The official head stumbles over grids with one row."""
    stab = tiny_stab(image_size=32)
    loss = loss_of(LastLayerHead(E, D), stab, torch.randn(12, E), [[1, 0, 1, 4, 2, 2]], torch.randn(1, 2, 4, 4, D))
    assert 0 < loss.item() < 2


@pytest.mark.parametrize("gradient_checkpointing", [False, True])
def test_the_task_sees_the_states_of_the_model(gradient_checkpointing):
    """Losses and gradients equal those from all hidden states, with recomputation of layers too."""
    model, processor = tiny_model(), tiny_processor()
    batch = batch_for(processor, [clip(), clip(3, 40, 20)])
    task = make_task(model)
    stored = batch.pop("teacher_features")
    out = model(**batch, output_hidden_states=True)
    visual = batch["input_ids"] == processor.video_token_id
    states = [out.hidden_states[i][visual] for i in (2, 0)]
    distill = task.distillation(states, layouts_of(batch["video_placement"], model.config.stab_config), stored)
    (out.loss + 0.5 * distill).backward()
    expected = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    if gradient_checkpointing:
        recompute_activations(model)
        model.train()
        for module in model.modules():  # batch statistics and dropout are not what is tested
            module.training = isinstance(module, type(model.get_decoder().layers[0]))
    task.weight = 0.5
    losses = task.step(model, {**batch, "teacher_features": stored})
    losses["loss"].backward()
    assert losses["text_loss"].item() == pytest.approx(out.loss.item(), abs=1e-6)
    assert losses["distill_loss"].item() == pytest.approx(distill.item(), abs=1e-6)
    assert losses["loss"].item() == pytest.approx((out.loss + 0.5 * distill).item(), abs=1e-6)
    for name, parameter in model.named_parameters():
        if name in expected:
            worst = (parameter.grad - expected[name]).abs().max() / expected[name].abs().max().clamp(min=1e-3)
            assert worst <= 1e-4, name
    assert all(parameter.grad is not None for parameter in task.distillation.parameters())


def test_both_weights_count():
    model, processor = tiny_model().train(), tiny_processor()
    batch = batch_for(processor, [clip()])
    batch["labels"][:, :-4] = -100
    losses = make_task(model, weight=3.0, text_weight=0.5).step(model, batch)
    parts = [losses[name].item() for name in ("text_loss", "distill_loss")]
    assert losses["loss"].item() == pytest.approx(0.5 * parts[0] + 3.0 * parts[1], rel=1e-6)
    text = {name: batch[name] for name in ("input_ids", "attention_mask", "labels")}
    text["input_ids"] = text["input_ids"].clamp(max=2)  # no placeholders
    losses = make_task(model, text_weight=0.5).step(model, text)
    assert losses["loss"].item() == pytest.approx(0.5 * losses["text_loss"].item())
    losses = VideoLanguage(text_weight=0.5).step(model, text)
    assert losses["loss"].item() == pytest.approx(0.5 * losses["text_loss"].item())


def test_only_asked_states_are_kept():
    model, processor = tiny_model(), tiny_processor()
    batch = batch_for(processor, [clip()])
    del batch["teacher_features"], batch["labels"]
    decoder = model.get_decoder()
    with torch.no_grad(), hidden_states(decoder, (2, 1, 0)) as states:
        expected = model(**batch, output_hidden_states=True).hidden_states
    assert sorted(states) == [1, 2]
    for i, state in states.items():
        assert torch.equal(state, expected[i])
    states.clear()
    model(**batch)
    assert states == {}


def test_nothing_of_the_task_is_in_the_model(tmp_path):
    model = tiny_model()
    before = set(model.state_dict())
    task = make_task(model)
    batch = batch_for(tiny_processor(), [clip()])
    task.step(model, batch)["loss"].backward()
    assert set(model.state_dict()) == before
    model.save_pretrained(tmp_path)
    saved = load_file(next(Path(tmp_path).glob("*.safetensors")))
    assert set(saved) <= before


def test_the_teacher_sees_the_geometry_of_the_student():
    teacher = teacher_video_processor(VideoPandaVideoProcessor())
    assert (teacher.size, teacher.cell_size, teacher.max_cells) == ({"height": 224, "width": 224}, 14, 16)
    for width, height in ((64, 36), (36, 64), (50, 50), (160, 10)):
        frames = clip(3, height, width)
        one, two = VideoPandaVideoProcessor()(frames), teacher(frames)
        assert torch.equal(one["video_placement"], two["video_placement"])
        assert two["pixel_values_videos"].shape == (1, 8, 3, 224, 224)


def test_the_fused_head_in_numbers():
    """Two earlier states, one head of width one: shares are a softmax of two products."""
    head = FusedHead(2, 1, num_states=3, num_heads=1)
    with torch.no_grad():
        for j, value in enumerate((1.0, 2.0, -1.0)):
            head.norm_layer[j][1].weight.copy_(torch.tensor([[value, 0.0]]))
        head.input_layer.weight.copy_(torch.tensor([[0.0, 10.0]]))
        head.input_layer.bias.fill_(0.5)
        head.output_layer.weight.fill_(100.0)
        head.output_layer.bias.zero_()
    state = torch.tensor([[1.0, -1.0]])  # its layer norm is (1, -1)
    one, two = math.exp(2), math.exp(-1)
    fused = (one * 2 - two) / (one + two)
    assert head([state] * 3).item() == pytest.approx(-10 + 0.5 + 100 * fused, rel=1e-4)
