"""SAEs of Llama Scope (He et al. 2024, arXiv 2410.20526).

A folder holds `hyperparams.json` and `checkpoints/final.safetensors`. The SAEs were trained on u = s·x with
s = √d_model / the mean length of the site's activations; the threshold θ
is stated in units of x. With v_f the length of decoder column f (1 in the released files),

    z_f = v_f · (encoder.weight_f · x + encoder.bias_f / s),   a_f = z_f where z_f > θ, else 0
    x̂ = Σ_f a_f · decoder.weight_f / v_f + decoder.bias / s

so that x is read as it is and latents are in its units: a JumpReLU SAE that subtracts no b_dec first.
Transcoders (LXTC) read their MLP's input before the norm's gain, which is no site of ours: refused.
"""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import torch

from iclens.errors import SaeError, SiteError
from iclens.names import Site, sae_site
from iclens.saes.formats.parts import (
    Parts,
    build,
    fingerprint,
    number,
    read_json,
    read_tensors,
    refuse_width,
    take,
)

CONFIG, WEIGHTS, MODEL = "hyperparams.json", "checkpoints/final.safetensors", "lm_config.json"
_NAME = re.compile(r"Llama3_1-8B-Base-L\d+[RMA]-\d+x")


def read(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read an SAE of Llama Scope; its width is compared with `d_model` before its weights are read.

    Raises:
        SaeError: when a file is missing or damaged, or when it computes something sae_lens cannot.
    """
    config = read_json(folder / CONFIG)
    site = _site(config, folder)
    _refuse_other_kinds(config, folder)
    d_in, d_sae = number(config, "d_model", folder), number(config, "d_sae", folder)
    refuse_width(str(folder), d_in, d_model)
    shapes = {
        "encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,),
        "decoder.weight": (d_in, d_sae), "decoder.bias": (d_in,),
    }  # fmt: skip
    found = take(folder, read_tensors(folder / WEIGHTS), shapes)
    s, threshold = _scale(config, d_in, folder), _positive(config.get("jump_relu_threshold"), folder)
    v = found["decoder.weight"].norm(dim=0)
    if not (v > 0).all():
        raise SaeError(f"weights of SAE '{folder}'", "a decoder column is zero", "Copy it again.")
    weights = {
        "W_enc": found["encoder.weight"].T * v, "b_enc": found["encoder.bias"] / s * v,
        "W_dec": found["decoder.weight"].T / v[:, None], "b_dec": found["decoder.bias"] / s,
        "threshold": torch.full((d_sae,), threshold),
    }  # fmt: skip
    model = _model(folder)
    network = build("jumprelu", weights, site=site, model=model, subtract_b_dec=False, device=device)
    files = [folder / CONFIG, folder / WEIGHTS]
    return Parts("llama_scope", fingerprint(files), network, site, model=model, l0=config.get("top_k"))


def _site(config: dict[str, Any], folder: Path) -> Site:
    """The site it reads and reconstructs."""
    reads, writes = config.get("hook_point_in"), config.get("hook_point_out")
    if writes is not None and reads != writes:
        raise SaeError(
            f"SAE '{folder}'", f"a transcoder from '{reads}' to '{writes}'",
            "It reads a norm's output before its gain, which is no site here.",
        )  # fmt: skip
    try:
        return sae_site(str(reads))
    except SiteError as cause:
        raise SaeError(f"SAE '{folder}'", f"it reads '{reads}'", "Use one of another site.") from cause


def _refuse_other_kinds(config: dict[str, Any], folder: Path) -> None:
    plain = {
        "act_fn": "jumprelu", "norm_activation": "dataset-wise", "apply_decoder_bias_to_pre_encoder": False,
        "use_decoder_bias": True, "use_glu_encoder": False, "sparsity_include_decoder_norm": True,
    }  # fmt: skip
    for key, value in plain.items():
        if config.get(key, value) != value:
            raise SaeError(f"SAE '{folder}'", f"{key} is {config[key]!r}", f"Only {value!r} can be read.")


def _scale(config: dict[str, Any], d_in: int, folder: Path) -> float:
    lengths = config.get("dataset_average_activation_norm")
    if not isinstance(lengths, dict):
        raise SaeError(f"SAE '{folder}'", "dataset_average_activation_norm is missing", "Copy it again.")
    return math.sqrt(d_in) / _positive(lengths.get("in"), folder)


def _positive(value: Any, folder: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
        raise SaeError(
            f"SAE '{folder}'",
            f"a threshold or activation length is {value!r}",
            "Copy hyperparams.json again.",
        )
    return float(value)


def _model(folder: Path) -> str | None:
    """The model named in lm_config.json, or the one that the folder's name stands for."""
    if (folder / MODEL).is_file():
        name = read_json(folder / MODEL).get("model_name")
        if isinstance(name, str):
            return name
    return "meta-llama/Llama-3.1-8B" if _NAME.fullmatch(folder.resolve().name) else None
