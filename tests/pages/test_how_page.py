"""Do the self-tests of a run fire by their rules, and does the page of how it was computed hold records?"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from iclens.growth.verdict import Claim, Manifest
from iclens.pages import self_tests
from iclens.pages.how import HOW, words
from iclens.pages.self_tests import FIRED, NOT_ASKED, PASSED, Examined, SelfTest
from iclens.study.store import hash_json, save_json

from .reading import Fake, read
from .test_patching_page import SITE, chosen, swept

NAN = math.nan


@pytest.fixture
def fake(tmp_path: Path) -> Fake:
    """A run without a stage."""
    return Fake(tmp_path)


def by_question(tests: list[SelfTest], words_: str) -> SelfTest:
    """The test whose question holds these words."""
    (found,) = [test for test in tests if words_ in test.question]
    return found


def test_identities_pass_fire_and_are_not_asked(fake: Fake) -> None:
    fake.save(
        "sweep", swept("pre", 0, "S arm", 0.02), swept("pre", 6, "S arm", 0.9, "copy"),
        swept("pre", 6, "zero examples", 0.8, "copy"),
    )  # fmt: skip
    tests = self_tests.identities(Examined(fake.source))
    assert by_question(tests, "embedding at pre").verdict == PASSED
    apart = by_question(tests, "donor's own answer")
    assert apart.verdict == FIRED and "Largest difference 0.100, over 1 value." in apart.figure
    assert by_question(tests, "labels in the embedding").verdict == NOT_ASKED


def test_controls_fire_where_they_do_half_as_much(fake: Fake) -> None:
    row = {"site": SITE, "role": "pre", "latents": "1 2", "belief": "exact"}
    own = row | {"control": "own", "effect": 4.0}
    fake.save("patch_controls", own, row | {"control": "sign flip", "effect": -4.0},
              row | {"control": "wrong role x", "effect": 1.9},
              row | {"control": "wrong task x", "effect": 4.0, "reason": "it cannot tell"})  # fmt: skip
    assert self_tests.elsewhere(Examined(fake.source))[0] == PASSED
    fake.save("patch_controls", own, row | {"control": "wrong role x", "effect": 2.0})
    assert self_tests.elsewhere(Examined(fake.source))[0] == FIRED
    fake.save("patch_controls", own)
    assert self_tests.elsewhere(Examined(fake.source))[0] == NOT_ASKED


def test_random_sets_are_asked_of_the_smallest_set_with_half_of_the_effect(fake: Fake) -> None:
    full, small = chosen("full activation", 0, 1.0), chosen("greedy", 1, 0.4, n_controls=50, control_p=0.5)
    half = chosen("greedy", 4, 0.6, n_controls=50, control_p=0.02)
    fake.save("sets", full, small, chosen("greedy", 8, 0.9, n_controls=50, control_p=0.9), half)
    found = self_tests.random_sets(Examined(fake.source))
    assert found[0] == PASSED and found[1].startswith("4 latents at L2.resid_post pre")
    fake.save("sets", full, half | {"control_p": 0.06})
    assert self_tests.random_sets(Examined(fake.source))[0] == FIRED
    fake.save("sets", full, small)
    assert self_tests.random_sets(Examined(fake.source))[0] == NOT_ASKED


def test_a_manifest_that_was_changed_fires(fake: Fake) -> None:
    assert self_tests.manifest(Examined(fake.source))[0] == NOT_ASKED
    file = fake.place("shape") / "manifest.json"
    frozen = Manifest((Claim("L2.resid_post", "pre", 7, 1.5, "grows"),), (0, 1), "f")
    save_json(fake.place("growth") / "growth.json", {"accounts": {}, "manifest": frozen.freeze(file)})
    assert self_tests.manifest(Examined(fake.source))[0] == PASSED
    file.write_text(file.read_text(encoding="utf-8").replace('"pre",7', '"pre",8'), encoding="utf-8")
    changed = self_tests.manifest(Examined(fake.source))
    assert changed[0] == FIRED and "changed after it was frozen" in changed[1]


def test_a_stage_that_read_other_outputs_fires(fake: Fake) -> None:
    outputs = {"a.parquet": "0123"}
    prompts = {"inputs": {}, "outputs": outputs}
    track = {"inputs": {"prompts": hash_json(outputs)}, "outputs": {}}
    assert self_tests.chained(Examined(fake.source, {"prompts": prompts, "track": track}))[0] == PASSED
    other = {"inputs": {"prompts": "ffff"}, "outputs": {}}
    assert (
        self_tests.chained(Examined(fake.source, {"prompts": prompts, "track": other}))[1]
        == "track read another prompts"
    )
    assert self_tests.chained(Examined(fake.source, {"track": other, "prompts": None}))[0] == NOT_ASKED


def test_how_of_a_run_without_a_stage(fake: Fake) -> None:
    parts = read(HOW, fake.source)
    stages = parts["Stages"].tables[0]
    assert stages[1][2] == "no record: 01_saes/stage.json is missing or damaged"
    assert "no readable card.json" in parts["Hashes, versions and seeds"].words
    tests = [row for name, part in parts.items() if name.startswith("Of ") for row in part.tables[0][1:]]
    assert len(tests) > 10 and {row[1] for row in tests} == {NOT_ASKED}
    assert "task: 2x+3" in parts["Config"].words
    commands = [row[0] for row in parts["Run it again"].tables[0]]
    assert f"iclens train '{fake.folder}/training of mine.yaml' --out FOLDER" in commands


def test_how_reads_records_and_card(fake: Fake) -> None:
    record = {"seconds": 1.5, "key": "ab", "inputs": {"code": "cd"}, "found": {"n": 1234, "by": {"x": 0.5}}}
    record |= {"outputs": {"sweep.parquet": "ef"}, "taken_from": "earlier"}
    (fake.place("sweep") / "stage.json").write_text(json.dumps(record), encoding="utf-8")
    card = {"config": "c0", "iclens": {"version": "0.1.0", "commit": "abc+"}, "seeds": {"sweep.seed": 2}}
    save_json(fake.folder / "card.json", card)
    parts = read(HOW, fake.source)
    stage = next(row for row in parts["Stages"].tables[0] if row[0] == "sweep")
    assert stage[2:] == ["taken over from earlier", "1.50", "ab", "1", "iclens sweep RUN"]
    assert "n1,234" in parts["It said"].words and "byx 0.500" in parts["It said"].words
    assert "sweep.seed2" in parts["Seeds"].words
    committed = parts["Of the run's own record"].tables[0][2]
    assert "code of a commit" in committed[0] and committed[1] == FIRED


def test_values_of_a_record_in_words() -> None:
    assert words({"a": 1, "b": [True, "x", 0.25]}) == "a 1, b True, x, 0.250"
