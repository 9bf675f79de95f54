"""Puts a new vision part in front of a language model: the starting point of `prealign`.

model, processor = build_model("vicuna-7b-v1.5", seed=0, family="videopanda", preset="released")
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    AutoTokenizer,
    set_seed,
)

from videopanda.checkpoints import checksums
from videopanda.encoders.open import open_teacher
from videopanda.hub import folder_of, parse
from videopanda.models.configuration import context_length
from videopanda.models.families import (
    DEFAULT,
    adjusted_config,
    changed_config,
    config_class,
    fresh_config,
    model_class,
    processor_class,
    vision_fields,
)
from videopanda.models.fields import with_fields
from videopanda.models.generation import CACHE_NAME
from videopanda.models.layer_cache import check_layers
from videopanda.models.load import check_checkpoint, require_finite
from videopanda.training.chat_template import end_tokens, read_template, visual_chat_template, with_system_prompt
from videopanda.training.stages import StageConfig

PLACEHOLDERS = ["<video>", "<image>"]


def build_model(
    backbone: str | Path,
    *,
    seed: int,
    family: str = DEFAULT,
    preset: str = "",
    fields: Mapping[str, Any] | None = None,
    encoder: str = "",
    trained: str | Path = "",
    chat_template: str | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> tuple[Any, Any]:
    """Join a causal language model and the new vision part of a family.

    `<video>` and `<image>` are added to the vocabulary if they are missing. They use spare rows of the embedding, which
    many models have; otherwise it grows by rows set to the mean of the others. The weights of the language model are
    used as loaded, never held in memory twice.

    Args:
        backbone: folder or Hub name of a causal language model with its tokenizer, or of a vision-language model of
            transformers (as Gemma 3 and Qwen3.5 are published), which gives its language model.
        family, preset, fields: see `fresh_config`.
        encoder: folder or Hub name of the pretrained tower, for a family that has one.
        trained: folder of a trained model, whose vision part is taken instead of a new one; modules of another width,
            such as the projector, are new. Family, preset and encoder are then its own.
        chat_template: jinja text or "vicuna"; default: the template of the tokenizer.
        dtype: of all weights; "auto" is that of the language model.

    Raises:
        ValueError: the language model does not exist, is not supported, or has no chat template; an unknown family,
            preset or field, or a wrong value; an encoder is missing, or not a tower that the family knows.
    """
    fields = fields or {}
    if trained:
        old = check_checkpoint(trained)
        family, vision = old.model_type, vision_fields(old)
    else:
        vision = encoder_fields(family, encoder)
    try:
        backbone = folder_of(backbone)
    except FileNotFoundError as error:
        raise ValueError(f"no language model at {backbone}: {error}") from error
    source = _source_config(backbone, fields)
    text = source.get_text_config()
    # Report errors before weights are read.
    given = {**vision, "text_config": deepcopy(text), "video_token_id": 0, "image_token_id": 1}
    early = fresh_config(family, preset, fields, **given)
    with torch.device("meta"):
        model_class(early)(early)  # families refuse language models
    language_model, tokenizer = _load_backbone(backbone, source, dtype)
    template = visual_chat_template(tokenizer, chat_template)
    set_seed(seed)
    _add_placeholders(language_model, tokenizer)
    video_token_id, image_token_id = tokenizer.convert_tokens_to_ids(PLACEHOLDERS)
    config = fresh_config(
        family,
        preset,
        {key: value for key, value in fields.items() if not key.startswith("text.")},
        **vision,
        text_config=language_model.config,
        video_token_id=video_token_id,
        image_token_id=image_token_id,
        tie_word_embeddings=language_model.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = model_class(config)(config)
    model.lm_head = language_model.get_output_embeddings()
    for name, part in model.vision_modules().items():
        if trained or name not in model.pretrained_modules:
            part.to_empty(device="cpu")
            part.apply(model._init_weights)
    if trained:
        _take_vision(model, trained)
    if encoder:
        try:
            model.model.encoder = open_teacher(encoder, None).build()
        except (OSError, RuntimeError) as error:
            raise ValueError(f"encoder {encoder}: its weights are not those of its configuration: {error}") from error
    for part in model.vision_modules().values():
        part.to(language_model.dtype)
    model.model.adopt(language_model.base_model)
    _check_logits(model, language_model)
    known = _known_ends(language_model) | ({tokenizer.eos_token_id} - {None})
    ends = sorted(end_tokens(tokenizer, template, known))
    model.generation_config.eos_token_id = ends if len(ends) > 1 else ends[0]
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = processor_class(config).for_config(config, tokenizer, template)
    _scale_visual_tokens(model, processor)
    return model, processor


def make_checkpoint(
    out: str | Path, backbone: str | Path, *, chat_template: str | None = None, seed: int = 0, **given: Any
) -> list[str]:
    """Put a vision part in front of a language model, save both in the folder `out`, and describe the result.

    `chat_template` is the name of a jinja file or "vicuna"; `given` goes to `build_model`. The weights keep the dtype
    of the language model.

    Raises:
        ValueError: as `build_model`; or `out` already exists.
    """
    folder = _new_folder(out)
    template = read_template(chat_template)
    model, processor = build_model(backbone, seed=seed, chat_template=template, dtype="auto", **given)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    checksums.record(folder)
    text = model.config.get_text_config()
    parts = {f"language model, {text.model_type}": model.model.language_model}
    for name, module in model.vision_modules().items():
        parts[f"{name}, {'pretrained' if name in model.pretrained_modules else 'fresh'}"] = module
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in parts.values()]
    if not model.config.tie_word_embeddings:
        counts[0] += model.lm_head.weight.numel()
    limit = context_length(text)
    return [
        *(f"{part:<24}{count:>15,}" for part, count in zip(parts, counts)),
        f"{'vocabulary':<24}{text.vocab_size:>15,}  <video> is {model.config.video_token_id}, "
        f"<image> is {model.config.image_token_id}",
        f"{'context':<24}{'unlimited' if limit == sys.maxsize else f'{limit:,}':>15}  eight frames of 16:9 take "
        f"{processor.video_processor.token_count(8, 1080, 1920):,}",
    ]


def change_checkpoint(out: str | Path, checkpoint: str | Path, fields: Mapping[str, str], seed: int = 0) -> list[str]:
    """Save a trained model with changed settings, such as a new compressor, in the folder `out`.

    New vision modules get fresh weights; all others keep theirs. The processor keeps its own settings, except those
    that follow from the changed ones. Returns lines that describe the result.

    Raises:
        ValueError: `out` already exists, an unknown field, a wrong value, or weights that the settings do not fit.
    """
    folder, old = _new_folder(out), check_checkpoint(checkpoint)
    if not fields:
        raise ValueError("nothing to change: name a setting, as in --set compression.kind=mamba")
    config = changed_config(old, fields)
    set_seed(seed)
    try:
        loaded: Any = model_class(config).from_pretrained(
            checkpoint, config=config, dtype="auto", output_loading_info=True
        )
    except RuntimeError as error:
        raise ValueError(f"the weights of {checkpoint} do not fit {', '.join(fields)}") from error
    model, report = loaded
    with torch.device("meta"):
        known = {f"model.{name}" for name in model_class(old)(old).vision_modules()}
    now = {f"model.{name}" for name in model.vision_modules()}
    for name in sorted([*report["missing_keys"], *report["unexpected_keys"]]):
        if not name.startswith(tuple(f"{module}." for module in known ^ now)):
            raise ValueError(f"the weights of {checkpoint} do not fit {', '.join(fields)}: see {name}")
    require_finite(model, checkpoint)
    processor = AutoProcessor.from_pretrained(checkpoint)
    _follow(processor, old, config)
    if "timestamps" in fields:
        processor.timestamps = config.timestamps
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    checksums.record(folder)
    lines = []
    for name, part in model.vision_modules().items():
        label = f"{name}, fresh" if f"model.{name}" in now - known else name
        lines.append(f"{label:<24}{sum(weight.numel() for weight in part.parameters()):>15,}")
    return [*lines, f"eight frames of 16:9 take {processor.video_processor.token_count(8, 1080, 1920):,} visual tokens"]


def _new_folder(out: str | Path) -> Path:
    folder = Path(out)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} already exists: choose a new folder")
    return folder


def _follow(processor: Any, old: Any, new: Any) -> None:
    """Give a processor the settings that follow from changes of the model's configuration; it keeps all others."""
    rules = processor_class(new)
    before, after = (rules.video_processor_for(config).to_dict() for config in (old, new))
    for name in before | after:  # None values are in neither
        if before.get(name) != after.get(name):
            setattr(processor.video_processor, name, after.get(name))


