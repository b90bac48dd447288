"""Tracked arms of the shipped model, with small SAEs made in the test."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig

from iclens.models.forward import record
from iclens.models.load import LanguageModel, load_model
from iclens.names import Site
from iclens.saes.load import Sae
from iclens.tables.prompts import PromptSet
from iclens.tasks.prompts import build_prompts
from iclens.tasks.spec import parse_task
from iclens.tracking.track import Tracked, track

ROOT = Path(__file__).resolve().parents[2]
SITES = tuple(Site(layer, hook) for layer in (1, 2, 3) for hook in ("resid_post", "mlp_out"))
D_SAE, K = 192, 12
Build = Callable[..., PromptSet]


@pytest.fixture(scope="session")
def tiny_model() -> LanguageModel:
    """The shipped in-context learner."""
    return load_model(ROOT / "checkpoints" / "icl-tiny")


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
