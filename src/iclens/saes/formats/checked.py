"""The one check of every SAE, of whatever layout, after it was converted.

1. Its architecture is one of those used, every parameter has that architecture's shape and is finite, no
threshold is negative, and k is within 1 … d_sae. 2. Its input is scaled by nothing but the input itself.
3. Two rows are encoded and decoded: what comes out is finite, and no latent is negative.
"""

from __future__ import annotations

import torch

from iclens.core import SaeError
from iclens.saes.formats.native import ARCHITECTURES, SCALER, UNFOLDED, shapes
from iclens.saes.formats.parts import NORMALISATIONS, Parts, refuse_not_finite

_LARGE = "Its weights are too large for float32: take another checkpoint."


def check(what: str, parts: Parts) -> None:
    """Refuse an SAE with which a figure could be wrong or undefined.

    Args:
        what: the SAE, as messages name it.
        parts: as its reader gives them.

    Raises:
        SaeError: naming the parameter or setting, and what is allowed.
    """
    network, config = parts.network, parts.network.cfg
    asked, name = f"SAE '{what}'", config.architecture()
    if name not in ARCHITECTURES:
        raise SaeError(asked, f"architecture is {name!r}", f"Known: {', '.join(ARCHITECTURES)}.")
    expected = shapes(name, config.d_in, config.d_sae, getattr(config, "d_out", config.d_in))
    weights = network.state_dict()
    if wrong := sorted(
        key for key in expected.keys() | weights.keys()
        if key not in expected or key not in weights or weights[key].shape != expected[key]
    ):  # fmt: skip
        raise SaeError(
            f"weights of {asked}", f"{', '.join(wrong)} of {parts.file} do not make an SAE of {name}",
            f"It must hold {', '.join(f'{key} {list(shape)}' for key, shape in expected.items())}.",
        )  # fmt: skip
    for key, tensor in weights.items():
        refuse_not_finite(f"weights of {asked}", parts.file, f"{key} (made of its tensors)", tensor, _LARGE)
    if "threshold" in weights and bool((weights["threshold"] < 0).any()):
        least, latent = weights["threshold"].min(dim=0)
        raise SaeError(
            f"weights of {asked}", f"threshold of latent {int(latent)} is {float(least):g} in {parts.file}",
            "Store 0 for what is below 0: SAELens computes the same with it.",
        )  # fmt: skip
    k = getattr(config, "k", 1)
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= config.d_sae:
        raise SaeError(
            asked, f"k of the SAE in {parts.file} is {k!r}", f"It must be within 1 … {config.d_sae}."
        )
    if config.normalize_activations == UNFOLDED:
        raise SaeError(
            asked, f"normalize_activations is {UNFOLDED!r}, and {SCALER} does not stand beside it",
            "Give the factor of its training: `iclens saes convert REF --out FOLDER --input-scale S`, "
            "S = √d_in / mean length of the site's activations in training.",
        )  # fmt: skip
    if config.normalize_activations not in NORMALISATIONS or config.reshape_activations != "none":
        raise SaeError(
            asked, f"normalize_activations is {config.normalize_activations!r}, "
            f"reshape_activations {config.reshape_activations!r}",
            f"Allowed: {', '.join(NORMALISATIONS)}; inputs that are not reshaped.",
        )  # fmt: skip
    if parts.target is not None and config.normalize_activations != "none":
        raise SaeError(
            asked, f"normalize_activations of a transcoder is {config.normalize_activations!r}",
            "It must be 'none': its output has no length of its input's.",
        )  # fmt: skip
    _try(f"weights of {asked}", parts)


@torch.no_grad()
def _try(asked: str, parts: Parts) -> None:
    """Encode and decode two rows."""
    weights = parts.network.W_enc
    x = torch.stack([torch.ones(len(weights)), torch.linspace(-1, 1, len(weights))]).to(weights)
    latents = parts.network.encode(x)
    decoded = parts.network.decode(latents)
    if (skip := getattr(parts.network, "W_skip", None)) is not None:
        decoded = decoded + x @ skip.T
    if not (latents.isfinite().all() and decoded.isfinite().all() and (latents >= 0).all()):
        raise SaeError(
            asked, f"{parts.file} does not encode and decode entries of size 1 to finite numbers",
            _LARGE,
        )  # fmt: skip
