"""Fit: each gate lets through what belongs together and names what does not."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from iclens.core import Site
from iclens.model.load import LanguageModel, plain_name
from iclens.saes.load import Sae, load_sae, mismatches


@pytest.fixture
def sae(write_sae: Callable[..., Path]) -> Sae:
    return load_sae(write_sae(d_in=128, d_sae=256, k=12, hook=str(Site(1, "resid_post"))))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("meta-llama/Meta-Llama-3-8B", "Llama-3-8B", True),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3.1-8B", True),
        ("/cache/models--meta-llama--Meta-Llama-3-8B/snapshots/0123abc", "meta-llama/Meta-Llama-3-8B", True),
        ("checkpoints/icl-tiny", "icl_tiny", True),
        ("meta-llama/Llama-3.1-8B", "meta-llama/Meta-Llama-3-8B", False),
        ("meta-llama/Meta-Llama-3-8B-Instruct", "meta-llama/Meta-Llama-3-8B", False),
    ],
)
def test_a_models_spellings(one: str, other: str, same: bool) -> None:
    assert (plain_name(one) == plain_name(other)) is same


def test_what_fits_has_no_mismatch(sae: Sae, model: LanguageModel) -> None:
    assert mismatches(sae, model, l0=12, fvu=0.3) == ()
    assert mismatches(replace(sae, model="icl-tiny"), model, l0=4, fvu=0.8) == ()
    assert mismatches(replace(sae, model="any", model_fingerprint=model.fingerprint), model, 36, 0) == ()


def test_each_misfit_is_named(sae: Sae, model: LanguageModel) -> None:
    (text,) = mismatches(replace(sae, model="meta-llama/Meta-Llama-3-8B"), model, 12, 0.3)
    assert "made for 'meta-llama/Meta-Llama-3-8B', used on" in text and "icl-tiny" in text
    foreign = model.fingerprint[:-6] + "000000"
    (text,) = mismatches(replace(sae, model="icl-tiny", model_fingerprint=foreign), model, 12, 0.3)
    assert "made for 'icl-tiny', which has another final norm or head" in text
    assert mismatches(sae, model, 3.9, 0.3) == ("L0 is 3.9, its makers state 12",)
    assert mismatches(sae, model, 37, 0.3) == ("L0 is 37, its makers state 12",)
    assert mismatches(replace(sae, l0=None), model, 129, 0.3) == ("L0 is 129 of 128 dimensions",)
    assert mismatches(replace(sae, l0=None), model, 0.5, 0.3) == ("L0 is 0.5 of 128 dimensions",)
    assert mismatches(sae, model, 12, 0.81) == ("FVU is 0.81, above 0.8",)
    assert "undefined" in mismatches(sae, model, 12, float("nan"))[0]
    assert len(mismatches(replace(sae, model="other"), model, 100, 5.0)) == 3


def test_a_stated_length_is_held_to_the_model(sae: Sae, model: LanguageModel) -> None:
    stated = replace(sae, mean_length=10.0)
    assert (
        mismatches(stated, model, 12, 0.3, length=3.4) == mismatches(stated, model, 12, 0.3, length=29) == ()
    )
    assert mismatches(sae, model, 12, 0.3, length=300) == ()
    (text,) = mismatches(stated, model, 12, 0.3, length=31)
    assert text == "activations have a mean length of 31, its files state 10"
    assert len(mismatches(stated, model, 12, 0.3, length=3.2)) == 1
