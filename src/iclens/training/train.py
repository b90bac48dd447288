"""Training several SAEs from one forward pass per block of contexts, to the end or to a checkpoint.

1. The model and the stream of contexts are opened; positions to leave out and the units of each site are
found. 2. A shuffled buffer holds the same rows of every site, and each SAE takes one step per batch. 3. The
SAEs are written, read back, and measured on held-out contexts. The set appears under its name when it is
whole; when measuring fails it appears without figures, and the failure is raised.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError

from iclens.core import ConfigError, IclensError, RunError, Site
from iclens.model.load import LanguageModel, load_model, load_tokenizer, other_model
from iclens.model.shape import read_shape
from iclens.prompts.render import bos_id, bos_in_words, check_tokenizer
from iclens.training.checkpoint import Checkpoint
from iclens.training.config import MixtureContexts, SaeSpec, TrainConfig
from iclens.training.data.activations import as_left_out, find_left_out, recorder
from iclens.training.data.buffer import ActivationBuffer
from iclens.training.data.scaling import Scaling, estimate_scalings
from iclens.training.data.streams import build_stream, held_out
from iclens.training.evaluate import Measured, evaluate
from iclens.training.folder import Place, save_card, save_sae
from iclens.training.limits import check_limits
from iclens.training.loop import Loop, Report, read_scaling
from iclens.training.metrics import MAKE_ROOM, PACE, MetricsLog
from iclens.training.ranks import Ranks, joined
from iclens.training.steps.build import build_step, check_spec
from iclens.training.stop import Stop, Stopped, stopped, watched

Resume = Literal["no", "newest"]
_NAME = "config.model.name"


def train_saes(config: TrainConfig, out: Path, report: Report | None = None, resume: Resume = "no") -> Path:
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
    place = Place(Path(out), config.checkpoints.keep)
    with watched() as stop:
        try:
            with joined() as ranks:
                place.refuse_if_taken(resume)
                with _held(place, ranks):
                    _Run(config, place, ranks, stop, report or (lambda _: None)).train()
        except Stopped as signal:
            raise stopped(signal.number, place.checkpoints.newest_name()) from None
    return place.out


@contextmanager
def _held(place: Place, ranks: Ranks) -> Iterator[None]:
    """The run's folder, made by the first process for all."""
    if ranks.first:
        with place.held():
            ranks.collect(None)
            yield
    else:
        ranks.collect(None)
        yield


