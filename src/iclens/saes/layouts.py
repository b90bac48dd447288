"""The five layouts in which SAEs are stored, each a class that reads a folder into `Parts`.

`LAYOUTS` names them in the order in which a folder is tried. What each does that is easily read wrongly
stands in its class: which scale weights are in, what is subtracted from the input, which latents pass.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from sae_lens.loading.pretrained_sae_loaders import LLM_METADATA_KEYS
from torch import Tensor

from iclens.core import SaeError, Site
from iclens.saes.parts import (
    NORMALISATIONS,
    Parts,
    Settings,
    Shapes,
    Tensors,
    build,
    fingerprint,
    named_site,
    printable,
    read_json,
    read_tensors,
    refuse_not_finite,
    refuse_unlearnt,
    refuse_width,
    settings,
    take,
    unit_rows,
)


class Layout:
    """A way in which SAEs are stored."""

    name: ClassVar[str]
    config: ClassVar[str]  # its config's file name
    weights: ClassVar[tuple[str, ...]]  # where its weights may stand; the first that is there is read
    origin: ClassVar[str]  # where SAEs in this layout come from
    keys: ClassVar[tuple[str, ...]]  # of its config, one of which no other layout's config of that name has
    tensor: ClassVar[str]  # one that no other layout's weights of that name have; empty for any
    # (an SAE on the hub, the model it was trained on) outside sae_lens' registry
    published: ClassVar[tuple[tuple[str, str], ...]] = ()

    def read(self, folder: Path, device: str, d_model: int | None = None) -> Parts:
        """Read an SAE; its width is compared with `d_model` before its weights are read."""
        raise NotImplementedError

    @property
    def files(self) -> tuple[str, str]:
        """Its config and its weights, as they are usually named."""
        return self.config, self.weights[0]

    def stored(self, folder: Path) -> Path | None:
        """The weights of this layout that a folder holds."""
        return next((folder / name for name in self.weights if (folder / name).is_file()), None)

    def matches(self, folder: Path) -> bool:
        """Whether a folder holds both of its files; config.json is other programs' name too, and is read."""
        if not (folder / self.config).is_file() or self.stored(folder) is None:
            return False
        return self.config != "config.json" or self.described(folder)

    def described(self, folder: Path) -> bool:
        """Whether a folder's config is this layout's, among those that share its name."""
        if not (folder / self.config).is_file():
            return False
        values = read_json(folder / self.config)
        return any(key in values for key in self.keys)

    def parts(
        self, folder: Path, file: str, architecture: str, weights: Mapping[str, Tensor], *, site: Site | None,
        hook: str | None, model: str | None, l0: float | None = None, mean_length: float | None = None,
        **options: Any,
    ) -> Parts:  # fmt: skip
        """The parts that `build` makes of these weights; `file` is where they were read from."""
        network = build(architecture, weights, site=site, model=model, **options)
        digest = fingerprint([folder / self.config, folder / file])
        return Parts(
            self.name, digest, network, file, site, hook=hook, model=model, l0=l0, mean_length=mean_length
        )


# ------------------------------------------------------------------------------------------------- sae_lens

SCALER = "activation_scaler.json"
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
_PRESENT = {"hook_point": "hook_name", "activation_fn_str": "activation_fn"}
"""Older name of a key → its present one."""


