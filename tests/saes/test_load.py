"""Loading, fit and converting: what SAELens computes, each gate, and every refusal in one line."""

import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, JumpReLUTranscoder, JumpReLUTranscoderConfig, __version__
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file

from iclens.core import SaeError, Site
from iclens.model.load import LanguageModel, plain_name
from iclens.saes.load import Sae, convert, load_sae, load_saes, mismatches

from .layouts import LAYOUTS, native, refused, rows, write

HOOK = "blocks.1.hook_mlp_out"

Write = Callable[..., Path]


def test_loaded_sae_encodes_as_sae_lens_does(write_sae: Write) -> None:
    folder = write_sae(hook=HOOK)
    sae, theirs = load_sae(folder), SAE.load_from_disk(folder)
    x = torch.randn(50, 8, generator=torch.Generator().manual_seed(0))
    assert (sae.site, sae.d_in, sae.d_sae, sae.k) == (Site(1, "mlp_out"), 8, 24, 4)
    torch.testing.assert_close(sae.encode(x), theirs.encode(x), rtol=0, atol=0)
    torch.testing.assert_close(sae.decode(sae.encode(x)), theirs(x), rtol=0, atol=0)
    assert not sae.encode(x).requires_grad


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name.startswith("sae_lens")])
def test_every_architecture_computes_what_sae_lens_does(tmp_path: Path, name: str) -> None:
    folder = write(tmp_path / "sae", name)
    sae, theirs = load_sae(folder), SAE.load_from_disk(folder)
    assert type(sae.network) is type(theirs) and sae.network.cfg.metadata.model_name == "gpt2"
    with torch.no_grad():
        latents = theirs.encode(rows())
        assert torch.equal(sae.encode(rows()), latents)
        assert torch.equal(sae.reconstruct(rows(), latents), theirs(rows()))


def test_norms_of_decoder_rows_are_written_into_the_weights(tmp_path: Path) -> None:
    config, weights = native("topk")
    folder = write(
        tmp_path / "sae", "sae_lens topk", config | {"rescale_acts_by_decoder_norm": True}, weights
    )
    sae, theirs = load_sae(folder), SAE.load_from_disk(folder)
    with torch.no_grad():
        latents = theirs.encode(rows())
        torch.testing.assert_close(sae.encode(rows()), latents)
        torch.testing.assert_close(sae.decode(latents), theirs.decode(latents))
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(len(sae.W_dec)))
    assert not sae.network.cfg.rescale_acts_by_decoder_norm


def test_encode_leaves_no_state(write_sae: Write) -> None:
    sae = load_sae(write_sae(hook=HOOK))
    x = torch.randn(20, 8, generator=torch.Generator().manual_seed(1))
    before = {name: value.clone() for name, value in sae.network.state_dict().items()}
    names, alone = set(vars(sae.network)), sae.encode(x[:1])
    sae.decode(sae.encode(x))
    torch.testing.assert_close(sae.encode(x)[:1], alone)
    assert set(vars(sae.network)) == names
    assert all(torch.equal(before[name], value) for name, value in sae.network.state_dict().items())


def test_fingerprint_follows_the_weights(write_sae: Write) -> None:
    one, same = write_sae("one", hook=HOOK), write_sae("same", hook=HOOK)
    other = write_sae("other", hook=HOOK, b_dec=torch.ones(8))
    assert load_sae(one).sae_id == load_sae(same).sae_id != load_sae(other).sae_id
    assert re.fullmatch("[0-9a-f]{16}", load_sae(one).sae_id)


def change(folder: Path, **keys: object) -> None:
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | keys))


def test_a_damaged_config_is_refused(write_sae: Write) -> None:
    folder = write_sae(hook=HOOK)
    (folder / "cfg.json").write_text('{"d_in": 8,')
    refused(lambda: load_sae(folder), "cfg.json is not JSON")
    (folder / "cfg.json").write_text("[]")
    refused(lambda: load_sae(folder), "not a mapping")


def test_another_width_site_or_architecture_is_refused(write_sae: Write) -> None:
    folder = write_sae(hook=HOOK)
    refused(lambda: load_sae(folder, d_model=16), "width is 8", "16")
    refused(lambda: load_sae(write_sae("none")), "names no site")
    assert load_sae(write_sae("given"), site=Site(2, "mlp_out")).site == Site(2, "mlp_out")
    refused(lambda: load_sae(write_sae("z", hook="blocks.1.attn.hook_z")), "hook_z")
    change(folder, architecture="perceptron")
    refused(lambda: load_sae(folder), "perceptron")


@pytest.mark.parametrize(
    ("hook", "named"),
    [
        (HOOK, "L1.mlp_out"), ("blocks.1.mlp.hook_out", "L1.mlp_out"), ("model.layers.1.mlp", "L1.mlp_out"),
        ("blocks.1.hook_out", "L1.resid_post"), ("layers.1", "L1.resid_post"),
    ],
)  # fmt: skip
def test_names_that_others_use_are_read_and_a_site_that_is_asked_for_counts(
    write_sae: Write, hook: str, named: str
) -> None:
    folder = write_sae(hook=hook)
    assert (load_sae(folder).site.short, load_sae(folder).named) == (named, None)
    moved, same = load_sae(folder, site=Site(2, "attn_out")), load_sae(folder, site=Site.parse(named))
    assert (moved.site.short, str(moved.named), same.named) == ("L2.attn_out", str(Site.parse(named)), None)


