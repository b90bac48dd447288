"""One TopK or BatchTopK SAE and its training step, with gradients written out by hand.

Training sees u = s·(x − m): m the mean activation, s such that E‖u‖² = d_in. With unit decoder rows,

    z = u·W_enc + b_enc            a = relu(z) at the k largest z of a row, 0 elsewhere
    û = a·W_dec + b_dec            loss = mean over rows of ‖v − û‖² / d_out  +  c·AuxK

v is u itself, or the scaled target of a transcoder; BatchTopK takes the k·row largest z of the batch.
Gradients of both matrices are sums over active entries (`kernels`); every latent then takes its step of
dense Adam.

`export` undoes the scalings in the weights: the saved SAE reads raw activations, has unit decoder rows, and
latents in units of what it predicts.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

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

from iclens.core import SaeError
from iclens.training.config import Optimisation, SaeSpec
from iclens.training.data.scaling import Scaling
from iclens.training.steps.adam import Adam, clip
from iclens.training.steps.auxk import auxiliary
from iclens.training.steps.kernels import (
    Active,
    Encoder,
    by_latent,
    choose_batch_topk,
    choose_topk,
    decode,
    gather,
    total,
)

ARCHITECTURES = ("topk", "batchtopk")
"""What is trained here."""
DEAD_EVERY = 16
"""Steps between two looks at which latents are dead: a look makes the host wait for the device."""
_THRESHOLD_RATE = 0.01
"""Weight of one batch in the running mean of BatchTopK's least active value (sae_lens' default)."""


def reconstruct(
    weights: Mapping[str, Tensor], u: Tensor, v: Tensor, active: Active
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Loss, remaining error v − û, and the loss's gradients, for given active latents.

    Args:
        weights: encoder [d_sae d_in], b_enc [d_sae], decoder [d_sae d_out], b_dec [d_out].
        u: what the encoder reads, [row d_in].
        v: what is predicted, [row d_out].
        active: of the rows of u.
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


class SparseStep:
    """A TopK or BatchTopK SAE, or a transcoder of that kind, in training.

    Args:
        spec: architecture, shape, peak rate and seed.
        settings: losses and precision.
        scaling: of the site that is read.
        target_scaling: of the site that is predicted; None for an SAE.
        rows: raw activations that set the size of the first encoder, [row d_in].
        device: where it is trained.
    """

    def __init__(
        self,
        spec: SaeSpec,
        settings: Optimisation,
        scaling: Scaling,
        target_scaling: Scaling | None,
        rows: Tensor,
        device: torch.device | str,
    ) -> None:
        if spec.k is None:
            raise SaeError(f"SAE {spec.name}", "it has no k", "Give one.")
        self.spec, self.settings, self.k = spec, settings, spec.k
        self.scaling = on_device(scaling, device)
        self.target_scaling = None if target_scaling is None else on_device(target_scaling, device)
        self.encode_dtype: torch.dtype = getattr(torch, settings.encode_dtype)
        self.threshold = torch.zeros((), dtype=torch.float64, device=device)
        self.least = torch.zeros((), dtype=torch.float64, device=device)
        self.weights = self._first_weights(self.scaling.apply(rows[:4096].to(device)), device)
        self.adam = Adam(self.weights, getattr(torch, settings.moment_dtype))
        self.idle = torch.zeros(spec.d_sae, dtype=torch.int64, device=device)
        self.dead = torch.zeros(spec.d_sae, dtype=torch.bool, device=device)
        self.names = self.dead.nonzero()[:, 0]

    def _choose(self, u: Tensor) -> Active:
        """The active latents of rows u [row d_in]."""
        encoder = Encoder(
            self.weights["encoder"],
            self.weights["b_enc"],
            self.settings.encode_chunk,
            self.encode_dtype,
        )
        if self.spec.architecture == "topk":
            return choose_topk(encoder, u, self.k)
        return choose_batch_topk(encoder, u, self.k, float(self.least))

    @torch.no_grad()
    def _first_weights(self, u: Tensor, device: torch.device | str) -> dict[str, Tensor]:
        """Random unit decoder rows, and an encoder of the same directions in the best size for rows u.

        A transcoder's encoder has directions of its own, and the size that predicts half the target's length.
        """
        d_in, d_sae = u.shape[1], self.spec.d_sae
        d_out = d_in if self.target_scaling is None else len(self.target_scaling.mean)
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

    @property
    def taken(self) -> int:
        """Steps that changed its weights, one that failed midway included."""
        return self.adam.steps

    @torch.no_grad()
    def update(self, x: Tensor, target: Tensor | None, rate: float) -> dict[str, Tensor]:
        """One step on raw activations.

        Args:
            x: [row d_in].
            target: what a transcoder predicts, [row d_out]; None for an SAE.
            rate: fraction of the peak learning rate.

        Returns:
            fvu, l0, dead (fraction), aux and loss of this batch before the step, 0-dimensional.
        """
        u = self.scaling.apply(x)
        v = u if target is None or self.target_scaling is None else self.target_scaling.apply(target)
        active = self._choose(u)
        loss, error, gradients = reconstruct(self.weights, u, v, active)
        aux = self._add_auxiliary(u, error, gradients)
        self._descend(gradients, rate)
        self._count(active, len(u))
        centred = (v - v.mean(dim=0)).square().sum().clamp_min(1e-20)
        return {
            "fvu": loss * v.numel() / centred,
            "l0": (active.value > 0).sum() / len(u),
            "dead": (self.idle >= self.settings.dead_after_tokens).float().mean(),
            "aux": aux,
            "loss": loss + self.settings.aux_coefficient * aux,
        }

    def _add_auxiliary(self, u: Tensor, error: Tensor, gradients: dict[str, Tensor]) -> Tensor:
        """The auxiliary loss, its gradients added; 0 without dead latents."""
        if self.adam.steps % DEAD_EVERY == 0:
            self.dead = self.idle >= self.settings.dead_after_tokens
            self.names = self.dead.nonzero()[:, 0]
        coefficient = self.settings.aux_coefficient
        if not len(self.names) or not coefficient:
            return u.new_zeros(())
        dead = {name: self.weights[name][self.names] for name in ("encoder", "b_enc", "decoder")}
        settings = self.settings
        aux, added = auxiliary(u, error, dead, settings.aux_k, settings.encode_chunk, self.encode_dtype)
        for name, gradient in added.items():
            gradients[name].index_add_(0, self.names, gradient, alpha=coefficient)
        return aux

    def _descend(self, gradients: dict[str, Tensor], rate: float) -> None:
        """Adam; the decoder's gradient along its own rows is dropped, and its rows are made unit again."""
        decoder, gradient = self.weights["decoder"], gradients["decoder"]
        along = torch.bmm(gradient[:, None], decoder[:, :, None])[:, 0]
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
        steps = torch.tensor(self.adam.steps)
        return {**self.weights, **self.adam.moments, "idle": self.idle, "dead": self.dead,
                "threshold": self.threshold, "least": self.least, "steps": steps}  # fmt: skip

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave.

        Raises:
            SaeError: when a tensor is missing or of another shape.
        """
        refill(self.tensors(), tensors, self.spec.name)
        self.adam.steps = int(tensors["steps"])
        self.names = self.dead.nonzero()[:, 0]

    @torch.no_grad()
    def export(self) -> SAE:
        """The SAE for raw activations, on the CPU.

        z and a are divided by the scale of what is predicted: exact, as neither relu nor the choice of the
        largest depends on a common factor. TopK gives a `TopKSAE`; as a transcoder it does not subtract b_dec
        from its input, and needs d_out = d_in. BatchTopK gives a `JumpReLUSAE` or a `JumpReLUTranscoder`: one
        threshold, the running mean of the least active value, stands for the choice within a batch, so that
        rows no longer share a budget.

        Raises:
            SaeError: for a TopK transcoder between sites of unequal width.
        """
        weights, out = self.weights, self.target_scaling or self.scaling
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
                raise SaeError(
                    f"transcoder {self.spec.name}", f"no sae_lens class is TopK from width {d_in} to {d_out}",
                    "Train it as batchtopk.",
                )  # fmt: skip
            return TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=self.k, apply_b_dec_to_input=reads_own))
        if reads_own:
            return JumpReLUSAE(JumpReLUSAEConfig(d_in=d_in, d_sae=d_sae))
        return JumpReLUTranscoder(
            JumpReLUTranscoderConfig(d_in=d_in, d_sae=d_sae, d_out=d_out, apply_b_dec_to_input=False)
        )


def on_device(scaling: Scaling, device: torch.device | str) -> Scaling:
    """The same scaling, its mean where the SAE is trained."""
    return replace(scaling, mean=scaling.mean.to(device))


@torch.no_grad()
def refill(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], name: str) -> None:
    """Copy saved tensors into an SAE's own.

    Raises:
        SaeError: when one is missing or of another shape.
    """
    for key, tensor in own.items():
        if key not in tensors or tensors[key].shape != tensor.shape:
            found = "missing" if key not in tensors else f"of shape {tuple(tensors[key].shape)}"
            raise SaeError(
                f"state of {name}: '{key}'", found, "Resume with the configuration it was saved by."
            )
        tensor.copy_(tensors[key])
