"""Loading: what sae_lens reads, and every refusal in one line."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from sae_lens import SAE

from iclens.core import SaeError, Site
from iclens.model.load import LanguageModel
from iclens.saes.load import load_sae, load_sae_set

from .layouts import LAYOUTS, native, rows, write

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


def refused(call: Callable[[], object], *words: str) -> None:
    with pytest.raises(SaeError) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    assert all(word in message for word in words), message


def test_a_missing_folder_or_file_is_refused(tmp_path: Path, write_sae: Write) -> None:
    refused(lambda: load_sae(tmp_path / "nowhere"), "nowhere", "no such folder")
    for file in ("cfg.json", "sae_weights.safetensors"):
        folder = write_sae(file, hook=HOOK)
        (folder / file).unlink()
        refused(lambda folder=folder: load_sae(folder), file, "missing")


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_weights_are_refused(write_sae: Write, share: float) -> None:
    folder = write_sae(hook=HOOK)
    weights = folder / "sae_weights.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[: int(share * len(content))])
    refused(lambda: load_sae(folder), "cannot be read")


def test_a_damaged_config_is_refused(write_sae: Write) -> None:
    folder = write_sae(hook=HOOK)
    (folder / "cfg.json").write_text('{"d_in": 8,')
    refused(lambda: load_sae(folder), "cfg.json is not JSON")
    (folder / "cfg.json").write_text("[]")
    refused(lambda: load_sae(folder), "not a mapping")


def test_weights_of_another_shape_than_the_config_are_refused(write_sae: Write) -> None:
    folder = write_sae(hook=HOOK)
    change(folder, d_sae=25)
    refused(lambda: load_sae(folder), "W_enc is [8, 24]", "[8, 25]")


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


def test_old_configs_call_it_hook_point(write_sae: Write) -> None:
    folder = write_sae(hook=HOOK)
    config = json.loads((folder / "cfg.json").read_text())
    metadata = config.pop("metadata")
    old = config | {"hook_point": metadata["hook_name"], "hook_point_layer": 1}
    (folder / "cfg.json").write_text(json.dumps(old))
    assert load_sae(folder).site == Site(1, "mlp_out")


def test_input_normalisation_by_constants_of_the_training_data_is_refused(write_sae: Write) -> None:
    folder = write_sae(hook=HOOK)
    change(folder, normalize_activations="expected_average_only_in")
    refused(lambda: load_sae(folder), "normalize_activations", "expected_average_only_in")


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
    saes = load_sae_set(tmp_path, model)
    assert [site.short for site in saes] == ["L1.mlp_out", "L1.resid_post", "L2.mlp_out"]
    assert all(sae.site == site for site, sae in saes.items())


def test_a_set_of_another_model_width_or_layer_is_refused(
    write_sae: Write, tmp_path: Path, model: LanguageModel
) -> None:
    refused(lambda: load_sae_set(tmp_path / "no", model), "no such folder")
    refused(lambda: load_sae_set(tmp_path, model), "card.json is missing", "iclens saes check", "--out")
    card(tmp_path, model)
    refused(lambda: load_sae_set(tmp_path, model), "holds no SAE")
    write_sae("L1.mlp_out", d_in=128, hook=HOOK)
    card(tmp_path, model, name="twin", fingerprint="000000" + model.fingerprint[6:])
    refused(lambda: load_sae_set(tmp_path, model), "twin", "another config")
    card(tmp_path, model, name="a/b", fingerprint="0123456789abcdef")  # as earlier versions wrote it
    refused(lambda: load_sae_set(tmp_path, model), "a/b", "icl-tiny")
    card(tmp_path, model)
    assert len(load_sae_set(tmp_path, model)) == 1
    write_sae("deep", d_in=128, hook="blocks.6.hook_mlp_out")
    refused(lambda: load_sae_set(tmp_path, model), "L6.mlp_out", "6 blocks")
    write_sae("deep", d_in=128, hook=HOOK)
    refused(lambda: load_sae_set(tmp_path, model), "stands twice")
    write_sae("deep", d_in=64, hook="blocks.2.hook_mlp_out")
    refused(lambda: load_sae_set(tmp_path, model), "width is 64")


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
    refused(lambda: load_sae_set(tmp_path, model), "card.json", "It must be", next(iter(entry)))


def test_no_member_of_a_set_is_passed_over(write_sae: Write, tmp_path: Path, model: LanguageModel) -> None:
    card(tmp_path, model)
    write_sae("L1.mlp_out", d_in=128, hook=HOOK)
    half = write_sae("L2.mlp_out", d_in=128, hook="blocks.2.hook_mlp_out")
    (tmp_path / "metrics").mkdir()
    assert len(load_sae_set(tmp_path, model)) == 2
    (half / "cfg.json").unlink()
    refused(lambda: load_sae_set(tmp_path, model), "L2.mlp_out", "cfg.json is missing")
    shutil.rmtree(half)
    shutil.copytree(Path(__file__).parent / "fixtures" / "dictionary_learning" / "topk", tmp_path / "learnt")
    refused(lambda: load_sae_set(tmp_path, model), "learnt", "its width is 8")
