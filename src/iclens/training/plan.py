"""What a training run takes, from the configuration and config.json alone: limits, memory, time and disk.

1. Its sites lie in blocks that the model has, and no context is longer than the model's positions. 2. Every
part says what it holds in each of four phases; the peak is the largest sum over a phase:

    fill      forward passes of the model fill the buffer
    step      an SAE takes its step
    save      a checkpoint, or the finished set, is written
    measure   the set is measured on held-out contexts

3. Every part says what it computes and moves for a token; with the device's rates that is time. 4. What does
not fit is refused, with the settings that would make it fit (`KNOBS`).

Notation: D width of a site, F latents, P = 2·F·D + F + D parameters, B rows of a batch, C rows whose
pre-activations are held at a time, k active latents.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from iclens.core import ConfigError, Site, SiteError, WontFitError, examples_within, nearest, prompt_length
from iclens.model.shape import ModelShape, read_shape, refuse_longer
from iclens.training.config import (
    MixtureContexts,
    Optimisation,
    SaeSpec,
    TextContexts,
    TokenContexts,
    TrainConfig,
)
from iclens.training.tokens import read_tokens

__all__ = ["Device", "Plan", "Remedy", "find_device", "plan"]

GB = 1e9
PHASES = ("fill", "step", "save", "measure")
SIZE = {"float32": 4, "bfloat16": 2}
INTERPRETER = 550_000_000
"""Bytes of Python and of a run's libraries on a CPU, measured with torch 2.13 and transformers 5.23."""
KEPT = 180_000_000
"""Bytes of freed small blocks that glibc does not give back, as measured; large ones go back at once."""
MEASURED_CONTEXTS, MEASURED_ROWS, MEASURED_LOGITS = 64, 2048, 1 << 27
"""Held-out contexts, rows encoded and logits that the measurement holds at a time."""
EXPORT = 8
"""Bytes per parameter while an SAE is brought into units of raw activations."""
ENTRY = 80
"""Bytes per active latent and row: value, row and latent, and their order by latent."""
MIXTURE_IDS = 2048
"""Assumed number of token ids that the prompts of tasks are made of; the built-in mixture has 333."""
DEAD = 0.1
"""Assumed fraction of latents that are dead at once."""
SPARSE = ("topk", "batchtopk")
"""Architectures that the sparse step serves; all others compute every latent."""


# ----------------------------------------------------------------------------------------- limits


def check_limits(config: TrainConfig, shape: ModelShape) -> None:
    """Refuse a run that its model cannot serve, before a weight is read."""
    for site in config.saes.recorded:
        if site.layer >= shape.n_blocks:
            blocks = f"the model has blocks 0 to {shape.n_blocks - 1}"
            raise SiteError(f"site {site}", blocks, "Choose one of these.")
    data, positions = config.data, shape.n_positions
    in_examples = f"data.examples: {data.examples}"
    key = in_examples
    if isinstance(data, TokenContexts):
        key = f"data.path: {data.path}"
    elif isinstance(data, TextContexts):
        key = f"data.context_tokens: {data.context_tokens}"
    lengths = {key: context_length(config)}
    if data.prompts:
        lengths[in_examples] = prompt_length(data.examples)
    for key, tokens in lengths.items():
        unit = f"{positions} tokens to a context"
        if key == in_examples:
            unit = f"{examples_within(positions)} examples"
        refuse_longer(tokens, positions, f"'{config.model.name}'", f"key '{key}'", f"Give at most {unit}.")


def context_length(config: TrainConfig) -> int:
    """Tokens of a context of the main source, declared or read from the file of tokens."""
    data = config.data
    if isinstance(data, MixtureContexts):
        return prompt_length(data.examples)
    if isinstance(data, TextContexts):
        return data.context_tokens
    if data.context_tokens is not None:
        return data.context_tokens
    shape = read_tokens(data.path).ids.shape
    if len(shape) != 2:
        flat = "they are flat, or in rows of several lengths"
        raise ConfigError(f"tokens '{data.path}'", flat, "Give data.context_tokens.")
    return shape[1]


# ---------------------------------------------------------------------------------------- devices


