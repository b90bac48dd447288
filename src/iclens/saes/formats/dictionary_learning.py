"""Dictionaries of dictionary_learning: `config.json` and `ae.pt`, one folder per trainer.

    AutoEncoder             a = relu((x − bias) @ Eᵀ + e);  decoder columns are made unit on loading, as there
    AutoEncoderNew          a = relu(x @ Eᵀ + e)
    AutoEncoderTopK         the k largest of relu((x − b_dec) @ Eᵀ + e); its saved threshold is not used
    BatchTopKSAE, Matryoshka…  relu((x − b_dec) @ Eᵀ + e) where it exceeds the threshold learnt in training
    JumpReluAutoEncoder     relu(x @ W_enc + b_enc) where it exceeds a threshold per latent
    GatedAutoEncoder        relu(exp(r_mag) · z + mag_bias) where z + gate_bias > 0, z = (x − b) @ Eᵀ

`ae.pt` is a pickle. It is read by torch's weights-only unpickler, which makes tensors and nothing else; a
file that asks for more is refused. The site is read from `submodule_name` (`resid_post_layer_8`); older
configs name only a layer, and then the caller must say which site it is.
"""

from __future__ import annotations

import pickle
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclens.errors import SaeError
from iclens.names import HOOKS, Site
from iclens.saes.formats.parts import (
    Parts,
    build,
    fingerprint,
    number,
    read_json,
    refuse_width,
    take,
    unreadable,
)

CONFIG, WEIGHTS = "config.json", "ae.pt"
_SUBMODULE = re.compile(r"(\w+?)_layer_?(\d+)")
Tensors = dict[str, Tensor]
Built = tuple[str, Tensors, dict[str, Any], float | None]
"""sae_lens architecture, its weights, further options, and the mean L0 asked for in training."""


