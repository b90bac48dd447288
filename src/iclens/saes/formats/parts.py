"""What every layout is read into, and the strict readers that all of them use.

1. JSON and tensors are read whole or refused. 2. Tensors are compared with the shapes that the config
promises, and every one of them must be finite. 3. `build` makes the sae_lens SAE that computes
z = (x − b_dec·[apply_b_dec_to_input])·W_enc + b_enc and x̂ = a·W_dec + b_dec, with W_enc [d_in d_sae] and
W_dec [d_sae d_in].
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from iclens.errors import SaeError
from iclens.names import Site

ARCHITECTURES = (
    "standard", "gated", "topk", "jumprelu",
    "transcoder", "jumprelu_transcoder", "skip_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip
"""sae_lens architectures that are used: non-negative latents that are read from one token at a time."""
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
"""What an SAE may do to its input; the others of sae_lens have to be folded into the weights."""


@dataclass(frozen=True)
class Parts:
    """An SAE as it was found.

    Args:
        layout: name of the layout it was read from.
        sae_id: sha256 over the files it was read from, 16 hex digits.
        network: the sae_lens SAE; float32, for raw activations.
        site: what it reads; None when the files do not say.
        target: what it reconstructs, when that is another site (a transcoder).
        model: name of the model it was trained on; None when the files do not say.
        model_fingerprint: that model's fingerprint, where `iclens` trained it; None otherwise.
        l0: mean number of active latents that its makers state; None when they do not.
    """

    layout: str
    sae_id: str
    network: Any
    site: Site | None
    target: Site | None = None
    model: str | None = None
    model_fingerprint: str | None = None
    l0: float | None = None


def fingerprint(files: Sequence[Path]) -> str:
    """sha256 over the contents of `files` in order, 16 hex digits."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def read_json(file: Path, what: str = "SAE") -> dict[str, Any]:
    """The mapping that a JSON file holds.

    Raises:
        SaeError: when it is missing, damaged or no mapping.
    """
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except OSError as cause:
        raise SaeError(f"{what} '{file.parent}'", f"{file.name} is missing", "Copy it again.") from cause
    except ValueError as cause:
        raise SaeError(f"{what} '{file.parent}'", f"{file.name} is damaged", "Copy it again.") from cause
    if not isinstance(found, dict):
        raise SaeError(f"{what} '{file.parent}'", f"{file.name} is no mapping", "Copy it again.")
    return found


def read_tensors(file: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file.

    Raises:
        SaeError: when it is missing or damaged.
    """
    try:
        return load_file(file)
    except (SafetensorError, OSError, ValueError) as cause:
        raise unreadable(file.parent, cause) from cause


def unreadable(folder: Path, cause: Exception) -> SaeError:
    """The error for weights that cannot be read."""
    line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
    return SaeError(f"SAE '{folder}'", f"cannot be read ({line})", "Copy or train it again.")


def number(config: Mapping[str, Any], key: str, folder: Path) -> int:
    """A positive whole number of a config.

    Raises:
        SaeError: when it is missing or something else.
    """
    value = config.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SaeError(f"SAE '{folder}'", f"{key} is {value!r}", f"{key} must be a positive whole number.")
    return value


def refuse_width(what: str, width: Any, d_model: int | None, kind: str = "width") -> None:
    """Refuse an SAE of another width than the model's `d_model`; None asks for none.

    Raises:
        SaeError: when the widths differ.
    """
    if d_model is not None and width != d_model:
        raise SaeError(
            f"SAE '{what}'", f"its {kind} is {width}, the model's is {d_model}", "Use one made for it."
        )


def take(
    folder: Path, tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]]
) -> dict[str, Tensor]:
    """The tensors as float32, each of the promised shape and finite, none missing and none left over.

    Raises:
        SaeError: naming the first that is not.
    """
    missing, strange = sorted(shapes.keys() - tensors.keys()), sorted(tensors.keys() - shapes.keys())
    if missing or strange:
        found = f"{missing[0]} is missing" if missing else f"{strange[0]} is not known"
        raise SaeError(f"weights of SAE '{folder}'", found, "It is another layout or a damaged file.")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != tuple(shape):
            raise SaeError(
                f"weights of SAE '{folder}'",
                f"{name} is {list(tensor.shape)}, the config promises {list(shape)}",
                "Config and weights belong to different SAEs.",
            )  # fmt: skip
        if not tensor.is_floating_point():
            raise SaeError(f"weights of SAE '{folder}'", f"{name} is {tensor.dtype}", "Floats are needed.")
        if not tensor.isfinite().all():
            raise SaeError(f"weights of SAE '{folder}'", f"{name} is not finite", "Copy or train it again.")
    return {name: tensors[name].float() for name in shapes}


def build(
    architecture: str, weights: Mapping[str, Tensor], *, site: Site | None, model: str | None,
    subtract_b_dec: bool = True, device: str = "cpu", **options: Any,
) -> SAE[Any]:  # fmt: skip
    """The sae_lens SAE with these weights.

    Args:
        architecture: one of sae_lens' names.
        weights: parameter → values; W_enc is [d_in d_sae], W_dec [d_sae d_in].
        site: what it reads, for its metadata.
        model: the model's name, for its metadata.
        subtract_b_dec: whether b_dec is subtracted from the input.
        device: torch device.
        options: further fields of the config, such as k.
    """
    network_class, config_class = get_sae_class(architecture)
    d_in, d_sae = weights["W_enc"].shape
    named = {} if site is None else {"hook_name": str(site), "hook_layer": site.layer}
    metadata = SAEMetadata(**named, **({} if model is None else {"model_name": model}))
    config: Any = config_class(
        d_in=d_in,
        d_sae=d_sae,
        device="meta",
        apply_b_dec_to_input=subtract_b_dec,
        metadata=metadata,
        **options,
    )
    network: Any = network_class(config)
    values = {name: torch.nn.Parameter(value.contiguous().to(device)) for name, value in weights.items()}
    network.load_state_dict(values, assign=True)
    config.device = device
    return network.to(device=device)