@dataclass(frozen=True)
class Device:
    """A machine to train on. Peaks are those of data sheets, dense; the reached fractions are assumed."""

    name: str  # as given to `--device`
    kind: str  # `cuda` or `cpu`
    memory: int  # bytes
    bf16_flops: float  # peak of bfloat16 matrix products, FLOP/s
    fp32_flops: float  # peak of float32 matrix products as PyTorch runs them by default, FLOP/s
    bandwidth: float  # peak of memory traffic, byte/s
    matrix_efficiency: float  # assumed fraction of the peak that large matrix products reach
    memory_efficiency: float  # assumed fraction of the bandwidth that streaming and gathering reach
    reserve: int  # bytes that no tensor can have: driver context, libraries, interpreter
    slack: float  # assumed fraction of tensor bytes lost to the allocator's rounding and fragments
    source: str  # where the peaks are from

    def matrix_rate(self, dtype: str) -> float:
        """Reached FLOP/s of matrix products in `float32` or `bfloat16`."""
        return self.matrix_efficiency * (self.bf16_flops if dtype == "bfloat16" else self.fp32_flops)

    @property
    def traffic_rate(self) -> float:
        """Reached byte/s."""
        return self.memory_efficiency * self.bandwidth


CARDS = {
    name: Device(
        name, "cuda", memory * 10**9, bf16 * 1e12, fp32 * 1e12, bandwidth * 1e12,
        matrix_efficiency=0.65, memory_efficiency=0.7, reserve=10**9, slack=0.03,
        source=f"NVIDIA {source}",
    )
    for name, memory, bf16, fp32, bandwidth, source in (
        ("a100-40gb", 40, 312, 19.5, 1.555, "A100 data sheet, SXM 40 GB"),
        ("a100-80gb", 80, 312, 19.5, 2.039, "A100 data sheet, SXM 80 GB"),
        ("h100-80gb", 80, 989, 67, 3.35, "H100 data sheet, SXM"),
        ("h200", 141, 989, 67, 4.8, "H200 data sheet, SXM"),
    )
}  # fmt: skip
NAMES = (*CARDS, "cpu")
_KNOWN = (
    ("A100", "80GB", "a100-80gb"), ("A100", "40GB", "a100-40gb"), ("H100", "", "h100-80gb"),
    ("H200", "", "h200"),
)  # fmt: skip
"""Words in the name that a driver reports → device; the first match counts."""


