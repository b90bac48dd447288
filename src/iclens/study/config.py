"""Study config: everything that decides a study's numbers, read strictly from YAML.

1. The file is parsed. 2. An unknown key is refused with the nearest valid one. 3. Task specs, roles, sites
and arms are checked before anything is loaded. A resolved config, with every default written out, is
what a run folder keeps and what its hash is taken of.
"""

from __future__ import annotations

from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from iclens.concepts.language import FIRST_EXAMPLE, concept, known_concepts
from iclens.core import TEMPLATE, ConfigError, Site, SiteError, check_role, nearest
from iclens.prompts.arms import other_task, parse_arm
from iclens.prompts.beliefs import DeclaredBelief, belief_names, check_declared, parse_belief
from iclens.prompts.render import parse_template
from iclens.prompts.tasks import Task, default_inputs, expand, parse_task
from iclens.stats import Splits, split_prompts
from iclens.training.config import naming, read_yaml


def _known_roles(roles: list[str]) -> list[str]:
    if not roles:
        raise ValueError("give at least one role")
    return [check_role(role) for role in dict.fromkeys(roles)]


Roles = Annotated[list[str], AfterValidator(_known_roles)]
TaskSpec = Annotated[str, AfterValidator(lambda spec: parse_task(spec).name)]
BeliefSpec = Annotated[str, AfterValidator(lambda spec: parse_belief(spec).name)]
Sites = Annotated[list[str], AfterValidator(lambda sites: [Site.parse(site).short for site in sites])]
Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A frozen section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switches(cls, value: Any) -> Any:
        if isinstance(value, bool):  # pydantic would take true for 1
            raise ValueError("no key is true or false")
        return value


class ModelSection(Section):
    """Which model is studied.

    `folder` is a Hugging Face folder, GGUF file or hub name. A relative path is looked for in the current
    directory, then in the checkout that holds this package.
    """

    folder: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    device: str = "cpu"


class SaesSection(Section):
    """Where the SAEs come from: a training config (`train`) or a finished set (`folder`); exactly one."""

    train: str | None = None
    folder: str | None = None
    quality_prompts: int = Field(default=1, ge=1)
    """Prompts of each task of the grid on which L0, FVU and CE recovered are measured."""
    quality_seed: Seed = 90_001

    @model_validator(mode="after")
    def _one_source(self) -> SaesSection:
        if (self.train is None) == (self.folder is None):
            raise ValueError("give exactly one of 'train' (a training config) and 'folder' (an SAE set)")
        return self