class SaeLens(Layout):
    """sae_lens' own folders, and what `iclens train` writes.

    1. The config is read by ourselves, whatever version wrote it: a key may stand at the top or under
    `metadata`, and under its older name. sae_lens takes a config without a version for one from before 6.0,
    drops what stands under `metadata`, and reads an activation that it does not know as ReLU. 2. Weights are
    compared with the architecture's shapes. 3. What a TopK SAE does by `rescale_acts_by_decoder_norm` is
    written into its weights, which changes no activation and no reconstruction. 4. BatchTopK checkpoints of
    training become the JumpReLU SAE that sae_lens' final folder holds.

    Refused is what one encode of single tokens cannot hold: reshaped inputs, architectures whose latents are
    signed or read whole sequences, and activations that are not computed here.
    """

    name, config, weights = "sae_lens", "cfg.json", ("sae_weights.safetensors",)
    origin = "what `iclens train` and SAELens write"
    keys, tensor = ("d_sae", "architecture", "metadata"), "W_enc"

    def read(self, folder: Path, device: str, d_model: int | None = None) -> Parts:
        """Read an SAE that sae_lens saved."""
        config, (file,) = settings(folder / self.config), self.weights
        refuse_width(str(folder), config.whole("d_in"), d_model)
        _architecture(_flat(config))
        parts = from_sae_lens(config, file, read_tensors(folder, file), device)
        if parts.network.cfg.normalize_activations == UNFOLDED and (folder / SCALER).is_file():
            scaled(parts.network, settings(folder / SCALER).scale("scaling_factor"))
        files = [folder / name for name in (self.config, file, SCALER) if (folder / name).is_file()]
        return replace(parts, sae_id=fingerprint(files))


def from_sae_lens(config: Settings, file: str, tensors: Mapping[str, Tensor], device: str) -> Parts:
    """The parts that a config of sae_lens, of whatever version, and its weights make, without an id.

    `file` is the name of the file that holds the weights.
    """
    flat = _flat(config)
    architecture, options = _architecture(flat)
    d_in, d_sae = flat.whole("d_in"), flat.whole("d_sae")
    transcodes, batch_top_k = "transcoder" in architecture, architecture in BATCH_TOP_K
    if transcodes:
        options["d_out"] = flat.whole("d_out")
    options["normalize_activations"] = _normalisation(flat)
    flat.only("reshape_activations", ("none", False), "none")
    subtract = flat.flag("apply_b_dec_to_input", default=not transcodes)
    if transcodes and subtract:
        flat.refuse("apply_b_dec_to_input", "b_dec of a transcoder lies in its output: it must be false.")
    rescaled = flat.flag("rescale_acts_by_decoder_norm", default=batch_top_k)

    expected = _shapes("topk" if batch_top_k else architecture, d_in, d_sae, options.get("d_out", d_in))
    if batch_top_k:
        expected["topk_threshold"] = ()
    finetuned = [name for name in _FINETUNED if name in tensors]
    expected |= {name: (d_sae,) for name in finetuned}
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
    if rescaled and (batch_top_k or architecture == "topk"):
        weights["W_dec"], lengths = unit_rows(weights["W_dec"])
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * lengths, weights["b_enc"] * lengths
    if batch_top_k:
        architecture, weights["threshold"] = "jumprelu", weights.pop("topk_threshold").expand(d_sae).clone()
    k = _batch_k(flat)
    if architecture.startswith("jumprelu") and k is not None:
        refuse_unlearnt(config.what, file, float(weights["threshold"].max()), k)

    site, target = flat.site("hook_name"), flat.site("hook_name_out")
    if flat.get("hook_name_out") is not None and target is None:
        flat.refuse("hook_name_out", "What it reconstructs must be a residual, attn_out or MLP site.")
    # older configs' metadata stands at the top; the version that wrote it is not kept
    metadata = {key: value for key, value in config.values.items() if key in LLM_METADATA_KEYS}
    metadata |= dict(config.mapping("metadata").values)
    metadata.pop("sae_lens_version", None)
    model = flat.text("model_name")
    network = build(
        architecture, weights, site=site, model=model, subtract_b_dec=subtract, device=device,
        metadata=metadata, **options,
    )  # fmt: skip
    return Parts(
        SaeLens.name, "", network, file, site, hook=flat.text("hook_name"),
        target=None if target == site else target, model=model,
        model_fingerprint=flat.text("model_fingerprint"),
        l0=options.get("k", k) if flat.get("l0") is None else flat.number("l0"),
        mean_length=None if flat.get("mean_length") is None else flat.number("mean_length"),
    )  # fmt: skip


