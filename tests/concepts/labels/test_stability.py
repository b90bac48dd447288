import numpy as np
import pytest
from scipy.sparse import csc_array

from iclens.concepts.labels import best_matches, stability
from iclens.core import TableError
from iclens.schemas import TransformTable

SITE = "blocks.1.hook_mlp_out"
BLANK = {"int": 0, "float": np.nan, "str": "", "bool": False}


def labels(*given: tuple[int, str, str], site: str = SITE, role: str = "lab") -> TransformTable:
    """A table of (latent, concept, label); every other column is blank."""
    columns = {
        name: np.full(len(given), BLANK[c.kind], dtype=object) for name, c in TransformTable.COLUMNS.items()
    }
    columns["site"][:], columns["role"][:] = site, role
    for i, name in enumerate(("latent", "concept", "label")):
        columns[name] = np.array([row[i] for row in given], dtype=object)
    return TransformTable(columns)


@pytest.fixture
def values():
    return np.maximum(np.random.default_rng(0).standard_normal((60, 5)) - 0.3, 0)


@pytest.fixture
def others(values):
    """Latents 4, 3, 2, 1, 0 of `values` with noise, beside one that is never active."""
    shaken = values[:, ::-1] * np.array([1, 2, 3, 4, 5]) + 0.1 * np.random.default_rng(1).random((60, 5))
    return np.column_stack([shaken, np.zeros(60)])


def test_a_latent_is_found_again_with_its_label(values, others, as_latents) -> None:
    own = labels((0, "odd", "odd"), (1, "odd", "candidate"), (2, "odd", ""), (1, "double", "double"))
    theirs = labels((4, "odd", "odd"), (4, "double", ""), (3, "double", "candidate"), (3, "odd", "odd"))
    found = stability(own, [as_latents(values, 10)], {"wide": (theirs, [as_latents(others, 10)])}).df
    assert found["latent"].tolist() == [0, 1]
    assert found["match"].tolist() == [4, 3]
    assert found["concept"].tolist() == ["odd", "double"]
    assert found["match_label"].tolist() == ["odd", "candidate"]
    assert found["stable"].tolist() == [True, False]
    assert found["reason"].tolist() == ["", "the match is labelled 'candidate'"]
    assert set(found["other"]) == {"wide"}
    assert set(found["other_d_sae"]) == {6}
    expected = [np.corrcoef(values[:, a], others[:, b])[0, 1] for a, b in ((0, 4), (1, 3))]
    assert found["correlation"].tolist() == pytest.approx(expected, abs=1e-5)


def test_a_label_that_the_match_has_for_another_concept_does_not_count(values, others, as_latents) -> None:
    theirs = labels((4, "double", "double"))
    given = {"wide": (theirs, [as_latents(others, 10)])}
    (row,) = stability(labels((0, "odd", "odd")), [as_latents(values, 10)], given).df.to_dict("records")
    assert (row["match_label"], row["stable"], row["reason"]) == ("", False, "the match is not labelled")


def test_labels_of_another_site_or_role_do_not_count(values, others, as_latents) -> None:
    elsewhere = (
        labels((4, "odd", "odd"), site="blocks.2.hook_mlp_out"),
        labels((4, "odd", "odd"), role="pre"),
    )
    for theirs in elsewhere:
        given = {"wide": (theirs, [as_latents(others, 10)])}
        assert not stability(labels((0, "odd", "odd")), [as_latents(values, 10)], given)["stable"].any()


def test_a_weak_correlation_is_not_stable(values, as_latents) -> None:
    loose = values[:, ::-1] + np.random.default_rng(1).random((60, 5))
    arguments = (
        labels((0, "odd", "odd")),
        [as_latents(values, 10)],
        {"loose": (labels((4, "odd", "odd")), [as_latents(loose, 10)])},
    )
    (row,) = stability(*arguments, least=0.95).df.to_dict("records")
    assert 0.5 < row["correlation"] < 0.95
    assert (row["stable"], row["match_label"]) == (False, "odd")
    assert row["reason"] == f"correlation {row['correlation']:.3f} below 0.95"
    assert stability(*arguments, least=row["correlation"])["stable"].all()


def test_matches_are_those_of_numpy() -> None:
    rng = np.random.default_rng(2)
    mine, theirs = (np.maximum(rng.standard_normal((40, n)), 0) for n in (150, 30))
    theirs[:, 3] = 8 - mine[:, 70]  # opposite: large in size, and never the match
    chosen = np.array([70, *range(140)])
    match, correlation = best_matches(csc_array(mine), csc_array(theirs), chosen)
    table = np.corrcoef(mine[:, chosen].T, theirs.T)[: len(chosen), len(chosen) :]
    assert match.tolist() == table.argmax(axis=1).tolist()
    assert correlation == pytest.approx(table.max(axis=1))
    assert match[0] != 3


def test_what_is_constant_has_no_match(values, others, as_latents) -> None:
    values[:, 0] = 0
    own = labels((0, "odd", "odd"), (1, "odd", "odd"))
    theirs = labels((3, "odd", "odd"))
    found = stability(own, [as_latents(values, 10)], {"wide": (theirs, [as_latents(others, 10)])}).df
    assert found["match"].tolist() == [-1, 3]
    assert np.isnan(found["correlation"]).tolist() == [True, False]
    assert found["reason"].tolist() == ["the latent, or every latent of the other SAE, is constant", ""]
    dead = {"dead": (theirs, [as_latents(0 * others, 10)])}
    assert stability(own, [as_latents(values, 10)], dead)["match"].tolist() == [-1, -1]


def test_a_set_without_the_site_or_role_says_so(values, others, as_latents) -> None:
    sets = {
        "role": (labels(), [as_latents(others, 10, role="pre")]),
        "layer": (labels(), [as_latents(others, 10, layer=2)]),
        "none": (labels(), []),
    }
    found = stability(labels((0, "odd", "odd")), [as_latents(values, 10)], sets).df
    assert found["other"].tolist() == list(sets)
    assert found["match"].tolist() == found["other_d_sae"].tolist() == [-1] * 3
    assert np.isnan(found["correlation"]).all()
    assert set(found["reason"]) == {"no SAE for L1.mlp_out at 'lab'"}
    assert not found["stable"].any()


def test_nothing_labelled_gives_no_rows(values, as_latents) -> None:
    acts = [as_latents(values, 10)]
    assert (
        len(stability(labels((0, "odd", "candidate"), (1, "odd", "")), acts, {"same": (labels(), acts)})) == 0
    )
    assert len(stability(labels((0, "odd", "odd")), acts, {})) == 0


def test_refusals(values, others, as_latents) -> None:
    own, acts = labels((0, "odd", "odd")), [as_latents(values, 10)]
    with pytest.raises(TableError, match="no activations"):
        stability(own, [as_latents(values, 10, role="pre")], {"wide": (own, acts)})
    with pytest.raises(
        TableError, match=r"'wide' for L1\.mlp_out at 'lab': 4 prompts of 10 examples, not 6 of 10"
    ):
        stability(own, acts, {"wide": (own, [as_latents(others[:40], 10)])})
