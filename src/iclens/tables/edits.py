"""Edit: an intervention as data."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from iclens.errors import EditError
from iclens.names import Site, position
from iclens.tables.arrays import Floats, Ints

KINDS = ("replace", "add", "zero", "mean", "resample")
"""What an edit does. `mean` and `resample` replace as well, and say where the value is from: one mean row for
every prompt, or another run's own row for each."""


@dataclass(frozen=True)
class Edit:
    """Change a site at chosen positions of every row of a forward pass.

    Args:
        site: where.
        kind: one of `KINDS`: "replace" the activation by `value`, "add" `value` to it, set it to "zero", to a
            "mean" over other prompts, or "resample" it from another run, row by row.
        recipient_pos: positions that change, [pos] (the same in every row).
        value: broadcastable to [row pos d_model], with `heads` to [row pos head d_head]; None for "zero".
            A mean has one row at most, a resample one for every prompt.
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
                f"edit '{self.kind}' at {self.site}",
                "value missing or not wanted",
                "Give `value` to every kind but zero, which takes none.",
            )
        if self.kind == "mean" and self.per_row:
            raise EditError(
                f"edit 'mean' at {self.site}", f"{self._shape[0]} rows", "Give `value` as one row, the mean."
            )
        if self.kind == "resample" and len(self._shape) != self._axes:
            raise EditError(
                f"edit 'resample' at {self.site}", "its value has no axis of rows", "Give one row per prompt."
            )
        for name, given in (("recipient_pos", self.recipient_pos), ("heads", self.heads)):
            if given is not None and (np.ndim(given) != 1 or not len(given)):
                raise EditError(
                    f"edit at {self.site}",
                    f"{name} is no list of one or more",
                    f"Give `{name}` as a list of whole numbers, or leave heads out for all of them.",
                )
        if self.heads is not None and self.site.hook != "z":
            raise EditError(
                f"edit of heads at {self.site.short}",
                "it has no heads",
                f"Edit heads at L{self.site.layer}.z, or leave `heads` out.",
            )

    @classmethod
    def at(
        cls, site: Site, kind: str, role: str, examples: Sequence[int], value: Floats | None = None,
        *, donor_examples: Sequence[int] | None = None, heads: Sequence[int] | None = None,
    ) -> Edit:  # fmt: skip
        """An edit at a role of some examples.

        Args:
            site: where.
            kind: one of `KINDS`.
            role: one of `names.ROLES`.
            examples: examples of the recipient, from 0; the last of a run is its query.
            value: as above.
            donor_examples: examples of the donor that the value came from.
            heads: as above.

        Raises:
            SiteError: for an unknown role.
            EditError: as for any edit.
        """
        donors = None if donor_examples is None else np.array([position(role, i) for i in donor_examples])
        chosen = None if heads is None else np.asarray(heads)
        return cls(site, kind, np.array([position(role, i) for i in examples]), value, donors, chosen)

    @property
    def _axes(self) -> int:
        """Axes of a value that has one for the rows."""
        return 3 if self.heads is None else 4

    @property
    def _shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return () if self.value is None else np.shape(self.value)

    @property
    def per_row(self) -> bool:
        """Whether every row of a forward pass has a value of its own."""
        return len(self._shape) == self._axes and self._shape[0] > 1

    def of_rows(self, rows: slice) -> Edit:
        """The same edit for some rows of those that it was made for."""
        return replace(self, value=self.value[rows]) if self.value is not None and self.per_row else self
