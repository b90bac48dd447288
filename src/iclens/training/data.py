"""Activations to train on: contexts mixed by weight, recorded in one forward pass, scaled, and shuffled.

1. `TokenStream` gives blocks of contexts: of one main source (a mixture of tasks, running text, token ids),
with prompts of named tasks mixed in. 2. `recorder` runs the model on a block and keeps all sites. Some
tokens, BOS above all, have activations hundreds of times longer than others; they hold nothing about what was
read, and an SAE that sees them learns little else. `find_left_out` finds them, and they are left out.
3. `Scaling` gives each site mean 0 and mean squared length d_in. 4. `ActivationBuffer` shuffles rows of many
contexts: the same rows of every site, each served once.

Order follows from the seed, and what has been taken is a few numbers: after `restore` the following blocks
and batches are the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from iclens.core import PADDING, ConfigError, Site
from iclens.model.load import LanguageModel
from iclens.model.run import attached, run_blocks
from iclens.model.shape import read_shape
from iclens.prompts.build import TokenTable, draw_examples
from iclens.prompts.mixture import Contexts as TaskContexts
from iclens.prompts.mixture import Mixture
from iclens.prompts.render import Tokenizer
from iclens.prompts.tasks import default_inputs, parse_task
from iclens.saes.quality import Bools, LeftOut
from iclens.table import Ints
from iclens.training.config import Contexts, MixtureContexts, Prompts, TextContexts, TrainConfig
from iclens.training.text import TextSource
from iclens.training.tokens import TokenSource, without_gaps

State = dict[str, Any]
"""Where a source, stream or buffer stands: small, and made of what JSON knows."""
Facts = dict[str, int]
"""What is to be known of the data, in words, and of how many rows or tokens it is true."""
Record = Callable[[Ints, Sequence[Site]], dict[Site, Tensor]]
"""(tokens [context pos], sites) → activations of each site, [context pos d_model]."""
Agreed = Callable[[], AbstractContextManager[None]]
"""Makes a block in which what fails in one process fails in all."""
USUAL = 0.9
"""Share of positions that stay below the length with which a massive one is compared."""


# --------------------------------------------------------------------------------------- contexts


class _Drawn:
    """A source whose every call of `take` has a generator of its own, made from the number of the call."""

    def __init__(self, table: TokenTable, examples: int) -> None:
        self.length = table.layout.length(examples)
        self._table, self._examples, self._calls = table, examples, 0

    def _contexts(self, drawn: TaskContexts) -> Ints:
        """The tokens of drawn contexts, padded at their end, [context pos]."""
        tokens = self._table.assemble(drawn)
        return without_gaps(tokens, tokens != PADDING)

    def state(self) -> State:
        """How often contexts were taken."""
        return {"calls": self._calls}

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self._calls = state["calls"]

    def facts(self) -> Facts:
        """Nothing: drawn contexts are as declared."""
        return {}


class MixtureSource(_Drawn):
    """Contexts drawn from a mixture of tasks with exact posteriors."""

    def __init__(
        self, mixture: Mixture, tokenizer: Tokenizer, examples: int, seed: int, held_out_seed: int
    ) -> None:
        super().__init__(TokenTable.of(mixture, tokenizer), examples)
        self._mixture, self._seed, self._held_out_seed = mixture, seed, held_out_seed

    def take(self, n_contexts: int) -> Ints:
        """The next contexts, [context pos]."""
        self._calls += 1
        return self._draw(np.random.default_rng([self._seed, 1, self._calls]), n_contexts)

    def held_out(self, n_contexts: int) -> Ints:
        """Contexts of the held-out seed, [context pos]."""
        return self._draw(np.random.default_rng(self._held_out_seed), n_contexts)

    def _draw(self, rng: np.random.Generator, n_contexts: int) -> Ints:
        return self._contexts(self._mixture.sample(rng, n_contexts, self._examples))


class PromptSource(_Drawn):
    """In-context prompts of one task and arm, fresh inputs in each; every `index` has its own seeds.

    Raises:
        ConfigError: when the task has too few inputs.
    """

    def __init__(self, wanted: Prompts, tokenizer: Any, examples: int, seed: int, index: int) -> None:
        self._task, self._arm, self._key = parse_task(wanted.task), wanted.arm, (seed, 2, index)
        inputs = default_inputs(self._task)
        if len(inputs) < examples:
            few = f"{examples} examples of {len(inputs)} inputs"
            raise ConfigError(f"prompts of '{wanted.task}'", few, "Lower data.examples.")
        answers = sorted({y for x in inputs for y in self._task.outcomes(x)})
        super().__init__(TokenTable.of_words(inputs, answers, tokenizer), examples)
        self._input_index = {x: i for i, x in enumerate(inputs)}
        self._answer_index = {y: i for i, y in enumerate(answers)}

    def take(self, n_contexts: int) -> Ints:
        """The next prompts, [context pos]."""
        self._calls += 1
        seed = int(np.random.default_rng([*self._key, self._calls]).integers(2**31))
        x, y, _ = draw_examples(
            self._task, arm=self._arm, n_prompts=n_contexts, n_examples=self._examples, seed=seed
        )
        x_index, y_index = (
            np.array([[index[word] for word in row] for row in words])
            for words, index in ((x.tolist(), self._input_index), (y.tolist(), self._answer_index))
        )
        alone = np.zeros(n_contexts, dtype=np.int64)
        return self._contexts(TaskContexts(task=alone, noise=alone, x=x_index, y=y_index))


MainSource = MixtureSource | TextSource | TokenSource
Source = MainSource | PromptSource


def read_mixture(settings: MixtureContexts, model: str) -> Mixture:
    """The mixture named in a configuration, or the one in the model's folder."""
    path = settings.mixture or Path(model) / "mixture.yaml"
    name = f"mixture '{path}'"
    try:
        return Mixture.from_dict(yaml.safe_load(path.read_text(encoding="utf-8")))
    except OSError as cause:
        raise ConfigError(name, "no such file", "Name one as data.mixture, or use kind: text.") from cause
    except (yaml.YAMLError, UnicodeDecodeError) as cause:
        raise ConfigError(name, "not a mixture", "Declare numbers, noise and families.") from cause


