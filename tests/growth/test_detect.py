"""Detection on planted trajectories: what must be found, what must not, and what is refused."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from iclens.activations import LatentActs, Place
from iclens.core import Site, TableError
from iclens.growth.detect import slope_moments
from iclens.growth.detect import test_arms as judge_study
from iclens.growth.detect import test_growth as judge
from iclens.prompts.build import check_pairing

N, J = 128, 16
RAMP = np.arange(J) / J
HERE: Place = (Site(2, "resid_post"), "pre")


def sparse_values(seed: int, shape: tuple[int, ...], share: float = 0.2) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.where(rng.random(shape) < share, rng.exponential(size=shape), 0.0)


def noise(rng: np.random.Generator, n_latents: int, rho: float = 0.5) -> np.ndarray:
    """Autocorrelated noise of unit spread, [latent prompt example]."""
    fresh = rng.standard_normal((n_latents, N, J))
    out = fresh.copy()
    for j in range(1, J):
        out[..., j] = rho * out[..., j - 1] + np.sqrt(1 - rho**2) * fresh[..., j]
    return out


def gated(values: np.ndarray) -> np.ndarray:
    """What a latent shows of a pre-activation around 1: nothing below zero."""
    return np.maximum(1 + values, 0)


def arms(rng: np.random.Generator, n_latents: int) -> tuple[np.ndarray, np.ndarray]:
    return noise(rng, n_latents), noise(rng, n_latents)


def test_slopes_are_least_squares_prompt_by_prompt(planted) -> None:
    treated, control = sparse_values(1, (7, 30, 6)), sparse_values(2, (7, 30, 6))
    treated[3] = control[3] = 0.0
    moments = slope_moments(planted(treated), planted(control))
    slopes = np.array([[np.polyfit(np.arange(6), d, 1)[0] for d in latent] for latent in treated - control])
    assert np.allclose(moments.mean, slopes.mean(axis=1))
    assert np.allclose(moments.sd, slopes.std(axis=1, ddof=1))
    used = ((treated > 0) | (control > 0)).any(axis=2).sum(axis=1)
    assert (moments.n_active == used).all()
    assert moments.n_active[3] == moments.n_differing[3] == 0


def test_nearly_equal_slopes_keep_their_spread(planted) -> None:
    ramp = np.arange(5.0)
    jitter = np.linspace(-1e-6, 1e-6, 20)
    treated = (1000 * ramp + jitter[:, None] * ramp)[None]
    moments = slope_moments(planted(treated), planted(np.zeros_like(treated)))
    assert np.allclose(moments.sd, jitter.std(ddof=1), rtol=1e-3)


def test_one_slope_everywhere_has_the_p_of_agreeing_coins(planted) -> None:
    treated = np.broadcast_to(np.arange(4.0), (1, 12, 4))
    moments = slope_moments(planted(treated), planted(np.zeros((1, 12, 4))))
    assert moments.p_rising() == 0.5**12
    assert moments.p_falling() == 1.0


VALUES = sparse_values(3, (4, 12, 5))


@pytest.mark.parametrize(
    ("treated", "control", "change", "message"),
    [
        (VALUES, VALUES + 1, {"site": Site(3, "resid_post")}, "site"),
        (VALUES, VALUES + 1, {"role": "lab"}, "role"),
        (VALUES, VALUES + 1, {"sae_id": "another"}, "sae_id"),
        (VALUES, VALUES[:, 1:], {}, "n_prompts 12 and 11"),
        (VALUES, VALUES.copy(), {}, "identical activations"),
        (VALUES[:, :, :1] + 1, VALUES[:, :, :1] + 2, {}, "12 prompts of 1 examples"),
    ],
    ids=["site", "role", "sae", "prompts", "identical", "one example"],
)
def test_arms_that_cannot_be_compared_are_refused(planted, treated, control, change, message) -> None:
    with pytest.raises(TableError, match=message):
        slope_moments(planted(treated), planted(control, **change))


def test_a_stored_nan_is_refused_before_anything_is_tested(planted, tmp_path: Path) -> None:
    """A mapped store is not read when it is opened, so this is where what is wrong in it has to show."""
    treated, control = (planted(sparse_values(seed, (4, 12, 5))) for seed in (3, 4))
    entry = treated.value.size // 2
    row = int(np.searchsorted(treated.indptr, entry, side="right")) - 1
    treated.value[entry] = np.nan
    treated.save(tmp_path / "T.safetensors")
    stored = LatentActs.open(tmp_path / "T.safetensors")
    message = f"L2.resid_post pre: NaN or infinite in latent {treated.index[entry]}, prompt {row // 5}"
    for both in ((stored, control), (control, stored)):
        with pytest.raises(TableError, match=message):
            slope_moments(*both)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=10)
def test_growth_of_one_sd_is_found_wherever_it_is_planted(planted, seed: int) -> None:
    rng = np.random.default_rng(seed)
    treated, control = arms(rng, 40)
    growing = rng.random(40) < 0.5
    growing[0] = True
    treated[growing] += RAMP
    table = judge(planted(gated(treated)), planted(gated(control)))
    found = table["verdict"] == "grows"
    assert found[growing].mean() >= 0.95
    assert found[~growing].sum() <= 4


def test_a_fall_is_called_a_fall(planted) -> None:
    treated, control = arms(np.random.default_rng(6), 30)
    table = judge(planted(gated(treated)), planted(gated(control + RAMP)))
    assert (table["verdict"] == "falls").mean() >= 0.95
    assert (table["p_value"][table["verdict"] == "falls"] > 0.95).all()


def drift(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Both arms rise and fall with the position, each latent by an amount of its own."""
    one, other = arms(rng, 20)
    rise = 3 * RAMP * rng.standard_normal((20, 1, 1))
    return gated(one + rise), gated(other + rise)


