"""One formula for numpy arrays and torch tensors: the namespace of functions that arrays belong to."""

from __future__ import annotations

from typing import Any

import numpy as np


def array_namespace(*arrays: Any) -> Any:
    """The functions of the array API standard for arrays of one kind.

    numpy's own namespace follows the standard since numpy 2; array-api-compat, which would load all of numpy for its own, is asked
    for others.
    """
    if all(isinstance(array, np.ndarray | np.generic) for array in arrays):
        return np
    from array_api_compat import array_namespace as compatible

    return compatible(*arrays)