@dataclass(frozen=True)
class _Run:
    """One process of one training run."""

    config: TrainConfig
    place: Place
    ranks: Ranks
    stop: Stop
    report: Report

    def train(self) -> None:
        for spec in self.config.saes.members:
            check_spec(spec)
        check_limits(self.config, read_shape(self.config.model.name))
        checkpoint = self._newest()
        model = self._open_model()
        if checkpoint is not None:
            _refuse_change(checkpoint, self._constant(model), model)
            if self.ranks.first:
                self.report({"continued_at": checkpoint.tokens})
        contexts = held_out(self.config, model.tokenizer)
        if self.ranks.first:
            self.report({"bos": bos_in_words(model.tokenizer)})
        facts = self._fit(model, checkpoint)
        left_out = as_left_out(facts["excluded"])
        failure, measured = None, {}
        try:
            with self.ranks.agreed():
                measured = evaluate(self.config, model, self._specs(), self.place.partial, contexts, left_out)
        except (Stopped, KeyboardInterrupt):
            raise
        except BaseException as error:  # whatever it is, the trained SAEs are not to be lost
            if not self.ranks.known(error):
                raise
            failure, measured = error, {}
        measured = self.ranks.merged(measured)
        if self.ranks.first:
            with _writing(self.place.out):
                self._publish(model, facts, measured, failure)
        self.ranks.collect(None)
        if failure is not None:
            words = f"The SAEs are whole in '{self.place.out}'; `iclens saes check` can measure them."
            failure.also(words) if isinstance(failure, IclensError) else failure.add_note(words)
            raise failure

    def _specs(self) -> tuple[SaeSpec, ...]:
        """The SAEs of this process."""
        owner = self.ranks.deal(self.config.saes.members)
        return tuple(spec for spec in self.config.saes.members if owner[spec.name] == self.ranks.rank)

    def _newest(self) -> Checkpoint | None:
        """The checkpoint to continue from; its hashes are taken by the first process."""
        found = self.place.checkpoints.newest() if self.ranks.first else None
        (tokens,) = self.ranks.largest(-1 if found is None else found.tokens)
        return None if tokens < 0 else found or self.place.checkpoints.at(tokens)

    def _open_model(self) -> LanguageModel:
        settings, data = self.config.model, self.config.data
        if data.prompts or isinstance(data, MixtureContexts):
            check_tokenizer(load_tokenizer(settings.name))
        deepest = max(site.layer for site in self.config.saes.recorded)
        return load_model(
            settings.name, blocks=deepest + 1 if settings.load == "needed" else None,
            dtype=getattr(torch, settings.dtype), device=self.ranks.device(settings.device),
            attention=settings.attention,
        )  # fmt: skip

    def _constant(self, model: LanguageModel) -> dict[str, Any]:
        """What a checkpoint keeps of the run, and what has to be the same when it is continued."""
        config = self.config.model_dump(mode="json", exclude={"checkpoints"})
        return {"config": config, "model": model.fingerprint}

    def _fit(self, model: LanguageModel, checkpoint: Checkpoint | None) -> dict[str, Any]:
        """Train this process's SAEs and write them; what the card says of it. Frees all it held."""
        loop = self._loop(model, checkpoint)
        with self.stop.noted():
            loop.run()
        excluded, data = loop.constant["excluded"], loop.buffer.facts()
        if self.ranks.first:
            self.report({"data": data})
        with _writing(self.place.out):
            for spec in loop.specs:
                folder = self.place.partial / spec.name
                save_sae(folder, spec, loop.steps[spec.name].export(), model, as_left_out(excluded))
                shutil.copyfile(loop.log.file(spec.name), folder / "metrics.jsonl")
            if self.ranks.first:
                shutil.copyfile(loop.log.file(PACE), self.place.partial / f"{PACE}.jsonl")
        return {"seconds": round(loop.seconds, 1), "excluded": excluded, "data": data}

    def _loop(self, model: LanguageModel, checkpoint: Checkpoint | None) -> Loop:
        config, settings, specs = self.config, self.config.training, self._specs()
        readers = self._readers()
        mine = tuple(site for site, ranks in readers.items() if self.ranks.rank in ranks)
        stream = self.ranks.in_step(build_stream(config, model.tokenizer))
        alone = recorder(model)
        if checkpoint is None:
            bos = bos_id(model.tokenizer)
            excluded = find_left_out(config.data, bos, alone, stream, config.saes.recorded)
        else:
            excluded = checkpoint.state["excluded"]
        left_out = as_left_out(excluded)
        if self.ranks.first and any(stream.facts().values()):
            self.report({"data": stream.facts()})
        record = self.ranks.shared(alone, readers)
        buffer = ActivationBuffer(
            record, stream, mine, left_out,
            capacity=settings.buffer_tokens, batch=settings.batch_tokens, seed=config.seed,
            device=model.device(),
        )  # fmt: skip
        if checkpoint is None:
            scalings = estimate_scalings(record, stream, mine, left_out, settings.scaling_tokens)
        else:
            scalings = {site: read_scaling(checkpoint, site, str(model.device())) for site in mine}
        log = MetricsLog(
            self.place.metrics, (*(s.name for s in specs), *([PACE] if self.ranks.first else []))
        )
        log.cut({} if checkpoint is None else checkpoint.state["metrics"])
        loop = Loop(
            config, specs, _steps(config, specs, scalings, buffer, checkpoint), buffer, scalings,
            self.place.checkpoints, log, self.ranks, readers, str(model.device()), self.stop, self.report,
            {**self._constant(model), "excluded": excluded},
        )  # fmt: skip
        if checkpoint is not None:
            loop.continue_from(checkpoint)
        return loop

    def _readers(self) -> dict[Site, tuple[int, ...]]:
        """Site → the processes that train on it."""
        members = self.config.saes.members
        owner = self.ranks.deal(members)
        return {
            site: tuple(sorted({owner[s.name] for s in members if site in (s.site, s.target)}))
            for site in self.config.saes.recorded
        }

    def _publish(
        self,
        model: LanguageModel,
        facts: Mapping[str, Any],
        measured: Measured,
        failure: BaseException | None,
    ) -> None:
        """The card, and the set's name; without figures after a failure."""
        names = [spec.name for spec in self.config.saes.members]
        tables = {
            kind: [row for name in names for row in measured.get(name, {}).get(kind, [])]
            for kind in ("quality", "quality_prompts", "density")
        }
        card = {
            "model": {"name": model.name, "fingerprint": model.fingerprint},
            "bos": bos_in_words(model.tokenizer),
            "config": self.config.model_dump(mode="json"),
            **tables,
            "measured_on": f"{self.config.held_out.contexts} contexts not trained on, "
            f"seed {self.config.held_out.seed}",
            **facts,
            "processes": self.ranks.world,
            "threads": torch.get_num_threads(),
            "versions": {name: _version(name) for name in ("iclens", "sae_lens", "torch", "transformers")},
        }
        if failure is not None:
            card["not_measured"] = " ".join(str(failure).split()) or type(failure).__name__
        save_card(self.place.partial, card)
        self.place.publish()
        self.report({"quality": tables["quality"]})


