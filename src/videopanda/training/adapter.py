"""LoRA on the language model, with STAB and projector trained beside it or frozen.

The adapter folder holds everything that was trained: PEFT's own layout, so `PeftModel.from_pretrained(model, folder)`
reads it, too.
"""

from pathlib import Path
from typing import Any

import torch

from videopanda.models.videopanda import VideoPandaForConditionalGeneration
from videopanda.training.build import load
from videopanda.training.stages import StageConfig

ADAPTER = "adapter"  # sub-folder of the output
# Linear maps of every decoder layer, whatever the family calls them.
_TARGETS = r".*language_model\.layers\.\d+\..*_proj"


def load_quantized(folder: Path) -> VideoPandaForConditionalGeneration:
    """A Video-Panda whose language model lies in memory as 4-bit NormalFloat (QLoRA, arXiv 2305.14314).

    Raises:
        ValueError: bitsandbytes is not installed, or runs nowhere on this machine.
    """
    from transformers import BitsAndBytesConfig

    try:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
            llm_int8_skip_modules=["model.stab", "model.projector", "lm_head"],
        )
        return VideoPandaForConditionalGeneration.from_pretrained(folder, quantization_config=config)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"4-bit weights need bitsandbytes: pip install 'videopanda[qlora]' ({error})") from error


def add_adapter(model: Any, stage: StageConfig) -> Any:
    """Wrap a model in a `PeftModel` as the stage says.

    Raises:
        ValueError: the language model has no linear maps of the usual names.
    """
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=stage.lora_rank,
        lora_alpha=stage.lora_alpha or 2 * stage.lora_rank,
        lora_dropout=stage.lora_dropout,
        target_modules=_TARGETS,
        modules_to_save=[part for part in ("stab", "projector") if stage.learning_rates[part]] or None,
    )
    return get_peft_model(model, config)


def merge(start: Path, adapter: Path) -> VideoPandaForConditionalGeneration:
    """The model that training started from, with the adapter worked into its weights."""
    from peft import PeftModel

    model, _ = load(start)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()
