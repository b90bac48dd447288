"""Dictionaries of dictionary_learning: `config.json` and `ae.pt`, one folder per trainer.

    AutoEncoder             a = relu((x − bias) @ Eᵀ + e);  decoder columns are made unit on loading, as
                            there, and a column of zeros stays zero, its latent dead
    AutoEncoderNew          a = relu(x @ Eᵀ + e)
    AutoEncoderTopK         the k largest of relu((x − b_dec) @ Eᵀ + e); its saved threshold is not used
    BatchTopKSAE, Matryoshka…  relu((x − b_dec) @ Eᵀ + e) where it exceeds the threshold learnt in training
    JumpReluAutoEncoder     relu(x @ W_enc + b_enc) where it exceeds a threshold per latent, one below 0 as 0
    GatedAutoEncoder        relu(exp(r_mag) · z + mag_bias) where z + gate_bias > 0, z = (x − b) @ Eᵀ

`ae.pt` is a pickle. It is read by torch's weights-only unpickler, which makes tensors and nothing else; a
file that asks for more is refused. k of the oldest TopK dictionaries stands in `config.json` alone; the
oldest configs have the trainer's keys at the top. The site is read from `submodule_name`
(`resid_post_layer_8`); where a config names only a layer, the caller must say which site it is.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from iclens.core import SaeError, Site
from iclens.saes.formats.parts import (
    Parts,
    Settings,
    build,
    fingerprint,
    named_site,
    plain_names,
    read_pickle,
    refuse_unlearnt,
    refuse_width,
    settings,
    take,
    unit_rows,
)

CONFIG, WEIGHTS = "config.json", "ae.pt"
_SUBMODULE = re.compile(r"(\w+?)_layer_?(\d+)")
_INPUTS = {"resid_post": "resid_pre", "mlp_out": "mlp_in"}
"""What the module with this output reads, where that is a site."""
Tensors = dict[str, Tensor]
Built = tuple[str, Tensors, dict[str, Any], float | None]
"""sae_lens architecture, its weights, further options, and the mean L0 asked for in training."""


def read(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read a dictionary; its width is compared with `d_model` before its weights are read.

    Raises:
        SaeError: when a file is missing, damaged or no plain set of tensors, or of an unknown class.
    """
    config = settings(folder / CONFIG)
    trainer = config.mapping("trainer") if "trainer" in config.values else config
    name = trainer.text("dict_class")
    if name not in CLASSES:
        trainer.refuse("dict_class", f"Known: {', '.join(CLASSES)}.")
    d_in, d_sae = trainer.whole("activation_dim"), trainer.whole("dict_size")
    refuse_width(config.what, d_in, d_model)
    architecture, weights, options, l0 = CLASSES[name](trainer, _tensors(folder), d_in, d_sae)
    model, (site, hook) = trainer.text("lm_name"), _site(trainer, config)
    network = build(architecture, weights, site=site, model=model, device=device, **options)
    files = [folder / CONFIG, folder / WEIGHTS]
    return Parts(
        "dictionary_learning", fingerprint(files), network, WEIGHTS, site,
        hook=hook, model=model, l0=l0,
    )  # fmt: skip


def _tensors(folder: Path) -> Tensors:
    """The tensors of ae.pt."""
    tensors = read_pickle(folder, WEIGHTS)
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise SaeError(
            f"SAE '{folder}'", f"{WEIGHTS} is not a mapping of names to tensors",
            "Save the dictionary's state_dict() there with torch.save.",
        )  # fmt: skip
    return plain_names(tensors)


def _site(trainer: Settings, config: Settings) -> tuple[Site | None, str | None]:
    """The site that the buffer took of the module submodule_name, and how the files name it."""
    name, end = trainer.text("submodule_name"), config.mapping("buffer").get("io", "out")
    if name is None:
        return None, None
    match = _SUBMODULE.fullmatch(name)
    site = named_site(name if match is None else f"L{match[2]}.{match[1]}")
    if end == "out":
        return site, name
    whole = match is None and not name.endswith("_proj")  # a projection reads what is no site
    into = _INPUTS.get(site.hook) if site is not None and whole and end == "in" else None
    return None if site is None or into is None else Site(site.layer, into), f"{name} ({end})"


def _linear(d_in: int, d_sae: int, *, bias: bool = True) -> dict[str, tuple[int, ...]]:
    """Shapes of nn.Linear encoders and decoders."""
    shapes: dict[str, tuple[int, ...]] = {"encoder.weight": (d_sae, d_in), "decoder.weight": (d_in, d_sae)}
    return shapes | ({"encoder.bias": (d_sae,)} if bias else {})