def change_fields(model: Any, processor: Any, fields: Mapping[str, Any], folder: Path) -> None:
    """Change settings of a trained model that change none of its weights; the trained model keeps them.

    Raises:
        ValueError: a field that only a new model can have, a wrong value, or a language model that cannot merge.
    """
    changed = adjusted_config(model.config, fields, folder)
    _follow(processor, model.config, changed)
    for part in {name.partition(".")[0] for name in fields}:
        setattr(model.config, f"{part}_config", getattr(changed, f"{part}_config"))
    if model.model.changes_masks:
        check_layers(model.get_decoder())


def as_trained(model: Any, processor: Any, settings: StageConfig) -> None:
    """Store what prompts of the training look like in processor and configuration, so that answers use the same.

    Raises:
        ValueError: its chat template cannot be trained with, see `end_tokens`.
    """
    processor.video_processor.num_frames = settings.num_frames
    if settings.system_prompt:
        processor.chat_template = with_system_prompt(processor.chat_template, settings.system_prompt)
    if settings.timestamps:
        processor.timestamps = model.config.timestamps = settings.timestamps
    end_tokens(processor.tokenizer, processor.chat_template, _known_ends(model))


def _known_ends(model: Any) -> set[int]:
    """The ids at which `generate` stops: its configuration holds one, several or none."""
    ends = model.generation_config.eos_token_id
    return set(ends if isinstance(ends, list) else [ends]) - {None}


