"""Do the pages of single prompts hold what model, SAEs and tables say of them?"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.sparse import csr_array

from iclens.core import BELIEFS, position
from iclens.model.run import answer_probs
from iclens.pages import prompts as study
from iclens.pages.prompts import START
from iclens.pages.section import Chrome, Source
from iclens.patching.receiver import up_to_query
from iclens.patching.runs import Runs, build_runs
from iclens.results.read import Results
from iclens.schemas import LADDER
from iclens.study.inputs import outside_inputs
from iclens.study.pipeline import Outcome
from iclens.study.run import RunContext, find_run
from iclens.tracking import token_activations

N = 3


@pytest.fixture(scope="module")
def bench(first: Outcome) -> RunContext:
    run = find_run(first.run)
    made = RunContext(run, outside_inputs(run.config), lambda event: None)
    asked = made.config.dashboard.model_copy(update={"prompts": N})
    made.config = made.config.model_copy(update={"dashboard": asked})
    return made


@pytest.fixture(scope="module")
def source(bench: RunContext) -> Source:
    return Source(Results(bench.folder))


@pytest.fixture(scope="module")
def shown(bench: RunContext, source: Source) -> list[study.Pair]:
    return study.pairs(bench, source, N)


@pytest.fixture(scope="module")
def patched(bench: RunContext) -> Runs:
    """The runs as the patching stage builds them."""
    section = bench.config.patch
    return build_runs(
        bench.model.tokenizer, bench.config.prompts.rule, recipient=section.recipient,
        n_prompts=section.n_prompts, donor_examples=section.donor_examples, seed=section.seed,
        inputs=bench.config.prompts.inputs, declared=bench.config.declared,
    )  # fmt: skip


def test_shown_are_the_first_prompts_of_the_patching_stage(
    bench: RunContext, shown: list[study.Pair], patched: Runs
) -> None:
    assert len(shown) == N
    for i, pair in enumerate(shown):
        ids = up_to_query(patched.target)[i].tolist()
        text = "".join(token.text for token in pair.a.tokens)
        assert text == bench.model.tokenizer.decode(ids)
        query = text[text.rindex("(") :]
        assert "".join(token.text for token in pair.b.tokens) == f"<|begin_of_text|>\n{query}"
        assert (pair.query, pair.wanted) == (patched.x_B[i], patched.answer[i])
        assert (pair.a.query, pair.b.query) == (patched.n_seen, 0)
        assert [token.role for token in pair.b.tokens] == ["start", "start", "open", "x", "comma", "pre"]
        assert pair.a.tokens[0].example == START and pair.a.tokens[2].example == 0


def test_activations_are_those_of_a_dense_encoding(
    bench: RunContext, shown: list[study.Pair], patched: Runs
) -> None:
    ids = up_to_query(patched.target)[:N]
    dense = token_activations(bench.model, bench.saes, ids)
    alone = token_activations(bench.model, bench.saes, np.hstack([ids[:, :2], ids[:, -4:]]))
    for i, pair in enumerate(shown):
        assert next(iter(pair.sites)) == "L2.resid_post", "the site that carries most comes first"
        assert set(pair.sites) == {site.short for site in bench.saes}
        for site, found in dense.items():
            for one in pair.sites[site.short]:
                a = found.toarray().reshape(N, -1, found.shape[1])[i, :, one.latent]
                b = alone[site].toarray().reshape(N, 6, -1)[i, :, one.latent]
                np.testing.assert_allclose(one.a, a, rtol=1e-5, atol=1e-4)
                np.testing.assert_allclose(one.b, b, rtol=1e-5, atol=1e-4)
                # Nothing before the second token differs.
                np.testing.assert_allclose(one.a[:2], one.b[:2], rtol=1e-5, atol=1e-4)
                assert max(one.a[1:] + one.b[1:]) > 0


def test_answers_and_beliefs_are_the_models(
    bench: RunContext, shown: list[study.Pair], patched: Runs
) -> None:
    read = np.array([position("pre", patched.n_seen)])
    probs = answer_probs(bench.model, up_to_query(patched.target)[:N], read, extra=patched.words)
    own = probs.of(patched.answer[:N, None])[:, 0]
    for i, pair in enumerate(shown):
        assert pair.a.read.wanted == pytest.approx(own[i], abs=1e-5)
        assert pair.a.answer[0] == probs.answers[int(probs.top()[i, 0])]
        last = pair.lens[-1]
        assert pair.a.answer == last[1].top[0] and pair.b.read.wanted == last[2].wanted
        exact = next(one for one in pair.beliefs if one.name == "exact")
        assert exact.a[-1] == pytest.approx(math.log(own[i] / (1 - own[i])), abs=1e-3)
        assert exact.b == pytest.approx(math.log(pair.b.read.wanted / (1 - pair.b.read.wanted)), abs=1e-3)
        assert len(exact.a) == len(exact.exact) == pair.a.query + 1


def test_the_exact_posterior_stands_beside_or_says_why_not(
    bench: RunContext, shown: list[study.Pair], source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = shown[0]
    exact = next(one for one in pair.beliefs if one.name == "exact")
    assert np.isfinite([*exact.exact, exact.exact_b]).all() and not pair.unknown
    assert [one.name for one in pair.beliefs][: len(BELIEFS)] == list(BELIEFS)
    assert math.isnan(pair.beliefs[BELIEFS.index("copy")].b)  # run B has no label to copy
    monkeypatch.setitem(bench.__dict__, "mixture", None)
    without = study.pairs(bench, source, 1)[0]
    assert np.isnan([value for one in without.beliefs for value in one.exact]).all()
    assert without.unknown == "the model's folder declares no mixture"


def test_latents_are_taken_in_turn_and_stand_by_reason(source: Source, shown: list[study.Pair]) -> None:
    for pair in shown:
        for site, latents in pair.sites.items():
            whys = [one.why for one in latents]
            order = [study.CHANGED, study.GROWS, study.ACTIVE]
            assert 0 < len(whys) <= study.PER_SITE and whys == sorted(whys, key=order.index)
            ids = [one.latent for one in latents]
            assert len(set(ids)) == len(ids)
            growth = source.rows("growth")
            growing = growth[(growth["site"] == site) & growth["verdict"].isin(LADDER[1:])]
            assert {one.latent for one in latents if one.why == study.GROWS} <= set(growing["latent"])


def test_chosen_by_hand() -> None:
    a, b = np.zeros((8, 5)), np.zeros((6, 5))
    a[0, 4] = 99.0  # the first token counts for nothing
    a[1, 0] = 5.0
    a[7, 1] = 3.0
    a[7, 2], b[5, 2] = 4.0, 3.5
    found = study.choose(csr_array(a), csr_array(b), [3, 2], np.ones(5), 4)
    assert found == {1: study.CHANGED, 2: study.GROWS, 0: study.ACTIVE}
    assert list(found) == [1, 2, 0]


def test_growing_latents_with_a_page_come_first(source: Source) -> None:
    for site, latents in study._growing(source).items():
        linked = replace(source, links={(site, latents[-1]): "its page"})
        preferred = study._growing(linked)[site]
        assert preferred == [latents[-1], *latents[:-1]]


def test_the_pages_of_a_run_are_small(source: Source, shown: list[study.Pair]) -> None:
    written = {path: write() for path, write in study.files(shown, source, Chrome("Small"))}
    assert f"The first {N} prompts" in written["prompts.html"]
    for number in range(1, N + 1):
        both = written[f"prompts/{number}.html"] + written[f"data/prompts/{number}.js"]
        assert len(both.encode()) < 120_000
