"""LoRA on the language model, with the vision modules either trained as well or frozen. The adapter folder contains
everything that was trained: PEFT's own layout, so `PeftModel.from_pretrained(model, folder)` also reads it.
"""

from copy import deepcopy
from pathlib import Path
from typing import Any

import torch

from videopanda.models.families import model_class
from videopanda.models.load import check_checkpoint, load_checkpoint
from videopanda.training.freezing import rates_of
from videopanda.training.stages import StageConfig

ADAPTER = "adapter"  # sub-folder of the output
# Linear maps of every decoder layer, whatever the family calls them.
_TARGETS = r".*language_model\.layers\.\d+\..*_proj"


def load_quantized(folder: Path) -> tuple[Any, Any]:
    """Model and processor of a folder, with the language model in memory as 4-bit NormalFloat (QLoRA, 2305.14314): the
    same weights as those of `inference.quantize` in the format nf4. Vision modules are float32, as they are trained.

    Raises:
        ValueError: bitsandbytes is not installed, or does not work on this machine.
    """
    from transformers import BitsAndBytesConfig

    model_config = check_checkpoint(folder)
    with torch.device("meta"):
        vision = vision_paths(model_class(model_config)(model_config))
    try:
        config = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.bfloat16 if torch.cuda.is_available() else torch.float32,
            llm_int8_skip_modules=[*vision.values(), "lm_head"],
        )
        model, processor = load_checkpoint(folder, "auto", quantization_config=config)
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"4-bit weights need bitsandbytes: pip install 'videopanda[qlora]' ({error})") from error
    for part in model.vision_modules().values():
        part.float()
    for module in model.modules():
        # Some CPUs repack the weights in the first evaluation, and what is repacked passes no gradients on.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    return model, processor


def vision_paths(model: Any) -> dict[str, str]:
    """The vision modules of a model by name, as paths such as "model.projector"."""
    paths = {module: path for path, module in model.named_modules()}
    return {name: paths[module] for name, module in model.vision_modules().items()}


def add_adapter(model: Any, stage: StageConfig) -> Any:
    """Wrap a model in a `PeftModel` with the settings of the stage; its first weights depend on the seed alone.

    Raises:
        ValueError: the language model has no linear maps of the usual names, or the model has parts that an adapter
            does not fit.
    """
    from peft import LoraConfig, get_peft_model

    model.check_adaptable()

    paths = vision_paths(model)
    rates = rates_of(stage, model)
    config = LoraConfig(
        r=stage.lora_rank,
        lora_alpha=stage.lora_alpha or 2 * stage.lora_rank,
        lora_dropout=stage.lora_dropout,
        target_modules=_TARGETS,
        modules_to_save=[path for part, path in paths.items() if rates[part]] or None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(stage.seed)  # not on what was drawn before, which may differ from process to process
        return get_peft_model(model, config)


def merge(trained: Any, adapter: Path) -> Any:
    """The model that `trained`, a `PeftModel`, started from, with its adapter merged into the weights and with its
    configuration, of which the stage may have changed fields.
    """
    from peft import PeftModel

    config = deepcopy(trained.config)
    vars(config).pop("quantization_config", None)  # the weights are merged as they were before
    model, _ = load_checkpoint(Path(config._name_or_path), torch.float32, config=config)
    return PeftModel.from_pretrained(model, adapter).merge_and_unload()