def _take_vision(model: Any, trained: str | Path) -> None:
    """Give a model the vision modules of a trained one that have the same shapes; they then count as pretrained."""
    source = model_class(model.config).from_pretrained(trained, dtype="auto")
    require_finite(source, trained)
    modules, taken = source.vision_modules(), []
    for name, part in model.vision_modules().items():
        weights = modules[name].state_dict()
        if {key: value.shape for key, value in part.state_dict().items()} == {k: v.shape for k, v in weights.items()}:
            part.load_state_dict(weights)
            taken.append(name)
    model.pretrained_modules = tuple(taken)


def config_of(settings: StageConfig, folder: Path) -> Any:
    """The configuration of the model that a stage trains: of a trained one in `folder`, or of what the stage makes from
    a plain language model there. Reads no weights.

    Raises:
        ValueError: the tokenizer of the language model has no chat template, and none is given; what only a new model
            takes is given for a trained one; or as `change_fields`.
    """
    config = AutoConfig.from_pretrained(folder)
    if model_class(config) is not None:
        for name in ("chat_template", "encoder"):
            if getattr(settings, name):
                raise ValueError(f"{name} can only be set when a model is created, and {folder} has its own: omit it")
        return adjusted_config(config, settings.model_fields, folder)
    text = _source_config(folder, settings.model_fields).get_text_config()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    visual_chat_template(tokenizer, read_template(settings.chat_template))
    tokenizer.add_tokens(PLACEHOLDERS, special_tokens=True)
    text.vocab_size = max(text.vocab_size, len(tokenizer))
    ids = {f"{token[1:-1]}_token_id": tokenizer.convert_tokens_to_ids(token) for token in PLACEHOLDERS}
    family, preset = settings.model_family, settings.model_preset
    given = {"text_config": text, **ids, **encoder_fields(family, settings.encoder)}
    return fresh_config(family, preset, settings.model_fields, **given)


