"""Running text and rows of ids ask nothing about examples; what they begin with is said and kept."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from iclens.core import PADDING, TokenizerError
from iclens.model.load import load_tokenizer
from iclens.training.config import parse_train_config
from iclens.training.data import build_stream
from iclens.training.loop import train_saes
from iclens.training.text import TextSource

Declare = Callable[..., dict[str, Any]]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.jsonl"
    rows = [{"text": "".join(f"({x}, {x + n})\n" for x in range(40))} for n in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def asked(short: Declare, model: Path, **data: Any) -> dict[str, Any]:
    return {**short(held_out={"contexts": 4}), "model": {"name": str(model)}, "data": data}


@pytest.mark.parametrize("kind", ["text", "tokens"])
def test_a_tokenizer_that_splits_digits_trains_on(
    kind: str, short: Declare, digit_folder: Path, text: Path, tmp_path: Path
) -> None:
    rows = np.random.default_rng(0).integers(1, 257, (200, 64))
    rows[:, 0] = 0
    np.save(tmp_path / "rows.npy", rows)
    data = (
        {"path": str(tmp_path / "rows.npy")}
        if kind == "tokens"
        else {"dataset": str(text), "context_tokens": 64}
    )
    told: list[dict[str, Any]] = []
    config = parse_train_config(asked(short, digit_folder, kind=kind, **data))
    out = train_saes(config, tmp_path / "set", told.append)
    card = json.loads((out / "card.json").read_text())
    assert all(0 < row["fvu"] < 2 for row in card["quality"]) and card["quality_prompts"] == []
    said = [report["bos"] for report in told if "bos" in report]
    begin = "<s>, id 0, once (the tokenizer by itself puts [] before a text and [] after it)"
    assert said == [begin] == [card["bos"]]


def test_a_mixture_is_refused_before_the_model_is_read(
    short: Declare, digit_folder: Path, text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iclens.training.loop.load_model", lambda *_, **__: pytest.fail("the model was read"))
    data = {"kind": "mixture", "examples": 8}
    with pytest.raises(TokenizerError, match="'2', '8'"):
        train_saes(parse_train_config(asked(short, digit_folder, **data)), tmp_path / "set")


def test_prompts_of_many_tokens_are_mixed_in_and_measured(
    short: Declare, digit_folder: Path, text: Path, tmp_path: Path
) -> None:
    """Labels of one to three digits: contexts end with padding, which is neither trained on nor measured."""
    prompts = [{"task": "2x+3", "weight": 0.5}]
    data = {"dataset": str(text), "context_tokens": 64, "prompts": prompts, "examples": 6}
    config = parse_train_config(asked(short, digit_folder, kind="text", **data))
    tokenizer = load_tokenizer(digit_folder)
    blocks = [stream.next() for stream in [build_stream(config, tokenizer)] for _ in range(2)]
    (drawn,) = [block for block in blocks if block.shape[1] != 64]
    there = drawn != PADDING
    assert not there.all() and (there == np.logical_and.accumulate(there, axis=1)).all()
    card = json.loads((train_saes(config, tmp_path / "set") / "card.json").read_text())
    rows = card["quality_prompts"]
    assert rows and all(0 < row["fvu"] < 2 and row["n_tokens"] > 0 for row in rows)


def test_text_goes_on_without_bos_where_there_is_none(
    short: Declare, digit_folder: Path, text: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(digit_folder, folder)
    for name, key in (("config.json", "bos_token_id"), ("tokenizer_config.json", "bos_token")):
        content = json.loads((folder / name).read_text())
        del content[key]
        (folder / name).write_text(json.dumps(content))
    told: list[dict[str, Any]] = []
    config = parse_train_config(asked(short, folder, kind="text", dataset=str(text), context_tokens=64))
    out = train_saes(config, tmp_path / "set", told.append)
    assert told[0] == {"bos": "none"}
    assert json.loads((out / "card.json").read_text())["bos"] == told[0]["bos"]
    tokenizer = load_tokenizer(folder)
    row = TextSource(config.data, tokenizer, 0).held_out(1)[0]  # pyright: ignore[reportArgumentType]
    assert tokenizer.decode(row.tolist()) == json.loads(text.read_text().splitlines()[0])["text"][:64]
