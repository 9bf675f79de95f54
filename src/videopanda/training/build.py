"""A fresh STAB in front of a language model: where `prealign` starts.

model, processor = put_stab_in_front("vicuna-7b-v1.5", VideoPandaStabConfig.released(), 0.02, seed=0)
"""

from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, set_seed
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from videopanda.checkpoints import checksums
from videopanda.models.videopanda import (
    VideoPandaConfig,
    VideoPandaForConditionalGeneration,
    VideoPandaProcessor,
    VideoPandaProjector,
    VideoPandaStab,
    VideoPandaStabConfig,
    VideoPandaVideoProcessor,
)
from videopanda.training.chat_template import visual_chat_template

PLACEHOLDERS = ["<video>", "<image>"]
PRESETS = {
    "released": VideoPandaStabConfig.released,
    "paper": VideoPandaStabConfig.paper,
    "eve_star": VideoPandaStabConfig.eve_star,
}


def is_video_panda(folder: str | Path) -> bool:
    """Whether a folder holds a Video-Panda, and not just a language model."""
    return AutoConfig.from_pretrained(folder).model_type == VideoPandaConfig.model_type


def load(folder: str | Path) -> tuple[VideoPandaForConditionalGeneration, VideoPandaProcessor]:
    """A Video-Panda folder, ready to be trained: weights in float32.

    Raises:
        ValueError: weights are missing, which would else start fresh in silence.
    """
    model, report = VideoPandaForConditionalGeneration.from_pretrained(
        folder, dtype=torch.float32, output_loading_info=True
    )
    if missing := sorted(report["missing_keys"]):
        raise ValueError(f"{folder} is not complete: it lacks {missing[0]} ({len(missing)} weights in all)")
    return model, VideoPandaProcessor.from_pretrained(folder)


