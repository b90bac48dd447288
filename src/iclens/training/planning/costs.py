"""What a training run holds in memory and does for each token, by part, from shapes alone.

A run has four phases; each part says what it holds in which, and the peak is the largest sum:

    fill      forward passes of the model fill the buffer
    step      an SAE takes its step
    save      a checkpoint, or the finished set, is written
    measure   the set is measured on held-out contexts

Notation: D width of the site, T of the target (D for an SAE), F latents, P = F·(D + T) + F + T parameters,
B rows of a batch, C rows whose pre-activations are held at a time, k active latents.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from iclens.core import Site
from iclens.model.shape import ModelShape
from iclens.training.config import MixtureContexts, SaeSpec, TokenContexts, TrainConfig
from iclens.training.data.stored import tokens_shape
from iclens.training.limits import check_limits, context_length
from iclens.training.planning.devices import Device

PHASES = ("fill", "step", "save", "measure")
SIZE = {"float32": 4, "bfloat16": 2}
INTERPRETER = 550_000_000
"""Bytes of Python and of a run's libraries on a CPU, measured with torch 2.13 and transformers 5.23."""
MEASURED_CONTEXTS, MEASURED_ROWS, MEASURED_LOGITS = 64, 2048, 1 << 27
"""Held-out contexts, rows encoded and logits that the measurement holds at a time."""
EXPORT = 8
"""Bytes per parameter while an SAE is brought into units of raw activations."""
ENTRY = 80
"""Bytes per active latent and row: value, row and latent, and their order by latent."""
MIXTURE_IDS = 2048
"""Assumed number of token ids that the prompts of tasks are made of; the built-in mixture has 333."""
KEPT = 180_000_000
"""Bytes of freed small blocks that glibc does not give back, as measured; large ones go back at once."""
DEAD = 0.1
"""Assumed fraction of latents that are dead at once."""
SPARSE = ("topk", "batchtopk")
"""Architectures that the sparse step serves."""


@dataclass(frozen=True)
class Part:
    """Memory of one part of a run.

    Args:
        name: what it is.
        held: phase → bytes; a phase not named holds none.
    """

    name: str
    held: dict[str, float]


@dataclass(frozen=True)
class Cost:
    """Time of one part of a run.

    Args:
        name: what it is.
        flops: per token, an activation row on which every SAE is trained.
        dtype: in which they are done.
        traffic: bytes moved per token, beside the arithmetic.
    """

    name: str
    flops: float = 0.0
    dtype: str = "float32"
    traffic: float = 0.0

    def seconds(self, device: Device) -> float:
        """Seconds per token."""
        return self.flops / device.matrix_rate(self.dtype) + self.traffic / device.traffic_rate


@dataclass(frozen=True)
class Job:
    """A configuration, the shape of its model, and the lengths that follow from them.

    Raises:
        SiteError, ModelError, ConfigError: as `limits.check_limits`.
    """

    config: TrainConfig
    shape: ModelShape
    needed: int = field(init=False)
    """Blocks up to the deepest site."""
    context: int = field(init=False)
    """Tokens of a context."""

    def __post_init__(self) -> None:
        check_limits(self.config, self.shape)
        object.__setattr__(self, "needed", max(self.config.saes.recorded).layer + 1)
        object.__setattr__(self, "context", context_length(self.config))

    @property
    def rows(self) -> int:
        """Activation rows that a context gives: all but BOS and the positions listed."""
        return self.context - len({0, *(p for p in self.config.data.excluded_positions if p < self.context)})

    @property
    def whole(self) -> bool:
        """Whether every block and the unembedding are loaded."""
        return self.config.model.load == "whole" or self.needed == self.shape.n_blocks


# ----------------------------------------------------------------------------------------- memory


