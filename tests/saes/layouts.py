"""Small SAEs with random weights in every layout, for tests that change something in them."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclens.core import SaeError, Site

SITE = Site(2, "resid_post")
HOOK = str(SITE)
D_IN, D_SAE, K = 8, 24, 4
LENGTH = f"dataset_average_activation_norm.{HOOK}"
Raw = dict[str, Tensor]


def drawn(**shapes: tuple[int, ...]) -> Raw:
    """Tensors with normal entries, the same in every call."""
    generator = torch.Generator().manual_seed(3)
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


def rows(n: int = 40) -> Tensor:
    """Activations, [row d_in]."""
    return 2 * torch.randn(n, D_IN, generator=torch.Generator().manual_seed(1)) + 0.5


def native(architecture: str = "standard") -> tuple[dict[str, Any], Raw]:
    """Config and weights as sae_lens 6 writes them."""
    transcodes = "transcoder" in architecture
    config = {
        "d_in": D_IN, "d_sae": D_SAE, "dtype": "float32", "device": "cpu",
        "apply_b_dec_to_input": not transcodes, "normalize_activations": "none",
        "reshape_activations": "none", "architecture": architecture,
        "metadata": {"hook_name": HOOK, "model_name": "gpt2", "sae_lens_version": "6.5.0"},
    }  # fmt: skip
    weights = drawn(W_enc=(D_IN, D_SAE), W_dec=(D_SAE, D_IN), b_dec=(D_IN,), b_enc=(D_SAE,))
    if architecture == "topk":
        config["k"] = K
    if architecture.startswith("jumprelu"):
        weights["threshold"] = torch.full((D_SAE,), 0.5)
    if architecture == "gated":
        weights |= {"b_gate": weights.pop("b_enc"), **drawn(b_mag=(D_SAE,), r_mag=(D_SAE,))}
    if transcodes:
        config["d_out"] = D_IN
        config["metadata"]["hook_name_out"] = "blocks.2.hook_mlp_out"
    if "skip" in architecture:
        weights |= drawn(W_skip=(D_IN, D_IN))
    return config, weights


def sparsify() -> tuple[dict[str, Any], Raw]:
    """Config and weights as sparsify writes them."""
    config = {
        "expansion_factor": D_SAE // D_IN, "normalize_decoder": True, "num_latents": 0, "k": K, "d_in": D_IN,
        "transcode": False, "skip_connection": False, "signed": False, "activation": "topk",
    }  # fmt: skip
    weights = drawn(W_dec=(D_SAE, D_IN), b_dec=(D_IN,))
    return config, weights | drawn(**{"encoder.weight": (D_SAE, D_IN), "encoder.bias": (D_SAE,)})


def llama_scope() -> tuple[dict[str, Any], Raw]:
    """Config and weights as Llama Scope's are published."""
    config = {
        "hook_point_in": HOOK, "hook_point_out": HOOK, "d_model": D_IN, "d_sae": D_SAE, "act_fn": "jumprelu",
        "jump_relu_threshold": 1.25, "norm_activation": "dataset-wise", "use_decoder_bias": True,
        "dataset_average_activation_norm": {"in": 4.5, "out": 4.5}, "top_k": K,
        "apply_decoder_bias_to_pre_encoder": False, "sparsity_include_decoder_norm": True,
    }  # fmt: skip
    shapes = {"encoder.weight": (D_SAE, D_IN), "encoder.bias": (D_SAE,)}
    return config, drawn(**shapes, **{"decoder.weight": (D_IN, D_SAE), "decoder.bias": (D_IN,)})


def llamascopium(act_fn: str = "jumprelu", **changes: Any) -> tuple[dict[str, Any], Raw]:
    """Config and weights as llamascopium 2 writes them."""
    config = {
        "sae_type": "sae", "hook_point_in": HOOK, "hook_point_out": HOOK, "d_model": D_IN,
        "expansion_factor": D_SAE / D_IN, "act_fn": act_fn, "norm_activation": "dataset-wise", "top_k": K,
        "sparsity_include_decoder_norm": True, "use_decoder_bias": True, "use_glu_encoder": False,
        "jumprelu_threshold_window": 2.0, "dtype": "torch.float32", "device": "cpu",
    }  # fmt: skip
    weights = drawn(W_E=(D_IN, D_SAE), b_E=(D_SAE,), W_D=(D_SAE, D_IN), b_D=(D_IN,))
    weights[LENGTH] = torch.tensor(7.0)
    if act_fn == "jumprelu":
        weights["activation_function.log_jumprelu_threshold"] = torch.linspace(-1, 1, D_SAE)
    return config | changes, weights


