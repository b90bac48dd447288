"""The hub: names are resolved by sae_lens' registry, fetched once, and read by the reader they need."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata

from iclens.core import SaeError, Site
from iclens.saes import formats as registry
from iclens.saes.load import load_sae

FIXTURES = Path(__file__).parent / "fixtures"
Asked = list[tuple[str, Any]]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Asked:
    """A hub whose every repository is `tmp_path`; what was asked of it."""
    asked: Asked = []

    def fetched(repository: str, allow_patterns: list[str]) -> str:
        asked.append((repository, allow_patterns))
        return str(tmp_path)

    monkeypatch.setattr(registry, "snapshot_download", fetched)
    return asked


def test_a_folder_of_a_repository(tmp_path: Path, hub: Asked) -> None:
    shutil.copytree(FIXTURES / "sparsify", tmp_path, dirs_exist_ok=True)
    sae = load_sae("EleutherAI/sae-llama-3-8b-32x/layers.3.mlp")
    assert (sae.site, sae.model) == (Site(3, "mlp_out"), "meta-llama/Meta-Llama-3-8B")
    assert sae.sae_id == load_sae(FIXTURES / "sparsify" / "layers.3.mlp").sae_id
    ((repository, patterns),) = hub
    assert repository == "EleutherAI/sae-llama-3-8b-32x"
    assert "layers.3.mlp/*" in patterns and "config.json" in patterns and "*" not in patterns


def test_a_release_of_llama_scope_is_read_by_our_reader(
    tmp_path: Path, hub: Asked, write_scope: Callable[[Path], Path]
) -> None:
    write_scope(tmp_path / "Llama3_1-8B-Base-L15R-8x")
    sae = load_sae("llama_scope_lxr_8x/l15r_8x")
    assert (sae.layout, sae.model, sae.l0) == ("llama_scope", "meta-llama/Llama-3.1-8B", 50)
    assert hub[0][0] == "fnlp/Llama3_1-8B-Base-LXR-8x"


def test_another_release_is_converted_by_sae_lens(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Asked = []

    def pretrained(release: str, sae_id: str, **_: Any) -> SAE[Any]:
        asked.append((release, sae_id))
        metadata = SAEMetadata(hook_name="blocks.25.hook_resid_post", model_name="Meta-Llama-3-8B-Instruct")
        return TopKSAE(TopKSAEConfig(d_in=8, d_sae=24, k=4, metadata=metadata))

    monkeypatch.setattr(registry.SAE, "from_pretrained", pretrained)
    sae = load_sae("llama-3-8b-it-res-jh/blocks.25.hook_resid_post")
    assert asked == [("llama-3-8b-it-res-jh", "blocks.25.hook_resid_post")]
    assert (sae.site, sae.k, sae.l0) == (Site(25, "resid_post"), 4, 4)
    assert sae.encode(torch.ones(1, 8)).shape == (1, 24)


@pytest.mark.parametrize(
    "cause", [AssertionError(), TimeoutError(), KeyError("W_enc"), ZeroDivisionError("a\nb")]
)
def test_whatever_a_loader_of_sae_lens_raises_is_one_line(
    monkeypatch: pytest.MonkeyPatch, cause: Exception
) -> None:
    def fails(*_: Any, **__: Any) -> None:
        raise cause

    monkeypatch.setattr(registry.SAE, "from_pretrained", fails)
    monkeypatch.setattr(registry, "snapshot_download", fails)
    with pytest.raises(SaeError, match="sae_lens cannot load it") as caught:
        load_sae("llama-3-8b-it-res-jh/blocks.25.hook_resid_post")
    assert "\n" not in str(caught.value)
    if isinstance(cause, OSError):
        with pytest.raises(SaeError, match="cannot be fetched"):
            load_sae("EleutherAI/sae-llama-3-8b-32x/layers.10")


def test_a_folder_that_a_repository_lacks_is_named(tmp_path: Path, hub: Asked) -> None:
    shutil.copytree(FIXTURES / "sparsify", tmp_path, dirs_exist_ok=True)
    with pytest.raises(SaeError, match=r"repository 'a/b' has no folder 'layers\.99'"):
        load_sae("a/b/layers.99")
    with pytest.raises(SaeError, match="owner/repository/folder"):
        load_sae("EleutherAI/sae-llama-3-8b-32x")


def test_a_normalisation_that_stays_unfolded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    network = TopKSAE(TopKSAEConfig(d_in=8, d_sae=24, k=4, normalize_activations="expected_average_only_in"))
    monkeypatch.setattr(registry.SAE, "from_pretrained", lambda *_, **__: network)
    with pytest.raises(SaeError, match="normalize_activations is 'expected_average_only_in'"):
        load_sae("llama-3-8b-it-res-jh/blocks.25.hook_resid_post")


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("llama_scope_lxr_8x/l99r_8x", "has no 'l99r_8x'. Nearest: "),
        ("llama_scope_lxr_88x/l15r_8x", "Nearest: llama_scope_lxr_8x"),
        ("EleutherAI/sae-llama-3-8b-32x/layers.10", "cannot be fetched"),
        ("llama_scope_lxr_8x/l15r_8x", "cannot be fetched"),
    ],
)
def test_a_name_that_is_not_there(ref: str, words: str) -> None:
    with pytest.raises(SaeError) as caught:
        load_sae(ref)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_a_path_is_never_looked_up_on_the_hub(tmp_path: Path, hub: Asked) -> None:
    for ref in (str(tmp_path / "a" / "b"), "./a/b/c", "nowhere", Path("a/b/c")):
        with pytest.raises(SaeError, match="no such folder"):
            load_sae(ref)
    assert hub == []


def test_releases_name_their_model_and_saes() -> None:
    found = {release.name: release for release in registry.releases()}
    scope = found["llama_scope_lxm_32x"]
    assert scope.model == "meta-llama/Llama-3.1-8B" and "l31m_32x" in scope.sae_ids
    assert list(found) == sorted(found)
    assert json.dumps(scope.sae_ids)