@pytest.mark.parametrize("kind", ["none", "layer_norm", "constant_norm_rescale"])
def test_input_normalisation_is_undone_as_sae_lens_does_and_leaves_nothing(
    write_sae: Write, kind: str
) -> None:
    folder = write_sae(hook=HOOK)
    change(folder, normalize_activations=kind)
    sae, theirs = load_sae(folder), SAE.load_from_disk(folder)
    assert sae.normalisation == kind
    x = 3 + 7 * torch.randn(5, sae.d_in, generator=torch.Generator().manual_seed(0))
    before = set(sae.network.__dict__)
    latents = sae.encode(x)
    assert set(sae.network.__dict__) == before
    torch.testing.assert_close(latents, theirs.encode(x))
    torch.testing.assert_close(sae.reconstruct(x, latents), theirs.decode(latents))
    one = latents.clone()
    one[:, 3] += 2.0
    theirs.encode(x)
    change_of_3 = 2.0 * sae.scale(x)[:, None] * sae.W_dec[3]
    torch.testing.assert_close(
        theirs.decode(one) - sae.reconstruct(x, latents), change_of_3, atol=1e-4, rtol=1e-4
    )
    assert set(sae.network.__dict__) == before


def card(folder: Path, model: LanguageModel, **keys: str) -> None:
    named = {"name": model.name, "fingerprint": model.fingerprint} | keys
    (folder / "card.json").write_text(json.dumps({"model": named}))


def test_a_set_is_loaded_in_the_order_of_sites(
    write_sae: Write, tmp_path: Path, model: LanguageModel
) -> None:
    for hook in ("blocks.2.hook_mlp_out", "blocks.1.hook_resid_post", HOOK):
        write_sae(Site.parse(hook).short, d_in=128, hook=hook)
    card(tmp_path, model)
    saes = load_saes(tmp_path, model)
    assert [site.short for site in saes] == ["L1.mlp_out", "L1.resid_post", "L2.mlp_out"]
    assert all(sae.site == site for site, sae in saes.items())


def test_a_set_of_another_model_width_or_layer_is_refused(
    write_sae: Write, tmp_path: Path, model: LanguageModel
) -> None:
    refused(lambda: load_saes(tmp_path / "no", model), "no such folder")
    refused(lambda: load_saes(tmp_path, model), "card.json is missing", "iclens saes check", "--out")
    card(tmp_path, model)
    refused(lambda: load_saes(tmp_path, model), "holds no SAE")
    write_sae("L1.mlp_out", d_in=128, hook=HOOK)
    card(tmp_path, model, name="twin", fingerprint="000000" + model.fingerprint[6:])
    refused(lambda: load_saes(tmp_path, model), "twin", "another config")
    card(tmp_path, model, name="a/b", fingerprint="0123456789abcdef")  # as earlier versions wrote it
    refused(lambda: load_saes(tmp_path, model), "a/b", "icl-tiny")
    card(tmp_path, model)
    assert len(load_saes(tmp_path, model)) == 1
    write_sae("deep", d_in=128, hook="blocks.6.hook_mlp_out")
    refused(lambda: load_saes(tmp_path, model), "L6.mlp_out", "6 blocks")
    write_sae("deep", d_in=128, hook=HOOK)
    refused(lambda: load_saes(tmp_path, model), "stands twice")
    write_sae("deep", d_in=64, hook="blocks.2.hook_mlp_out")
    refused(lambda: load_saes(tmp_path, model), "width is 64")


@pytest.mark.parametrize(
    "entry",
    [
        {"model": "icl-tiny"}, {"model": {"name": 5}}, {"mismatches": ["FVU"]},
        {"mismatches": {"L1.mlp_out": "FVU"}}, {"mismatches": {"L1.mlp_out": [1]}},
    ],
)  # fmt: skip
def test_a_card_of_other_types_is_refused(
    write_sae: Write, tmp_path: Path, model: LanguageModel, entry: dict[str, object]
) -> None:
    write_sae("L1.mlp_out", d_in=128, hook=HOOK)
    card(tmp_path, model)
    (tmp_path / "card.json").write_text(json.dumps(json.loads((tmp_path / "card.json").read_text()) | entry))
    refused(lambda: load_saes(tmp_path, model), "card.json", "It must be", next(iter(entry)))


def test_no_member_of_a_set_is_passed_over(write_sae: Write, tmp_path: Path, model: LanguageModel) -> None:
    card(tmp_path, model)
    write_sae("L1.mlp_out", d_in=128, hook=HOOK)
    half = write_sae("L2.mlp_out", d_in=128, hook="blocks.2.hook_mlp_out")
    (tmp_path / "metrics").mkdir()
    assert len(load_saes(tmp_path, model)) == 2
    (half / "cfg.json").unlink()
    refused(lambda: load_saes(tmp_path, model), "L2.mlp_out", "cfg.json is missing")
    shutil.rmtree(half)
    shutil.copytree(Path(__file__).parent / "fixtures" / "dictionary_learning" / "topk", tmp_path / "learnt")
    refused(lambda: load_saes(tmp_path, model), "learnt", "its width is 8")


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


