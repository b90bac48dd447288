"""The benchmarks of the training step, at small shapes: both trainers do the same work, and ours recovers."""

import importlib
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
import torch

FOLDER = Path(__file__).resolve().parents[3] / "analysis" / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Imports a benchmark by name."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name)

    return load


def test_both_steps_come_to_the_same_error(script: Callable[[str], ModuleType]) -> None:
    benchmark = script("train_step")
    shape = ["--d-in", "32", "--d-sae", "128", "--k", "4", "--rows", "128", "--chunk", "64"]
    given = benchmark.arguments([*shape, "--steps", "60", "--threads", str(torch.get_num_threads())])
    found = benchmark.compare(given)
    assert found["fvu_after"]["relative"] == pytest.approx(0, abs=0.02)
    assert found["fvu_after"]["ours"] < 0.9
    assert all(found[clock]["median_ms"]["ours"] > 0 for clock in ("wall", "processor"))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_what_is_there_is_recovered(script: Callable[[str], ModuleType], architecture: str) -> None:
    benchmark = script("ground_truth")
    given = Namespace(rows=100 * benchmark.BATCH, d_in=16, d_sae=24, k=3, architecture=architecture)
    world = benchmark.World(24, 16, 3.0, 0)
    assert torch.equal(world.rows(3), world.rows(3)) and not torch.equal(world.rows(3), world.rows(4))
    ours = world.recovery(benchmark.train_ours(world, given, 0.01))
    theirs = world.recovery(benchmark.train_theirs(world, given, 0.01))
    assert ours > 0.8 and ours >= theirs - 0.02
