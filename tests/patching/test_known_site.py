"""Ground truth: the sweep finds the task-formation site of the shipped model, and none in its twin."""

import numpy as np
import pytest

from iclens.model.load import load_model
from iclens.patching.runs import build_runs
from iclens.patching.sweep import sweep
from iclens.prompts.tasks import parse_task

from .conftest import ROOT


def curves(folder: str, recipient: str) -> tuple[np.ndarray, np.ndarray]:
    """P(f(x_B)) and P(f(x_A)) by layer at `pre`, from 12-example donors of 2x+3."""
    model = load_model(ROOT / "checkpoints" / folder)
    runs = build_runs(model.tokenizer, parse_task("2x+3"), recipient=recipient, n_prompts=16, seed=11)
    table = sweep(model, runs, roles=["pre"])
    own, copied = (table["value"][table["metric"] == metric] for metric in ("task on own x", "copy"))
    return own, copied


@pytest.mark.parametrize("recipient", ["zero examples", "S arm"])
def test_the_built_in_site_is_found(recipient: str) -> None:
    own, copied = curves("icl-tiny", recipient)
    site = int(own.argmax())
    assert own[site] >= 0.9 and copied[site] <= 0.05
    assert (np.delete(own, site) <= 0.2).all()
    assert own[0] <= 0.05 and copied[0] <= 0.05
    assert (copied[site + 1 :] >= 0.8).all() and site + 1 < len(copied)


def test_the_twin_has_no_such_site() -> None:
    own, copied = curves("icl-tiny-twin", "zero examples")
    assert (own <= 0.2).all()
    assert copied[-1] >= 0.5