def moved_content(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Latents that fire on some labels: S shows the same labels elsewhere in the prompt."""
    content = np.maximum(rng.standard_normal((20, N, J)) - 1, 0) * 4
    order = np.argsort(rng.random((N, J)), axis=1)
    return content, np.take_along_axis(content, np.broadcast_to(order, content.shape), axis=2)


@pytest.mark.parametrize(("make", "seed"), [(drift, 11), (moved_content, 12)])
def test_where_nothing_grows_a_discovery_is_made_no_more_often_than_q(planted, make, seed: int) -> None:
    rng = np.random.default_rng(seed)
    runs = [judge(*(planted(values) for values in make(rng))).significant() for _ in range(60)]
    assert np.mean([len(found) > 0 for found in runs]) <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / 60)


def test_content_that_stays_in_place_cannot_be_tested(planted) -> None:
    content = np.abs(noise(np.random.default_rng(1), 5))
    other = content.copy()
    other[0] += RAMP
    table = judge(planted(other), planted(content))
    assert list(table["reason"]) == ["", *["the arms do not differ"] * 4]
    assert np.isnan(table["p_value"][1:]).all() and (table["verdict"][1:] == "none").all()


def test_undefined_statistics_are_nan_with_a_reason(planted) -> None:
    treated, control = (gated(a) for a in arms(np.random.default_rng(2), 4))
    treated[0] = control[0] = 0
    treated[1, 4:] = control[1, 4:] = 0
    treated[2, 10:] = control[2, 10:] = 0
    table = judge(planted(treated), planted(control))
    assert list(table["reason"]) == ["never active", "active in 4 of 128 prompt pairs, 10 needed", "", ""]
    assert list(table["n_active"][:3]) == [0, 4, 10]
    for column in ("p_value", "q_value", "ci_low", "ci_high"):
        assert np.isnan(table[column][:2]).all() and np.isfinite(table[column][2:]).all()
    assert np.isnan(table["slope"][0]) and np.isfinite(table["slope"][1])


def test_swapping_the_arms_mirrors_the_verdicts(planted) -> None:
    treated, control = arms(np.random.default_rng(4), 20)
    treated[:10] += RAMP
    one, other = planted(gated(treated)), planted(gated(control))
    forth, back = judge(one, other), judge(other, one)
    assert np.allclose(forth["slope"], -back["slope"])
    assert np.allclose(forth["q_value"], back["q_value"])
    assert (forth["verdict"] == np.where(back["verdict"] == "falls", "grows", back["verdict"])).all()


def test_decoder_length_scales_slopes_and_not_p(planted) -> None:
    one, other = (planted(gated(a)) for a in arms(np.random.default_rng(7), 5))
    lengths = np.array([1.0, 2, 3, 4, 5])
    plain, scaled = judge(one, other), judge(one, other, decoder_norm=lengths)
    for column in ("slope", "ci_low", "ci_high"):
        assert np.allclose(scaled[column], plain[column] * lengths)
    assert (scaled["p_value"] == plain["p_value"]).all()
    with pytest.raises(TableError, match="5 latents"):
        judge(one, other, decoder_norm=lengths[:2])


def test_interval_covers_the_true_slope(planted) -> None:
    rng = np.random.default_rng(8)
    random_slopes = rng.standard_normal((1000, N, 1)) * 0.5
    treated = 5 + noise(rng, 1000) + (0.3 + random_slopes) * np.arange(J)
    table = judge(planted(treated), planted(5 + noise(rng, 1000)))
    covered = (table["ci_low"] <= 0.3) & (table["ci_high"] >= 0.3)
    assert 0.93 <= covered.mean() <= 0.97


def test_a_study_needs_its_pairing_and_all_of_its_places(planted, pair) -> None:
    treated, control = (planted(gated(a)) for a in arms(np.random.default_rng(9), 3))
    here, there = (Site(2, "resid_post"), "pre"), (Site(2, "resid_post"), "lab")
    prompts = pair(N, J)
    plain = judge_study({here: treated}, {here: control}, prompts=prompts)
    assert len(plain) == 3
    assert judge_study({here: treated}, [{here: control}], prompts=prompts).df.equals(plain.df)
    with pytest.raises(TableError, match="1 and 2 sites"):
        judge_study({here: treated}, {here: control, there: control}, prompts=prompts)
    with pytest.raises(TableError, match="0 and 0"):
        judge_study({}, {}, prompts=prompts)
    with pytest.raises(TableError, match="The prompts given are 64"):
        judge_study({here: treated}, {here: control}, prompts=pair(64, J))


def test_unpaired_arms_are_refused(pair) -> None:
    treated, control = pair(12, 4)
    check_pairing([treated, control])
    with pytest.raises(TableError, match="task differs"):
        check_pairing([treated, control.select(np.arange(11))])
    with pytest.raises(TableError, match="x differs"):
        check_pairing([treated, replace(control, x=control.x[:, ::-1])])
    with pytest.raises(TableError, match="every label is the same"):
        check_pairing([treated, treated])
    with pytest.raises(TableError, match="seed differs"):
        check_pairing([treated, replace(control, seed=4)])


def test_one_error_rate_covers_every_place(planted, pair) -> None:
    """A p that would be called in a study of one place is not called among many that hold nothing."""
    rng = np.random.default_rng(10)
    weak, control = arms(rng, 5)
    weak[0] += 0.5 * RAMP
    alone = judge(planted(gated(weak)), planted(gated(control)))
    assert alone["verdict"][0] == "grows"
    treated, controls = {}, {}
    for layer in range(24):
        site = Site(layer, "resid_post")
        one, other = (weak, control) if layer == 0 else arms(rng, 5)
        treated[site, "pre"], controls[site, "pre"] = planted(gated(one), site), planted(gated(other), site)
    table = judge_study(treated, controls, prompts=pair(N, J))
    assert table["p_value"][0] == alone["p_value"][0]
    assert table["q_value"][0] > alone["q_value"][0]
    assert table["verdict"][0] == "none"


def test_growth_has_to_be_beyond_every_control(planted, pair) -> None:
    """Twenty latents rise beyond both controls, twenty beyond the first alone, twenty beyond the second."""
    rng = np.random.default_rng(11)
    treated, first = arms(rng, 60)
    second = noise(rng, 60)
    treated += 2 * RAMP
    second[20:40] += 2 * RAMP
    first[40:] += 2 * RAMP
    one, *others = (planted(gated(values)) for values in (treated, first, second))
    labels, other_labels = pair(N, J)
    third = replace(other_labels, arm="R", y=np.roll(other_labels.y, 1, axis=1))
    controls: list[Mapping[Place, LatentActs]] = [{HERE: other} for other in others]
    table = judge_study({HERE: one}, controls, prompts=[labels, other_labels, third])
    singly = [judge(one, other) for other in others]
    assert (table["verdict"][:20] == "grows").all() and (table["verdict"][20:] == "grows").mean() <= 0.1
    assert (singly[0]["verdict"][:40] == "grows").all() and (singly[1]["verdict"][40:] == "grows").all()
    assert (table["p_value"] == np.maximum(singly[0]["p_value"], singly[1]["p_value"])).all()
    assert (table["slope"] == singly[0]["slope"]).all()


def test_two_arms_of_the_same_activations_are_refused(planted, pair) -> None:
    one, other = (planted(gated(values)) for values in arms(np.random.default_rng(13), 3))
    labels, other_labels = pair(N, J)
    third = replace(other_labels, arm="R", y=np.roll(other_labels.y, 1, axis=1))
    same: list[list[Mapping[Place, LatentActs]]] = [
        [{HERE: other}, {HERE: other}],
        [{HERE: other}, {HERE: one}],
    ]
    for controls in same:
        with pytest.raises(TableError, match="identical activations"):
            judge_study({HERE: one}, controls, prompts=[labels, other_labels, third])
