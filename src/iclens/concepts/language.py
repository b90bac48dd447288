"""The concept language: the grid of tasks and its two sides, facts of rows, and concepts as expressions."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from iclens.core import ROLES, TEMPLATE, ConfigError, SiteError, TableError, TaskError, check_role, nearest
from iclens.prompts.build import PromptSet
from iclens.prompts.tasks import Task
from iclens.table import Floats, Ints, Strings

# ------------------------------------------------------------------------------------ the grid of tasks

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
"""The default grid: slopes crossed with offsets, beside noisy, parity-only, rule-less and word tasks."""


@dataclass(frozen=True)
class TaskGrid:
    """Tasks, divided by task and never by prompt."""

    rules: Mapping[str, Task]  # name → task, of both sides
    discovery: tuple[str, ...]  # names of the tasks on which directions are chosen
    held_out: tuple[str, ...]  # names of the tasks on which figures are measured
    seed: int  # of the split

    def __post_init__(self) -> None:
        if not self.discovery or not self.held_out:
            remedy = "Give at least two tasks of one kind (grid.tasks in a study), such as {1..2}x+{0..3}."
            raise TaskError("task grid", "one side of the split is empty", remedy)
        if sorted(self.names) != sorted(self.rules):
            remedy = "Name each task of `rules` once, in `discovery` or in `held_out`."
            raise TaskError("task grid", "the two sides do not divide the tasks", remedy)

    @property
    def names(self) -> tuple[str, ...]:
        """Every task, discovery first."""
        return (*self.discovery, *self.held_out)

    def declared(self) -> dict[str, object]:
        """The split as plain data, for a run's record."""
        return {"seed": self.seed, "discovery": list(self.discovery), "held_out": list(self.held_out)}


def split_grid(rules: Sequence[Task], *, seed: int, held_out: float = 0.5) -> TaskGrid:
    """Divide distinct tasks at random within kinds, so that each kind stands on both sides.

    A kind is a family with its slope and, for affine tasks, the parity of the offset; of pairs that
    ship, the kind of their x. A kind of one task serves discovery: nothing could confirm it. `held_out` is
    the share of each kind that is held out, in (0, 1), rounded half up.

    Raises:
        TaskError: when a task stands twice, the share is no share, or no kind has two tasks.
    """
    if not 0 < held_out < 1:
        remedy = "Give a share between 0 and 1, for example 0.5."
        raise TaskError(f"held-out share {held_out}", "not between 0 and 1", remedy)
    named: dict[str, Task] = {}
    kinds: dict[tuple[object, ...], list[str]] = {}
    for rule in rules:
        if rule.name in named:
            raise TaskError(f"task '{rule.name}'", "stands twice in the grid", "List each task once.")
        named[rule.name] = rule
        kind: tuple[object, ...] = (rule.family, rule.domain, rule.answers, rule.kind)
        if rule.family in ("affine", "approx"):
            kind = (rule.family, rule.slope, (rule.offset or 0) % 2 if rule.family == "affine" else None)
        kinds.setdefault(kind, []).append(rule.name)
    rng = np.random.default_rng(seed)
    discovery: list[str] = []
    confirm: list[str] = []
    for members in kinds.values():
        n_held = min(max(int(held_out * len(members) + 0.5), 1), len(members) - 1)
        drawn = set(rng.permutation(len(members))[:n_held].tolist())
        for i, name in enumerate(members):
            (confirm if i in drawn else discovery).append(name)
    return TaskGrid(MappingProxyType(named), tuple(discovery), tuple(confirm), seed)


# ----------------------------------------------------------------------------------------------- rows

FIRST_EXAMPLE = 4
"""Rows count from this example on unless something else is said: by then the task can be known."""


