"""Small random models of both families with a compressor, and their processors."""

import torch

from tiny import TEXT, randomize, tiny_stab, tiny_tokenizer
from videopanda.models.families import fresh_config, model_class, processor_class

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
    "{{ '<video>' if p['type'] == 'video' else '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}\n"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
FAMILIES = ("videopanda", "elva")


def compressed(family: str, compression: dict | None = None, text: str = "qwen3", stab: dict | None = None, **fields):
    """A model in eval mode without zero weights in its compressor, and its processor."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    text_config = {
        "model_type": text,
        "vocab_size": len(tokenizer),
        "hidden_size": 48,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 4096,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
        "initializer_range": 0.2,
        **TEXT[text],
    }
    if family == "videopanda":
        fields["stab_config"] = tiny_stab("released", mask_padding=True, lste_batch_norm=False, **(stab or {}))
    else:
        fields["embedding_config"] = {"hidden_size": 32, "patch_size": 4, "num_heads": 4}
        fields["max_frame_cells"] = 12
    config = fresh_config(
        family,
        "",
        {},
        text_config=text_config,
        compression_config=compression or {},
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **fields,
    )
    model = model_class(config)(config)
    for part in model.vision_modules().values():
        randomize(part, scale=0.1)
    return model.eval(), processor_class(config).for_config(config, tokenizer, TEMPLATE)