def cpu() -> Device:
    """This machine without an accelerator.

    Assumed for each core: 96 GFLOP/s in float32 (two 8-lane fused multiply-adds a cycle at 3 GHz), the same
    in bfloat16; 10 GB/s of memory traffic.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # OMP_NUM_THREADS may list a number for every level of nested regions; the first is that of the outer one.
    threads = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    used = min(cores, int(threads)) if threads.isdecimal() and int(threads) else cores
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Device(
        "cpu", "cpu", memory, 96e9 * used, 96e9 * used, 10e9 * used, matrix_efficiency=0.8,
        memory_efficiency=0.7, reserve=0, slack=0.0, source=f"{used} cores of this machine, rates assumed",
    )  # fmt: skip


def find_device(name: str | None, wanted: str = "cpu") -> Device:
    """The device to plan for.

    Args:
        name: one of `NAMES`; None for the present machine.
        wanted: torch device of the configuration; with no name, `cpu` plans for this machine's CPU and
            anything else for its accelerator.
    """
    if name == "cpu" or (name is None and wanted == "cpu"):
        return cpu()
    if name is None:
        return present_device()
    if name not in CARDS:
        raise ConfigError(f"device '{name}'", "unknown", nearest(name, NAMES))
    return CARDS[name]


def present_device() -> Device:
    """The accelerator of this machine: the memory it reports, the rates of the card it is."""
    import torch

    if not torch.cuda.is_available():
        remedy = f"Name one by --device: {', '.join(NAMES)}."
        raise ConfigError("the present device", "no accelerator is here", remedy)
    reported = torch.cuda.get_device_properties(0)
    for model, size, name in _KNOWN:
        if model in reported.name and size in reported.name.replace(" ", ""):
            return replace(CARDS[name], memory=reported.total_memory)
    remedy = f"Name one of {', '.join(NAMES)}."
    raise ConfigError(f"the present device '{reported.name}'", "its rates are not known", remedy)


# ----------------------------------------------------------------------------------- memory, time


@dataclass(frozen=True)
class Part:
    """Memory of one part of a run: phase → bytes; a phase that is not named holds none."""

    name: str
    held: dict[str, float]


@dataclass(frozen=True)
class Cost:
    """Time of one part of a run: FLOP in `dtype` and bytes moved, per token on which every SAE is trained."""

    name: str
    flops: float = 0.0
    dtype: str = "float32"
    traffic: float = 0.0

    def seconds(self, device: Device) -> float:
        """Seconds per token."""
        return self.flops / device.matrix_rate(self.dtype) + self.traffic / device.traffic_rate


@dataclass(frozen=True)
class Disk:
    """Bytes that a run writes: checkpoints at most, gone when the run is over, and the finished set."""

    checkpoints: float
    saes: float


class Job:
    """A configuration on a model, and the sizes that follow from both, in bytes unless said."""

    def __init__(self, config: TrainConfig, shape: ModelShape) -> None:
        check_limits(config, shape)
        self.config, self.settings, self.shape, self.width = config, config.training, shape, shape.d_model
        self.members, self.n_sites = config.saes.members, len(config.saes.recorded)
        self.size = SIZE[config.model.dtype]  # bytes of an activation
        self.needed = max(config.saes.recorded).layer + 1  # blocks up to the deepest site
        self.whole = config.model.load == "whole" or self.needed == shape.n_blocks
        self.context = context_length(config)
        excluded = {0, *(pos for pos in config.data.excluded_positions if pos < self.context)}
        self.rows = self.context - len(excluded)  # of a context: all but BOS and the positions listed
        contexts = self.settings.forward_contexts
        # Rows of every site, and those of one forward pass that wait to get in.
        buffered = self.settings.buffer_tokens + contexts * self.rows
        self.buffer = self.size * self.n_sites * buffered * self.width
        # A block at work: in the MLP the gate before and after its nonlinearity and the up projection, or
        # these and their product, beside the residual and its norm. Recorded sites stand once, one twice.
        values = 3 * shape.d_mlp + (3 + self.n_sites + 1) * self.width
        self.forward = self.size * contexts * self.context * values
        if shape.whole_scores:  # with a softmax in float32, before and after it
            scores = contexts * self.context**2 * shape.n_heads * (self.size + 2 * 4)
            kept = self.size * contexts * self.context * (3 + self.n_sites + 1) * self.width
            self.forward = max(self.forward, kept + scores)

    def parameters(self, spec: SaeSpec) -> int:
        """P of an SAE."""
        return spec.d_sae * 2 * self.width + spec.d_sae + self.width

    def gradients(self, spec: SaeSpec) -> int:
        """Bytes of an SAE's gradients, and of the part of the decoder's that is taken out of them."""
        return 4 * self.parameters(spec) + 4 * spec.d_sae * self.width

    def model(self, device: Device) -> float:
        """Bytes of the model's weights.

        On a CPU, weights in their stored dtype stay memory-mapped: of the embeddings only the rows of token
        ids that occur are read, which in a mixture's prompts are few.
        """
        data, n_ids = self.config.data, None
        if device.kind == "cpu" and self.shape.stored == self.config.model.dtype:
            if isinstance(data, MixtureContexts):
                n_ids = MIXTURE_IDS
            elif isinstance(data, TokenContexts) and data.path.is_file():
                n_ids = MIXTURE_IDS + math.prod(read_tokens(data.path).ids.shape)
        blocks = self.shape.n_blocks if self.whole else self.needed
        return self.size * self.shape.parameters(blocks, head=int(self.whole), n_ids=n_ids)

    def step(self, spec: SaeSpec) -> float:
        """Bytes that a step holds beside weights and gradients.

        The batch of every site; u, v, the error, its gradient, û and the batch's squares. Of C rows, z and
        the search for its largest among 32·k columns: this stands before the gradients do, so only what
        exceeds them counts. Dead latents, here DEAD of all where they can be, have copies of their weights
        and gradients. Other architectures keep z, a and their gradients of all rows.
        """
        settings, rows, width = self.settings, self.settings.batch_tokens, self.width
        batch = rows * width * (self.size * self.n_sites + 4 * 6)
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
        return batch + max(dead, z + narrow - self.gradients(spec)) + ENTRY * rows * offered

    def measure(self) -> float:
        """Bytes of held-out contexts: every site, latents and reconstructions of some rows, logits."""
        tokens = min(MEASURED_CONTEXTS, self.config.held_out.contexts) * self.context
        latents = min(tokens, MEASURED_ROWS) * 3 * 4 * max(spec.d_sae for spec in self.members)
        entries = {Site((spec.target or spec.site).layer, "resid_pre") for spec in self.members}
        sites = tokens * self.width * self.size * len({*self.config.saes.recorded, *entries})
        logits = 5 * 4 * min(MEASURED_LOGITS, tokens * self.shape.n_vocab) if self.whole else 0
        return latents + sites + logits + self.forward + tokens * self.width * 4 * 8


def memory(job: Job, device: Device) -> tuple[Part, ...]:
    """Every part of a run that takes memory on the device."""
    config, members, blocks = job.config, job.members, job.shape.n_blocks
    loaded = f"{blocks} blocks, head" if job.whole else f"{job.needed} of {blocks} blocks"
    weights = 4 * sum(job.parameters(spec) for spec in members)
    moments = weights * SIZE[job.settings.moment_dtype] / 2
    always, training = PHASES, ("fill", "step", "save")
    on_cpu = device.kind == "cpu"
    copied = max(EXPORT * job.parameters(spec) for spec in members)
    table: list[tuple[str, Sequence[str], float]] = [
        ("Python and libraries", always, INTERPRETER * on_cpu),
        (f"model, {loaded}, {config.model.dtype}", always, job.model(device)),
        (f"weights of {len(members)} SAE{'s' * (len(members) > 1)}, float32", always, weights),
        (f"Adam's moments, {job.settings.moment_dtype}", training, moments),
        ("buffer", training, job.buffer),
        ("forward pass", ["fill"], job.forward),
        ("gradients of one SAE", ["step"], max(map(job.gradients, members))),
        ("activations of one step", ["step"], max(map(job.step, members))),
        ("held-out contexts", ["measure"], job.measure()),
        ("copy of one SAE for the disk", ["save"], copied * on_cpu),
        ("freed, kept by the allocator", always, KEPT * on_cpu),
    ]
    return tuple(Part(name, dict.fromkeys(phases, size)) for name, phases, size in table if size)


def times(job: Job) -> tuple[Cost, ...]:
    """Every part of training that takes time: per token on which all SAEs are trained."""
    settings, shape, width, size = job.settings, job.shape, job.width, job.size
    sparse = [spec for spec in job.members if spec.architecture in SPARSE]
    dense = [spec for spec in job.members if spec.architecture not in SPARSE]
    forward = job.needed * shape.block_flops(job.context) * job.context / job.rows
    reread = job.needed * shape.block_parameters * size / (settings.forward_contexts * job.rows)
    encode, moments = SIZE[settings.encode_dtype], SIZE[settings.moment_dtype]
    weights = sum(job.parameters(spec) for spec in job.members)
    table = (
        Cost("forward passes", forward, job.config.model.dtype, reread),
        Cost("buffer", traffic=4 * size * width * job.n_sites),
        Cost("encoding", sum(2 * width * spec.d_sae for spec in sparse), settings.encode_dtype),
        Cost("choosing the active", traffic=sum(3 * encode * spec.d_sae for spec in sparse)),
        Cost("sums over the active", traffic=sum(5 * 4 * width * (spec.k or 0) for spec in sparse)),
        Cost("dense steps", sum(12 * width * spec.d_sae for spec in dense), "float32"),
        Cost("optimiser", traffic=weights * (4 * 8 + 4 * moments) / settings.batch_tokens),
    )
    return tuple(cost for cost in table if cost.flops or cost.traffic)


def disk(job: Job) -> Disk:
    """What a run writes."""
    kept, sizes = job.config.checkpoints, sum(job.parameters(spec) for spec in job.members)
    state = (4 + 2 * SIZE[job.settings.moment_dtype]) * sizes + job.buffer
    writes = kept.every_tokens is not None or kept.every_minutes is not None
    return Disk(writes * (kept.keep + 1) * state, 4 * sizes)


# ------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Remedy:
    """A change to the configuration, and the peak in bytes with it and those before it."""

    change: str
    peak: int


@dataclass(frozen=True)
class Plan:
    """What a run takes."""

    device: Device  # planned for
    memory: tuple[Part, ...]  # parts, with the bytes each holds in every phase
    times: tuple[Cost, ...]  # parts, with seconds per token
    disk: Disk  # bytes written
    tokens: int  # activations that each SAE sees
    # changes after which it fits, in order; empty when it fits. The last one's peak says whether they
    # suffice.
    remedies: tuple[Remedy, ...] = ()

    @property
    def peaks(self) -> dict[str, int]:
        """Phase → bytes."""
        slack = 1 + self.device.slack
        return {
            phase: int(slack * sum(part.held.get(phase, 0) for part in self.memory)) + self.device.reserve
            for phase in PHASES
        }

    @property
    def peak(self) -> int:
        """Largest number of bytes over the phases."""
        return max(self.peaks.values())

    @property
    def fits(self) -> bool:
        """Whether the peak is within the device's memory."""
        return self.peak <= self.device.memory

    @property
    def seconds_per_token(self) -> float:
        """Over all parts."""
        return sum(cost.seconds(self.device) for cost in self.times)

    @property
    def seconds(self) -> float:
        """Of training, without loading and measuring."""
        return self.tokens * self.seconds_per_token

    def refuse_unfit(self, name: str) -> None:
        """Raise a WontFitError, with the remedies, when the run does not fit."""
        if not self.fits:
            taken = f"it takes {self.peak / GB:.1f} GB of {self.device.memory / GB:.1f}"
            raise WontFitError(f"config '{name}' on {self.device.name}", taken, self._advice())

    def _advice(self) -> str:
        if not self.remedies:
            return "No change to it that is tried here helps."
        tried = "; then ".join(f"{remedy.change} ({remedy.peak / GB:.1f} GB)" for remedy in self.remedies)
        enough = self.remedies[-1].peak <= self.device.memory
        return f"{tried}." if enough else f"Even this is not enough: {tried}."

    def as_json(self) -> dict[str, object]:
        """Everything as plain numbers: bytes, seconds."""
        return {
            "device": asdict(self.device),
            "memory": {part.name: {k: int(v) for k, v in part.held.items()} for part in self.memory},
            "peaks": self.peaks, "peak": self.peak, "fits": self.fits,
            "seconds_per_token": {cost.name: cost.seconds(self.device) for cost in self.times},
            "tokens": self.tokens, "tokens_per_second": 1 / self.seconds_per_token, "seconds": self.seconds,
            "disk": asdict(self.disk), "remedies": [asdict(remedy) for remedy in self.remedies],
        }  # fmt: skip

    def as_text(self) -> str:
        """Tables for people."""
        peaks, whole = self.peaks, self.seconds_per_token
        lines = [f"{self.device.name} ({self.device.source})", "", _row("memory, GB", PHASES)]
        lines += [_row(p.name, [_gb(p.held.get(phase, 0)) for phase in PHASES]) for p in self.memory]
        if self.device.reserve:
            slack = [peaks[phase] - sum(p.held.get(phase, 0) for p in self.memory) for phase in PHASES]
            lines.append(_row("driver context and allocator, assumed", map(_gb, slack)))
        lines += [_row("total", [_gb(peaks[phase]) for phase in PHASES]), ""]
        lines.append(_row("time, µs per token, assumed rates", ["", "share"]))
        for cost in self.times:
            seconds = cost.seconds(self.device)
            lines.append(_row(cost.name, [f"{1e6 * seconds:.2f}", f"{seconds / whole:.0%}"]))
        lines.append(_row("total", [f"{1e6 * whole:.2f}", f"{1 / whole:,.0f} tokens/s"]))
        lasting = f"{self.seconds / 3600:.1f} h" if self.seconds >= 5400 else f"{self.seconds / 60:.0f} min"
        lines.append(_row(f"{self.tokens:,} tokens", [lasting]))
        kept, made = self.disk.checkpoints / GB, self.disk.saes / GB
        lines += ["", f"disk, GB: up to {kept:.1f} for checkpoints, {made:.1f} for the SAEs"]
        taken = f"{self.peak / GB:.1f} GB of {self.device.memory / GB:.1f}"
        lines.append(f"fits: {taken}" if self.fits else f"does not fit: {taken}. {self._advice()}")
        return "\n".join(lines)


