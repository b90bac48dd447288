"""What does an expression over rows say? The language in which concepts are written, and its values.

    y % 2 == 1          slope in [1, 3, 4] and family == 'affine'          y - x > median(y - x)

1. The text is parsed as a Python expression and refused unless every part of it is one of the few below;
nothing is ever executed. 2. Its names are the facts of `Rows`, [row]. 3. Every value carries which rows it is
*known* in: a fact that is NaN is unknown there, and so is what is computed from it, except where the rest
decides (`False and unknown` is false). Enter text and Rows; leave values [row] and where they are known.

Allowed are the facts, numbers, texts, lists of them, + - * / // %, comparisons, `in`, `and`, `or`, `not`,
and the functions `abs` and `median` (over the rows at hand, where it is known).
"""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from iclens.errors import ConfigError, nearest
from iclens.transforms.rows import Rows

FACTS = ("x", "y", "example", "task", "family", "slope", "offset", "numeric_x", "numeric_y", "template")
"""Names that an expression may use; `transforms.rows.Rows` says what each is."""
_CALLS = ("abs", "median")
_SHOWN = 60
"""Characters of an expression that an error repeats."""
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.In: np.isin, ast.NotIn: lambda a, b: ~np.isin(a, b),
}  # fmt: skip


@dataclass(frozen=True)
class Known:
    """Values and where they are known, both [row]."""

    values: NDArray[Any]
    known: NDArray[np.bool_]

    @property
    def true(self) -> NDArray[np.bool_]:
        """Where it is known to hold, [row]."""
        return self.known & self.values.astype(bool)


