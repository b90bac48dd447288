"""SAEs of Llama Scope (He et al. 2024, arXiv 2410.20526).

A folder holds `hyperparams.json` and `checkpoints/final.safetensors`. The SAEs were trained on u = s·x with
s = √d_model / the mean length of the site's activations; the threshold θ
is stated in units of x. With v_f the length of decoder column f (1 in the released files),

    z_f = v_f · (encoder.weight_f · x + encoder.bias_f / s),   a_f = z_f where z_f > θ, else 0
    x̂ = Σ_f a_f · decoder.weight_f / v_f + decoder.bias / s

so that x is read as it is and latents are in its units: a JumpReLU SAE that subtracts no b_dec first.
In some folders the two mean lengths stand among the weights instead of in `hyperparams.json`.
Transcoders (LXTC) read their MLP's input before the norm's gain, which is no site of ours: refused.
"""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from iclens.saes.formats.parts import (
    Parts,
    Settings,
    build,
    fingerprint,
    named_site,
    read_tensors,
    refuse_width,
    settings,
    take,
    unit_rows,
)

CONFIG, WEIGHTS, MODEL = "hyperparams.json", "checkpoints/final.safetensors", "lm_config.json"
LENGTHS = "dataset_average_activation_norm"
_PLAIN = {
    "act_fn": "jumprelu", "norm_activation": "dataset-wise", "apply_decoder_bias_to_pre_encoder": False,
    "use_decoder_bias": True, "use_glu_encoder": False, "sparsity_include_decoder_norm": True,
}  # fmt: skip
_NAME = re.compile(r"Llama3_1-8B-Base-L\d+[RMA]-\d+x")


def read(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read an SAE of Llama Scope; its width is compared with `d_model` before its weights are read.

    Raises:
        SaeError: when a file is missing or damaged, or when it computes something sae_lens cannot.
    """
    config = settings(folder / CONFIG)
    refuse_transcoder(config)
    for key, plain in _PLAIN.items():
        config.only(key, (plain,), plain)
    d_in, d_sae = config.whole("d_model"), config.whole("d_sae")
    refuse_width(config.what, d_in, d_model)
    tensors = read_tensors(folder, WEIGHTS)
    lengths = {name: tensors.pop(name) for name in list(tensors) if name.startswith(f"{LENGTHS}.")}
    shapes = {
        "encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,),
        "decoder.weight": (d_in, d_sae), "decoder.bias": (d_in,),
    }  # fmt: skip
    stored = take(config.what, WEIGHTS, tensors, shapes)
    config = hooked(config, lengths)
    mean_length = _mean_length(config, lengths)
    s, threshold = math.sqrt(d_in) / mean_length, config.number("jump_relu_threshold", least=0)
    rows, v = unit_rows(stored["decoder.weight"].T)
    weights = {
        "W_enc": stored["encoder.weight"].T * v, "b_enc": stored["encoder.bias"] / s * v,
        "W_dec": rows, "b_dec": stored["decoder.bias"] / s, "threshold": torch.full((d_sae,), threshold),
    }  # fmt: skip
    site, model = config.site("hook_point_in"), model_of(folder)
    network = build("jumprelu", weights, site=site, model=model, subtract_b_dec=False, device=device)
    return Parts(
        "llama_scope", fingerprint([folder / CONFIG, folder / WEIGHTS]), network, WEIGHTS, site,
        hook=config.text("hook_point_in"), model=model, mean_length=mean_length,
        l0=None if config.get("top_k") is None else config.number("top_k"),
    )  # fmt: skip


def refuse_transcoder(config: Settings) -> None:
    """Raise a SaeError when an SAE reconstructs another activation than it reads."""
    reads, writes = config.text("hook_point_in"), config.text("hook_point_out")
    if writes is not None and reads != writes:
        config.refuse(
            "hook_point_out",
            f"It must be hook_point_in ({reads!r}): a transcoder of this layout reads a norm's output before "
            "its gain, which is no site here.",
        )


def hooked(config: Settings, lengths: dict[str, Tensor]) -> Settings:
    """The settings; where they name no hook, with that of the only mean length among the weights."""
    hooks = {name.removeprefix(f"{LENGTHS}.") for name in lengths} - {"in", "out"}
    if config.get("hook_point_in") is not None or len(hooks) != 1:
        return config
    return replace(config, values={**config.values, "hook_point_in": hooks.pop()})


def stored_lengths(config: Settings, file: str, tensors: dict[str, Tensor]) -> list[float]:
    """The mean lengths, among those that stand with the weights, of the activations that an SAE reads.

    Their names end on "in", or on what it reads in any spelling of that site.

    Raises:
        SaeError: when one is not a number that a mean length can be.
    """
    hook = config.text("hook_point_in")
    site, stated = None if hook is None else named_site(hook), []
    for name, tensor in tensors.items():
        key = name.removeprefix(f"{LENGTHS}.")
        if key in ("in", hook) or (site is not None and named_site(key) == site):
            value = tensor.item() if tensor.numel() == 1 else tensor.tolist()
            stated.append(Settings(config.what, file, {name: value}).scale(name))
    return stated


def _mean_length(config: Settings, stored: dict[str, Tensor]) -> float:
    """Of the activations that it reads, from the config or from the weights.

    Raises:
        SaeError: when neither states it, or they disagree.
    """
    stated = [config.mapping(LENGTHS).scale("in")] if config.get(LENGTHS) is not None else []
    stated += stored_lengths(config, WEIGHTS, stored)
    if not stated:
        config.refuse(
            LENGTHS, f"State the mean length of the activations it was trained on: {LENGTHS}: {{in: …}}."
        )
    if not math.isclose(min(stated), max(stated), rel_tol=0.01):
        config.refuse(LENGTHS, f"{WEIGHTS} says {stated[-1]:g}: keep the one it was trained with.")
    return stated[0]


def model_of(folder: Path) -> str | None:
    """The model named in lm_config.json, or the one that the folder's name stands for."""
    name = settings(folder / MODEL).text("model_name") if (folder / MODEL).is_file() else None
    return name or ("meta-llama/Llama-3.1-8B" if _NAME.fullmatch(folder.resolve().name) else None)