@dataclass(frozen=True)
class Rows:
    """Facts of each row, [row], example fastest. A row is one example of one prompt at one role."""

    prompt: Ints  # index of the prompt
    example: Ints  # examples seen before this one
    task: Strings
    family: Strings
    slope: Floats  # a of the task; NaN where it has none
    offset: Floats  # b of the task; NaN where it has none
    numeric_x: NDArray[np.bool_]
    numeric_y: NDArray[np.bool_]
    x: Floats  # the input; NaN where it is no number
    y: Floats  # the label shown or the answer asked for; NaN where it is no number or not determined
    template: Strings
    label: Strings  # the label shown or the answer asked for as text; "" where it is not determined

    def __len__(self) -> int:
        return len(self.prompt)

    def take(self, chosen: NDArray[np.bool_] | Ints) -> Rows:
        """The chosen rows (a mask or indices)."""
        return Rows(**{f.name: getattr(self, f.name)[chosen] for f in fields(self)})


def read_rows(prompts: PromptSet, role: str, rules: Mapping[str, Task]) -> Rows:
    """The rows of `prompts` at `role`, [prompt·example].

    From `lab` on, y is the label shown. Before it, y is the answer asked for, and a task with several
    answers at an x has none.
    """
    shown = ROLES.index(check_role(role)) >= ROLES.index("lab")
    rows = rows_of(prompts.task, prompts.x, prompts.y if shown else prompts.answer, rules, prompts.templates)
    if shown:
        return rows
    known = np.repeat([rules[name].deterministic for name in prompts.task.tolist()], prompts.n_examples)
    return replace(rows, y=np.where(known, rows.y, np.nan), label=np.where(known, rows.label, ""))


def rows_of(
    task: Strings, x: Strings, y: Strings, rules: Mapping[str, Task], templates: Strings | None = None
) -> Rows:
    """The rows of examples: task and template [prompt], x and y [prompt example]."""
    strange = sorted(set(task.tolist()) - set(rules))
    if strange:
        remedy = "Give `rules` an entry for it, or leave its prompts out."
        raise TableError(f"prompts of task '{strange[0]}'", "the task is not in the grid", remedy)
    n_prompts, n_examples = x.shape

    def number(text: Strings) -> Floats:
        digits = np.char.isdigit(text)
        return np.where(digits, np.where(digits, text, "0").astype(np.float64), np.nan)

    def of_task(name: str) -> NDArray[Any]:
        return np.repeat([getattr(rules[one], name) for one in task.tolist()], n_examples)

    x, y = x.ravel(), y.ravel()
    return Rows(
        prompt=np.repeat(np.arange(n_prompts), n_examples),
        example=np.tile(np.arange(n_examples), n_prompts),
        task=np.repeat(task, n_examples),
        family=of_task("family"),
        slope=of_task("slope").astype(np.float64),  # None becomes NaN
        offset=of_task("offset").astype(np.float64),
        numeric_x=np.char.isdigit(x),
        numeric_y=np.char.isdigit(y),
        x=number(x),
        y=number(y),
        template=np.repeat(np.full(n_prompts, TEMPLATE) if templates is None else templates, n_examples),
        label=y,
    )


def slope_marginals(rows: Rows) -> dict[str, float]:
    """How far apart the answers of affine tasks of different slopes lie, over decades of y.

        TV(a, a') = ½ Σ_d |P(d | slope a) − P(d | slope a')|        0: the same marginal, 1: no overlap

    Pair of slopes → distance, and the largest. Comparisons within decades of y do not see it; what it says
    is for how many rows they find no match.
    """
    used = (rows.family == "affine") & ~np.isnan(rows.y)
    slope, decade = rows.slope[used], (rows.y[used] // 10).astype(np.int64)
    slopes = np.unique(slope)
    if not len(slopes):
        return {}
    counts = np.stack(
        [np.bincount(decade[slope == a] - decade.min(), minlength=np.ptp(decade) + 1) for a in slopes]
    )
    share = counts / counts.sum(axis=1, keepdims=True)  # [slope decade]
    distances = {
        f"{a:g} and {b:g}": float(np.abs(share[i] - share[i + 1 + j]).sum() / 2)
        for i, a in enumerate(slopes)
        for j, b in enumerate(slopes[i + 1 :])
    }
    return distances | {"largest": max(distances.values(), default=0.0)}


# ---------------------------------------------------------------------------------------- expressions

FACTS = ("x", "y", "example", "task", "family", "slope", "offset", "numeric_x", "numeric_y", "template")
"""Names that an expression may use; `Rows` says what each is."""
_CALLS = ("abs", "median")
_SHOWN = 60  # characters of an expression that an error repeats
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
}  # fmt: skip
_COMPARISONS: dict[type[ast.cmpop], Callable[[Any, Any], Any]] = {
    ast.Eq: operator.eq, ast.NotEq: operator.ne, ast.Lt: operator.lt, ast.LtE: operator.le,
    ast.Gt: operator.gt, ast.GtE: operator.ge, ast.In: np.isin, ast.NotIn: lambda a, b: ~np.isin(a, b),
}  # fmt: skip


