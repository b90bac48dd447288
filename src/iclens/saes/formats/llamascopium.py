"""SAEs of OpenMOSS' llamascopium 2: `config.json` and `sae_weights.safetensors`.

With s the scale of the input, v_f the length of decoder row f (1 where `sparsity_include_decoder_norm` is
false), and g one of ReLU, TopK or JumpReLU with threshold exp(log_jumprelu_threshold),

    z_f = v_f · (s·x @ W_E + b_E)_f,   a = g(z) / s,   x̂ = Σ_f a_f · W_D_f / v_f + b_D / s

so latents are in units of x, as those of Llama Scope, and the threshold, which is compared with z, is divided
by s. `norm_activation` says what s is:

    dataset-wise   √d_model / the mean length of the site's activations, which stands among the weights
    inference      1: the scale is folded in
    token-wise     √d_model / ‖x‖, sae_lens' constant_norm_rescale; a is not divided by it

llamascopium writes whatever memory held where it knows no mean length, so that must lie within 1e-6 … 1e6
here, and `iclens saes check` compares it with the model. It stands under the hook's name in any spelling;
where the config names no hook, the only one that is stored names it. Refused: other kinds (crosscoders,
lorsa, transcoders), GLU encoders, BatchTopK (what it keeps depends on the other rows), lengths of each batch.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from iclens.core import SaeError
from iclens.saes.formats.llama_scope import LENGTHS, hooked, model_of, refuse_transcoder, stored_lengths
from iclens.saes.formats.parts import (
    Parts,
    Settings,
    build,
    fingerprint,
    plain_names,
    read_pickle,
    read_tensors,
    refuse_not_finite,
    refuse_width,
    settings,
    shown,
    take,
    unit_rows,
)

CONFIG = "config.json"
WEIGHTS = (
    "sae_weights.safetensors", "sae_weights.pt",
    "checkpoints/pruned.safetensors", "checkpoints/final.safetensors",
)  # fmt: skip
"""Where the weights may stand; the first that is there is read, as llamascopium does."""
_THRESHOLD = "activation_function.log_jumprelu_threshold"
_ARCHITECTURES = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}
_NORMALISATIONS = {"dataset-wise": "none", "inference": "none", "token-wise": "constant_norm_rescale"}


def read(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read an SAE of llamascopium; its width is compared with `d_model` before its weights are read.

    Raises:
        SaeError: when a file is missing or damaged, or when it computes what cannot be computed here.
    """
    config = settings(folder / CONFIG)
    config.only("sae_type", ("sae",), "sae")
    refuse_transcoder(config)
    config.only("use_glu_encoder", (False,), False)
    act_fn = config.only("act_fn", tuple(_ARCHITECTURES), "relu")
    scaling = config.only("norm_activation", tuple(_NORMALISATIONS), "dataset-wise")
    d_in = config.whole("d_model")
    refuse_width(config.what, d_in, d_model)
    d_sae = int(d_in * config.number("expansion_factor"))
    file = next(name for name in WEIGHTS if (folder / name).is_file())
    tensors = _tensors(folder, file)
    lengths = {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{LENGTHS}.")}
    if _THRESHOLD in tensors and tensors[_THRESHOLD].numel() == 1:  # one for all latents
        tensors[_THRESHOLD] = tensors[_THRESHOLD].reshape(1).expand(d_sae)
    config = hooked(config, lengths)
    stored = take(config.what, file, tensors, _shapes(config, act_fn, d_in, d_sae))

    mean_length = _mean_length(config, file, lengths) if scaling == "dataset-wise" else None
    s = 1.0 if mean_length is None else math.sqrt(d_in) / mean_length
    rows, v = unit_rows(stored["W_D"])
    if not config.flag("sparsity_include_decoder_norm", default=True):
        rows, v = stored["W_D"], torch.ones(d_sae)
    weights = {
        "W_enc": stored["W_E"] * v, "b_enc": stored["b_E"] * v / s, "W_dec": rows,
        "b_dec": stored.get("b_D", torch.zeros(d_in)) / s,
    }  # fmt: skip
    if act_fn == "jumprelu":
        weights["threshold"] = stored[_THRESHOLD].exp() / s
        refuse_not_finite(
            f"weights of SAE '{config.what}'", file, f"exp({_THRESHOLD})", weights["threshold"],
            "It must hold logarithms of thresholds, below 80.",
        )  # fmt: skip
    k = config.whole("top_k", 50, most=d_sae) if act_fn == "topk" else None
    options: dict[str, Any] = {} if k is None else {"k": k}
    site, model = config.site("hook_point_in"), model_of(folder)
    network = build(
        _ARCHITECTURES[act_fn], weights, site=site, model=model, subtract_b_dec=False, device=device,
        normalize_activations=_NORMALISATIONS[scaling], **options,
    )  # fmt: skip
    return Parts(
        "llamascopium", fingerprint([folder / CONFIG, folder / file]), network, file, site,
        hook=config.text("hook_point_in"), model=model, l0=k, mean_length=mean_length,
    )  # fmt: skip


def _tensors(folder: Path, file: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint of either kind."""
    if not file.endswith(".pt"):
        return read_tensors(folder, file)
    stored = read_pickle(folder, file)
    tensors = stored.get("sae") if isinstance(stored, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise SaeError(
            f"SAE '{folder}'", f"{file} has no mapping of names to tensors under 'sae'",
            "Save it with llamascopium's save_pretrained.",
        )  # fmt: skip
    return plain_names(tensors)


def _shapes(config: Settings, act_fn: str, d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {"W_E": (d_in, d_sae), "b_E": (d_sae,), "W_D": (d_sae, d_in)}
    if config.flag("use_decoder_bias", default=True):
        shapes["b_D"] = (d_in,)
    if act_fn == "jumprelu":
        shapes[_THRESHOLD] = (d_sae,)
    return shapes


def _mean_length(config: Settings, file: str, lengths: dict[str, Tensor]) -> float:
    """The mean length of the activations that it reads."""
    stored = ", ".join(shown(name.removeprefix(f"{LENGTHS}.")) for name in lengths)
    if config.get("hook_point_in") is None and lengths:
        config.refuse("hook_point_in", f"{file} holds the mean lengths of {stored}: name the one it reads.")
    stated = stored_lengths(config, file, lengths)
    if len(set(stated)) != 1:
        name = f"{LENGTHS}.{config.get('hook_point_in', 'HOOK')}"
        raise SaeError(
            f"SAE '{config.what}'",
            f"norm_activation is 'dataset-wise', and {name} does not stand once in {file}, "
            f"which holds the mean lengths of {stored or 'no hook'}",
            "Set it in llamascopium (set_dataset_average_activation_norm) and save again.",
        )  # fmt: skip
    return stated[0]
