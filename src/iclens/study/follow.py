"""Following latents: the study's SAEs, the prompts of every arm, and latents and beliefs example by example.

Several processes can track one run, each some batches of prompts; one command joins the parts.

    torchrun --nproc-per-node 4 --no-python iclens track RUN   each rank writes RUN/track.parts/…/<rank>-of-4
    iclens track RUN                                           joins them, or tracks alone

Parts lie under the stage's key: those of another config, model, SAE set or code are never joined. A part is
written under a temporary name and renamed, so that a killed rank leaves none.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from iclens.activations import LatentActs, join_prompts
from iclens.core import ConfigError, RunError, Site
from iclens.growth.bayes import Calibration, calibrate
from iclens.model.load import load_model, other_model
from iclens.model.run import answer_probs
from iclens.prompts.build import PromptSet, build_prompts, exact_answer_probs, in_mixture
from iclens.prompts.render import bos_in_words
from iclens.saes.load import Sae
from iclens.schemas import QualityTable
from iclens.study import imports
from iclens.study.inputs import locate
from iclens.study.run import TRAINED, RunContext, latents_name
from iclens.study.store import hash_json, load_arrays, save_arrays
from iclens.table import Floats
from iclens.tracking import belief_log_odds, track
from iclens.training.config import TrainConfig, load_train_config
from iclens.training.loop import train_saes

CALIBRATION_SEED, CALIBRATION_PROMPTS = 1_000_003, 128
"""Prompts of another seed than the study's: guess and lapse never come from the curve they correct."""
PARTS = "track.parts"


def sae_set(run: RunContext) -> Path:
    """The folder of the study's SAEs, trained into the stage's own folder when the config says so."""
    section = run.config.saes
    if section.train is None:
        return locate(str(section.folder))
    return _trained(_on_studied_model(load_train_config(locate(section.train)), run), run)


def _trained(config: TrainConfig, run: RunContext) -> Path:
    """Train the set, beside the stages so that its checkpoints outlive this one, then move it to `set`."""
    beside = run.folder.path / TRAINED
    begun_by, checkpoints = (beside.with_name(f"{TRAINED}.{what}") for what in ("code", "checkpoints"))
    start = (__name__, _trained.__name__)
    code = hash_json([imports.sources(start), imports.libraries(start)])
    if checkpoints.is_dir() and begun_by.is_file() and begun_by.read_text(encoding="utf-8") != code:
        raise RunError(
            f"going on with the training in '{checkpoints}'", "it was begun by other code or libraries",
            "Remove that folder to train anew, or go on with the iclens and libraries that began it.",
        )  # fmt: skip
    shutil.rmtree(beside, ignore_errors=True)
    run.folder.write_text(begun_by.name, code)
    trained = train_saes(config, beside, run.progress, resume="newest").rename(run.out / "set")
    begun_by.unlink()
    return trained


def _on_studied_model(config: TrainConfig, run: RunContext) -> TrainConfig:
    """The training config on the study's folder of its model, refused when it names another model.

    A copy of the model elsewhere may have another mixture or tokenizer, which no stage's key would see.
    """
    named, studied = locate(config.model.name), locate(run.config.model.folder)
    if named.resolve() != studied.resolve():
        trained_on = load_model(named)
        other = other_model(trained_on.name, trained_on.fingerprint, run.model)
        if other:
            raise ConfigError(
                f"training config '{run.config.saes.train}'", other,
                "Name one model as model.name there and as model.folder in the study.",
            )  # fmt: skip
    return config.model_copy(update={"model": config.model.model_copy(update={"name": str(studied)})})


def sae_facts(saes: Mapping[Site, Sae]) -> dict[str, dict[str, Any]]:
    """Site → id and sizes of its SAE."""
    return {site.short: {"sae_id": sae.sae_id, "d_sae": sae.d_sae, "k": sae.k} for site, sae in saes.items()}


def quality_figures(quality: QualityTable) -> dict[str, dict[str, float]]:
    """FVU and CE recovered of every site."""
    sites = [Site.parse(str(site)).short for site in quality["site"]]
    return {
        title: {site: round(float(value), 4) for site, value in zip(sites, quality[column], strict=True)}
        for title, column in (("FVU", "fvu"), ("CE recovered", "ce_recovered"))
    }


def arm_prompts(run: RunContext) -> dict[str, PromptSet]:
    """The prompts of every arm: the same inputs, under each arm's labels."""
    section, tokenizer = run.config.prompts, run.model.tokenizer
    return {
        arm: build_prompts(
            tokenizer, section.rule, arm=arm, n_prompts=section.n_prompts, n_examples=section.n_examples,
            seed=section.seed, inputs=section.inputs, rival=section.rival, template=section.template,
        )
        for arm in section.arms
    }  # fmt: skip


def prompt_figures(run: RunContext) -> dict[str, Any]:
    """What the stage prompts says when it is done."""
    section = run.config.prompts
    return {
        "task": section.task,
        "arms": section.arms,
        "prompts": section.n_prompts,
        "examples": section.n_examples,
        "BOS": bos_in_words(run.model.tokenizer),
    }


@dataclass(frozen=True)
class ArmTracked:
    """One arm, some or all of its prompts."""

    latents: dict[tuple[Site, str], LatentActs]  # (site, role) → active latents
    model: Floats  # log-odds of every belief, nats [prompt example belief]
    right: np.ndarray  # whether the most probable answer is the task's, [prompt example]


