"""A run: its folder, what its stages work with, and the key that says whether one is done.

The folder `runs/<study>/<utc>-<hash8>/` is written so that nothing is ever half there:

    config.yaml   the resolved config; hash8 is the hash of it
    card.json     versions, commit, hashes of model and SAEs, dtype, seeds
    NN_stage/     a stage's outputs, with stage.json: its key, inputs, output hashes, seconds, findings
    log.jsonl     one line per stage and run
    trained.checkpoints/  where SAE training that was interrupted goes on, with trained.code, what began it
    DONE          written last, removed before a stage is redone

Files and folders are written under a temporary name, flushed and renamed. One config has one run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from iclens.activations import LatentActs
from iclens.core import ModelError, RunError, SaeError, Site, nearest
from iclens.prompts.build import PromptSet
from iclens.prompts.mixture import Mixture
from iclens.study import imports
from iclens.study.config import StudyConfig, load_study_config
from iclens.study.inputs import Hashes, declared_mixture, hub_commit, locate, pair_files
from iclens.study.store import hash_files, hash_json, load_arrays, load_json, load_prompts, save
from iclens.table import Table

if TYPE_CHECKING:
    from iclens.model.load import LanguageModel
    from iclens.saes.load import Sae

STAGES = (
    "saes", "prompts", "track", "detect", "shape", "dose", "growth", "identify", "transforms", "sweep",
    "patch", "dashboard",
)  # fmt: skip
"""Names of the stages of `study.flow`, in order."""
FOLDERS = {name: f"{number:02d}_{name}" for number, name in enumerate(STAGES, 1)}
"""Stage → its folder in a run."""
CONFIG, CARD, LOG, DONE = "config.yaml", "card.json", "log.jsonl", "DONE"
RECORD, TRAINED = "stage.json", "trained"
_TEMPORARY = ".new"

Findings = dict[str, Any]
Progress = Callable[[Findings], None]
Made = Generator[tuple[str, Any], None, Findings]
"""What a stage makes: its tables by name, one after the other, and in the end its findings."""
AnyTable = TypeVar("AnyTable", bound=Table)


@dataclass(frozen=True)
class RunFolder:
    """One run: its folder and its resolved config."""

    path: Path
    config: StudyConfig

    @property
    def plain(self) -> dict[str, Any]:
        """The resolved config as plain values."""
        return self.config.model_dump(mode="json")

    @property
    def done(self) -> bool:
        """Whether every stage finished."""
        return (self.path / DONE).is_file()

    def write_text(self, name: str, text: str) -> None:
        """Write a file of the folder whole or not at all."""
        target = self.path / name
        fresh = target.with_name(f"{name}{_TEMPORARY}")
        with fresh.open("w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        fresh.replace(target)
        _flush(self.path)

    def log(self, **entry: Any) -> None:
        """Append one line to log.jsonl."""
        line = json.dumps({"utc": now()} | entry, ensure_ascii=False)
        with (self.path / LOG).open("a", encoding="utf-8") as stream:
            stream.write(line + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def write_stage(self, name: str, write: Callable[[Path], dict[str, Any]]) -> None:
        """Replace a stage's folder by what `write` puts into an empty one; `write` returns its record."""
        fresh, old = self.path / f"{name}{_TEMPORARY}", self.path / f"{name}.old"
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        try:
            record = write(fresh)
            record["outputs"] = hash_files(fresh)
            (fresh / RECORD).write_text(indented(record), encoding="utf-8")
            for path in [*fresh.rglob("*"), fresh]:
                _flush(path)
            (self.path / DONE).unlink(missing_ok=True)
            shutil.rmtree(old, ignore_errors=True)
            if (self.path / name).exists():
                (self.path / name).rename(old)
            fresh.rename(self.path / name)
            _flush(self.path)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)

    def record(self, name: str) -> dict[str, Any] | None:
        """A stage's record, or None when it is missing or its outputs are not what it wrote."""
        folder = self.path / name
        try:
            kept = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # not there, not JSON, or not text
            return None
        if not isinstance(kept, dict):
            return None
        outputs = hash_files(folder)
        outputs.pop(RECORD)
        return kept if outputs == kept.get("outputs") else None

    def discard_if_empty(self) -> None:
        """Remove a run without a finished stage or begun training, and parents that this leaves empty."""
        begun = (self.path / f"{TRAINED}.checkpoints").is_dir()
        if begun or any(path.is_dir() and (path / RECORD).is_file() for path in self.path.iterdir()):
            return
        shutil.rmtree(self.path)
        for parent in list(self.path.parents)[:2]:
            if any(parent.iterdir()):
                return
            parent.rmdir()


