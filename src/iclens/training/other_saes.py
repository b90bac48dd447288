"""SAEs and transcoders of sae_lens in training, and which class trains which architecture.

Standard, gated, JumpReLU and matryoshka SAEs go through sae_lens' own `training_forward_pass`. sae_lens has
transcoders but does not train them; their loss is `transcoder_loss`. All of them read scaled activations, as
TopK does (`topk`), and get their steps from the same Adam. `export` undoes the scalings in the weights: the
saved SAE reads raw activations, and its latents are in units of what it predicts.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, get_type_hints

import torch
from pydantic import TypeAdapter, ValidationError
from sae_lens import SAE, JumpReLUTranscoder, SkipTranscoder, Transcoder
from sae_lens.registry import get_sae_class, get_sae_training_class
from sae_lens.saes.jumprelu_sae import JumpReLU, Step
from sae_lens.saes.sae import TrainCoefficientConfig, TrainingSAE, TrainStepInput
from torch import Tensor

from iclens.core import ConfigError, nearest
from iclens.training.config import Optimisation, SaeSpec
from iclens.training.data import Scaling
from iclens.training.topk import SPARSE, Adam, SaeStep, SparseStep, clip

SAES = ("standard", "gated", "jumprelu", "matryoshka_batchtopk")
"""Trained through sae_lens' `training_forward_pass`."""
_L1 = {"l1_coefficient": 1.0, "l1_warm_up_steps": 0}
_L0 = {"l0_coefficient": 1.0, "l0_warm_up_steps": 0, "jumprelu_init_threshold": 0.01,
       "jumprelu_bandwidth": 0.05}  # fmt: skip
TRANSCODERS: dict[str, dict[str, float]] = {
    "transcoder": _L1, "skip_transcoder": _L1, "jumprelu_transcoder": _L0
}  # fmt: skip
"""Trained on `transcoder_loss`: their options, with sae_lens' defaults for SAEs of that kind."""
_SET_ELSEWHERE = {
    "d_in", "d_sae", "k", "dtype", "device", "metadata", "normalize_activations", "reshape_activations",
    "use_sparse_activations",
}  # fmt: skip
"""Fields of sae_lens' training configs that are no options, as the rest of the configuration decides them."""


def check_spec(spec: SaeSpec) -> None:
    """Refuse an architecture, option or target that cannot be trained, with a ConfigError."""
    known, transcoders = (*SPARSE, *SAES, *TRANSCODERS), (*SPARSE, *TRANSCODERS)
    if spec.architecture not in known:
        raise ConfigError(f"architecture '{spec.architecture}'", "unknown", nearest(spec.architecture, known))
    if spec.target is not None and spec.architecture not in transcoders:
        alone = f"'{spec.architecture}' predicts nothing but its own site"
        remedy = f"With a target, train one of {', '.join(transcoders)}."
        raise ConfigError(f"SAE {spec.name}", alone, remedy)
    options = option_types(spec.architecture)
    for name, value in spec.options.items():
        if name not in options:
            remedy = nearest(name, options) if options else "It has none."
            raise ConfigError(f"option '{name}'", f"'{spec.architecture}' has no such option", remedy)
        try:
            TypeAdapter(options[name]).validate_python(value, strict=True)
        except ValidationError as cause:
            reason = cause.errors()[0]["msg"]
            raise ConfigError(f"option '{name}' of SAE {spec.name}", f"{value!r}", f"{reason}.") from cause


def option_types(architecture: str) -> dict[str, Any]:
    """The options of an architecture and their types, by their names in sae_lens' training configs."""
    if architecture in TRANSCODERS:
        return dict.fromkeys(TRANSCODERS[architecture], float)
    if architecture not in SAES:
        return {}
    declared = get_type_hints(get_sae_training_class(architecture)[1])
    return {name: kind for name, kind in declared.items() if name not in _SET_ELSEWHERE}


