"""A tiny ELVA and its inputs, and what it must give: greedy tokens by running the whole merged sequence again."""

import numpy as np
import torch

from tiny import TEXT, randomize, tiny_tokenizer
from videopanda.models.elva import ElvaConfig, ElvaForConditionalGeneration, ElvaProcessor

TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }}: {% for p in m['content'] %}"
    "{{ '<video>' if p['type'] == 'video' else '<image>' if p['type'] == 'image' else p['text'] }}{% endfor %}"
    "{{ '</s>' if m['role'] == 'assistant' }}\n{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def elva(
    text: str = "qwen2", merge: dict | None = None, embedding_fields: dict | None = None, **fields
) -> tuple[ElvaForConditionalGeneration, ElvaProcessor]:
    torch.manual_seed(0)
    tokenizer = tiny_tokenizer()
    config = ElvaConfig(
        text_config={
            "model_type": text,
            "vocab_size": len(tokenizer),
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 2048,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            "initializer_range": 0.2,
            **TEXT[text],
        },
        embedding_config={"hidden_size": 32, "patch_size": 4, "num_heads": 4, **(embedding_fields or {})},
        merge_config={"layers": [1, 2], "keep": 0.5} if merge is None else merge,
        video_token_id=tokenizer.convert_tokens_to_ids("<video>"),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        max_frame_cells=12,
        **fields,
    )
    model = ElvaForConditionalGeneration(config)
    randomize(model.model.embedding)
    return model.eval(), ElvaProcessor.for_config(config, tokenizer, TEMPLATE)


def frames(seed: int, count: int = 5, height: int = 24, width: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def batch(processor: ElvaProcessor, clips: list[np.ndarray], questions: list[str]):
    metadata = [{"duration": 2.0, "fps": 4.0, "total_num_frames": len(clip)} for clip in clips]
    texts = [f"user: <video>{question}\nassistant:" for question in questions]
    return processor(text=texts, videos=clips, video_metadata=metadata, do_sample_frames=False)


def greedy_by_recompute(model, inputs, steps: int) -> torch.Tensor:
    """Run the whole merged sequence again for every token."""
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    for _ in range(steps):
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        given = {**inputs, "input_ids": ids, "attention_mask": mask}
        logits = model(**given, position_ids=positions, use_cache=False).logits[:, -1]
        logits[:, model.generation_config.suppress_tokens] = -torch.inf
        ids = torch.cat([ids, logits.argmax(1)[:, None]], 1)
        mask = torch.cat([mask, torch.ones(len(mask), 1, dtype=mask.dtype)], 1)
    return ids[:, inputs["input_ids"].shape[1] :]


def model_inputs(features) -> dict:
    return {k: v for k, v in features.items() if isinstance(v, torch.Tensor) and k != "token_type_ids"}