def run_for(config: StudyConfig, root: Path) -> RunFolder:
    """The run folder of a config under `root`: the newest one of the same resolved config, or a new one."""
    key = hash_json(config.model_dump(mode="json"))[:8]
    study = root / config.study
    known = sorted(path for path in study.glob(f"*-{key}") if (path / CONFIG).is_file())
    if known:
        return RunFolder(known[-1], config)
    folder = study / f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{key}"
    folder.mkdir(parents=True)
    run = RunFolder(folder, config)
    run.write_text(CONFIG, config.yaml())
    return run


def find_run(path: Path) -> RunFolder:
    """The run at `path`: a run folder, or a study folder, whose newest finished run is taken."""
    folder = find_folder(path)
    return RunFolder(folder, load_study_config(folder / CONFIG))


def find_folder(path: Path) -> Path:
    """The folder of the run at `path`, whatever state it is in."""
    if not path.is_dir():
        siblings = [p.name for p in path.parent.iterdir() if p.is_dir()] if path.parent.is_dir() else []
        raise RunError(f"run '{path}'", "no such folder", nearest(path.name, siblings) + ".")
    if any((path / name).is_file() for name in (CONFIG, CARD, DONE)) or any(
        path.glob(f"[0-9][0-9]_*/{RECORD}")
    ):
        return path
    finished = sorted(mark.parent for mark in path.glob(f"*/{DONE}"))
    if not finished:
        begun = sorted(mark.parent.name for mark in path.glob(f"*/{CONFIG}"))
        reason = f"only unfinished runs ({', '.join(begun)})" if begun else "no run in it"
        raise RunError(
            f"run '{path}'", reason, "Finish one with `iclens study CONFIG`, or name a run folder."
        )
    return finished[-1]


def now() -> str:
    """The time, UTC, to the second."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"


def indented(value: Any) -> str:
    """A record as JSON that people read."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class RunContext:
    """What stages work with: the run's model, SAEs, prompts and tables, each loaded when first asked for.

    Skipping every stage loads none of them: hashes are taken of files, not of loaded objects. `key` and `out`
    are of the stage that is being done: its key, and the empty folder that will be its own.

    Args:
        outside: outside input → hashes of its files, as `inputs.outside_inputs` gives them.
        progress: told how far a long stage is.
    """

    def __init__(
        self, folder: RunFolder, outside: Mapping[str, Hashes], progress: Progress = lambda found: None
    ) -> None:
        self.folder, self.config, self.outside, self.progress = folder, folder.config, outside, progress
        self.key, self.out = "", folder.path

    def of(self, stage: str) -> Path:
        """Folder of a finished stage."""
        path = self.folder.path / FOLDERS[stage]
        if not path.is_dir():
            raise RunError(
                f"stage '{stage}' of {self.folder.path}", "not done",
                f"Run `iclens study` or `iclens {stage}`.",
            )  # fmt: skip
        return path

    def digest(self, name: str) -> str:
        """Hash of an outside input, or of a finished stage's outputs."""
        if name in self.outside:
            return hash_json(self.outside[name])
        record = self.folder.record(self.of(name).name)
        if record is None:
            raise RunError(
                f"stage '{name}' of {self.folder.path}", "damaged", "Run `iclens study` on its config."
            )
        return hash_json(record["outputs"])

    @cached_property
    def model(self) -> LanguageModel:
        """The model, whole."""
        import torch

        from iclens.model.load import load_model
        from iclens.prompts.render import parse_template

        section = self.config.model
        model = load_model(
            locate(section.folder), dtype=getattr(torch, section.dtype), device=section.device,
            template=parse_template(self.config.prompts.template),
        )  # fmt: skip
        hashed = self.outside.get("model", {}).get("commit")
        if hashed is not None and (loaded := hub_commit(section.folder)) != hashed:
            raise ModelError(
                f"model '{section.folder}' at commit {hashed}", f"the hub has moved on to {loaded}",
                "Run `iclens study` again: it then begins with the new commit.",
            )  # fmt: skip
        return model

    @property
    def sae_folder(self) -> Path:
        """The SAE set: trained in this run, or named by the config."""
        given = self.config.saes.folder
        return locate(given) if given is not None else self.of("saes") / "set"

    @cached_property
    def saes(self) -> dict[Site, Sae]:
        """The SAEs of the followed sites, checked against the model."""
        return study_saes(self.config, self.model, self.sae_folder)

    @cached_property
    def mixture(self) -> Mixture | None:
        """The declared mixture that the model was trained on, when its folder holds one."""
        return declared_mixture(locate(self.config.model.folder))

    def prompts(self, arm: str) -> PromptSet:
        """The prompts of an arm."""
        return load_prompts(self.of("prompts"), arm)

    def latents(self, arm: str, site: Site, role: str) -> LatentActs:
        """The active latents of an arm at a site and role."""
        return LatentActs.open(self.of("track") / f"{latents_name(arm, site, role)}.safetensors")

    def beliefs(self, arm: str) -> dict[str, Any]:
        """Log-odds of the `model` and the `exact` posterior in an arm, nats [prompt example belief]."""
        return self.arrays("track", beliefs_name(arm))

    def table(self, kind: type[AnyTable], name: str = "") -> AnyTable:
        """A table of the stage that makes its kind, under the name of its kind unless another is given."""
        return kind.load(self.of(kind.stage) / f"{name or kind.name}.parquet")

    def arrays(self, stage: str, name: str) -> dict[str, Any]:
        """The arrays of an earlier stage's safetensors file."""
        return load_arrays(self.of(stage) / f"{name}.safetensors")[0]

    def json(self, stage: str, name: str) -> Any:
        """A JSON file of an earlier stage."""
        return load_json(self.of(stage) / f"{name}.json")

    @property
    def facts(self) -> dict[str, Any]:
        """`model` (fingerprint) and `saes` (site → id, d_sae, k) of the run."""
        return self.json("saes", "saes")

    @property
    def decoder_norms(self) -> dict[Site, Any]:
        """Site → decoder norm ‖decode(e_f) − decode(0)‖ of every latent, [latent]."""
        return {Site.parse(name): norms for name, norms in self.arrays("saes", "decoder_norms").items()}


