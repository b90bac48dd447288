"""Concepts as expressions over x, y and the task, and the grid of tasks that they are measured on."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import yaml
from numpy.typing import NDArray

from iclens.core import ROLES, TEMPLATE, ConfigError, SiteError, TableError, TaskError, check_role, nearest
from iclens.prompts.build import PromptSet
from iclens.table import Floats, Ints, Strings

SLOPES, OFFSETS = (1, 2, 3, 4, 5, 10), (-7, -3, -1, 0, 1, 2, 3, 5, 8, 10)
"""Of the default affine tasks, every slope with every offset."""

DEFAULT_SPECS = (
    *(f"{a}x{b:+d}" for a in SLOPES for b in OFFSETS),
    *("x~5", "2x~2", "2x~5", "2x+3~5", "3x~5"),
    *("5", "17", "48", "60"),
    *("50-x", "51-x", "54-x", "57-x"),
    *("x//2", "x//2+1", "x//2+4", "x//2+5"),
    *("x%2", "x%3", "x%5", "x%7", "x%10"),
    *("odd", "even", "random"),
    *("word:parity", "word:size", "letter:nth", "letter:next", "letter:previous", "letter:index"),
    *("word:opposite", "word:same"),
)
"""The default grid: a factorial of slopes and offsets, beside noisy, parity-only, rule-less and word
tasks."""


class Rule(Protocol):
    """What a concept needs to know of a task; `prompts.tasks.Task` has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def domain(self) -> str: ...  # noqa: D102
    @property
    def family(self) -> str: ...  # noqa: D102
    @property
    def answers(self) -> str: ...  # noqa: D102
    @property
    def slope(self) -> int | None: ...  # noqa: D102
    @property
    def offset(self) -> int | None: ...  # noqa: D102
    @property
    def deterministic(self) -> bool: ...  # noqa: D102


class SlopeRows(Protocol):
    """What `slope_marginals` needs of rows; `concepts.language.Rows` has it."""

    @property
    def family(self) -> Strings: ...  # noqa: D102
    @property
    def slope(self) -> Floats: ...  # noqa: D102
    @property
    def y(self) -> Floats: ...  # noqa: D102


@dataclass(frozen=True)
class TaskGrid:
    """Tasks, divided by task and never by prompt.

    Args:
        rules: name → task, of both sides.
        discovery: names of the tasks on which directions are chosen.
        held_out: names of the tasks on which figures are measured.
        seed: of the split.

    Raises:
        TaskError: when the two sides overlap, one is empty, or together they are not `rules`.
    """

    rules: Mapping[str, Rule]
    discovery: tuple[str, ...]
    held_out: tuple[str, ...]
    seed: int

    def __post_init__(self) -> None:
        both = [*self.discovery, *self.held_out]
        if not self.discovery or not self.held_out:
            raise TaskError(
                "task grid",
                "one side of the split is empty",
                "Give at least two tasks of one kind (grid.tasks in a study), such as {1..2}x+{0..3}.",
            )
        if len(set(both)) != len(both) or set(both) != set(self.rules):
            raise TaskError(
                "task grid",
                "the two sides do not divide the tasks",
                "Name each task of `rules` once, in `discovery` or in `held_out`.",
            )

    @property
    def names(self) -> tuple[str, ...]:
        """Every task, discovery first."""
        return (*self.discovery, *self.held_out)

    def declared(self) -> dict[str, object]:
        """The split as plain data, for a run's record."""
        return {"seed": self.seed, "discovery": list(self.discovery), "held_out": list(self.held_out)}


def split_grid(rules: Sequence[Rule], *, seed: int, held_out: float = 0.5) -> TaskGrid:
    """Divide tasks at random within kinds, so that each kind stands on both sides.

    A kind is a family with its slope and, for affine tasks, the parity of the offset. A kind of one
    task serves discovery: nothing could confirm it.

    Args:
        rules: distinct tasks.
        seed: of the split.
        held_out: share of each kind that is held out, in (0, 1), rounded half up.

    Raises:
        TaskError: when a task stands twice, the share is no share, or no kind has two tasks.
    """
    if not 0 < held_out < 1:
        raise TaskError(
            f"held-out share {held_out}",
            "not between 0 and 1",
            "Give a share between 0 and 1, for example 0.5.",
        )
    named = {rule.name: rule for rule in rules}
    if len(named) != len(rules):
        names = [rule.name for rule in rules]
        twice = next(name for name in names if names.count(name) > 1)
        raise TaskError(f"task '{twice}'", "stands twice in the grid", "List each task once.")
    kinds: dict[tuple[object, ...], list[str]] = {}
    for rule in rules:
        kinds.setdefault(_kind(rule), []).append(rule.name)
    rng = np.random.default_rng(seed)
    discovery: list[str] = []
    confirm: list[str] = []
    for members in kinds.values():
        n_held = min(max(int(held_out * len(members) + 0.5), 1), len(members) - 1)
        drawn = set(rng.permutation(len(members))[:n_held].tolist())
        for i, name in enumerate(members):
            (confirm if i in drawn else discovery).append(name)
    return TaskGrid(MappingProxyType(named), tuple(discovery), tuple(confirm), seed)


