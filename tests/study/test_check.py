"""Checking SAEs against a model: refuse what does not fit, or go on and keep that on the record."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from iclens.core import ROLES, SaeError, Site
from iclens.model.load import load_model
from iclens.saes.load import load_saes
from iclens.study.check_saes import Checked, check_saes
from iclens.study.grid import quality_prompts
from iclens.study.inputs import CHECKOUT

CHECKPOINTS = CHECKOUT / "checkpoints"
MODEL, TWIN, SAES = (CHECKPOINTS / name for name in ("icl-tiny", "icl-tiny-twin", "icl-tiny-saes"))
ONE = SAES / "L2.mlp_out"


@pytest.fixture(scope="module")
def checked() -> Checked:
    return check_saes([str(ONE)], str(MODEL))


def test_a_fitting_sae_is_measured_at_every_role(checked: Checked) -> None:
    table = checked.fidelity.df.set_index("role")
    assert list(table.index) == ["all", *ROLES]
    assert checked.mismatches == {} and checked.folder is None
    assert table.loc["all", "fvu"] < 0.1 and table.loc["all", "ce_recovered"] > 0.95
    assert table.loc["pre", "n_tokens"] * len(ROLES) < table.loc["all", "n_tokens"]
    assert list(checked.quality["mismatch"]) == [""]
    assert json.loads(json.dumps(checked.as_json()))["mismatches"] == {}


def test_figures_at_all_positions_are_means_over_the_roles(checked: Checked) -> None:
    table = checked.fidelity.df.set_index("role")
    roles = table.loc[list(ROLES)]
    newline = table.loc["all", "n_tokens"] - roles["n_tokens"].sum()  # the one before the first example
    l0 = (roles["l0"] * roles["n_tokens"]).sum()
    rest = (table.loc["all", "l0"] * table.loc["all", "n_tokens"] - l0) / newline
    assert 0 < newline < 0.02 * table.loc["all", "n_tokens"] and 0 < rest <= 32


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first dozen prompts of the grid only."""
    monkeypatch.setattr(
        "iclens.study.check_saes.quality_prompts", lambda *a: quality_prompts(*a).select(np.arange(12))
    )


@pytest.mark.usefixtures("few")
def test_a_site_that_is_asked_for_counts_and_the_card_says_so(tmp_path: Path) -> None:
    out = tmp_path / "set"
    check_saes([str(ONE)], str(MODEL), site=Site(3, "mlp_out"), misfit="record", out=out)
    sources = json.loads((out / "card.json").read_text())["sources"]
    assert sources["L3.mlp_out"]["its files name"] == "L2.mlp_out"


@pytest.mark.usefixtures("few")
def test_bfloat16_changes_little(checked: Checked) -> None:
    found = check_saes([str(ONE)], str(MODEL), dtype="bfloat16").fidelity.df.set_index("role")
    whole, half = checked.fidelity.df.set_index("role").loc["all"], found.loc["all"]
    assert half.fvu == pytest.approx(whole.fvu, abs=0.02)
    assert half.ce_recovered == pytest.approx(whole.ce_recovered, abs=0.05)


def spoilt(folder: Path) -> Path:
    """An SAE whose encoder reads the wrong dimensions."""
    shutil.copytree(ONE, folder)
    weights = load_file(folder / "sae_weights.safetensors")
    weights["W_dec"] = weights["W_dec"].flip(1).contiguous()
    save_file(weights, folder / "sae_weights.safetensors")
    return folder


@pytest.mark.usefixtures("few")
def test_a_misfit_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(SaeError) as caught:
        check_saes([str(spoilt(tmp_path / "spoilt"))], str(MODEL))
    message = str(caught.value)
    assert "FVU is" in message and "--force" in message and "\n" not in message
    with pytest.raises(SaeError, match="made for 'checkpoints/icl-tiny'"):
        check_saes([str(ONE)], str(TWIN))
    with pytest.raises(SaeError, match="used on"):
        check_saes([str(SAES)], str(TWIN))


@pytest.mark.usefixtures("few")
def test_a_forced_misfit_is_kept_in_the_set_and_in_every_table(tmp_path: Path) -> None:
    folder = tmp_path / "made" / "set"
    bad = spoilt(tmp_path / "spoilt")
    found = check_saes([str(bad), str(SAES / "L1.mlp_out")], str(TWIN), misfit="record", out=folder)
    site, good = Site(2, "mlp_out"), Site(1, "mlp_out")
    assert set(found.mismatches) == {site, good} and found.folder == folder
    assert any("FVU" in text for text in found.mismatches[site])
    assert any("made for" in text for text in found.mismatches[good])
    assert all(found.quality["mismatch"] != "")
    card: dict[str, Any] = json.loads((folder / "card.json").read_text())
    assert card["mismatches"]["L2.mlp_out"] == list(found.mismatches[site])
    saes = load_saes(folder, load_model(TWIN))
    assert saes[site].mismatches == found.mismatches[site]
    np.testing.assert_array_equal(saes[site].W_dec, load_file(bad / "sae_weights.safetensors")["W_dec"])
    with pytest.raises(SaeError, match="made for"):
        load_saes(folder, load_model(MODEL))
    again = check_saes([str(folder)], str(TWIN), misfit="record")
    assert again.mismatches == found.mismatches


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("layout", ["llamascopium", "llama_scope"])
def test_a_mean_length_that_memory_held_is_no_length_of_the_model(tmp_path: Path, layout: str) -> None:
    """The weights of a good SAE beside three lengths: the model's own, and two that memory may have held."""
    weights = load_file(SAES / "L2.resid_post" / "sae_weights.safetensors")
    site, key = "blocks.2.hook_resid_post", "dataset_average_activation_norm"
    config: dict[str, Any] = {"hook_point_in": site, "hook_point_out": site, "d_model": 128, "d_sae": 1024}
    for length, right in ((1_250.0, True), (1e-5, False), (1e5, False)):
        folder = tmp_path / f"{layout} {length}"
        (folder / "checkpoints").mkdir(parents=True)
        if layout == "llamascopium":
            config |= {"sae_type": "sae", "expansion_factor": 8.0, "act_fn": "topk", "top_k": 24}
            tensors = {"W_E": weights["W_enc"], "W_D": weights["W_dec"], "b_E": weights["b_enc"]}
            tensors |= {"b_D": weights["b_dec"], f"{key}.{site}": torch.tensor(length)}
            (folder / "config.json").write_text(json.dumps(config))
            save_file(tensors, folder / "sae_weights.safetensors")
        else:
            config |= {"jump_relu_threshold": 0.5, key: {"in": length}}
            tensors = {"encoder.weight": weights["W_enc"].T, "decoder.weight": weights["W_dec"].T}
            tensors |= {"encoder.bias": weights["b_enc"], "decoder.bias": weights["b_dec"]}
            (folder / "hyperparams.json").write_text(json.dumps(config))
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, folder / "checkpoints" / "final.safetensors")
        texts = check_saes([str(folder)], str(MODEL), misfit="record").mismatches.get(
            Site(2, "resid_post"), ()
        )
        assert any("mean length" in text for text in texts) is not right, texts


def test_what_cannot_be_made_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(SaeError, match="it exists"):
        check_saes([str(ONE)], str(MODEL), out=tmp_path)
    with pytest.raises(SaeError, match="was given before"):
        check_saes([str(ONE), str(SAES)], str(MODEL), out=tmp_path / "set")
    with pytest.raises(SaeError, match="no such folder"):
        check_saes([str(tmp_path / "nowhere")], str(MODEL), out=tmp_path / "set")
    assert not list(tmp_path.iterdir())