def held_out(config: TrainConfig, tokenizer: Any) -> Ints:
    """Contexts of the main source that no stream of this configuration holds, [context pos]."""
    return _main(config, tokenizer).held_out(config.held_out.contexts)


def build_stream(config: TrainConfig, tokenizer: Any, agreed: Agreed = nullcontext) -> TokenStream:
    """The stream that a configuration asks for; the same in every process of a run."""
    examples, prompts = config.data.examples, config.data.prompts
    weighted: list[tuple[Source, float]] = [
        (PromptSource(wanted, tokenizer, examples, config.seed, index), wanted.weight)
        for index, wanted in enumerate(prompts)
    ]
    rest = 1 - sum(weight for _, weight in weighted)
    weighted.append((_main(config, tokenizer), rest if rest > 1e-9 else 0.0))
    return TokenStream([pair for pair in weighted if pair[1] > 0], config.training.forward_contexts, agreed)


def _main(config: TrainConfig, tokenizer: Any) -> MainSource:
    settings, reserved = config.data, config.held_out.contexts
    n_vocab = min(len(tokenizer), read_shape(config.model.name).n_vocab)
    if isinstance(settings, MixtureContexts):
        mixture = read_mixture(settings, config.model.name)
        return MixtureSource(mixture, tokenizer, settings.examples, config.seed, config.held_out.seed)
    if isinstance(settings, TextContexts):
        return TextSource(settings, tokenizer, reserved, n_vocab)
    return TokenSource(settings, tokenizer, reserved, config.seed, config.held_out.seed, n_vocab)


@dataclass
class _Group:
    """Sources of one length, with their weights and how many blocks and contexts each has given."""

    sources: list[Source]
    weights: list[float]
    contexts: list[int]
    blocks: int = 0

    def block(self, n_contexts: int) -> Ints:
        """A block to which every source gives its share, [context pos]."""
        before = list(self.contexts)
        for _ in range(n_contexts):
            self.contexts[furthest_behind(self.weights, self.contexts)] += 1
        self.blocks += 1
        wanted = [now - then for now, then in zip(self.contexts, before, strict=True)]
        return np.concatenate([s.take(n) for s, n in zip(self.sources, wanted, strict=True) if n])


def furthest_behind(weights: Sequence[float], given: Sequence[int]) -> int:
    """Who is next: the index with the largest wᵢ/Σw·(Σgiven + 1) − givenᵢ, the first of equals.

    So shares are right at every moment, and not only on average.
    """
    share = np.array(weights) / sum(weights)
    return int(np.argmax(share * (sum(given) + 1) - np.array(given)))


