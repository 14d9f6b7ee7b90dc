"""A network that does not take the volumes that it is given."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from mergekit3d.errors import InputError, is_out_of_memory


@contextmanager
def taking(images: Tensor) -> Iterator[None]:
    """Tell what a network says of sizes that it does not take as one line.

    Networks for images of one size, and those that halve a volume until one voxel is left, raise whatever their layers raise.

    Args:
        images: (B, M, X, Y, Z), what the network is given, whose forward pass is inside the block.

    Raises:
        InputError: the forward pass failed, for another reason than exhausted memory or a broken device.
    """
    try:
        yield
    except (RuntimeError, ValueError, AssertionError, LookupError) as error:
        if is_out_of_memory(error) or "CUDA" in str(error):
            raise
        said = str(error).strip().partition("\n")[0][:160]
        size = " x ".join(map(str, images.shape[2:]))
        todo = "set patch_size to a size that it takes (its own, where it has one; twice the least else)"
        raise InputError("the network does not take these volumes", wanted=f"another size than {size}", found=said, todo=todo) from error