def latents_name(arm: str, site: Site, role: str) -> str:
    """What an arm's latents at a site and role are saved as."""
    return f"latents_{arm}_{site.short}_{role}"


def beliefs_name(arm: str) -> str:
    """What an arm's beliefs are saved as."""
    return f"beliefs_{arm}"


def study_saes(config: StudyConfig, model: LanguageModel, folder: Path) -> dict[Site, Sae]:
    """The SAEs of `folder` at the sites that the config follows."""
    from iclens.saes.load import load_saes

    every = load_saes(folder, model)
    chosen = every if config.track.sites is None else [Site.parse(site) for site in config.track.sites]
    for key, sites, there in (("track", config.track.sites, every), ("patch", config.patch.sites, chosen)):
        missing = [site for site in sites or () if Site.parse(site) not in there]
        if missing:
            have = ", ".join(site.short for site in there)
            raise SaeError(f"SAE at {missing[0]}", f"{have} are there", f"Change {key}.sites.")
    return {site: every[site] for site in chosen}


@dataclass(frozen=True)
class Stage:
    """One step of a study: `work` makes its outputs from what it declares here, and from nothing else."""

    name: str  # one of `STAGES`
    settings: tuple[str, ...]  # config sections that decide its result
    # earlier stages, or outside inputs (`model`, `SAE source`, `other SAEs`), that it reads
    reads: tuple[str, ...]
    work: Callable[[RunContext], Made]  # yields its tables by name and returns its findings

    @property
    def folder(self) -> str:
        """Folder name inside the run."""
        return FOLDERS[self.name]

    @property
    def code(self) -> tuple[str, str]:
        """Module and name of its function, where its code begins."""
        return self.work.__module__, self.work.__name__

    def write(self, run: RunContext, key: str, folder: Path) -> Findings:
        """Do the stage and save what it makes in an empty folder."""
        run.key, run.out = key, folder
        made = self.work(run)
        while True:
            try:
                name, value = next(made)
            except StopIteration as finished:
                return finished.value
            save(folder, name, value)


def stage(*settings: str, reads: Sequence[str]) -> Callable[[Callable[[RunContext], Made]], Stage]:
    """Makes a stage of the function below: the config sections that decide its result, and what it reads."""
    return lambda work: Stage(work.__name__, settings, tuple(reads), work)


def inputs_of(stage: Stage, run: RunContext) -> dict[str, str]:
    """Everything that decides a stage's result, each as a hash; its key is the hash of them all.

    `pairs` is there where the settings name a task by a file of pairs: the files' contents.
    """
    settings = run.config.model_dump(mode="json", include=set(stage.settings))
    inputs = {
        "config": hash_json({"stage": stage.name} | settings),
        "code": hash_json(imports.sources(stage.code)),
        "libraries": hash_json(imports.libraries(stage.code)),
    }
    if files := pair_files(settings):
        inputs["pairs"] = hash_json(files)
    return inputs | {name: run.digest(name) for name in stage.reads}
