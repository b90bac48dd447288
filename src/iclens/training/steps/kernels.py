"""Sparse arithmetic of a TopK step: which latents are active, and sums over the active ones only.

Of a batch with n rows and d_sae latents about k per row are active, so that all but one of the six dense
products of a training step are almost entirely multiplications by zero. What remains here:

1. `top_latents`: the k largest of a row, found among the groups whose maxima are largest.
2. `choose_topk`, `choose_batch_topk`: pre-activations, a chunk of rows at a time, and the active ones kept.
3. `decode`, `dots`, `by_latent` and `gather`: û = a·W_dec, ∂L/∂a, and the gradients of both weight
   matrices, all as sums over active entries (`embedding_bag`, which has kernels for CPU and CUDA).

Weights stand with one row per latent: encoder [d_sae d_in], decoder [d_sae d_out].
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

_SIZES = (8, 4, 2)
"""Latents per group in the search for the largest: the first that divides their number."""
_SAMPLE = 256
"""Rows from which the least active value of a batch is guessed."""
_MARGIN = 0.8
"""What is guessed to be the least active value is lowered by this factor."""


@dataclass(frozen=True)
class Active:
    """The active latents of a batch, sorted by row.

    Args:
        value: [entry]; entries of value 0 take up room but change no sum.
        row: [entry].
        latent: [entry].
        start: first entry of each row, [row].
    """

    value: Tensor
    row: Tensor
    latent: Tensor
    start: Tensor


@dataclass(frozen=True)
class Order:
    """The same entries sorted by latent.

    Args:
        entry: [entry], which entry stands where.
        row: its row, [entry].
        bounds: first entry of each latent, and the number of entries, [d_sae + 1].
    """

    entry: Tensor
    row: Tensor
    bounds: Tensor


def top_latents(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row, unsorted: values and columns, [row k] each.

    A row's k largest lie in the k groups with the largest maxima: the maximum of any other group is exceeded
    by k others. So the groups are found first, in the same way, and then searched.

    Args:
        z: [row latent].
        k: how many.
    """
    n = z.shape[1]
    size = next((size for size in _SIZES if n % size == 0 and n // size >= 2 * k), None)
    if size is None:
        found = z.topk(k, dim=1, sorted=False)
        return found.values, found.indices
    _, groups = top_latents(_maxima(z, size), k)
    columns = (groups[:, :, None] + _members(z, size)).flatten(1)
    found = z.gather(1, columns).topk(k, dim=1, sorted=False)
    return found.values, columns.gather(1, found.indices)


def _maxima(z: Tensor, size: int) -> Tensor:
    """Maxima of groups of `size` columns, [row group]; group c of n holds columns c, c + n, c + 2n …."""
    return z.unflatten(1, (size, -1)).amax(dim=1)


def _members(z: Tensor, size: int) -> Tensor:
    """What to add to a group's number for its columns, [size]."""
    return torch.arange(0, z.shape[1], z.shape[1] // size, device=z.device)


@dataclass(frozen=True)
class Encoder:
    """z = u·matrixᵀ + bias, computed for a chunk of rows at a time.

    Args:
        matrix: [d_sae d_in].
        bias: [d_sae].
        chunk: rows whose pre-activations are held at a time; None for all.
        dtype: of the product that chooses; the values kept are always computed in the precision of `matrix`.
    """

    matrix: Tensor
    bias: Tensor
    chunk: int | None = None
    dtype: torch.dtype | None = None

    @property
    def narrow(self) -> bool:
        """Whether the product that chooses is of lower precision than the weights."""
        return self.dtype is not None and self.dtype.itemsize < self.matrix.dtype.itemsize

    def chunks(self, u: Tensor) -> Iterator[tuple[int, Tensor]]:
        """First row and z [row d_sae] of each chunk of u [row d_in]; a chunk overwrites the one before."""
        size = min(self.chunk or len(u), len(u))
        matrix, bias, rows = self.matrix.T, self.bias, u
        if self.narrow:
            matrix, bias, rows = (x.to(self.dtype) for x in (matrix, bias, rows))
        z = rows.new_empty(size, len(self.bias))
        for first in range(0, len(u), size):
            some = rows[first : first + size]
            yield first, torch.addmm(bias, some, matrix, out=z[: len(some)])

    def values(self, u: Tensor, latent: Tensor, start: Tensor) -> Tensor:
        """z of the given entries, in full precision, [entry]."""
        return dots(u, self.matrix, latent, start) + self.bias[latent]


def choose_topk(encoder: Encoder, u: Tensor, k: int) -> Active:
    """Each row's k largest pre-activations, negative ones set to 0.

    Args:
        encoder: gives the pre-activations.
        u: [row d_in].
        k: active latents per row.
    """
    values = u.new_empty(len(u), k)
    latents = torch.empty(len(u), k, dtype=torch.long, device=u.device)
    for first, z in encoder.chunks(u):
        values[first : first + len(z)], latents[first : first + len(z)] = top_latents(z, k)
    start = torch.arange(0, len(u) * k, k, device=u.device)
    row = torch.arange(len(u), device=u.device).repeat_interleave(k, output_size=len(u) * k)
    latent, value = latents.flatten(), values.flatten()
    if encoder.narrow:
        value = encoder.values(u, latent, start)
    return Active(value.relu(), row, latent, start)


def choose_batch_topk(encoder: Encoder, u: Tensor, k: int, least: float) -> Active:
    """The k·row largest pre-activations of the whole batch that are positive.

    Only values above a guess of the least active one are looked at; when they are too few, the guess is
    lowered. How many there are has to be known, so that the host waits for the device once per chunk.

    Args:
        encoder: gives the pre-activations.
        u: [row d_in].
        k: active latents per row, on average.
        least: least active value of the batch before, from which the guess is made; 0 for the first one.
    """
    wanted = len(u) * k
    floor = _MARGIN * (least or _least_of_sample(encoder, u[:_SAMPLE], k))
    row, latent, value = _above(encoder, u, floor)
    while len(value) < wanted and floor > 0:
        floor = floor / 2 if floor > 1e-3 else 0.0
        row, latent, value = _above(encoder, u, floor)
    if encoder.narrow:
        value = encoder.values(u, latent, _starts(row, len(u)))
    if len(value) > wanted:
        kept = value.topk(wanted, sorted=False).indices.sort().values
        row, latent, value = row[kept], latent[kept], value[kept]
    return Active(value.relu(), row, latent, _starts(row, len(u)))


def _least_of_sample(encoder: Encoder, u: Tensor, k: int) -> float:
    """The least active value of the first chunk of u [row d_in], or 0."""
    _, z = next(encoder.chunks(u))
    return max(0.0, float(z.flatten().topk(len(z) * k, sorted=False).values.amin()))


def _above(encoder: Encoder, u: Tensor, floor: float) -> tuple[Tensor, Tensor, Tensor]:
    """Row, latent and value of every pre-activation above `floor`, by row, [entry] each."""
    found = []
    for first, z in encoder.chunks(u):
        size = next((size for size in _SIZES if z.shape[1] % size == 0), 1)
        row, group = (_maxima(z, size) > floor).nonzero(as_tuple=True)
        column = group[:, None] + _members(z, size)
        value = z[row[:, None], column]
        where, member = (value > floor).nonzero(as_tuple=True)
        found.append((row[where] + first, column[where, member], value[where, member].to(u.dtype)))
    row, latent, value = (torch.cat(parts) for parts in zip(*found, strict=True))
    return row, latent, value


def _starts(row: Tensor, n_rows: int) -> Tensor:
    """First entry of each row, [row], for the rows of sorted entries."""
    return torch.searchsorted(row, torch.arange(n_rows, device=row.device))


def decode(active: Active, decoder: Tensor) -> Tensor:
    """a·decoder, [row d_out], for decoder [d_sae d_out]."""
    return F.embedding_bag(active.latent, decoder, active.start, mode="sum", per_sample_weights=active.value)


def dots(g: Tensor, weights: Tensor, latent: Tensor, start: Tensor) -> Tensor:
    """⟨g[row], weights[latent]⟩ of every entry, [entry]: the gradient of a sum over weighted rows.

    Args:
        g: [row d].
        weights: [d_sae d].
        latent: [entry].
        start: first entry of each row, [row].
    """
    ones = torch.ones(len(latent), dtype=g.dtype, device=g.device, requires_grad=True)
    with torch.enable_grad():
        total = F.embedding_bag(latent, weights.detach(), start, mode="sum", per_sample_weights=ones)
    (found,) = torch.autograd.grad(total, ones, g)
    return found


def by_latent(active: Active, d_sae: int) -> Order:
    """The entries sorted by latent, those of one latent by row."""
    latent, entry = active.latent.sort(stable=True)
    bounds = torch.searchsorted(latent, torch.arange(d_sae + 1, device=latent.device))
    return Order(entry, active.row[entry], bounds)


def gather(order: Order, value: Tensor, x: Tensor) -> Tensor:
    """Σ value·x[row] over the entries of each latent, [d_sae d].

    Args:
        order: of the entries.
        value: by row, [entry].
        x: [row d].
    """
    weight = value[order.entry]
    return F.embedding_bag(order.row, x, order.bounds[:-1], mode="sum", per_sample_weights=weight)


def total(order: Order, value: Tensor) -> Tensor:
    """Σ value over the entries of each latent, [d_sae]."""
    return torch.segment_reduce(value[order.entry], "sum", offsets=order.bounds, initial=0)