@dataclass(frozen=True)
class Expression:
    """A checked expression: its text, and its syntax tree."""

    text: str
    tree: ast.expr

    def __call__(self, rows: Rows) -> np.ma.MaskedArray:
        """Its values on rows, masked where they are not known, [row]."""
        with np.errstate(divide="ignore", invalid="ignore"):
            try:
                result = _value(self.tree, rows)
            except (TypeError, ValueError) as cause:
                what = f"expression '{self.text}'"
                remedy = "Compare a text with a text in quotes, and a number with a number."
                raise ConfigError(what, "texts and numbers meet in it", remedy) from cause
        return _broadcast(result, len(rows))

    @property
    def yes_or_no(self) -> bool:
        """Whether it is true or false by its form, and not a number or a text."""
        match self.tree:
            case ast.Compare() | ast.BoolOp() | ast.UnaryOp(op=ast.Not()):
                return True
            case ast.Name(id=name):
                return name.startswith("numeric_")
            case _:
                return False


def parse_expression(text: str, what: str = "") -> Expression:
    """Check an expression; `what` says where it stands, for errors."""
    text = str(text)
    named = f"{what}expression '{text if len(text) <= _SHOWN else text[:_SHOWN] + ' …'}'"
    try:
        tree = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as cause:
        advice = "Write a comparison of facts, for example y % 2 == 1."
        raise ConfigError(named, "not an expression", advice) from cause
    if isinstance(tree, ast.List | ast.Tuple):
        raise ConfigError(named, "a list by itself", "Say what is in it: slope in [1, 3].")
    try:
        _check(tree, named)
    except RecursionError as cause:
        advice = "Write it with fewer brackets inside each other."
        raise ConfigError(named, "nested too deeply", advice) from cause
    return Expression(text, tree)


def _check(node: ast.expr, named: str) -> None:
    """Refuse every form that an expression may not have."""
    parts: Sequence[ast.expr] = ()
    match node:
        case ast.Name(id=name):
            if name not in FACTS:
                raise ConfigError(named, f"no fact '{name}'", nearest(name, FACTS))
        case ast.Constant(value=int() | float() | str()):
            pass
        case ast.BoolOp():
            parts = node.values
        case ast.UnaryOp(op=ast.Not() | ast.USub()):
            parts = [node.operand]
        case ast.BinOp() if type(node.op) in _ARITHMETIC:
            parts = [node.left, node.right]
        case ast.Compare(ops=ops, comparators=others) if all(type(op) in _COMPARISONS for op in ops):
            searched = [o for op, o in zip(ops, others, strict=True) if isinstance(op, ast.In | ast.NotIn)]
            if not all(isinstance(part, ast.List | ast.Tuple) for part in searched):
                raise ConfigError(named, "'in' without a list", "Write slope in [1, 3].")
            parts = [node.left, *others]
        case ast.List() | ast.Tuple() if all(isinstance(e, ast.Constant | ast.UnaryOp) for e in node.elts):
            parts = node.elts
        case ast.Call(func=ast.Name(id=name), args=[only], keywords=[]) if name in _CALLS:
            parts = [only]
        case _:
            remedy = f"Facts, comparisons, arithmetic, and, or, not, {' and '.join(_CALLS)} are."
            raise ConfigError(named, f"'{ast.unparse(node)}' is not allowed in it", remedy)
    for part in parts:
        _check(part, named)


