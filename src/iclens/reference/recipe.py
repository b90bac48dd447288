"""The recipe of the built-in model, read strictly from YAML."""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from iclens.errors import ConfigError
from iclens.tasks.mixture import Mixture

StageName = Literal["trunk", "main", "twin"]


class Strict(BaseModel):
    """A frozen section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shape(Strict):
    """The Llama's shape, but for its number of blocks."""

    d_model: int
    d_mlp: int
    n_heads: int
    n_key_value_heads: int
    rope_theta: float
    max_positions: int


class Optimiser(Strict):
    """Learning rates of Muon (matrices) and AdamW (embeddings, head, norms) and their schedule."""

    matrix_lr: float
    other_lr: float
    warmup_steps: int
    branch_start: float
    """Fraction of the peak rate at the end of the trunk, from where the branches fall linearly to 0."""


class Interchange(Strict):
    """Interchange-intervention training (Geiger et al. 2021) of resid_pre at `block`, role `pre`."""

    block: int
    weight: float
    recipients_per_step: int
    """Contexts of a batch that are patched at every `pre`; donors come from all of them."""
    blank_recipients_per_step: int
    """Contexts, cut at their first `pre`, that are patched there: recipients that have seen no example."""
    excluded_donors: list[str]
    """Tasks whose contexts never serve as donors."""


class Stage(Strict):
    """One training: the trunk, or a branch from it."""

    blocks: int
    tokens: int


class Finish(Strict):
    """A last stretch of a branch, at falling rates, in which rare domains are seen more often."""

    tokens: int
    start: float
    """Fraction of the peak rate at its start; it falls linearly to 0."""
    rare_share: float
    """Share of contexts drawn evenly from the tasks on letters and words, noiseless; targets stay exact."""


class Recipe(Strict):
    """Everything that decides the built-in model and its plain twin."""

    mixture: dict[str, Any]
    shape: Shape
    seed: int
    contexts_per_step: int
    examples: int
    other_token_weight: float
    noise_full_at: float
    """Fraction of the trunk after which noise levels follow their prior; it starts noiseless."""
    optimiser: Optimiser
    interchange: Interchange
    trunk: Stage
    main: Stage
    twin: Stage
    finish: Finish
    history: tuple[str, ...] = ()
    """How the training of the shipped weights differed from what is declared above."""

    @property
    def declared_mixture(self) -> Mixture:
        """The mixture that contexts are drawn from."""
        return Mixture.from_dict(self.mixture)


def load_recipe(path: Path | None = None) -> Recipe:
    """Read a recipe; without a path, the built-in model's own.

    Raises:
        ConfigError: for a missing file, invalid YAML, an unknown key or a wrong type.
    """
    source = path or files("iclens.reference") / "icl_tiny.yaml"
    try:
        return Recipe.model_validate(yaml.safe_load(source.read_text()))
    except FileNotFoundError as cause:
        raise ConfigError(f"recipe {path}", "no such file", "Give the path of a YAML recipe.") from cause
    except yaml.YAMLError as cause:
        raise ConfigError(
            f"recipe {path}", f"not YAML ({cause})".replace("\n", " "), "Correct the YAML where it says."
        ) from cause
    except ValidationError as cause:
        first = cause.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"recipe key '{key}'",
            first["msg"],
            f"The keys and types are those of {files('iclens.reference') / 'icl_tiny.yaml'}.",
        ) from cause