class PromptsSection(Section):
    """The prompts that latents are followed over; arms are paired prompt by prompt."""

    task: TaskSpec
    arms: list[str] = ["T", "S"]
    """Codes of `prompts.arms`. The first is tested against `growth.controls`; the others are followed as
    well, and the Bayesian tests use those that they need."""
    rival: TaskSpec | None = None
    """Task of the arms that show two (W, Wr, Q-) or tell examples apart (A-, A+); chosen from the task when
    not given."""
    n_prompts: int = Field(default=256, ge=4)
    n_examples: int = Field(default=16, ge=4)
    seed: Seed = 0
    numbers: tuple[int, int] = (0, 49)
    """First and last x of number tasks; pairs have their own."""
    template: str = TEMPLATE
    """How examples are written: a name of `prompts.render.TEMPLATES`, or a text with {x} and then {y}."""

    @field_validator("template")
    @classmethod
    def _template_exists(cls, template: str) -> str:
        return parse_template(template).name

    @field_validator("arms")
    @classmethod
    def _arms_exist(cls, arms: list[str]) -> list[str]:
        for arm in arms:
            parse_arm(arm)
        if len(arms) < 2 or len(set(arms)) < len(arms):
            raise ValueError("give at least two different arms, the tested one first")
        return arms

    @model_validator(mode="after")
    def _rival_is_another(self) -> PromptsSection:
        if self.rival == self.task:
            raise ConfigError(
                f"prompts.rival: '{self.rival}'", "the task itself", "Name another task, or leave it out."
            )
        return self

    @property
    def rule(self) -> Task:
        """The task that the prompts show."""
        return parse_task(self.task)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The inputs that prompts may hold."""
        first, last = self.numbers
        return default_inputs(self.rule, range(first, last + 1))


class TrackSection(Section):
    """Which sites are followed, at which tokens."""

    sites: Sites | None = None
    """Sites such as L2.mlp_out; all of the SAE set when not given."""
    roles: list[str] = ["pre", "lab", "close", "x"]
    batch: int = Field(default=128, ge=1)
    beliefs: list[BeliefSpec] = []
    """Beliefs followed beside `core.BELIEFS`: logit contrasts and concepts of the task, `prompts.beliefs`."""

    @field_validator("roles")
    @classmethod
    def _roles_exist(cls, roles: list[str]) -> list[str]:
        if "pre" not in roles:
            raise ValueError("the roles must hold 'pre', where the answer is predicted")
        return [check_role(role) for role in dict.fromkeys(roles)]


class GrowthSection(Section):
    """The growth test: detection, shape, evidence, causal link and confirmation."""

    q: float = Field(default=0.05, gt=0, lt=1)
    """P(any discovery) when nothing grows, and the false discovery rate within site × role."""
    controls: list[str] | None = None
    """Arms that growth must be beyond, every one of them; the second arm when not given."""
    split_seed: Seed = 0
    """Of the split of prompts into discovery, shape and confirm."""
    shortlist: int = Field(default=300, ge=1)
    """Growing latents, over all sites and roles, whose shape, evidence and confirmation are asked for."""
    dose_latents: int = Field(default=6, ge=0)
    """Latents of the short list, at `pre` of each site, that are pushed; 0 skips it, which the pages say."""
    dose_examples: int | None = Field(default=None, ge=1)
    """Examples in context when they are pushed; a quarter of the prompt's when not given."""
    dose_prompts: int = Field(default=48, ge=4)
    """Prompts of the confirm split, at most, in which they are pushed."""
    n_controls: int = Field(default=100, ge=1)
    """Matched random live latents that each pushed latent is compared with."""


class SweepSection(Section):
    """The whole-residual sweep from run A into run B."""

    roles: Roles = ["pre", "lab", "close", "x"]
    layers: list[int] | None = None
    """resid_pre of these blocks; all of them, and the end, when not given."""
    donor_examples: int = Field(default=12, ge=1)
    n_prompts: int = Field(default=64, ge=4)
    seed: Seed = 2
    ablations: list[tuple[Literal["zero", "mean", "resample"], Literal["pre", "all positions"]]] = [
        ("zero", "pre"),
        ("mean", "all positions"),
    ]
    """Ablations of every head and of every layer's heads: what replaces them, and where; none when empty."""
    belief: str = "exact"
    """The belief on which a layer works or does not, and heads are needed or not."""
    n_needed: int = Field(default=3, ge=1)
    """Heads, strongest first, whose joint loss is looked into; none that costs less than a nat."""
    ladder_steps: int = Field(default=4, ge=0)
    """Layers that the redundancy ladder may take away, one after the other; no ladder with 0."""
    ladder_controls: int = Field(default=3, ge=0)
    """Sets of other layers, as many, that are taken away instead."""