def scaled(network: Any, factor: float) -> None:
    """Write the constant by which an SAE scales its input into its weights.

    With s·x in place of x, z = (s·x − b_dec)·W_enc + b_enc = (x − b_dec/s)·(s·W_enc) + b_enc; what is decoded
    is divided by s. Latents stay as they are.
    """
    network.fold_activation_norm_scaling_factor(factor)


def _flat(config: Settings) -> Settings:
    """Every key under its present name, whether it stands at the top or under `metadata`.

    Of what describes the model, `metadata` counts; of anything else, the top.
    """
    values: dict[str, Any] = {}
    for stated in (config.values, config.mapping("metadata").values):
        for key, value in stated.items():
            name = _PRESENT.get(key, key)
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


def _architecture(flat: Settings) -> tuple[str, dict[str, Any]]:
    """The architecture that a config names, and its options: k of a TopK SAE."""
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


def _shapes(architecture: str, d_in: int, d_sae: int, d_out: int) -> Shapes:
    """The parameters of an architecture of sae_lens and their shapes."""
    biases = ("b_gate", "b_mag", "r_mag") if architecture == "gated" else ("b_enc",)
    if architecture.startswith("jumprelu"):
        biases = (*biases, "threshold")
    skipped: Shapes = {"W_skip": (d_out, d_in)} if "skip" in architecture else {}
    return {
        "W_enc": (d_in, d_sae), "W_dec": (d_sae, d_out), "b_dec": (d_out,),
        **{name: (d_sae,) for name in biases}, **skipped,
    }  # fmt: skip


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


# ------------------------------------------------------------------------------------------------- sparsify


class Sparsify(Layout):
    """SAEs of sparsify, such as EleutherAI/sae-llama-3-8b-32x.

        z = relu((x − b_dec) @ encoder.weightᵀ + encoder.bias), a = z at the k largest, x̂ = a @ W_dec + b_dec

    b_dec is subtracted whatever `normalize_decoder` says. `W_dec` is stored [latent d_in], like
    encoder.weight. `num_latents` 0 or absent stands for d_in · expansion_factor. The folder's name is the
    hookpoint: `layers.N` is that block's output (resid_post), `layers.N.mlp` the MLP's output,
    `layers.N.self_attn` the attention's, `embed_tokens` what the first block reads. The model's name stands
    in `../config.json`.

    Transcoders and skip connections, groupmax and signed latents have no sae_lens class and are refused.
    """

    name, config, weights = "sparsify", "cfg.json", ("sae.safetensors",)
    origin = "EleutherAI's sparsify, one folder per hookpoint"
    keys, tensor = ("num_latents", "expansion_factor", "normalize_decoder", "k"), "encoder.weight"
    published = (("EleutherAI/sae-llama-3-8b-32x/layers.14", "meta-llama/Meta-Llama-3-8B"),)

    def read(self, folder: Path, device: str, d_model: int | None = None) -> Parts:
        """Read an SAE that sparsify saved."""
        config, (file,) = settings(folder / self.config), self.weights
        plain = {"transcode": False, "skip_connection": False, "signed": False, "activation": "topk"}
        for key, value in plain.items():
            config.only(key, (value,), value)
        d_in = config.whole("d_in")
        refuse_width(config.what, d_in, d_model)
        if config.get("num_latents", 0) == 0:
            d_sae = int(d_in * config.number("expansion_factor"))
        else:
            d_sae = config.whole("num_latents")
        k = config.whole("k", most=d_sae)
        shapes: Shapes = {
            "encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,),
            "W_dec": (d_sae, d_in), "b_dec": (d_in,),
        }  # fmt: skip
        stored = take(config.what, file, read_tensors(folder, file), shapes)
        weights = {
            "W_enc": stored["encoder.weight"].T, "b_enc": stored["encoder.bias"],
            "W_dec": stored["W_dec"], "b_dec": stored["b_dec"],
        }  # fmt: skip
        name, above = folder.resolve().name, folder.resolve().parent / "config.json"
        model = settings(above).get("model") if above.is_file() else None
        model = model if isinstance(model, str) else None  # that folder's config may be another program's
        return self.parts(
            folder, file, "topk", weights, site=named_site(name), hook=name, model=model, l0=k, device=device,
            k=k,
        )  # fmt: skip