def _standard(trainer: Settings, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    stored = take(trainer.what, WEIGHTS, tensors, _linear(d_in, d_sae) | {"bias": (d_in,)})
    rows, lengths = unit_rows(stored["decoder.weight"].T)
    weights = {
        "W_enc": stored["encoder.weight"].T * lengths, "b_enc": stored["encoder.bias"] * lengths,
        "W_dec": rows, "b_dec": stored["bias"],
    }  # fmt: skip
    return "standard", weights, {}, None


def _new(trainer: Settings, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    stored = take(trainer.what, WEIGHTS, tensors, _linear(d_in, d_sae) | {"decoder.bias": (d_in,)})
    return "standard", _plain(stored, "decoder.bias"), {"subtract_b_dec": False}, None


def _top_k(trainer: Settings, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    k = _k(trainer, tensors, d_sae)
    rest = {name: value for name, value in tensors.items() if name not in ("k", "threshold")}
    stored = take(trainer.what, WEIGHTS, rest, _linear(d_in, d_sae) | {"b_dec": (d_in,)})
    return "topk", _plain(stored, "b_dec"), {"k": k}, k


def _batch_top_k(trainer: Settings, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    weights, k = _with_threshold(trainer, tensors, d_sae, _linear(d_in, d_sae) | {"b_dec": (d_in,)})
    return "jumprelu", _plain(weights, "b_dec") | {"threshold": weights["threshold"].expand(d_sae)}, {}, k


def _matryoshka(trainer: Settings, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    rest = {name: value for name, value in tensors.items() if name != "group_sizes"}
    weights, k = _with_threshold(trainer, rest, d_sae, _matrices(d_in, d_sae))
    return "jumprelu", weights | {"threshold": weights["threshold"].expand(d_sae)}, {}, k


def _with_threshold(
    trainer: Settings, tensors: Tensors, d_sae: int, shapes: dict[str, tuple[int, ...]]
) -> tuple[Tensors, int]:
    """Weights with the one threshold that BatchTopK training learnt, and k.

    Raises:
        SaeError: when training ended before it did: it starts at −1.
    """
    k = _k(trainer, tensors, d_sae)
    rest = {name: value for name, value in tensors.items() if name != "k"}
    if "threshold" in rest and rest["threshold"].numel() == 1:
        rest["threshold"] = rest["threshold"].reshape(())
    weights = take(trainer.what, WEIGHTS, rest, shapes | {"threshold": ()})
    refuse_unlearnt(trainer.what, WEIGHTS, float(weights["threshold"]), k)
    return weights, k


def _jump_relu(trainer: Settings, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    weights = take(trainer.what, WEIGHTS, tensors, _matrices(d_in, d_sae) | {"threshold": (d_sae,)})
    weights["threshold"] = weights["threshold"].clamp_min(0)
    return "jumprelu", weights, {"subtract_b_dec": False}, None


def _gated(trainer: Settings, tensors: Tensors, d_in: int, d_sae: int) -> Built:
    biases = {name: (d_sae,) for name in ("r_mag", "gate_bias", "mag_bias")} | {"decoder_bias": (d_in,)}
    stored = take(trainer.what, WEIGHTS, tensors, _linear(d_in, d_sae, bias=False) | biases)
    weights = {
        "W_enc": stored["encoder.weight"].T, "W_dec": stored["decoder.weight"].T,
        "b_dec": stored["decoder_bias"],
        "b_gate": stored["gate_bias"], "b_mag": stored["mag_bias"], "r_mag": stored["r_mag"],
    }  # fmt: skip
    return "gated", weights, {}, None


def _plain(stored: Tensors, b_dec: str) -> Tensors:
    return {
        "W_enc": stored["encoder.weight"].T, "b_enc": stored["encoder.bias"],
        "W_dec": stored["decoder.weight"].T, "b_dec": stored[b_dec],
    }  # fmt: skip


def _matrices(d_in: int, d_sae: int) -> dict[str, tuple[int, ...]]:
    return {"W_enc": (d_in, d_sae), "b_enc": (d_sae,), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}


def _k(trainer: Settings, tensors: Tensors, d_sae: int) -> int:
    """k, which stands among the tensors, in the config, or in both."""
    stored = tensors.get("k")
    if stored is None:
        return trainer.whole("k", most=d_sae)
    value = stored.item() if stored.numel() == 1 else stored.tolist()
    k = Settings(trainer.what, WEIGHTS, {"k": value}).whole("k", most=d_sae)
    if trainer.get("k") is not None and trainer.whole("k") != k:
        trainer.refuse("k", f"{WEIGHTS} says {k}: keep the one it was trained with.")
    return k


CLASSES: dict[str, Callable[[Settings, Tensors, int, int], Built]] = {
    "AutoEncoder": _standard,
    "AutoEncoderNew": _new,
    "AutoEncoderTopK": _top_k,
    "BatchTopKSAE": _batch_top_k,
    "MatryoshkaBatchTopKSAE": _matryoshka,
    "JumpReluAutoEncoder": _jump_relu,
    "GatedAutoEncoder": _gated,
}
"""dict_class → how its tensors become a sae_lens SAE."""
