"""Sections 4 and 5 of the golden README: distillation, and the whole model in training and generation."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from golden_checks.data import PLACEHOLDER, question_prompt, training_prompt
from golden_checks.findings import Findings
from golden_checks.stab import Weights, placement_of_mask, read_pixels, to_cells
from tiny import layouts_of
from videopanda.data.collate import IGNORE
from videopanda.models.languagebind import LanguageBindTower, tower_weights
from videopanda.models.videopanda import VideoPandaConfig, VideoPandaForConditionalGeneration, VideoPandaStabConfig
from videopanda.models.videopanda.convert.names import action_for
from videopanda.models.videopanda.layout_videopanda import token_layout
from videopanda.training.distill import (
    Distillation,
    DistillVideoLanguage,
    FusedHead,
    StoredFeatures,
    every_fourth_layer,
    hidden_states,
)

TOKENS = 1e-4  # measured worst: 3.9e-6, of the teacher too
LOGITS = 1e-3  # 1.5e-5
LOSS = 1e-6  # 1.2e-7, of the gradients of the head too
TEXT_LOSS = 1e-5  # 0; float32 has steps of 4.8e-7 there
GRADIENT = 1e-4  # relative, of the whole model: 1.6e-6


def load_head(weights: Weights) -> FusedHead:
    """A head from its official names, all of which must have a place."""
    num_states = sum(name.endswith(".0.bias") for name in weights)
    teacher_size, language_size = weights["input_layer.weight"].shape
    head = FusedHead(language_size, teacher_size, num_states)
    head.load_state_dict(weights)
    return head.eval()


def check_distill(golden: Weights) -> Findings:
    """Loss of the whole batch and of every frame, and gradients of head and hidden states."""
    findings = Findings()
    head = load_head({k.removeprefix("compressor."): v for k, v in golden.items() if k.startswith("compressor.")})
    canvas, patch, downsampling, teacher_canvas, teacher_patch, _ = golden["meta"].tolist()
    stab = VideoPandaStabConfig(image_size=canvas, patch_size=patch)
    assert downsampling == 2
    hidden = golden["hidden_states"].float().requires_grad_()
    num_videos, frames = golden["feature_lens"].shape
    side = teacher_canvas // teacher_patch
    scale = stab.max_cells / side
    tokens, placement = [], []
    for b in range(num_videos):
        mask = golden["teacher_mask"][b]
        top, left, height, width, _, real = placement_of_mask(mask).tolist()
        placement.append([*(int(x * scale) for x in (top, left, height, width)), real, real])
        start = int((golden["input_ids"][b] == PLACEHOLDER).nonzero()[0])
        # The stored batch has padding frames of 73 rows on any canvas; only the rows of real frames go on.
        tokens.append(hidden[b, start : start + int(golden["feature_lens"][b, :real].sum())])
    states = torch.cat(tokens)
    placement = torch.tensor(placement)
    layouts = layouts_of(placement, stab)
    teacher = golden["teacher_features"][:, :, 1:].float().unflatten(2, (side, side))
    distillation = Distillation(head, stab.max_cells)
    by_layer = [states[:, i] for i in golden["layer_idx"].tolist()]
    loss = distillation(by_layer, layouts, teacher)
    findings.compare("loss", loss, golden["loss"][0], LOSS)
    findings.compare("loss_fp64", loss, golden["loss_fp64"][0], LOSS)
    distance_Q, cells = distillation.distances(by_layer, layouts, teacher)  # noqa: N806
    total, per_frame = torch.zeros(num_videos * frames), cells.weight * placement[:, 5].sum()
    total.index_add_(0, cells.frame, (distance_Q * per_frame).detach())
    findings.compare("per_frame_loss", total.view(num_videos, frames), golden["per_frame_loss"], LOSS)
    loss.backward()
    parameters = dict(head.named_parameters())
    for name in golden:
        if name == "grad.hidden_states.l2_per_layer":
            findings.compare(name, hidden.grad.square().sum((0, 1, 3)).sqrt(), golden[name], LOSS)
        elif name.startswith("grad."):
            findings.compare(name, parameters[name.removeprefix("grad.")].grad, golden[name], LOSS)
    return findings


def load_whole(config: Mapping[str, Any], weights: Weights) -> tuple[VideoPandaForConditionalGeneration, FusedHead]:
    """Model and distillation head from official names; `<video>` and `<image>` get two new, empty vocabulary rows."""
    vocabulary, preprocessor = config["llm"]["vocab_size"], config["preprocessor"]
    model = VideoPandaForConditionalGeneration(
        VideoPandaConfig(
            text_config={
                **{"model_type": "llama", "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
                **config["llm"],
                **{"rope_parameters": {"rope_type": "default", "rope_theta": config["rope_theta"]}},
                **{"vocab_size": vocabulary + 2},
            },
            stab_config=VideoPandaStabConfig(
                hidden_size=config["video_hidden_size"],
                num_heads=config["n_head_dec"],
                segment_frames=config["chunk_size"],
                image_size=preprocessor["image_size"],
                patch_size=preprocessor["patch_stride"],
            ),
            video_token_id=vocabulary,
            image_token_id=vocabulary + 1,
        )
    )
    state, head, ours = {}, {}, model.state_dict()
    for name, tensor in weights.items():
        fate = action_for(name)
        if fate.kind == "unknown":
            raise ValueError(f"{name} is not part of the model")
        if fate.kind == "head":
            head[fate.target] = tensor
        elif fate.kind == "weight":
            if tensor.shape[0] == vocabulary and ours[fate.target].shape[0] == vocabulary + 2:
                tensor = torch.cat([tensor, tensor.new_zeros(2, tensor.shape[1])])
            state[fate.target] = tensor.reshape(ours[fate.target].shape)
    model.load_state_dict(state)
    return model.eval(), load_head(head)


@torch.no_grad()
def teacher_features(config: Mapping[str, Any], weights: Weights, golden: Weights) -> Tensor:
    """Features (B, T, 1 + G·G, D) of the stored teacher for the stored frames, class token first."""
    known = {key: config[key] for key in CLIPVisionConfig().to_dict() if key in config}
    frames = config["num_frames"] if config["add_time_attn"] else 1
    tower = LanguageBindTower(CLIPVisionConfig(**known, attn_implementation="sdpa"), frames)
    tower.load_state_dict(tower_weights(weights))
    videos = range(len(golden["teacher_features"]))
    return torch.stack([tower.eval()(golden[f"teacher_q.v{b}"].float() / 64) for b in videos])


def check_whole_weights(weights: Weights) -> Findings:
    """Whether every tensor has a fate."""
    findings = Findings()
    unknown = [name for name in weights if action_for(name).kind == "unknown"]
    findings.require(f"{len(weights)} names known", not unknown)
    return findings


def expand(ids: Iterable[int], values: Iterable[int], lengths: Sequence[int], visual: int) -> list[int]:
    """`values`, which run beside `ids`, with as many `visual` for the k-th placeholder as frame k has tokens."""
    frames = iter(lengths)
    return [x for i, value in zip(ids, values) for x in ([visual] * next(frames) if i == PLACEHOLDER else [value])]


def whole_batch(golden: Weights, model: VideoPandaForConditionalGeneration) -> dict[str, Tensor]:
    """Inputs of our model from the stored ones, padded to the length of the stored outputs."""
    cell, video_id = model.config.stab_config.cell_size, model.config.video_token_id
    (videos, frames), length = golden["feature_lens"].shape, golden["merged_attention_mask"].shape[1]
    batch = {}
    for name, visual, padding in (("input_ids", video_id, 0), ("labels", IGNORE, IGNORE), ("attention_mask", 1, 0)):
        batch[name] = torch.full((videos, length), padding)
        for b in range(videos):
            ids, values = golden["input_ids"][b].tolist(), golden[name][b].tolist()
            row = expand(ids, values, golden["feature_lens"][b].tolist(), visual)[:length]
            batch[name][b, : len(row)] = torch.tensor(row)
    masks = [golden[f"mask.v{b}"] for b in range(videos)]
    return {
        **batch,
        "pixel_values_videos": torch.stack([read_pixels(golden, b, frames) for b in range(videos)]),
        "video_placement": torch.stack([to_cells(placement_of_mask(mask), frames, cell) for mask in masks]),
    }


def check_whole(
    config: Mapping[str, Any], weights: Weights, golden: Weights, texts: Mapping[str, Any], tokenizer: Any
) -> Findings:
    """Embeddings, labels, losses, hidden states, logits, gradient norms and greedy tokens."""
    findings = Findings()
    model, head = load_whole(config, weights)
    num_layers, vocabulary = config["llm"]["num_hidden_layers"], config["llm"]["vocab_size"]
    if "merged_embeds" in golden:
        batch = whole_batch(golden, model)
        is_real = batch["attention_mask"].bool()
        findings.compare("merged_attention_mask", is_real, golden["merged_attention_mask"], 0.0)
        findings.compare("merged_labels", batch["labels"], golden["merged_labels"], 0.0)
        stab = model.config.stab_config
        shape = stab.max_cells, stab.row_tokens, stab.context_token
        counts = torch.tensor([len(token_layout(row, *shape)) for row in batch["video_placement"]])
        findings.compare("feature_lens", counts, golden["feature_lens"].sum(1), 0.0)
        kept = [int(m[1]) for name in golden if (m := re.fullmatch(r"hidden\.layer(\d+)", name))]
        decoder = model.get_decoder()
        embeds: list[Tensor] = []
        hook = decoder.register_forward_pre_hook(
            lambda _, args, kwargs: embeds.append(kwargs["inputs_embeds"]), with_kwargs=True
        )
        with torch.no_grad(), hidden_states(decoder, [num_layers, *kept]) as states:
            logits = model(**batch).logits
        hook.remove()
        findings.compare("merged_embeds", embeds[0][is_real], golden["merged_embeds"][is_real], TOKENS)
        for name, i in {"hidden.last": num_layers, **{f"hidden.layer{i}": i for i in kept}}.items():
            every_eighth = is_real[:, ::8]
            findings.compare(name, states[i][:, ::8][every_eighth], golden[name][every_eighth], LOGITS)
        tail, end = golden["logits.tail"], is_real[:, -golden["logits.tail"].shape[1] :]
        findings.compare("logits.tail", logits[:, -tail.shape[1] :, :vocabulary][end], tail[end], LOGITS)
        features = teacher_features(config["teacher_vision"], weights, golden)
        findings.compare("teacher_features", features, golden["teacher_features"], TOKENS)
        side = config["preprocessor"]["image_size_teacher"] // config["preprocessor"]["patch_stride_teacher"]
        batch["teacher_features"] = features[:, :, 1:].unflatten(2, (side, side))
        task = DistillVideoLanguage(
            Distillation(head, model.config.stab_config.max_cells), StoredFeatures(), every_fourth_layer(num_layers)
        )
        losses = task.step(model, batch)
        findings.compare("loss.text", losses["text_loss"], golden["loss.text"][0], TEXT_LOSS)
        findings.compare("loss.distill", losses["distill_loss"], golden["loss.distill"][0], LOSS)
        findings.compare("loss.total", losses["loss"], golden["loss.total"][0], TEXT_LOSS)
        losses["loss"].backward()
        gradients = {n: p.grad for n, p in [*model.named_parameters(), *head.named_parameters()]}
        for name, norm in texts["grad_l2"].items():
            difference = gradients[action_for(name).target].norm() - norm
            findings.compare(f"grad_l2 {name}, relative", difference / max(norm, LOSS), 0.0, GRADIENT)
        unused = [name for name in texts.get("params_without_grad", []) if action_for(name).kind != "dropped"]
        findings.require("params_without_grad", not unused)
        check_conversations(findings, texts["conversations"], golden, tokenizer)
    if any(name.startswith("gen.") for name in golden):
        check_greedy(findings, model, golden, texts, tokenizer)
    return findings


def check_conversations(findings: Findings, conversations: list, golden: Weights, tokenizer: Any) -> None:
    """Token ids and labels of the stored conversations."""
    frames = golden["feature_lens"].shape[1]
    for b, conversation in enumerate(conversations):
        length = int(golden["attention_mask"][b].nonzero().max()) + 1
        ids, labels, _ = training_prompt(tokenizer, conversation, frames)
        findings.require(f"input_ids {b}", ids == golden["input_ids"][b, :length].tolist())
        findings.require(f"labels {b}", labels == golden["labels"][b, :length].tolist())


def check_greedy(findings: Findings, model: Any, golden: Weights, texts: Mapping[str, Any], tokenizer: Any) -> None:
    """Greedy tokens for the first video."""
    frames = golden["feature_lens"].shape[1]
    ids, _ = question_prompt(tokenizer, texts["question"], frames)
    findings.require("gen.input_ids", ids == golden["gen.input_ids"][0].tolist())
    placement = to_cells(placement_of_mask(golden["mask.v0"]), frames, model.config.stab_config.cell_size)[None]
    pixels = read_pixels(golden, 0, frames)[None]
    lengths = golden["feature_lens"][0].tolist()
    new = golden["gen.new_ids"][0].tolist()
    stored = golden["gen.input_ids"][0].tolist()
    prompt = torch.tensor([expand(stored, stored, lengths, model.config.video_token_id)])
    output = model.generate(
        input_ids=prompt,
        attention_mask=torch.ones_like(prompt),
        pixel_values_videos=pixels,
        video_placement=placement,
        max_new_tokens=len(new),
        do_sample=False,
    )
    findings.require("gen.new_ids", output[0, prompt.shape[1] :].tolist() == new)