# --------------------------------------------------------------------------- Llama Scope and llamascopium

_LENGTHS = "dataset_average_activation_norm"


class _OpenMoss(Layout):
    """What Llama Scope and llamascopium share: trained on s·x with s = √d_model / the site's mean length.

    Mean lengths may stand among the weights, under "in" or the hook's name in any spelling; where the config
    names no hook, the only one that is stored names it.
    """

    def hooked(self, folder: Path, file: str, config: Settings) -> tuple[Settings, Tensors, Tensors]:
        """The settings, with the hook that is read, the tensors, and the mean lengths among them."""
        tensors = read_tensors(folder, file, under="sae")
        lengths = {
            name.removeprefix(f"{_LENGTHS}."): tensors.pop(name)
            for name in list(tensors) if name.startswith(f"{_LENGTHS}.")
        }  # fmt: skip
        hooks = lengths.keys() - {"in", "out"}
        if config.get("hook_point_in") is None and len(hooks) == 1:
            config = replace(config, values={**config.values, "hook_point_in": next(iter(hooks))})
        return config, tensors, lengths

    def lengths_read(self, config: Settings, file: str, lengths: Tensors) -> list[float]:
        """Those mean lengths that are of the activations that an SAE reads."""
        hook = config.text("hook_point_in")
        site, stated = None if hook is None else named_site(hook), []
        for key, tensor in lengths.items():
            if key in ("in", hook) or (site is not None and named_site(key) == site):
                name, value = f"{_LENGTHS}.{key}", tensor.item() if tensor.numel() == 1 else tensor.tolist()
                stated.append(Settings(config.what, file, {name: value}).scale(name))
        return stated

    def refuse_transcoder(self, config: Settings) -> None:
        """Raise a SaeError when an SAE reconstructs another activation than it reads."""
        reads, writes = config.text("hook_point_in"), config.text("hook_point_out")
        if writes is not None and reads != writes:
            config.refuse(
                "hook_point_out",
                f"It must be hook_point_in ({reads!r}): a transcoder of this layout reads a norm's output "
                "before its gain, which is no site here.",
            )

    def model(self, folder: Path) -> str | None:
        """The model named in lm_config.json, or the one that the folder's name stands for."""
        file = folder / "lm_config.json"
        name = settings(file).text("model_name") if file.is_file() else None
        scope = re.fullmatch(r"Llama3_1-8B-Base-L\d+[RMA]-\d+x", folder.resolve().name)
        return name or ("meta-llama/Llama-3.1-8B" if scope else None)