def _row(name: str, cells: Iterable[str]) -> str:
    return f"{name:<40}" + "".join(f"  {cell:>9}" for cell in cells)


def _gb(size: float) -> str:
    return f"{size / GB:.2f}" if size else "–"


def plan(config: TrainConfig, device: Device, shape: ModelShape | None = None) -> Plan:
    """What a run takes on a device.

    Args:
        config: what to train.
        shape: of the model; read from its config.json by default.

    Raises:
        ModelError, SiteError, ConfigError: when the model's shape cannot be had, or cannot serve the run.
    """
    shape = shape or read_shape(config.model.name)
    planned = _without_remedies(config, device, shape)
    return replace(planned, remedies=tuple(_remedies(config, device, shape, planned.peak)))


def _without_remedies(config: TrainConfig, device: Device, shape: ModelShape) -> Plan:
    job = Job(config, shape)
    return Plan(device, memory(job, device), times(job), disk(job), config.training.tokens)


# --------------------------------------------------------------------------------------- remedies

Knob = Callable[[TrainConfig], Iterator[tuple[str, TrainConfig]]]
"""Of a configuration, those that take less memory by one kind of change, in words, the gentlest first."""


def _setting(key: str, values: Callable[[Optimisation], Iterable[Any]]) -> Knob:
    section, name = key.split(".")

    def changed(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
        for value in values(config.training):
            part = getattr(config, section).model_copy(update={name: value})
            yield f"{key}: {value}", config.model_copy(update={section: part})

    return changed


def _halves(value: int, least: int) -> Iterator[int]:
    while value >= 2 * least:
        value //= 2
        yield value


def _fewer(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Some of the SAEs in one run, the others in further ones; the deepest are kept, which need most."""
    entries, members = config.saes.sites, config.saes.members
    order = sorted(range(len(entries)), key=lambda i: members[i].site)
    for n in range(len(entries) - 1, 0, -1):
        kept = tuple(entries[i] for i in sorted(order[-n:]))
        yield f"{n} of its {len(entries)} SAEs at a time", _with_saes(config, kept)


def _narrower(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    entries, divisor = config.saes.sites, 2
    while all((entry.d_sae or 0) // divisor >= 1024 for entry in entries):
        kept = tuple(entry.model_copy(update={"d_sae": (entry.d_sae or 0) // divisor}) for entry in entries)
        yield f"d_sae divided by {divisor}", _with_saes(config, kept)
        divisor *= 2


def _with_saes(config: TrainConfig, entries: Sequence[Any]) -> TrainConfig:
    return config.model_copy(update={"saes": config.saes.model_copy(update={"sites": entries})})


KNOBS: tuple[Knob, ...] = (
    _setting("model.load", lambda _: ["needed"]),
    _setting("model.dtype", lambda _: ["bfloat16"]),
    _setting("training.encode_chunk", lambda now: _halves(now.encode_chunk or now.batch_tokens, 256)),
    _setting("training.forward_contexts", lambda now: _halves(now.forward_contexts, 4)),
    _setting("training.moment_dtype", lambda _: ["bfloat16"]),
    _setting("training.buffer_tokens", lambda now: _halves(now.buffer_tokens, 8 * now.batch_tokens)),
    _fewer,
    _narrower,
)
"""What lowers the peak, in the order in which it costs: only the last two change what is trained in a run."""


def _remedies(config: TrainConfig, device: Device, shape: ModelShape, lowest: int) -> Iterator[Remedy]:
    """Changes, each on top of those before it, until the peak fits.

    Of one knob the gentlest that fits, or else the strongest; less than 1 % of the peak is no remedy.
    """
    for knob in KNOBS:
        if lowest <= device.memory:
            return
        best: tuple[Remedy, TrainConfig] | None = None
        for words, changed in knob(config):
            peak = _without_remedies(changed, device, shape).peak
            if peak < 0.99 * (best[0].peak if best else lowest):
                best = Remedy(words, peak), changed
            if peak <= device.memory:
                break
        if best is not None:
            remedy, config = best
            lowest = remedy.peak
            yield remedy
