"""Maps names of official Video-Panda and EVE checkpoints to ours. An official checkpoint contains more than the model:
every tensor of the tower twice (`video_tower` and `vision_tower` are two names for one module, `video_projector` and
`mm_projector` likewise), a branch that is never used (`lmhra2`), the head for distilling a teacher, and often the
teacher itself, also twice.
"""

import re
from typing import Literal, NamedTuple

_STAB = {
    "class_embedding": "fsra.query",
    "split_embedding": "row_token",
    "temporal_cls_token": "gstra.query",
    "balance": "fusion.balance",
    "patch_embedding": "patch_embedding",
    "lmhra1.pos_embed.0": "lste.norm",
    "lmhra1.pos_embed.1": "lste.reduce",
    "lmhra1.pos_embed.2": "lste.temporal",
    "lmhra1.pos_embed.3": "lste.expand",
    "dpe": "lste.position",
    "dec.attn.in_proj_weight": "gstra.in_proj.weight",
    "dec.attn.in_proj_bias": "gstra.in_proj.bias",
    "dec.attn.out_proj": "gstra.out_proj",
    "dec.ln_1": "gstra.query_norm",
    "dec.ln_3": "gstra.key_norm",
    "dec.ln_2": "gstra.mlp_norm",
    "dec.mlp.c_fc": "gstra.mlp_up",
    "dec.mlp.c_proj": "gstra.mlp_down",
    "proj.0": "fusion.norm",
    "proj.2": "fusion.proj",
    "local_attention.q.0": "lsd.query_norm",
    "local_attention.q.1": "lsd.query_proj",
    "local_attention.kv.0": "lsd.key_norm",
    "local_attention.kv.1": "lsd.kv_proj",
    "local_attention.proj": "lsd.out_proj",
    "global_attention.q.0": "fsra.query_norm",
    "global_attention.q.1": "fsra.query_proj",
    "global_attention.kv.0": "fsra.key_norm",
    "global_attention.kv.1": "fsra.kv_proj",
    "global_attention.proj": "fsra.out_proj",
}
_PROJECTOR = {"0": "up", "2": "down"}
_TOWERS = ("video_tower", "vision_tower")  # the second name is used where the first one is missing
_PROJECTORS = ("video_projector", "mm_projector")
_LAYER = re.compile(
    r"layers\.\d+\.(self_attn\.[qkvo]_proj|mlp\.(gate|up|down)_proj|input_layernorm|post_attention_layernorm)\.weight"
)
_HEAD = re.compile(r"(norm_layer\.\d+\.0\.(weight|bias)|norm_layer\.\d+\.1\.weight|(in|out)put_layer\.(weight|bias))")


def official_to_ours(name: str) -> str | None:
    """Translate an official tower or projector key to ours (`stab.*`, `projector.*`); None for tensors that are not
    needed.

    The image tower (`vision_tower`, `mm_projector`) is an alias of the video tower and translates to the same key. The
    tensors are equal up to the singleton axes of `temporal_cls_token`: reshape to the shape of our parameter.
    """
    name = name.removeprefix("model.")
    tower, _, rest = name.partition(".")
    if tower in _PROJECTORS:
        layer, _, kind = rest.partition(".")
        return f"projector.{_PROJECTOR[layer]}.{kind}" if layer in _PROJECTOR else None
    if tower not in _TOWERS:
        return None
    if rest in _STAB:
        return f"stab.{_STAB[rest]}"
    module, _, kind = rest.rpartition(".")
    if module not in _STAB or kind == "num_batches_tracked":
        return None  # `lmhra2` is never used
    return f"stab.{_STAB[module]}.{kind}"


class TensorAction(NamedTuple):
    """What happens to an official tensor.

    kind: "weight" of the model, tensor of the distillation "head", "dropped" on purpose, or "unknown".
    target: its name in the model, or in the file of the head.
    rank: if several tensors have the same target, the one with the lowest rank is used.
    why: reason for dropping it.
    """

    kind: Literal["weight", "head", "dropped", "unknown"]
    target: str = ""
    rank: int = 0
    why: str = ""


def action_for(name: str) -> TensorAction:
    """Say what happens to a tensor of an official Video-Panda or EVE checkpoint."""
    if name == "lm_head.weight":
        return TensorAction("weight", name)
    inner = name.removeprefix("model.")
    module, _, rest = inner.partition(".")
    if "teacher" in inner or any("clip" in part for part in inner.split(".")):
        return TensorAction("dropped", why="frozen teacher of the distillation")
    if inner.endswith("rotary_emb.inv_freq"):
        return TensorAction("dropped", why="rotary frequencies follow from the configuration")
    if inner in ("embed_tokens.weight", "norm.weight") or _LAYER.fullmatch(inner):
        return TensorAction("weight", f"model.language_model.{inner}")
    if module in (*_TOWERS, *_PROJECTORS):
        rank = int(module in (_TOWERS[1], _PROJECTORS[1]))
        ours = official_to_ours(name)
        if ours is not None:
            return TensorAction("weight", f"model.{ours}", rank)
        if rest.startswith("lmhra2.pos_embed."):
            return TensorAction("dropped", why="branch that no forward pass uses")
        if rest == "lmhra1.pos_embed.0.num_batches_tracked":
            return TensorAction("dropped", why="step counter of the batch norm, used nowhere")
    if module in ("video_tower_compressor", "vision_tower_compressor") and _HEAD.fullmatch(rest):
        return TensorAction("head", rest, int(module == "vision_tower_compressor"))
    return TensorAction("unknown")