@contextmanager
def _writing(out: Path) -> Iterator[None]:
    """Turns a disk that takes no more into one line; the last checkpoint is there."""
    try:
        yield
    except (OSError, SafetensorError) as cause:
        reason = getattr(cause, "strerror", None) or cause
        raise RunError(f"output '{out}'", f"cannot be written ({reason})", MAKE_ROOM) from cause


def _steps(
    config: TrainConfig, specs: tuple[SaeSpec, ...], scalings: Mapping[Site, Scaling],
    buffer: ActivationBuffer, checkpoint: Checkpoint | None,
) -> dict[str, Any]:  # fmt: skip
    """The SAEs' first states, by name."""
    steps = {}
    for spec in specs:
        scaling = scalings[spec.site]
        # What a continued SAE's first weights are made from does not matter: the checkpoint replaces them.
        mean = scaling.mean
        rows = buffer.rows(spec.site) if checkpoint is None else torch.stack([mean - 1, mean + 1])
        target = None if spec.target is None else scalings[spec.target]
        steps[spec.name] = build_step(spec, config.training, scaling, target, rows, mean.device)
    return steps


def _refuse_change(checkpoint: Checkpoint, constant: Mapping[str, Any], model: LanguageModel) -> None:
    """Raise a ConfigError when the checkpoint is of another configuration or model."""
    then, now = _flat(checkpoint.state), _flat(json.loads(json.dumps(constant)))
    other = other_model(then.pop(_NAME, None), then.pop("model", None), model)
    if other:
        raise ConfigError(
            f"continuing '{checkpoint.folder.parent}'", other, "Name that model, or remove this folder."
        )
    for key in now.keys() - {_NAME, "model"}:
        if then.get(key) != now[key]:
            raise ConfigError(
                f"continuing with key '{key.removeprefix('config.')}' = {now[key]}",
                f"the checkpoint was made with {then.get(key)}",
                f"Continue with the same configuration and model, or remove '{checkpoint.folder.parent}'.",
            )


def _flat(tree: Any, prefix: str = "") -> dict[str, Any]:
    """Leaves of nested mappings, by dotted key."""
    if not isinstance(tree, Mapping):
        return {prefix: tree}
    return {
        key: leaf
        for name, branch in tree.items()
        for key, leaf in _flat(branch, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