def memory(job: Job, device: Device) -> tuple[Part, ...]:
    """Every part of a run that takes memory on the device."""
    config, members = job.config, job.config.saes.members
    weights = 4 * sum(parameters(spec, job.shape.d_model) for spec in members)
    moments = weights * SIZE[config.training.moment_dtype] / 2
    blocks = (
        f"{job.shape.n_blocks} blocks, head" if job.whole else f"{job.needed} of {job.shape.n_blocks} blocks"
    )
    training = ("fill", "step", "save")
    found = (
        Part(f"model, {blocks}, {config.model.dtype}", dict.fromkeys(PHASES, model_bytes(job, device))),
        Part(
            f"weights of {len(members)} SAE{'s' * (len(members) > 1)}, float32",
            dict.fromkeys(PHASES, weights),
        ),
        Part(f"Adam's moments, {config.training.moment_dtype}", dict.fromkeys(training, moments)),
        Part("buffer", dict.fromkeys(training, buffer_bytes(job))),
        Part("forward pass", {"fill": forward_bytes(job)}),
        Part("gradients of one SAE", {"step": max(gradient_bytes(job, spec) for spec in members)}),
        Part("activations of one step", {"step": max(step_bytes(job, spec) for spec in members)}),
        Part("held-out contexts", {"measure": measure_bytes(job)}),
    )
    if device.kind != "cpu":
        return found
    copied = max(EXPORT * parameters(spec, job.shape.d_model) for spec in members)
    return (
        Part("Python and libraries", dict.fromkeys(PHASES, INTERPRETER)),
        *found,
        Part("copy of one SAE for the disk", {"save": copied}),
        Part("freed, kept by the allocator", dict.fromkeys(PHASES, KEPT)),
    )


def parameters(spec: SaeSpec, width: int) -> int:
    """P."""
    return spec.d_sae * 2 * width + spec.d_sae + width


def model_bytes(job: Job, device: Device) -> float:
    """Weights of the model in memory.

    On a CPU, weights in their stored dtype stay memory-mapped: of the embeddings only the rows of token ids
    that occur are read, which in a mixture's prompts are few.
    """
    blocks, dtype = job.shape.n_blocks if job.whole else job.needed, job.config.model.dtype
    mapped = device.kind == "cpu" and job.shape.stored == dtype
    n_ids = _ids(job.config) if mapped else None
    return SIZE[dtype] * job.shape.parameters(blocks, head=int(job.whole), n_ids=n_ids)


def _ids(config: TrainConfig) -> int | None:
    """Token ids that occur, at most, the prompts mixed in included; None when all of them can."""
    found = config.data
    if isinstance(found, MixtureContexts):
        return MIXTURE_IDS
    if isinstance(found, TokenContexts) and found.path.is_file():
        return MIXTURE_IDS + math.prod(tokens_shape(found.path))
    return None


def buffer_bytes(job: Job) -> float:
    """Rows of every recorded site, and those of one forward pass that wait to get in."""
    settings = job.config.training
    rows = settings.buffer_tokens + settings.forward_contexts * job.rows
    return SIZE[job.config.model.dtype] * len(job.config.saes.recorded) * rows * job.shape.d_model


def forward_bytes(job: Job) -> float:
    """What a block holds at work on a batch of contexts, beside the recorded sites.

    In the MLP the gate before and after its nonlinearity and the up projection, or these and their product,
    stand beside the residual and its norm. Recorded sites stand once as they were recorded, one twice.
    """
    tokens = job.config.training.forward_contexts * job.context
    recorded = len(job.config.saes.recorded) + 1
    values = 3 * job.shape.d_mlp + (3 + recorded) * job.shape.d_model
    return SIZE[job.config.model.dtype] * tokens * values


def gradient_bytes(job: Job, spec: SaeSpec) -> float:
    """Gradients of an SAE's parameters, float32, and the part of the decoder's that is taken out of them."""
    return 4 * parameters(spec, job.shape.d_model) + 4 * spec.d_sae * job.shape.d_model


