"""Conversion of official Video-Panda checkpoints."""

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


def official_to_ours(name: str) -> str | None:
    """Translate an official tower or projector key to ours (`stab.*`, `projector.*`); None for what is not needed.

    The image tower (`vision_tower`, `mm_projector`) is an alias of the video tower and translates to the same key. The
    tensors are equal up to the singleton axes of `temporal_cls_token`: reshape to the shape of our parameter.
    """
    name = name.removeprefix("model.")
    tower, _, rest = name.partition(".")
    if tower in ("video_projector", "mm_projector"):
        layer, _, kind = rest.partition(".")
        return f"projector.{_PROJECTOR[layer]}.{kind}"
    if tower not in ("video_tower", "vision_tower"):
        return None
    if rest in _STAB:
        return f"stab.{_STAB[rest]}"
    module, _, kind = rest.rpartition(".")
    if module not in _STAB or kind == "num_batches_tracked":
        return None  # `lmhra2` is never used
    return f"stab.{_STAB[module]}.{kind}"
