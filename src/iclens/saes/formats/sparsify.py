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

from pathlib import Path

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
)

CONFIG, WEIGHTS = "cfg.json", "sae.safetensors"
_PLAIN = {"transcode": False, "skip_connection": False, "signed": False, "activation": "topk"}


def read(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read an SAE that sparsify saved; its width is compared with `d_model` before its weights are read.

    Raises:
        SaeError: when a file is missing or damaged, or when it computes something sae_lens cannot.
    """
    config = settings(folder / CONFIG)
    for key, plain in _PLAIN.items():
        config.only(key, (plain,), plain)
    d_in = config.whole("d_in")
    refuse_width(config.what, d_in, d_model)
    d_sae = _n_latents(config, d_in)
    k = config.whole("k", most=d_sae)
    shapes = {
        "encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,),
    }  # fmt: skip
    stored = take(config.what, WEIGHTS, read_tensors(folder, WEIGHTS), shapes)
    weights = {
        "W_enc": stored["encoder.weight"].T, "b_enc": stored["encoder.bias"],
        "W_dec": stored["W_dec"], "b_dec": stored["b_dec"],
    }  # fmt: skip
    name = folder.resolve().name
    site, model = named_site(name), _model(folder)
    network = build("topk", weights, site=site, model=model, device=device, k=k)
    files = [folder / CONFIG, folder / WEIGHTS]
    return Parts("sparsify", fingerprint(files), network, WEIGHTS, site, hook=name, model=model, l0=k)


def _n_latents(config: Settings, d_in: int) -> int:
    if config.get("num_latents", 0) == 0:
        return int(d_in * config.number("expansion_factor"))
    return config.whole("num_latents")


def _model(folder: Path) -> str | None:
    beside = folder.resolve().parent / "config.json"
    name = settings(beside).get("model") if beside.is_file() else None
    return name if isinstance(name, str) else None  # that folder's config may be another program's
