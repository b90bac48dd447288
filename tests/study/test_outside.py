"""What a study reads from outside counts with every file that decides a number, and with no other."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from huggingface_hub import constants

from iclens.core import ModelError
from iclens.study.config import StudyConfig, parse_study_config
from iclens.study.flow import FLOW
from iclens.study.follow import _on_studied_model
from iclens.study.inputs import CHECKOUT, model_files, outside_inputs, pair_files, sae_files
from iclens.study.run import RunContext, RunFolder, inputs_of
from iclens.training.config import load_train_config

from .conftest import MODEL, STUDY, TRAINING

FIRST, SECOND = "1" * 40, "2" * 40


def study(model: object = MODEL, training: object = "t.yaml") -> StudyConfig:
    return parse_study_config(STUDY.format(model=model, training=training), "study.yaml")


@pytest.mark.parametrize(
    "name",
    [
        "config.json", "model.safetensors", "model.safetensors.index.json", "model-1-of-2.safetensors",
        "tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json", "vocab.json",
        "added_tokens.json", "merges.txt", "qwen.tiktoken", "chat_template.jinja", "mixture.yaml",
    ],
)  # fmt: skip
def test_any_file_that_loading_may_read_decides(name: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    config = study(tmp_path / "model")
    absent = model_files(config)
    (tmp_path / "model" / name).write_text("a")
    present = model_files(config)
    (tmp_path / "model" / name).write_text("b")
    assert absent != present != model_files(config)


@pytest.mark.parametrize("name", ["README.md", "card.json", "generation_config.json", "training.log"])
def test_files_that_tell_of_a_model_decide_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text("a")
    assert model_files(study(tmp_path)) == {}


@pytest.fixture
def cached(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds the built-in model as `someone/tiny`, at the first commit."""
    repository = tmp_path / "cache" / "models--someone--tiny"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(FIRST)
    shutil.copytree(MODEL, repository / "snapshots" / FIRST)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    return repository


def test_a_model_of_the_hub_is_its_commit(cached: Path) -> None:
    config = study("someone/tiny")
    assert model_files(config) == {"hub": "someone/tiny", "commit": FIRST}
    (cached / "snapshots" / FIRST).rename(cached / "snapshots" / SECOND)
    (cached / "refs" / "main").write_text(SECOND)
    assert model_files(config) == {"hub": "someone/tiny", "commit": SECOND}


def test_a_model_that_moved_on_while_a_study_ran_is_refused(cached: Path, tmp_path: Path) -> None:
    run = RunFolder(tmp_path, study("someone/tiny"))
    same, other = (RunContext(run, {"model": {"commit": c}}, print) for c in (FIRST, SECOND))
    assert same.model.n_blocks == 6
    with pytest.raises(ModelError, match=rf"{SECOND}.*moved on to {FIRST}.*Run `iclens study` again"):
        _ = other.model


def test_a_model_that_neither_disk_nor_hub_has_is_refused_in_one_line() -> None:
    with pytest.raises(
        ModelError, match=r"'someone/none'.*no such folder, and the hub does not give it"
    ) as caught:
        model_files(study("someone/none"))
    assert "\n" not in str(caught.value)


def tokens(folder: Path) -> dict[str, object]:
    np.save(folder / "ids.npy", np.arange(1000))
    return {"kind": "tokens", "path": str(folder / "ids.npy"), "context_tokens": 50}


def text(folder: Path) -> dict[str, object]:
    (folder / "a.txt").write_text("one")
    return {"kind": "text", "dataset": str(folder / "*.txt")}


def mixture(folder: Path) -> dict[str, object]:
    shutil.copy(MODEL / "mixture.yaml", folder / "mine.yaml")
    return {"kind": "mixture", "mixture": str(folder / "mine.yaml")}


def pairs(folder: Path) -> dict[str, object]:
    (folder / "mine.csv").write_text("x,y\nsky,blue\ngrass,green\n")
    return {"kind": "mixture", "prompts": [{"task": f"pairs:{folder / 'mine.csv'}", "weight": 0.5}]}


@pytest.mark.parametrize(
    ("data", "file", "more"),
    [
        (tokens, "ids.npy", "more"), (text, "a.txt", "more"), (text, "b.txt", "more"),
        (mixture, "mine.yaml", "more"), (pairs, "mine.csv", "night,black\n"),
    ],
)  # fmt: skip
def test_what_saes_are_trained_on_decides_them(
    data: Callable[[Path], dict[str, object]], file: str, more: str, tmp_path: Path
) -> None:
    declared = yaml.safe_load(TRAINING.format(model=MODEL)) | {"data": data(tmp_path)}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(declared))
    config = study(training=tmp_path / "t.yaml")
    before = sae_files(config)
    assert before == sae_files(config) and len(before) == 2
    with (tmp_path / file).open("ab") as stream:
        stream.write(more.encode())
    assert sae_files(config) != before


