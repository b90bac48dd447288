"""Small SAEs with known weights, and the shipped model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file

from iclens.model.load import LanguageModel, load_model

ROOT = Path(__file__).resolve().parents[2]
Write = Callable[..., Path]


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    return load_model(ROOT / "checkpoints" / "icl-tiny")


@pytest.fixture
def write_sae(tmp_path: Path) -> Write:
    """Write a TopK SAE with random weights, some of them replaced, as sae_lens saves it."""

    def write(
        name: str = "sae",
        d_in: int = 8,
        d_sae: int = 24,
        k: int = 4,
        hook: str | None = None,
        **weights: object,
    ) -> Path:
        metadata = SAEMetadata(**({} if hook is None else {"hook_name": hook}))
        network = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=d_sae, k=k, metadata=metadata))
        generator = torch.Generator().manual_seed(d_in + d_sae)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
            for key, value in weights.items():
                getattr(network, key).copy_(value)
        network.save_model(tmp_path / name)
        return tmp_path / name

    return write


HYPERPARAMS = {
    "hook_point_in": "blocks.2.hook_resid_post", "hook_point_out": "blocks.2.hook_resid_post", "d_model": 8,
    "d_sae": 32, "expansion_factor": 4, "act_fn": "jumprelu", "jump_relu_threshold": 1.25,
    "norm_activation": "dataset-wise", "dataset_average_activation_norm": {"in": 4.5, "out": 4.5},
    "use_decoder_bias": True, "apply_decoder_bias_to_pre_encoder": False, "top_k": 8,
    "sparsity_include_decoder_norm": True, "device": "cuda:0", "seed": 42, "dtype": "torch.bfloat16",
}  # fmt: skip
"""What a Llama Scope folder says of itself, at a small shape."""


@pytest.fixture
def write_scope() -> Write:
    """Write random weights as fnlp/Llama3_1-8B-Base-LXR-8x lays them out."""

    def write(folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
        generator = torch.Generator().manual_seed(0)
        shapes = {
            "encoder.weight": (32, 8), "encoder.bias": (32,), "decoder.weight": (8, 32), "decoder.bias": (8,),
        }  # fmt: skip
        raw = {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}
        (folder / "checkpoints").mkdir(parents=True)
        save_file(raw, folder / "checkpoints" / "final.safetensors")
        (folder / "hyperparams.json").write_text(json.dumps(HYPERPARAMS | changes))
        return folder

    return write
