"""What to train: a strict YAML, read into frozen sections.

An unknown key is an error that names the key and the nearest valid one. Sites and tasks are parsed here, so
that a configuration that validates can be run.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from glob import glob
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)
from yaml.constructor import ConstructorError

from iclens.core import ConfigError, IclensError, Site, nearest, sae_site
from iclens.prompts.arms import parse_arm
from iclens.prompts.pairs import FILE
from iclens.prompts.tasks import parse_task

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(gt=0)]
Rate = Annotated[float, Field(gt=0)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Dtype = Literal["float32", "bfloat16"]
Architecture = Literal[
    "topk", "batchtopk", "matryoshka_batchtopk", "standard", "gated", "jumprelu",
    "transcoder", "skip_transcoder", "jumprelu_transcoder",
]  # fmt: skip
WITH_K = ("topk", "batchtopk", "matryoshka_batchtopk")
"""Architectures whose number of active latents is chosen."""


class Strict(BaseModel):
    """A frozen section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, given: Any) -> Any:
        if isinstance(given, dict):
            for key in given:
                if key not in cls.model_fields:
                    remedy = nearest(str(key), cls.model_fields)
                    raise ConfigError(f"key '{key}'", f"unknown in {cls.__name__}", remedy)
                if isinstance(given[key], bool):
                    raise ConfigError(f"key '{key}'", f"it is {given[key]!r}", "No key is true or false.")
        return given


class Model(Strict):
    """The language model that is read."""

    name: str
    """Folder, GGUF file or hub name."""
    load: Literal["whole", "needed"] = "whole"
    """`needed` loads only the blocks up to the deepest site: less memory, but CE recovered stays unknown."""
    dtype: Dtype = "float32"
    device: str = "cpu"
    attention: Literal["sdpa", "eager"] = "sdpa"


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
        if parse_arm(arm).probed:
            probed = "each query has a prompt of its own"
            raise ConfigError(f"arm '{arm}'", probed, "Use an inline arm: T, S, R.")
        return arm


class Massive(Strict):
    """Positions left out because their activations are far longer than the others'."""

    ratio: Annotated[float, Field(gt=1)] = 10.0
    """Left out: positions whose mean length exceeds `ratio` times what nine in ten positions stay below."""


class Contexts(Strict):
    """What all kinds of data share."""

    examples: Annotated[int, Field(gt=0, le=50)] = 16
    """Examples in each in-context prompt, the last one included."""
    prompts: tuple[Prompts, ...] = ()
    excluded_positions: tuple[Annotated[int, Field(ge=0)], ...] = ()
    """Positions of every context that are neither trained on nor measured; BOS and padding are left out
    wherever they stand."""
    massive: Massive | None = Massive()
    """Further positions left out, found by their length; null leaves none out."""

    def files(self) -> list[Path]:
        """The local files that contexts are read from, as far as they are there."""
        return [Path(match[1]) for part in self.prompts if (match := FILE.fullmatch(part.task))]

    @field_validator("prompts")
    @classmethod
    def _weights_fit(cls, prompts: tuple[Prompts, ...]) -> tuple[Prompts, ...]:
        total = sum(p.weight for p in prompts)
        if total > 1:
            remedy = "They are fractions of all contexts."
            raise ConfigError("key 'prompts'", f"weights sum to {total:g}", remedy)
        return prompts


class MixtureContexts(Contexts):
    """Contexts drawn from a mixture of tasks with exact posteriors."""

    kind: Literal["mixture"]
    mixture: Path | None = None
    """YAML of the mixture; `mixture.yaml` in the model folder by default."""

    def files(self) -> list[Path]:
        """The mixture, when it has a file of its own."""
        return super().files() + [path for path in [self.mixture] if path is not None and path.is_file()]


class TextContexts(Contexts):
    """Contexts of running text, packed to one length."""

    kind: Literal["text"]
    dataset: str
    """Hub name of a dataset, streamed; or path or glob of local .jsonl, .parquet or .txt files."""
    subset: str | None = None
    split: str = "train"
    text_field: str = "text"
    context_tokens: Annotated[int, Field(gt=1)] = 256
    """Length of a context, BOS included."""

    def files(self) -> list[Path]:
        """The dataset's local files; none of one that is streamed from the hub."""
        paths = [Path(name) for name in sorted(glob(self.dataset, recursive=True))]
        return super().files() + [path for path in paths if path.is_file()]


class TokenContexts(Contexts):
    """Contexts that were tokenised before."""

    kind: Literal["tokens"]
    path: Path
    """A .npy, .npz, .safetensors, .parquet or .jsonl file of token ids (`input_ids`, and `attention_mask`
    where there is one): rows of one length, which are contexts, or flat or of several lengths, which are
    cut."""
    context_tokens: Annotated[int, Field(gt=1)] | None = None
    """Length into which ids are cut that are flat or in rows of several lengths, BOS included."""
    padding_id: int | None = None
    """Id that fills rows up, also one that is no token (-100); by default the tokenizer's padding token."""

    def files(self) -> list[Path]:
        """The file of token ids."""
        return super().files() + [path for path in [self.path] if path.is_file()]


