import numpy as np
import pytest

from iclens.concepts.language import parse_expression, rows_of
from iclens.core import ConfigError
from iclens.prompts.tasks import parse_task

RULES = {name: parse_task(name) for name in ("2x+3", "odd", "x//2", "word:parity")}
ROWS = rows_of(
    np.array(list(RULES)),
    np.array([["4"], ["8"], ["5"], ["3"]]),
    np.array([["11"], ["7"], ["2"], ["odd"]]),
    RULES,
)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("y", [11, 7, 2, None]),
        ("y - 2 * x", [3, -9, -8, None]),
        ("y // 3", [3, 2, 0, None]),
        ("y % 4", [3, 3, 2, None]),
        ("-y", [-11, -7, -2, None]),
        ("abs(y - 8)", [3, 1, 6, None]),
        ("y > median(y)", [1, 0, 0, None]),
        ("2 < y <= 7", [0, 1, 0, None]),
        ("y in [2, 11]", [1, 0, 1, None]),
        ("y not in (2, 11)", [0, 1, 0, None]),
        ("family == 'affine'", [1, 0, 0, 0]),
        ("family in ['half', 'parity']", [0, 1, 1, 0]),
        ("numeric_y", [1, 1, 1, 0]),
        ("not numeric_y", [0, 0, 0, 1]),
        # slope is known for 2x+3 alone
        ("slope == 2", [1, None, None, None]),
        ("not slope == 2", [0, None, None, None]),
        # one side decides, whatever the other is
        ("family == 'affine' and slope == 2", [1, 0, 0, 0]),
        ("family == 'half' or slope == 3", [0, None, 1, None]),
        ("numeric_x or slope == 9", [1, 1, 1, 1]),
        ("x / (y - 2) > 0", [1, 1, None, None]),  # division by zero is not known
        ("template == '(x, y)'", [1, 1, 1, 1]),
        ("3", [3, 3, 3, 3]),
    ],
)
def test_values_and_where_they_are_known(text, values) -> None:
    found = parse_expression(text)(ROWS)
    assert found.known.tolist() == [value is not None for value in values]
    assert [v for v, k in zip(found.values.tolist(), found.known, strict=True) if k] == [
        v for v in values if v is not None
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("z == 1", "no fact 'z'"),
        ("slpe == 2", "Nearest: slope"),
        ("y ==", "not an expression"),
        ("y = 3", "not an expression"),
        ("__import__('os')", "not allowed"),
        ("y.real", "not allowed"),
        ("task[0]", "not allowed"),
        ("(lambda: y)()", "not allowed"),
        ("max(y)", "not allowed"),
        ("median(y, 2)", "not allowed"),
        ("y ** 2", "not allowed"),
        ("y in x", "without a list"),
        ("y in [x]", "not allowed"),
        ("None", "not allowed"),
        ("b'a' == task", "not allowed"),
    ],
)
def test_what_is_not_allowed_is_refused_in_one_line(text, says) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_expression(text)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("text", ["family > 3", "task == 2", "y + task > 1", "-family == 1"])
def test_texts_and_numbers_do_not_meet(text) -> None:
    with pytest.raises(ConfigError, match="Compare a text with a text"):
        parse_expression(text)(ROWS)