def build_step(
    spec: SaeSpec, training: Optimisation, scaling: Scaling, target_scaling: Scaling | None, rows: Tensor,
    device: torch.device | str,
) -> SaeStep:  # fmt: skip
    """An SAE with its first weights, drawn by `spec.seed`; raw `rows` [row d_in] size the encoder."""
    check_spec(spec)
    if (spec.target is None) != (target_scaling is None):
        raise ConfigError(f"SAE {spec.name}", "target and its scaling do not match", "Give both or neither.")
    if spec.architecture in SPARSE:
        return SparseStep(spec, training, scaling, target_scaling, rows, device)
    return LensStep(spec, training, scaling, target_scaling, device)


class LensStep(SaeStep):
    """An SAE or transcoder of sae_lens in training; its arguments are those of `SaeStep`."""

    def __init__(
        self, spec: SaeSpec, settings: Optimisation, scaling: Scaling, target_scaling: Scaling | None,
        device: torch.device | str,
    ) -> None:  # fmt: skip
        super().__init__(spec, settings, scaling, target_scaling, device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(spec.seed)
            network = _network(spec, len(scaling.mean), len(self.out.mean))
        self.network = network.to(device)
        parameters = {name: p.detach() for name, p in self.network.named_parameters()}
        self.adam = Adam(parameters, getattr(torch, settings.moment_dtype))

    def update(self, x: Tensor, target: Tensor | None, rate: float) -> dict[str, Tensor]:
        """One step on raw activations, as `SaeStep.update` says; the loss is sae_lens' own."""
        u, v = self._scaled(x, target)
        with torch.enable_grad():
            loss, prediction, active = self._forward(u, v)
            parameters = dict(self.network.named_parameters())
            partial = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        gradients = {name: g for name, g in zip(parameters, partial, strict=True) if g is not None}
        if self.settings.gradient_clip is not None:
            clip(gradients, self.settings.gradient_clip)
        self.adam.step(gradients, self.spec.lr * rate)
        with torch.no_grad():
            self.idle = torch.where(active.any(dim=0), 0, self.idle + len(u))
            centred = (v - v.mean(dim=0)).square().sum().clamp_min(1e-20)
            return {
                "fvu": (v - prediction).square().sum() / centred,
                "l0": active.sum() / len(u),
                "dead": self._dead().float().mean(),
                "loss": loss.detach(),
            }

    def _forward(self, u: Tensor, v: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Loss with a gradient, prediction [row d_out], and which latents are active, [row d_sae]."""
        steps = self.adam.steps
        if isinstance(self.network, Transcoder):
            options = {**TRANSCODERS[self.spec.architecture], **self.spec.options}
            loss, prediction, a = transcoder_loss(self.network, u, v, options, steps)
            return loss, prediction, a > 0
        if not isinstance(self.network, TrainingSAE):
            raise TypeError(f"{type(self.network).__name__} has no training pass")
        coefficients = {}
        for name, given in self.network.get_coefficients().items():
            full = given if isinstance(given, TrainCoefficientConfig) else TrainCoefficientConfig(given, 0)
            warm_up = full.warm_up_steps
            coefficients[name] = full.value * min(1.0, steps / warm_up) if warm_up else full.value
        done = self.network.training_forward_pass(
            TrainStepInput(u, coefficients, self._dead(), steps, is_logging_step=False)
        )
        return done.loss, done.sae_out.detach(), done.feature_acts.detach() != 0

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the following steps depend on, by name."""
        return {**self.network.state_dict(), **super().tensors()}

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
            network = _network(self.spec, len(self.scaling.mean), len(self.out.mean))
        network.load_state_dict({name: value.cpu() for name, value in state.items()})
        unscale(network, self.scaling, self.out)
        network.fold_W_dec_norm()
        return network


def transcoder_loss(
    network: Transcoder, u: Tensor, v: Tensor, options: Mapping[str, float], steps: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Loss with a gradient, prediction v̂ [row d_out] and latents a [row d_sae] of a transcoder.

        a = relu(u·W_enc + b_enc), or JumpReLU of it         v̂ = a·W_dec + b_dec (+ W_skip·u)
        loss = mean over rows of ‖v − v̂‖²  +  sparsity

    Sparsity is l1·Σ a·‖W_dec‖ for relu and l0·‖a‖₀ with a straight-through threshold for JumpReLU: the losses
    of sae_lens' standard and JumpReLU SAEs, whose autograd functions are used. Sources: Dunefsky et al. 2024,
    arXiv 2406.11944; skip connection Paulo et al. 2025, arXiv 2501.18823; JumpReLU Rajamanoharan et al. 2024,
    arXiv 2407.14435.

    Args:
        u: what it reads, [row d_in].
        v: what it predicts, [row d_out].
        options: every option of its architecture.
        steps: already taken; decides how far a coefficient has warmed up.
    """
    kind = "l0" if isinstance(network, JumpReLUTranscoder) else "l1"
    warm_up = options[f"{kind}_warm_up_steps"]
    coefficient = options[f"{kind}_coefficient"] * (min(1.0, steps / warm_up) if warm_up else 1.0)
    z = u @ network.W_enc + network.b_enc
    if isinstance(network, JumpReLUTranscoder):
        with torch.no_grad():
            network.threshold.clamp_(min=0)
        gate = (network.threshold, options["jumprelu_bandwidth"], False)
        a, sparsity = JumpReLU.apply(z, *gate), Step.apply(z, *gate).sum(dim=1)
    else:
        a = z.relu()
        sparsity = a @ network.W_dec.norm(dim=1)
    predicted = network.decode(a)
    if isinstance(network, SkipTranscoder):
        predicted = predicted + u @ network.W_skip.T
    loss = (v - predicted).square().sum(dim=1).mean() + coefficient * sparsity.mean()
    return loss, predicted.detach(), a.detach()


def _network(spec: SaeSpec, d_in: int, d_out: int) -> Any:
    """The network in its first weights, from torch's global generator, on the CPU."""
    if spec.architecture in TRANSCODERS:
        kind, config = get_sae_class(spec.architecture)
        shape = {"d_in": d_in, "d_sae": spec.d_sae, "d_out": d_out, "apply_b_dec_to_input": False}
        network = kind(config(**shape))
        options = {**TRANSCODERS[spec.architecture], **spec.options}
        with torch.no_grad():
            network.W_dec.div_(network.W_dec.norm(dim=1, keepdim=True))
            if "jumprelu_init_threshold" in options:
                dict(network.named_parameters())["threshold"].fill_(options["jumprelu_init_threshold"])
        return network
    kind, config = get_sae_training_class(spec.architecture)
    given = dict(spec.options)
    if spec.architecture == "matryoshka_batchtopk":
        widths = [width for width in given.get("matryoshka_widths", []) if width != spec.d_sae]
        if not widths:
            option = f"SAE {spec.name}: option 'matryoshka_widths'"
            raise ConfigError(option, "missing", f"Give the widths below {spec.d_sae}, rising.")
        given.update(matryoshka_widths=[*widths, spec.d_sae], k=spec.k)
    try:
        return kind(config(d_in=d_in, d_sae=spec.d_sae, **given))
    except (TypeError, ValueError) as cause:
        remedy = f"Give `options` values that sae_lens takes for {spec.architecture}."
        raise ConfigError(f"options of SAE {spec.name}", " ".join(str(cause).split()), remedy) from cause


@torch.no_grad()
def unscale(network: SAE, scaling: Scaling, out: Scaling) -> None:
    """Make a network that maps u = s·(x − m) to v = sₒ·(y − mₒ) map x to y, in place; its latents stay.

        W_enc ← s·W_enc      W_dec ← W_dec/sₒ      b_dec ← b_dec/sₒ + mₒ

    A network that subtracts b_dec from its input thereby subtracts m as well; from the encoder's biases of
    any other, m·W_enc is taken. A skip connection becomes s/sₒ·W_skip, and m through it is taken from b_dec.

    Args:
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