@dataclass(frozen=True)
class Expression:
    """A checked expression.

    Args:
        text: as it was written.
        tree: its parts.
    """

    text: str
    tree: ast.expr

    def __call__(self, rows: Rows) -> Known:
        """Its values on rows.

        Raises:
            ConfigError: when parts of different kinds meet, such as a text and a number.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            try:
                found = _value(self.tree, rows)
            except (TypeError, ValueError) as cause:
                raise ConfigError(
                    f"expression '{self.text}'",
                    "texts and numbers meet in it",
                    "Compare a text with a text in quotes, and a number with a number.",
                ) from cause
        values = np.broadcast_to(found.values, len(rows))
        return Known(values, np.broadcast_to(found.known, len(rows)) & _finite(values))


def parse_expression(text: str, what: str = "") -> Expression:
    """Check an expression.

    Args:
        text: the expression.
        what: where it stands, for errors.

    Raises:
        ConfigError: when it is no expression, or holds a name, function or form that is not allowed.
    """
    shown = str(text) if len(str(text)) <= _SHOWN else str(text)[:_SHOWN] + " …"
    try:
        tree = ast.parse(str(text).strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as cause:
        raise ConfigError(
            f"{what}expression '{shown}'",
            "not an expression",
            "Write a comparison of facts, for example y % 2 == 1.",
        ) from cause
    if isinstance(tree, ast.List | ast.Tuple):
        raise ConfigError(
            f"{what}expression '{shown}'", "a list by itself", "Say what is in it: slope in [1, 3]."
        )
    try:
        _check(tree, f"{what}expression '{shown}'")
    except RecursionError as cause:
        raise ConfigError(
            f"{what}expression '{shown}'",
            "nested too deeply",
            "Write it with fewer brackets inside each other.",
        ) from cause
    return Expression(str(text), tree)


def says_yes_or_no(expression: Expression) -> bool:
    """Whether an expression is true or false by its form, and not a number or a text."""
    match expression.tree:
        case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
            return True
        case ast.Name(id=name):
            return name.startswith("numeric_")
        case _:
            return False


def _check(node: ast.expr, text: str) -> None:
    if isinstance(node, ast.Name):
        if node.id not in FACTS:
            raise ConfigError(text, f"no fact '{node.id}'", nearest(node.id, FACTS))
        return
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float | str):
        return
    for part in _parts(node, text):
        _check(part, text)


def _parts(node: ast.expr, text: str) -> list[ast.expr]:
    """What an allowed node is made of."""
    match node:
        case ast.BoolOp():
            return node.values
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            return [node.operand]
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            return [node.left, node.right]
        case ast.Compare() if all(type(op) in _COMPARISONS for op in node.ops):
            for op, part in zip(node.ops, node.comparators, strict=True):
                if isinstance(op, ast.In | ast.NotIn) and not isinstance(part, ast.List | ast.Tuple):
                    raise ConfigError(text, "'in' without a list", "Write slope in [1, 3].")
            return [node.left, *node.comparators]
        case ast.List() | ast.Tuple() if all(
            isinstance(part, ast.Constant | ast.UnaryOp) for part in node.elts
        ):
            return node.elts
        case ast.Call(func=ast.Name(id=name), args=[only], keywords=[]) if name in _CALLS:
            return [only]
        case _:
            raise ConfigError(
                text,
                f"'{ast.unparse(node)}' is not allowed in it",
                f"Facts, comparisons, arithmetic, and, or, not, {' and '.join(_CALLS)} are.",
            )


def _value(node: ast.expr, rows: Rows) -> Known:
    match node:
        case ast.Name():
            values = getattr(rows, node.id)
            return Known(values, _finite(values))
        case ast.Constant():
            return Known(np.asarray(node.value), np.asarray(True))
        case ast.List() | ast.Tuple():
            return Known(np.array([_value(part, rows).values.item() for part in node.elts]), np.asarray(True))
        case ast.BoolOp():
            return _logic(node, rows)
        case ast.UnaryOp():
            inner = _value(node.operand, rows)
            return Known(
                ~inner.values.astype(bool) if isinstance(node.op, ast.Not) else -inner.values, inner.known
            )
        case ast.BinOp():
            left, right = _value(node.left, rows), _value(node.right, rows)
            values = _ARITHMETIC[type(node.op)](
                *(np.asarray(side.values, np.float64) for side in (left, right))
            )
            return Known(values, left.known & right.known & _finite(values))
        case ast.Compare():
            return _compared(node, rows)
        case ast.Call():
            return _called(node, rows)
        case _:
            raise TypeError(ast.dump(node))


def _logic(node: ast.BoolOp, rows: Rows) -> Known:
    """`and`, `or` of three values: one side decides where it can, whatever the other is."""
    sides = [_value(part, rows) for part in node.values]
    decides = isinstance(node.op, ast.Or)
    values, known = np.asarray(not decides), np.asarray(True)
    decided = np.asarray(False)
    for side in sides:
        truth = side.values.astype(bool)
        values = values | truth if decides else values & truth
        known = known & side.known
        decided = decided | (side.known & (truth == decides))
    return Known(np.where(decided, decides, values), known | decided)


def _compared(node: ast.Compare, rows: Rows) -> Known:
    left, values, known = _value(node.left, rows), np.asarray(True), np.asarray(True)
    for op, part in zip(node.ops, node.comparators, strict=True):
        right = _value(part, rows)
        texts = [np.asarray(side.values).dtype.kind in "UO" for side in (left, right)]
        if texts[0] != texts[1]:
            raise TypeError(ast.unparse(node))
        values = values & _COMPARISONS[type(op)](left.values, right.values)
        known = known & left.known & right.known
        left = right
    return Known(values, known)


def _called(node: ast.Call, rows: Rows) -> Known:
    inner = _value(node.args[0], rows)
    if isinstance(node.func, ast.Name) and node.func.id == "abs":
        return Known(np.abs(inner.values), inner.known)
    values, known = np.broadcast_to(inner.values, len(rows)), np.broadcast_to(inner.known, len(rows))
    return Known(np.asarray(np.median(values[known]) if known.any() else np.nan), np.asarray(known.any()))


def _finite(values: NDArray[Any]) -> NDArray[np.bool_]:
    held = np.asarray(values)
    return np.isfinite(held) if held.dtype.kind == "f" else np.ones(held.shape, dtype=bool)
