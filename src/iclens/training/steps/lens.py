"""Training of the other architectures, with the losses of sae_lens.

Standard, gated, JumpReLU and matryoshka SAEs go through their own `training_forward_pass`; sae_lens has
transcoders but does not train them, so their losses stand in `transcoder_loss`. All of them see scaled
activations, as TopK does (`step`), and get their steps from the same Adam. `export` undoes the scalings in
the weights exactly: the saved SAE reads raw activations, has unit decoder rows, and latents in units of what
it predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, get_type_hints

import torch
from sae_lens import SAE, Transcoder
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAE, TrainStepInput
from torch import Tensor

from iclens.core import ConfigError
from iclens.training.config import Optimisation, SaeSpec
from iclens.training.data.scaling import Scaling
from iclens.training.steps.adam import Adam, clip
from iclens.training.steps.sparse import on_device, refill
from iclens.training.steps.transcoders import OPTIONS, transcoder_loss

SAES = ("standard", "gated", "jumprelu", "matryoshka_batchtopk")
"""Trained through sae_lens' `training_forward_pass`."""
TRANSCODERS = tuple(OPTIONS)
"""Trained on `transcoder_loss`."""
ARCHITECTURES = (*SAES, *TRANSCODERS)
"""What is trained here."""
_SET_ELSEWHERE = {
    "d_in", "d_sae", "k", "dtype", "device", "metadata", "normalize_activations", "reshape_activations",
    "use_sparse_activations",
}  # fmt: skip
"""Fields of sae_lens' training configs that are no options, as the rest of the configuration decides them."""


class Pass(NamedTuple):
    """A forward pass with its loss.

    Args:
        loss: 0-dimensional, with a gradient.
        prediction: [row d_out].
        active: which latents are, [row d_sae].
    """

    loss: Tensor
    prediction: Tensor
    active: Tensor


def option_types(architecture: str) -> dict[str, Any]:
    """The options of an architecture and their types, by their names in sae_lens' training configs."""
    if architecture in TRANSCODERS:
        return dict.fromkeys(OPTIONS[architecture], float)
    if architecture not in SAES:
        return {}
    declared = get_type_hints(get_sae_training_class(architecture)[1])
    return {name: kind for name, kind in declared.items() if name not in _SET_ELSEWHERE}


