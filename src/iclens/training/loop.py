"""Training several SAEs from one forward pass per block of contexts, to the end or to a checkpoint.

1. Positions to leave out and the units of each site are found. 2. A shuffled buffer holds the same rows of
every site, and each SAE takes one step per batch. 3. At intervals the metrics are written and looked at; an
error that is not finite, or that explodes, ends training with its step and SAE. 4. A checkpoint is written
when one is due, when a signal came, and when anything failed: data that cannot be read, a model or an SAE out
of memory, a full disk for metrics. When an SAE fails in a step, the checkpoint says which others took it
already (`ahead`), and these do not take it again. Only an SAE that failed while its weights were changed
leaves none. 5. The SAEs are written, read back, and measured on held-out contexts. When measuring fails the
set appears without figures, and the failure is raised.

Everything that decides the next step is in a checkpoint: the SAEs' states, the buffer's rows and order, the
position in the contexts, torch's generators, the number of steps, from which the schedule follows. Metrics of
an SAE hold nothing of the clock, so those of a continued run equal those of one that was never interrupted.
Between two intervals nothing waits for the device.
"""

from __future__ import annotations

import json
import math
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from sae_lens import SAE
from sae_lens.saes.sae import SAEMetadata
from safetensors import SafetensorError
from torch import Tensor

from iclens.core import (
    PREFIX_LENGTH,
    TOKENS_PER_EXAMPLE,
    ConfigError,
    IclensError,
    RunError,
    Site,
    StoppedError,
    position,
)
from iclens.model.load import LanguageModel, load_model, load_tokenizer, other_model
from iclens.model.shape import read_shape
from iclens.prompts.build import PromptSet, build_prompts
from iclens.prompts.build import joined as joined_prompts
from iclens.prompts.render import bos_id, bos_in_words, check_six_tokens
from iclens.prompts.tasks import parse_task
from iclens.saes.load import CARD_FILE, Sae, load_sae
from iclens.saes.quality import LeftOut, density_table, quality_table, tally
from iclens.table import Ints
from iclens.training.config import MixtureContexts, SaeSpec, TrainConfig
from iclens.training.data import (
    ActivationBuffer,
    Scaling,
    as_left_out,
    build_stream,
    estimate_scalings,
    find_left_out,
    held_out,
    recorder,
)
from iclens.training.folder import MAKE_ROOM, PACE, Checkpoint, MetricsLog, TrainingFolder, write_part
from iclens.training.other_saes import build_step, check_spec
from iclens.training.plan import check_limits
from iclens.training.ranks import GoneError, Ranks, Stop, Stopped, joined, stopped, watched
from iclens.training.topk import SaeStep

__all__ = ["train_saes"]

Report = Callable[[dict[str, Any]], None]
Measured = dict[str, dict[str, list[dict[str, Any]]]]
"""SAE name → `quality` and `density` on held-out contexts, `quality_prompts` on prompts; a record per row."""
EVERY = 20
"""Steps between two lines of metrics."""
EXPLODED = 100.0
"""Error, in multiples of the variance or of the first step's error, from which training has diverged."""
_RECENT = 16
"""Intervals over which the pace is taken."""


class DivergedError(ConfigError):
    """An SAE whose error exploded or is not finite; its state is not worth saving."""


class UnsavedError(RunError):
    """A checkpoint that the disk did not take."""


def train_saes(
    config: TrainConfig, out: str | Path, report: Report | None = None, resume: Literal["no", "newest"] = "no"
) -> Path:
    """Train every SAE of a configuration and write them as one set.

    Started by torchrun, all its processes train one set together.

    Args:
        config: what to train.
        out: folder to make; `<out>/<SAE>/` holds each SAE and its metrics.jsonl, `<out>/card.json` the rest.
        report: called with {"bos": what contexts begin with} where they are made here, then with {"step",
            "of", "tokens", "seconds", "sites": {SAE: metrics}, …} as training goes, then once with
            {"quality": [...]} of the held-out contexts; in the first process only. What is to be known of the
            data comes as {"data": {words: count}}.
        resume: `newest` continues from the newest whole checkpoint, and begins where there is none.

    Returns:
        `out`.

    Raises:
        ConfigError, ModelError, SiteError: when what is asked for cannot be trained, or diverged.
        RunError: when checkpoints are damaged or cannot be written.
        StoppedError: when a signal came, or another process is gone.
    """
    folder = TrainingFolder(Path(out), config.checkpoints.keep)
    with watched() as stop:
        try:
            with joined() as ranks:
                folder.refuse_if_taken(resume)
                with folder.held() if ranks.first else nullcontext():
                    ranks.collect(None)  # the folder is made by the first process for all
                    _Run(config, folder, ranks, stop, report or (lambda _: None)).train()
        except Stopped as signal:
            raise stopped(signal.number, folder.newest_name()) from None
    return folder.out


