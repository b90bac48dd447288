"""sae_lens' own folders: `cfg.json` and `sae_weights.safetensors`; also what `iclens train` writes.

1. The config is read by ourselves, whatever version wrote it: a key may stand at the top or under `metadata`,
and under its older name. sae_lens takes a config without a version for one from before 6.0, drops what stands
under `metadata`, and reads an activation that it does not know as ReLU. 2. Weights are compared with the
architecture's shapes. 3. What a TopK SAE does by `rescale_acts_by_decoder_norm` is written into its weights,
which changes no activation and no reconstruction. 4. BatchTopK checkpoints of training become the JumpReLU
SAE that sae_lens' final folder holds.

Refused is what one encode of single tokens cannot hold: reshaped inputs, architectures whose latents are
signed or read whole sequences, and activations that are not computed here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from sae_lens.loading.pretrained_sae_loaders import LLM_METADATA_KEYS
from torch import Tensor

from iclens.core import SaeError
from iclens.saes.formats.parts import (
    NORMALISATIONS,
    Parts,
    Settings,
    build,
    fingerprint,
    read_tensors,
    refuse_unlearnt,
    refuse_width,
    settings,
    take,
    unit_rows,
)

CONFIG, WEIGHTS, SCALER = "cfg.json", "sae_weights.safetensors", "activation_scaler.json"
UNFOLDED = "expected_average_only_in"
"""Normalisation by a constant of the training data, which `scaled` writes into the weights."""
ARCHITECTURES = (
    "standard", "gated", "topk", "jumprelu",
    "transcoder", "jumprelu_transcoder", "skip_transcoder", "jumprelu_skip_transcoder",
)  # fmt: skip
"""sae_lens architectures that are used: non-negative latents that are read from one token at a time."""
BATCH_TOP_K = ("batchtopk", "matryoshka_batchtopk")
"""Architectures of training whose final form is JumpReLU with one threshold."""
_ACTIVATIONS = {
    "standard": ("relu", "topk"), "topk": ("topk", "relu"), "jumprelu": ("relu", "jumprelu"),
    "batchtopk": ("relu", "batchtopk"), "matryoshka_batchtopk": ("relu", "batchtopk"),
}  # fmt: skip
"""Architecture → what its config may call its activation; ReLU alone for the others."""
_ONCE = ("hook_name", "activation_fn", "k")
"""Keys that two places must not state differently."""
_FINETUNED = ("scaling_factor", "finetuning_scaling_factor")
"""What sae_lens before 6.0 multiplies latents by when it decodes, [d_sae]."""
_OLDER = {"hook_name": "hook_point", "activation_fn": "activation_fn_str"}
"""Key → its name before."""


def shapes(architecture: str, d_in: int, d_sae: int, d_out: int) -> dict[str, tuple[int, ...]]:
    """The parameters of an architecture of sae_lens and their shapes."""
    biases = ("b_gate", "b_mag", "r_mag") if architecture == "gated" else ("b_enc",)
    if architecture.startswith("jumprelu"):
        biases = (*biases, "threshold")
    skipped: dict[str, tuple[int, ...]] = {"W_skip": (d_out, d_in)} if "skip" in architecture else {}
    return {
        "W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,),
        **{name: (d_sae,) for name in biases}, **skipped,
    }  # fmt: skip


def read(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read an SAE that sae_lens saved; its width is compared with `d_model` before its weights are read.

    Raises:
        SaeError: when a file is missing or damaged, or when it computes what cannot be computed here.
    """
    config = settings(folder / CONFIG)
    refuse_width(str(folder), config.whole("d_in"), d_model)
    architecture_of(config)
    parts = from_tensors(config, WEIGHTS, read_tensors(folder, WEIGHTS), device)
    if parts.network.cfg.normalize_activations == UNFOLDED and (folder / SCALER).is_file():
        scaled(parts.network, settings(folder / SCALER).scale("scaling_factor"))
    files = [folder / name for name in (CONFIG, WEIGHTS, SCALER) if (folder / name).is_file()]
    return replace(parts, sae_id=fingerprint(files))


