"""Contributions of examples through heads add up to the pre-activation, token by token."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sae_lens import TopKSAE, TopKSAEConfig

from iclens.concepts.contributions import contributions
from iclens.core import SaeError, Site, SiteError
from iclens.model.attention import output_weights
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import record
from iclens.prompts.build import PromptSet, build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae
from iclens.tracking import latent_inputs

LATENTS = [3, 17]


def make_sae(model: LanguageModel, site: Site, **settings: str) -> Sae:
    """A TopK SAE with random weights."""
    torch.manual_seed(0)
    network = TopKSAE(TopKSAEConfig(d_in=model.d_model, d_sae=64, k=8, **settings))  # pyright: ignore
    torch.nn.init.normal_(network.W_enc, std=model.d_model**-0.5)
    torch.nn.init.normal_(network.b_enc)
    torch.nn.init.normal_(network.b_dec, std=0.1)
    network.requires_grad_(False).eval()
    return Sae(site, "0" * 16, model.d_model, 64, 8, network, Path("."))


@pytest.fixture(scope="module")
def tiny_model() -> LanguageModel:
    return load_model(Path(__file__).parents[2] / "checkpoints" / "icl-tiny")


@pytest.fixture(scope="module")
def prompts(tiny_model: LanguageModel) -> PromptSet:
    return build_prompts(tiny_model.tokenizer, parse_task("2x+3"), arm="T", n_prompts=5, n_examples=4, seed=0)


@pytest.mark.parametrize("site", [Site(3, "resid_post"), Site(2, "resid_mid"), Site(3, "resid_pre")])
@pytest.mark.parametrize("example", [-1, 1])
def test_they_add_up(site: Site, example: int, prompts: PromptSet, tiny_model: LanguageModel) -> None:
    """The rest, worked out by itself, is what embedding, MLPs and constants give."""
    sae = make_sae(tiny_model, site)
    made = contributions(tiny_model, sae, LATENTS, prompts, example=example, batch=2)
    at = prompts.positions("pre")[[example]]
    n_heads = {"resid_pre": site.layer, "resid_mid": site.layer + 1, "resid_post": site.layer + 1}[site.hook]
    n_mlps = site.layer + (site.hook == "resid_post")
    sites = [Site(0, "resid_pre"), *(Site(layer, "mlp_out") for layer in range(n_mlps))]
    acts = record(tiny_model, prompts.tokens, [*sites, site], at)
    summed = sum(acts[one][:, 0].astype(np.float64) for one in sites)
    wanted = latent_inputs(sae, np.asarray(summed, np.float32), np.array(LATENTS)).T
    np.testing.assert_allclose(made.rest, wanted, atol=1e-4, rtol=2e-5)
    total = latent_inputs(sae, acts[site][:, 0], np.array(LATENTS)).T
    np.testing.assert_allclose(made.parts.sum(axis=(2, 3, 4)) + made.rest, total, atol=1e-4, rtol=1e-6)
    shown = prompts.n_examples if example == -1 else example + 1
    assert made.parts.shape == (2, 5, n_heads, tiny_model.n_heads, 1 + shown)
    assert made.examples.shape == (2, 5, shown - 1)
    assert np.abs(made.examples).max() > 1e-3


def test_a_heads_parts_are_its_output(prompts: PromptSet, tiny_model: LanguageModel) -> None:
    sae = make_sae(tiny_model, Site(3, "resid_post"))
    made = contributions(tiny_model, sae, LATENTS, prompts)
    z = record(tiny_model, prompts.tokens, [Site(2, "z")], prompts.positions("pre")[[-1]])[Site(2, "z")]
    heads = z[:, 0].reshape(5, tiny_model.n_heads, tiny_model.d_head)
    written = np.einsum("rhd,hdm->rhm", heads, output_weights(tiny_model, 2).cpu().numpy())
    along = sae.network.W_enc[:, LATENTS].detach().cpu().numpy()
    np.testing.assert_allclose(
        made.parts[:, :, 2].sum(axis=-1), np.einsum("rhm,ml->lrh", written, along), atol=1e-4, rtol=2e-5
    )


def test_what_cannot_be_split_is_refused(prompts: PromptSet, tiny_model: LanguageModel) -> None:
    with pytest.raises(SiteError, match=r"contributions at L2\.mlp_out: it is no sum of what heads write"):
        contributions(tiny_model, make_sae(tiny_model, Site(2, "mlp_out")), LATENTS, prompts)
    with pytest.raises(SiteError, match="latent 100000"):
        contributions(tiny_model, make_sae(tiny_model, Site(2, "resid_post")), [100000], prompts)
    with pytest.raises(SaeError, match="it normalises inputs"):
        contributions(
            tiny_model,
            make_sae(tiny_model, Site(2, "resid_post"), normalize_activations="layer_norm"),
            LATENTS,
            prompts,
        )
