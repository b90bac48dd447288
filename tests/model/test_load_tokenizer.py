"""Models whose tokenizer splits digits, names no BOS, or puts it elsewhere are loaded; prompts ask later."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iclens.core import ModelError, TokenizerError
from iclens.model.load import load_model, load_tokenizer
from iclens.prompts.render import bos_id, check_tokenizer
from iclens.seed_post.verdicts import replicate_seed_post
from iclens.study.check_saes import check_saes

Edit = Callable[[dict[str, Any]], object]


def edited(folder: Path, of: Path, **edits: Edit) -> Path:
    """The model `of` with other JSON files; `config=` edits config.json."""
    shutil.copytree(of, folder)
    for name, edit in edits.items():
        path = folder / f"{name}.json"
        content = json.loads(path.read_text())
        edit(content)
        path.write_text(json.dumps(content))
    return folder


def nameless(content: dict[str, Any]) -> None:
    """No BOS is named, and none is added."""
    content.pop("bos_token", None)
    content["post_processor"] = None


def test_a_model_whose_tokenizer_splits_digits_is_loaded(digit_folder: Path) -> None:
    model = load_model(digit_folder, blocks=1)
    assert len(model.tokenizer("28", add_special_tokens=False).input_ids) == 2
    assert bos_id(model.tokenizer) == 0
    with pytest.raises(TokenizerError, match=r"\['\(', '2', '8', ',', 'Ġ', '5', '9', '\)', 'Ċ'\]"):
        check_tokenizer(model.tokenizer)
    with pytest.raises(TokenizerError, match=r"six tokens for '\(28, 0\)"):
        model.answer_space()


@pytest.mark.parametrize("asked", ["check", "replicate"])
def test_what_needs_prompts_refuses_it_before_a_weight_is_read(
    asked: str, digit_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iclens.model.load.read_weights", lambda *_, **__: pytest.fail("weights were read"))
    with pytest.raises(TokenizerError) as caught:
        if asked == "check":
            check_saes([str(tmp_path)], str(digit_folder))
        else:
            replicate_seed_post(str(digit_folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("config", "bos"),
    [
        (lambda content: content.update(bos_token_id=1), 1),
        (lambda content: content.update(bos_token_id=0), 0),
        (lambda content: content.update(bos_token_id=None), None),
        (lambda content: content.update(bos_token_id=-1), None),
        (lambda content: content.pop("bos_token_id"), None),
    ],
)  # fmt: skip
def test_the_config_names_bos_where_the_tokenizer_does_not(
    config: Edit, bos: int | None, tiny_folder: Path, tmp_path: Path
) -> None:
    """The class of the config has a default, 1, that the file did not state and that counts for nothing."""
    folder = edited(tmp_path / "m", tiny_folder, config=config, tokenizer=nameless, tokenizer_config=nameless)
    tokenizer = load_tokenizer(folder)
    assert tokenizer.bos_token_id == bos == bos_id(tokenizer)
    if bos is None:
        with pytest.raises(TokenizerError, match="begin with BOS"):
            check_tokenizer(tokenizer)
    else:
        check_tokenizer(tokenizer)


def test_the_tokenizers_own_bos_goes_before_the_configs(tiny_folder: Path, tmp_path: Path) -> None:
    other = {"bos_token_id": 7}
    folder = edited(tmp_path / "one", tiny_folder, config=lambda content: content.update(other))
    assert load_tokenizer(folder).bos_token_id == 0
    folder = edited(
        tmp_path / "two", tiny_folder, tokenizer_config=lambda content: content.update(bos_token="<unk>")
    )
    assert load_tokenizer(folder).bos_token_id == 0, "what it puts before a text, not what it names"


def test_a_bos_that_is_no_token_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = edited(
        tmp_path / "m", tiny_folder, config=lambda content: content.update(bos_token_id=128_000),
        tokenizer=nameless, tokenizer_config=nameless,
    )  # fmt: skip
    with pytest.raises(ModelError, match="its BOS is token 128000, and its tokens are 0 to 1077") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
