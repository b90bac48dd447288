"""The shipped model, runs A and B on it, and SAEs made in the test."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig

from iclens.core import Site
from iclens.model.load import LanguageModel, load_model
from iclens.patching.runs import Runs, build_runs
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae

from ..conftest import InFloat64

ROOT = Path(__file__).resolve().parents[2]
D_SAE, K = 96, 12
MakeRuns = Callable[..., Runs]
MakeSae = Callable[..., Sae]


@pytest.fixture(scope="session")
def tiny_model() -> LanguageModel:
    """The shipped in-context learner."""
    return load_model(ROOT / "checkpoints" / "icl-tiny")


@pytest.fixture(scope="session")
def exact_model(tiny_model: LanguageModel, in_float64: InFloat64) -> LanguageModel:
    """The same in float64, so that rounding is out of the way."""
    return in_float64(tiny_model)


@pytest.fixture(scope="session")
def make_runs(tiny_model: LanguageModel) -> MakeRuns:
    """Runs of 2x+3 (or another task) with four examples (or another number)."""

    def make(
        recipient: str = "S arm", task: str = "2x+3", n_prompts: int = 8, donor_examples: int = 4
    ) -> Runs:
        return build_runs(
            tiny_model.tokenizer,
            parse_task(task),
            recipient=recipient,
            n_prompts=n_prompts,
            donor_examples=donor_examples,
            seed=7,
        )

    return make


@pytest.fixture(scope="session")
def make_sae(tiny_model: LanguageModel) -> MakeSae:
    """A TopK SAE with random weights at a site."""

    def make(site: str = "L2.resid_post", **settings: object) -> Sae:
        torch.manual_seed(0)
        network = TopKSAE(TopKSAEConfig(d_in=tiny_model.d_model, d_sae=D_SAE, k=K, **settings))  # pyright: ignore
        network.requires_grad_(False).eval()
        return Sae(Site.parse(site), "0" * 16, tiny_model.d_model, D_SAE, K, network, Path("."))

    return make


def same(runs: Runs) -> Runs:
    """Runs whose donor is the recipient itself."""
    return Runs(runs.task, runs.recipient, runs.recipient, runs.recipient)
