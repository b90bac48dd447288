"""Contexts longer than the model, of every kind of data and in every command, before a weight is read."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iclens.cli import checked_text
from iclens.core import IclensError, ModelError, SiteError, prompt_length
from iclens.model.shape import read_shape
from iclens.seed_post.verdicts import replicate_seed_post
from iclens.study.check_saes import check_saes
from iclens.study.config import parse_study_config
from iclens.study.grid import quality_prompts
from iclens.study.pipeline import run_study
from iclens.training.config import parse_train_config
from iclens.training.loop import train_saes
from iclens.training.plan import check_limits, cpu, plan

Declare = Callable[..., dict[str, Any]]
MODEL = Path(__file__).resolve().parents[2] / "checkpoints" / "icl-tiny"


@pytest.fixture
def weightless(tmp_path: Path) -> Path:
    """The built-in model, of 256 positions, without its weights: whoever reads these raises another error."""
    folder = tmp_path / "weightless"
    shutil.copytree(MODEL, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder


def rows(folder: Path, shape: tuple[int, ...]) -> str:
    np.save(folder / "ids.npy", np.ones(shape, dtype=np.int32))
    return str(folder / "ids.npy")


DATA: dict[str, Callable[[Path], dict[str, Any]]] = {
    "data.context_tokens: 257": lambda _: {"kind": "text", "dataset": "no.jsonl", "context_tokens": 257},
    "data.examples: 43": lambda _: {"kind": "mixture", "examples": 43},
    "data.path": lambda folder: {"kind": "tokens", "path": rows(folder, (9, 257))},
    "data.path: ": lambda folder: {"kind": "tokens", "path": rows(folder, (9999,)), "context_tokens": 257},
    "data.examples: 44": lambda _: {
        "kind": "text", "dataset": "no.jsonl", "context_tokens": 64, "examples": 44,
        "prompts": [{"task": "2x+3", "weight": 0.1}],
    },
}  # fmt: skip


@pytest.mark.parametrize("key", DATA)
def test_contexts_longer_than_the_model_are_refused(
    short: Declare, weightless: Path, tmp_path: Path, key: str
) -> None:
    declared = short(model={"name": str(weightless)}) | {"data": DATA[key](tmp_path)}
    config = parse_train_config(declared)
    for run in (lambda: train_saes(config, tmp_path / "out"), lambda: plan(config, cpu())):
        with pytest.raises(ModelError) as caught:
            run()
        assert f"key '{key}" in str(caught.value) and "256 positions" in str(caught.value)
        most = "42 examples." if "examples" in key else "256 tokens to a context."
        assert str(weightless) in str(caught.value) and str(caught.value).endswith(f"Give at most {most}")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("data", [
    {"kind": "text", "dataset": "x", "context_tokens": 256, "examples": 50},  # no prompts are mixed in
    {"kind": "mixture", "examples": 42},
])  # fmt: skip
def test_contexts_as_long_as_the_model_pass(short: Declare, data: dict[str, Any]) -> None:
    check_limits(parse_train_config(short() | {"data": data}), read_shape(MODEL))


def test_a_site_above_the_model_is_refused_before_a_weight_is_read(
    short: Declare, weightless: Path, tmp_path: Path
) -> None:
    for load in ("whole", "needed"):
        model = {"name": str(weightless), "load": load}
        config = parse_train_config(short(model=model, saes={"sites": ["L1.resid_post", "L6.mlp_in"]}))
        with pytest.raises(SiteError, match=r"blocks\.6\.mlp\.hook_in: the model has blocks 0 to 5"):
            train_saes(config, tmp_path / "out")


STUDY: dict[str, Any] = {
    "study": "s", "saes": {"folder": str(MODEL.parent / "icl-tiny-saes")},
    "prompts": {"task": "2x+3", "n_prompts": 96},
}  # fmt: skip


@pytest.mark.parametrize(("section", "changes", "words"), [
    ("prompts", {"n_examples": 48}, "key 'prompts.n_examples': 48: contexts of 290 tokens"),
    ("grid", {"n_examples": 43}, "key 'grid.n_examples': 43: contexts of 260 tokens"),
    ("sweep", {"donor_examples": 42}, "key 'sweep.donor_examples': 42: contexts of 260 tokens"),
    ("patch", {"donor_examples": 42}, "key 'patch.donor_examples': 42: contexts of 260 tokens"),
    ("transforms", {"donor_examples": 42}, "key 'transforms.donor_examples': 42: contexts of 260 tokens"),
    ("track", {"sites": ["L1.mlp_out", "L6.mlp_out"]}, "key 'track.sites': L6.mlp_out"),
    ("patch", {"sites": ["L9.resid_post"]}, "key 'patch.sites': L9.resid_post"),
    ("sweep", {"layers": [0, 7]}, "key 'sweep.layers': 7: '"),
    ("transforms", {"layers": [6]}, "key 'transforms.layers': 6: '"),
])  # fmt: skip
def test_a_study_longer_or_deeper_than_the_model_is_refused(
    weightless: Path, tmp_path: Path, section: str, changes: dict[str, Any], words: str
) -> None:
    declared = STUDY | {"model": {"folder": str(weightless)}}
    declared[section] = declared.get(section, {}) | changes
    config = parse_study_config(json.dumps(declared), "study.yaml")
    with pytest.raises(IclensError) as caught:
        run_study(config, tmp_path / "runs", lambda _event: None)
    assert words in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "runs").exists()


def test_a_study_whose_training_is_longer_than_the_model_is_refused(
    short: Declare, weightless: Path, tmp_path: Path
) -> None:
    training = short(model={"name": str(weightless)}) | {"data": {"kind": "mixture", "examples": 43}}
    (tmp_path / "train.yaml").write_text(json.dumps(training))
    declared = STUDY | {"model": {"folder": str(weightless)}, "saes": {"train": str(tmp_path / "train.yaml")}}
    config = parse_study_config(json.dumps(declared), "study.yaml")
    with pytest.raises(ModelError, match=r"data.examples: 43.*256 positions"):
        run_study(config, tmp_path / "runs", lambda _event: None)


@pytest.mark.parametrize(("positions", "examples"), [(38, 6), (40, 6), (97, 15), (98, 16), (256, 16)])
def test_saes_are_measured_on_prompts_that_the_model_holds(
    weightless: Path, monkeypatch: pytest.MonkeyPatch, positions: int, examples: int
) -> None:
    shutil.copy(MODEL / "model.safetensors", weightless)
    with_positions(weightless, positions)
    monkeypatch.setattr(
        "iclens.study.check_saes.quality_prompts", lambda *a: quality_prompts(*a).select(np.arange(3))
    )
    found = check_saes([str(MODEL.parent / "icl-tiny-saes" / "L2.mlp_out")], str(weightless))
    assert found.as_json()["n_examples"] == found.n_examples == examples
    assert set(found.fidelity["n_tokens"]) == {3 * examples, 3 * (prompt_length(examples) - 1)}
    assert f"prompts of {examples} examples" in checked_text(found)


def with_positions(folder: Path, positions: int) -> None:
    config = folder / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"max_position_embeddings": positions}))


def test_measuring_and_replicating_ask_for_the_positions_too(weightless: Path) -> None:
    with_positions(weightless, 37)
    with pytest.raises(ModelError, match=r"the task grid: contexts of 38 tokens.*37 pos.* 38 positions or m"):
        check_saes([str(MODEL.parent / "icl-tiny-saes")], str(weightless))
    with pytest.raises(ModelError, match="37 positions"):
        replicate_seed_post(str(weightless))