class TokenStream:
    """Endless blocks of contexts. Sources of equal length share blocks, others take turns."""

    def __init__(
        self, weighted: Sequence[tuple[Source, float]], n_contexts: int, agreed: Agreed = nullcontext
    ) -> None:
        self._n_contexts, self._agreed = n_contexts, agreed
        self._groups: list[_Group] = []
        for length in dict.fromkeys(source.length for source, _ in weighted):
            members = [pair for pair in weighted if pair[0].length == length]
            sources, weights = [source for source, _ in members], [weight for _, weight in members]
            self._groups.append(_Group(sources, weights, [0] * len(members)))

    def next(self) -> Ints:
        """The next block, [context pos]; blocks of different lengths may follow each other."""
        with self._agreed():
            weights = [sum(group.weights) for group in self._groups]
            turn = furthest_behind(weights, [group.blocks for group in self._groups])
            return self._groups[turn].block(self._n_contexts)

    def samples(self) -> list[Ints]:
        """A block of every length that the stream has, [context pos] each; the stream stays where it is."""
        with self._agreed():
            before = self.state()
            blocks = [group.block(self._n_contexts) for group in self._groups]
            self._restore(before)
            return blocks

    def state(self) -> State:
        """Where the stream stands."""
        return {
            "groups": [
                {"blocks": group.blocks, "contexts": list(group.contexts),
                 "sources": [source.state() for source in group.sources]}
                for group in self._groups
            ]
        }  # fmt: skip

    def restore(self, state: State) -> None:
        """Go on from a state."""
        with self._agreed():
            self._restore(state)

    def facts(self) -> Facts:
        """What is to be known of the data read so far."""
        sources = (source for group in self._groups for source in group.sources)
        return {words: count for source in sources for words, count in source.facts().items()}

    def _restore(self, state: State) -> None:
        for group, then in zip(self._groups, state["groups"], strict=True):
            group.blocks, group.contexts = then["blocks"], list(then["contexts"])
            for source, place in zip(group.sources, then["sources"], strict=True):
                source.restore(place)


# ------------------------------------------------------------------------------------ activations


def recorder(model: LanguageModel) -> Record:
    """Records every position of every site in one forward pass, which ends at the deepest site."""

    @torch.no_grad()
    def record(tokens: Ints, sites: Sequence[Site]) -> dict[Site, Tensor]:
        with attached(model, sites, np.arange(tokens.shape[1])) as recorded:
            residual = model.embed(np.where(tokens == PADDING, 0, tokens))  # no token sees padding
            run_blocks(model.network, residual, 0, 1 + max(site.layer for site in sites))
        return recorded.values

    return record


def kept_rows(record: Record, tokens: Ints, sites: Sequence[Site], kept: Bools) -> dict[Site, Tensor]:
    """Activations of the `kept` tokens [context pos], in the order of contexts: site → [row d_model]."""
    if not kept.any():
        none = f"it leaves none of the {tokens.shape[1]} tokens of a context"
        raise ConfigError("key 'excluded_positions'", none, "List fewer positions.")
    recorded, chosen = record(tokens, sites), torch.as_tensor(np.flatnonzero(kept))
    rows = {}
    for site in sites:  # only one site at a time is in memory twice
        x = recorded.pop(site).flatten(0, 1)
        rows[site] = x[chosen.to(x.device)]
    return rows


def find_left_out(
    settings: Contexts, bos: int | None, record: Record, stream: TokenStream, sites: Sequence[Site]
) -> dict[str, dict[str, str]]:
    """What is left out, and why: BOS wherever it stands, the positions listed, and those that are massive.

    Massive, at any site and in any block of `stream.samples()`, is a position whose mean length over contexts
    exceeds `settings.massive.ratio` times the length that nine in ten positions stay below; BOS and padding
    count in neither. (Not the median: in a prompt all tokens of one role can be ten times longer than the
    others, and they are to be studied.)

    Returns:
        `tokens` and `positions`, each id or position → reason.
    """
    ids = {} if bos is None else {str(bos): "BOS"}
    reasons = dict.fromkeys(settings.excluded_positions, "listed in data.excluded_positions")
    if settings.massive is not None:
        largest: dict[int, tuple[float, str]] = {}
        for tokens in stream.samples():
            kept = LeftOut(() if bos is None else (bos,)).kept(tokens)
            for site, x in record(tokens, sites).items():
                for pos, times in _massive(x, kept, settings.massive.ratio).items():
                    largest[pos] = max(largest.get(pos, (0.0, "")), (times, site.short))
        for pos, (times, where) in largest.items():
            reasons.setdefault(pos, f"massive: {times:.0f} times the usual length at {where}")
    return {"tokens": ids, "positions": {str(pos): reasons[pos] for pos in sorted(reasons)}}


def as_left_out(reasons: Mapping[str, Mapping[str, str]]) -> LeftOut:
    """What `find_left_out` found, as the rule that training and measuring share."""
    return LeftOut(tuple(map(int, reasons["tokens"])), tuple(map(int, reasons["positions"])))