def _kind(rule: Rule) -> tuple[object, ...]:
    if rule.family == "affine":
        return (rule.family, rule.slope, (rule.offset or 0) % 2)
    if rule.family == "approx":
        return (rule.family, rule.slope)
    return (rule.family, rule.domain, rule.answers)


def slope_marginals(rows: SlopeRows) -> dict[str, float]:
    """How far apart the answers of affine tasks of different slopes lie, over decades of y.

        TV(a, a') = ½ Σ_d |P(d | slope a) − P(d | slope a')|        0: the same marginal, 1: no overlap

    Returns:
        Pair of slopes → total variation distance, and the largest of them. Comparisons within decades of y
        do not see this distance; what it says is for how many rows they find no match.
    """
    used = (rows.family == "affine") & ~np.isnan(rows.y)
    slope, decade = rows.slope[used], (rows.y[used] // 10).astype(np.int64)
    slopes = np.unique(slope)
    if not len(slopes):
        return {}
    counts = np.stack(
        [np.bincount(decade[slope == a] - decade.min(), minlength=np.ptp(decade) + 1) for a in slopes]
    )
    share = counts / counts.sum(axis=1, keepdims=True)
    found = {
        f"{a:g} and {b:g}": float(np.abs(share[i] - share[i + 1 + j]).sum() / 2)
        for i, a in enumerate(slopes)
        for j, b in enumerate(slopes[i + 1 :])
    }
    return found | {"largest": max(found.values(), default=0.0)}


FIRST_EXAMPLE = 4
"""Rows count from this example on unless something else is said: by then the task can be known."""


@dataclass(frozen=True)
class Rows:
    """Facts of each row, [row], example fastest.

    Args:
        prompt: index of the prompt.
        example: examples seen before this one.
        task: name of the task.
        family: family of the task.
        slope: a of the task; NaN where it has none.
        offset: b of the task; NaN where it has none.
        numeric_x: whether the input is a number.
        numeric_y: whether the answer is a number.
        x: the input; NaN where it is no number.
        y: the label shown or the answer asked for; NaN where it is no number or not determined.
        template: name of the template the prompt is written in.
        label: the label shown or the answer asked for as text; "" where it is not determined.
    """

    prompt: Ints
    example: Ints
    task: Strings
    family: Strings
    slope: Floats
    offset: Floats
    numeric_x: NDArray[np.bool_]
    numeric_y: NDArray[np.bool_]
    x: Floats
    y: Floats
    template: Strings
    label: Strings

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, chosen: NDArray[np.bool_] | Ints) -> Rows:
        """The chosen rows (a mask or indices)."""
        return Rows(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})


def read_rows(prompts: PromptSet, role: str, rules: Mapping[str, Rule]) -> Rows:
    """The rows of `prompts` at `role`, [prompt·example].

    Args:
        prompts: prompts of several tasks, joined.
        role: decides whether y is the label shown or the answer asked for.
        rules: task name → task.

    Raises:
        SiteError: for an unknown role.
        TableError: when a prompt's task is not among `rules`.
    """
    shown = ROLES.index(check_role(role)) >= ROLES.index("lab")
    rows = rows_of(prompts.task, prompts.x, prompts.y if shown else prompts.answer, rules, prompts.templates)
    if shown:
        return rows
    known = np.repeat([rules[name].deterministic for name in prompts.task.tolist()], prompts.n_examples)
    return replace(rows, y=np.where(known, rows.y, np.nan), label=np.where(known, rows.label, ""))


def rows_of(
    task: Strings, x: Strings, y: Strings, rules: Mapping[str, Rule], templates: Strings | None = None
) -> Rows:
    """The rows of examples.

    Args:
        task: the task of each prompt, [prompt].
        x: inputs, [prompt example].
        y: labels, [prompt example].
        rules: task name → task.
        templates: how each prompt is written, [prompt]; the default template when not given.

    Raises:
        TableError: when a prompt's task is not among `rules`.
    """
    strange = sorted(set(task.tolist()) - set(rules))
    if strange:
        raise TableError(
            f"prompts of task '{strange[0]}'",
            "the task is not in the grid",
            "Give `rules` an entry for it, or leave its prompts out.",
        )
    of_prompt = [rules[name] for name in task.tolist()]
    n_prompts, repeat = x.shape
    x, y = x.ravel(), y.ravel()
    return Rows(
        prompt=np.repeat(np.arange(n_prompts), repeat),
        example=np.tile(np.arange(repeat), n_prompts),
        task=np.repeat(task, repeat),
        family=np.repeat([rule.family for rule in of_prompt], repeat),
        slope=np.repeat([np.nan if rule.slope is None else float(rule.slope) for rule in of_prompt], repeat),
        offset=np.repeat(
            [np.nan if rule.offset is None else float(rule.offset) for rule in of_prompt], repeat
        ),
        numeric_x=np.char.isdigit(x),
        numeric_y=np.char.isdigit(y),
        x=_number(x),
        y=_number(y),
        template=np.repeat(np.full(n_prompts, TEMPLATE) if templates is None else templates, repeat),
        label=y,
    )