def step_bytes(job: Job, spec: SaeSpec) -> float:
    """What a step holds beside weights and gradients.

    The batch of every site; u, v, the error, its gradient, û and the batch's squares. Of C rows, z and the
    search for its largest among 32·k columns: this stands before the gradients do, so only what exceeds them
    counts. Dead latents, here DEAD of all where they can be, have copies of their weights and gradients.
    Other architectures keep z, a and their gradients of all rows.
    """
    settings, width = job.config.training, job.shape.d_model
    rows = settings.batch_tokens
    batch = rows * width * (SIZE[job.config.model.dtype] * len(job.config.saes.recorded) + 4 * 6)
    if spec.architecture not in SPARSE:
        return batch + 6 * 4 * rows * spec.d_sae
    offered = (spec.k or 0) * (1 if spec.architecture == "topk" else 4)
    chunk = min(settings.encode_chunk or rows, rows)
    encode = SIZE[settings.encode_dtype]
    z = chunk * (encode * spec.d_sae * (1 + 1 / 32) + 32 * offered * (8 + 2 * encode))
    narrow = 2 * spec.d_sae * width if settings.encode_dtype == "bfloat16" else 0
    dead = 0.0
    if settings.aux_coefficient and settings.dead_after_tokens < settings.tokens:
        dead = DEAD * spec.d_sae * (4 * 4 * width + 3 * 4 * chunk)
    return batch + max(dead, z + narrow - gradient_bytes(job, spec)) + ENTRY * rows * offered


def measure_bytes(job: Job) -> float:
    """Held-out contexts: every site, latents and reconstructions of some rows, logits of a whole model."""
    tokens = min(MEASURED_CONTEXTS, job.config.held_out.contexts) * job.context
    members, width = job.config.saes.members, job.shape.d_model
    latents = min(tokens, MEASURED_ROWS) * 3 * 4 * max(spec.d_sae for spec in members)
    entries = {Site((spec.target or spec.site).layer, "resid_pre") for spec in members}
    sites = tokens * width * SIZE[job.config.model.dtype] * len({*job.config.saes.recorded, *entries})
    logits = 5 * 4 * min(MEASURED_LOGITS, tokens * job.shape.n_vocab) if job.whole else 0
    return latents + sites + logits + forward_bytes(job) + tokens * width * 4 * 8


# ------------------------------------------------------------------------------------------- time


def times(job: Job) -> tuple[Cost, ...]:
    """Every part of training that takes time: per token on which all SAEs are trained."""
    config, width = job.config, job.shape.d_model
    settings, members = config.training, config.saes.members
    batch, size = settings.batch_tokens, SIZE[config.model.dtype]
    forward = job.needed * job.shape.block_flops(job.context) * job.context / job.rows
    reread = job.needed * job.shape.block_parameters * size / (settings.forward_contexts * job.rows)
    sparse = [spec for spec in members if spec.architecture in SPARSE]
    dense = [spec for spec in members if spec.architecture not in SPARSE]
    encode = SIZE[settings.encode_dtype]
    all_parameters = sum(parameters(spec, width) for spec in members)
    moments = SIZE[settings.moment_dtype]
    found = [
        Cost("forward passes", forward, config.model.dtype, reread),
        Cost("buffer", traffic=4 * size * width * len(config.saes.recorded)),
        Cost("encoding", sum(2 * width * spec.d_sae for spec in sparse), settings.encode_dtype),
        Cost("choosing the active", traffic=sum(3 * encode * spec.d_sae for spec in sparse)),
        Cost("sums over the active", traffic=sum(5 * 4 * width * (spec.k or 0) for spec in sparse)),
        Cost("dense steps", sum(12 * width * spec.d_sae for spec in dense), "float32"),
        Cost("optimiser", traffic=all_parameters * (4 * 8 + 4 * moments) / batch),
    ]
    return tuple(cost for cost in found if cost.flops or cost.traffic)


# ------------------------------------------------------------------------------------------- disk


@dataclass(frozen=True)
class Disk:
    """Bytes that a run writes.

    Args:
        checkpoints: at most, while a new one stands beside those kept; gone when the run is over.
        saes: the finished set.
    """

    checkpoints: float
    saes: float


def disk(job: Job) -> Disk:
    """What a run writes."""
    kept = job.config.checkpoints
    width = job.shape.d_model
    sizes = sum(parameters(spec, width) for spec in job.config.saes.members)
    state = (4 + 2 * SIZE[job.config.training.moment_dtype]) * sizes + buffer_bytes(job)
    writes = kept.every_tokens is not None or kept.every_minutes is not None
    return Disk(writes * (kept.keep + 1) * state, 4 * sizes)
