"""Checks shared by the tables: axes agree, values are what they claim."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclens.errors import TableError

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]
Strings = NDArray[np.str_]


def expect_shape(owner: str, **fields: tuple[NDArray[Any], tuple[int | str, ...]]) -> dict[str, int]:
    """Check each field's shape against named or fixed axes; equal names must have equal sizes.

    Args:
        owner: the table's name, for the message.
        **fields: field name → (array, axes), for example `values=(v, ("prompt", "example", 5))`.

    Returns:
        The size of every named axis.

    Raises:
        TableError: naming the first field and axis that disagree.
    """
    sizes: dict[str, int] = {}
    for name, (array, axes) in fields.items():
        if array.ndim != len(axes):
            raise TableError(f"{owner}.{name}", f"shape {array.shape}", f"Its axes are {list(axes)}.")
        for size, axis in zip(array.shape, axes, strict=True):
            wanted = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
            if size != wanted:
                raise TableError(
                    f"{owner}.{name}",
                    f"axis '{axis}' has {size}, not {wanted}",
                    f"Its axes are {list(axes)}.",
                )
    return sizes
