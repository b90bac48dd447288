"""Arrays come back as they were written, also none at all."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from iclens.core import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, TableError
from iclens.prompts.build import PromptSet
from iclens.study.store import load_arrays, load_prompts, save_arrays, save_prompts


def test_arrays_and_what_is_said_of_them_come_back(tmp_path: Path) -> None:
    values = np.arange(6.0).reshape(2, 3).T
    save_arrays(tmp_path / "a.safetensors", {"a": values}, reason="why")
    arrays, about = load_arrays(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(arrays["a"], values)
    assert about == {"reason": '"why"'}


def test_no_arrays_come_back_as_none(tmp_path: Path) -> None:
    save_arrays(tmp_path / "none.safetensors", {})
    assert load_arrays(tmp_path / "none.safetensors") == ({}, {})


def prompts(template: list[str] | None) -> PromptSet:
    x = np.array([["1", "20"], ["3", "4"], ["5", "6"]])
    y = np.array([["2", "40"], ["odd", "even"], ["10", "12"]])
    tokens = np.arange(3 * (PREFIX_LENGTH + 2 * TOKENS_PER_EXAMPLE)).reshape(3, -1)
    named = None if template is None else np.array(template)
    return PromptSet(
        np.array(["2x", "word:parity", "2x"]), "grid", x, y, y[::-1], tokens, 7, "tok", template=named
    )


@pytest.mark.parametrize("template", [None, ["[x, y]", "(x, y)", "{x: y}"]])
def test_prompts_come_back_as_they_were(tmp_path: Path, template: list[str] | None) -> None:
    saved = prompts(template)
    save_prompts(saved, tmp_path, "grid")
    loaded = load_prompts(tmp_path, "grid")
    for name in ("task", "x", "y", "answer", "tokens"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(saved, name))
    assert (loaded.arm, loaded.seed, loaded.tokenizer, loaded.probes) == ("grid", 7, "tok", None)
    assert (None if loaded.template is None else loaded.template.tolist()) == template


def test_prompts_in_the_default_template_are_filed_as_before_there_were_others(tmp_path: Path) -> None:
    """A file without the column is what older runs hold, and is read as None."""
    save_prompts(prompts(None), tmp_path, "grid")
    columns = ["prompt", "example", "task", "x", "y", "answer"]
    assert list(pd.read_parquet(tmp_path / "grid.parquet")) == columns


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"not arrays")
    with pytest.raises(TableError, match="unreadable"):
        load_arrays(tmp_path / "a.safetensors")