def _masked(values: Any) -> np.ma.MaskedArray:
    """Values that are masked where they are not finite numbers, beside where they were."""
    values = np.ma.asarray(values)
    return np.ma.masked_invalid(values) if values.dtype.kind == "f" else values


def _broadcast(values: np.ma.MaskedArray, n: int) -> np.ma.MaskedArray:
    mask = np.broadcast_to(np.ma.getmaskarray(values), n)
    return np.ma.array(np.broadcast_to(values.data, n), mask=mask)


def _value(node: ast.expr, rows: Rows) -> np.ma.MaskedArray:
    """The value of a checked node; scalars stay scalars, to be broadcast over rows."""
    match node:
        case ast.Name():
            return _masked(getattr(rows, node.id))
        case ast.Constant():
            return np.ma.asarray(node.value)
        case ast.List() | ast.Tuple():
            return np.ma.asarray([_value(part, rows).item() for part in node.elts])
        case ast.BoolOp():  # one side decides where it can, whatever the other is
            decides = isinstance(node.op, ast.Or)
            decided, unknown = np.asarray(False), np.asarray(False)
            for side in (_value(part, rows).astype(bool) for part in node.values):
                mask = np.ma.getmaskarray(side)
                decided, unknown = decided | (~mask & (side.data == decides)), unknown | mask
            return np.ma.array(np.where(decided, decides, not decides), mask=unknown & ~decided)
        case ast.UnaryOp():
            inner = _value(node.operand, rows)
            return np.ma.asarray(~inner.astype(bool) if isinstance(node.op, ast.Not) else -inner)
        case ast.BinOp():
            left, right = (_value(side, rows).astype(np.float64) for side in (node.left, node.right))
            return _masked(_ARITHMETIC[type(node.op)](left, right))
        case ast.Compare():
            return _compared(node, rows)
        case ast.Call(func=ast.Name(id=name)):
            inner = _value(node.args[0], rows)
            if name == "abs":
                return np.ma.abs(inner)
            known = _broadcast(inner, len(rows)).compressed()  # of masked values alone np.ma has no median
            return _masked(np.median(known) if len(known) else np.nan)
        case _:
            raise TypeError(ast.dump(node))


def _compared(node: ast.Compare, rows: Rows) -> np.ma.MaskedArray:
    left, result = _value(node.left, rows), np.ma.asarray(True)
    for op, part in zip(node.ops, node.comparators, strict=True):
        right = _value(part, rows)
        if (left.dtype.kind in "UO") != (right.dtype.kind in "UO"):
            raise TypeError(ast.unparse(node))
        known = ~np.ma.getmaskarray(left)
        if not isinstance(op, ast.In | ast.NotIn):
            known = known & ~np.ma.getmaskarray(right)
        holds = _COMPARISONS[type(op)](left.data, right.data)
        result = np.ma.array(result.data & holds, mask=np.ma.getmaskarray(result) | ~known)
        left = right
    return result


# ------------------------------------------------------------------------------------------- concepts

IDENTITY = "task identity"
DETECTION, EXECUTION = "detection", "execution"
RESERVED = ("candidate", IDENTITY, DETECTION, EXECUTION)
"""Labels that are not a contrast's; `concepts.labels` says what they mean."""
_SIDES = ("positive", "negative")
_CONCEPT_KEYS = (*_SIDES, "meaning", "within", "fixed", "confounds", "belief")


@dataclass(frozen=True)
class Contrast:
    """A named labelling of rows; the name says what the positives have."""

    name: str
    label: Callable[[Rows], Ints]  # rows → +1, −1 or 0 (not used), [row]


def everywhere(rows: Rows) -> Ints:
    """One stratum for all rows, [row]."""
    return np.zeros(len(rows), dtype=np.int64)