class LlamaScope(_OpenMoss):
    """SAEs of Llama Scope (He et al. 2024, arXiv 2410.20526).

    The threshold θ is stated in units of x. With v_f the length of decoder column f (1 in the released
    files),

        z_f = v_f · (encoder.weight_f · x + encoder.bias_f / s),   a_f = z_f where z_f > θ, else 0
        x̂ = Σ_f a_f · decoder.weight_f / v_f + decoder.bias / s

    so that x is read as it is and latents are in its units: a JumpReLU SAE that subtracts no b_dec first.
    Transcoders (LXTC) read their MLP's input before the norm's gain, which is no site of ours: refused.
    """

    name, config, weights = "llama_scope", "hyperparams.json", ("checkpoints/final.safetensors",)
    origin = "Llama Scope, one folder per layer"
    keys, tensor = ("d_model", "hook_point_in"), "encoder.weight"

    def read(self, folder: Path, device: str, d_model: int | None = None) -> Parts:
        """Read an SAE of Llama Scope."""
        config, (file,) = settings(folder / self.config), self.weights
        self.refuse_transcoder(config)
        plain = {
            "act_fn": "jumprelu", "norm_activation": "dataset-wise", "use_decoder_bias": True,
            "apply_decoder_bias_to_pre_encoder": False, "use_glu_encoder": False,
            "sparsity_include_decoder_norm": True,
        }  # fmt: skip
        for key, value in plain.items():
            config.only(key, (value,), value)
        d_in, d_sae = config.whole("d_model"), config.whole("d_sae")
        refuse_width(config.what, d_in, d_model)
        config, tensors, lengths = self.hooked(folder, file, config)
        shapes: Shapes = {
            "encoder.weight": (d_sae, d_in), "encoder.bias": (d_sae,),
            "decoder.weight": (d_in, d_sae), "decoder.bias": (d_in,),
        }  # fmt: skip
        stored = take(config.what, file, tensors, shapes)
        stated = [config.mapping(_LENGTHS).scale("in")] if config.get(_LENGTHS) is not None else []
        stated += self.lengths_read(config, file, lengths)
        if not stated:
            allowed = f"State the mean length of the activations it was trained on: {_LENGTHS}: {{in: …}}."
            config.refuse(_LENGTHS, allowed)
        if not math.isclose(min(stated), max(stated), rel_tol=0.01):
            config.refuse(_LENGTHS, f"{file} says {stated[-1]:g}: keep the one it was trained with.")
        s, threshold = math.sqrt(d_in) / stated[0], config.number("jump_relu_threshold", least=0)
        rows, v = unit_rows(stored["decoder.weight"].T)  # [latent d_in], [latent]
        weights = {
            "W_enc": stored["encoder.weight"].T * v, "b_enc": stored["encoder.bias"] / s * v,
            "W_dec": rows, "b_dec": stored["decoder.bias"] / s, "threshold": torch.full((d_sae,), threshold),
        }  # fmt: skip
        return self.parts(
            folder, file, "jumprelu", weights, site=config.site("hook_point_in"),
            hook=config.text("hook_point_in"), model=self.model(folder), subtract_b_dec=False, device=device,
            l0=None if config.get("top_k") is None else config.number("top_k"), mean_length=stated[0],
        )  # fmt: skip


