"""A whole run: faithful SAEs that sae_lens opens, metrics on the way, and nothing left behind."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sae_lens import SAE

from iclens.core import ConfigError, IclensError, ModelError, Site, SiteError
from iclens.model.load import LanguageModel, is_fingerprint
from iclens.model.run import record
from iclens.prompts.build import build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.load import load_saes
from iclens.training.config import parse_train_config
from iclens.training.data import ActivationBuffer
from iclens.training.loop import Pace, learning_rate, train_saes

Declare = Callable[..., dict[str, Any]]
Run = tuple[Path, list[dict[str, Any]]]
SITES = [Site(1, "resid_post"), Site(2, "mlp_out")]


@pytest.fixture(scope="module")
def activations(model: LanguageModel) -> dict[Site, torch.Tensor]:
    """Raw activations of prompts of a task that no prompt of the run shows, [row d_model]."""
    task = parse_task("3x+5")
    tokens = build_prompts(model.tokenizer, task, arm="T", n_prompts=8, n_examples=8, seed=5).tokens
    found = record(model, tokens, SITES, np.arange(1, tokens.shape[1]))
    return {site: torch.as_tensor(values).flatten(0, 1) for site, values in found.items()}


def test_held_out_quality_is_near_the_demands_even_after_so_few_tokens(run: Run) -> None:
    quality = json.loads((run[0] / "card.json").read_text())["quality"]
    assert [row["site"] for row in quality] == [str(site) for site in SITES]
    for row in quality:
        assert row["l0"] == pytest.approx(32, abs=0.05)
        assert row["fvu"] <= 0.25 and row["ce_recovered"] >= 0.6 and row["dead"] <= 0.1
        assert row["n_tokens"] == 32 * 49 and row["reason"] == ""


def test_sae_lens_opens_them_with_the_same_encodings(
    run: Run, model: LanguageModel, activations: dict[Site, torch.Tensor]
) -> None:
    saes = load_saes(run[0], model)
    assert list(saes) == SITES
    for site, sae in saes.items():
        theirs: Any = SAE.load_from_disk(run[0] / site.short)
        x = activations[site]
        assert (sae.encode(x) - theirs.encode(x)).abs().max() <= 1e-5
        assert ((sae.encode(x) > 0).sum(dim=1) <= 32).all()
        written_out = (theirs.b_enc + (x - theirs.b_dec) @ theirs.W_enc).topk(32, dim=1)
        expected = torch.zeros(len(x), 256).scatter(1, written_out.indices, written_out.values.relu())
        torch.testing.assert_close(sae.encode(x), expected)
        torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(256))
        assert theirs.cfg.metadata.hook_name == str(site)


def test_metrics_and_reports_tell_the_same_falling_error(run: Run) -> None:
    folder, reports = run
    begin, *steps, data, last = reports
    assert (list(begin), list(data)) == (["bos"], ["data"])
    assert list(last) == ["quality"]
    assert steps[0]["step"] == 1 and steps[-1]["step"] == steps[-1]["of"] == 48
    for site in SITES:
        lines = [
            json.loads(line) for line in (folder / site.short / "metrics.jsonl").read_text().splitlines()
        ]
        assert [line["fvu"] for line in lines] == [s["sites"][site.short]["fvu"] for s in steps]
        assert lines[-1]["fvu"] < lines[0]["fvu"] / 2
        assert {"step", "tokens", "lr", "fvu", "l0", "dead", "loss"} <= set(lines[0])
        assert lines[-1]["tokens"] == 49_152 and lines[0]["lr"] == 0


def test_the_folder_holds_what_it_should_and_its_neighbourhood_nothing(run: Run) -> None:
    folder = run[0]
    assert sorted(p.name for p in folder.iterdir()) == [
        "L1.resid_post", "L2.mlp_out", "card.json", "pace.jsonl"
    ]  # fmt: skip
    assert sorted(p.name for p in (folder / "L2.mlp_out").iterdir()) == [
        "cfg.json", "metrics.jsonl", "sae_weights.safetensors"
    ]  # fmt: skip
    assert [p.name for p in folder.parent.iterdir()] == ["saes"]
    assert is_fingerprint(json.loads((folder / "card.json").read_text())["model"]["fingerprint"])


def test_a_failure_before_the_first_checkpoint_leaves_nothing(short: Declare, tmp_path: Path) -> None:
    def interrupt(progress: dict[str, Any]) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_saes(parse_train_config(short()), tmp_path / "deep" / "er" / "set", interrupt)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model": {"name": "no/such/folder"}}, ModelError, "no such folder"),
        ({"saes": {"sites": ["L6.mlp_out"]}}, SiteError, "blocks 0 to 5"),
        ({"data": {"mixture": "nowhere.yaml"}}, ConfigError, "nowhere.yaml"),
        ({"data": {"excluded_positions": list(range(50))}}, ConfigError, "excluded_positions"),
        ({"training": {"lr": 1e30}}, ConfigError, "Lower lr"),
    ],
)
def test_a_run_that_cannot_be_leaves_nothing(
    short: Declare, tmp_path: Path, changes: dict[str, Any], kind: type[IclensError], words: str
) -> None:
    with pytest.raises(kind, match=words):
        train_saes(parse_train_config(short(**changes)), tmp_path / "deep" / "set")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_trained_is_refused_before_the_model_is_read(
    short: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read(*_: object, **__: object) -> None:
        raise AssertionError("the model was read")

    monkeypatch.setattr("iclens.training.loop.load_model", read)
    with pytest.raises(ConfigError, match="option 'widths'"):
        train_saes(parse_train_config(short(saes={"options": {"widths": [8]}})), tmp_path / "saes")


def test_the_buffer_is_where_the_model_is(
    short: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Seen(ActivationBuffer):
        def __init__(self, *args: Any, device: Any = None, **named: Any) -> None:
            asked.append(device)
            super().__init__(*args, device=device, **named)

    monkeypatch.setattr("iclens.training.loop.ActivationBuffer", Seen)
    train_saes(parse_train_config(short()), tmp_path / "saes")
    assert asked == [torch.device("cpu")]


def test_text_trains_on_a_part_of_the_model(short: Declare, tmp_path: Path) -> None:
    rows = [{"text": "".join(f"({x}, {x + n})\n" for x in range(40))} for n in range(20)]
    source = tmp_path / "text.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    declared = short(model={"load": "needed"})
    declared["data"] = {"kind": "text", "dataset": str(source), "context_tokens": 64}
    config = parse_train_config(declared | {"held_out": {"contexts": 4}})
    out = train_saes(config, tmp_path / "set")
    quality = json.loads((out / "card.json").read_text())["quality"]
    assert all(row["fvu"] < 1 and row["ce_recovered"] is None for row in quality)
    assert all("all blocks" in row["reason"] for row in quality)


def test_learning_rate_rises_stays_and_falls(small: Declare) -> None:
    config = parse_train_config(small(training={"warmup": 0.1, "decay_from": 0.5}))
    rates = [learning_rate(config, done) for done in (0, 0.05, 0.1, 0.5, 0.75, 1)]
    assert rates == pytest.approx([0, 0.5, 1, 1, 0.5, 0])
    assert learning_rate(parse_train_config(small(training={"warmup": 0})), 0) == 1


def test_the_card_says_what_was_left_out_and_measures_the_prompts_too(run: Run) -> None:
    card = json.loads((run[0] / "card.json").read_text())
    assert card["model"]["name"] == card["config"]["model"]["name"]
    assert card["versions"]["sae_lens"] and card["seconds"] > 0
    assert card["excluded"] == {"tokens": {"0": "BOS"}, "positions": {}}
    assert card["data"] == {"tokens left out": card["data"]["tokens left out"]}
    metadata = json.loads((run[0] / "L1.resid_post" / "cfg.json").read_text())["metadata"]
    assert metadata["exclude_special_tokens"] == [0] and metadata["exclude_positions"] == []
    assert card["processes"] == 1
    assert [row["site"] for row in card["quality_prompts"]] == [row["site"] for row in card["quality"]]
    for name, row in zip(("L1.resid_post", "L2.mlp_out"), card["quality"], strict=True):
        latents = [line["n_latents"] for line in card["density"] if line["sae_id"] == row["sae_id"]]
        assert sum(latents) == 256, name


def test_pace_is_that_of_late() -> None:
    pace = Pace(10_000)
    assert pace.at(0, 0.0) == {"tokens_per_second": None, "seconds_left": None}
    assert pace.at(1000, 1.0) == {"tokens_per_second": 1000.0, "seconds_left": 9.0}
    for second in range(2, 40):
        late = pace.at(1000 + 100 * (second - 1), float(second))
    assert late == {"tokens_per_second": 100.0, "seconds_left": 52.0}
