"""Translates the settings of an official checkpoint: configuration, processor and tokenizer."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer, processors
from transformers import GenerationConfig, LlamaTokenizer, PreTrainedTokenizerFast

from videopanda.checkpoints.tensors import CheckpointError, TensorLocation
from videopanda.models.videopanda import VideoPandaConfig, VideoPandaStabConfig, VideoPandaVideoProcessor

MODEL_TYPES = ("videopanda", "eve")
MAX_NEW_TOKENS = 1024  # of the released model
PREPROCESSOR = "preprocessor_config.json"
_TEXT_FIELDS = (
    *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
    *("hidden_act", "max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "initializer_range"),
    *("attention_bias", "attention_dropout", "bos_token_id", "eos_token_id", "pad_token_id", "tie_word_embeddings"),
)


@dataclass(frozen=True)
class Settings:
    """Everything but the weights.

    notes: assumptions that had to be made, for the conversion report.
    """

    config: VideoPandaConfig
    video_processor: VideoPandaVideoProcessor
    tokenizer: PreTrainedTokenizerFast
    generation_config: GenerationConfig
    notes: tuple[str, ...]


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of an official checkpoint.

    Raises:
        FileNotFoundError: the folder does not exist.
        CheckpointError: the folder is not an official checkpoint.
    """
    if not folder.is_dir():
        raise FileNotFoundError(f"no checkpoint folder at {folder}")
    path = folder / "config.json"
    if not path.is_file():
        inside = sorted(file.parent.name for file in folder.glob("*/config.json"))
        hint = f"; it contains the checkpoints {', '.join(inside)}: pass one of them" if inside else ""
        raise CheckpointError(f"{folder} is not a checkpoint: it has no config.json{hint}")
    config = _read_json(path)
    kind = config.get("model_type")
    if "text_config" in config and kind == VideoPandaConfig.model_type:
        raise CheckpointError(f"{folder} is already a videopanda checkpoint: it needs no conversion")
    if kind not in MODEL_TYPES:
        raise CheckpointError(
            f"{folder} has the architecture {kind!r}; only official checkpoints of {' and '.join(MODEL_TYPES)} "
            "can be converted"
        )
    return config


def read_settings(folder: Path, places: dict[str, TensorLocation]) -> Settings:
    """Read the settings of an official checkpoint, given the locations of its tensors.

    Raises:
        CheckpointError: a file is missing, or a setting is not supported by the released architecture.
    """
    official = read_config(folder)
    notes: list[str] = []
    for field, wanted in (("mm_projector_type", "mlp2x_gelu"), ("mm_use_im_start_end", False)):
        if official.get(field, wanted) != wanted:
            raise CheckpointError(f"{folder}/config.json: {field} is {official[field]!r}, this model has {wanted!r}")
    tokenizer = read_tokenizer(folder)
    rows = _shape(places, ("model.embed_tokens.weight",), "word embedding")[0]
    num_pieces = len(tokenizer)
    if num_pieces > rows:
        raise CheckpointError(f"{folder}: the tokenizer has {num_pieces} entries, but the model embeds only {rows}")
    tokenizer.add_special_tokens({"additional_special_tokens": ["<video>", "<image>"]})
    preprocessor = _read_preprocessor(folder, official, notes)
    config = VideoPandaConfig(
        text_config={
            "model_type": "llama",
            "vocab_size": max(rows, len(tokenizer)),
            **{field: official[field] for field in _TEXT_FIELDS if field in official},
            "pad_token_id": tokenizer.pad_token_id,
        },
        stab_config=_stab_config(folder, places, preprocessor),
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        architectures=["VideoPandaForConditionalGeneration"],
    )
    tokenizer.model_max_length = config.text_config.max_position_embeddings
    generation = GenerationConfig(
        do_sample=False,
        max_new_tokens=MAX_NEW_TOKENS,
        bos_token_id=config.text_config.bos_token_id,
        eos_token_id=config.text_config.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        suppress_tokens=[config.video_token_id, config.image_token_id],
    )
    given = {name: preprocessor[name] for name in ("image_mean", "image_std") if name in preprocessor}
    video_processor = VideoPandaVideoProcessor.for_stab(
        config.stab_config, num_frames=preprocessor.get("all_num_frames", 8), frame_sampling="released", **given
    )
    return Settings(config, video_processor, tokenizer, generation, tuple(notes))


