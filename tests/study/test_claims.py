"""When does a claim hold, and what does each clause rest on?"""

import pandas as pd
import pytest

from iclens.pages.findings import FAILS, HOLDS, UNTESTED, Clause, claims, judged
from iclens.pages.section import Source
from iclens.results.read import Results
from iclens.study.pipeline import Outcome
from iclens.study.run import find_run


def clause(verdict: str, core: bool = False) -> Clause:
    return Clause("", verdict, "", core=core)


@pytest.mark.parametrize(
    ("core", "others", "words"),
    [
        (HOLDS, [HOLDS, HOLDS], "holds here"),
        (HOLDS, [HOLDS, FAILS, UNTESTED], "holds here in part: 2 of its 3 tested clauses hold"),
        (FAILS, [HOLDS, FAILS], "does not hold here; 1 of its 3 tested clauses holds"),
        (FAILS, [FAILS], "does not hold here"),
        (UNTESTED, [HOLDS, HOLDS], "not decided here"),
    ],
)
def test_a_claim_stands_or_falls_with_its_core(core: str, others: list[str], words: str) -> None:
    assert judged([clause(core, core=True), *map(clause, others)]) == words


def test_a_claim_of_which_nothing_is_known_is_not_decided() -> None:
    assert judged([]) == "not decided here"


class Changed(Results):
    """A run of which some tables say something else."""

    def __init__(self, path, **tables: pd.DataFrame) -> None:
        super().__init__(find_run(path))
        self._changed = tables

    def table(self, name: str, site=None) -> pd.DataFrame:
        return self._changed.get(name, super().table(name))


def test_clauses_say_what_the_tables_say(first: Outcome) -> None:
    results = Results(find_run(first.run))
    found = claims(Source(results))
    assert [claim.number for claim in found] == [1, 2, 3]
    assert all(sum(clause.core for clause in claim.clauses) == 1 for claim in found)
    fired = results.table("falsifiers").set_index("falsifier")["fired"]
    by_falsifier = dict(zip(fired.index, found[1].clauses[1:], strict=True))
    expected = {"fired": FAILS, "did not fire": HOLDS, "not tested": UNTESTED}
    assert {name: own.verdict for name, own in by_falsifier.items()} == fired.map(expected).to_dict()


def test_the_core_of_the_second_claim_is_a_latent_that_adds(first: Outcome) -> None:
    growth = Results(find_run(first.run)).table("growth")
    listed = growth.index[growth["shortlisted"]][0]
    growth["verdict"] = "grows"
    for verdict, expected in (("grows", FAILS), ("grows linearly", HOLDS), ("accounts for belief", HOLDS)):
        growth.loc[listed, "verdict"] = verdict
        found = claims(Source(Changed(first.run, growth=growth)))
        assert found[1].clauses[0].verdict == expected


def test_the_first_claim_needs_another_layer_that_works(first: Outcome) -> None:
    ladder = Results(find_run(first.run)).table("redundancy_ladder")
    two = pd.concat([ladder.iloc[:1]] * 2, ignore_index=True)
    for layer, expected in ((4.0, HOLDS), (float("nan"), FAILS)):
        two.loc[1, "first_layer"] = layer
        two["verdict"] = two["verdict"].astype(object)
        two.loc[1, "verdict"] = "delay"
        found = claims(Source(Changed(first.run, redundancy_ladder=two)))
        assert [own.verdict for own in found[0].clauses] == [expected, FAILS]
    alone = claims(Source(Changed(first.run, redundancy_ladder=ladder.iloc[:1])))
    assert [own.verdict for own in alone[0].clauses] == [UNTESTED, UNTESTED]