class PatchSection(Section):
    """Latents from run A into run B: one by one, in sets, and back."""

    sites: Sites | None = None
    """Sites to patch at; all that are followed when not given."""
    recipient: Literal["zero examples", "S arm", "R arm"] = "S arm"
    """Run B: no context, or one as long as A's with deranged or random labels."""
    donor_examples: int = Field(default=12, ge=2)
    n_prompts: int = Field(default=48, ge=4)
    """Half of them screen latents, the other half tests them."""
    donor_value: Literal["task mean", "instance"] = "task mean"
    """What B receives: the mean over other prompts, which says nothing of the query, or A's own value."""
    n_tested: int = Field(default=6, ge=1)
    """Latents of each site that are compared with matched random ones; q has to pay for each."""
    n_controls: int = Field(default=200, ge=1)
    """Matched random latents; no p-value can be below 1 / (n_controls + 1)."""
    roles: Roles = ["pre"]
    """Tokens at which latents are patched: of the query; `lab` and `close` of the last example before it."""
    chosen_for: str = "exact"
    """The belief by whose effects sets of latents are chosen."""
    largest_set: int = Field(default=32, ge=1)
    n_random_sets: int = Field(default=50, ge=0)
    """Sets of matched random latents for every chosen set."""
    wrong_task: str | None = None
    """The other task whose values serve as a control; a rival of the task when not given."""
    response_donors: int = Field(default=4, ge=0)
    """Donors of every x in the response curve of the site that carries most; no curve with 0."""
    seed: Seed = 3

    @model_validator(mode="after")
    def _roles_are_there(self) -> PatchSection:
        late = [role for role in self.roles if role in ("lab", "close")]
        if late and self.recipient == "zero examples":
            reason = "run B shows no example"
            raise ConfigError(
                f"patch.roles: {late[0]}", reason, "List a role up to pre, or set patch.recipient: S arm."
            )
        return self


class GridSection(Section):
    """The grid of tasks on which features are identified and SAEs are measured."""

    tasks: list[str] | None = None
    """Task specs, ranges such as {1..5}x+{0..4} allowed; the default grid when not given."""
    numbers: tuple[int, int] = (0, 49)
    """First and last x of number tasks; pairs have their own."""
    answers: tuple[int, int] | None = None
    """Least and greatest y of the grid's prompts, so that slopes have like answers; any when not given."""
    templates: list[str] = [TEMPLATE]
    """How examples are written, as `prompts.template`."""
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


class DashboardSection(Section):
    """How much is shown."""

    pages_per_site: int = Field(default=40, ge=1)
    """Latents of each site that get a page: the strongest growth, labels and patch effects."""
    latents: dict[str, list[int]] = {}
    """Site → latents that get a page besides these, whatever was found of them."""
    top_prompts: int = Field(default=6, ge=1)
    random_prompts: int = Field(default=3, ge=0)
    """Prompts drawn at random, shown beside the top ones."""
    prompts: int = Field(default=8, ge=0)
    """Prompts with a page of their own, run A beside run B."""
    search_prompts: int = Field(default=128, ge=1)
    """Prompts of the task grid among which the top prompts are looked for."""

    @field_validator("latents")
    @classmethod
    def _sites_parse(cls, latents: dict[str, list[int]]) -> dict[str, list[int]]:
        return {Site.parse(site).short: ids for site, ids in latents.items()}