def read_tokenizer(folder: Path) -> PreTrainedTokenizerFast:
    """The tokenizer of an official checkpoint as a fast one; it pads with the unknown token, as released.

    Raises:
        CheckpointError: there is none, or it is damaged.
        ImportError: see `read_sentencepiece`.
    """
    slow, fast = folder / "tokenizer.model", folder / "tokenizer.json"
    settings = _read_json(folder / "tokenizer_config.json") if (folder / "tokenizer_config.json").is_file() else {}
    if (folder / "special_tokens_map.json").is_file():
        settings |= {k: v for k, v in _read_json(folder / "special_tokens_map.json").items() if v is not None}
    names = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>"}
    for name in (*names, "pad_token"):
        value = settings.get(name)
        content = value.get("content") if isinstance(value, dict) else value
        if content is not None:
            names[name] = content
    names.setdefault("pad_token", names["unk_token"])
    if slow.is_file():
        backend: dict[str, Any] = {"tokenizer_object": read_sentencepiece(slow)}
    elif fast.is_file():
        backend = {"tokenizer_file": str(fast)}
    else:
        raise CheckpointError(f"{folder} has no tokenizer: neither tokenizer.model nor tokenizer.json")
    tokenizer = PreTrainedTokenizerFast(**backend, **names, clean_up_tokenization_spaces=False)
    added = folder / "added_tokens.json"
    if slow.is_file() and added.is_file():
        tokenizer.add_tokens([token for token, _ in sorted(_read_json(added).items(), key=lambda item: item[1])])
    return tokenizer


def read_sentencepiece(path: Path) -> Tokenizer:
    """The fast form of LLaMA's `tokenizer.model`; it prepends `<s>` to every text.

    Raises:
        CheckpointError: the file is damaged, or not of LLaMA's kind: other kinds would be read wrongly.
        ImportError: the packages that read it, sentencepiece and protobuf, are not installed.
    """
    from google.protobuf.message import DecodeError
    from sentencepiece import sentencepiece_model_pb2

    content = sentencepiece_model_pb2.ModelProto()  # type: ignore[attr-defined]
    try:
        content.ParseFromString(path.read_bytes())
    except DecodeError as error:
        raise CheckpointError(f"{path} is not a SentencePiece model, or it is damaged") from error
    rules = content.normalizer_spec
    is_plain = rules.add_dummy_prefix and not (rules.precompiled_charsmap or rules.remove_extra_whitespaces)
    if content.trainer_spec.model_type != content.trainer_spec.BPE or not is_plain or not content.pieces:
        raise CheckpointError(f"{path} is not a byte-pair model without normalization, as that of LLaMA is")
    with TemporaryDirectory() as folder:  # where no other file can change how it is read
        shutil.copy(path, Path(folder) / "tokenizer.model")
        tokenizer = LlamaTokenizer.from_pretrained(folder, legacy=False).backend_tokenizer
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A <s>:1 $B:1", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return tokenizer


def _stab_config(folder: Path, places: dict[str, TensorLocation], preprocessor: dict[str, Any]) -> VideoPandaStabConfig:
    """The released block with the sizes of this checkpoint."""
    towers = ("model.video_tower.", "model.vision_tower.")
    width, _, _, patch = _shape(places, [tower + "patch_embedding.weight" for tower in towers], "patch embedding")
    reduce = next((t + "lmhra1.pos_embed.1.weight" for t in towers if t + "lmhra1.pos_embed.1.weight" in places), None)
    for field, wanted in (("patch_stride", patch), ("conv_stride", 2)):
        if preprocessor.get(field, wanted) != wanted:
            raise CheckpointError(f"{folder}: {PREPROCESSOR} says {field} {preprocessor[field]}, the weights {wanted}")
    return VideoPandaStabConfig(
        hidden_size=width,
        patch_size=patch,
        image_size=preprocessor.get("image_size", 448),
        num_heads=11 if width == 1408 else 8,  # the released sizes are 1024, 1152 and 1408
        lste_bottleneck=None if reduce is None else places[reduce].shape[0],
    )


def _shape(places: dict[str, TensorLocation], names: Sequence[str], what: str) -> tuple[int, ...]:
    found = next((places[name].shape for name in names if name in places), None)
    if found is None:
        raise CheckpointError(f"the checkpoint lacks the {what}, {names[0]}")
    return found


def _read_preprocessor(folder: Path, official: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """The preprocessor that the configuration points at, by a path that starts in the official source tree.

    It is looked for in the checkpoint, in the folders around it and where the command runs. EVE's own is ignored:
    its canvas is not that of Video-Panda, and pre-alignment starts with Video-Panda's.
    """
    if official["model_type"] == "eve":
        notes.append(
            "the EVE weights become a starting point for stage 1, with the canvas of 448 pixels and the 8 "
            "frames of Video-Panda"
        )
        return {}
    folder = folder.absolute()
    for field in ("mm_video_tower", "mm_vision_tower"):
        given = official.get(field)
        if not isinstance(given, str):
            continue
        for root in (folder, *folder.parents, Path.cwd()):
            for path in (root / given, root / given / PREPROCESSOR, root / Path(given).name / PREPROCESSOR):
                if path.suffix == ".json" and path.is_file():
                    return _read_json(path)
    if (folder / PREPROCESSOR).is_file():
        return _read_json(folder / PREPROCESSOR)
    named = official.get("mm_video_tower") or official.get("mm_vision_tower")
    notes.append(f"no {PREPROCESSOR} at {named}: assuming the released values, a canvas of 448 pixels and 8 frames")
    return {}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: it is not JSON") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: it is not a JSON object")
    return content