def put_stab_in_front(
    backbone: str | Path,
    stab: VideoPandaStabConfig,
    initializer_range: float,
    seed: int,
    *,
    chat_template: str | None = None,
    dtype: torch.dtype | Literal["auto"] = torch.float32,
) -> tuple[VideoPandaForConditionalGeneration, VideoPandaProcessor]:
    """Join a causal language model with a fresh STAB and projector.

    `<video>` and `<image>` are added to the vocabulary where they are missing. Where the embedding has spare rows, as
    many models do, they take two of these; else it grows by rows that are the mean of all others. The weights of the
    language model are used as they were loaded, never held twice.

    Args:
        backbone: folder or Hub name of a causal language model with its tokenizer.
        initializer_range: standard deviation of fresh linear weights.
        chat_template: jinja text or "vicuna"; default the template of the tokenizer.
        dtype: of all weights; "auto" is that of the language model.

    Raises:
        ValueError: there is no such model, it is none that Video-Panda can carry, or it has no chat template.
    """
    language_model, tokenizer = _load_backbone(backbone, dtype)
    template = visual_chat_template(tokenizer, chat_template)
    set_seed(seed)
    _add_placeholders(language_model, tokenizer)
    video_token_id, image_token_id = tokenizer.convert_tokens_to_ids(PLACEHOLDERS)
    config = VideoPandaConfig(
        text_config=language_model.config,
        stab_config=stab,
        video_token_id=video_token_id,
        image_token_id=image_token_id,
        initializer_range=initializer_range,
        tie_word_embeddings=language_model.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        model = VideoPandaForConditionalGeneration(config)
    model.model.language_model = language_model.base_model
    model.lm_head = language_model.get_output_embeddings()
    model.model.stab = VideoPandaStab(stab)
    model.model.projector = VideoPandaProjector(stab.hidden_size, language_model.config.hidden_size)
    for part in (model.model.stab, model.model.projector):
        part.apply(model._init_weights)
        part.to(language_model.dtype)
    _check_logits(model, language_model)
    ends = language_model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
    model.generation_config.eos_token_id = sorted(ends) if len(ends) > 1 else ends.pop()
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    processor = VideoPandaProcessor(
        video_processor=VideoPandaVideoProcessor.for_fresh_stab(stab),
        tokenizer=tokenizer,
        chat_template=template,
        time_prompt=stab.mask_padding,  # a model that sees no padding is told how long the clip is
    )
    return model, processor


def make_checkpoint(
    out: str | Path, backbone: str | Path, preset: str, chat_template: str | None, seed: int
) -> list[str]:
    """Put a fresh STAB in front of a language model, save both in the folder `out`, and say what was made.

    `chat_template` is the name of a jinja file or "vicuna". The weights keep the type of the language model.

    Raises:
        ValueError: as `put_stab_in_front`; an unknown preset, or `out` is in use.
    """
    folder = Path(out)
    if preset not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {preset!r}")
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is in use: choose a new folder")
    if chat_template not in (None, "vicuna"):
        chat_template = Path(chat_template).read_text(encoding="utf-8")
    model, processor = put_stab_in_front(
        backbone, PRESETS[preset](), 0.02, seed, chat_template=chat_template, dtype="auto"
    )
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    checksums.record(folder)
    text = model.config.text_config
    parts = {"language model": text.model_type, "stab": f"{preset}, fresh", "projector": "fresh"}
    modules = (model.model.language_model, model.model.stab, model.model.projector)
    counts = [sum(parameter.numel() for parameter in module.parameters()) for module in modules]
    if not model.config.tie_word_embeddings:
        counts[0] += model.lm_head.weight.numel()
    return [
        *(f"{part:<15}{count:>15,}  {what}" for (part, what), count in zip(parts.items(), counts)),
        f"{'vocabulary':<15}{text.vocab_size:>15,}  <video> is {model.config.video_token_id}, "
        f"<image> is {model.config.image_token_id}",
        f"{'context':<15}{text.max_position_embeddings:>15,}  eight frames of 16:9 take "
        f"{processor.video_processor.token_count(8, 1080, 1920):,}",
    ]


def _load_backbone(backbone: str | Path, dtype: torch.dtype | Literal["auto"]) -> tuple[Any, Any]:
    """The language model and its tokenizer."""
    try:
        config = AutoConfig.from_pretrained(backbone, trust_remote_code=False)
        if config.model_type == VideoPandaConfig.model_type:
            raise ValueError(f"{backbone} is a Video-Panda already: train it as it is, or name a language model")
        wanted, found = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type), config.architectures or []
        if wanted not in found:
            raise ValueError(
                f"{backbone} is not a causal language model that transformers knows: it holds "
                f"{', '.join(found) or config.model_type}"
            )
        tokenizer = AutoTokenizer.from_pretrained(backbone, trust_remote_code=False)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            backbone, dtype=dtype, trust_remote_code=False, output_loading_info=True
        )
    except OSError as error:
        raise ValueError(f"no language model at {backbone}: {str(error).splitlines()[0]}") from error
    language_model, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(f"{backbone} is not complete: it lacks {missing[0]} ({len(missing)} weights in all)")
    language_model.config._name_or_path = Path(backbone).name  # no path of this machine in the checkpoint
    return language_model, tokenizer


def _add_placeholders(language_model: Any, tokenizer: Any) -> None:
    """Give `<video>` and `<image>` a place in vocabulary and embeddings, and padding a token."""
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
def _check_logits(model: VideoPandaForConditionalGeneration, language_model: Any) -> None:
    """Raise where the language model does more than decoder and linear head, which would be lost in silence."""
    model.eval()
    if model.lm_head.bias is not None:
        raise ValueError(f"the output head of {type(language_model).__name__} has a bias, which is not supported")
    embeds = language_model.get_input_embeddings()(torch.arange(min(8, language_model.config.vocab_size))[None])
    if not torch.equal(model(inputs_embeds=embeds).logits, language_model(inputs_embeds=embeds).logits):
        raise ValueError(f"{type(language_model).__name__} changes its logits behind the head, which is not supported")
