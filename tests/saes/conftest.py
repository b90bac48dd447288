"""Small SAEs with known weights, and the shipped model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from iclens.model.load import LanguageModel, load_model

from . import layouts

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


@pytest.fixture
def write_scope() -> Write:
    """Write random weights as fnlp/Llama3_1-8B-Base-LXR-8x lays them out."""

    def write(folder: Path, dtype: torch.dtype = torch.bfloat16, **changes: Any) -> Path:
        config, weights = layouts.llama_scope()
        raw = {name: tensor.to(dtype) for name, tensor in weights.items()}
        return layouts.write(folder, "llama_scope", config | changes, raw)

    return write
