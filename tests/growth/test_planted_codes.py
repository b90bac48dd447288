"""The planted codes are answers of tasks, and as confounded as was asked."""

import numpy as np
import pytest

from iclens.core import TableError
from planted import CONCEPTS, CONFOUND, NOTHING, OFFSETS, SLOPES, Codes, plant_codes


def codes(confounding: float, seed: int = 0) -> Codes:
    return plant_codes(n_latents=20, n_rows=8000, confounding=confounding, snr=3.0, seed=seed)


def test_truth_is_what_the_answers_are() -> None:
    held = codes(0.3)
    assert (held.y == held.slope * held.x + held.offset).all()
    assert (held.truth["parity"] == (held.y % 2 == 1)).all()
    assert (held.truth["band"] == (np.abs(held.y - 2 * held.x) <= 5)).all()
    halfway = np.median([a * x + b for a in SLOPES for b in OFFSETS for x in range(10, 98)])
    assert (held.truth[CONFOUND] == (held.y > halfway)).all()
    assert held.y.min() >= 0 and held.y.max() < 1000
    assert len(np.unique(held.task)) == len(SLOPES) * len(OFFSETS) >= 60


@pytest.mark.parametrize("confounding", [0.0, 0.5, 0.9, 1.0])
def test_confounding_is_cramers_v(confounding: float) -> None:
    held = codes(confounding, seed=3)
    for concept in CONCEPTS:
        v = np.corrcoef(held.truth[concept], held.truth[CONFOUND])[0, 1]
        assert v == pytest.approx(confounding, abs=0.03)
        assert held.truth[concept].mean() == pytest.approx(0.5, abs=0.03)


def test_latents_code_for_their_kind_alone() -> None:
    held = codes(0.0)
    assert set(held.kind) == {*CONCEPTS, CONFOUND, NOTHING}
    for kind, values in zip(held.kind, held.values, strict=True):
        gaps = {name: values[truth].mean() - values[~truth].mean() for name, truth in held.truth.items()}
        for name, gap in gaps.items():
            assert gap == pytest.approx(3.0 if name == kind else 0.0, abs=0.15)


def test_the_seed_decides_everything_and_v_is_a_share() -> None:
    assert (codes(0.5, 1).values == codes(0.5, 1).values).all()
    assert not (codes(0.5, 1).x == codes(0.5, 2).x).all()
    for wrong in (-0.1, 1.1):
        with pytest.raises(TableError, match="share from 0 to 1"):
            codes(wrong)
