"""Loading is strict: whole or truncated, and every damage is refused in one line."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from iclens.core import HOOKS, ModelError, Site, SiteError
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import answer_probs, record
from iclens.prompts.build import PromptSet

Weights = dict[str, torch.Tensor]


def damaged(folder: Path, copy: Path, change: Callable[[Weights], object]) -> Path:
    """A copy of a model folder whose weights went through `change`."""
    shutil.copytree(folder, copy)
    weights = load_file(copy / "model.safetensors")
    change(weights)
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    return copy


def refused(folder: Path, needle: str) -> None:
    with pytest.raises(ModelError) as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
    assert needle in str(caught.value)
    assert caught.value.exit_code == 2


def test_truncated_load_equals_the_first_blocks(
    tiny_folder: Path, tiny_model: LanguageModel, prompts: PromptSet
) -> None:
    part = load_model(tiny_folder, blocks=3)
    assert (part.n_blocks, part.whole, tiny_model.whole) == (3, False, True)
    sites, where = [Site(layer, hook) for layer in range(3) for hook in HOOKS], prompts.positions("pre")
    ours, whole = (record(m, prompts.tokens, sites, where) for m in (part, tiny_model))
    for site in sites:
        np.testing.assert_array_equal(ours[site], whole[site])


def test_a_truncated_model_gives_no_answers_and_no_deeper_sites(
    tiny_folder: Path, prompts: PromptSet
) -> None:
    part = load_model(tiny_folder, blocks=2)
    with pytest.raises(ModelError, match="only 2 blocks"):
        answer_probs(part, prompts.tokens, prompts.positions("pre"))
    with pytest.raises(SiteError, match="blocks 0 to 1"):
        record(part, prompts.tokens, [Site(2, "resid_pre")], prompts.positions("pre"))


@pytest.mark.parametrize("blocks", [0, -1, 99])
def test_an_impossible_number_of_blocks_is_refused(tiny_folder: Path, blocks: int) -> None:
    with pytest.raises(ModelError, match="blocks of"):
        load_model(tiny_folder, blocks=blocks)


def test_a_missing_folder_is_refused(tmp_path: Path) -> None:
    refused(tmp_path / "nowhere", "no such folder")


def test_missing_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = damaged(tiny_folder, tmp_path / "m", lambda w: w.pop("model.norm.weight"))
    refused(folder, "1 missing, first model.norm.weight")


def test_a_missing_block_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    def drop(weights: Weights) -> None:
        for key in [key for key in weights if key.startswith("model.layers.1.")]:
            del weights[key]

    refused(damaged(tiny_folder, tmp_path / "m", drop), "missing, first model.layers.1.")


def test_weights_of_another_shape_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = damaged(tiny_folder, tmp_path / "m", lambda w: w.update({"model.norm.weight": torch.ones(7)}))
    refused(folder, "1 mismatched, first")


def test_unexpected_weights_are_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = damaged(tiny_folder, tmp_path / "m", lambda w: w.update({"model.extra.weight": torch.ones(7)}))
    refused(folder, "1 unexpected, first model.extra.weight")


def test_a_truncated_weight_file_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    refused(folder, "cannot be loaded")


def test_a_damaged_config_is_refused(tiny_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    (folder / "config.json").write_text('{"model_type": ', encoding="utf-8")
    refused(folder, "it is not JSON")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
def test_a_config_in_another_encoding_is_refused_with_the_right_one(
    tiny_folder: Path, tmp_path: Path, encoding: str
) -> None:
    folder = tmp_path / "m"
    shutil.copytree(tiny_folder, folder)
    text = (folder / "config.json").read_text(encoding="utf-8")
    (folder / "config.json").write_text(text, encoding=encoding)
    refused(folder, "Save it as UTF-8 without a byte-order mark.")


def test_a_loaded_model_is_frozen(tiny_model: LanguageModel) -> None:
    assert not tiny_model.network.training
    assert not any(p.requires_grad for p in tiny_model.network.parameters())


def test_answers_are_numbers_first_then_new_words_once(tiny_model: LanguageModel) -> None:
    answers, ids = tiny_model.answer_space(("hot", "7", "cold", "hot"))
    assert answers[:1000] == tuple(map(str, range(1000)))
    assert answers[1000:] == ("hot", "cold")
    assert [tiny_model.tokenizer.decode([int(i)]) for i in ids] == list(answers)