def from_tensors(config: Settings, file: str, tensors: Mapping[str, Tensor], device: str) -> Parts:
    """The parts that a config of sae_lens and its weights make, without an id.

    Args:
        config: of whatever version of sae_lens.
        file: name of the file that holds the weights.
        tensors: parameter → values.
        device: torch device.
    """
    flat = _flat(config)
    architecture, options = architecture_of(config)
    d_in, d_sae = flat.whole("d_in"), flat.whole("d_sae")
    transcodes = "transcoder" in architecture
    if transcodes:
        options["d_out"] = flat.whole("d_out")
    options["normalize_activations"] = _normalisation(flat)
    flat.only("reshape_activations", ("none", False), "none")
    subtract = flat.flag("apply_b_dec_to_input", default=not transcodes)
    if transcodes and subtract:
        flat.refuse("apply_b_dec_to_input", "b_dec of a transcoder lies in its output: it must be false.")
    rescaled = flat.flag("rescale_acts_by_decoder_norm", default=architecture in BATCH_TOP_K)

    stored_as = "topk" if architecture in BATCH_TOP_K else architecture
    expected = shapes(stored_as, d_in, d_sae, options.get("d_out", d_in))
    if architecture in BATCH_TOP_K:
        expected["topk_threshold"] = ()
    finetuned = {name: (d_sae,) for name in _FINETUNED if name in tensors}
    expected |= finetuned
    weights = take(
        config.what, file, tensors, expected,
        f"A {architecture} SAE of SAELens holds {', '.join(expected)}; "
        "a checkpoint of its training becomes one by save_inference_model().",
    )  # fmt: skip
    for name in finetuned:
        factors = weights.pop(name)
        if not flat.flag("finetuning_scaling_factor", default=False) and bool((factors != 1).any()):
            flat.refuse("finetuning_scaling_factor", f"It must be true where {name} in {file} is not 1.")
        weights["W_dec"] = weights["W_dec"] * factors[:, None]
    if rescaled and architecture in ("topk", *BATCH_TOP_K):
        weights["W_dec"], lengths = unit_rows(weights["W_dec"])
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * lengths, weights["b_enc"] * lengths
    if architecture in BATCH_TOP_K:
        architecture, weights["threshold"] = "jumprelu", weights.pop("topk_threshold").expand(d_sae).clone()
    k = _batch_k(flat)
    if architecture.startswith("jumprelu") and k is not None:
        refuse_unlearnt(config.what, file, float(weights["threshold"].max()), k)

    site, target = flat.site("hook_name"), flat.site("hook_name_out")
    if flat.get("hook_name_out") is not None and target is None:
        flat.refuse("hook_name_out", "What it reconstructs must be a residual, attn_out or MLP site.")
    model = flat.text("model_name")
    network = build(
        architecture, weights, site=site, model=model, subtract_b_dec=subtract, device=device,
        metadata=_metadata(config), **options,
    )  # fmt: skip
    return Parts(
        "sae_lens", "", network, file, site, hook=flat.text("hook_name"),
        target=None if target == site else target, model=model,
        model_fingerprint=flat.text("model_fingerprint"),
        l0=options.get("k", k) if flat.get("l0") is None else flat.number("l0"),
        mean_length=None if flat.get("mean_length") is None else flat.number("mean_length"),
    )  # fmt: skip


def architecture_of(config: Settings) -> tuple[str, dict[str, Any]]:
    """The architecture that a config names, and its options: k of a TopK SAE.

    Raises:
        SaeError: for an architecture or activation that is not computed here, or two numbers for k.
    """
    flat = _flat(config)
    architecture = flat.get("architecture", "standard")
    if architecture not in (*ARCHITECTURES, *BATCH_TOP_K):
        flat.refuse("architecture", f"Known: {', '.join((*ARCHITECTURES, *BATCH_TOP_K))}.")
    named, inner = flat.get("activation_fn", "relu"), flat.mapping("activation_fn_kwargs")
    computed = _ACTIVATIONS.get(architecture, ("relu",))
    if named not in computed:
        key = next(key for key in ("activation_fn_str", "activation_fn") if key in flat.values)
        flat.refuse(key, f"Computed with architecture {architecture}: {' or '.join(computed)}.")
    if strange := set(inner.values) - {"k"}:
        inner.refuse(min(strange), "Of activation_fn_kwargs only k is known.")
    if architecture != "topk" and named != "topk":
        return architecture, {}
    most = flat.whole("d_sae")
    stated = [where.whole("k", most=most) for where in (flat, inner) if where.get("k") is not None]
    if len(set(stated)) > 1:
        flat.refuse("k", f"activation_fn_kwargs says {stated[1]}: keep the one it was trained with.")
    return "topk", {"k": stated[0] if stated else flat.whole("k", most=most)}


def scaled(network: Any, factor: float) -> None:
    """Write the constant by which an SAE scales its input into its weights.

    With s·x in place of x, z = (s·x − b_dec)·W_enc + b_enc = (x − b_dec/s)·(s·W_enc) + b_enc; what is decoded
    is divided by s. Latents stay as they are.
    """
    network.fold_activation_norm_scaling_factor(factor)


def _normalisation(flat: Settings) -> str:
    """`normalize_activations`; older configs have true for normalisation by a constant."""
    value = flat.get("normalize_activations", "none")
    if isinstance(value, bool):
        return UNFOLDED if value else "none"
    if value == "covariance_whitening":
        flat.refuse(
            "normalize_activations",
            "Use the final folder of its training, in which SAELens has folded it into the weights.",
        )
    return flat.only("normalize_activations", (*NORMALISATIONS, UNFOLDED), "none")


def _batch_k(flat: Settings) -> float | None:
    """k of the BatchTopK training that an SAE came from; None for another training."""
    if flat.get("architecture") in BATCH_TOP_K:
        return flat.number("k")
    if flat.get("training_architecture") not in BATCH_TOP_K:
        return None
    return flat.mapping("training_architecture_details").number("k")


def _metadata(config: Settings) -> dict[str, Any]:
    """What is kept of a config's metadata, older ones' at the top included; not the version that wrote it."""
    older = {key: value for key, value in config.values.items() if key in LLM_METADATA_KEYS}
    metadata = older | dict(config.mapping("metadata").values)
    metadata.pop("sae_lens_version", None)
    return metadata


def _flat(config: Settings) -> Settings:
    """Every key under its present name, whether it stands at the top or under `metadata`.

    Of what describes the model, `metadata` counts; of anything else, the top.

    Raises:
        SaeError: when two places say different things.
    """
    values: dict[str, Any] = {}
    present = {old: new for new, old in _OLDER.items()}
    for stated in (config.values, config.mapping("metadata").values):
        for key, value in stated.items():
            name = present.get(key, key)
            if value is None or name == "metadata":
                continue
            if name in _ONCE and name in values and values[name] != value:
                raise SaeError(
                    f"SAE '{config.what}'", f"{name} is both {values[name]!r} and {value!r} in {config.file}",
                    "Keep the one it was trained with.",
                )  # fmt: skip
            values.setdefault(key, value)
            if name in LLM_METADATA_KEYS:
                values[name] = value
            else:
                values.setdefault(name, value)
    return Settings(config.what, config.file, values)
