"""One training over several processes, started by torchrun: who does what, and how rows come together.

1. SAEs are dealt out to processes. 2. Every process draws the same contexts, runs the model on its share of
them, and sends each site's rows to the process that trains on it; there they stand in the order in which one
process alone would have recorded them, so each SAE takes the steps it would take in one process. 3. Once per
step the processes agree on stopping and saving. 4. What fails in one fails in all, at the same place, so that
all can save; when one is lost, the others end in one line.

Weights and gradients never travel: an SAE lives in one process, and of a batch only its own sites' rows do.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from iclens.core import ConfigError, Site, StoppedError
from iclens.table import Ints
from iclens.training.config import SaeSpec
from iclens.training.data.activations import Record
from iclens.training.data.contexts import Facts, State
from iclens.training.data.streams import TokenStream
from iclens.training.stop import Stopped

_PATIENCE = timedelta(hours=2)
"""How long a process waits for another that is still there, for example while that one measures its SAEs."""


@dataclass(frozen=True)
class Ranks:
    """This process among those that train together.

    Args:
        rank: its number.
        world: how many there are.
    """

    rank: int = 0
    world: int = 1
    _failures: list[BaseException] = field(default_factory=list, compare=False)

    @property
    def first(self) -> bool:
        """Whether this is the process that writes what belongs to all."""
        return self.rank == 0

    def device(self, named: str) -> str:
        """The device of this process: of `cuda`, the one that torchrun counted for it."""
        return f"cuda:{os.environ['LOCAL_RANK']}" if self.world > 1 and named == "cuda" else named

    def deal(self, specs: Sequence[SaeSpec]) -> dict[str, int]:
        """SAE name → the process that trains it: the largest first, each to the least laden.

        Raises:
            ConfigError: when there are more processes than SAEs.
        """
        if self.world > len(specs):
            raise ConfigError(
                f"{self.world} processes", f"for {len(specs)} SAEs", "Start at most one process for each SAE."
            )
        laden, owner = [0] * self.world, {}
        for spec in sorted(specs, key=lambda spec: -spec.d_sae):
            chosen = laden.index(min(laden))
            laden[chosen] += spec.d_sae
            owner[spec.name] = chosen
        return owner

    def largest(self, *values: int) -> tuple[int, ...]:
        """For each place, the largest value that any process gave."""
        if self.world == 1:
            return values
        shared = torch.tensor(values, dtype=torch.int64)
        with _together():
            dist.all_reduce(shared, dist.ReduceOp.MAX)
        return tuple(shared.tolist())

    def collect(self, value: Any) -> list[Any]:
        """What every process gave, in the order of processes; it travels as JSON."""
        if self.world == 1:
            return [value]
        text = torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)
        (longest,) = self.largest(len(text))
        held = torch.full((longest,), ord(" "), dtype=torch.uint8)
        held[: len(text)] = text
        parts = [torch.empty_like(held) for _ in range(self.world)]
        with _together():
            dist.all_gather(parts, held)
        return [json.loads(bytes(part.numpy().tobytes())) for part in parts]

    def merged(self, value: Mapping[str, Any]) -> dict[str, Any]:
        """Mappings of all processes as one."""
        return {name: found for part in self.collect(dict(value)) for name, found in part.items()}

    @contextmanager
    def agreed(self) -> Iterator[None]:
        """Inside, what fails in one process fails in all of them when they leave the block."""
        if self.world == 1:
            yield
            return
        failure: BaseException | None = None
        try:
            yield
        except (GoneError, Stopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever it is, the others have to know
            failure = error
        if any(self.largest(int(failure is not None))):
            lines = self.collect(None if failure is None else " ".join(str(failure).split())[:500])
            line = next(line for line in lines if line is not None)
            failure = failure or StoppedError("training in several processes", "another one failed", line)
            self._failures.append(failure)
            raise failure

    def known(self, error: BaseException) -> bool:
        """Whether every process ends with this error, or one that stands for it, at this place."""
        return self.world == 1 or any(error is failure for failure in self._failures)

    def in_step(self, stream: TokenStream) -> TokenStream:
        """The same stream, which fails in every process when it fails in one."""
        return stream if self.world == 1 else _InStep(self, stream)

    def shared(self, record: Record, readers: Mapping[Site, Sequence[int]]) -> Record:
        """A `Record` that runs the model on this process's share of the contexts.

        Args:
            record: runs the model here.
            readers: the processes that train on each site; the same in every process.

        Returns:
            Given the contexts of all, it returns the rows of all contexts, at this process's sites.
        """
        if self.world == 1:
            return record

        def exchange(tokens: Ints, _sites: Sequence[Site]) -> dict[Site, Tensor]:
            share = math.ceil(len(tokens) / self.world)
            places = np.arange(self.rank * share, (self.rank + 1) * share)
            # The last share is filled up, so that all have one size; what fills it is cut off below.
            with self.agreed():
                found = record(tokens[np.minimum(places, len(tokens) - 1)], tuple(readers))
            return {
                site: whole[: len(tokens)]
                for site, ranks in readers.items()
                if (whole := self._gathered(found[site], ranks)) is not None
            }

        return exchange

    def _gathered(self, x: Tensor, readers: Sequence[int]) -> Tensor | None:
        """x of all processes, one after another, where this process is a reader; None elsewhere."""
        whole = None
        # As bytes, so that every dtype travels alike.
        sent = x.contiguous().view(torch.uint8)
        for reader in readers:
            parts = [torch.empty_like(sent) for _ in range(self.world)] if reader == self.rank else None
            with _together():
                dist.gather(sent, parts, dst=reader)
            if parts is not None:
                whole = torch.cat([part.view(x.dtype) for part in parts])
        return whole


@dataclass(frozen=True)
class _InStep:
    """A stream that every process reads, in the same order."""

    ranks: Ranks
    stream: TokenStream

    def next(self) -> Ints:
        with self.ranks.agreed():
            return self.stream.next()

    def samples(self) -> list[Ints]:
        with self.ranks.agreed():
            return self.stream.samples()

    def state(self) -> State:
        return self.stream.state()

    def restore(self, state: State) -> None:
        with self.ranks.agreed():
            self.stream.restore(state)

    def facts(self) -> Facts:
        return self.stream.facts()


class GoneError(StoppedError):
    """Another process is not there any more, so that nothing can be done together."""


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started, connected inside; one alone when it did not start this one."""
    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1:
        yield Ranks()
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with _together():
        dist.init_process_group(backend, timeout=_PATIENCE)
    try:
        yield Ranks(dist.get_rank(), world)
    finally:
        dist.destroy_process_group()


@contextmanager
def _together() -> Iterator[None]:
    """Turns the failure of a common operation into one line: another process is gone."""
    try:
        yield
    except RuntimeError as cause:
        line = str(cause).strip().splitlines()[0]
        raise GoneError(
            "training in several processes", f"another process is gone ({line})",
            "Continue from the newest checkpoint with --resume.",
        ) from cause  # fmt: skip
