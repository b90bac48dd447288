"""A whole study on SAEs that are written in another way says the same."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import iclens
from iclens.core import Site
from iclens.results.read import Results
from iclens.schemas import TABLES
from iclens.study.pipeline import Outcome, run_stage, run_study
from iclens.study.run import FOLDERS, find_run

from .conftest import Small

RESCALED, TIMES_FOUR = "L2.resid_post", "L1.mlp_out"
OWN_UNITS = {"tuning_curves": "mean", "operand_maps": "mean"}
"""Columns in units of the latents themselves, as their meanings say."""


def rewrite(folder: Path, name: str) -> None:
    """Rows of any length, divided out by `rescale_acts_by_decoder_norm`; or activations times four."""
    weights = load_file(folder / name / "sae_weights.safetensors")
    config = json.loads((folder / name / "cfg.json").read_text())
    if name == RESCALED:
        factors = torch.exp(torch.randn(len(weights["W_dec"]), generator=torch.Generator().manual_seed(0)))
        config["rescale_acts_by_decoder_norm"] = True
    else:
        factors = torch.full((len(weights["W_dec"]),), 0.25)
    weights["W_dec"] = weights["W_dec"] * factors[:, None]
    weights["W_enc"], weights["b_enc"] = (weights["W_enc"] / factors).contiguous(), weights["b_enc"] / factors
    save_file(weights, folder / name / "sae_weights.safetensors")
    (folder / name / "cfg.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def twin(small: Small, first: Outcome, tmp_path_factory: pytest.TempPathFactory) -> Results:
    """The first study again, on its SAEs in the other writing."""
    folder = tmp_path_factory.mktemp("twin") / "set"
    shutil.copytree(first.run / FOLDERS["saes"] / "set", folder)
    for name in (RESCALED, TIMES_FOUR):
        rewrite(folder, name)
    training = f"train: {small.folder / 'training.yaml'}"
    config = small.config(("study: small", "study: twin"), (training, f"folder: {folder}"))
    run = run_study(config, small.runs, lambda event: None, last="growth").run
    for stage in ("transforms", "patch"):
        run_stage(run, stage, lambda event: None)
    return Results(find_run(run))


def test_every_table_is_the_same(first: Outcome, twin: Results) -> None:
    one, compared = Results(find_run(first.run)), {}
    for name, kind in TABLES.items():
        if kind.stage == "sweep":
            continue
        table, other = one.table(name), twin.table(name)
        compared[name] = len(table)
        assert len(table) == len(other), name
        if name in OWN_UNITS:
            assert "own units" in kind.COLUMNS[OWN_UNITS[name]].meaning
            other[OWN_UNITS[name]] /= np.where(other["site"] == TIMES_FOUR, 4, 1)
        for column in kind.COLUMNS:
            if column != "sae_id":
                same(table[column], other[column], f"{name}.{column}")
    assert sum(compared.values()) > 5000


NUMBER = re.compile(r"-?\d+(\.\d+)?(e-?\d+)?")


def same(one: pd.Series, other: pd.Series, what: str) -> None:
    if one.dtype.kind == "f":
        np.testing.assert_allclose(one, other, rtol=5e-3, atol=1e-3, err_msg=what)
    elif one.dtype.kind in "biu":
        assert one.tolist() == other.tolist(), what
    else:  # numbers in words are those of other columns, to the digits shown
        words = [[NUMBER.sub("#", str(text)) for text in column] for column in (one, other)]
        assert words[0] == words[1], what


def test_what_is_asked_of_a_run_is_the_same(first: Outcome, twin: Results) -> None:
    runs = [iclens.open(first.run), iclens.open(twin.path)]
    key = ["site", "role", "latent"]
    tops = [run.top(10, by="slope").df[key].to_numpy().tolist() for run in runs]
    assert tops[0] == tops[1]
    for site, role, latent in tops[0][:3]:
        shown = [run.trajectory(site, latent=latent, role=role).df["activation"] for run in runs]
        np.testing.assert_allclose(*shown, rtol=1e-3, atol=1e-4)
    for site in (RESCALED, TIMES_FOUR):
        added = [
            results.latents("T", Site.parse(site), "pre").dense() * results.decoder_norms[site][:, None, None]
            for results in (Results(find_run(first.run)), twin)
        ]
        np.testing.assert_allclose(*added, rtol=1e-3, atol=1e-4)
