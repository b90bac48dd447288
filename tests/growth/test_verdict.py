"""The ladder is climbed gate by gate, and every row says why it is not one rung higher."""

import numpy as np
import pandas as pd
import pytest

from iclens.growth.verdict import KEY, Found, judge
from iclens.schemas import LADDER

SITE = "blocks.2.hook_mlp_out"
TOP = {
    "certified": True, "confirm_p": 0.001, "own_low": 0.05, "evidence_low": 0.1, "causal": True,
}  # fmt: skip


def found(
    detected: str = "grows", shortlisted: bool = True, closure: float = 0.4, **changes: object
) -> Found:
    """One latent that passes every gate but for the changes."""
    key = dict(zip(KEY, (SITE, "pre", 7), strict=True))
    facts = TOP | changes
    detection = {
        **key, "slope": 0.2, "ci_low": 0.1, "ci_high": 0.3, "p_value": 1e-6, "q_value": 1e-4, "n_prompts": 77,
        "n_active": 70, "verdict": detected, "reason": "",
    }  # fmt: skip
    shape = {
        **key, "exponent": 1.0, "exponent_low": 0.9, "exponent_high": 1.1, "best_curve": "linear",
        "certified": facts["certified"], "reason": "the interval of p reaches 0.5",
    }  # fmt: skip
    evidence = {
        **key, "evidence": 0.2, "evidence_low": facts["evidence_low"], "evidence_high": 0.3, "count": 0.0,
        "reason": "",
    }  # fmt: skip
    dose = {
        **key, "dose_effect": 0.3, "dose_low": 0.2, "dose_high": 0.4, "control_p": 0.01, "share": 0.1,
        "causal": facts["causal"], "reason": "no stronger than matched latents",
    }  # fmt: skip
    confirm = {
        **key, "confirm_slope": 0.18, "confirm_p": facts["confirm_p"], "shrinkage": 0.9, "own_slope": 0.1,
        "own_low": facts["own_low"], "reason": "",
    }  # fmt: skip
    frames = [pd.DataFrame([row] if shortlisted else []) for row in (shape, evidence, dose, confirm)]
    columns = [list(row) for row in (shape, evidence, dose, confirm)]
    frames = [frame.reindex(columns=c) for frame, c in zip(frames, columns, strict=True)]
    return Found(pd.DataFrame([detection]), *frames, {SITE: (closure, "closure 0.10 [0.05, 0.15]")})


def verdict(**changes: object) -> tuple[str, str]:
    table = judge(found(**changes))  # type: ignore[arg-type]
    return table["verdict"][0], table["reason"][0]


def test_a_latent_that_passes_every_gate_stands_on_the_top_rung() -> None:
    assert verdict() == ("accounts for belief", "")


@pytest.mark.parametrize(
    ("changes", "rung", "why"),
    [
        ({"confirm_p": 0.2}, "grows", "not confirmed on held-out prompts (Holm p 0.2)"),
        ({"own_low": -0.1}, "grows", "only against its control does it clearly rise"),
        ({"certified": False}, "grows", "the interval of p reaches 0.5"),
        ({"evidence_low": -0.1}, "grows linearly", "its increments do not follow the evidence"),
        ({"causal": False}, "grows with evidence", "no stronger than matched latents"),
        ({"closure": 0.1}, "causally additive", "closure 0.10 [0.05, 0.15]"),
        ({"detected": "none"}, "none", "no paired growth (q 0.0001)"),
        ({"detected": "falls"}, "falls", "it falls beside its control"),
        ({"shortlisted": False}, "grows", "not on the short list"),
    ],
)
def test_the_first_gate_that_fails_gives_rung_and_reason(
    changes: dict[str, object], rung: str, why: str
) -> None:
    got, reason = verdict(**changes)
    assert got == rung
    assert reason.startswith(why)


def test_a_gate_above_does_not_excuse_one_below() -> None:
    table = judge(found(certified=False, evidence_low=-0.1))
    assert table["verdict"][0] == "grows"
    assert table["evidence_low"][0] == -0.1, "what it would have passed stays in its columns"


def test_rungs_can_be_asked_for_from_below() -> None:
    table = judge(found(causal=False))
    assert [len(table.at_least(rung)) for rung in LADDER] == [1, 1, 1, 1, 0, 0]
    assert len(table.growing()) == 1
    assert np.isfinite(table["exponent"][0]) and bool(table["shortlisted"][0])
