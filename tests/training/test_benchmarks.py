"""The benchmarks of plan, true shape and throughput, at small shapes: they run, and they can fail."""

import importlib
import sys
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from iclens.core import ModelError
from iclens.model.shape import read_shape
from iclens.training.plan import cpu, plan

FOLDER = Path(__file__).resolve().parents[2] / "analysis" / "benchmarks"


@pytest.fixture(scope="module")
def benchmarks() -> Iterator[dict[str, ModuleType]]:
    """The scripts, which import each other as neighbours."""
    names = (
        "random_llama", "streamed_llama", "true_shape", "true_shape_patching", "exhaustive_patch",
        "plan_memory", "throughput", "train_step", "ground_truth",
    )  # fmt: skip
    sys.path.insert(0, str(FOLDER))
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(FOLDER))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def folder(benchmarks: dict[str, ModuleType], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random model of the small shape."""
    scale, made = benchmarks["true_shape"].SMALL, tmp_path_factory.mktemp("shape") / "model"
    benchmarks["random_llama"].write_folder(made, scale.config, scale.blocks_per_shard)
    return made


@pytest.fixture(scope="module")
def found(benchmarks: dict[str, ModuleType], folder: Path) -> dict[str, dict[str, Any]]:
    """Every stage of the true-shape proof."""
    script = benchmarks["true_shape"]
    return {stage: script.measured(stage, folder, script.SMALL) for stage in script.STAGES}


def test_the_folder_holds_what_the_shape_says(folder: Path) -> None:
    shape = read_shape(folder)
    written = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    assert written == pytest.approx(2 * shape.parameters(6, head=1), rel=0.05)
    assert len(list(folder.glob("model-*.safetensors"))) == 5


def test_the_true_shape_proof_holds_at_a_small_shape(
    benchmarks: dict[str, ModuleType], found: dict[str, dict[str, Any]]
) -> None:
    assert benchmarks["true_shape"].faults(found) == []
    forward = found["forward"]
    assert forward["distance"] < 0.03 < 0.2 < min(forward["another rope"], forward["two blocks swapped"])
    one, other = found["load"]["refused"]
    assert "missing" in one and "up_proj" in one and "mismatched" in other


@pytest.mark.parametrize(
    ("stage", "key", "value", "words"),
    [
        ("load", "block_weights_as_planned", False, "load"),
        ("load", "refused", ["NOT REFUSED", "x"], "load"),
        ("forward", "distance", 0.3, "from the reference"),
        ("forward", "distance", float("nan"), "from the reference"),
        ("forward", "another rope", 0.1, "control 'another rope'"),
        ("train", "last_fvu", 9.0, "does not fall"),
        ("encode", "same_latents", 0.99, "encode"),
        ("encode", "peak_gb", 25.0, "peak 25.0 GB"),
    ],
)
def test_the_proof_can_fail(
    benchmarks: dict[str, ModuleType], found: dict[str, dict[str, Any]], stage: str, key: str, value: Any,
    words: str,
) -> None:  # fmt: skip
    broken = found | {stage: {**found[stage], key: value}}
    faults = benchmarks["true_shape"].faults(broken)
    assert len(faults) == 1 and words in faults[0]


def test_the_reference_is_that_of_the_network(benchmarks: dict[str, ModuleType], folder: Path) -> None:
    from iclens.model.load import load_model

    streamed = benchmarks["streamed_llama"].Streamed(folder)
    model = load_model(folder)
    tokens = torch.arange(3, 40)
    with torch.no_grad():
        theirs = model.network(tokens[None], output_hidden_states=True).hidden_states
    ours = streamed.residuals(tokens, range(6), 500000.0)
    torch.testing.assert_close(ours[2], theirs[3][0], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def patched(benchmarks: dict[str, ModuleType], folder: Path) -> dict[str, dict[str, Any]]:
    """Every stage of the true-shape proof of patching."""
    stages, small = benchmarks["true_shape_patching"].STAGES, benchmarks["true_shape"].SMALL
    return {stage: benchmarks["true_shape"].measured(stage, folder, small, stages) for stage in stages}


def test_patching_is_exact_at_a_small_shape(
    benchmarks: dict[str, ModuleType], patched: dict[str, dict[str, Any]]
) -> None:
    assert benchmarks["true_shape_patching"].faults(patched) == []
    exact = patched["exact"]
    assert len(exact["differences"]) == 13 and max(exact["differences"].values()) < 2e-5
    assert min(exact["one layer later"], exact["one position earlier"]) > 0.1


@pytest.mark.parametrize(
    ("stage", "key", "value", "words"),
    [
        ("exact", "differences", {"L2.mlp_out": 2e-4}, "at L2.mlp_out"),
        ("exact", "differences", {"L2.mlp_out": float("nan")}, "at L2.mlp_out"),
        ("exact", "one layer later", 1e-3, "control 'one layer later'"),
        ("exact", "least_effect", 1e-4, "an addition changes only"),
        ("speed", "distance", 0.05, "from a full pass"),
        ("speed", "the next row", 0.07, "control 'the next row'"),
        ("speed", "peak_gb", 21.0, "peak 21.0 GB"),
        ("replicate", "exit", 2, "replicate"),
    ],
)
def test_the_proof_of_patching_can_fail(
    benchmarks: dict[str, ModuleType], patched: dict[str, dict[str, Any]], stage: str, key: str, value: Any,
    words: str,
) -> None:  # fmt: skip
    broken = patched | {stage: {**patched[stage], key: value}}
    faults = benchmarks["true_shape_patching"].faults(broken)
    assert len(faults) == 1 and words in faults[0]


def test_every_site_of_the_built_in_model_is_patched(benchmarks: dict[str, ModuleType]) -> None:
    script = benchmarks["exhaustive_patch"]
    model = script.load_model(script.CHECKPOINTS / "icl-tiny")
    runs = script.build_runs(
        model.tokenizer, script.parse_task("2x+3"), recipient="S arm", n_prompts=4, donor_examples=4
    )
    found = script.patch_all(model, script.saes(model), runs, "instance")
    assert len(found["sites"]) == 6 and all(site["rows"] > 0 for site in found["sites"].values())
    assert found["rows"] == sum(site["rows"] for site in found["sites"].values())
    assert sum(found["shares"].values()) == pytest.approx(1, abs=0.01)
    assert min(found["shares"].values()) >= 0


def test_a_cut_shard_is_refused(benchmarks: dict[str, ModuleType], folder: Path, tmp_path: Path) -> None:
    script = benchmarks["true_shape"]
    copy = tmp_path / "copy"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    shard = copy / "model-00002-of-00005.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])
    with pytest.raises(ModelError):
        script.load(copy, script.SMALL)


def test_peak_memory_rises_by_what_is_taken_and_stays(benchmarks: dict[str, ModuleType]) -> None:
    peak_memory = benchmarks["plan_memory"].peak_memory
    before = peak_memory()
    taken = np.ones(max(before, 10**8) // 8 * 2)
    peak = peak_memory()
    assert peak >= taken.nbytes and peak >= before
    del taken
    assert peak_memory() == pytest.approx(peak, rel=0.01)


def test_planned_memory_is_compared_with_a_run(benchmarks: dict[str, ModuleType], tmp_path: Path) -> None:
    script = benchmarks["plan_memory"]
    assert not {*script.FITTED.values()} & {*script.UNSEEN.values()}
    for sizes in (script.FITTED, script.UNSEEN):
        planned = [
            plan(script.run_config(tmp_path, size), cpu(), _shape(script, size)).peak
            for size in sizes.values()
        ]
        assert planned == sorted(planned) and planned[-1] < 5e9


def _shape(script: ModuleType, size: Any) -> Any:
    from iclens.model.shape import ModelShape

    return ModelShape.from_config(script.model_config(size))


def test_throughput_runs_both_trainers(benchmarks: dict[str, ModuleType]) -> None:
    script = benchmarks["throughput"]
    network = script.random_network(script.SMALL, "cpu", torch.float32)
    for case in script.SMALL.cases:
        found = script.measured(script.SMALL, case, cpu(), steps=8, warm=2, network=network)
        assert found["ours"] > 0 and found["sae_lens"] > 0
        assert 0 < found["fraction_of_bound"] < 1


def test_the_clock_counts_from_the_batch_after_the_warm_up(benchmarks: dict[str, ModuleType]) -> None:
    clock = benchmarks["throughput"].Clock(2, "cpu")
    for _ in range(2):
        clock.tick()
    assert clock.started == 0
    clock.tick()
    assert clock.started > 0 and clock.seconds() >= 0 and clock.seen == 3


def test_both_steps_come_to_the_same_error(benchmarks: dict[str, ModuleType]) -> None:
    script = benchmarks["train_step"]
    shape = ["--d-in", "32", "--d-sae", "128", "--k", "4", "--rows", "128", "--chunk", "64"]
    given = script.arguments([*shape, "--steps", "60", "--threads", str(torch.get_num_threads())])
    found = script.compare(given)
    assert found["fvu_after"]["relative"] == pytest.approx(0, abs=0.02)
    assert found["fvu_after"]["ours"] < 0.9
    assert all(found[clock]["median_ms"]["ours"] > 0 for clock in ("wall", "processor"))


@pytest.mark.parametrize("architecture", ["topk", "batchtopk"])
def test_what_is_there_is_recovered(benchmarks: dict[str, ModuleType], architecture: str) -> None:
    script = benchmarks["ground_truth"]
    given = Namespace(rows=100 * script.BATCH, d_in=16, d_sae=24, k=3, architecture=architecture)
    world = script.World(24, 16, 3.0, 0)
    assert torch.equal(world.rows(3), world.rows(3)) and not torch.equal(world.rows(3), world.rows(4))
    ours = world.recovery(script.train_ours(world, given, 0.01))
    theirs = world.recovery(script.train_theirs(world, given, 0.01))
    assert ours > 0.8 and ours >= theirs - 0.02
