"""The shipped model and tokens that it can read."""

from pathlib import Path

import numpy as np
import pytest

from iclens.models.load import LanguageModel, load_model
from iclens.tables.prompts import PromptSet
from iclens.tasks.prompts import build_prompts
from iclens.tasks.spec import parse_task

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
def prompts(tiny_model: LanguageModel) -> PromptSet:
    """Six prompts of five examples."""
    return build_prompts(tiny_model.tokenizer, parse_task("2x+3"), arm="T", n_prompts=6, n_examples=5, seed=3)


@pytest.fixture
def rng() -> np.random.Generator:
    """Fresh, the same for every test."""
    return np.random.default_rng(0)