def stage_inputs(config: StudyConfig, folder: Path) -> dict[str, dict[str, str]]:
    """Stage → its inputs, of those stages that read no other."""
    context = RunContext(RunFolder(folder, config), {"model": {}, "SAE source": {}})
    return {
        stage.name: inputs_of(stage, context)
        for stage in FLOW if {*stage.reads} <= {*context.outside}
    }  # fmt: skip


@pytest.mark.parametrize(
    ("section", "settings", "named", "decided"),
    [
        ("prompts", {"task": "pairs:{}/a 1.csv"}, {1}, {"prompts", "sweep"}),
        ("prompts", {"rival": "pairs:{}/a 2.csv"}, {2}, {"prompts", "sweep"}),
        ("grid", {"tasks": ["2x", "pairs:{}/a {{1..2}}.csv"]}, {1, 2}, {"saes"}),
        ("track", {"beliefs": ["among:pairs:{}/a 1.csv"]}, {1}, {"saes"}),
        ("prompts", {"task": "pairs:capital"}, set(), set()),
    ],
)
def test_a_stage_is_stale_when_a_file_of_pairs_that_its_settings_name_changes(
    section: str, settings: dict[str, object], named: set[int], decided: set[str], tmp_path: Path
) -> None:
    files = [tmp_path / f"a {n}.csv" for n in range(3)]
    for file in files:
        file.write_text("x,y\nsky,blue\ngrass,green\n")
    plain = yaml.safe_load(STUDY.format(model=MODEL, training="t.yaml"))
    plain["track"]["beliefs"] = []
    for key, value in settings.items():
        texts = value if isinstance(value, list) else [value]
        made = [text.format(tmp_path) for text in texts]
        plain[section][key] = made if isinstance(value, list) else made[0]
    config = parse_study_config(yaml.safe_dump(plain), "study.yaml")
    before = stage_inputs(config, tmp_path)
    assert {stage for stage, inputs in before.items() if "pairs" in inputs} == decided
    assert pair_files(config.model_dump(mode="json")).keys() == {str(files[n]) for n in named}
    for n, file in enumerate(files):
        file.write_text(f"x,y\nsky,blue\ngrass,green\nnight,black {n}\n")
        after = stage_inputs(config, tmp_path)
        changed = {stage for stage in before if before[stage] != after[stage]}
        assert changed == (decided if n in named else set())
        assert all(before[stage] | {"pairs": after[stage]["pairs"]} == after[stage] for stage in changed)
        before = after


@pytest.mark.parametrize(
    ("name", "decides"),
    [
        ("card.json", True), ("L2.mlp_out/cfg.json", True), ("L2.mlp_out/sae_weights.safetensors", True),
        ("report.html", False), ("L2.resid_post/metrics.jsonl", False), ("pace.jsonl", False),
    ],
)  # fmt: skip
def test_files_of_an_sae_set(name: str, decides: bool, tmp_path: Path) -> None:
    folder = tmp_path / "set"
    shutil.copytree(CHECKOUT / "checkpoints" / "icl-tiny-saes", folder)
    plain = yaml.safe_load(STUDY.format(model=MODEL, training="x")) | {"saes": {"folder": str(folder)}}
    plain["transforms"] |= {"other_saes": [str(folder)]}
    config = parse_study_config(yaml.safe_dump(plain), "study.yaml")
    before = outside_inputs(config)
    with (folder / name).open("a") as stream:
        stream.write(" ")
    after = outside_inputs(config)
    changed = {key for key in before if before[key] != after[key]}
    assert changed == ({"SAE source", "other SAEs"} if decides else set())


@pytest.mark.parametrize("named", ["a copy", "its own folder"])
def test_saes_are_trained_on_the_folder_whose_files_are_in_the_key(named: str, tmp_path: Path) -> None:
    """A copy of the model may hold another mixture or tokenizer, which no key would see."""
    folder = MODEL
    if named == "a copy":
        folder = shutil.copytree(MODEL, tmp_path / "copy")
        (folder / "mixture.yaml").write_text("another")
    (tmp_path / "t.yaml").write_text(TRAINING.format(model=folder))
    config = study(training=tmp_path / "t.yaml")
    bench = RunContext(RunFolder(tmp_path / "run", config), outside_inputs(config), lambda found: None)
    trained = _on_studied_model(load_train_config(tmp_path / "t.yaml"), bench)
    assert Path(trained.model.name).resolve() == MODEL.resolve()