def read(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read a dictionary; its width is compared with `d_model` before its weights are read.

    Raises:
        SaeError: when a file is missing, damaged or no plain set of tensors, or of an unknown class.
    """
    config = read_json(folder / CONFIG)
    trainer = config.get("trainer")
    if not isinstance(trainer, dict):
        raise SaeError(f"SAE '{folder}'", "config.json has no trainer", "Copy it again.")
    name = trainer.get("dict_class")
    if name not in CLASSES:
        raise SaeError(f"SAE '{folder}'", f"dict_class is {name!r}", f"Known: {', '.join(CLASSES)}.")
    d_in, d_sae = number(trainer, "activation_dim", folder), number(trainer, "dict_size", folder)
    refuse_width(str(folder), d_in, d_model)
    tensors = _unpickled(folder)
    architecture, weights, options, l0 = CLASSES[name](folder, tensors, d_in, d_sae)
    site = _site(trainer, config)
    model = trainer.get("lm_name")
    model = model if isinstance(model, str) else None
    network = build(architecture, weights, site=site, model=model, device=device, **options)
    files = [folder / CONFIG, folder / WEIGHTS]
    return Parts("dictionary_learning", fingerprint(files), network, site, model=model, l0=l0)


def _unpickled(folder: Path) -> Tensors:
    """The tensors of ae.pt, unpickled without running anything that the file asks for."""
    file = folder / WEIGHTS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about the pickle's version
            found = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as cause:
        raise SaeError(
            f"SAE '{folder}'", f"{WEIGHTS} is damaged or holds more than tensors, and is not unpickled",
            "Get it again, as plain tensors.",
        ) from cause  # fmt: skip
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as cause:
        raise unreadable(folder, cause) from cause
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise SaeError(f"SAE '{folder}'", f"{WEIGHTS} is no mapping of tensors", "Copy it again.")
    return {str(name): value for name, value in found.items()}


def _site(trainer: dict[str, Any], config: dict[str, Any]) -> Site | None:
    """The site that submodule_name says, when it does and the buffer took the module's output."""
    buffer = config.get("buffer")
    took = buffer.get("io", "out") if isinstance(buffer, dict) else "out"
    match = _SUBMODULE.fullmatch(str(trainer.get("submodule_name")))
    if match is None or took != "out" or match[1] not in HOOKS or match[1] == "z":
        return None
    return Site(int(match[2]), match[1])


def _linear(d_in: int, d_sae: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Shapes of nn.Linear encoders and decoders."""
    shapes: dict[str, tuple[int, ...]] = {"encoder.weight": (d_sae, d_in), "decoder.weight": (d_in, d_sae)}
    return shapes | ({"encoder.bias": (d_sae,)} if bias else {})


def _standard(folder: Path, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    found = take(folder, tensors, _linear(d_in, d_sae) | {"bias": (d_in,)})
    lengths = found["decoder.weight"].norm(dim=0)
    weights = {
        "W_enc": found["encoder.weight"].T * lengths, "b_enc": found["encoder.bias"] * lengths,
        "W_dec": found["decoder.weight"].T / lengths[:, None], "b_dec": found["bias"],
    }  # fmt: skip
    return "standard", weights, {}, None


def _new(folder: Path, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    found = take(folder, tensors, _linear(d_in, d_sae) | {"decoder.bias": (d_in,)})
    return "standard", _plain(found, "decoder.bias"), {"subtract_b_dec": False}, None


def _top_k(folder: Path, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    k = _k(folder, tensors)
    rest = {name: value for name, value in tensors.items() if name not in ("k", "threshold")}
    found = take(folder, rest, _linear(d_in, d_sae) | {"b_dec": (d_in,)})
    return "topk", _plain(found, "b_dec"), {"k": k}, k


def _batch_top_k(folder: Path, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    k = _k(folder, tensors)
    rest = {name: value for name, value in tensors.items() if name != "k"}
    found = take(folder, rest, _linear(d_in, d_sae) | {"b_dec": (d_in,), "threshold": ()})
    threshold = found["threshold"].expand(d_sae)
    return "jumprelu", _plain(found, "b_dec") | {"threshold": threshold}, {}, k


def _matryoshka(folder: Path, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    k = _k(folder, tensors)
    rest = {name: value for name, value in tensors.items() if name not in ("k", "group_sizes")}
    found = take(folder, rest, _matrices(d_in, d_sae) | {"threshold": ()})
    return "jumprelu", found | {"threshold": found["threshold"].expand(d_sae)}, {}, k


def _jump_relu(folder: Path, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    found = take(folder, tensors, _matrices(d_in, d_sae) | {"threshold": (d_sae,)})
    return "jumprelu", found, {"subtract_b_dec": False}, None


def _gated(folder: Path, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    own = {name: (d_sae,) for name in ("r_mag", "gate_bias", "mag_bias")} | {"decoder_bias": (d_in,)}
    found = take(folder, tensors, _linear(d_in, d_sae, bias=False) | own)
    weights = {
        "W_enc": found["encoder.weight"].T, "W_dec": found["decoder.weight"].T,
        "b_dec": found["decoder_bias"],
        "b_gate": found["gate_bias"], "b_mag": found["mag_bias"], "r_mag": found["r_mag"],
    }  # fmt: skip
    return "gated", weights, {}, None


def _plain(found: Tensors, b_dec: str) -> Tensors:
    return {
        "W_enc": found["encoder.weight"].T, "b_enc": found["encoder.bias"],
        "W_dec": found["decoder.weight"].T, "b_dec": found[b_dec],
    }  # fmt: skip


def _matrices(d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    return {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}


def _k(folder: Path, tensors: Tensors) -> int:
    value = tensors.get("k")
    if value is None or value.numel() != 1 or value.is_floating_point() or int(value) < 1:
        raise SaeError(f"weights of SAE '{folder}'", "k is missing or no positive number", "Copy it again.")
    return int(value)


CLASSES: dict[str, Callable[[Path, Tensors, int, int], Built]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _new,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jump_relu,
    "GatedAutoEncoder": _gated,
}
"""dict_class → how its tensors become a sae_lens SAE."""
