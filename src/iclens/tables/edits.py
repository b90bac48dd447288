"""Edit: an intervention as data."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from iclens.errors import EditError
from iclens.names import Site
from iclens.tables.arrays import Floats, Ints

KINDS = ("replace", "add", "zero")


@dataclass(frozen=True)
class Edit:
    """Change a site at chosen positions of every row of a forward pass.

    Args:
        site: where.
        kind: "replace" the activation by `value`, "add" `value` to it, or set it to "zero".
        recipient_pos: positions that change, [pos] (the same in every row).
        value: broadcastable to [row pos d_model], with `heads` to [row pos head d_head]; None for "zero". For
            a mean edit, replace by the mean.
        donor_pos: where the value came from, [pos]; a record, not used to apply the edit.
        heads: which heads of a `z` site change, [head]; the whole site when not given.
    """

    site: Site
    kind: str
    recipient_pos: Ints
    value: Floats | None = None
    donor_pos: Ints | None = None
    heads: Ints | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EditError(f"edit kind '{self.kind}'", "unknown", f"One of {', '.join(KINDS)}.")
        if (self.value is None) != (self.kind == "zero"):
            raise EditError(
                f"edit '{self.kind}' at {self.site}", "value missing or not wanted", "Only zero has none."
            )
        if np.asarray(self.recipient_pos).ndim != 1:
            raise EditError(
                f"edit at {self.site}", "recipient_pos is not a list", "Give one position per entry."
            )
        if self.heads is not None and self.site.hook != "z":
            raise EditError(f"edit of heads at {self.site.short}", "it has no heads", "Heads are at z.")
