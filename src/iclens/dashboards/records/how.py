"""How was a run computed? Its config, stages and self-tests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

PASSED, FIRED, NOT_ASKED = "passed", "fired", "not asked"
"""What a self-test can say."""


@dataclass(frozen=True)
class Named:
    """A named value: a version, seed, hash or finding."""

    name: str
    value: str


@dataclass(frozen=True)
class StageRow:
    """One stage of the run.

    Args:
        name: of the stage.
        folder: inside the run.
        state: "done", "taken over from …", or why there is no record.
        seconds: it took; None where that is not known.
        key: hash of all that decides its result.
        inputs: hash of each of them.
        found: what it said of its own result.
        outputs: hash of each file it wrote.
        command: that brings it up to date.
    """

    name: str
    folder: str
    state: str
    seconds: float | None = None
    key: str = ""
    inputs: Sequence[Named] = ()
    found: Sequence[Named] = ()
    outputs: Sequence[Named] = ()
    command: str = ""


@dataclass(frozen=True)
class Command:
    """A command line and what it does."""

    line: str
    says: str


@dataclass(frozen=True)
class SelfTest:
    """A way in which the run could have shown itself wrong.

    Args:
        question: what was asked.
        verdict: "passed", "fired" or "not asked".
        figure: what was measured, in words, or why it was not.
        rule: when it fires.
    """

    question: str
    verdict: str
    figure: str
    rule: str


@dataclass(frozen=True)
class TestGroup:
    """Self-tests of one thing.

    Args:
        about: what they are tests of, a heading.
        limits: what passing them does not show.
        tests: in their order.
    """

    __test__ = False

    about: str
    limits: str
    tests: Sequence[SelfTest]


@dataclass(frozen=True)
class HowView:
    """The page of how it was computed.

    Args:
        config: the resolved config, as YAML.
        run: name of the run's folder.
        stages: in their order.
        commands: that repeat it, the whole first.
        hashes: of model, tokenizer, SAEs, config and code.
        versions: of packages, Python and iclens.
        seeds: every seed of the config.
        tests: self-tests, thing by thing.
        measured: what was measured to set up the tests.
        reasons: why a part is empty, by its name.
    """

    config: str = ""
    run: str = ""
    stages: Sequence[StageRow] = ()
    commands: Sequence[Command] = ()
    hashes: Sequence[Named] = ()
    versions: Sequence[Named] = ()
    seeds: Sequence[Named] = ()
    tests: Sequence[TestGroup] = ()
    measured: Sequence[Named] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)