@dataclass(frozen=True)
class _Run:
    """One process of one training run."""

    config: TrainConfig
    folder: TrainingFolder
    ranks: Ranks
    stop: Stop
    report: Report

    @property
    def specs(self) -> tuple[SaeSpec, ...]:
        """The SAEs of this process."""
        owner = self.ranks.deal(self.config.saes.members)
        return tuple(spec for spec in self.config.saes.members if owner[spec.name] == self.ranks.rank)

    @property
    def readers(self) -> dict[Site, tuple[int, ...]]:
        """Site → the processes that train on it."""
        members = self.config.saes.members
        owner = self.ranks.deal(members)
        return {
            site: tuple(sorted({owner[s.name] for s in members if site in (s.site, s.target)}))
            for site in self.config.saes.recorded
        }

    def constant(self, model: LanguageModel) -> dict[str, Any]:
        """What a checkpoint keeps of the run, and what has to be the same when it is continued."""
        config = self.config.model_dump(mode="json", exclude={"checkpoints"})
        return {"config": config, "model": model.fingerprint}

    def train(self) -> None:
        """Train, write, measure and publish."""
        for spec in self.config.saes.members:
            check_spec(spec)
        check_limits(self.config, read_shape(self.config.model.name))
        checkpoint = self._newest()
        model = self._open_model()
        report = self.report if self.ranks.first else lambda _: None
        if checkpoint is not None:
            _refuse_change(checkpoint, self.constant(model), model)
            report({"continued_at": checkpoint.tokens})
        contexts = held_out(self.config, model.tokenizer)
        report({"bos": bos_in_words(model.tokenizer)})
        facts = self._fit(model, checkpoint)
        failure, measured = None, {}
        try:
            with self.ranks.agreed():
                left_out = as_left_out(facts["excluded"])
                measured = evaluate(self.config, model, self.specs, self.folder.partial, contexts, left_out)
        except (Stopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever it is, the trained SAEs are not to be lost
            if not self.ranks.known(error):
                raise
            failure, measured = error, {}
        measured = self.ranks.merged(measured)
        if self.ranks.first:
            with self._writing():
                self._publish(model, facts, measured, failure)
        self.ranks.collect(None)
        if failure is not None:
            words = f"The SAEs are whole in '{self.folder.out}'; `iclens saes check` can measure them."
            _add(failure, words)
            raise failure

    def _newest(self) -> Checkpoint | None:
        """The checkpoint to continue from; its hashes are taken by the first process."""
        newest = self.folder.newest() if self.ranks.first else None
        (tokens,) = self.ranks.largest(-1 if newest is None else newest.tokens)
        return None if tokens < 0 else newest or self.folder.at(tokens)

    def _open_model(self) -> LanguageModel:
        settings, data = self.config.model, self.config.data
        if isinstance(data, MixtureContexts):
            check_six_tokens(load_tokenizer(settings.name))
        deepest = max(site.layer for site in self.config.saes.recorded)
        return load_model(
            settings.name, blocks=deepest + 1 if settings.load == "needed" else None,
            dtype=getattr(torch, settings.dtype), device=self.ranks.device(settings.device),
            attention=settings.attention,
        )  # fmt: skip

    def _fit(self, model: LanguageModel, checkpoint: Checkpoint | None) -> dict[str, Any]:
        """Train this process's SAEs and write them; what the card says of it. Frees all it held."""
        loop = Loop(self, model, checkpoint)
        with self.stop.noted():
            loop.run()
        data, partial = loop.buffer.facts(), self.folder.partial
        if self.ranks.first:
            self.report({"data": data})
        with self._writing():
            for spec in loop.specs:
                network = loop.steps[spec.name].export()
                save_sae(partial / spec.name, spec, network, model, as_left_out(loop.excluded))
                shutil.copyfile(loop.log.file(spec.name), partial / spec.name / "metrics.jsonl")
            if self.ranks.first:
                shutil.copyfile(loop.log.file(PACE), partial / f"{PACE}.jsonl")
        return {"seconds": round(loop.seconds, 1), "excluded": loop.excluded, "data": data}

    def _publish(
        self,
        model: LanguageModel,
        facts: Mapping[str, Any],
        measured: Measured,
        failure: BaseException | None,
    ) -> None:
        """The card, and the set's name; without figures after a failure."""
        names, aside = [spec.name for spec in self.config.saes.members], self.config.held_out
        tables = {
            kind: [row for name in names for row in measured.get(name, {}).get(kind, [])]
            for kind in ("quality", "quality_prompts", "density")
        }
        card = {
            "model": {"name": model.name, "fingerprint": model.fingerprint},
            "bos": bos_in_words(model.tokenizer),
            "config": self.config.model_dump(mode="json"),
            **tables,
            "measured_on": f"{aside.contexts} contexts not trained on, seed {aside.seed}",
            **facts,
            "processes": self.ranks.world,
            "threads": torch.get_num_threads(),
            "versions": {name: _version(name) for name in ("iclens", "sae_lens", "torch", "transformers")},
        }
        if failure is not None:
            card["not_measured"] = " ".join(str(failure).split()) or type(failure).__name__
        text = json.dumps(card, indent=1, ensure_ascii=False)
        (self.folder.partial / CARD_FILE).write_text(text + "\n", encoding="utf-8")
        self.folder.publish()
        self.report({"quality": tables["quality"]})

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """Turns a disk that takes no more into one line; the last checkpoint is there."""
        try:
            yield
        except (OSError, SafetensorError) as cause:
            reason = f"cannot be written ({getattr(cause, 'strerror', None) or cause})"
            raise RunError(f"output '{self.folder.out}'", reason, MAKE_ROOM) from cause


def save_sae(folder: Path, spec: SaeSpec, network: SAE, model: LanguageModel, left_out: LeftOut) -> None:
    """Write one SAE as sae_lens reads it; tokens left out stand under sae_lens' name and ours."""
    ends: dict[str, Any] = {"hook_name": str(spec.site), "hook_layer": spec.site.layer}
    if spec.target is not None:
        ends |= {"hook_name_out": str(spec.target), "hook_layer_out": spec.target.layer}
    network.cfg.metadata = SAEMetadata(
        model_name=model.name, model_fingerprint=model.fingerprint, **ends,
        prepend_bos=bos_id(model.tokenizer) is not None, exclude_special_tokens=list(left_out.ids),
        exclude_positions=list(left_out.positions), seed=spec.seed,
    )  # fmt: skip
    network.save_model(folder)


def _refuse_change(checkpoint: Checkpoint, constant: Mapping[str, Any], model: LanguageModel) -> None:
    """Raise a ConfigError when the checkpoint is of another configuration or model."""
    root, then, now = checkpoint.folder.parent, checkpoint.state.get("config", {}), constant["config"]
    name = then.get("model", {}).get("name")
    other = other_model(name, checkpoint.state.get("model"), model)
    if other:
        raise ConfigError(f"continuing '{root}'", other, "Name that model, or remove this folder.")
    now = json.loads(json.dumps(now | {"model": now["model"] | {"name": name}}))  # that model, wherever it is
    if change := _change(then, now):
        key, made_with, given = change
        raise ConfigError(
            f"continuing with key '{key}' = {given}", f"the checkpoint was made with {made_with}",
            f"Continue with the same configuration and model, or remove '{root}'.",
        )  # fmt: skip


def _change(then: Any, now: Any, key: str = "") -> tuple[str, Any, Any] | None:
    """The first dotted key whose values differ, and both; a key that is not there counts as null."""
    if isinstance(then, Mapping) and isinstance(now, Mapping):
        names = sorted(then.keys() | now.keys())
        changes = (_change(then.get(name), now.get(name), f"{key}.{name}".strip(".")) for name in names)
        return next(filter(None, changes), None)
    return None if then == now else (key, then, now)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _add(error: BaseException, words: str) -> None:
    """Add a sentence to what an error says."""
    error.also(words) if isinstance(error, IclensError) else error.add_note(words)


# ------------------------------------------------------------------------------------------- loop


class Loop:
    """The SAEs of one process in training.

    Args:
        run: what is trained, where, and with which other processes.
        model: whose activations they are trained on.
        checkpoint: to continue from, to the bit, by however many processes it was written.
    """

    def __init__(self, run: _Run, model: LanguageModel, checkpoint: Checkpoint | None) -> None:
        self.config, self.ranks, self.stop, self.report = run.config, run.ranks, run.stop, run.report
        self.specs, self.readers, self.folder = run.specs, run.readers, run.folder
        self.device, self.sites = str(model.device()), self.config.saes.recorded
        settings, mine = self.config.training, [s for s in self.sites if self.ranks.rank in self.readers[s]]
        stream, alone = build_stream(self.config, model.tokenizer, self.ranks.agreed), recorder(model)
        if checkpoint is None:
            self.excluded = find_left_out(
                self.config.data, bos_id(model.tokenizer), alone, stream, self.sites
            )
        else:
            self.excluded = checkpoint.state["excluded"]
        if self.ranks.first and any(stream.facts().values()):
            self.report({"data": stream.facts()})
        record, left_out = self.ranks.shared(alone, self.readers), as_left_out(self.excluded)
        self.buffer = ActivationBuffer(
            record, stream, mine, left_out, capacity=settings.buffer_tokens, batch=settings.batch_tokens,
            seed=self.config.seed, device=model.device(),
        )  # fmt: skip
        if checkpoint is None:
            self.scalings = estimate_scalings(record, stream, mine, left_out, settings.scaling_tokens)
        else:
            self.scalings = {site: _read_scaling(checkpoint, site, self.device) for site in mine}
        names = [spec.name for spec in self.specs] + ([PACE] if self.ranks.first else [])
        self.log = MetricsLog(self.folder.root / "metrics", tuple(names))
        self.log.cut({} if checkpoint is None else checkpoint.state["metrics"])
        self.steps = {spec.name: self._first_state(spec, checkpoint) for spec in self.specs}
        self.constant = {**run.constant(model), "excluded": self.excluded}
        self.done, self.saved, self.seconds = 0, -1, 0.0
        self.ahead: Mapping[str, Mapping[str, float]] = {}
        """SAEs, of any process, that took step `done` + 1 before another failed in it, with their metrics."""
        self.spoilt = False
        """Whether an SAE of this process failed while its weights were changed."""
        self.watch = Watch()
        if checkpoint is not None:
            self._continue_from(checkpoint)

    @property
    def total(self) -> int:
        """Steps of the whole training."""
        return math.ceil(self.config.training.tokens / self.config.training.batch_tokens)

    @property
    def tokens(self) -> int:
        """Rows that each SAE was trained on so far."""
        return self.done * self.config.training.batch_tokens

    def run(self) -> None:
        """Train to the end, or until a signal or an error; the last whole step's checkpoint is there."""
        try:
            signal = self._train()
        except (DivergedError, UnsavedError, GoneError, Stopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever it is, a panic of a library too, what was trained is kept
            self._keep(error)
            raise
        if signal:
            raise stopped(signal, self.folder.checkpoint(self.tokens))

    def _first_state(self, spec: SaeSpec, checkpoint: Checkpoint | None) -> SaeStep:
        scaling = self.scalings[spec.site]
        # What a continued SAE's first weights are made from does not matter: the checkpoint replaces them.
        mean = scaling.mean
        rows = self.buffer.rows(spec.site) if checkpoint is None else torch.stack([mean - 1, mean + 1])
        target = None if spec.target is None else self.scalings[spec.target]
        return build_step(spec, self.config.training, scaling, target, rows, mean.device)

    def _continue_from(self, checkpoint: Checkpoint) -> None:
        state, rank = checkpoint.state, self.ranks.rank
        for name, step in self.steps.items():
            step.restore(checkpoint.tensors(f"sae-{name}"))
        self.done = self.saved = state["done"]
        self.seconds, self.ahead = state["seconds"], state["ahead"]
        rows: dict[str, Tensor] = {}
        for site in self.scalings:
            rows |= checkpoint.tensors(f"buffer-{site.short}", self.device)
        self.buffer.restore(rows, state["buffer"])
        generators = checkpoint.tensors(f"generators-{rank if rank < state['world'] else 0}")
        torch.set_rng_state(generators["cpu"])
        if "cuda" in generators and torch.cuda.is_available():
            torch.cuda.set_rng_state(generators["cuda"])

    def _train(self) -> int:
        """Train to the end, or until a signal, whose number is returned."""
        pace, started, earlier = Pace(self.config.training.tokens), time.monotonic(), self.seconds
        saved_at = started
        while True:
            self.seconds = earlier + time.monotonic() - started
            interrupted, due = self.ranks.largest(self.stop.asked, self._due(time.monotonic() - saved_at))
            if interrupted or due or self.done == self.total:
                self.save()
                saved_at = time.monotonic()
            if interrupted or self.done == self.total:
                return interrupted
            metrics = self._step()
            if (self.done - 1) % EVERY == 0 or self.done == self.total:
                self.seconds = earlier + time.monotonic() - started
                self._tell(metrics, pace.at(self.tokens, self.seconds))

    def _due(self, seconds: float) -> int:
        """1 when a checkpoint is due; minutes count on the first process's clock."""
        wanted, saved = self.config.checkpoints, max(self.saved, 0)
        due = wanted.every_minutes is not None and seconds >= 60 * wanted.every_minutes and self.ranks.first
        if wanted.every_tokens is not None:
            before = saved * self.config.training.batch_tokens
            due = due or self.tokens // wanted.every_tokens > before // wanted.every_tokens
        return int(due and self.done > saved)

    def _step(self) -> dict[str, Mapping[str, Any]]:
        batch = self.buffer.next()
        rate = learning_rate(self.config, self.done / self.total)
        metrics: dict[str, Mapping[str, Any]] = dict(self.ahead)
        try:
            with self.ranks.agreed():
                for spec in (spec for spec in self.specs if spec.name not in metrics):
                    target = None if spec.target is None else batch[spec.target]
                    metrics[spec.name] = self._update(spec.name, batch[spec.site], target, rate)
                    self.watch.see(self.done, spec.name, metrics[spec.name])
        except BaseException:
            self.ahead = {name: _plain(figures) for name, figures in metrics.items()}
            self.buffer.give_back()
            raise
        self.ahead = {}
        self.done += 1
        return metrics

    def _update(self, name: str, x: Tensor, target: Tensor | None, rate: float) -> dict[str, Tensor]:
        step = self.steps[name]
        before = step.taken
        try:
            return step.update(x, target, rate)
        except BaseException:
            self.spoilt = step.taken != before
            raise

    def _tell(self, metrics: Mapping[str, Mapping[str, Any]], pace: dict[str, Any]) -> None:
        """Write and report the metrics of the last step; ends training that diverged."""
        rate = learning_rate(self.config, (self.done - 1) / self.total)
        plain = {spec.name: _plain(metrics[spec.name]) for spec in self.specs}
        at = {"step": self.done, "tokens": self.tokens}
        with self.ranks.agreed():
            for spec in self.specs:
                self.log.add(spec.name, {**at, "lr": spec.lr * rate, **plain[spec.name]})
        self._refuse_divergence()
        sites = self.ranks.merged(plain)
        with self.ranks.agreed():
            if not self.ranks.first:
                return
            self.log.add(PACE, {**at, "seconds": round(self.seconds, 3), **pace})
            self.report({
                **at, "of": self.total, "of_tokens": self.total * self.config.training.batch_tokens,
                "seconds": round(self.seconds, 1), **pace,
                "sites": {spec.name: sites[spec.name] for spec in self.config.saes.members},
            })  # fmt: skip

    def _keep(self, error: BaseException) -> None:
        """Save the last whole step, where all processes can, and add to the error from where to go on."""
        if self.done and self.ranks.known(error) and not any(self.ranks.largest(int(self.spoilt))):
            with suppress(UnsavedError):  # the error that came first says why training ended
                self.save()
        words = "Nothing was trained yet." if not self.done else self._last_good()
        if self.saved > 0:
            tokens = self.saved * self.config.training.batch_tokens
            words = f"{self._last_good()} --resume goes on from there, at {tokens:,} tokens."
        _add(error, words[0].upper() + words[1:])

    def save(self) -> None:
        """Write a checkpoint of this moment, unless there is one."""
        if self.saved == self.done:
            return
        states = {name: step.tensors() for name, step in self.steps.items()}
        for name, tensors in states.items():
            if not all(bool(x.isfinite().all()) for x in tensors.values() if x.is_floating_point()):
                lost = torch.tensor(math.nan, device=self.device)
                self.watch.see(self.done - 1, name, {"fvu": lost, "loss": lost})
        self._refuse_divergence()
        try:
            with self.ranks.agreed():
                name = self.folder.begin(self.tokens).name if self.ranks.first else ""
            self._write(self.folder.root / self.ranks.collect(name)[0], states)
        except GoneError:
            raise
        except (OSError, SafetensorError, StoppedError) as cause:
            self.folder.tidy()
            reason = f"cannot be written ({getattr(cause, 'strerror', None) or cause})"
            what = f"checkpoint at {self.tokens:,} tokens in '{self.folder.root}'"
            raise UnsavedError(what, reason, f"Make room; {self._last_good()}") from cause
        self.saved = self.done

    def _write(self, partial: Path, states: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Every process writes its SAEs' states and the rows of the sites it is the first reader of."""
        rows = self.buffer.tensors()
        with self.ranks.agreed():
            generators = {"cpu": torch.get_rng_state()}
            if torch.cuda.is_available():
                generators["cuda"] = torch.cuda.get_rng_state()
            files = write_part(partial, f"generators-{self.ranks.rank}", generators)
            for name, tensors in states.items():
                files |= write_part(partial, f"sae-{name}", tensors)
            for site, readers in self.readers.items():
                if readers[0] == self.ranks.rank:
                    mine = {name: x for name, x in rows.items() if name.startswith(f"{site.short}.")}
                    mine["scaling.mean"] = self.scalings[site].mean
                    mine["scaling.factor"] = torch.tensor(self.scalings[site].factor, dtype=torch.float64)
                    files |= write_part(partial, f"buffer-{site.short}", mine)
            sizes = self.log.sizes()
        files, sizes = self.ranks.merged(files), self.ranks.merged(sizes)
        ahead = self.ranks.merged(self.ahead)
        with self.ranks.agreed():
            if self.ranks.first:
                state = {
                    "done": self.done, "ahead": ahead, "seconds": self.seconds, "world": self.ranks.world,
                    "buffer": self.buffer.state(), "metrics": sizes,
                }  # fmt: skip
                self.folder.finish(partial, files, {**self.constant, **state})

    def _refuse_divergence(self) -> None:
        diverged = self.ranks.merged(self.watch.diverged())
        if diverged:
            name = min(diverged, key=lambda name: diverged[name])
            how = f"its error exploded or is not finite at step {diverged[name] + 1}"
            raise DivergedError(f"training of {name}", how, f"Lower lr; {self._last_good()}")

    def _last_good(self) -> str:
        if self.saved < 0:
            return "no checkpoint was written yet."
        newest = self.folder.checkpoint(self.saved * self.config.training.batch_tokens)
        return f"the last good checkpoint is '{newest}'."


def learning_rate(config: TrainConfig, done: float) -> float:
    """Fraction of the peak rate when a fraction `done` of training is over: rise, plateau, linear fall."""
    settings = config.training
    rising = min(1.0, done / settings.warmup) if settings.warmup else 1.0
    falling = (1 - done) / (1 - settings.decay_from) if done > settings.decay_from else 1.0
    return min(rising, falling)


class Pace:
    """How fast training is, and how long it will take."""

    def __init__(self, total: int) -> None:
        self._total = total
        self._recent: deque[tuple[int, float]] = deque(maxlen=_RECENT + 1)

    def at(self, tokens: int, seconds: float) -> dict[str, float | None]:
        """tokens_per_second of late and seconds_left, after `tokens` at a clock of `seconds`."""
        self._recent.append((tokens, seconds))
        (first, started), (last, now) = self._recent[0], self._recent[-1]
        if now <= started or last <= first:
            return {"tokens_per_second": None, "seconds_left": None}
        speed = (last - first) / (now - started)
        left = round((self._total - tokens) / speed, 1)
        return {"tokens_per_second": round(speed, 1), "seconds_left": left}


class Watch:
    """The first step at which each SAE diverged, kept on the device until somebody asks."""

    def __init__(self) -> None:
        self._first: dict[str, Tensor] = {}
        self._limit: dict[str, Tensor] = {}

    def see(self, number: int, name: str, metrics: Mapping[str, Tensor]) -> None:
        """Note the metrics of step `number`."""
        fvu = metrics["fvu"].detach()
        if name not in self._first:
            self._first[name] = torch.full((), -1, dtype=torch.int64, device=fvu.device)
            self._limit[name] = EXPLODED * fvu.nan_to_num(1.0).clamp(1.0, 1e6)
        # A comparison with NaN is false, so a NaN is no good error either.
        good = (fvu <= self._limit[name]) & metrics["loss"].detach().isfinite()
        first = self._first[name]
        self._first[name] = torch.where(~good & (first < 0), number, first)

    def diverged(self) -> dict[str, int]:
        """SAE name → the step, from 0, at which it diverged; empty while none did."""
        return {name: int(first) for name, first in self._first.items() if int(first) >= 0}


def _plain(figures: Mapping[str, Any]) -> dict[str, float]:
    return {key: float(x) for key, x in figures.items()}


def _read_scaling(checkpoint: Checkpoint, site: Site, device: str) -> Scaling:
    tensors = checkpoint.tensors(f"buffer-{site.short}", device)
    return Scaling(tensors["scaling.mean"], float(tensors["scaling.factor"]))


# -------------------------------------------------------------------------------------- measuring


def evaluate(
    config: TrainConfig, model: LanguageModel, specs: Sequence[SaeSpec], folder: Path, contexts: Ints,
    left_out: LeftOut,
) -> Measured:  # fmt: skip
    """Measure SAEs from the files in `folder`, on held-out contexts and on prompts of the tasks mixed in.

    The prompts are drawn by a seed of their own. All figures are those of `saes.quality`; the forward pass of
    the model as it is serves all SAEs. Tokens that are left out are neither measured nor changed.
    """
    device = str(model.device())
    saes = {spec.name: load_sae(folder / spec.name, d_model=model.d_model, device=device) for spec in specs}
    groups: list[dict[str, Sae]] = []  # in each, a site stands once
    for name, sae in saes.items():
        free = (group for group in groups if sae.site not in {other.site for other in group.values()})
        group = next(free, None)
        if group is None:
            groups.append(group := {})
        group[name] = sae
    measured: Measured = {name: {} for name in saes}
    pre = contexts.shape[1] if isinstance(config.data, MixtureContexts) else 0
    for group in groups:
        by_site, prompts = {sae.site: sae for sae in group.values()}, _prompts(config, model)
        counted = tally(model, by_site, contexts, {"pre": _pre(pre)}, left_out=left_out)
        for name, sae in group.items():
            counts = [counted[sae.site]]
            measured[name]["quality"] = _records(quality_table(counts))
            measured[name]["density"] = _records(density_table(counts))
        if prompts is not None:
            there = {"pre": prompts.positions("pre")}
            counted = tally(model, by_site, prompts.tokens, there, left_out=left_out)
            for name, sae in group.items():
                measured[name]["quality_prompts"] = _records(quality_table([counted[sae.site]]))
    return measured


def _pre(length: int) -> Ints:
    """Positions of `pre` in prompts of `length` tokens."""
    n_examples = max(0, (length - PREFIX_LENGTH) // TOKENS_PER_EXAMPLE)
    return np.array([position("pre", j) for j in range(n_examples)], dtype=np.int64)


def _prompts(config: TrainConfig, model: LanguageModel) -> PromptSet | None:
    """Prompts of every task and arm mixed in, in equal parts; None when there is none."""
    wanted = config.data.prompts
    if not wanted:
        return None
    each = max(1, config.held_out.contexts // len(wanted))
    examples, seed = config.data.examples, config.held_out.seed
    parts = [
        build_prompts(
            model.tokenizer, parse_task(part.task), arm=part.arm, n_prompts=each, n_examples=examples,
            seed=seed,
        )
        for part in wanted
    ]  # fmt: skip
    return joined_prompts(parts, "prompts")


def _records(table: Any) -> list[dict[str, Any]]:
    """Rows as plain mappings; an undefined figure is null."""
    return json.loads(table.df.to_json(orient="records"))