def track_arm(run: RunContext, arm: str, parts: Sequence[Path]) -> ArmTracked:
    """Latents and beliefs of an arm: joined from the parts of all ranks, or else tracked here."""
    return joined_shards(parts, arm) if parts else track_prompts(run, run.prompts(arm))


def track_prompts(run: RunContext, prompts: PromptSet) -> ArmTracked:
    """Latents and beliefs of prompts, from one pass of the model."""
    section, declared = run.config.track, run.config.declared
    words = [word for belief in declared for word in belief.words]
    tracked = track(run.model, run.saes, prompts, roles=section.roles, batch=section.batch, words=words)
    right = np.array(tracked.probs.answers)[tracked.probs.top()] == prompts.answer
    return ArmTracked(tracked.latents, belief_log_odds(tracked.probs, prompts, declared=declared), right)


def exact_beliefs(run: RunContext, prompts: PromptSet) -> tuple[Floats, str]:
    """The exact posterior's log-odds [prompt example belief], NaN where unknown, and the reason."""
    log_odds = np.full((*prompts.x.shape, len(run.config.belief_names)), np.nan)
    if run.mixture is None:
        return log_odds, "the model's folder declares no mixture"
    possible = np.flatnonzero(in_mixture(run.mixture, prompts))
    if possible.size == 0:
        return log_odds, f"no prompt of arm {prompts.arm} is one that the mixture can give"
    some = prompts.select(possible)
    probs = exact_answer_probs(run.mixture, some)
    log_odds[possible] = belief_log_odds(probs, some, declared=run.config.declared)
    left = prompts.n_prompts - len(possible)
    return log_odds, f"{left} prompts hold a label that the mixture never gives" if left else ""


def guess_and_lapse(run: RunContext) -> Calibration:
    """P(the task's answer) after no example and after a whole prompt, on prompts of their own."""
    section = run.config.prompts
    prompts = build_prompts(
        run.model.tokenizer, section.rule, arm="T", n_prompts=CALIBRATION_PROMPTS,
        n_examples=section.n_examples, seed=section.seed + CALIBRATION_SEED, inputs=section.inputs,
        template=section.template,
    )  # fmt: skip
    words = tuple(dict.fromkeys(prompts.answer.ravel().tolist()))
    ends = prompts.positions("pre")[[0, -1]]
    probs = answer_probs(run.model, prompts.tokens, ends, extra=words, batch=run.config.track.batch)
    right = probs.of(prompts.answer[:, [0, -1]])
    return calibrate(right[:, 0], right[:, 1])


def write_shard(run: RunContext, key: str, rank: int, world: int) -> Path:
    """Track this rank's slice of every arm's prompts and write its part under the stage's key."""
    n_prompts, batch = run.config.prompts.n_prompts, run.config.track.batch
    starts = np.arange(0, n_prompts, batch)
    if not 0 <= rank < world or world > len(starts):
        raise RunError(
            f"rank {rank} of {world}", f"{len(starts)} batches of {batch} prompts",
            f"Start at most {len(starts)} processes, or lower track.batch.",
        )  # fmt: skip
    # Whole batches: the sums of a batch of another size would round otherwise.
    own = np.array_split(starts, world)[rank]
    rows = np.arange(own[0], min(own[-1] + batch, n_prompts))
    part = _parts_folder(run, key) / f"{rank}-of-{world}"
    fresh = part.with_name(f"{part.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for arm in run.config.prompts.arms:
        tracked = track_prompts(run, run.prompts(arm).select(rows))
        for (site, role), latents in tracked.latents.items():
            latents.save(fresh / f"{latents_name(arm, site, role)}.safetensors")
        answers = {"model": tracked.model, "right": tracked.right.astype(np.float32)}
        save_arrays(fresh / f"answers_{arm}.safetensors", answers)
    shutil.rmtree(part, ignore_errors=True)
    fresh.rename(part)
    return part


def finished_shards(run: RunContext) -> list[Path]:
    """The parts of one whole set of ranks, in order; empty when there is none."""
    folder, ranks = _parts_folder(run, run.key), {}
    for path in folder.glob("*-of-*"):
        if named := re.fullmatch(r"(\d+)-of-(\d+)", path.name):
            ranks.setdefault(int(named[2]), set()).add(int(named[1]))
    whole = [world for world, there in ranks.items() if there == set(range(world))]
    return [folder / f"{rank}-of-{whole[0]}" for rank in range(whole[0])] if whole else []


def joined_shards(parts: Sequence[Path], arm: str) -> ArmTracked:
    """One arm from the parts of every rank."""
    prefix, names = f"latents_{arm}_", {}
    for file in sorted(parts[0].glob(f"{prefix}*.safetensors")):
        site, _, role = file.stem.removeprefix(prefix).rpartition("_")
        names[Site.parse(site), role] = file.name
    latents = {key: join_prompts([LatentActs.load(p / name) for p in parts]) for key, name in names.items()}
    answers = [load_arrays(part / f"answers_{arm}.safetensors")[0] for part in parts]
    model, right = (np.concatenate([arrays[name] for arrays in answers]) for name in ("model", "right"))
    return ArmTracked(latents, model, right.astype(bool))


def _parts_folder(run: RunContext, key: str) -> Path:
    return run.folder.path / PARTS / key[:16]
