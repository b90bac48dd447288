"""Concepts: what a latent may code, against matched negatives and the confounds it has to beat.

A *contrast* labels rows +1, −1 or 0 (not used). A *concept* is a contrast, the stratum within which
positives are compared with negatives (so that the two differ in nothing but the concept), and the
confounds: other contrasts on the same rows, measured with the concept held fixed.

Concepts are data. Those of every study stand in `concepts.yaml`, written in `expressions`; `declare` reads
more of the same form, and `Concept` takes any Python function of `Rows`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from iclens.errors import ConfigError, SiteError, nearest
from iclens.tables.arrays import Ints
from iclens.transforms.expressions import Expression, Known, parse_expression, says_yes_or_no
from iclens.transforms.rows import Rows

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
    yaml.safe_load((files("iclens.transforms") / "concepts.yaml").read_text("utf-8")), "concepts.yaml"
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
