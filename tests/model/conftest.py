"""The shipped model and tokens that it can read."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from iclens.model.load import LanguageModel, load_model
from iclens.prompts.build import PromptSet, build_prompts
from iclens.prompts.tasks import parse_task

from ..conftest import InFloat64

FOLDER = Path(__file__).resolve().parents[2] / "checkpoints" / "icl-tiny"


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    """Where the shipped in-context learner lies."""
    return FOLDER


@pytest.fixture(scope="session")
def tiny_model(tiny_folder: Path) -> LanguageModel:
    """The shipped in-context learner."""
    return load_model(tiny_folder)


@pytest.fixture(scope="session")
def exact_model(tiny_model: LanguageModel, in_float64: InFloat64) -> LanguageModel:
    """The same in float64, so that rounding is out of the way."""
    return in_float64(tiny_model)


@pytest.fixture(scope="session")
def prompts(tiny_model: LanguageModel) -> PromptSet:
    """Six prompts of five examples."""
    return build_prompts(tiny_model.tokenizer, parse_task("2x+3"), arm="T", n_prompts=6, n_examples=5, seed=3)


@pytest.fixture
def saved_model(tiny_folder: Path, tmp_path: Path) -> Callable[..., Path]:
    """Saves a model of random weights, small and with the shipped tokenizer, and gives its folder."""

    def save(kind: str = "llama", seed: int = 0, name: str = "", **changes: Any) -> Path:
        torch.manual_seed(seed)
        shape = {
            "vocab_size": 1078, "hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 3,
            "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
            "bos_token_id": 0, "eos_token_id": None, "pad_token_id": None, "initializer_range": 0.15,
        }  # fmt: skip
        network: Any = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **(shape | changes)))
        with torch.no_grad():  # transformers starts biases and norms at 0 and 1, where nothing shows
            for key, values in network.named_parameters():
                if key.endswith("bias") or "norm" in key:
                    values.add_(0.3 * torch.randn_like(values))
        folder = tmp_path / (name or f"{kind}-{seed}")
        network.save_pretrained(folder)
        for file in ("tokenizer.json", "tokenizer_config.json"):
            shutil.copy(tiny_folder / file, folder)
        return folder

    return save


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh, the same for every test."""
    return np.random.default_rng(0)
