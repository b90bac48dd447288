"""What to change when a run does not fit: the changes that cost least, in the order in which to try them.

Each change takes a configuration and gives smaller ones, the gentlest first; it yields nothing when it does
not apply. None changes what is trained before the last two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from iclens.training.config import TrainConfig

Change = Callable[[TrainConfig], Iterator[tuple[str, TrainConfig]]]


def _with(config: TrainConfig, section: str, **values: Any) -> TrainConfig:
    changed = getattr(config, section).model_copy(update=values)
    return config.model_copy(update={section: changed})


def load_less(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Blocks above the deepest site stay on disk; CE recovered is then unknown."""
    if config.model.load == "whole":
        yield "model.load: needed", _with(config, "model", load="needed")


def half_precision(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """The model in bfloat16."""
    if config.model.dtype == "float32":
        yield "model.dtype: bfloat16", _with(config, "model", dtype="bfloat16")


def shorter_chunks(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Fewer rows of pre-activations at a time; the result is the same."""
    rows = config.training.encode_chunk or config.training.batch_tokens
    while rows >= 512:
        rows //= 2
        yield f"training.encode_chunk: {rows}", _with(config, "training", encode_chunk=rows)


def smaller_forwards(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Fewer contexts per forward pass of the model."""
    contexts = config.training.forward_contexts
    while contexts >= 8:
        contexts //= 2
        yield f"training.forward_contexts: {contexts}", _with(config, "training", forward_contexts=contexts)


def smaller_buffer(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Fewer rows shuffled together, never fewer than eight batches."""
    rows = config.training.buffer_tokens
    while rows >= 16 * config.training.batch_tokens:
        rows //= 2
        yield f"training.buffer_tokens: {rows}", _with(config, "training", buffer_tokens=rows)


def smaller_moments(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Adam's moments in bfloat16."""
    if config.training.moment_dtype == "float32":
        yield "training.moment_dtype: bfloat16", _with(config, "training", moment_dtype="bfloat16")


def fewer_at_once(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Some of the SAEs in one run, the others in further ones; the deepest are kept, which need most."""
    entries = config.saes.sites
    order = sorted(range(len(entries)), key=lambda i: config.saes.members[i].site)
    for n in range(len(entries) - 1, 0, -1):
        kept = tuple(entries[i] for i in sorted(order[-n:]))
        yield f"{n} of its {len(entries)} SAEs at a time", _with(config, "saes", sites=kept)


def narrower(config: TrainConfig) -> Iterator[tuple[str, TrainConfig]]:
    """Half as many latents."""
    entries, divisor = config.saes.sites, 1
    while all((entry.d_sae or 0) // (2 * divisor) >= 1024 for entry in entries):
        divisor *= 2
        kept = tuple(entry.model_copy(update={"d_sae": (entry.d_sae or 0) // divisor}) for entry in entries)
        yield f"d_sae divided by {divisor}", _with(config, "saes", sites=kept)


CHANGES: tuple[Change, ...] = (
    load_less, half_precision, shorter_chunks, smaller_forwards, smaller_moments, smaller_buffer,
    fewer_at_once, narrower,
)  # fmt: skip


def remedies(
    config: TrainConfig, peak: Callable[[TrainConfig], int], limit: int
) -> Iterator[tuple[str, int]]:
    """Changes, each on top of those before it, until the peak is within `limit`.

    Args:
        config: what does not fit.
        peak: bytes that a configuration takes.
        limit: bytes there are.

    Yields:
        a change and the peak with it. Of one kind, the gentlest that fits, or else the strongest; a kind that
        lowers the peak by less than 1 % is left out.
    """
    lowest = peak(config)
    for change in CHANGES:
        best: tuple[str, TrainConfig, int] | None = None
        for words, changed in change(config):
            found = peak(changed)
            if found < 0.99 * (best[2] if best else lowest):
                best = words, changed, found
            if found <= limit:
                break
        if best is not None:
            words, config, lowest = best
            yield words, lowest
        if lowest <= limit:
            return
