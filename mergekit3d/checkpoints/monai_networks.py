"""What MONAI's networks have in common: how they call their channels, and the sizes that they take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

CHANNEL_ARGUMENTS = (("in_channels", "out_channels"), ("in_channels", "num_classes"), ("in_channels", "n_classes"))
DEFAULT_MULTIPLE = 32


def least_multiple(arguments: Mapping[str, Any]) -> int:
    """What input sizes are a multiple of: as the user says (``multiple_of``), the product of the strides, or large enough for most."""
    if "multiple_of" in arguments:
        return int(arguments["multiple_of"])
    strides = arguments.get("strides")
    if not strides:
        return DEFAULT_MULTIPLE
    product = 1
    for stride in strides:
        product *= max(stride) if isinstance(stride, (list, tuple)) else int(stride)
    return product
