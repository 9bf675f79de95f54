"""Parameters per modality: visual tokens pass a second set of weights in every decoder layer (EVEv2, arXiv 2502.06788,
"divide and conquer"; arXiv 2410.08202 for feed-forward networks).

    visual = VisualParameters(language_model, "norm+ffn")     # copies, attached to the layers by hooks

The layers of the language model run unchanged. Hooks on its norms, feed-forward networks and projections let only text
tokens through and send visual tokens through the copies; attention stays joint. Which tokens are visual is a keyword
argument of the language model, `merging.VISUAL` (B, N). Part of exported folders.
"""

from copy import deepcopy
from typing import Any

from torch import Tensor, nn


class VisualParameters(nn.ModuleList):
    """Copies of parts of every decoder layer, one `nn.ModuleDict` per layer.

    Args:
        which: "norm": the norms of the layer; "norm+ffn": its feed-forward network, too; "all": also the projections of
            its attention.
    """

    def __init__(self, language_model: Any, which: str):
        parts = [split_parts(layer, which) for layer in language_model.layers]
        super().__init__(nn.ModuleDict({name: deepcopy(part) for name, part in own.items()}) for own in parts)
        self.which = which
        self.attach(language_model)

    def copy_from(self, language_model: Any) -> None:
        """Take the weights of the language model: both modalities start alike."""
        for copies, layer in zip(self, language_model.layers):
            for name, part in split_parts(layer, self.which).items():
                copies[name].load_state_dict(part.state_dict())  # type: ignore[index]

    def attach(self, language_model: Any) -> None:
        """Send visual tokens of a language model through these parameters."""
        for copies, layer in zip(self, language_model.layers):
            for name, part in split_parts(layer, self.which).items():
                if "visual" not in vars(part):
                    part.register_forward_pre_hook(_text_only)
                    part.register_forward_hook(_joined)
                # Not as submodules: each weight has one name, and a copy of the model refers to its own parts.
                vars(part).update(visual=copies[name], layer=layer)  # type: ignore[index]


def split_parts(layer: nn.Module, which: str) -> dict[str, nn.Module]:
    """The parts of a decoder layer that exist once per modality, by name.

    Raises:
        ValueError: the layer has no such parts.
    """
    children = dict(layer.named_children())
    weights = {name: list(child.parameters()) for name, child in children.items()}
    parts = {name: children[name] for name, own in weights.items() if own and all(weight.ndim == 1 for weight in own)}
    if which in ("norm+ffn", "all") and "mlp" in children:
        parts["mlp"] = children["mlp"]
    if which == "all":
        of_attention = dict(children["self_attn"].named_children()) if "self_attn" in children else {}
        parts |= {name: child for name, child in of_attention.items() if name.endswith("_proj")}
    wanted = {"norm": 1, "norm+ffn": 2, "all": 4}[which]
    if len(parts) < wanted:
        raise ValueError(f"{type(layer).__name__} has no norms, mlp or self_attn that could be split: {sorted(parts)}")
    return parts


def _text_only(part: nn.Module, args: tuple[Any, ...]) -> Any:
    """Let only the text tokens through, as (T, E)."""
    is_visual_BN = vars(vars(part)["layer"]).get("is_visual")
    if is_visual_BN is None:
        return None
    vars(part)["whole"] = args[0]
    return (args[0][~is_visual_BN], *args[1:])


def _joined(part: nn.Module, args: Any, text_TD: Tensor) -> Tensor:
    """Put the visual tokens back in their places, (B, N, D)."""
    whole_BNE = vars(part).pop("whole", None)
    if whole_BNE is None:
        return text_TD
    is_visual_BN = vars(vars(part)["layer"])["is_visual"]
    joined_BND = text_TD.new_empty(*whole_BNE.shape[:2], text_TD.shape[-1])
    joined_BND[~is_visual_BN] = text_TD
    joined_BND[is_visual_BN] = vars(part)["visual"](whole_BNE[is_visual_BN])
    return joined_BND
