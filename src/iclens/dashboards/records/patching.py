"""What does the page of patching show? Sweeps of whole residuals, ablated heads, and what latents carry."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class SweepCell:
    """One cell of a sweep: the metric at a role (or head) and layer, with its interval."""

    role: str
    layer: int
    value: float
    low: float = math.nan
    high: float = math.nan


@dataclass(frozen=True)
class SweepView:
    """One heat map, layers × roles or heads.

    Args:
        title: metric and recipient, for example "Task applied to B's own x (zero-example recipient)".
        caption: how it was measured: donor, number of examples, prompts.
        cells: any order; a missing (role, layer) is left empty. Values are shares of 1.
        down: what a layer is, beside the chart.
        across: what the columns are.
    """

    title: str
    caption: str
    cells: Sequence[SweepCell]
    down: str = "patched before block"
    across: str = "role"


@dataclass(frozen=True)
class PatchingView:
    """The page of patching.

    Args:
        sweeps: heat maps of whole residuals moved from A to B, headline first.
        heads: heat maps of ablated heads, one for each kind and place.
    """

    sweeps: Sequence[SweepView] = ()
    heads: Sequence[SweepView] = ()
