"""What to train: a strict YAML, read into frozen sections.

An unknown key is an error that names the key and the nearest valid one. Sites and tasks are parsed here, so
that a configuration that validates can be run.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from iclens.errors import ConfigError, nearest
from iclens.names import Site
from iclens.tasks.prompts import ARMS
from iclens.tasks.spec import parse_task

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]


class Strict(BaseModel):
    """A frozen section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for key in given:
                if key not in cls.model_fields:
                    raise ConfigError(
                        f"key '{key}'", f"unknown in {cls.__name__}", nearest(str(key), cls.model_fields)
                    )
        return given


class Model(Strict):
    """The language model that is read."""

    name: str
    """Folder or hub name."""
    load: Literal["whole", "needed"] = "whole"
    """`needed` loads only the blocks up to the deepest site: less memory, but CE recovered stays unknown."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


class Prompts(Strict):
    """In-context prompts of one task, mixed into the contexts."""

    task: str
    arm: str = "T"
    weight: Share
    """Fraction of all contexts."""

    @field_validator("task")
    @classmethod
    def _known_task(cls, spec: str) -> str:
        return parse_task(spec).name

    @field_validator("arm")
    @classmethod
    def _known_arm(cls, arm: str) -> str:
        if arm not in ARMS:
            raise ConfigError(f"arm '{arm}'", "unknown", f"One of {', '.join(ARMS)}.")
        return arm


class Contexts(Strict):
    """What all kinds of data share."""

    examples: Annotated[int, Field(gt=0, le=50)] = 16
    """Examples in each in-context prompt, the last one included."""
    prompts: tuple[Prompts, ...] = ()
    excluded_positions: tuple[int, ...] = (0,)
    """Positions of a context that are neither trained on nor measured; 0 is BOS."""

    @field_validator("prompts")
    @classmethod
    def _weights_fit(cls, prompts: tuple[Prompts, ...]) -> tuple[Prompts, ...]:
        total = sum(p.weight for p in prompts)
        if total > 1:
            raise ConfigError(
                "key 'prompts'", f"weights sum to {total:g}", "They are fractions of all contexts."
            )
        return prompts


class MixtureContexts(Contexts):
    """Contexts drawn from a mixture of tasks with exact posteriors."""

    kind: Literal["mixture"]
    mixture: Path | None = None
    """YAML of the mixture; `mixture.yaml` in the model folder by default."""


class TextContexts(Contexts):
    """Contexts of running text, packed to one length."""

    kind: Literal["text"]
    dataset: str
    """Name of a Hugging Face dataset, streamed; or the path of a local .jsonl file."""
    subset: str | None = None
    split: str = "train"
    text_field: str = "text"
    context_tokens: Positive = 256
    """Length of a context, BOS included."""


class Saes(Strict):
    """Which SAEs, and their shape."""

    sites: Annotated[tuple[str, ...], Field(min_length=1)]
    d_sae: Positive
    k: Positive

    @field_validator("sites")
    @classmethod
    def _canonical(cls, sites: tuple[str, ...]) -> tuple[str, ...]:
        names = tuple(Site.parse(site).short for site in sites)
        if len(set(names)) < len(names):
            raise ConfigError("key 'sites'", "a site stands twice", "List each site once.")
        return names

    @property
    def parsed(self) -> tuple[Site, ...]:
        """The sites, in the order given."""
        return tuple(Site.parse(site) for site in self.sites)


class Optimisation(Strict):
    """How the SAEs are trained; every SAE sees the same rows in the same order."""

    tokens: Positive
    """Activations that each SAE is trained on."""
    batch_tokens: Positive = 2048
    buffer_tokens: Positive = 65536
    """Rows that are shuffled together; half of them are replaced at a time."""
    forward_contexts: Positive = 64
    """Contexts per forward pass of the model."""
    lr: Annotated[float, Field(gt=0)]
    warmup: Share = 0.02
    """Fraction of training over which the rate rises from 0."""
    decay_from: Share = 0.5
    """Fraction of training after which the rate falls linearly to 0."""
    aux_coefficient: Annotated[float, Field(ge=0)] = 1 / 32
    """Weight of the auxiliary loss, in which dead latents explain what the live ones left (AuxK)."""
    aux_k: Positive = 256
    """Dead latents that take part in the auxiliary loss of each row."""
    dead_after_tokens: Positive = 40_000
    """A latent counts as dead in training once it has been inactive for so many tokens."""


class HeldOut(Strict):
    """Contexts on which the trained SAEs are measured; none of them is trained on."""

    contexts: Positive = 256
    seed: int = 1_000_003


class TrainConfig(Strict):
    """One training run: several SAEs on one model."""

    model: Model
    data: Annotated[MixtureContexts | TextContexts, Field(discriminator="kind")]
    saes: Saes
    training: Optimisation
    held_out: HeldOut = HeldOut()
    seed: int = 0

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
        if self.saes.k > self.saes.d_sae:
            raise ConfigError("key 'k'", f"{self.saes.k} of {self.saes.d_sae} latents", "Give a smaller k.")
        if self.training.buffer_tokens < 2 * self.training.batch_tokens:
            raise ConfigError("key 'buffer_tokens'", "less than two batches", "Give a larger buffer.")
        if self.held_out.seed == self.seed:
            raise ConfigError("key 'held_out.seed'", "equal to the training seed", "Give another one.")
        return self


def load_train_config(path: str | Path) -> TrainConfig:
    """Read a training configuration.

    Raises:
        ConfigError: for a missing file, invalid YAML, an unknown key, a missing key or a wrong value.
        SiteError, TaskError: for a site or task that does not exist.
    """
    try:
        declared = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except OSError as cause:
        raise ConfigError(f"config '{path}'", "no such file", "Give the path of a YAML file.") from cause
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        raise ConfigError(
            f"config '{path}'", f"not YAML ({' '.join(str(cause).split())})", "Mend it."
        ) from cause
    if not isinstance(declared, dict):
        raise ConfigError(f"config '{path}'", "it holds no keys", "See sae_configs/icl_tiny.yaml.")
    return parse_train_config(declared)


def parse_train_config(declared: dict[str, Any]) -> TrainConfig:
    """Validate an already read configuration; raises as `load_train_config`."""
    try:
        return TrainConfig.model_validate(declared)
    except ValidationError as cause:
        first = cause.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "config"
        raise ConfigError(
            f"key '{key}'", first["msg"], "See the comments in sae_configs/icl_tiny.yaml."
        ) from cause
