"""SAEs from elsewhere: which can be had, whether they fit a model, and how good they are on real prompts.

1. Every reference is loaded, strictly. 2. They are measured together on prompts of the task grid, at each
role. 3. What does not fit (`saes.load`) is refused, or recorded when that is asked for. 4. On request the
SAEs are written as one set for this model, whose card keeps the figures and what was recorded; a study of
that set carries both.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iclens.concepts.language import FIRST_EXAMPLE
from iclens.core import ConfigError, SaeError, Site, examples_within, nearest, prompt_length
from iclens.model.load import LanguageModel, load_model, plain_name, same_name
from iclens.model.shape import read_shape, refuse_longer
from iclens.saes.formats import Release, releases
from iclens.saes.layouts import LAYOUTS
from iclens.saes.load import CARD_FILE, Misfit, Sae, load_sae, load_saes, mismatches, save_native
from iclens.saes.quality import Counts, density_table, fidelity_table, figures, quality_table, tally
from iclens.schemas import DensityTable, FidelityTable, QualityTable
from iclens.study.config import GridSection, ModelSection, PromptsSection, SaesSection, StudyConfig
from iclens.study.grid import quality_prompts
from iclens.study.inputs import declared_mixture, locate

DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True)
class Checked:
    """SAEs measured on a model."""

    quality: QualityTable  # one row per SAE
    fidelity: FidelityTable  # one row per SAE and role
    density: DensityTable  # histogram of latents by density
    # site → in what its SAE does not fit the model; only sites where there is something
    mismatches: dict[Site, tuple[str, ...]]
    n_examples: int  # examples of a prompt, as many as the model's positions hold, at most a study's 16
    folder: Path | None = None  # the set that was written; None when none was asked for

    def as_json(self) -> dict[str, Any]:
        """Everything as plain records; an undefined figure is null."""
        return {
            "quality": _records(self.quality),
            "fidelity": _records(self.fidelity),
            "density": _records(self.density),
            "mismatches": {site.short: list(found) for site, found in self.mismatches.items()},
            "n_examples": self.n_examples,
            "set": None if self.folder is None else str(self.folder),
        }


def check_saes(
    refs: Sequence[str], model: str, *, site: Site | None = None, misfit: Misfit = "refuse",
    out: Path | None = None, dtype: str = "float32", device: str = "cpu",
) -> Checked:  # fmt: skip
    """Load SAEs, measure them on prompts of the task grid, and refuse those that do not fit the model.

    Of a model that declares its tasks (`mixture.yaml`), the grid is these. Prompts have 16 examples, or as
    many as the model's positions hold.

    Args:
        refs: SAE sets, or single SAEs in any layout that `load_sae` takes.
        model: folder, GGUF file or hub name of the model.
        site: where a single SAE is used, whatever its files name; not for sets.
        misfit: "refuse" raises when an SAE does not fit, "record" goes on and keeps what does not.
        out: folder to make with these SAEs as one set for this model.
        dtype: of the model's weights, float32 or bfloat16; the SAEs are float32.
        device: torch device of the model and the SAEs.

    Raises:
        ConfigError: for another dtype.
        ModelError, SaeError: when one is missing, damaged, or does not fit the other.
    """
    if out is not None and out.exists():
        raise SaeError(f"output '{out}'", "it exists", "Name a new folder, or remove this one.")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype '{dtype}'", "unknown", nearest(dtype, DTYPES) + ".")
    mixture = declared_mixture(locate(model))
    known = None if mixture is None else [task.name for task in mixture.tasks]
    n_examples = _examples_that_fit(model)
    config = StudyConfig(
        study="check",
        grid=GridSection(tasks=known, n_examples=n_examples),
        model=ModelSection(folder=model),
        saes=SaesSection(folder=refs[0]),
        prompts=PromptsSection(task="2x+3"),
    )
    loaded = load_model(locate(model), dtype=getattr(torch, dtype), device=device)
    saes = _load(refs, loaded, site, misfit)
    prompts = quality_prompts(config, loaded.tokenizer)
    counted = tally(loaded, saes, prompts.tokens, {role: prompts.positions(role) for role in prompts.roles})
    counted = {place: _judged(counts, loaded) for place, counts in counted.items()}
    misfits = {place: counts.sae.mismatches for place, counts in counted.items() if counts.sae.mismatches}
    if misfits and misfit == "refuse":
        place, first = next(iter(misfits.items()))
        raise SaeError(
            f"SAE '{saes[place].folder}' on model '{loaded.name}'", "; ".join(first),
            "Give an SAE that was made for this model, or go on with --force, which records this.",
        )  # fmt: skip
    everything = counted.values()
    checked = Checked(
        quality_table(everything), fidelity_table(everything), density_table(everything), misfits, n_examples
    )
    return checked if out is None else _written(checked, counted, loaded, out)


def _examples_that_fit(model: str) -> int:
    """Examples of the prompts on which SAEs of this model are measured, from its config.json alone."""
    positions = read_shape(locate(model)).n_positions
    fewest = prompt_length(FIRST_EXAMPLE + 2)
    refuse_longer(
        fewest, positions, f"'{model}'", "the task grid",
        f"SAEs are measured on models of {fewest} positions or more.",
    )  # fmt: skip
    return min(GridSection().n_examples, examples_within(positions))


def _load(refs: Sequence[str], model: LanguageModel, site: Site | None, misfit: Misfit) -> dict[Site, Sae]:
    saes: dict[Site, Sae] = {}
    for ref in refs:
        place = locate(ref)
        if (place / CARD_FILE).is_file():
            if site is not None:
                raise SaeError(
                    f"SAE set '{ref}' at {site.short}", "a set names the site of each of its SAEs",
                    "Leave site (--site) out, or name one SAE of the set.",
                )  # fmt: skip
            found = load_saes(place, model, device=str(model.device()), misfit=misfit)
        else:
            sae = load_sae(str(place), site=site, d_model=model.d_model, device=str(model.device()))
            model.check_site(sae.output)
            found = {model.check_site(sae.site): sae}
        if twice := saes.keys() & found.keys():
            raise SaeError(
                f"SAE '{ref}'", f"{min(twice).short} was given before", "Give one SAE for each site."
            )
        saes |= found
    return saes


def _judged(counts: Counts, model: LanguageModel) -> Counts:
    """The counts with what does not fit noted in the SAE."""
    whole = figures(counts)
    own = mismatches(counts.sae, model, whole.l0, whole.fvu, float(np.nanmean(counts.length)))
    noted = tuple(dict.fromkeys((*counts.sae.mismatches, *own)))
    return replace(counts, sae=replace(counts.sae, mismatches=noted))


def _written(checked: Checked, counted: dict[Site, Counts], model: LanguageModel, out: Path) -> Checked:
    card = {
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "sources": {
            site.short: {"from": str(sae.folder), "layout": sae.layout, "model": sae.model}
            | ({} if sae.named is None else {"its files name": sae.named.short})
            for site, sae in ((site, counts.sae) for site, counts in counted.items())
        },
        "measured_on": f"prompts of the task grid, {checked.n_examples} examples each",
    }  # fmt: skip
    try:
        for site, counts in counted.items():
            save_native(counts.sae, out / site.short)
        found = checked.as_json()
        card |= {key: found[key] for key in ("mismatches", "quality", "fidelity")}
        (out / CARD_FILE).write_text(json.dumps(card, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except BaseException:
        shutil.rmtree(out, ignore_errors=True)
        raise
    return replace(checked, folder=out)


def _records(table: QualityTable | FidelityTable | DensityTable) -> list[dict[str, Any]]:
    return json.loads(table.df.to_json(orient="records"))


@dataclass(frozen=True)
class Catalogue:
    """What `load_sae` can read."""

    layouts: tuple[tuple[str, str, str], ...]  # (name, its two files, where it comes from) of each layout
    published: tuple[tuple[str, str], ...]  # (an SAE on the hub, its model) that the registry does not have
    releases: tuple[Release, ...]  # releases of the registry
    model: str | None  # the model they were chosen for; None for all

    def as_json(self) -> dict[str, Any]:
        """As plain records."""
        names = ("layout", "files", "origin")
        return {
            "layouts": [dict(zip(names, row, strict=True)) for row in self.layouts],
            "published": [dict(zip(("sae", "model"), row, strict=True)) for row in self.published],
            "releases": [asdict(release) for release in self.releases],
            "model": self.model,
        }


def catalogue(model: str | None) -> Catalogue:
    """The layouts, and the registry's releases for `model` (all models by default)."""
    everything, published = releases(), tuple(row for layout in LAYOUTS for row in layout.published)

    def wanted(name: str) -> bool:
        return model is None or same_name(name, model)

    chosen = tuple(release for release in everything if wanted(release.model))
    outside = tuple(row for row in published if wanted(row[1]))
    if not chosen and not outside:
        names = {
            plain_name(name) for name in (*(r.model for r in everything), *(row[1] for row in published))
        }
        raise SaeError(
            f"SAEs for '{model}'",
            "none are known",
            f"{nearest(plain_name(str(model)), names)}; `iclens saes list` names all.",
        )
    layouts = tuple((layout.name, " and ".join(layout.files), layout.origin) for layout in LAYOUTS)
    return Catalogue(layouts, outside, chosen, model)