class Llamascopium(_OpenMoss):
    """SAEs of OpenMOSS' llamascopium 2.

    With v_f the length of decoder row f (1 where `sparsity_include_decoder_norm` is false), and g one of
    ReLU, TopK or JumpReLU with threshold exp(log_jumprelu_threshold),

        z_f = v_f · (s·x @ W_E + b_E)_f,   a = g(z) / s,   x̂ = Σ_f a_f · W_D_f / v_f + b_D / s

    so latents are in units of x, as those of Llama Scope, and the threshold, which is compared with z, is
    divided by s. `norm_activation` says what s is:

        dataset-wise   √d_model / the mean length of the site's activations, which stands among the weights
        inference      1: the scale is folded in
        token-wise     √d_model / ‖x‖, sae_lens' constant_norm_rescale; a is not divided by it

    llamascopium writes whatever memory held where it knows no mean length, so that must lie within 1e-6 … 1e6
    here, and `iclens saes check` compares it with the model. Refused: other kinds (crosscoders, lorsa,
    transcoders), GLU encoders, BatchTopK (what it keeps depends on the other rows), lengths of each batch.
    """

    name, config, origin = "llamascopium", "config.json", "OpenMOSS' llamascopium 2, one folder per SAE"
    weights = (
        "sae_weights.safetensors", "sae_weights.pt",
        "checkpoints/pruned.safetensors", "checkpoints/final.safetensors",
    )  # fmt: skip
    keys, tensor = ("sae_type", "hook_point_in"), "W_E"
    architectures: ClassVar = {"relu": "standard", "topk": "topk", "jumprelu": "jumprelu"}
    normalisations: ClassVar = {
        "dataset-wise": "none",
        "inference": "none",
        "token-wise": "constant_norm_rescale",
    }

    def read(self, folder: Path, device: str, d_model: int | None = None) -> Parts:
        """Read an SAE of llamascopium."""
        config = settings(folder / self.config)
        config.only("sae_type", ("sae",), "sae")
        self.refuse_transcoder(config)
        config.only("use_glu_encoder", (False,), False)
        act_fn = config.only("act_fn", tuple(self.architectures), "relu")
        scaling = config.only("norm_activation", tuple(self.normalisations), "dataset-wise")
        d_in = config.whole("d_model")
        refuse_width(config.what, d_in, d_model)
        d_sae = int(d_in * config.number("expansion_factor"))
        file = next(name for name in self.weights if (folder / name).is_file())
        config, tensors, lengths = self.hooked(folder, file, config)
        theta, shapes = "activation_function.log_jumprelu_threshold", Shapes()
        shapes |= {"W_E": (d_in, d_sae), "b_E": (d_sae,), "W_D": (d_sae, d_in)}
        if config.flag("use_decoder_bias", default=True):
            shapes["b_D"] = (d_in,)
        if act_fn == "jumprelu":
            shapes[theta] = (d_sae,)
        if theta in tensors and tensors[theta].numel() == 1:  # one for all latents
            tensors[theta] = tensors[theta].reshape(1).expand(d_sae)
        stored = take(config.what, file, tensors, shapes)

        mean_length = self._mean_length(config, file, lengths) if scaling == "dataset-wise" else None
        s = 1.0 if mean_length is None else math.sqrt(d_in) / mean_length
        rows, v = unit_rows(stored["W_D"])  # [latent d_in], [latent]
        if not config.flag("sparsity_include_decoder_norm", default=True):
            rows, v = stored["W_D"], torch.ones(d_sae)
        weights = {
            "W_enc": stored["W_E"] * v, "b_enc": stored["b_E"] * v / s, "W_dec": rows,
            "b_dec": stored.get("b_D", torch.zeros(d_in)) / s,
        }  # fmt: skip
        if act_fn == "jumprelu":
            weights["threshold"] = stored[theta].exp() / s
            remedy = "It must hold logarithms of thresholds, below 80."
            subject = f"weights of SAE '{config.what}'"
            refuse_not_finite(subject, file, f"exp({theta})", weights["threshold"], remedy)
        k = config.whole("top_k", 50, most=d_sae) if act_fn == "topk" else None
        return self.parts(
            folder, file, self.architectures[act_fn], weights, site=config.site("hook_point_in"),
            hook=config.text("hook_point_in"), model=self.model(folder), subtract_b_dec=False, device=device,
            normalize_activations=self.normalisations[scaling], l0=k, mean_length=mean_length,
            **({} if k is None else {"k": k}),
        )  # fmt: skip

    def _mean_length(self, config: Settings, file: str, lengths: Tensors) -> float:
        """The mean length of the activations that it reads."""
        hooks = ", ".join(map(printable, lengths))
        if config.get("hook_point_in") is None and lengths:
            allowed = f"{file} holds the mean lengths of {hooks}: name the one it reads."
            config.refuse("hook_point_in", allowed)
        stated = self.lengths_read(config, file, lengths)
        if len(set(stated)) != 1:
            name = f"{_LENGTHS}.{config.get('hook_point_in', 'HOOK')}"
            raise SaeError(
                f"SAE '{config.what}'",
                f"norm_activation is 'dataset-wise', and {name} does not stand once in {file}, "
                f"which holds the mean lengths of {hooks or 'no hook'}",
                "Set it in llamascopium (set_dataset_average_activation_norm) and save again.",
            )  # fmt: skip
        return stated[0]


# --------------------------------------------------------------------------------------- dictionary_learning

_Built = tuple[str, Tensors, dict[str, Any], float | None]
"""sae_lens architecture, its weights, further options, and the mean L0 asked for in training."""


