"""A second family, as small as the contract allows: a convolution over patches, and a projection."""

__all__ = ["ToyConfig", "ToyForConditionalGeneration"]