class StudyConfig(Section):
    """A whole study."""

    study: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")
    model: ModelSection
    saes: SaesSection
    prompts: PromptsSection
    track: TrackSection = TrackSection()
    growth: GrowthSection = GrowthSection()
    grid: GridSection = GridSection()
    transforms: TransformsSection = TransformsSection()
    sweep: SweepSection = SweepSection()
    patch: PatchSection = PatchSection()
    dashboard: DashboardSection = DashboardSection()

    @property
    def treated(self) -> str:
        """The arm whose growth is tested."""
        return self.prompts.arms[0]

    @property
    def declared(self) -> tuple[DeclaredBelief, ...]:
        """The beliefs that are followed beside the five of every study."""
        return check_declared(self.track.beliefs, self.prompts.rule, self.prompts.inputs)

    @property
    def belief_names(self) -> tuple[str, ...]:
        """Names along the belief axis."""
        return belief_names(self.declared)

    @property
    def pushed_after(self) -> int:
        """Examples in context at which latents are pushed and compared with matched ones."""
        return self.growth.dose_examples or max(1, self.prompts.n_examples // 4)

    @property
    def controls(self) -> list[str]:
        """The arms that growth must be beyond."""
        return self.growth.controls or self.prompts.arms[1:2]

    @property
    def splits(self) -> Splits:
        """The prompts that discover, judge the shape and confirm.

        Raises:
            TableError: when a part would be too small, saying how many prompts are needed.
        """
        section = self.prompts
        return split_prompts(section.n_prompts, section.n_examples, seed=self.growth.split_seed)

    @model_validator(mode="after")
    def _beliefs_can_be_read(self) -> StudyConfig:
        if self.patch.wrong_task is not None:
            other_task(self.patch.wrong_task, self.prompts.rule, self.prompts.inputs)
        for key, belief in (("patch.chosen_for", self.patch.chosen_for), ("sweep.belief", self.sweep.belief)):
            if belief not in self.belief_names:
                raise ConfigError(
                    f"{key}: belief '{belief}'",
                    "not followed",
                    nearest(belief, self.belief_names) + ". track.beliefs declares others.",
                )
        return self

    @model_validator(mode="after")
    def _growth_can_be_tested(self) -> StudyConfig:
        strange = [arm for arm in self.controls if arm not in self.prompts.arms[1:]]
        if strange:
            arms = ", ".join(self.prompts.arms)
            raise ConfigError(
                f"growth.controls: arm {strange[0]}",
                f"prompts.arms has {arms}",
                "List it in prompts.arms, after the tested arm.",
            )
        most = self.prompts.n_examples - 2
        if self.pushed_after > most:
            raise ConfigError(
                f"growth.dose_examples: {self.pushed_after}",
                f"prompts have {self.prompts.n_examples} examples",
                f"Push after {most} at most: the last ones are what a dose stands for.",
            )
        return self

    def yaml(self) -> str:
        """The resolved config, every default written out."""
        return yaml.safe_dump(self.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def load_study_config(path: str | Path) -> StudyConfig:
    """Read a study config.

    Raises:
        ConfigError: for a missing or unreadable file, invalid YAML, an unknown key (naming the nearest) or a
            wrong value.
        TaskError, SiteError: for a task, arm, role or site that does not exist.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as cause:
        raise ConfigError(
            f"study config '{path}'", "no such file", "Give the path of a YAML file."
        ) from cause
    except (OSError, ValueError) as cause:
        raise ConfigError(
            f"study config '{path}'",
            f"unreadable ({one_line(cause)})",
            "Give a text file in UTF-8 that you may read.",
        ) from cause
    return parse_study_config(text, str(path))


def demo_config() -> StudyConfig:
    """The study of the built-in model that `iclens demo` runs."""
    return parse_study_config((files("iclens.study") / "demo.yaml").read_text(encoding="utf-8"), "demo.yaml")


def parse_study_config(text: str, source: str) -> StudyConfig:
    """Validate YAML text; `source` names it in errors."""
    declared = read_yaml(text, f"study config '{source}'", "study/demo.yaml")
    with naming(source):
        try:
            return StudyConfig.model_validate(declared)
        except ValidationError as cause:
            raise explain(cause, StudyConfig, source) from cause


def explain(cause: ValidationError, root: type[BaseModel], source: str) -> ConfigError:
    """The first validation error as one line: the key, what stands there, and what is allowed."""
    errors = cause.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = [str(part) for part in first["loc"]]
    subject = f"{source}: key '{'.'.join(path)}'"
    if first["type"] == "extra_forbidden":
        return ConfigError(subject, "unknown", nearest(path[-1], _keys_at(root, path[:-1])) + ".")
    if first["type"] == "missing":
        return ConfigError(subject, "missing", f"Write it in {source}: it has no default.")
    allowed = one_line(first["msg"]).removeprefix("Value error, ").replace("Input should", "It should", 1)
    return ConfigError(subject, f"{first['input']!r}"[:200], f"{allowed[:1].upper()}{allowed[1:]}.")


def _keys_at(root: type[BaseModel], path: list[str]) -> list[str]:
    section = root
    for part in path:
        inner: Any = section.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        section = inner
    return list(section.model_fields)


def one_line(cause: object) -> str:
    """Text without line breaks."""
    return " ".join(str(cause).split())