def _number(text: Strings) -> Floats:
    digits = np.char.isdigit(text)
    return np.where(digits, np.where(digits, text, "0").astype(np.float64), np.nan)


FACTS = ("x", "y", "example", "task", "family", "slope", "offset", "numeric_x", "numeric_y", "template")
"""Names that an expression may use; `concepts.language.Rows` says what each is."""
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


IDENTITY = "task identity"
DETECTION, EXECUTION = "detection", "execution"
RESERVED = ("candidate", IDENTITY, DETECTION, EXECUTION)
"""Labels that are not a contrast's: what they mean is in `identity` and `mass`."""
_CONTRAST = ("positive", "negative")
_CONCEPT = (*_CONTRAST, "meaning", "within", "fixed", "confounds", "belief")


@dataclass(frozen=True)
class Contrast:
    """A named labelling of rows.

    Args:
        name: what the positives have.
        label: rows → +1, −1 or 0 (not used), [row].
    """

    name: str
    label: Callable[[Rows], Ints]


def everywhere(rows: Rows) -> Ints:
    """One stratum for all rows, [row]."""
    return np.zeros(len(rows), dtype=np.int64)


@dataclass(frozen=True)
class Concept:
    """What is asked of a latent.

    Args:
        contrast: positives and negatives; its name is the concept's.
        meaning: one line for a page.
        stratum: rows → integer; only rows of equal stratum are compared, [row].
        confounds: what the latent must not answer to.
        fixed: rows → integer, held fixed beside the concept while confounds are measured, [row].
        belief: the belief that reads it; "" when none does.
    """

    contrast: Contrast
    meaning: str
    stratum: Callable[[Rows], Ints]
    confounds: tuple[Contrast, ...]
    fixed: Callable[[Rows], Ints] = everywhere
    belief: str = ""

    @property
    def name(self) -> str:
        """The concept's name."""
        return self.contrast.name


def signed(positive: NDArray[np.bool_], negative: NDArray[np.bool_]) -> Ints:
    """+1 on positives, −1 on negatives, 0 elsewhere."""
    return positive.astype(np.int64) - negative.astype(np.int64)


def declare(declared: Mapping[str, Any], source: str, known: Sequence[Concept] = ()) -> tuple[Concept, ...]:
    """Concepts written out as `{contrasts: {name: …}, concepts: {name: …}}`.

    Args:
        declared: the mapping; the keys of each entry are those of `concepts.yaml`.
        source: names it in errors.
        known: concepts whose contrasts and confounds may be named as confounds.

    Raises:
        ConfigError: naming the concept and the key for an unknown key or name, a missing key, or an
            expression that is not allowed.
    """
    _keys(declared, ("contrasts", "concepts"), source)
    contrasts = {c.contrast.name: c.contrast for c in known} | {f.name: f for c in known for f in c.confounds}
    entries = {key: _entries(declared, key, source) for key in ("contrasts", "concepts")}
    for name, entry in entries["contrasts"].items():
        _keys(entry, _CONTRAST, f"contrast '{name}' of {source}")
        if not name or name in contrasts:
            raise ConfigError(f"contrast '{name}' of {source}", "the name is taken", "Choose another name.")
        contrasts[name] = _contrast(name, entry, source)
    for name, entry in entries["concepts"].items():
        _keys(entry, _CONCEPT, f"concept '{name}' of {source}")
        if not name or name in RESERVED or name in {c.name for c in known}:
            raise ConfigError(f"concept '{name}' of {source}", "the name is taken", "Choose another name.")
        contrasts[name] = _contrast(name, entry, source)
    return tuple(_concept(name, e, contrasts, source) for name, e in entries["concepts"].items())


def _entries(declared: Mapping[str, Any], key: str, source: str) -> dict[str, dict[str, Any]]:
    found = declared.get(key) or {}
    if not isinstance(found, Mapping) or not all(isinstance(entry, Mapping) for entry in found.values()):
        raise ConfigError(
            f"{key} of {source}",
            "not a mapping of names",
            f"Write {key}: {{name: {{positive: …}}}}, as docs/transforms.md shows.",
        )
    return {str(name): dict(entry) for name, entry in found.items()}