def encoder_fields(family: str, encoder: str) -> dict[str, Any]:
    """The fields of a new model's configuration that follow from the folder of its pretrained tower.

    Raises:
        ValueError: a family with a tower needs one, others have none; or the folder is none of a known tower.
    """
    kind = config_class(family)
    if not hasattr(kind, "of_encoder"):
        if encoder:
            raise ValueError(f"family {family} takes no pretrained encoder: omit --encoder (or the setting encoder)")
        return {}
    if not encoder:
        raise ValueError(f"family {family} needs a pretrained encoder: --encoder DIR, or in training --set encoder=DIR")
    folder = folder_of(encoder, pickled=True) if parse(encoder) else Path(encoder)
    try:
        return kind.of_encoder(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    except (OSError, ValueError) as error:
        raise ValueError(f"encoder {encoder}: {error}") from error


def _source_config(backbone: str | Path, fields: Mapping[str, Any]) -> Any:
    """The configuration of the language model, or of the vision-language model that it is part of, with the fields
    `text.*` changed.
    """
    try:
        config = AutoConfig.from_pretrained(backbone, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no language model at {backbone}: {str(error).splitlines()[0]}") from error
    if model_class(config) is not None:
        raise ValueError(f"{backbone} already has a vision part: train it directly, or pass a language model")
    text, found = config.get_text_config(), config.architectures or []
    known: list[Any] = [MODEL_FOR_CAUSAL_LM_MAPPING.get(type(text), None)]
    if known[0] is not None and text is not config:
        known.append(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING.get(type(config), None))
    if not {kind.__name__ for kind in known if kind is not None} & set(found):
        raise ValueError(
            f"{backbone} is not a causal language model of transformers: the architecture in its config.json is "
            f"{', '.join(found) or 'missing'}"
        )
    changes = {key: value for key, value in fields.items() if key.startswith("text.")}
    if not changes:
        return config
    changed = type(text)(**with_fields(type(text), text.to_dict(), changes, "text."))
    if text is config:
        return changed
    config.text_config = changed
    return config


def _load_backbone(backbone: str | Path, config: Any, dtype: torch.dtype | Literal["auto"]) -> tuple[Any, Any]:
    """The language model and its tokenizer."""
    is_whole = config.get_text_config() is not config
    auto = AutoModelForImageTextToText if is_whole else AutoModelForCausalLM
    try:
        tokenizer = AutoTokenizer.from_pretrained(backbone, trust_remote_code=False, local_files_only=True)
        loaded: Any = auto.from_pretrained(
            backbone,
            config=config,
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            output_loading_info=True,
        )
    except OSError as error:
        raise ValueError(f"no language model at {backbone}: {str(error).splitlines()[0]}") from error
    except RuntimeError as error:  # other shapes than the weights have
        raise ValueError(f"the weights of {backbone} do not fit the changed fields text.*") from error
    language_model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{backbone} is incomplete: it lacks {missing[0]} ({len(missing)} weights in all)")
    if is_whole:
        language_model = _part_of(language_model)
    require_finite(language_model, backbone)
    language_model.config._name_or_path = Path(backbone).name  # keeps local paths out of the checkpoint
    return language_model, tokenizer


def _part_of(whole: Any) -> Any:
    """The language model of a vision-language model, with its head and its weights."""
    decoder, head = whole.get_decoder(), whole.get_output_embeddings()
    decoder.config.tie_word_embeddings = head.weight is decoder.get_input_embeddings().weight
    with torch.device("meta"):
        language_model = AutoModelForCausalLM.from_config(decoder.config)
    if type(decoder) is not type(language_model.base_model):
        raise ValueError(f"the language model of {type(whole).__name__} cannot be used by itself")
    setattr(language_model, language_model.base_model_prefix, decoder)
    language_model.set_output_embeddings(head)
    language_model.generation_config = whole.generation_config
    return language_model.eval()


def _add_placeholders(language_model: Any, tokenizer: Any) -> None:
    """Add `<video>` and `<image>` to vocabulary and embeddings, and set a padding token."""
    tokenizer.add_tokens(PLACEHOLDERS, special_tokens=True)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    rows = language_model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > rows:
        language_model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        for module in (language_model.get_input_embeddings(), language_model.get_output_embeddings()):
            weight = module.weight.data
            weight[rows:] = weight[:rows].mean(dim=0, dtype=torch.float32).to(weight.dtype)


@torch.no_grad()
def _check_logits(model: Any, language_model: Any) -> None:
    """Refuse a language model that is more than embedding, decoder and linear head: the rest would be silently lost."""
    model.eval()
    kind = type(language_model).__name__
    if model.lm_head.bias is not None:
        raise ValueError(f"the output head of {kind} has a bias, which is not supported")
    ids = torch.arange(min(16, language_model.config.vocab_size))
    ids = ids[(ids != model.config.video_token_id) & (ids != model.config.image_token_id)][None]
    output = language_model(input_ids=ids)
    expected = output.logits
    if not {"attentions", CACHE_NAME} <= {field.name for field in dataclasses.fields(output)}:
        raise ValueError(
            f"{kind} has no KV cache (its state has another form), which answers need: choose another language model"
        )
    if not _takes_embeddings(language_model, ids, expected):
        raise ValueError(
            f"{kind} needs token ids in its layers too (such as per-layer embeddings), and visual tokens have none: "
            "choose another language model"
        )
    if not torch.equal(model(input_ids=ids).logits, expected):
        raise ValueError(f"{kind} changes its logits in a way that is not supported")


def _takes_embeddings(language_model: Any, ids: torch.Tensor, expected: torch.Tensor) -> bool:
    """Whether embeddings are all that the decoder needs, also those that are of no word, as visual tokens."""
    embeds = language_model.get_input_embeddings()(ids)
    try:
        language_model(inputs_embeds=(embeds + embeds.roll(1, dims=1)) / 2)
    except RuntimeError:  # Gemma 4 looks up which words the embeddings are
        return False
    return torch.equal(language_model(inputs_embeds=embeds).logits, expected)


@torch.no_grad()
def _scale_visual_tokens(model: Any, processor: Any) -> None:
    """Give fresh visual tokens the size of words where a language model multiplies its word embeddings (Gemma does, by
    the root of its width), so that its first layers see both on the same scale.
    """
    embedding = model.get_input_embeddings()
    ids = torch.arange(min(1024, embedding.weight.shape[0]), device=embedding.weight.device)
    words = embedding(ids)
    if torch.equal(words, embedding.weight[ids]):
        return
    blocks = torch.randint(256, (4, 8, 8, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    frames = blocks.repeat_interleave(16, 1).repeat_interleave(16, 2)
    (visual,) = model.encode(processor.video_processor([frames.numpy()], return_tensors="pt"))
    sizes = [tokens.float().pow(2).mean().sqrt() for tokens in (words, visual.tokens)]
    for weight in model.model.output_map.parameters():
        weight.mul_(sizes[0] / sizes[1])