@dataclass(frozen=True)
class Concept:
    """What is asked of a latent."""

    contrast: Contrast  # positives and negatives; its name is the concept's
    meaning: str  # one line for a page
    stratum: Callable[[Rows], Ints]  # rows → integer; only rows of equal stratum are compared, [row]
    confounds: tuple[Contrast, ...]  # what the latent must not answer to
    # rows → integer, held fixed beside the concept while confounds are measured, [row]
    fixed: Callable[[Rows], Ints] = everywhere
    belief: str = ""  # the belief that reads it; "" when none does

    @property
    def name(self) -> str:
        """The concept's name."""
        return self.contrast.name


def signed(positive: NDArray[np.bool_], negative: NDArray[np.bool_]) -> Ints:
    """+1 on positives, −1 on negatives, 0 elsewhere."""
    return positive.astype(np.int64) - negative.astype(np.int64)


def declare(declared: Mapping[str, Any], source: str, known: Sequence[Concept] = ()) -> tuple[Concept, ...]:
    """Concepts written out as `{contrasts: {name: …}, concepts: {name: …}}`, as in `concepts.yaml`.

    `source` names it in errors; contrasts and confounds of `known` concepts may be named as confounds.
    """
    _expect_keys(declared, ("contrasts", "concepts"), source)
    contrasts = {c.name: c.contrast for c in known} | {f.name: f for c in known for f in c.confounds}
    entries: dict[str, dict[str, dict[str, Any]]] = {}
    for section in ("contrasts", "concepts"):
        given = declared.get(section) or {}
        if not isinstance(given, Mapping) or not all(isinstance(entry, Mapping) for entry in given.values()):
            remedy = f"Write {section}: {{name: {{positive: …}}}}, as docs/transforms.md shows."
            raise ConfigError(f"{section} of {source}", "not a mapping of names", remedy)
        entries[section] = {str(name): dict(entry) for name, entry in given.items()}
    concept_names = {*RESERVED, *(c.name for c in known)}
    for kind, section, keys in (("contrast", "contrasts", _SIDES), ("concept", "concepts", _CONCEPT_KEYS)):
        for name, entry in entries[section].items():
            what = f"{kind} '{name}' of {source}"
            _expect_keys(entry, keys, what)
            if not name or name in (contrasts if kind == "contrast" else concept_names):
                raise ConfigError(what, "the name is taken", "Choose another name.")
            contrasts[name] = _contrast(name, entry, source)
    return tuple(_concept(name, e, contrasts, source) for name, e in entries["concepts"].items())


def _expect_keys(entry: Mapping[str, Any], allowed: Sequence[str], what: str) -> None:
    strange = [str(key) for key in entry if key not in allowed]
    if strange:
        raise ConfigError(what, f"unknown key '{strange[0]}'", nearest(strange[0], allowed))


def _contrast(name: str, entry: Mapping[str, Any], source: str) -> Contrast:
    """The labelling of an entry's two expressions; 0 where they are not known."""
    what = f"'{name}' of {source}"
    if "positive" not in entry:
        remedy = "Give it `positive`, an expression that is true on its rows, such as y % 2 == 1."
        raise ConfigError(what, "no key 'positive'", remedy)
    sides = [parse_expression(entry[side], f"{what}, {side}: ") for side in _SIDES if side in entry]
    for side in sides:
        if not side.yes_or_no:
            raise ConfigError(
                what, f"'{side.text}' is neither true nor false", "Write a comparison, such as y % 2 == 1."
            )

    def label(rows: Rows) -> Ints:
        yes, *given = (side(rows) for side in sides)
        no = given[0] if given else ~yes.astype(bool)
        positive, negative = (np.ma.filled(side.astype(bool), False) for side in (yes, no))
        if n_both := int((positive & negative).sum()):
            remedy = "Change `positive` or `negative`, so that no row is both."
            raise ConfigError(f"contrast '{name}'", f"{n_both} rows are positive and negative", remedy)
        return signed(positive, negative)

    return Contrast(name, label)


