"""SAEs of sparsify, such as EleutherAI/sae-llama-3-8b-32x: a folder per hookpoint.

`cfg.json` and `sae.safetensors`. What matters, and is easily read wrongly:

    z = relu((x − b_dec) @ encoder.weightᵀ + encoder.bias),  a = z at the k largest,  x̂ = a @ W_dec + b_dec

b_dec is subtracted whatever `normalize_decoder` says. `W_dec` is stored [latent d_in], like encoder.weight.
`num_latents` 0 or absent stands for d_in · expansion_factor. The folder's name is the hookpoint:
`layers.N` is that block's output (resid_post), `layers.N.mlp` the MLP's output, `layers.N.self_attn` the
attention's, `embed_tokens` what the first block reads. The model's name stands in `../config.json`.

Transcoders and skip connections, groupmax and signed latents have no sae_lens class and are refused.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from iclens.errors import SaeError
from iclens.names import Site
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

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_HOOKPOINT = re.compile(r"(?:\w+\.)*?(?:layers|layer|h)[._](\d+)(?:\.(mlp|self_attn|attention|attn))?")
_HOOKS = {None: "resid_post", "mlp": "mlp_out"}
_PLAIN = {"transcode": False, "skip_connection": False, "signed": False, "activation": "topk"}


def read(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read an SAE that sparsify saved; its width is compared with `d_model` before its weights are read.

    Raises:
        SaeError: when a file is missing or damaged, or when it computes something sae_lens cannot.
    """
    config = read_json(folder / CONFIG)
    for key, plain in _PLAIN.items():
        if config.get(key, plain) != plain:
            raise SaeError(
                f"SAE '{folder}'", f"{key} is {config[key]!r}", "Only plain TopK SAEs can be used."
            )
    d_in, k = number(config, "d_in", folder), number(config, "k", folder)
    refuse_width(str(folder), d_in, d_model)
    d_sae = _n_latents(config, d_in, folder)
    if k > d_sae:
        raise SaeError(f"SAE '{folder}'", f"k is {k} of {d_sae} latents", "Mend cfg.json.")
    shapes = {
        "encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,),
    }  # fmt: skip
    found = take(folder, read_tensors(folder / WEIGHTS), shapes)
    weights = {
        "W_enc": found["encoder.weight"].T, "b_enc": found["encoder.bias"],
        "W_dec": found["W_dec"], "b_dec": found["b_dec"],
    }  # fmt: skip
    site, model = hookpoint(folder.resolve().name), _model(folder)
    network = build("topk", weights, site=site, model=model, device=device, k=k)
    return Parts(
        "sparsify", fingerprint([folder / CONFIG, folder / WEIGHTS]), network, site, model=model, l0=k
    )


def hookpoint(name: str) -> Site | None:
    """The site that a hookpoint's name means; None when it is not known."""
    if name.split(".")[-1] == "embed_tokens":
        return Site(0, "resid_pre")
    match = _HOOKPOINT.fullmatch(name)
    return None if match is None else Site(int(match[1]), _HOOKS.get(match[2], "attn_out"))


def _n_latents(config: dict[str, Any], d_in: int, folder: Path) -> int:
    if config.get("num_latents"):
        return number(config, "num_latents", folder)
    return d_in * number(config, "expansion_factor", folder)


def _model(folder: Path) -> str | None:
    beside = folder.resolve().parent / "config.json"
    name = read_json(beside).get("model") if beside.is_file() else None
    return name if isinstance(name, str) else None
