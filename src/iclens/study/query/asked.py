"""Can a run be asked this? Latent ids, examples and numbers of rows, checked before anything is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from iclens.core import SiteError
from iclens.study.config import one_line

_SHOWN = 60
"""Characters of a strange value that an error shows."""


def latent_ids(value: Any) -> tuple[int, ...]:
    """Latent ids as plain integers.

    Args:
        value: one integer, or a sequence or array of them.

    Raises:
        SiteError: for anything else.
    """
    listed = [value]
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        listed = [value.item()] if isinstance(value, np.ndarray) and value.ndim == 0 else list(value)
    if not all(_whole(one) for one in listed):
        raise SiteError(f"latents {_shown(value)}", "not whole numbers", "Give an id, or a list of ids.")
    return tuple(int(one) for one in listed)


def example_slice(value: Any) -> slice:
    """Examples as a slice of plain integers.

    Raises:
        SiteError: for anything but a slice of integers.
    """
    ends = (value.start, value.stop, value.step) if isinstance(value, slice) else (value,)
    if not isinstance(value, slice) or not all(end is None or _whole(end) for end in ends):
        raise SiteError(
            f"examples {_shown(value)}", "not a slice of integers", "Give a slice such as slice(4, 12)."
        )
    return slice(*(None if end is None else int(end) for end in ends))


def n_rows(value: Any) -> int:
    """A number of rows.

    Raises:
        SiteError: for anything but a positive integer.
    """
    if not _whole(value) or value < 1:
        raise SiteError(
            f"the first {_shown(value)} rows",
            "not a positive integer",
            "Give a whole number of 1 or more, such as 20.",
        )
    return int(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = one_line(repr(value))
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"
