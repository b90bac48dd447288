"""Configurations: the shipped ones validate, and each mistake gives one line that names its key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iclens.errors import ConfigError, IclensError, SiteError, TaskError
from iclens.training.config import load_train_config, parse_train_config

FOLDER = Path(__file__).resolve().parents[2] / "sae_configs"
SHIPPED = [FOLDER / name for name in ("icl_tiny.yaml", "llama3_8b_resid_mlp_l10-16.yaml")]
Declare = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_validate(path: Path) -> None:
    config = load_train_config(path)
    hooks = {site.hook for site in config.saes.parsed}
    layers = {site.layer for site in config.saes.parsed}
    assert hooks == {"resid_post", "mlp_out"} and len(layers) >= 3
    assert 0 in config.data.excluded_positions


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"training": {"tokns": 5}}, ConfigError, ("key 'tokns'", "tokens")),
        ({"data": {"exampels": 5}}, ConfigError, ("key 'exampels'", "examples")),
        ({"data": {"dataset": "x"}}, ConfigError, ("key 'dataset'", "unknown in MixtureContexts")),
        ({"data": {"kind": "txt"}}, ConfigError, ("key 'data'", "text")),
        ({"data": {"prompts": [{"task": "2x+3", "wieght": 0.1}]}}, ConfigError, ("key 'wieght'", "weight")),
        ({"data": {"prompts": [{"task": "2y", "weight": 0.1}]}}, TaskError, ("2y",)),
        ({"data": {"prompts": [{"task": "2x", "weight": 0.1, "arm": "Q"}]}}, ConfigError, ("arm 'Q'",)),
        ({"data": {"prompts": [{"task": "2x", "weight": 0.7}] * 2}}, ConfigError, ("weights sum to 1.4",)),
        ({"saes": {"sites": ["L1.mlp"]}}, SiteError, ("mlp_out",)),
        ({"saes": {"sites": []}}, ConfigError, ("saes.sites",)),
        ({"saes": {"sites": ["L1.mlp_out", "blocks.1.hook_mlp_out"]}}, ConfigError, ("twice",)),
        ({"saes": {"k": 300}}, ConfigError, ("'k'", "300 of 256")),
        ({"training": {"lr": -1}}, ConfigError, ("training.lr",)),
        ({"training": {"lr": "fast"}}, ConfigError, ("training.lr",)),
        ({"training": {"buffer_tokens": 1024}}, ConfigError, ("buffer_tokens", "two batches")),
        ({"held_out": {"seed": 0}}, ConfigError, ("held_out.seed",)),
        ({"model": {"dtype": "int8"}}, ConfigError, ("model.dtype",)),
    ],
)
def test_a_mistake_is_one_line(
    small: Declare, changes: dict[str, Any], kind: type[IclensError], words: tuple[str, ...]
) -> None:
    with pytest.raises(kind) as caught:
        parse_train_config(small(**changes))
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_unknown_and_missing_sections_are_named(small: Declare) -> None:
    with pytest.raises(ConfigError, match=r"key 'sae': unknown in TrainConfig\. Nearest: saes"):
        parse_train_config(small() | {"sae": {}})
    declared = small()
    del declared["saes"]
    with pytest.raises(ConfigError, match="key 'saes'"):
        parse_train_config(declared)


def test_unreadable_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file"):
        load_train_config(tmp_path / "no.yaml")
    path = tmp_path / "bad.yaml"
    for text, words in (("model: [", "not YAML"), ("just words", "holds no keys"), ("", "holds no keys")):
        path.write_text(text)
        with pytest.raises(ConfigError, match=words) as caught:
            load_train_config(path)
        assert "\n" not in str(caught.value)


def test_numbers_may_be_written_as_yaml_reads_them(tmp_path: Path) -> None:
    path = tmp_path / "ok.yaml"
    path.write_text(
        "model: {name: m}\ndata: {kind: mixture}\nsaes: {sites: [L1.mlp_out], d_sae: 8, k: 2}\n"
        "training: {tokens: 1_000, lr: 1e-3}\n"
    )
    config = load_train_config(path)
    assert config.training.lr == 0.001 and config.training.tokens == 1000