def _keys(entry: Mapping[str, Any], allowed: Sequence[str], what: str) -> None:
    strange = [str(key) for key in entry if key not in allowed]
    if strange:
        raise ConfigError(what, f"unknown key '{strange[0]}'", nearest(strange[0], allowed))


def _contrast(name: str, entry: Mapping[str, Any], source: str) -> Contrast:
    if "positive" not in entry:
        raise ConfigError(
            f"'{name}' of {source}",
            "no key 'positive'",
            "Give it `positive`, an expression that is true on its rows, such as y % 2 == 1.",
        )
    what = f"'{name}' of {source}, "
    sides = [parse_expression(entry[side], f"{what}{side}: ") for side in _CONTRAST if side in entry]
    for side in sides:
        if not says_yes_or_no(side):
            raise ConfigError(
                f"'{name}' of {source}",
                f"'{side.text}' is neither true nor false",
                "Write a comparison, such as y % 2 == 1.",
            )
    return Contrast(name, _Label(name, sides[0], sides[1] if len(sides) > 1 else None))


def _concept(name: str, entry: Mapping[str, Any], contrasts: Mapping[str, Contrast], source: str) -> Concept:
    what = f"concept '{name}' of {source}"
    confounds, asked = [], entry.get("confounds")
    if not isinstance(asked, list) or not asked:
        raise ConfigError(
            f"{what}, confounds",
            "no list of them",
            "List at least one: the name of a concept or contrast, or {positive: an expression}.",
        )
    for given in asked:
        if given == name:
            raise ConfigError(
                f"{what}, confound '{given}'", "the concept itself", "Leave it out, or name another concept."
            )
        if isinstance(given, Mapping):
            _keys(given, (*_CONTRAST, "name"), f"a confound of {what}")
            confounds.append(_contrast(str(given.get("name", given.get("positive"))), given, source))
        elif not isinstance(given, str) or given not in contrasts:
            raise ConfigError(f"{what}, confound '{given}'", "unknown", nearest(str(given), contrasts))
        else:
            confounds.append(contrasts[given])
    return Concept(
        contrasts[name],
        str(entry.get("meaning", entry["positive"])),
        _Strata(_listed(entry.get("within"), f"{what}, within: ")),
        tuple(confounds),
        _Strata(_listed(entry.get("fixed"), f"{what}, fixed: ")),
        str(entry.get("belief", "")),
    )


def _listed(given: Any, what: str) -> tuple[Expression, ...]:
    texts = given if isinstance(given, list) else [given] if given else []
    return tuple(parse_expression(text, what) for text in texts)


@dataclass(frozen=True)
class _Label:
    """Rows → +1, −1 or 0, from expressions; 0 where they are not known."""

    name: str
    positive: Expression
    negative: Expression | None

    def __call__(self, rows: Rows) -> Ints:
        yes = self.positive(rows)
        no = Known(~yes.values.astype(bool), yes.known) if self.negative is None else self.negative(rows)
        if (yes.true & no.true).any():
            raise ConfigError(
                f"contrast '{self.name}'",
                f"{int((yes.true & no.true).sum())} rows are positive and negative",
                "Change `positive` or `negative`, so that no row is both.",
            )
        return signed(yes.true, no.true)


@dataclass(frozen=True)
class _Strata:
    """Rows → a number for each combination of what expressions say; not known is a value of its own."""

    parts: tuple[Expression, ...]

    def __call__(self, rows: Rows) -> Ints:
        stratum = everywhere(rows)
        for part in self.parts:
            found = part(rows)
            _, level = np.unique(found.values[found.known], return_inverse=True)
            own = np.zeros(len(rows), dtype=np.int64)
            own[found.known] = level + 1
            stratum = np.unique(stratum * (own.max(initial=0) + 1) + own, return_inverse=True)[1]
        return stratum


FORMAT = Contrast("format", lambda rows: signed(*(rows.template == t for t in _two(rows))))
"""One way of writing the examples against another: the two that are most frequent."""


def _two(rows: Rows) -> tuple[str, str]:
    names, counts = np.unique(rows.template, return_counts=True)
    order = names[np.argsort(-counts, kind="stable")].tolist()
    return (order[0], order[1]) if len(order) > 1 else ("", "")


CONCEPTS = declare(
    yaml.safe_load((files("iclens.concepts") / "concepts.yaml").read_text("utf-8")), "concepts.yaml"
)
"""The concepts of every study."""


def concept(name: str, concepts: Sequence[Concept] = CONCEPTS) -> Concept:
    """The concept of that name.

    Raises:
        SiteError: naming the nearest one.
    """
    known = {c.name: c for c in concepts}
    if name not in known:
        raise SiteError(f"concept '{name}'", "unknown", nearest(name, known))
    return known[name]
