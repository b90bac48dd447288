"""Tracked arms of the shipped model, with small SAEs made in the test."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig

from iclens.core import Site
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import record
from iclens.prompts.build import PromptSet, build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae
from iclens.tracking import Tracked, track

from ..conftest import InFloat64

ROOT = Path(__file__).resolve().parents[2]
SITES = tuple(Site(layer, hook) for layer in (1, 2, 3) for hook in ("resid_post", "mlp_out"))
D_SAE, K = 192, 12
Build = Callable[..., PromptSet]


@pytest.fixture(scope="session")
def tiny_model() -> LanguageModel:
    """The shipped in-context learner."""
    return load_model(ROOT / "checkpoints" / "icl-tiny")


@pytest.fixture(scope="session")
def exact_model(tiny_model: LanguageModel, in_float64: InFloat64) -> LanguageModel:
    """The same in float64, so that rounding is out of the way."""
    return in_float64(tiny_model)


def steady(found: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Which columns of two encodings [latent …] have the same latents; all values agree as float32 may.

    SAEs multiply in float32, and by another order of sums in another batch: two latents at the edge of the k
    largest may change places where they are equal but for rounding.
    """
    apart, size = np.abs(found - wanted), np.maximum(found, wanted).max(axis=0)
    near, lone = apart <= 1e-5 * size, (found > 0) != (wanted > 0)
    edge = np.where(np.minimum(found, wanted) > 0, wanted, np.inf).min(axis=0)
    assert (near | (lone & (apart <= edge + 1e-5 * size))).all()
    kept = near.all(axis=0)
    assert (~kept).sum() <= 1 + kept.size // 20
    return kept


@pytest.fixture(scope="session")
def build(tiny_model: LanguageModel) -> Build:
    """Prompts of the task 2x+3 (or another) in an arm."""

    def prompts(
        arm: str, n_prompts: int = 64, n_examples: int = 16, task: str = "2x+3", seed: int = 5
    ) -> PromptSet:
        return build_prompts(
            tiny_model.tokenizer,
            parse_task(task),
            arm=arm,
            n_prompts=n_prompts,
            n_examples=n_examples,
            seed=seed,
        )

    return prompts


def sampled_sae(site: Site, rows: np.ndarray, seed: int) -> Sae:
    """A TopK SAE whose latents are directions of sampled activations, so that all of them mean something."""
    rng = np.random.default_rng(seed)
    centre = rows.mean(axis=0)
    chosen = rows[rng.choice(len(rows), D_SAE, replace=False)] - centre
    directions = chosen / np.linalg.norm(chosen, axis=1, keepdims=True)
    weights = torch.tensor(directions, dtype=torch.float32)
    d_in = rows.shape[1]
    network = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=D_SAE, k=K, apply_b_dec_to_input=True))
    state = {
        "W_enc": weights.T.clone(),
        "W_dec": weights,
        "b_enc": torch.zeros(D_SAE),
        "b_dec": torch.tensor(centre),
    }
    network.load_state_dict(state)
    network.requires_grad_(False).eval()
    return Sae(site, f"sampled{seed}", d_in, D_SAE, K, network, Path("sampled"))


@pytest.fixture(scope="session")
def saes(tiny_model: LanguageModel, build: Build) -> dict[Site, Sae]:
    """Site → SAE at six sites."""
    tokens = build("R", n_prompts=32, seed=77).tokens
    seen = record(tiny_model, tokens, SITES, np.arange(tokens.shape[1]))
    return {
        site: sampled_sae(site, values.reshape(-1, tiny_model.d_model), i)
        for i, (site, values) in enumerate(seen.items())
    }


@pytest.fixture(scope="session")
def arms(tiny_model: LanguageModel, saes: dict[Site, Sae], build: Build) -> tuple[Tracked, Tracked]:
    """Arms T and S of 2x+3, tracked at six sites and four roles."""
    return track(tiny_model, saes, build("T")), track(tiny_model, saes, build("S"))
