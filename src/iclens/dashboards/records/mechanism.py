"""What does the page of concepts show of the mechanism? Periods of numbers, and what MLPs do at `lab`.

Plain records; nothing is computed on the way. The conventions are those of `site`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from iclens.core import TableError


def expect_one_per(owner: str, n: int, of: str, cells: Sequence[object]) -> None:
    """Raise a TableError unless there is a figure for each entry of a heading."""
    if len(cells) != n:
        raise TableError(owner, f"{len(cells)} figures for {n} {of}", f"Give one per entry of {of}.")


@dataclass(frozen=True)
class Figure:
    """A number with its interval; `reason` says why it is NaN."""

    value: float
    low: float = math.nan
    high: float = math.nan
    reason: str = ""


@dataclass(frozen=True)
class PeriodRow:
    """How much of a period of a number several features carry together.

    Args:
        place: site and role.
        representation: what the features are.
        of: the number.
        period: T of its cos and sin; 2 is parity.
        r2: on held-out tasks; `reason` says why it is NaN.
        p_value: against relabelled values.
        enough: features that reach 90 % of r2, or a dash.
        n_features: features that were offered.
    """

    place: str
    representation: str
    of: str
    period: float
    r2: Figure
    p_value: float
    enough: str
    n_features: int


@dataclass(frozen=True)
class OperandRow:
    """One measure of x and y at `lab`, layer by layer.

    Args:
        measure: its name.
        figures: in the order of `OperandsView.layers`.
        nulls: the same with the number's values permuted.
    """

    measure: str
    figures: Sequence[Figure]
    nulls: Sequence[float]


@dataclass(frozen=True)
class OperandsView:
    """Where x and y stand in what each MLP reads at `lab`: measures × layers."""

    layers: Sequence[int] = ()
    rows: Sequence[OperandRow] = ()

    def __post_init__(self) -> None:
        for row in self.rows:
            expect_one_per(f"OperandsView.rows {row.measure}", len(self.layers), "layers", row.figures)


@dataclass(frozen=True)
class CreationRow:
    """How well a concept can be read around one block at `lab`.

    Args:
        layer, aurocs: the block, and figures in the order of `CreationView.sources`.
        verdict: what they say together.
        difference: AUROC of attn_out minus that of mlp_out.
        larger: which of the two is larger, "" where it is undefined.
    """

    layer: int
    aurocs: Sequence[Figure]
    verdict: str
    difference: Figure
    larger: str


@dataclass(frozen=True)
class CreationView:
    """One concept, layers × sources; `is_parity` marks the concept that parity claims are about."""

    concept: str
    sources: Sequence[str]
    rows: Sequence[CreationRow]
    is_parity: bool = False

    def __post_init__(self) -> None:
        for row in self.rows:
            expect_one_per(f"CreationView.rows {row.layer}", len(self.sources), "sources", row.aurocs)


@dataclass(frozen=True)
class SizeRow:
    """What a latent's size at `lab` goes with: rank correlations.

    Args:
        concept, site, latent, over: which, and over which rows.
        r: with the log-probability of the label shown.
        r_given_magnitude, magnitude_r: the same given y, and with y given that; other controls in both.
        verdict, reason: what the size is called, and what kept a name from being given.
        n_rows: rows used.
    """

    concept: str
    site: str
    latent: int
    over: str
    r: Figure
    r_given_magnitude: Figure
    magnitude_r: Figure
    verdict: str
    reason: str
    n_rows: int


@dataclass(frozen=True)
class CarriedRow:
    """Whether a latent's sizes at `lab` predict what later `pre` receive.

    Args:
        concept, site, latent: which.
        layer: block whose attention reads it.
        r2: of each prediction, in the order of `ConceptsView.weights`.
        difference: r² of attention minus that of equal weights.
        lab_attention: mean attention of a query to all earlier labels.
        reason: why a figure is NaN or says little.
    """

    concept: str
    site: str
    latent: int
    layer: int
    r2: Sequence[Figure]
    difference: Figure
    lab_attention: float
    reason: str
