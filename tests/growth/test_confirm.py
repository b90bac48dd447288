"""Claims are frozen before the confirm split is read, and cannot be changed."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from iclens.core import Site, TableError
from iclens.growth.verdict import Claim, Manifest, confirm

PLACE = (Site(2, "mlp_out"), "pre")
PROMPTS = np.arange(20, 60)


def manifest(n: int = 2) -> Manifest:
    claims = tuple(Claim("L2.mlp_out", "pre", latent, 0.2, "grows") for latent in range(n))
    return Manifest(claims, tuple(PROMPTS.tolist()), "a study")


def rising(slopes: list[float], noise: float = 0.5) -> np.ndarray:
    rng = np.random.default_rng(0)
    n = np.arange(8)
    return np.array(slopes)[:, None, None] * n + noise * rng.standard_normal((len(slopes), 40, 8))


def test_what_grows_is_confirmed_and_shrinkage_is_a_ratio_of_slopes() -> None:
    table = confirm(manifest(), {PLACE: rising([0.1, 0.0])}, PROMPTS)
    assert table["confirm_p"][0] < 0.001 < 0.05 < table["confirm_p"][1]
    assert table["confirm_slope"][0] == pytest.approx(0.1, abs=0.02)
    assert table["shrinkage"][0] == pytest.approx(table["confirm_slope"][0] / 0.2)
    assert table["confirm_low"][0] < 0.1 < table["confirm_high"][0]


def test_equal_arms_are_undefined_with_a_reason() -> None:
    table = confirm(manifest(1), {PLACE: np.zeros((1, 40, 8))}, PROMPTS)
    assert np.isnan(table["confirm_p"][0]) and "do not differ" in table["reason"][0]


def test_other_prompts_or_missing_claims_are_refused() -> None:
    with pytest.raises(TableError, match="other prompts"):
        confirm(manifest(), {PLACE: rising([0.1, 0.0])}, PROMPTS + 1)
    with pytest.raises(TableError, match="claims are missing"):
        confirm(manifest(), {PLACE: rising([0.1])}, PROMPTS)


def test_a_frozen_manifest_comes_back_and_an_edited_one_does_not(tmp_path: Path) -> None:
    file, one = tmp_path / "manifest.json", manifest()
    assert one.freeze(file) == one.sha256
    assert Manifest.thaw(file) == one
    assert replace(one, study="another").sha256 != one.sha256
    file.write_text(file.read_text().replace('"pre",1', '"pre",7'))
    with pytest.raises(TableError, match="changed after it was frozen"):
        Manifest.thaw(file)
    file.write_text("nothing\n")
    with pytest.raises(TableError, match="unreadable"):
        Manifest.thaw(file)