class LensStep:
    """An SAE or transcoder of sae_lens in training.

    Args:
        spec: architecture, shape, options, peak rate and seed.
        settings: clipping, precision of the moments, and when a latent counts as dead.
        scaling: of the site that is read.
        target_scaling: of the site that is predicted; None for an SAE.
        device: where it is trained.

    Raises:
        ConfigError: for an option with a value that sae_lens refuses.
    """

    def __init__(
        self,
        spec: SaeSpec,
        settings: Optimisation,
        scaling: Scaling,
        target_scaling: Scaling | None,
        device: torch.device | str,
    ) -> None:
        self.spec, self.settings = spec, settings
        self.scaling = on_device(scaling, device)
        self.target_scaling = None if target_scaling is None else on_device(target_scaling, device)
        d_in, d_out = len(scaling.mean), len((target_scaling or scaling).mean)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            network = _network(spec, d_in, d_out)
        self.network = network.to(device)
        parameters = {name: p.detach() for name, p in self.network.named_parameters()}
        self.adam = Adam(parameters, getattr(torch, settings.moment_dtype))
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
            fvu, l0, dead (fraction) and loss (sae_lens' own) of this batch before the step, 0-dimensional.
        """
        u = self.scaling.apply(x)
        v = u if target is None or self.target_scaling is None else self.target_scaling.apply(target)
        with torch.enable_grad():
            done = self._forward(u, v)
            named = dict(self.network.named_parameters())
            found = torch.autograd.grad(done.loss, list(named.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(named, found, strict=True) if g is not None}
        if self.settings.gradient_clip is not None:
            clip(gradients, self.settings.gradient_clip)
        self.adam.step(gradients, self.spec.lr * rate)
        with torch.no_grad():
            self.idle = torch.where(done.active.any(dim=0), 0, self.idle + len(u))
            centred = (v - v.mean(dim=0)).square().sum().clamp_min(1e-20)
            return {
                "fvu": (v - done.prediction).square().sum() / centred,
                "l0": done.active.sum() / len(u),
                "dead": self._dead().float().mean(),
                "loss": done.loss.detach(),
            }

    def _dead(self) -> Tensor:
        return self.idle >= self.settings.dead_after_tokens

    def _forward(self, u: Tensor, v: Tensor) -> Pass:
        steps = self.adam.steps
        if isinstance(self.network, Transcoder):
            options = {**OPTIONS[self.spec.architecture], **self.spec.options}
            loss, prediction, a = transcoder_loss(self.network, u, v, options, steps)
            return Pass(loss, prediction, a > 0)
        if not isinstance(self.network, TrainingSAE):
            raise TypeError(f"{type(self.network).__name__} has no training pass")
        coefficients = {
            name: one.value * min(1.0, steps / one.warm_up_steps) if one.warm_up_steps else one.value
            for name, given in self.network.get_coefficients().items()
            for one in [
                given if isinstance(given, TrainCoefficientConfig) else TrainCoefficientConfig(given, 0)
            ]
        }
        done = self.network.training_forward_pass(
            TrainStepInput(
                sae_in=u,
                coefficients=coefficients,
                dead_neuron_mask=self._dead(),
                n_training_steps=steps,
                is_logging_step=False,
            )
        )
        return Pass(done.loss, done.sae_out.detach(), done.feature_acts.detach() != 0)

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the following steps depend on, by name."""
        steps = torch.tensor(self.adam.steps)
        return {**self.network.state_dict(), **self.adam.moments, "idle": self.idle, "steps": steps}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave.

        Raises:
            SaeError: when a tensor is missing or of another shape.
        """
        refill(self.tensors(), tensors, self.spec.name)
        self.adam.steps = int(tensors["steps"])

    @torch.no_grad()
    def export(self) -> SAE:
        """The SAE for raw activations, on the CPU; matryoshka is saved as JumpReLU, as sae_lens does."""
        state = {name: value.detach().cpu().clone() for name, value in self.network.state_dict().items()}
        if self.spec.architecture in SAES:
            self.network.process_state_dict_for_saving_inference(state)
            declared = self.network.cfg.get_inference_sae_cfg_dict()
            kind, config = get_sae_class(declared["architecture"])
            network = kind(config.from_dict({**declared, "device": "cpu"}))
        else:
            network = _network(self.spec, len(self.scaling.mean), len(self._out().mean))
        network.load_state_dict({name: value.cpu() for name, value in state.items()})
        unscale(network, self.scaling, self._out())
        network.fold_W_dec_norm()
        return network

    def _out(self) -> Scaling:
        return self.target_scaling or self.scaling


def _network(spec: SaeSpec, d_in: int, d_out: int) -> Any:
    """The network in its first weights, from torch's global generator, on the CPU.

    Raises:
        ConfigError: for an option with a value that sae_lens refuses.
    """
    if spec.architecture in TRANSCODERS:
        kind, config = get_sae_class(spec.architecture)
        shape = {"d_in": d_in, "d_sae": spec.d_sae, "d_out": d_out, "apply_b_dec_to_input": False}
        network = kind(config(**shape))
        with torch.no_grad():
            network.W_dec.div_(network.W_dec.norm(dim=1, keepdim=True))
            if "jumprelu_init_threshold" in OPTIONS[spec.architecture]:
                options = {**OPTIONS[spec.architecture], **spec.options}
                dict(network.named_parameters())["threshold"].fill_(options["jumprelu_init_threshold"])
        return network
    kind, config = get_sae_training_class(spec.architecture)
    given = dict(spec.options)
    if spec.architecture == "matryoshka_batchtopk":
        widths = [width for width in given.get("matryoshka_widths", []) if width != spec.d_sae]
        if not widths:
            raise ConfigError(
                f"SAE {spec.name}: option 'matryoshka_widths'", "missing",
                f"Give the widths below {spec.d_sae}, rising.",
            )  # fmt: skip
        given.update(matryoshka_widths=[*widths, spec.d_sae], k=spec.k)
    try:
        return kind(config(d_in=d_in, d_sae=spec.d_sae, **given))
    except (TypeError, ValueError) as cause:
        raise ConfigError(
            f"options of SAE {spec.name}",
            " ".join(str(cause).split()),
            f"Give `options` values that sae_lens takes for {spec.architecture}.",
        ) from cause


@torch.no_grad()
def unscale(network: SAE, scaling: Scaling, out: Scaling) -> None:
    """Make a network that maps u = s·(x − m) to v = sₒ·(y − mₒ) map x to y, in place; its latents stay.

        W_enc ← s·W_enc      W_dec ← W_dec/sₒ      b_dec ← b_dec/sₒ + mₒ

    A network that subtracts b_dec from its input thereby subtracts m as well; from the encoder's biases of
    any other, m·W_enc is taken. A skip connection becomes s/sₒ·W_skip, and m through it is taken from b_dec.

    Args:
        network: of sae_lens, for inference.
        scaling: of what it reads.
        out: of what it predicts.
    """
    tensors = dict(network.named_parameters())
    mean, out_mean = scaling.mean.cpu(), out.mean.cpu()
    tensors["W_enc"].mul_(scaling.factor)
    tensors["W_dec"].div_(out.factor)
    tensors["b_dec"].div_(out.factor).add_(out_mean)
    if not network.cfg.apply_b_dec_to_input:
        shift = mean @ tensors["W_enc"]
        for bias in {"b_enc", "b_gate"} & set(tensors):
            tensors[bias].sub_(shift)
        if "b_mag" in tensors:
            tensors["b_mag"].sub_(shift * tensors["r_mag"].exp())
    if "W_skip" in tensors:
        tensors["W_skip"].mul_(scaling.factor / out.factor)
        tensors["b_dec"].sub_(tensors["W_skip"] @ mean)