def _concept(name: str, entry: Mapping[str, Any], contrasts: Mapping[str, Contrast], source: str) -> Concept:
    what = f"concept '{name}' of {source}"
    confounds, given = [], entry.get("confounds")
    if not isinstance(given, list) or not given:
        remedy = "List at least one: the name of a concept or contrast, or {positive: an expression}."
        raise ConfigError(f"{what}, confounds", "no list of them", remedy)
    for one in given:
        if one == name:
            raise ConfigError(
                f"{what}, confound '{one}'", "the concept itself", "Leave it out, or name another concept."
            )
        if isinstance(one, Mapping):
            _expect_keys(one, (*_SIDES, "name"), f"a confound of {what}")
            confounds.append(_contrast(str(one.get("name", one.get("positive"))), one, source))
        elif not isinstance(one, str) or one not in contrasts:
            raise ConfigError(f"{what}, confound '{one}'", "unknown", nearest(str(one), contrasts))
        else:
            confounds.append(contrasts[one])
    within, fixed = (_strata(entry.get(key), f"{what}, {key}: ") for key in ("within", "fixed"))
    meaning, belief = str(entry.get("meaning", entry["positive"])), str(entry.get("belief", ""))
    return Concept(contrasts[name], meaning, within, tuple(confounds), fixed, belief)


def _strata(given: Any, what: str) -> Callable[[Rows], Ints]:
    """Rows → a number for each combination of what expressions say; not known is a value of its own."""
    texts = given if isinstance(given, list) else [given] if given else []
    parts = [parse_expression(text, what) for text in texts]

    def stratum(rows: Rows) -> Ints:
        strata = everywhere(rows)
        for part in parts:
            result = part(rows)
            level = np.zeros(len(rows), dtype=np.int64)
            known = ~np.ma.getmaskarray(result)
            level[known] = np.unique(result.data[known], return_inverse=True)[1] + 1
            strata = np.unique(strata * (level.max(initial=0) + 1) + level, return_inverse=True)[1]
        return strata

    return stratum


def _format(rows: Rows) -> Ints:
    names, counts = np.unique(rows.template, return_counts=True)
    first, second, *_ = (*names[np.argsort(-counts, kind="stable")].tolist(), "", "")
    return signed(rows.template == first, rows.template == second) * bool(second)


FORMAT = Contrast("format", _format)
"""One way of writing the examples against another: the two that are most frequent."""


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


TASK_IDENTITY = Concept(Contrast(IDENTITY, everywhere), "the task is one and no other", everywhere, ())
"""Stands for task identity among the concepts that are asked for; `labels.measure_identity` answers it."""
EVERY_CONCEPT = (*CONCEPTS, TASK_IDENTITY)
"""What latents are asked for unless something else is said."""


def known_concepts(declared: Mapping[str, Any]) -> tuple[Concept, ...]:
    """Every concept that a study can name: the package's, and those that it declares."""
    return (*EVERY_CONCEPT, *declare(declared, "transforms.declare", EVERY_CONCEPT))


def check_declared(concepts: Sequence[Concept], rows: Mapping[str, Rows], beliefs: Sequence[str]) -> None:
    """Refuse a declared concept whose belief is not followed, or that the `rows` of a side cannot tell."""
    for one in concepts:
        if one.belief and one.belief not in beliefs:
            what = f"transforms.declare: belief '{one.belief}' of '{one.name}'"
            raise ConfigError(
                what, "not followed", nearest(one.belief, beliefs) + ". track.beliefs declares others."
            )
        for side, of_side in rows.items():
            label = one.contrast.label(of_side)
            for kind, there in (("positive", label > 0), ("negative", label < 0)):
                if not there.any():
                    constant = f"no row of the {side} tasks is {kind}, so it is constant there"
                    remedy = "Change its expressions, or list tasks in grid.tasks that differ in it."
                    raise ConfigError(f"transforms.declare: concept '{one.name}'", constant, remedy)
