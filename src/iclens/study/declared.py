"""What does a run's config say? Its labels as plain values, also of a config that no longer validates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from iclens.core import BELIEFS, SiteError, nearest


@dataclass(frozen=True)
class Declared:
    """The labels and numbers that a run is asked by.

    Args:
        study: its name.
        task: spec of the task that the prompts show.
        arms: the tested one first.
        controls: the arms that growth must be beyond.
        roles: the followed tokens of each example.
        n_prompts: prompts of each arm.
        n_examples: examples of each prompt.
        belief_names: along the belief axis.
        q: false discovery rate of the growth test.
        split_seed: of the split of prompts into discovery, shape and confirm.
        patch_role: role of the patches that pages and selections show.
    """

    study: str
    task: str
    arms: tuple[str, ...]
    controls: tuple[str, ...]
    roles: tuple[str, ...]
    n_prompts: int
    n_examples: int
    belief_names: tuple[str, ...]
    q: float
    split_seed: int
    patch_role: str

    @classmethod
    def of(cls, plain: Mapping[str, Any]) -> Declared:
        """The labels of a resolved config; what it does not say, or says in another form, is left empty."""
        arms = _names(plain, "prompts.arms")
        return cls(
            study=_at(plain, "study", str, ""),
            task=_at(plain, "prompts.task", str, ""),
            arms=arms,
            controls=_names(plain, "growth.controls") or arms[1:2],
            roles=_names(plain, "track.roles"),
            n_prompts=_at(plain, "prompts.n_prompts", int, 0),
            n_examples=_at(plain, "prompts.n_examples", int, 0),
            belief_names=(*BELIEFS, *_names(plain, "track.beliefs")),
            q=_at(plain, "growth.q", float, float("nan")),
            split_seed=_at(plain, "growth.split_seed", int, 0),
            patch_role=next(iter(_names(plain, "patch.roles")), "pre"),
        )


def known(what: str, name: str, options: Sequence[str]) -> str:
    """`name` when it is among `options`.

    Raises:
        SiteError: otherwise, naming the nearest.
    """
    if name not in options:
        raise SiteError(f"{what} '{name}'", "not in this run", nearest(str(name), options) + ".")
    return name


def _at(plain: Mapping[str, Any], path: str, kind: type, otherwise: Any) -> Any:
    value: Any = plain
    for key in path.split("."):
        value = value.get(key) if isinstance(value, Mapping) else None
    return value if isinstance(value, kind) else otherwise


def _names(plain: Mapping[str, Any], path: str) -> tuple[str, ...]:
    return tuple(name for name in _at(plain, path, list, []) if isinstance(name, str))
