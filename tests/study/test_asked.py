"""What a run can be asked: latent ids, examples and numbers of rows, or one line."""

import numpy as np
import pandas as pd
import pytest

from iclens.core import SiteError
from iclens.results.read import example_slice, latent_ids, n_rows


@pytest.mark.parametrize(
    ("value", "ids"),
    [
        (3, (3,)),
        (np.int64(3), (3,)),
        (np.array(3), (3,)),
        ([3, np.int32(1)], (3, 1)),
        (np.array([3, 1]), (3, 1)),
        (pd.Series([3, 1]), (3, 1)),
        (range(2), (0, 1)),
        ([], ()),
    ],
)
def test_latent_ids_are_plain_integers(value, ids: tuple[int, ...]) -> None:
    found = latent_ids(value)
    assert found == ids
    assert all(type(one) is int for one in found)


@pytest.mark.parametrize(
    "value",
    [
        True, [True], np.array([True]), 5.0, np.array([5.5]), np.array([5.0]), float("nan"), "12", ["1"],
        b"1", [[5, 6]], np.array([[5, 6]]), {5: 6}, None, [None], np.zeros((40, 3)),
    ],
)  # fmt: skip
def test_anything_else_is_one_short_line(value) -> None:
    with pytest.raises(SiteError, match="not whole numbers") as caught:
        latent_ids(value)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 150


def test_examples_are_a_slice_of_integers() -> None:
    assert example_slice(slice(np.int64(2), None)) == slice(2, None, None)
    assert type(example_slice(slice(np.int64(2), 4)).start) is int
    for value in (5, range(2, 5), (2, 5), "2:5", slice("a", "b"), slice(0.0, 4.0), slice(True, 4)):
        with pytest.raises(SiteError, match="not a slice of integers"):
            example_slice(value)


def test_rows_are_counted_by_a_positive_integer() -> None:
    assert n_rows(np.int64(3)) == n_rows(3) == 3
    for value in (0, -1, 2.5, None, True, "3"):
        with pytest.raises(SiteError, match="not a positive integer"):
            n_rows(value)
