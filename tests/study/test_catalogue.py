"""What can be had for a model: from the registry and outside it."""

import pytest

from iclens.core import SaeError
from iclens.study.check_saes import catalogue


def test_everything_is_listed_without_a_model() -> None:
    found = catalogue(None)
    assert [name for name, _, _ in found.layouts] == [
        "sae_lens", "sparsify", "llama_scope", "dictionary_learning", "llamascopium",
    ]  # fmt: skip
    assert len(found.releases) > 100 and len(found.published) == 2


@pytest.mark.parametrize("spelling", ["llama-3-8b", "meta-llama/Meta-Llama-3-8B", "/models/Llama-3-8B"])
def test_a_model_is_found_under_any_spelling(spelling: str) -> None:
    found = catalogue(spelling)
    assert [ref for ref, _ in found.published] == ["EleutherAI/sae-llama-3-8b-32x/layers.14"]
    assert found.releases == ()  # the registry has the Instruct model's and Llama-3.1's, which are others


def test_the_registry_has_llama_scope() -> None:
    record = catalogue("Llama-3.1-8B").as_json()
    assert {"llama_scope_lxr_8x", "llama_scope_lxm_32x"} <= {r["name"] for r in record["releases"]}
    assert record["published"] == []


def test_a_model_without_any_names_the_nearest() -> None:
    with pytest.raises(SaeError, match="Nearest: llama-3-8b"):
        catalogue("llama-3-9b")
