"""How do several processes track one run? Each rank some batches of prompts; one command joins the parts.

    torchrun --nproc-per-node 4 --no-python iclens track RUN   each rank writes RUN/track.parts/…/<rank>-of-4
    iclens track RUN                                           joins them, or tracks alone

Parts lie under the stage's key: those of another config, model, SAE set or code are never joined. A part is
written under a temporary name and renamed, so that a killed rank leaves none.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iclens.activations import LatentActs, join_prompts
from iclens.core import RunError, Site
from iclens.prompts.build import PromptSet
from iclens.study import digests
from iclens.study.bench import Bench, latents_file
from iclens.study.flow import FLOW, inputs_of
from iclens.study.store import load_arrays, save_arrays
from iclens.table import Floats
from iclens.track import belief_log_odds, track

PARTS = "track.parts"


@dataclass(frozen=True)
class ArmTracked:
    """One arm, some or all of its prompts.

    Args:
        latents: (site, role) → active latents.
        model: log-odds of every belief, nats [prompt example belief].
        right: whether the most probable answer is the task's, [prompt example].
    """

    latents: dict[tuple[Site, str], LatentActs]
    model: Floats
    right: np.ndarray


def track_prompts(bench: Bench, prompts: PromptSet) -> ArmTracked:
    """Latents and beliefs of prompts, from one pass of the model."""
    section, declared = bench.config.track, bench.config.declared
    words = [word for belief in declared for word in belief.words]
    tracked = track(
        bench.model, bench.saes, prompts, roles=tuple(section.roles), batch=section.batch, words=words
    )
    right = np.array(tracked.probs.answers)[tracked.probs.top()] == prompts.answer
    model = belief_log_odds(tracked.probs, prompts, declared=declared)
    return ArmTracked(tracked.latents, model, right)


def write_shard(bench: Bench, rank: int, world: int) -> Path:
    """Track this rank's slice of every arm's prompts and write its part.

    Args:
        bench: a run whose SAEs and prompts are there.
        rank: from 0.
        world: number of ranks.

    Raises:
        RunError: when there are more ranks than batches, or an earlier stage has not run.
    """
    n_prompts, batch = bench.config.prompts.n_prompts, bench.config.track.batch
    starts = np.arange(0, n_prompts, batch)
    if not 0 <= rank < world or world > len(starts):
        raise RunError(
            f"rank {rank} of {world}",
            f"{len(starts)} batches of {batch} prompts",
            f"Start at most {len(starts)} processes, or lower track.batch.",
        )
    # Whole batches: the sums of a batch of another size would round otherwise.
    own = np.array_split(starts, world)[rank]
    rows = np.arange(own[0], min(own[-1] + batch, n_prompts))
    place = _folder(bench) / f"{rank}-of-{world}"
    fresh = place.with_name(f"{place.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    for arm in bench.config.prompts.arms:
        part = track_prompts(bench, bench.prompts(arm).select(rows))
        for (site, role), latents in part.latents.items():
            latents.save(fresh / latents_file(arm, site, role))
        save_arrays(fresh / _answers(arm), {"model": part.model, "right": part.right.astype(np.float32)})
    shutil.rmtree(place, ignore_errors=True)
    fresh.rename(place)
    return place


def complete(bench: Bench) -> list[Path]:
    """The parts of one whole set of ranks, in order; empty when there is none."""
    sizes: dict[int, set[int]] = {}
    for path in _folder(bench).glob("*-of-*"):
        if found := re.fullmatch(r"(\d+)-of-(\d+)", path.name):
            sizes.setdefault(int(found[2]), set()).add(int(found[1]))
    whole = [world for world, ranks in sizes.items() if ranks == set(range(world))]
    return [_folder(bench) / f"{rank}-of-{whole[0]}" for rank in range(whole[0])] if whole else []


def joined(parts: Sequence[Path], arm: str) -> ArmTracked:
    """One arm from the parts of every rank.

    Raises:
        TableError: when a part is damaged.
    """
    prefix, names = f"latents_{arm}_", {}
    for file in sorted(parts[0].glob(f"{prefix}*.safetensors")):
        site, _, role = file.stem.removeprefix(prefix).rpartition("_")
        names[Site.parse(site), role] = file.name
    latents = {key: join_prompts([LatentActs.load(p / name) for p in parts]) for key, name in names.items()}
    answers = [load_arrays(part / _answers(arm))[0] for part in parts]
    model, right = (np.concatenate([held[name] for held in answers]) for name in ("model", "right"))
    return ArmTracked(latents, model, right.astype(bool))


def _folder(bench: Bench) -> Path:
    """Where the parts of this stage's key are."""
    stage = next(stage for stage in FLOW if stage.name == "track")
    return bench.run.path / PARTS / digests.of_json(inputs_of(stage, bench))[:16]


def _answers(arm: str) -> str:
    return f"answers_{arm}.safetensors"
