"""Small random models of both families with a compressor, and their processors."""

import torch

from tiny import randomize, tiny_stab, tiny_text_config, tiny_tokenizer
from videopanda.models.families import fresh_config, model_class, processor_class

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
    "{{ '<video>' if p['type'] == 'video' else '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{{ '</s>' if m['role'] == 'assistant' }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)
FAMILIES = ("videopanda", "elva")


def compressed(family: str, compression: dict | None = None, text: str = "qwen3", stab: dict | None = None, **fields):
    """A model in eval mode without zero weights in its compressor, and its processor."""
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    if family == "videopanda":
        fields["stab_config"] = tiny_stab("released", mask_padding=True, lste_batch_norm=False, **(stab or {}))
    else:
        fields["embedding_config"] = {"hidden_size": 32, "patch_size": 4, "num_heads": 4}
        fields["max_frame_cells"] = 12
    config = fresh_config(
        family,
        "",
        {},
        text_config=tiny_text_config(text, max_position_embeddings=4096),
        compression=compression or {},
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        **fields,
    )
    model = model_class(config)(config)
    for part in model.vision_modules().values():
        randomize(part, scale=0.1)
    return model.eval(), processor_class(config).for_config(config, tokenizer, TEMPLATE)