@dataclass(frozen=True)
class SaeSpec:
    """One SAE to train, every default resolved."""

    site: Site  # what it reads
    target: Site | None  # what it predicts, for a transcoder; None for an SAE, which reconstructs its site
    d_sae: int  # number of latents
    k: int | None  # active latents per token; None for architectures that do not choose it
    lr: float  # peak learning rate
    seed: int  # of its first weights
    architecture: str  # one of `Architecture`
    # further settings of the architecture, by the names of its sae_lens training config
    options: Mapping[str, Any]

    @property
    def name(self) -> str:
        """Name of its folder: `L14.resid_post`, or `L14.mlp_in-mlp_out` for a transcoder."""
        if self.target is None:
            return self.site.short
        same_layer = self.target.layer == self.site.layer
        return f"{self.site.short}-{self.target.hook if same_layer else self.target.short}"


class SaeEntry(Strict):
    """One SAE as it is declared; what is left out is taken from the sections `saes` and `training`."""

    site: str
    target: str | None = None
    """Site that a transcoder predicts from `site`."""
    d_sae: Positive | None = None
    k: Positive | None = None
    lr: Rate | None = None
    seed: Seed | None = None
    architecture: Architecture | None = None
    options: dict[str, Any] | None = None

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, given: Any) -> Any:
        return {"site": given} if isinstance(given, str) else given

    @field_validator("site", "target")
    @classmethod
    def _canonical(cls, site: str | None) -> str | None:
        return None if site is None else sae_site(site).short


class Saes(Strict):
    """Which SAEs, and their shape."""

    sites: Annotated[tuple[SaeEntry, ...], Field(min_length=1)]
    """Each a site, or a mapping of a site and what differs from the keys below."""
    d_sae: Positive | None = None
    k: Positive | None = None
    architecture: Architecture = "topk"
    options: dict[str, Any] = {}

    @property
    def members(self) -> tuple[SaeSpec, ...]:
        """The SAEs, in the order declared."""
        return tuple(self._spec(entry) for entry in self.sites)

    @property
    def recorded(self) -> tuple[Site, ...]:
        """Every site that is read or predicted, each once."""
        ends = ((spec.site, spec.target) for spec in self.members)
        return tuple(dict.fromkeys(site for pair in ends for site in pair if site is not None))

    def resolved(self, lr: float, seed: int) -> Saes:
        """The same section with every default written into its entries.

        Raises:
            ConfigError: for a width or k that is missing or cannot be, or an SAE that stands twice.
        """
        entries = tuple(self._entry(entry, lr, seed) for entry in self.sites)
        whole = self.model_copy(update={"sites": entries})
        names = [spec.name for spec in whole.members]
        if len(set(names)) < len(names):
            raise ConfigError("key 'sites'", "a site stands twice", "List each site once.")
        return whole

    def _entry(self, entry: SaeEntry, lr: float, seed: int) -> SaeEntry:
        architecture = entry.architecture or self.architecture
        given = {
            "d_sae": entry.d_sae or self.d_sae,
            "k": (entry.k or self.k) if architecture in WITH_K else entry.k,
            "lr": lr if entry.lr is None else entry.lr,
            "seed": seed if entry.seed is None else entry.seed,
            "architecture": architecture,
            "options": self.options if entry.options is None else entry.options,
        }
        _refuse_shape(entry.model_copy(update=given))
        return entry.model_copy(update=given)

    @staticmethod
    def _spec(entry: SaeEntry) -> SaeSpec:
        target = None if entry.target is None else Site.parse(entry.target)
        if entry.d_sae is None or entry.lr is None or entry.seed is None or entry.architecture is None:
            remedy = "Use TrainConfig.saes."
            raise ConfigError(f"SAE of {entry.site}", "its defaults are not resolved", remedy)
        return SaeSpec(
            Site.parse(entry.site), target, entry.d_sae, entry.k, entry.lr, entry.seed, entry.architecture,
            entry.options or {},
        )  # fmt: skip


def _refuse_shape(entry: SaeEntry) -> None:
    subject = f"SAE of {entry.site}"
    if entry.d_sae is None:
        raise ConfigError("key 'd_sae'", f"missing for {entry.site}", "Give it in saes, or for this site.")
    if entry.architecture in WITH_K and entry.k is None:
        raise ConfigError("key 'k'", f"missing for {entry.site}", "Give it in saes, or for this site.")
    if entry.architecture not in WITH_K and entry.k is not None:
        raise ConfigError(
            f"{subject}: key 'k'", f"'{entry.architecture}' does not choose it", "Leave it out."
        )
    if entry.k is not None and entry.k > entry.d_sae:
        raise ConfigError("key 'k'", f"{entry.k} of {entry.d_sae} latents", "Give a smaller k.")
    if str(entry.architecture).endswith("transcoder") and entry.target is None:
        missing = f"missing for a {entry.architecture}"
        raise ConfigError(f"{subject}: key 'target'", missing, "Name the site it predicts.")
    if entry.target == entry.site:
        raise ConfigError(f"{subject}: key 'target'", "it is the site itself", "Leave it out.")