FIXTURES = Path(__file__).parent / "fixtures"

SITE = Site(2, "resid_post")


@pytest.mark.parametrize(
    "name",
    ["sparsify/layers.2"]
    + [
        f"dictionary_learning/{name}"
        for name in ("standard", "new", "topk", "batchtopk", "jumprelu", "gated")
    ],
)
def test_sae_lens_opens_what_was_converted(tmp_path: Path, name: str) -> None:
    folder = convert(FIXTURES / name, tmp_path / "out", site=SITE)
    theirs: Any = SAE.load_from_disk(folder)
    expected = load_file(FIXTURES / name / "expected.safetensors")
    with torch.no_grad():
        acts = theirs.encode(expected["x"])
        assert torch.equal(acts > 0, expected["acts"] > 0)
        near = 1e-5 * float(expected["acts"].abs().max())
        torch.testing.assert_close(acts, expected["acts"], rtol=0, atol=near)
        x_hat = expected["x_hat"]
        torch.testing.assert_close(theirs(expected["x"]), x_hat, rtol=0, atol=1e-5 * float(x_hat.abs().max()))
    original, again = load_sae(FIXTURES / name, site=SITE), load_sae(folder)
    assert (again.site, again.model, again.l0, again.layout) == (
        SITE,
        original.model,
        original.l0,
        "sae_lens",
    )
    assert theirs.cfg.metadata.converted_from == {"layout": original.layout, "sae_id": original.sae_id}
    found = again.encode(expected["x"])
    torch.testing.assert_close(found, original.encode(expected["x"]), rtol=0, atol=near)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(SaeError, match="it exists"):
        convert(FIXTURES / "sparsify" / "layers.2", tmp_path / "there")
    with pytest.raises(SaeError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(SaeError, match="names no site"):
        convert(FIXTURES / "dictionary_learning" / "new", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(SaeError, match="cannot be written"):
        convert(FIXTURES / "sparsify" / "layers.2", tmp_path / "file" / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"there", "file"}


def test_a_site_that_is_asked_for_counts_and_what_the_files_name_is_kept(tmp_path: Path) -> None:
    folder = convert(FIXTURES / "sparsify/layers.2", tmp_path / "out", site=Site(5, "mlp_out"))
    metadata: Any = SAE.load_from_disk(folder).cfg.metadata
    assert (metadata.hook_name, metadata.hook_layer) == ("blocks.5.hook_mlp_out", 5)
    assert metadata.hook_name_in_its_files == "blocks.2.hook_resid_post"
    assert load_sae(folder).site == Site(5, "mlp_out")


def test_a_transcoder_keeps_where_it_reads_and_writes(tmp_path: Path) -> None:
    metadata = SAEMetadata(hook_name="blocks.2.mlp.hook_in", hook_name_out="blocks.2.hook_mlp_out")
    network = JumpReLUTranscoder(
        JumpReLUTranscoderConfig(d_in=8, d_out=8, d_sae=24, apply_b_dec_to_input=False, metadata=metadata)
    )
    with torch.no_grad():
        network.b_dec.fill_(3.0)
    network.save_model(tmp_path / "transcoder")
    sae = load_sae(convert(tmp_path / "transcoder", tmp_path / "out"))
    with pytest.raises(SaeError, match="it is a transcoder from"):
        load_sae(tmp_path / "transcoder", site=Site(5, "mlp_in"))
    assert (sae.site, sae.target, sae.output) == (Site(2, "mlp_in"), Site(2, "mlp_out"), Site(2, "mlp_out"))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), network.encode(x))


def test_a_half_written_folder_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save: Callable[..., Any] = SAE.save_model

    def spoilt(self: Any, path: Path) -> Any:
        self.b_dec.data.add_(1.0)
        written = save(self, path)
        self.b_dec.data.sub_(1.0)
        return written

    monkeypatch.setattr(SAE, "save_model", spoilt)
    with pytest.raises(SaeError, match="b_dec was not written as it is"):
        convert(FIXTURES / "sparsify" / "layers.2", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_metadata_of_any_kind_are_kept_or_left_out(tmp_path: Path) -> None:
    config, weights = native("standard")
    strange = {
        "get": 1,
        "to_dict": "x",
        "self": 2,
        "": 3,
        "loss": float("nan"),
        "context_size": 64,
        "__class__": "x",
    }
    config["metadata"] |= strange | {"sae_lens_version": "5.0.0", "model_from_pretrained_kwargs": {"a": 1}}
    folder = convert(write(tmp_path / "sae", "sae_lens standard", config, weights), tmp_path / "out")
    theirs: Any = load_sae(folder).network
    assert theirs.cfg.metadata.context_size == 64 and theirs.cfg.metadata.hook_name == str(SITE)
    assert json.loads((folder / "cfg.json").read_text())["metadata"]["sae_lens_version"] == __version__
