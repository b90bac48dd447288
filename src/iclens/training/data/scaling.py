"""The units of training: every site's activations with mean 0 and mean squared length d_in.

The mean and the size are estimated from a stream: rows pass once, none is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from iclens.core import ConfigError, Site
from iclens.saes.quality import LeftOut
from iclens.training.data.activations import Record, kept_rows
from iclens.training.data.streams import TokenStream


@dataclass(frozen=True)
class Scaling:
    """u = factor · (x − mean).

    Args:
        mean: [d_in].
        factor: scalar.
    """

    mean: Tensor
    factor: float

    @classmethod
    def of(cls, x: Tensor) -> Scaling:
        """The scaling for which rows x [row d_in] have mean 0 and mean squared length d_in."""
        seen = StreamingScaling()
        seen.add(x)
        return seen.scaling()

    def apply(self, x: Tensor) -> Tensor:
        """Scaled rows, [row d_in]."""
        return (x.float() - self.mean) * self.factor


class StreamingScaling:
    """Mean and squared length of rows that pass, in float64 (Welford; joined as in Chan et al. 1979)."""

    def __init__(self) -> None:
        self.n_rows = 0
        self._mean: Tensor | None = None
        self._square: Tensor | None = None

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take rows x [row d_in] into account.

        δ = mean_x − mean;   mean += δ·n_x/n;   S += S_x + ‖δ‖²·n_old·n_x/n
        """
        if not len(x):
            return
        mean = x.mean(dim=0, dtype=torch.float64)
        square = (x.float() - mean.float()).square().sum(dtype=torch.float64)
        if self._mean is None or self._square is None:
            self.n_rows, self._mean, self._square = len(x), mean, square
            return
        total, delta = self.n_rows + len(x), mean - self._mean
        self._square = self._square + square + delta.square().sum() * (self.n_rows * len(x) / total)
        self._mean = self._mean + delta * (len(x) / total)
        self.n_rows = total

    def scaling(self) -> Scaling:
        """The scaling of the rows seen: their mean, and s with s²·(mean squared distance from it) = d_in.

        Raises:
            ConfigError: when no row was seen, or a value was not finite.
        """
        if self._mean is None or self._square is None:
            raise ConfigError("scaling", "no row was seen", "Exclude fewer positions.")
        size = float(self._square) / self.n_rows
        if not size < float("inf"):
            raise ConfigError("scaling", "activations are not finite", "Load the model in another dtype.")
        return Scaling(self._mean.float(), (len(self._mean) / max(size, 1e-20)) ** 0.5)


def estimate_scalings(
    record: Record, stream: TokenStream, sites: Sequence[Site], left_out: LeftOut, n_rows: int
) -> dict[Site, Scaling]:
    """The scaling of each site, from the next `n_rows` rows of a stream, which is then put back.

    Args:
        record: gives the activations of contexts.
        stream: contexts; left as it was, so that the rows seen here are trained on as well.
        sites: what to scale.
        left_out: tokens that are not counted.
        n_rows: rows to see, at least; whole blocks are used.
    """
    before, seen, done = stream.state(), {site: StreamingScaling() for site in sites}, 0
    while done < n_rows:  # counted without the sites: processes that own none keep in step
        tokens = stream.next()
        kept = left_out.kept(tokens)
        for site, rows in kept_rows(record, tokens, sites, kept).items():
            seen[site].add(rows)
        done += int(kept.sum())
    stream.restore(before)
    return {site: one.scaling() for site, one in seen.items()}