class Optimisation(Strict):
    """How the SAEs are trained; every SAE sees the same rows in the same order."""

    tokens: Positive
    """Activations that each SAE is trained on."""
    batch_tokens: Positive = 2048
    buffer_tokens: Positive = 65536
    """Rows that are shuffled together; half of them are replaced at a time."""
    forward_contexts: Positive = 64
    """Contexts per forward pass of the model."""
    lr: Rate
    warmup: Share = 0.02
    """Fraction of training over which the rate rises from 0."""
    decay_from: Share = 0.5
    """Fraction of training after which the rate falls linearly to 0."""
    gradient_clip: Rate | None = None
    """Largest length of an SAE's gradient over all its parameters; null clips nothing."""
    aux_coefficient: Annotated[float, Field(ge=0)] = 1 / 32
    """Weight of the auxiliary loss, in which dead latents explain what the live ones left (AuxK)."""
    aux_k: Positive = 256
    """Dead latents that take part in the auxiliary loss of each row."""
    dead_after_tokens: Positive = 40_000
    """A latent counts as dead in training once it has been inactive for so many tokens."""
    scaling_tokens: Positive = 16384
    """Rows from which the mean and size of a site's activations are estimated, before the first step."""
    encode_dtype: Dtype = "float32"
    """Of the encoder's matrix product; the weights themselves stay float32."""
    moment_dtype: Dtype = "float32"
    """Of Adam's moments; bfloat16 halves the optimiser's memory."""
    encode_chunk: Positive | None = None
    """Rows whose pre-activations are held at a time; null holds those of the whole batch."""


class Checkpoints(Strict):
    """When training is saved, so that it can be continued exactly."""

    every_tokens: Positive | None = None
    every_minutes: Rate | None = 20.0
    keep: Positive = 2
    """How many are kept; older ones are removed once a newer one is whole."""


class HeldOut(Strict):
    """Contexts on which the trained SAEs are measured; none of them is trained on."""

    contexts: Positive = 256
    seed: Seed = 1_000_003


class TrainConfig(Strict):
    """One training run: several SAEs on one model."""

    seed: Seed = 0
    model: Model
    data: Annotated[MixtureContexts | TextContexts | TokenContexts, Field(discriminator="kind")]
    training: Optimisation
    saes: Saes
    checkpoints: Checkpoints = Checkpoints()
    held_out: HeldOut = HeldOut()

    @field_validator("saes")
    @classmethod
    def _defaults_written_out(cls, saes: Saes, info: ValidationInfo) -> Saes:
        training = info.data.get("training")
        return saes if training is None else saes.resolved(training.lr, info.data.get("seed", 0))

    @model_validator(mode="after")
    def _consistent(self) -> TrainConfig:
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
    subject = f"config '{path}'"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, ValueError) as cause:
        reason = "not YAML in UTF-8" if isinstance(cause, UnicodeDecodeError) else "no such file"
        raise ConfigError(subject, reason, "Give the path of a YAML file.") from cause
    with naming(str(path)):
        return parse_train_config(read_yaml(text, subject, "sae_configs/icl_tiny.yaml"))


def parse_train_config(declared: dict[str, Any]) -> TrainConfig:
    """Validate an already read configuration; raises as `load_train_config`."""
    try:
        return TrainConfig.model_validate(declared)
    except ValidationError as cause:
        first = cause.errors()[0]
        key = ".".join(str(part) for part in first["loc"]) or "config"
        raise ConfigError(
            f"key '{key}'",
            f"{first['msg']}, not {first['input']!r}"[:300],
            "See the comments in sae_configs/icl_tiny.yaml.",
        ) from cause


@contextmanager
def naming(source: str) -> Iterator[None]:
    """Puts the file before what an error says of its keys."""
    try:
        yield
    except IclensError as cause:
        if source in cause.asked:
            raise
        raise type(cause)(f"{source}: {cause.asked}", cause.found, cause.remedy) from cause


class _OneOfEach(yaml.SafeLoader):
    """Reads YAML whose mappings name each key once: a second one would silently replace the first."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if isinstance(key.value, str) and key.value != "<<":
                if key.value in keys:
                    raise ConstructorError(None, None, f"key '{key.value}' stands twice", key.start_mark)
                keys.add(key.value)
        return super().construct_mapping(node, deep)


def read_yaml(text: str, asked: str, example: str) -> dict[str, Any]:
    """The mapping that a YAML text holds, each of its keys once.

    Args:
        asked: what is read, for errors.
        example: a file that shows how it is written.

    Raises:
        ConfigError: when it is not YAML, or no mapping.
    """
    try:
        declared = yaml.load(text, _OneOfEach)
    except (yaml.YAMLError, RecursionError, ValueError) as cause:
        line = " ".join(str(cause).split())
        raise ConfigError(
            asked, f"not YAML ({line[:300]})", "Correct it at the line that is named."
        ) from cause
    if not isinstance(declared, dict):
        raise ConfigError(asked, "it holds no keys", f"It is written like {example}.")
    return declared