def dictionary(name: str = "AutoEncoderTopK") -> tuple[dict[str, Any], Raw]:
    """Config and weights as dictionary_learning writes them."""
    trainer = {
        "dict_class": name, "activation_dim": D_IN, "dict_size": D_SAE, "layer": 2, "lm_name": "gpt2",
        "submodule_name": "resid_post_layer_2",
    }  # fmt: skip
    linear = {"encoder.weight": (D_SAE, D_IN), "decoder.weight": (D_IN, D_SAE)}
    matrices = {"W_enc": (D_IN, D_SAE), "b_enc": (D_SAE,), "W_dec": (D_SAE, D_IN), "b_dec": (D_IN,)}
    shapes: dict[str, dict[str, tuple[int, ...]]] = {
        "AutoEncoder": linear | {"encoder.bias": (D_SAE,), "bias": (D_IN,)},
        "AutoEncoderNew": linear | {"encoder.bias": (D_SAE,), "decoder.bias": (D_IN,)},
        "AutoEncoderTopK": linear | {"encoder.bias": (D_SAE,), "b_dec": (D_IN,)},
        "BatchTopKSAE": linear | {"encoder.bias": (D_SAE,), "b_dec": (D_IN,)},
        "MatryoshkaBatchTopKSAE": matrices, "JumpReluAutoEncoder": matrices,
        "GatedAutoEncoder": linear | {
            "decoder_bias": (D_IN,), "r_mag": (D_SAE,), "gate_bias": (D_SAE,), "mag_bias": (D_SAE,),
        },
    }  # fmt: skip
    weights = drawn(**shapes[name])
    if "TopK" in name:
        trainer["k"] = K
        weights["k"] = torch.tensor(K, dtype=torch.int)
    if "BatchTopK" in name:
        weights["threshold"] = torch.tensor(1.5)
    if name == "JumpReluAutoEncoder":
        weights["threshold"] = torch.full((D_SAE,), 0.5)
    return {"trainer": trainer, "buffer": {"ctx_len": 128, "io": "out"}}, weights


LAYOUTS = {
    **{f"sae_lens {name}": ("cfg.json", "sae_weights.safetensors", native(name)) for name in (
        "standard", "topk", "jumprelu", "gated", "transcoder", "jumprelu_transcoder", "skip_transcoder",
        "jumprelu_skip_transcoder",
    )},
    "sparsify": ("cfg.json", "sae.safetensors", sparsify()),
    "llama_scope": ("hyperparams.json", "checkpoints/final.safetensors", llama_scope()),
    **{f"llamascopium {name}": ("config.json", "sae_weights.safetensors", llamascopium(name)) for name in (
        "jumprelu", "topk", "relu",
    )},
    **{f"dictionary_learning {name}": ("config.json", "ae.pt", dictionary(name)) for name in (
        "AutoEncoder", "AutoEncoderNew", "AutoEncoderTopK", "BatchTopKSAE", "MatryoshkaBatchTopKSAE",
        "JumpReluAutoEncoder", "GatedAutoEncoder",
    )},
}  # fmt: skip
"""Layout and architecture → its config's name, its weights' name, and what both hold."""


def write(folder: Path, layout: str, config: Any = None, weights: Mapping[str, Any] | None = None) -> Path:
    """Write an SAE of a layout; its own config and weights where none are given."""
    config_name, weights_name, (own_config, own_weights) = LAYOUTS[layout]
    file = folder / weights_name
    file.parent.mkdir(parents=True, exist_ok=True)
    text = config if isinstance(config, str) else json.dumps(own_config if config is None else config)
    (folder / config_name).write_text(text)
    tensors = dict(own_weights if weights is None else weights)
    if file.suffix == ".pt":
        torch.save(tensors, file)
    else:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)
    return folder


def stored(folder: Path, layout: str) -> Raw:
    """The tensors of a folder's weights."""
    file = folder / LAYOUTS[layout][1]
    return torch.load(file, weights_only=True) if file.suffix == ".pt" else load_file(file)


def write_scopium(
    folder: Path, config: dict[str, Any], weights: Raw, file: str = "sae_weights.safetensors"
) -> Path:
    (folder / file).parent.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(config))
    if file.endswith(".pt"):
        torch.save({"sae": weights, "version": "2.0.0"}, folder / file)
    else:
        save_file(weights, folder / file)
    return folder


def refused(call: Callable[[], object], *words: str) -> str:
    with pytest.raises(SaeError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message