def _massive(x: Tensor, kept: Bools, ratio: float) -> dict[int, float]:
    """Positions of x [context pos d] whose `kept` tokens exceed `ratio` times the usual length; how far."""
    weight = torch.as_tensor(kept, device=x.device).float()
    where = np.flatnonzero(kept.any(axis=0))
    length = (x.float().norm(dim=2) * weight).sum(dim=0)[where] / weight.sum(dim=0)[where]  # [pos]
    times = (length / length.quantile(USUAL, interpolation="lower")).tolist()
    return {int(pos): many for pos, many in zip(where, times, strict=True) if many > ratio}


# ---------------------------------------------------------------------------------------- scaling


@dataclass(frozen=True)
class Scaling:
    """u = factor · (x − mean): a site's activations with mean 0 and mean squared length d_in."""

    mean: Tensor  # [d_in]
    factor: float  # scalar

    @classmethod
    def of(cls, x: Tensor) -> Scaling:
        """The scaling of rows x [row d_in]."""
        moments = StreamingScaling()
        moments.add(x)
        return moments.scaling()

    def apply(self, x: Tensor) -> Tensor:
        """Scaled rows, [row d_in]."""
        return (x.float() - self.mean) * self.factor


class StreamingScaling:
    """Mean and squared length of rows that pass, in float64 (Welford; joined as in Chan et al. 1979)."""

    def __init__(self) -> None:
        self.n_rows = 0
        self._mean: Tensor | None = None
        self._square: Tensor | None = None

    @torch.no_grad()
    def add(self, x: Tensor) -> None:
        """Take rows x [row d_in] into account.

        δ = mean_x − mean;   mean += δ·n_x/n;   S += S_x + ‖δ‖²·n_old·n_x/n
        """
        if not len(x):
            return
        mean = x.mean(dim=0, dtype=torch.float64)
        square = (x.float() - mean.float()).square().sum(dtype=torch.float64)
        if self._mean is None or self._square is None:
            self.n_rows, self._mean, self._square = len(x), mean, square
            return
        total, delta = self.n_rows + len(x), mean - self._mean
        self._square = self._square + square + delta.square().sum() * (self.n_rows * len(x) / total)
        self._mean = self._mean + delta * (len(x) / total)
        self.n_rows = total

    def scaling(self) -> Scaling:
        """The mean of the rows, and s with s²·(mean squared distance from it) = d_in."""
        if self._mean is None or self._square is None:
            raise ConfigError("scaling", "no row was seen", "Exclude fewer positions.")
        size = float(self._square) / self.n_rows
        if not size < float("inf"):
            raise ConfigError("scaling", "activations are not finite", "Load the model in another dtype.")
        return Scaling(self._mean.float(), (len(self._mean) / max(size, 1e-20)) ** 0.5)


def estimate_scalings(
    record: Record, stream: TokenStream, sites: Sequence[Site], left_out: LeftOut, n_rows: int
) -> dict[Site, Scaling]:
    """The scaling of each site, from whole blocks with at least `n_rows` rows.

    The stream is put back, so that the rows seen here are trained on as well.
    """
    before, moments, done = stream.state(), {site: StreamingScaling() for site in sites}, 0
    while done < n_rows:  # counted without the sites: processes that own none keep in step
        tokens = stream.next()
        kept = left_out.kept(tokens)
        for site, rows in kept_rows(record, tokens, sites, kept).items():
            moments[site].add(rows)
        done += int(kept.sum())
    stream.restore(before)
    return {site: moment.scaling() for site, moment in moments.items()}


# ----------------------------------------------------------------------------------------- buffer


