"""Arrays come back as they were written, also none at all."""

from pathlib import Path

import numpy as np
import pytest

from iclens.errors import TableError
from iclens.study.store import load_arrays, save_arrays


def test_arrays_and_what_is_said_of_them_come_back(tmp_path: Path) -> None:
    values = np.arange(6.0).reshape(2, 3).T
    save_arrays(tmp_path / "a.safetensors", {"a": values}, reason="why")
    arrays, about = load_arrays(tmp_path / "a.safetensors")
    np.testing.assert_array_equal(arrays["a"], values)
    assert about == {"reason": '"why"'}


def test_no_arrays_come_back_as_none(tmp_path: Path) -> None:
    save_arrays(tmp_path / "none.safetensors", {})
    assert load_arrays(tmp_path / "none.safetensors") == ({}, {})


def test_a_damaged_file_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(b"not arrays")
    with pytest.raises(TableError, match="unreadable"):
        load_arrays(tmp_path / "a.safetensors")
