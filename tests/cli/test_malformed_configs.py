"""Malformed and unusual configs of `plan`, `train` and `study`: one line that names file and cause."""

import copy
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from iclens.cli import main
from iclens.study import pipeline
from iclens.study.config import parse_study_config
from iclens.study.inputs import CHECKOUT
from iclens.training.config import load_train_config

MODEL = CHECKOUT / "checkpoints" / "icl-tiny"
TRAIN: dict[str, Any] = {
    "model": {"name": str(MODEL)},
    "data": {"kind": "mixture", "examples": 4},
    "saes": {"sites": ["L1.mlp_out"], "d_sae": 16, "k": 2},
    "training": {"tokens": 4096, "lr": 0.003, "batch_tokens": 256, "buffer_tokens": 1024},
    "held_out": {"contexts": 8},
}
STUDY: dict[str, Any] = {
    "study": "s", "model": {"folder": str(MODEL)}, "saes": {"folder": f"{MODEL}-saes"},
    "prompts": {"task": "2x+3", "n_prompts": 96},
}  # fmt: skip
TEXT = {"kind": "text", "dataset": "no.jsonl"}
HUGE = 10**30


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """One process, whatever started the tests, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def changed(base: dict[str, Any], where: str, value: Any) -> dict[str, Any]:
    """A config in which the key at a dotted path is another."""
    config = copy.deepcopy(base)
    *path, last = where.split(".")
    section = config
    for part in path:
        section = section.setdefault(part, {})
    section[last] = value
    return config


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["iclens", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert (ended.value.code, out) == (2, "") and len(lines) == 1, err
    assert len(lines[0]) < 1200
    return lines[0]


WRONG: list[tuple[str, Any, str]] = [
    ("model", None, "model"),
    ("model", "icl-tiny", "model"),
    ("model", [], "model"),
    ("model.name", 7, "model.name"),
    ("model.name", ["a"], "model.name"),
    ("model.name", "", "config.json"),
    ("model.name", "x" * 400, "no such folder"),
    ("model.name", "a\\b\\c", "no such folder"),
    ("model.load", "some", "model.load"),
    ("model.dtype", "fp8", "model.dtype"),
    ("model.device", 3, "model.device"),
    ("model.attention", "flash", "model.attention"),
    ("model.weights", "x", "weights"),
    ("data", {}, "data"),
    ("data.kind", "audio", "data"),
    ("data.kind", None, "data"),
    ("data.examples", 0, "examples"),
    ("data.examples", -4, "examples"),
    ("data.examples", 51, "examples"),
    ("data.examples", 43, "256 positions"),
    ("data.examples", "many", "examples"),
    ("data.examples", 4.5, "examples"),
    ("data.examples", True, "examples"),
    ("data.prompts", "2x+3", "prompts"),
    ("data.prompts", [{}], "prompts"),
    ("data.prompts", [{"task": "2x+3", "weight": -0.1}], "weight"),
    ("data.prompts", [{"task": "2x+3", "weight": 2}], "weight"),
    ("data.prompts", [{"task": "2x+3", "weight": 0.6}] * 2, "prompts"),
    ("data.prompts", [{"task": "2z+3", "weight": 0.1}], "2z+3"),
    ("data.prompts", [{"task": "2x+3", "arm": "D", "weight": 0.1}], "arm"),
    ("data.excluded_positions", [-1], "excluded_positions"),
    ("data.excluded_positions", 0, "excluded_positions"),
    ("data.massive", {"ratio": 1}, "ratio"),
    ("data.massive", {"ratio": float("inf")}, "ratio"),
    ("data.mixture", "nowhere.yaml", "nowhere.yaml"),
    ("data", TEXT | {"context_tokens": 257}, "256 positions"),
    ("data", TEXT | {"context_tokens": 1}, "context_tokens"),
    ("data", TEXT | {"context_tokens": HUGE}, "256 positions"),
    ("data", {"kind": "text"}, "dataset"),
    (
        "data",
        TEXT | {"context_tokens": 64, "examples": 48, "prompts": [{"task": "2x+3", "weight": 0.2}]},
        "examples: 48",
    ),
    ("data", {"kind": "tokens", "path": "long.npy"}, "256 positions"),
    ("data", {"kind": "tokens", "path": "flat.npy"}, "context_tokens"),
    ("data", {"kind": "tokens", "path": "flat.npy", "context_tokens": 300}, "256 positions"),
    ("data", {"kind": "tokens", "path": "none.npy"}, "none.npy"),
    ("data", {"kind": "tokens", "path": "text.npy"}, "text.npy"),
    ("saes", [], "saes"),
    ("saes.sites", [], "sites"),
    ("saes.sites", "L1.mlp_out", "sites"),
    ("saes.sites", ["L1.mlp"], "L1.mlp"),
    ("saes.sites", ["blocks.1"], "not a site name"),
    ("saes.sites", ["L1.z"], "hook_z"),
    ("saes.sites", ["blocks.1.attn.o.hook_in"], "hook_z"),
    ("saes.sites", ["model.layers.6"], "0 to 5"),
    ("saes.sites", ["L99999.mlp_out"], "0 to 5"),
    ("saes.sites", ["model.layers.1.mlp", "L1.mlp_out"], "stands twice"),
    ("saes.sites", [7], "sites"),
    ("saes.sites", [{"site": "L1.mlp_in", "target": "L1.mlp_in"}], "target"),
    ("saes.sites", [{"site": "L1.mlp_in", "target": "L7.mlp_out"}], "0 to 5"),
    ("saes.sites", [{"sight": "L1.mlp_in"}], "sight"),
    ("saes.d_sae", 0, "d_sae"),
    ("saes.d_sae", None, "d_sae"),
    ("saes.d_sae", "wide", "d_sae"),
    ("saes.k", 0, "k"),
    ("saes.k", 17, "17 of 16"),
    ("saes.k", True, "'k'"),
    ("saes.architecture", "relu", "architecture"),
    ("saes.options", [], "options"),
    ("training", None, "training"),
    ("training.tokens", 0, "tokens"),
    ("training.tokens", "1e6", "tokens"),
    ("training.lr", -1, "lr"),
    ("training.lr", float("nan"), "lr"),
    ("training.lr", float("inf"), "lr"),
    ("training.lr", "fast", "lr"),
    ("training.batch_tokens", 2.5, "batch_tokens"),
    ("training.buffer_tokens", 300, "buffer_tokens"),
    ("training.warmup", 1.5, "warmup"),
    ("training.encode_dtype", "float16", "encode_dtype"),
    ("training.decay", 0.2, "decay"),
    ("checkpoints.keep", 0, "keep"),
    ("checkpoints.every_minutes", 0, "every_minutes"),
    ("held_out.contexts", 0, "contexts"),
    ("held_out.seed", 0, "held_out.seed"),
    ("held_out.seed", -1, "seed"),
    ("seed", -1, "seed"),
    ("seed", HUGE, "seed"),
    ("seed", "zero", "seed"),
    ("sead", 1, "sead"),
]


@pytest.mark.parametrize(("where", "value", "words"), WRONG, ids=[f"{w[0]}={w[1]!r}"[:60] for w in WRONG])
def test_a_training_config_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, where: str, value: Any, words: str
) -> None:
    np.save("long.npy", np.ones((4, 300), dtype=np.int32))
    np.save("flat.npy", np.ones(4000, dtype=np.int32))
    Path("text.npy").write_text("no array")
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(changed(TRAIN, where, value)))
    before = set(tmp_path.rglob("*"))
    line = refused(capsys, "train", "c.yaml", "--out", "out")
    assert words in line, line
    if where != "data.mixture":  # a plan reads no mixture
        assert words in refused(capsys, "plan", "c.yaml")
    assert set(tmp_path.rglob("*")) == before


STUDIES: list[tuple[str, Any, str]] = [
    ("study", "", "study"),
    ("study", "a b", "study"),
    ("study", 7, "study"),
    ("study", None, "study"),
    ("model", None, "model"),
    ("model.folder", 3, "model.folder"),
    ("model.folder", "./no", "no such folder"),
    ("model.dtype", "int8", "model.dtype"),
    ("model.name", "x", "model.name"),
    ("saes", {}, "saes"),
    ("saes.train", "x.yaml", "saes"),
    ("saes.folder", "./no", "./no"),
    ("saes.quality_prompts", 0, "quality_prompts"),
    ("saes", {"train": "nowhere.yaml"}, "nowhere.yaml"),
    ("prompts", [], "prompts"),
    ("prompts.task", "2z", "2z"),
    ("prompts.task", None, "prompts.task"),
    ("prompts.arms", ["T"], "prompts.arms"),
    ("prompts.arms", ["T", "T"], "prompts.arms"),
    ("prompts.arms", ["T", "Z"], "arm 'Z'"),
    ("prompts.arms", "T", "prompts.arms"),
    ("prompts.rival", "2x+3", "rival"),
    ("prompts.n_prompts", 3, "n_prompts"),
    ("prompts.n_prompts", 20, "prompts"),
    ("prompts.n_examples", 2, "n_examples"),
    ("prompts.n_examples", 48, "290 tokens"),
    ("prompts.n_examples", HUGE, "256 positions"),
    ("prompts.n_examples", True, "n_examples"),
    ("prompts.seed", -1, "prompts.seed"),
    ("prompts.seed", HUGE, "seed"),
    ("prompts.numbers", [9, 0], "inputs"),
    ("prompts.numbers", [0], "prompts.numbers"),
    ("prompts.numbers", [0, 9], "inputs"),
    ("prompts.number", [0, 9], "Nearest: numbers"),
    ("track.sites", ["L9.mlp_out"], "0 to 5"),
    ("track.sites", ["L1.mlp"], "mlp"),
    ("track.sites", "L1.mlp_out", "sites"),
    ("track.roles", ["x"], "pre"),
    ("track.roles", ["pre", "y"], "role 'y'"),
    ("track.batch", 0, "track.batch"),
    ("track.beliefs", ["nothing"], "nothing"),
    ("growth.q", 0, "growth.q"),
    ("growth.q", 1.5, "growth.q"),
    ("growth.q", float("nan"), "growth.q"),
    ("growth.controls", ["R"], "growth.controls"),
    ("growth.split_seed", -2, "split_seed"),
    ("growth.dose_examples", 60, "dose_examples"),
    ("grid.tasks", [], "grid"),
    ("grid.tasks", ["{1..2}x+"], "x+"),
    ("grid.numbers", [5, 6], "grid"),
    ("grid.answers", [9, 3], "grid.answers"),
    ("grid.templates", [], "grid.templates"),
    ("grid.templates", ["x"], "x"),
    ("grid.n_examples", 43, "256 positions"),
    ("grid.n_examples", 3, "grid.n_examples"),
    ("grid.seed", -1, "grid.seed"),
    ("sweep.layers", [7], "0 to 6"),
    ("sweep.layers", [-1], "0 to 6"),
    ("sweep.donor_examples", 42, "260 tokens"),
    ("sweep.roles", ["later"], "later"),
    ("sweep.ablations", [["half", "pre"]], "sweep.ablations"),
    ("patch.sites", ["model.layers.8.mlp"], "0 to 5"),
    ("patch.donor_examples", 0, "donor_examples"),
    ("patch.recipient", "nobody", "patch.recipient"),
    ("patch.donor_value", "mean", "patch.donor_value"),
    ("patch.roles", [], "patch.roles"),
    ("patch.wrong_task", "2x+3", "2x+3"),
    ("patch.seed", 1.5, "patch.seed"),
    ("transforms.concepts", ["beauty"], "beauty"),
    ("transforms.layers", [6], "0 to 5"),
    ("transforms.q", 2, "transforms.q"),
    ("transforms.probe_rows", 5, "probe_rows"),
    ("dashboard.latents", {"L1.mlp": [3]}, "mlp"),
    ("dashboard.pages_per_site", 0, "pages_per_site"),
    ("dashboard.prompts", -1, "dashboard.prompts"),
    ("charts", {}, "charts"),
]


@pytest.mark.parametrize(("where", "value", "words"), STUDIES, ids=[f"{w[0]}={w[1]!r}"[:60] for w in STUDIES])
def test_a_study_config_is_refused(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    where: str,
    value: Any,
    words: str,
) -> None:
    def begun(*_: object) -> None:
        raise AssertionError("the study began")

    monkeypatch.setattr(pipeline, "_bring", begun)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(changed(STUDY, where, value)))
    line = refused(capsys, "study", "s.yaml", "--runs", "runs")
    assert words in line, line
    assert [path.name for path in tmp_path.iterdir()] == ["s.yaml"]


TEXTS: list[tuple[str, bytes, str]] = [
    ("a key twice", b"seed: 1\nseed: 2\n", "key 'seed' stands twice"),
    ("a key twice inside", b"model:\n  name: a\n  name: b\n", "key 'name' stands twice"),
    ("brackets without end", b"a: " + b"[" * 5000, "not YAML"),
    ("a tab", b"a:\n\t- 1", "not YAML"),
    ("a tag of Python", b"a: !!python/object:os.system {}", "not YAML"),
    ("a month that is none", b"a: 2026-13-45", "not YAML"),
    ("an unknown anchor", b"a: *b", "not YAML"),
    ("a list as a key", b"? [a]\n: 1", "not YAML"),
    ("a number", b"7", "holds no keys"),
    ("nothing", b"", "holds no keys"),
    ("a null byte", b"a: \x00", "not YAML"),
    ("UTF-16", "seed: 1".encode("utf-16"), "UTF-8|unreadable|utf-8"),
    ("a number as a key", b"1: 2", "'1'|study"),
    ("two documents", b"a: 1\n---\nb: 2\n", "not YAML"),
]


@pytest.mark.parametrize(("name", "content", "words"), TEXTS, ids=[name for name, _, _ in TEXTS])
@pytest.mark.parametrize("command", ["plan", "train", "study"])
def test_text_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str, name: str, content: bytes, words: str
) -> None:
    (tmp_path / "c.yaml").write_bytes(content)
    more = {"plan": [], "train": ["--out", "out"], "study": ["--runs", "runs"]}[command]
    line = refused(capsys, command, "c.yaml", *more)
    assert "c.yaml" in line and any(word in line for word in words.split("|")), line


@pytest.mark.parametrize("site", [
    "L1.mlp_out", "blocks.1.hook_mlp_out", "blocks.1.mlp.hook_out", "model.layers.1.mlp", "layers.1.mlp",
])  # fmt: skip
def test_every_spelling_of_a_site_is_the_same_config(tmp_path: Path, site: str) -> None:
    (tmp_path / "c.yaml").write_text(yaml.safe_dump(changed(TRAIN, "saes.sites", [site])))
    assert load_train_config(tmp_path / "c.yaml").saes.recorded[0].short == "L1.mlp_out"
    for where, value in (
        ("track.sites", [site]),
        ("patch.sites", [site]),
        ("dashboard.latents", {site: [3]}),
    ):
        config = parse_study_config(json.dumps(changed(STUDY, where, value)), "s.yaml")
        section, key = where.split(".")
        assert list(getattr(getattr(config, section), key)) == ["L1.mlp_out"]


def test_merged_keys_are_no_second_ones(tmp_path: Path) -> None:
    text = yaml.safe_dump(TRAIN) + "extra: &e {tokens: 1}\n"
    (tmp_path / "c.yaml").write_text(text.replace("extra: &e {tokens: 1}\n", ""))
    assert load_train_config(tmp_path / "c.yaml").training.tokens == 4096
    anchored = "model: &m {name: a}\ndata: {<<: *m}\n"
    (tmp_path / "m.yaml").write_text(anchored)
    with pytest.raises(Exception, match="data"):  # read, and refused for what it holds
        load_train_config(tmp_path / "m.yaml")


def test_there_are_enough() -> None:
    assert len(WRONG) + len(STUDIES) + len(TEXTS) >= 150
