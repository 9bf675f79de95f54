"""Conversion of official Video-Panda and EVE checkpoints: `videopanda convert`, and `verify --against`."""

from .plan import tensor_plan
from .report import lines, table
from .write import convert, outgoing_weights

__all__ = ["convert", "lines", "outgoing_weights", "table", "tensor_plan"]