class ActivationBuffer:
    """Serves random batches of rows; nothing is run before the first of them is asked for.

    1. `capacity` rows are filled from the stream, at all sites at the same places. 2. A round serves a random
    half of the places in batches. 3. Before the next round these places take fresh rows; what a block of
    contexts has left over waits for the round after. Memory is taken once. Place in the stream, round, batch
    and rows are the whole state: also after an error of the stream or the model, which leaves the buffer
    behind the last block that came whole.
    """

    def __init__(
        self, record: Record, stream: TokenStream, sites: Sequence[Site], left_out: LeftOut,
        *, capacity: int, batch: int, seed: int, device: str | torch.device = "cpu",
    ) -> None:  # fmt: skip
        if capacity < 2 * batch:
            raise ConfigError("key 'buffer_tokens'", "less than two batches", "Give a larger buffer.")
        self._record, self._stream, self._sites = record, stream, tuple(sites)
        self._rule, self._capacity, self._batch, self._seed = left_out, capacity, batch, seed
        self._device = torch.device(device)
        self._rows: dict[Site, Tensor] = {}
        self._waiting: dict[Site, Tensor] = {}
        self._n_waiting = self._left_out = 0
        self._filled, self._at = False, stream.state()
        self._start_round(0, 0)

    def next(self) -> dict[Site, Tensor]:
        """The next batch, site → [row d_model]; the same rows at every site."""
        self._fill_once()
        if self._served == len(self._places):
            self._fill(self._places)
            self._start_round(self._round + 1, 0)
        batch = self._places[self._served : self._served + self._batch]
        self._served += self._batch
        return {site: x[batch] for site, x in self._rows.items()}

    def give_back(self) -> None:
        """Let the last batch be the next one again."""
        self._served -= self._batch

    def rows(self, site: Site) -> Tensor:
        """The rows of a site that the buffer holds now, [capacity d_model]; not a copy."""
        self._fill_once()
        return self._rows[site]

    def tensors(self) -> dict[str, Tensor]:
        """All rows, held and waiting, by site and part; not copies, so save them before the next batch."""
        held = {f"{site.short}.rows": x for site, x in self._rows.items()}
        return held | {f"{site.short}.waiting": x for site, x in self._waiting.items()}

    def state(self) -> State:
        """What besides `tensors` decides the following batches, the place in the stream included."""
        return {
            "stream": self._at, "filled": self._filled, "round": self._round, "served": self._served,
            "fresh": self._fresh, "waiting": self._n_waiting, "left_out": self._left_out,
            "shape": [self._capacity, self._batch],
        }  # fmt: skip

    def restore(self, tensors: Mapping[str, Tensor], state: State) -> None:
        """Go on where `tensors` and `state` were taken; tensors on the buffer's device become its own."""
        sites = self._sites if state["filled"] else ()
        absent = {f"{site.short}.{part}" for site in sites for part in ("rows", "waiting")} - tensors.keys()
        if list(state["shape"]) != [self._capacity, self._batch] or absent:
            raise ConfigError(
                "buffer of the checkpoint", "it has other sites or sizes", "Resume with the config it is of."
            )
        self._stream.restore(state["stream"])
        self._start_round(state["round"], state["served"])
        self._at, self._fresh = state["stream"], state["fresh"]
        self._filled, self._n_waiting = state["filled"], state["waiting"]
        self._left_out = state["left_out"]
        self._rows, self._waiting = (
            {site: tensors[f"{site.short}.{part}"].to(self._device) for site in sites}
            for part in ("rows", "waiting")
        )

    def facts(self) -> Facts:
        """What is to be known of the data read so far, and how many tokens of it were left out."""
        return self._stream.facts() | {"tokens left out": self._left_out}

    def _start_round(self, number: int, served: int) -> None:
        """Draw the places that a round serves, in order: whole batches, about half of all."""
        half = max(self._batch, self._capacity // 2 // self._batch * self._batch)
        order = np.random.default_rng([self._seed, 3, number]).permutation(self._capacity)[:half]
        self._places = torch.as_tensor(order, device=self._device)
        self._round, self._served = number, served
        self._fresh = 0  # places of this round that hold the next round's rows already

    def _fill_once(self) -> None:
        if not self._filled:
            self._take_block()
            self._rows = {site: x.new_empty(self._capacity, x.shape[1]) for site, x in self._waiting.items()}
            self._fill(torch.arange(self._capacity, device=self._device))
            self._fresh, self._filled = 0, True

    def _fill(self, places: Tensor) -> None:
        """Put fresh rows at `places`, in the order of the stream; goes on where an error stopped it."""
        while self._fresh < len(places):
            if not self._n_waiting:
                self._take_block()
            size = min(len(places) - self._fresh, self._n_waiting)
            at = places[self._fresh : self._fresh + size]
            for site, x in self._waiting.items():
                self._rows[site][at] = x[:size]
                self._waiting[site] = x[size:]
            self._n_waiting -= size
            self._fresh += size

    def _take_block(self) -> None:
        """Let the rows of the next block of contexts wait; those of the last block are freed before."""
        self._waiting = {site: x.new_empty(0, x.shape[1]) for site, x in self._waiting.items()}
        tokens = self._stream.next()
        kept = self._rule.kept(tokens)
        rows = kept_rows(self._record, tokens, self._sites, kept)
        self._n_waiting = int(kept.sum())
        self._left_out += int((tokens != PADDING).sum()) - self._n_waiting
        self._waiting = {site: x.to(self._device) for site, x in rows.items()}
        self._at = self._stream.state()
