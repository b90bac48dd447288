"""Configurations: the shipped ones validate, and each mistake gives one line that names its key."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iclens.core import ConfigError, IclensError, Site, SiteError, TaskError
from iclens.training.config import SaeSpec, load_train_config, parse_train_config

FOLDER = Path(__file__).resolve().parents[2] / "sae_configs"
SHIPPED = [FOLDER / name for name in ("icl_tiny.yaml", "llama3_8b_resid_mlp_l10-16.yaml")]
Declare = Callable[..., dict[str, Any]]


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configurations_validate(path: Path) -> None:
    config = load_train_config(path)
    hooks = {spec.site.hook for spec in config.saes.members}
    layers = {spec.site.layer for spec in config.saes.members}
    assert hooks == {"resid_post", "mlp_out"} and len(layers) >= 3
    assert config.data.excluded_positions == ()


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"training": {"tokns": 5}}, ConfigError, ("key 'tokns'", "tokens")),
        ({"data": {"exampels": 5}}, ConfigError, ("key 'exampels'", "examples")),
        ({"data": {"dataset": "x"}}, ConfigError, ("key 'dataset'", "unknown in MixtureContexts")),
        ({"data": {"kind": "txt"}}, ConfigError, ("key 'data'", "text")),
        ({"data": {"prompts": [{"task": "2x+3", "wieght": 0.1}]}}, ConfigError, ("key 'wieght'", "weight")),
        ({"data": {"prompts": [{"task": "2y", "weight": 0.1}]}}, TaskError, ("2y",)),
        ({"data": {"prompts": [{"task": "2x", "weight": 0.1, "arm": "Q"}]}}, TaskError, ("arm 'Q'",)),
        ({"data": {"prompts": [{"task": "2x", "weight": 0.7}] * 2}}, ConfigError, ("weights sum to 1.4",)),
        ({"saes": {"sites": ["L1.mlp"]}}, SiteError, ("mlp_out",)),
        ({"saes": {"sites": []}}, ConfigError, ("saes.sites",)),
        ({"saes": {"sites": ["L1.mlp_out", "blocks.1.hook_mlp_out"]}}, ConfigError, ("twice",)),
        ({"saes": {"sites": ["L1.mlp_out", {"site": "L1.mlp_out", "k": 3}]}}, ConfigError, ("twice",)),
        ({"saes": {"sites": [{"site": "L1.mlp_out", "kk": 3}]}}, ConfigError, ("key 'kk'", "Nearest: k")),
        ({"saes": {"sites": [{"site": "L1.mlp_out", "target": "L1.mlp"}]}}, SiteError, ("mlp_out",)),
        ({"saes": {"sites": [{"site": "L1.mlp_out", "target": "L1.mlp_out"}]}}, ConfigError, ("itself",)),
        ({"saes": {"sites": [3]}}, ConfigError, ("saes.sites.0",)),
        ({"saes": {"architecture": "top"}}, ConfigError, ("saes.architecture", "batchtopk")),
        ({"saes": {"architecture": "transcoder"}}, ConfigError, ("'target'", "missing")),
        (
            {"saes": {"sites": [{"site": "L1.mlp_out", "architecture": "gated", "k": 3}]}},
            ConfigError,
            ("'k'",),
        ),
        ({"saes": {"k": 300}}, ConfigError, ("'k'", "300 of 256")),
        ({"saes": {"k": None}}, ConfigError, ("'k'", "missing for L1.resid_post")),
        ({"saes": {"d_sae": None}}, ConfigError, ("'d_sae'", "missing for L1.resid_post")),
        ({"data": {"massive": {"ratio": 0.5}}}, ConfigError, ("massive.ratio",)),
        ({"data": {"excluded_positions": [-1]}}, ConfigError, ("excluded_positions",)),
        ({"checkpoints": {"keep": 0}}, ConfigError, ("checkpoints.keep",)),
        ({"training": {"lr": -1}}, ConfigError, ("training.lr",)),
        ({"training": {"lr": "fast"}}, ConfigError, ("training.lr",)),
        ({"training": {"buffer_tokens": 1024}}, ConfigError, ("buffer_tokens", "two batches")),
        ({"held_out": {"seed": -1}}, ConfigError, ("held_out.seed",)),
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


def test_each_sae_has_its_own_settings_where_given(small: Declare) -> None:
    sites = [
        "blocks.2.hook_resid_post",
        {"site": "L2.mlp_out", "d_sae": 512, "k": 8, "lr": 0.001, "seed": 5},
        {"site": "L3.mlp_in", "target": "L3.mlp_out", "options": {"a": 1}},
        {"site": "L3.mlp_in", "target": "L4.resid_mid", "architecture": "transcoder"},
        {"site": "L3.resid_mid", "architecture": "jumprelu"},
    ]
    saes = parse_train_config(small(saes={"sites": sites}) | {"seed": 7}).saes
    first, second, third, fourth, fifth = saes.members
    assert first == SaeSpec(Site(2, "resid_post"), None, 256, 32, 0.004, 7, "topk", {})
    assert second == SaeSpec(Site(2, "mlp_out"), None, 512, 8, 0.001, 5, "topk", {})
    assert third == SaeSpec(Site(3, "mlp_in"), Site(3, "mlp_out"), 256, 32, 0.004, 7, "topk", {"a": 1})
    assert fourth.architecture == "transcoder" and fourth.k is fifth.k is None
    assert [spec.name for spec in saes.members] == [
        "L2.resid_post", "L2.mlp_out", "L3.mlp_in-mlp_out", "L3.mlp_in-L4.resid_mid", "L3.resid_mid"
    ]  # fmt: skip
    assert [site.short for site in saes.recorded] == [
        "L2.resid_post", "L2.mlp_out", "L3.mlp_in", "L3.mlp_out", "L4.resid_mid", "L3.resid_mid"
    ]  # fmt: skip


def test_a_resolved_configuration_reads_back_as_itself(small: Declare) -> None:
    config = parse_train_config(small(saes={"sites": ["L1.mlp_out", {"site": "L2.mlp_out", "k": 8}]}))
    assert parse_train_config(config.model_dump(mode="json")) == config


def test_the_three_kinds_of_contexts(small: Declare) -> None:
    declared = small()
    for data, kind in (
        ({"kind": "text", "dataset": "texts/*.jsonl", "context_tokens": 64, "massive": None}, "TextContexts"),
        ({"kind": "tokens", "path": "ids.npy", "context_tokens": 64}, "TokenContexts"),
        ({"kind": "mixture"}, "MixtureContexts"),
    ):
        found = parse_train_config(declared | {"data": data}).data
        assert type(found).__name__ == kind and (found.massive is None) == (kind == "TextContexts")


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