class DictionaryLearning(Layout):
    """Dictionaries of dictionary_learning, by their `dict_class`.

        AutoEncoder             a = relu((x − bias) @ Eᵀ + e);  decoder columns are made unit on loading, as
                                there, and a column of zeros stays zero, its latent dead
        AutoEncoderNew          a = relu(x @ Eᵀ + e)
        AutoEncoderTopK         the k largest of relu((x − b_dec) @ Eᵀ + e); its saved threshold is not used
        BatchTopK, Matryoshka…  relu((x − b_dec) @ Eᵀ + e) where it exceeds the threshold learnt in training
        JumpReluAutoEncoder     relu(x @ W_enc + b_enc) above a threshold per latent, one below 0 as 0
        GatedAutoEncoder        relu(exp(r_mag) · z + mag_bias) where z + gate_bias > 0, z = (x − b) @ Eᵀ

    k of the oldest TopK dictionaries stands in `config.json` alone; the oldest configs have the trainer's
    keys at the top. The site is read from `submodule_name` (`resid_post_layer_8`); where a config names only
    a layer, the caller must say which site it is.
    """

    name, config, weights = "dictionary_learning", "config.json", ("ae.pt",)
    origin = "dictionary_learning, one folder per trainer"
    keys, tensor = ("trainer", "dict_class"), ""
    published = (
        (
            "andyrdt/saes-llama-3.1-8b-instruct/resid_post_layer_3/trainer_1",
            "meta-llama/Llama-3.1-8B-Instruct",
        ),
    )

    def read(self, folder: Path, device: str, d_model: int | None = None) -> Parts:
        """Read a dictionary."""
        config, (file,) = settings(folder / self.config), self.weights
        trainer = config.mapping("trainer") if "trainer" in config.values else config
        name = trainer.text("dict_class")
        if name not in _CLASSES:
            trainer.refuse("dict_class", f"Known: {', '.join(_CLASSES)}.")
        d_in, d_sae = trainer.whole("activation_dim"), trainer.whole("dict_size")
        refuse_width(config.what, d_in, d_model)
        tensors = read_tensors(folder, file)
        architecture, weights, options, l0 = _CLASSES[name](_Trained(trainer, file, tensors, d_in, d_sae))
        model, (site, hook) = trainer.text("lm_name"), self._site(trainer, config)
        return self.parts(
            folder, file, architecture, weights, site=site, hook=hook, model=model, l0=l0, device=device,
            **options,
        )  # fmt: skip

    def _site(self, trainer: Settings, config: Settings) -> tuple[Site | None, str | None]:
        """The site that the buffer took of the module submodule_name, and how the files name it."""
        name, end = trainer.text("submodule_name"), config.mapping("buffer").get("io", "out")
        if name is None:
            return None, None
        site = named_site(name)
        if end == "out":
            return site, name
        # what a module reads is a site where it is a block or an MLP; a projection reads what is none
        whole = not name.endswith("_proj") and re.fullmatch(r"\w+?_layer_?\d+", name) is None
        into = {"resid_post": "resid_pre", "mlp_out": "mlp_in"} if whole and end == "in" else {}
        read = Site(site.layer, into[site.hook]) if site is not None and site.hook in into else None
        return read, f"{name} ({end})"


