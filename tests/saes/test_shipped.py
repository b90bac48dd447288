"""The shipped SAEs of the built-in model, on contexts drawn with a seed of this test's own."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from sae_lens import SAE

from iclens.core import position
from iclens.model.load import LanguageModel
from iclens.model.run import record
from iclens.prompts.build import TokenTable
from iclens.prompts.mixture import Mixture
from iclens.saes.load import load_saes
from iclens.saes.quality import measure_quality
from iclens.schemas import QualityTable

CHECKPOINTS = Path(__file__).resolve().parents[2] / "checkpoints"
SAES = CHECKPOINTS / "icl-tiny-saes"
EXAMPLES = 16


@pytest.fixture(scope="module")
def tokens(model: LanguageModel) -> np.ndarray:
    mixture = Mixture.from_dict(yaml.safe_load((CHECKPOINTS / "icl-tiny" / "mixture.yaml").read_text()))
    contexts = mixture.sample(np.random.default_rng(20_250_101), 112, EXAMPLES)
    return TokenTable.of(mixture, model.tokenizer).assemble(contexts)


@pytest.fixture(scope="module")
def quality(model: LanguageModel, tokens: np.ndarray) -> QualityTable:
    pre = [position("pre", j) for j in range(EXAMPLES)]
    return measure_quality(model, load_saes(SAES, model), tokens, pre=pre)


def test_there_are_residual_and_mlp_saes_of_three_layers(quality: QualityTable) -> None:
    assert list(quality["site"]) == [
        f"blocks.{layer}.hook_{hook}" for layer in (1, 2, 3) for hook in ("mlp_out", "resid_post")
    ]


def test_they_are_sparse_faithful_and_alive(quality: QualityTable) -> None:
    np.testing.assert_allclose(quality["l0"], quality["k"], rtol=5e-3)  # a latent counts only above 0
    assert quality["fvu"].max() <= 0.10
    assert quality["ce_recovered"].min() >= 0.95
    assert quality["dead"].max() <= 0.10
    assert set(quality["reason"]) == {""}


def test_sae_lens_gives_the_same_encodings(model: LanguageModel, tokens: np.ndarray) -> None:
    saes = load_saes(SAES, model)
    found = record(model, tokens[:8], list(saes), np.arange(1, tokens.shape[1]))
    for site, sae in saes.items():
        theirs: Any = SAE.load_from_disk(SAES / site.short)
        x = sae.W_dec.new_tensor(found[site]).flatten(0, 1)
        assert (sae.encode(x) - theirs.encode(x)).abs().max() <= 1e-5
        written_out = (theirs.b_enc + (x - theirs.b_dec) @ theirs.W_enc).topk(theirs.cfg.k, dim=1)
        assert (written_out.values.relu() - sae.encode(x).gather(1, written_out.indices)).abs().max() <= 1e-3
