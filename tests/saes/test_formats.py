"""Names are found on disk and on the hub; a root, a half or a model's folder is called what it is."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors
import torch
from sae_lens import SAE, TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import save_file

from iclens.core import SaeError, Site
from iclens.saes import formats as registry
from iclens.saes.formats import releases
from iclens.saes.load import load_sae

from . import layouts
from .layouts import HOOK, LAYOUTS, SITE, llamascopium, refused, write, write_scopium

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


SPARSIFY, LEARNT = FIXTURES / "sparsify", FIXTURES / "dictionary_learning"

Write = Callable[..., Path]


@pytest.mark.parametrize("beside", [{"model": {"name": "x"}}, {"model": 5}, {"architectures": ["Llama"]}, {}])
def test_the_config_above_an_sae_may_be_another_programs(tmp_path: Path, beside: dict[str, Any]) -> None:
    folder = write(tmp_path / "layers.2", "sparsify")
    (tmp_path / "config.json").write_text(json.dumps(beside))
    assert load_sae(folder).model is None
    (tmp_path / "config.json").write_text('{"model": "gpt2"}')
    assert load_sae(folder).model == "gpt2"
    (tmp_path / "config.json").write_text("{")
    refused(lambda: load_sae(folder), "config.json is not JSON")


def test_a_config_of_another_program_is_not_taken_for_the_missing_one(tmp_path: Path) -> None:
    folder = write(tmp_path / "sae", "sae_lens topk")
    (folder / "cfg.json").unlink()
    (folder / "config.json").write_text('{"tags": ["sae"]}')
    refused(lambda: load_sae(folder), "cfg.json is missing beside sae_weights.safetensors (sae_lens)")
    (folder / "sae_weights.safetensors").unlink()
    refused(lambda: load_sae(folder), "no SAE in a known layout", "config.json has the keys tags")


def test_a_root_names_its_saes_in_every_layout(tmp_path: Path, write_scope: Write, write_sae: Write) -> None:
    shutil.copytree(SPARSIFY, tmp_path / "sparsify")
    (tmp_path / "sparsify" / "config.json").write_text('{"hookpoints": ["layers.2"]}')
    for trainer in range(2):
        shutil.copytree(LEARNT / "topk", tmp_path / "learnt" / "resid_post_layer_3" / f"trainer_{trainer}")
    write_scope(tmp_path / "scope" / "Llama3_1-8B-Base-L2R-8x")
    shutil.copytree(write_sae("one", hook=HOOK), tmp_path / "native" / "L2.resid_post")
    write_scopium(tmp_path / "scopium" / "L2", *llamascopium())
    for root, inner in (
        ("sparsify", "layers.2, layers.3.mlp"), ("learnt", "resid_post_layer_3/trainer_0"),
        ("learnt/resid_post_layer_3", "trainer_0, trainer_1"), ("scope", "Llama3_1-8B-Base-L2R-8x"),
        ("native", "L2.resid_post"), ("scopium", "L2"), (".", "native/L2.resid_post"),
    ):  # fmt: skip
        message = refused(lambda root=root: load_sae(tmp_path / root), inner, "Name one: '")
        assert "missing" not in message
        named = message.split("Name one: '")[1].split("'")[0]
        assert load_sae(named, site=SITE if "sparsify" not in named else None)


@pytest.mark.parametrize("config", [{"model_type": "llama"}, {"architectures": ["LlamaForCausalLM"]}])
def test_a_language_model_that_holds_saes_names_them(tmp_path: Path, config: dict[str, Any]) -> None:
    shutil.copytree(SPARSIFY / "layers.2", tmp_path / "layers.2")
    (tmp_path / "config.json").write_text(json.dumps(config))
    refused(lambda: load_sae(tmp_path), "a language model", "holds 1 SAE: layers.2", "Name one: '")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": None, "model": "gpt2"}))
    message = refused(lambda: load_sae(tmp_path), "it is no SAE but holds 1 SAE: layers.2")
    assert "language model" not in message


@pytest.mark.parametrize("layout", ["llama_scope", "llamascopium"])
def test_a_folder_inside_an_sae_names_that_sae(tmp_path: Path, write_scope: Write, layout: str) -> None:
    folder = tmp_path / "sae"
    if layout == "llama_scope":
        write_scope(folder)
    else:
        write_scopium(folder, *llamascopium(), "checkpoints/final.safetensors")
    refused(lambda: load_sae(folder / "checkpoints"), f"({layout})", f"Name the folder above: '{folder}'")
    assert load_sae(folder)


@pytest.mark.parametrize(
    ("layout", "name", "words"),
    [
        ("sae_lens topk", "sae_weights.pt", "save_file(torch.load('sae_weights.pt', weights_only=True), "),
        ("sae_lens topk", "sae.bin", "save_file(torch.load('sae.bin', weights_only=True), "),
        ("sparsify", "model.safetensors", "move it to sae.safetensors"),
        ("llama_scope", "final.safetensors", "move it to checkpoints/final.safetensors"),
        ("dictionary_learning AutoEncoder", "ae.safetensors", "torch.save(safetensors.torch.load_file("),
    ],
)
def test_weights_under_another_name_are_named_with_what_writes_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, layout: str, name: str, words: str
) -> None:
    folder = write(tmp_path / "layers.2", layout)
    weights, target = layouts.stored(folder, layout), LAYOUTS[layout][1]
    (folder / target).unlink()
    if name.endswith(".safetensors"):
        save_file(weights, folder / name)
    else:
        torch.save(weights, folder / name)
    message = refused(lambda: load_sae(folder), f"{target} is missing", f"where {name} stands", words)
    assert "Fetch" not in message
    if "Python by" in message:
        monkeypatch.chdir(folder)
        command = message.split("Python by ")[1].rstrip(".")
        exec(command, {"torch": torch, "safetensors": safetensors})  # noqa: S102 - as its reader would
    else:
        shutil.move(folder / name, folder / target)
    assert load_sae(folder, site=SITE)


@pytest.mark.parametrize(
    "name", ["params.npz", "final_sparse_autoencoder.pt", "final_sparse_autoencoder_x.pt"]
)
def test_files_of_the_registry_alone_are_named_with_where_they_are_read(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    message = refused(lambda: load_sae(tmp_path), name, "release/sae_id", "iclens saes list")
    release, sae_id = message.split("such as ")[1].split(":")[0].split("/", 1)
    assert sae_id in next(listed.sae_ids for listed in releases() if listed.name == release)


def test_a_language_model_is_called_one(tmp_path: Path) -> None:
    for config in ({"model_type": "llama", "hidden_size": 8}, {"architectures": ["LlamaForCausalLM"]}):
        (tmp_path / "config.json").write_text(json.dumps(config))
        message = refused(lambda: load_sae(tmp_path), "a language model, not an SAE", "--model")
        assert "ae.pt" not in message


@pytest.mark.parametrize(
    ("layout", "gone", "words"),
    [
        ("native", "cfg.json", ("cfg.json is missing", "(sae_lens)")),
        ("native", "sae_weights.safetensors", ("sae_weights.safetensors is missing", "(sae_lens)")),
        ("sparsify", "cfg.json", ("cfg.json is missing", "(sparsify)")),
        ("sparsify", "sae.safetensors", ("sae.safetensors is missing", "(sparsify)")),
        ("scope", "hyperparams.json", ("hyperparams.json is missing", "(llama_scope)")),
        ("scope", "checkpoints/final.safetensors", ("final.safetensors is missing", "(llama_scope)")),
        ("learnt", "config.json", ("config.json is missing", "(dictionary_learning)")),
        ("learnt", "ae.pt", ("ae.pt is missing", "(dictionary_learning)")),
        ("scopium", "config.json", ("config.json is missing", "(llamascopium)")),
        ("scopium", "sae_weights.safetensors", ("sae_weights.safetensors", "is missing", "(llamascopium)")),
    ],
)
def test_a_half_names_the_other_half_and_its_layout(
    tmp_path: Path, write_scope: Write, write_sae: Write, layout: str, gone: str, words: tuple[str, ...]
) -> None:
    folder = tmp_path / "half"
    if layout == "native":
        shutil.copytree(write_sae(hook=HOOK), folder)
    elif layout == "scope":
        write_scope(folder)
    elif layout == "scopium":
        write_scopium(folder, *llamascopium())
    else:
        shutil.copytree(LEARNT / "topk" if layout == "learnt" else SPARSIFY / "layers.2", folder)
    assert load_sae(folder, site=SITE)
    (folder / gone).unlink()
    others = {"sae_lens", "sparsify", "llama_scope", "dictionary_learning", "llamascopium"}
    message = refused(lambda: load_sae(folder), *words)
    assert sum(f"({other})" in message for other in others) == 1


def test_a_file_or_a_pointer_is_called_what_it_is(tmp_path: Path, write_sae: Write) -> None:
    folder = write_sae(hook=HOOK)
    refused(lambda: load_sae(folder / "sae_weights.safetensors"), "a file", f"'{folder}'")
    (folder / "sae_weights.safetensors").write_text("version https://git-lfs.example/spec/v1\nsize 4\n")
    refused(lambda: load_sae(folder), "Git LFS pointer", "git lfs pull")