class _Trained:
    """A dictionary's trainer and tensors, and how the tensors of each class become weights of sae_lens."""

    def __init__(self, trainer: Settings, file: str, tensors: Tensors, d_in: int, d_sae: int) -> None:
        self.trainer, self.file, self.tensors, self.d_in, self.d_sae = trainer, file, tensors, d_in, d_sae
        self.linear: Shapes = {"encoder.weight": (d_sae, d_in), "decoder.weight": (d_in, d_sae)}
        self.matrices: Shapes = {
            "W_enc": (d_in, d_sae),
            "b_enc": (d_sae,),
            "W_dec": (d_sae, d_in),
            "b_dec": (d_in,),
        }

    def take(self, shapes: Shapes, without: tuple[str, ...] = ()) -> Tensors:
        rest = {name: value for name, value in self.tensors.items() if name not in without}
        return take(self.trainer.what, self.file, rest, shapes)

    def linear_weights(
        self, b_dec: str, extra: Shapes | None = None, without: tuple[str, ...] = ()
    ) -> Tensors:
        """Weights of nn.Linear layers, with b_dec and `extra` tensors under their own names."""
        shapes = self.linear | {"encoder.bias": (self.d_sae,), b_dec: (self.d_in,)} | (extra or {})
        stored = self.take(shapes, without)
        return {
            "W_enc": stored["encoder.weight"].T, "b_enc": stored["encoder.bias"],
            "W_dec": stored["decoder.weight"].T, "b_dec": stored[b_dec],
            **{name: stored[name] for name in extra or ()},
        }  # fmt: skip

    def k(self) -> int:
        """k, which stands among the tensors, in the config, or in both."""
        trainer, stored = self.trainer, self.tensors.get("k")
        if stored is None:
            return trainer.whole("k", most=self.d_sae)
        value = stored.item() if stored.numel() == 1 else stored.tolist()
        k = Settings(trainer.what, self.file, {"k": value}).whole("k", most=self.d_sae)
        if trainer.get("k") is not None and trainer.whole("k") != k:
            trainer.refuse("k", f"{self.file} says {k}: keep the one it was trained with.")
        return k

    def standard(self) -> _Built:
        weights = self.linear_weights("bias")
        weights["W_dec"], lengths = unit_rows(weights["W_dec"])
        weights |= {"W_enc": weights["W_enc"] * lengths, "b_enc": weights["b_enc"] * lengths}
        return "standard", weights, {}, None

    def new(self) -> _Built:
        return "standard", self.linear_weights("decoder.bias"), {"subtract_b_dec": False}, None

    def top_k(self) -> _Built:
        k = self.k()
        return "topk", self.linear_weights("b_dec", without=("k", "threshold")), {"k": k}, k

    def batch_top_k(self) -> _Built:
        """With the one threshold that BatchTopK training learnt; training that ended before has −1 there."""
        k = self.k()
        if "threshold" in self.tensors and self.tensors["threshold"].numel() == 1:
            self.tensors["threshold"] = self.tensors["threshold"].reshape(())
        if self.trainer.get("dict_class") == "BatchTopKSAE":
            weights = self.linear_weights("b_dec", {"threshold": ()}, without=("k",))
        else:
            weights = self.take(self.matrices | {"threshold": ()}, without=("k", "group_sizes"))
        refuse_unlearnt(self.trainer.what, self.file, float(weights["threshold"]), k)
        return "jumprelu", weights | {"threshold": weights["threshold"].expand(self.d_sae)}, {}, k

    def jump_relu(self) -> _Built:
        weights = self.take(self.matrices | {"threshold": (self.d_sae,)})
        weights["threshold"] = weights["threshold"].clamp_min(0)
        return "jumprelu", weights, {"subtract_b_dec": False}, None

    def gated(self) -> _Built:
        biases = {name: (self.d_sae,) for name in ("r_mag", "gate_bias", "mag_bias")}
        stored = self.take(self.linear | biases | {"decoder_bias": (self.d_in,)})
        weights = {
            "W_enc": stored["encoder.weight"].T, "W_dec": stored["decoder.weight"].T,
            "b_dec": stored["decoder_bias"],
            "b_gate": stored["gate_bias"], "b_mag": stored["mag_bias"], "r_mag": stored["r_mag"],
        }  # fmt: skip
        return "gated", weights, {}, None


_CLASSES: dict[str, Callable[[_Trained], _Built]] = {
    "AutoEncoder": _Trained.standard,
    "AutoEncoderNew": _Trained.new,
    "AutoEncoderTopK": _Trained.top_k,
    "BatchTopKSAE": _Trained.batch_top_k,
    "MatryoshkaBatchTopKSAE": _Trained.batch_top_k,
    "JumpReluAutoEncoder": _Trained.jump_relu,
    "GatedAutoEncoder": _Trained.gated,
}
"""dict_class → how its tensors become a sae_lens SAE."""

LAYOUTS: tuple[Layout, ...] = (SaeLens(), Sparsify(), LlamaScope(), DictionaryLearning(), Llamascopium())
