"""On which tasks and for which concepts are features identified? Two sections of the config."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator, model_validator

from iclens.concepts.labels import EVERY_CONCEPT
from iclens.concepts.language import FIRST_EXAMPLE, Concept, concept, declare
from iclens.core import TEMPLATE, ConfigError, SiteError
from iclens.prompts.render import parse_template
from iclens.prompts.tasks import expand, parse_task
from iclens.study.section import Roles, Section, Seed


def known_concepts(declared: dict[str, Any]) -> tuple[Concept, ...]:
    """Every concept that a study can name: the package's, and those that it declares.

    Raises:
        ConfigError: for a declaration that cannot be.
    """
    return (*EVERY_CONCEPT, *declare(declared, "transforms.declare", EVERY_CONCEPT))


class GridSection(Section):
    """The grid of tasks on which features are identified and SAEs are measured."""

    tasks: list[str] | None = None
    """Task specs, ranges such as {1..5}x+{0..4} allowed; the default grid when not given."""
    numbers: tuple[int, int] = (0, 49)
    """First and last x of number tasks."""
    answers: tuple[int, int] | None = None
    """Least and greatest y of the grid's prompts, so that slopes have like answers; any when not given."""
    templates: list[str] = [TEMPLATE]
    """How examples are written, `prompts.render.TEMPLATES`; each has to be six tokens for the model."""
    n_prompts: int = Field(default=12, ge=2)
    """Prompts of each task and template."""
    n_examples: int = Field(default=16, ge=FIRST_EXAMPLE + 2)
    """Examples of a prompt; the first four do not count, because the task cannot be known yet."""
    seed: Seed = 1

    @field_validator("tasks")
    @classmethod
    def _tasks_exist(cls, tasks: list[str] | None) -> list[str] | None:
        if tasks == []:
            raise ValueError("give at least one task, or leave the key out for the default grid")
        for pattern in tasks or []:
            for spec in expand(pattern):
                parse_task(spec)
        return tasks

    @field_validator("templates")
    @classmethod
    def _templates_exist(cls, templates: list[str]) -> list[str]:
        if not templates:
            raise ValueError("give at least one template")
        return [parse_template(name).name for name in dict.fromkeys(templates)]


class TransformsSection(Section):
    """Which concepts latents are asked for, and how far their mechanism is followed."""

    concepts: list[str] | None = None
    """Names of concepts; all, and the declared ones, when not given."""
    declare: dict[str, dict[str, dict[str, Any]]] = {}
    """The study's own `contrasts` and `concepts`, written as in concepts/concepts.yaml."""
    roles: Roles = ["pre", "lab"]
    """Tokens at which latents are asked."""
    q: float = Field(default=0.05, gt=0, lt=1)
    other_saes: list[str] = []
    """Further SAE sets of the model, of other seeds or widths, in which every label is looked for again."""
    shown: int = Field(default=4, ge=1)
    """Best latents of each concept whose tuning is kept and whose mechanism is followed."""
    layers: list[int] | None = None
    """Blocks whose MLPs and attention are taken apart at `lab`; all when not given."""
    probe_rows: int = Field(default=1200, ge=100)
    """Rows, at most, on which probes are trained and read."""
    donor_examples: int = Field(default=12, ge=2)
    """Examples of run A's context in which labelled latents are moved."""
    n_pairs: int = Field(default=24, ge=4)
    """Pairs of runs A and B in which they are moved."""
    n_controls: int = Field(default=40, ge=1)
    """Matched random latents beside each latent whose causal effects are measured."""
    seed: Seed = 1

    @model_validator(mode="after")
    def _concepts_exist(self) -> TransformsSection:
        known = known_concepts(self.declare)
        contrasts = self.declare.get("contrasts") or {}
        for name in self.concepts or []:
            if name in contrasts:
                raise ConfigError(
                    f"transforms.concepts: '{name}'",
                    "a contrast, not a concept",
                    "Declare it under transforms.declare: concepts, with its confounds.",
                )
            try:
                concept(name, known)
            except SiteError as wrong:
                raise ConfigError(f"transforms.concepts: '{name}'", wrong.found, wrong.remedy) from wrong
        return self

    @field_validator("concepts")
    @classmethod
    def _each_once(cls, concepts: list[str] | None) -> list[str] | None:
        if concepts == []:
            raise ValueError("give at least one concept, or leave the key out")
        return None if concepts is None else list(dict.fromkeys(concepts))
