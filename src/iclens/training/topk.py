"""TopK and BatchTopK SAEs in training: the step, with gradients written out by hand.

Training sees u = s·(x − m): m the mean activation, s such that E‖u‖² = d_in. With unit decoder rows,

    z = u·W_enc + b_enc            a = relu(z) at the k largest z of a row, 0 elsewhere
    û = a·W_dec + b_dec            loss = mean over rows of ‖v − û‖² / d_out  +  c·AuxK

v is u itself, or the scaled target of a transcoder; BatchTopK takes the k·row largest z of the batch. About k
of d_sae latents are active in a row, so all but one of the six dense products of a step would be zeros. The
kernels choose the active latents and sum over them alone (`embedding_bag`, for CPU and CUDA); every latent
then takes its step of dense Adam. Weights stand with one row per latent: encoder [d_sae d_in], decoder
[d_sae d_out].
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from sae_lens import (
    SAE,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    JumpReLUTranscoder,
    JumpReLUTranscoderConfig,
    TopKSAE,
    TopKSAEConfig,
)
from torch import Tensor
from torch.nn import functional as F
from torch.optim.adam import adam

from iclens.core import SaeError
from iclens.training.config import Optimisation, SaeSpec
from iclens.training.data import Scaling

SPARSE = ("topk", "batchtopk")
"""Architectures that are trained here."""
DEAD_EVERY = 16
"""Steps between two looks at which latents are dead: a look makes the host wait for the device."""
BETAS = (0.9, 0.99)
"""Adam's; with β₂ = 0.99 a moment changes by more than bfloat16's rounding per step, so that it can decay."""
EPSILON = 1e-8
_BLOCK = 1 << 22
"""Parameters whose moments are widened at a time."""
_SIZES = (8, 4, 2)
"""Latents per group in the search for the largest: the first that divides their number."""
_SAMPLE = 256
"""Rows from which the least active value of a batch is guessed."""
_MARGIN = 0.8
"""What is guessed to be the least active value is lowered by this factor."""
_THRESHOLD_RATE = 0.01
"""Weight of one batch in the running mean of BatchTopK's least active value (sae_lens' default)."""


# --------------------------------------------------------------------------------------- adam


class Adam:
    """Adam on gradients that were computed by hand; changes `parameters`, all contiguous, in place.

        m ← β₁m + (1−β₁)g     v ← β₂v + (1−β₂)g²     p ← p − lr · m̂ / (√v̂ + ε),  m̂ = m/(1−β₁ᵗ), v̂ = v/(1−β₂ᵗ)

    torch's own fused kernel does the arithmetic, so that every step equals `torch.optim.Adam`'s, moments of
    idle latents included. Moments stored as bfloat16 are widened, stepped and rounded block by block.
    """

    def __init__(self, parameters: Mapping[str, Tensor], moment_dtype: torch.dtype) -> None:
        self.parameters, self.steps = dict(parameters), 0
        self.moments = {
            f"{moment}.{name}": torch.zeros_like(
                p, dtype=p.dtype if moment_dtype == torch.float32 else moment_dtype
            )
            for name, p in self.parameters.items()
            for moment in ("exp_avg", "exp_avg_sq")
        }

    @torch.no_grad()
    def step(self, gradients: Mapping[str, Tensor], lr: float) -> None:
        """One step of every parameter that has a gradient, at learning rate `lr`.

        `steps` counts it from its first change on, so that it says whether anything was changed.
        """
        self.steps += 1
        for name, gradient in gradients.items():
            p = self.parameters[name]
            m, v = (self.moments[f"{moment}.{name}"] for moment in ("exp_avg", "exp_avg_sq"))
            if m.dtype == p.dtype:
                self._fused(p, gradient, m, v, lr)
                continue
            flat = (x.view(-1).split(_BLOCK) for x in (p, gradient.contiguous(), m, v))
            for some_p, some_g, some_m, some_v in zip(*flat, strict=True):
                wide_m, wide_v = some_m.to(p.dtype), some_v.to(p.dtype)
                self._fused(some_p, some_g, wide_m, wide_v, lr)
                some_m.copy_(wide_m)
                some_v.copy_(wide_v)

    def _fused(self, p: Tensor, gradient: Tensor, m: Tensor, v: Tensor, lr: float) -> None:
        steps = torch.full((), float(self.steps - 1), dtype=torch.float32, device=p.device)
        adam(
            [p], [gradient], [m], [v], [], [steps], fused=True, amsgrad=False, beta1=BETAS[0],
            beta2=BETAS[1], lr=lr, weight_decay=0.0, eps=EPSILON, maximize=False,
        )  # fmt: skip


@torch.no_grad()
def clip(gradients: Mapping[str, Tensor], longest: float) -> None:
    """Shorten the gradients in place, all by one factor, to a joint length of at most `longest`."""
    lengths = torch.stack([gradient.norm() for gradient in gradients.values()])
    factor = (longest / lengths.norm().clamp_min(1e-20)).clamp_max(1)
    for gradient in gradients.values():
        gradient.mul_(factor)


# ------------------------------------------------------------------------------------ kernels


@dataclass(frozen=True)
class Active:
    """The active latents of a batch, sorted by row."""

    value: Tensor  # [entry]; entries of value 0 take up room but change no sum
    row: Tensor  # [entry]
    latent: Tensor  # [entry]
    start: Tensor  # first entry of each row, [row]


@dataclass(frozen=True)
class Order:
    """The same entries sorted by latent."""

    entry: Tensor  # [entry], which entry stands where
    row: Tensor  # its row, [entry]
    bounds: Tensor  # first entry of each latent, and the number of entries, [d_sae + 1]


@dataclass(frozen=True)
class Encoder:
    """z = u·matrixᵀ + bias, computed for a chunk of rows at a time."""

    matrix: Tensor  # [d_sae d_in]
    bias: Tensor  # [d_sae]
    chunk: int | None = None  # rows whose pre-activations are held at a time; None for all
    # of the product that chooses; the values kept are always computed in the precision of `matrix`
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


def top_latents(z: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of every row of z [row latent], unsorted: values and columns, [row k] each.

    A row's k largest lie in the k groups with the largest maxima: the maximum of any other group is exceeded
    by k others. So the groups are found first, in the same way, and then searched.
    """
    n = z.shape[1]
    size = next((size for size in _SIZES if n % size == 0 and n // size >= 2 * k), None)
    if size is None:
        top = z.topk(k, dim=1, sorted=False)
        return top.values, top.indices
    _, groups = top_latents(_maxima(z, size), k)
    columns = (groups[:, :, None] + _members(z, size)).flatten(1)
    top = z.gather(1, columns).topk(k, dim=1, sorted=False)
    return top.values, columns.gather(1, top.indices)


def _maxima(z: Tensor, size: int) -> Tensor:
    """Maxima of groups of `size` columns, [row group]; group c of n holds columns c, c + n, c + 2n …."""
    return z.unflatten(1, (size, -1)).amax(dim=1)


def _members(z: Tensor, size: int) -> Tensor:
    """What to add to a group's number for its columns, [size]."""
    return torch.arange(0, z.shape[1], z.shape[1] // size, device=z.device)


def choose_topk(encoder: Encoder, u: Tensor, k: int) -> Active:
    """The k largest pre-activations of each row of u [row d_in], negative ones set to 0."""
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
    """The k·row largest pre-activations of all rows of u [row d_in] that are positive.

    Only values above a guess of the least active one are looked at; when they are too few, the guess is
    lowered. How many there are has to be known, so that the host waits for the device once per chunk. The
    guess is made from `least`, the least active value of the batch before; 0 for the first batch.
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
    parts = []
    for first, z in encoder.chunks(u):
        size = next((size for size in _SIZES if z.shape[1] % size == 0), 1)
        row, group = (_maxima(z, size) > floor).nonzero(as_tuple=True)
        column = group[:, None] + _members(z, size)  # [group size]
        value = z[row[:, None], column]
        where, member = (value > floor).nonzero(as_tuple=True)
        parts.append((row[where] + first, column[where, member], value[where, member].to(u.dtype)))
    row, latent, value = (torch.cat(part) for part in zip(*parts, strict=True))
    return row, latent, value


def _starts(row: Tensor, n_rows: int) -> Tensor:
    """First entry of each row, [row], for the rows of sorted entries."""
    return torch.searchsorted(row, torch.arange(n_rows, device=row.device))


def decode(active: Active, decoder: Tensor) -> Tensor:
    """a·decoder, [row d_out], for decoder [d_sae d_out]."""
    return F.embedding_bag(active.latent, decoder, active.start, mode="sum", per_sample_weights=active.value)


def dots(g: Tensor, weights: Tensor, latent: Tensor, start: Tensor) -> Tensor:
    """⟨g[row], weights[latent]⟩ of every entry, [entry]: the gradient of a sum over weighted rows.

    g is [row d], weights [d_sae d], latent [entry], and start the first entry of each row.
    """
    ones = torch.ones(len(latent), dtype=g.dtype, device=g.device, requires_grad=True)
    with torch.enable_grad():
        sums = F.embedding_bag(latent, weights.detach(), start, mode="sum", per_sample_weights=ones)
    (products,) = torch.autograd.grad(sums, ones, g)
    return products


def by_latent(active: Active, d_sae: int) -> Order:
    """The entries sorted by latent, those of one latent by row."""
    latent, entry = active.latent.sort(stable=True)
    bounds = torch.searchsorted(latent, torch.arange(d_sae + 1, device=latent.device))
    return Order(entry, active.row[entry], bounds)


def gather(order: Order, value: Tensor, x: Tensor) -> Tensor:
    """Σ value·x[row] over the entries of each latent, [d_sae d]; value [entry] by row, x [row d]."""
    weight = value[order.entry]
    return F.embedding_bag(order.row, x, order.bounds[:-1], mode="sum", per_sample_weights=weight)


def total(order: Order, value: Tensor) -> Tensor:
    """Σ value over the entries of each latent, [d_sae]."""
    return torch.segment_reduce(value[order.entry], "sum", offsets=order.bounds, initial=0)


# ------------------------------------------------------------------------------------- losses


def reconstruct(
    weights: Mapping[str, Tensor], u: Tensor, v: Tensor, active: Active
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, remaining error v − û, and the loss's gradients, for given active latents.

    Args:
        weights: encoder [d_sae d_in], b_enc [d_sae], decoder [d_sae d_out], b_dec [d_out].
        u: what the encoder reads, [row d_in].
        v: what is predicted, [row d_out].
    """
    decoder = weights["decoder"].detach()
    a = active.value.detach().requires_grad_()
    with torch.enable_grad():
        u_hat = decode(replace(active, value=a), decoder)
    error = v - u_hat.detach() - weights["b_dec"]
    g = error * (-2 / error.numel())
    (d_a,) = torch.autograd.grad(u_hat, a, g)
    d_z = d_a * (active.value > 0)
    order = by_latent(active, len(decoder))
    gradients = {
        "encoder": gather(order, d_z, u),
        "b_enc": total(order, d_z),
        "decoder": gather(order, active.value, g),
        "b_dec": g.sum(dim=0),
    }
    return error.square().mean(), error, gradients


@torch.no_grad()
def auxiliary(
    u: Tensor,
    error: Tensor,
    weights: Mapping[str, Tensor],
    aux_k: int,
    chunk: int | None,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """AuxK: dead latents learn to explain what the live ones left over. The loss and its gradients.

        ê = a·W_dec over the `aux_k` dead latents with the largest z in each row
        loss = Σ‖ê − e‖² / Σ‖e‖²,   e = u − û held fixed

    Their z is used as it is: after a relu, a latent whose z is never positive would get no gradient. Only
    columns of dead latents are computed, densely. Source: Gao et al. 2024, arXiv 2406.04093, §2.4.

    Args:
        u: what the encoder reads, [row d_in].
        error: what the live latents left, [row d_out].
        weights: of the dead latents alone: encoder [dead d_in], b_enc [dead], decoder [dead d_out].
        aux_k: dead latents that take part in each row.
        chunk: rows whose pre-activations are held at a time.
        dtype: of the products; that of u by default. Sums over chunks keep the precision of u.
    """
    dtype = dtype or u.dtype
    encoder, bias, decoder = (weights[name].to(dtype) for name in ("encoder", "b_enc", "decoder"))
    whole = error.square().sum().clamp_min(1e-20)
    loss, gradients = u.new_zeros(()), {name: torch.zeros_like(w) for name, w in weights.items()}
    size = chunk or len(u)
    for rows, left in zip(u.split(size), error.split(size), strict=True):
        some = rows.to(dtype)
        z = torch.addmm(bias, some, encoder.T)  # [row dead]
        chosen = None  # 1 at the aux_k largest of each row, 0 elsewhere; None: all are chosen
        if aux_k < z.shape[1]:
            largest = z.topk(aux_k, dim=1, sorted=False).indices
            chosen = torch.zeros_like(z).scatter_(1, largest, 1.0)
        a = z if chosen is None else z * chosen
        over = (a @ decoder).to(u.dtype) - left
        loss += over.square().sum() / whole
        d_over = (over * (2 / whole)).to(dtype)
        d_z = d_over @ decoder.T
        if chosen is not None:
            d_z *= chosen
        gradients["decoder"] += a.T @ d_over
        gradients["encoder"] += d_z.T @ some
        gradients["b_enc"] += d_z.sum(dim=0)
    return loss, gradients


# --------------------------------------------------------------------------------------- step


class SaeStep:
    """An SAE or transcoder in training, whatever its architecture; target_scaling is None for an SAE."""

    adam: Adam

    def __init__(
        self, spec: SaeSpec, settings: Optimisation, scaling: Scaling, target_scaling: Scaling | None,
        device: torch.device | str,
    ) -> None:  # fmt: skip
        self.spec, self.settings = spec, settings
        self.scaling = replace(scaling, mean=scaling.mean.to(device))
        self.target_scaling = target_scaling and replace(target_scaling, mean=target_scaling.mean.to(device))
        self.out = self.target_scaling or self.scaling
        self.idle = torch.zeros(spec.d_sae, dtype=torch.int64, device=device)

    @property
    def taken(self) -> int:
        """Steps that changed its weights, one that failed midway included."""
        return self.adam.steps

    def update(self, x: Tensor, target: Tensor | None, rate: float) -> dict[str, Tensor]:
        """One step on raw activations.

        Args:
            x: [row d_in].
            target: what a transcoder predicts, [row d_out]; None for an SAE.
            rate: fraction of the peak learning rate.

        Returns:
            fvu, l0, dead (fraction), loss and, for TopK, aux of this batch before the step, 0-dimensional.
        """
        raise NotImplementedError

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the following steps depend on, by name."""
        return {**self.adam.moments, "idle": self.idle, "steps": torch.tensor(self.adam.steps)}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave; raises a SaeError when one is missing or of another shape."""
        for key, tensor in self.tensors().items():
            if key not in tensors or tensors[key].shape != tensor.shape:
                wrong = "missing" if key not in tensors else f"of shape {tuple(tensors[key].shape)}"
                remedy = "Resume with the configuration it was saved by."
                raise SaeError(f"state of {self.spec.name}: '{key}'", wrong, remedy)
            tensor.copy_(tensors[key])
        self.adam.steps = int(tensors["steps"])

    def export(self) -> SAE:
        """The SAE for raw activations, on the CPU, as sae_lens saves it: with unit decoder rows."""
        raise NotImplementedError

    def _scaled(self, x: Tensor, target: Tensor | None) -> tuple[Tensor, Tensor]:
        """u [row d_in], and v [row d_out] that is predicted from it."""
        u = self.scaling.apply(x)
        return u, u if target is None or self.target_scaling is None else self.target_scaling.apply(target)

    def _dead(self) -> Tensor:
        return self.idle >= self.settings.dead_after_tokens


class SparseStep(SaeStep):
    """A TopK or BatchTopK SAE or transcoder in training; `rows` [row d_in] size its first encoder."""

    def __init__(
        self, spec: SaeSpec, settings: Optimisation, scaling: Scaling, target_scaling: Scaling | None,
        rows: Tensor, device: torch.device | str,
    ) -> None:  # fmt: skip
        super().__init__(spec, settings, scaling, target_scaling, device)
        if spec.k is None:
            raise SaeError(f"SAE {spec.name}", "it has no k", "Give one.")
        self.k, self.encode_dtype = spec.k, getattr(torch, settings.encode_dtype)
        self.threshold = torch.zeros((), dtype=torch.float64, device=device)
        self.least = torch.zeros((), dtype=torch.float64, device=device)
        self.weights = self._first_weights(self.scaling.apply(rows[:4096].to(device)), device)
        self.adam = Adam(self.weights, getattr(torch, settings.moment_dtype))
        self.dead = torch.zeros(spec.d_sae, dtype=torch.bool, device=device)
        self.names = self.dead.nonzero()[:, 0]

    def _choose(self, u: Tensor) -> Active:
        """The active latents of rows u [row d_in]."""
        matrix, bias = self.weights["encoder"], self.weights["b_enc"]
        encoder = Encoder(matrix, bias, self.settings.encode_chunk, self.encode_dtype)
        if self.spec.architecture == "topk":
            return choose_topk(encoder, u, self.k)
        return choose_batch_topk(encoder, u, self.k, float(self.least))

    @torch.no_grad()
    def _first_weights(self, u: Tensor, device: torch.device | str) -> dict[str, Tensor]:
        """Random unit decoder rows, and an encoder of the same directions in the best size for rows u.

        A transcoder's encoder has directions of its own, and the size that predicts half the target's length.
        """
        d_in, d_sae, d_out = u.shape[1], self.spec.d_sae, len(self.out.mean)
        generator = torch.Generator().manual_seed(self.spec.seed)
        decoder = F.normalize(torch.randn(d_sae, d_out, generator=generator).to(device), dim=1)
        encoder = decoder.clone()
        if self.target_scaling is not None:
            encoder = F.normalize(torch.randn(d_sae, d_in, generator=generator).to(device), dim=1)
        self.weights = {
            "encoder": encoder,
            "b_enc": torch.zeros(d_sae, device=device),
            "decoder": decoder,
            "b_dec": torch.zeros(d_out, device=device),
        }
        u_hat = decode(self._choose(u), decoder)
        square = u_hat.square().sum().clamp_min(1e-20)
        if self.target_scaling is None:
            encoder.mul_((u * u_hat).sum() / square)
        else:
            encoder.mul_(0.5 * (d_out * len(u) / square).sqrt())
        return self.weights

    @torch.no_grad()
    def update(self, x: Tensor, target: Tensor | None, rate: float) -> dict[str, Tensor]:
        """One step on raw activations, as `SaeStep.update` says."""
        u, v = self._scaled(x, target)
        active = self._choose(u)
        loss, error, gradients = reconstruct(self.weights, u, v, active)
        aux = self._add_auxiliary(u, error, gradients)
        self._descend(gradients, rate)
        self._count(active, len(u))
        centred = (v - v.mean(dim=0)).square().sum().clamp_min(1e-20)
        return {
            "fvu": loss * v.numel() / centred,
            "l0": (active.value > 0).sum() / len(u),
            "dead": self._dead().float().mean(),
            "aux": aux,
            "loss": loss + self.settings.aux_coefficient * aux,
        }

    def _add_auxiliary(self, u: Tensor, error: Tensor, gradients: dict[str, Tensor]) -> Tensor:
        """The auxiliary loss, its gradients added; 0 without dead latents."""
        settings, coefficient = self.settings, self.settings.aux_coefficient
        if self.adam.steps % DEAD_EVERY == 0:
            self.dead = self._dead()
            self.names = self.dead.nonzero()[:, 0]
        if not len(self.names) or not coefficient:
            return u.new_zeros(())
        dead = {name: self.weights[name][self.names] for name in ("encoder", "b_enc", "decoder")}
        aux, added = auxiliary(u, error, dead, settings.aux_k, settings.encode_chunk, self.encode_dtype)
        for name, gradient in added.items():
            gradients[name].index_add_(0, self.names, gradient, alpha=coefficient)
        return aux

    def _descend(self, gradients: dict[str, Tensor], rate: float) -> None:
        """Adam; the decoder's gradient along its own rows is dropped, and its rows are made unit again."""
        decoder, gradient = self.weights["decoder"], gradients["decoder"]
        along = torch.bmm(gradient[:, None], decoder[:, :, None])[:, 0]  # [d_sae 1]
        gradient.addcmul_(along, decoder, value=-1)
        if self.settings.gradient_clip is not None:
            clip(gradients, self.settings.gradient_clip)
        self.adam.step(gradients, self.spec.lr * rate)
        decoder.div_(torch.linalg.vector_norm(decoder, dim=1, keepdim=True).clamp_min(1e-12))

    def _count(self, active: Active, n_rows: int) -> None:
        """Count the rows for which each latent has been idle; follow BatchTopK's least active value."""
        fired = active.value > 0
        self.idle += n_rows
        since = torch.where(fired, 0, torch.iinfo(self.idle.dtype).max)
        self.idle.scatter_reduce_(0, active.latent, since, "amin")
        if self.spec.architecture == "batchtopk" and len(active.value):
            least = torch.where(fired, active.value, math.inf).amin().double()
            share = _THRESHOLD_RATE if self.adam.steps > 1 else 1.0
            self.least.copy_(torch.where(least.isfinite(), least, 0.0))
            self.threshold.lerp_(self.least, share)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the following steps depend on, by name."""
        own = {"dead": self.dead, "threshold": self.threshold, "least": self.least}
        return {**self.weights, **super().tensors(), **own}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave; raises a SaeError when one is missing or of another shape."""
        super().restore(tensors)
        self.names = self.dead.nonzero()[:, 0]

    @torch.no_grad()
    def export(self) -> SAE:
        """The SAE for raw activations, on the CPU.

        z and a are divided by the scale of what is predicted: exact, as neither relu nor the choice of the
        largest depends on a common factor. TopK gives a `TopKSAE`; as a transcoder it does not subtract b_dec
        from its input, and needs d_out = d_in. BatchTopK gives a `JumpReLUSAE` or a `JumpReLUTranscoder`: one
        threshold, the running mean of the least active value, stands for the choice within a batch, so that
        rows no longer share a budget.
        """
        weights, out = self.weights, self.out
        network = self._inference_network(len(self.scaling.mean), len(out.mean))
        parameters = dict(network.named_parameters())
        W_enc = parameters["W_enc"].copy_(weights["encoder"].T).mul_(self.scaling.factor / out.factor)
        b_dec = parameters["b_dec"].copy_(weights["b_dec"] / out.factor + out.mean)
        shift = -self.scaling.mean.cpu() if self.target_scaling else b_dec - self.scaling.mean.cpu()
        parameters["b_enc"].copy_(weights["b_enc"] / out.factor).add_(shift @ W_enc)
        parameters["W_dec"].copy_(weights["decoder"])
        if "threshold" in parameters:
            parameters["threshold"].fill_(self.threshold / out.factor)
        return network

    def _inference_network(self, d_in: int, d_out: int) -> SAE:
        d_sae, reads_own = self.spec.d_sae, self.target_scaling is None
        if self.spec.architecture == "topk":
            if d_in != d_out:
                unequal = f"no sae_lens class is TopK from width {d_in} to {d_out}"
                raise SaeError(f"transcoder {self.spec.name}", unequal, "Train it as batchtopk.")
            return TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=self.k, apply_b_dec_to_input=reads_own))
        if reads_own:
            return JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae))
        return JumpReLUTranscoder(
            JumpReLUTranscoderConfig(d_in=d_in, d_sae=d_sae, d_out=d_out, apply_b_dec_to_input=False)
        )
