"""What every SAE in training can do, and which class trains which architecture."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from pydantic import TypeAdapter, ValidationError
from sae_lens import SAE
from torch import Tensor

from iclens.core import ConfigError, nearest
from iclens.training.config import Optimisation, SaeSpec
from iclens.training.data.scaling import Scaling
from iclens.training.steps import lens, sparse


class SaeStep(Protocol):
    """An SAE in training."""

    @property
    def taken(self) -> int:
        """Steps that changed its weights, one that failed midway included."""
        ...

    def update(self, x: Tensor, target: Tensor | None, rate: float) -> dict[str, Tensor]:
        """One step on raw activations; 0-dimensional metrics, at least fvu, l0, dead and loss.

        Args:
            x: [row d_in].
            target: what a transcoder predicts, [row d_out]; None for an SAE.
            rate: fraction of the peak learning rate.
        """
        ...

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the following steps depend on, by name."""
        ...

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Continue from what `tensors` gave; raises SaeError when it does not fit."""
        ...

    def export(self) -> SAE:
        """The SAE for raw activations, on the CPU, as sae_lens saves it."""
        ...


def check_spec(spec: SaeSpec) -> None:
    """Refuse an SAE that cannot be trained.

    Raises:
        ConfigError: for an unknown architecture, an unknown or ill-typed option, or a needless target.
    """
    known = (*sparse.ARCHITECTURES, *lens.ARCHITECTURES)
    if spec.architecture not in known:
        raise ConfigError(f"architecture '{spec.architecture}'", "unknown", nearest(spec.architecture, known))
    if spec.target is not None and spec.architecture not in (*sparse.ARCHITECTURES, *lens.TRANSCODERS):
        raise ConfigError(
            f"SAE {spec.name}", f"'{spec.architecture}' predicts nothing but its own site",
            f"With a target, train one of {', '.join((*sparse.ARCHITECTURES, *lens.TRANSCODERS))}.",
        )  # fmt: skip
    options = lens.option_types(spec.architecture)
    for name, value in spec.options.items():
        if name not in options:
            remedy = nearest(name, options) if options else "It has none."
            raise ConfigError(f"option '{name}'", f"'{spec.architecture}' has no such option", remedy)
        try:
            TypeAdapter(options[name]).validate_python(value, strict=True)
        except ValidationError as cause:
            reason = cause.errors()[0]["msg"]
            raise ConfigError(f"option '{name}' of SAE {spec.name}", f"{value!r}", f"{reason}.") from cause


def build_step(
    spec: SaeSpec,
    training: Optimisation,
    scaling: Scaling,
    target_scaling: Scaling | None,
    rows: Tensor,
    device: torch.device | str,
) -> SaeStep:
    """An SAE with its first weights, drawn by `spec.seed`.

    Args:
        spec: architecture and shape.
        training: rates, losses and precision.
        scaling: of the site that is read.
        target_scaling: of the site that a transcoder predicts; None for an SAE.
        rows: raw activations of the site that is read, [row d_in].
        device: where it is trained.

    Raises:
        ConfigError: when it cannot be trained as it is declared.
    """
    check_spec(spec)
    if (spec.target is None) != (target_scaling is None):
        raise ConfigError(f"SAE {spec.name}", "target and its scaling do not match", "Give both or neither.")
    if spec.architecture in sparse.ARCHITECTURES:
        return sparse.SparseStep(spec, training, scaling, target_scaling, rows, device)
    return lens.LensStep(spec, training, scaling, target_scaling, device)
