"""What did a run find? Its tables by name, read from disk, without the model.

Every frame names sites in their short form, `L2.resid_post`.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from iclens.activations import LatentActs
from iclens.core import REDO_STAGE, IclensError, RunError, Site, TableError
from iclens.prompts.build import PromptSet
from iclens.schemas import TABLES
from iclens.study.config import StudyConfig
from iclens.study.declared import Declared, known
from iclens.study.opening import RunAsFound
from iclens.study.run import CARD, FOLDERS, RunFolder
from iclens.study.store import EVERY, check_form, load_arrays, load_json, load_prompts, load_rows

_SAES = {"saes": {EVERY: {"sae_id": str, "d_sae": int}}}
_FITS = {EVERY: {"model": dict, "exact": dict}}


class Results:
    """The outputs of a run.

    Args:
        run: the run folder, or one whose config does not validate.
    """

    def __init__(self, run: RunFolder | RunAsFound) -> None:
        self.run, self.declared = run, Declared.of(run.plain)
        self._tables: dict[tuple[str, str], pd.DataFrame] = {}
        self._frames: dict[tuple[str, str], pd.DataFrame] = {}

    @property
    def config(self) -> StudyConfig:
        """The resolved config.

        Raises:
            ConfigError: when it does not validate.
        """
        return self.run.config

    def table(self, name: str, site: Site | None = None) -> pd.DataFrame:
        """A table with exactly its documented columns, read once and kept; of one site, only its rows.

        Raises:
            SiteError: for a table that there is not, naming the nearest.
            RunError: when its stage has not run.
            TableError: when it is damaged, has other columns, or, asked for a site, names none.
        """
        kind = TABLES[known("table", name, tuple(TABLES))]
        key = name, "" if site is None else site.short
        if key not in self._tables:
            rows = load_rows(self.file(kind.stage, kind.file), site).to_pandas()
            checked = kind({str(column): rows[column].to_numpy() for column in rows.columns})
            self._tables[key] = _short(checked.df)
        return self._tables[key].copy(deep=False)

    def frame(self, name: str, site: Site | None = None) -> pd.DataFrame:
        """A table with the columns that its file has, read once and kept; changing it changes no other.

        Raises:
            SiteError: for a table that there is not, naming the nearest.
            RunError: when its stage has not run.
            TableError: when it is damaged or, asked for a site, names none.
        """
        kind = TABLES[known("table", name, tuple(TABLES))]
        key, whole = (name, "" if site is None else site.short), self._frames.get((name, ""))
        if key not in self._frames and whole is not None and site is not None and "site" in whole:
            return whole[whole["site"] == site.short].reset_index(drop=True)
        if key not in self._frames:
            rows = load_rows(self.file(kind.stage, kind.file), site)
            self._frames[key] = _short(rows.to_pandas())
        return self._frames[key].copy(deep=False)

    @property
    def patched(self) -> pd.DataFrame:
        """The table `patches` at the first of `patch.roles`, which the pages and selections show."""
        table = self.table("patches")
        return table[table["role"] == self.declared.patch_role]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The followed sites, in order."""
        return tuple(Site.parse(name) for name in self.facts["saes"])

    @property
    def roles(self) -> tuple[str, ...]:
        """The followed roles."""
        return self.declared.roles

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms, the tested one first."""
        return self.declared.arms

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`model` (fingerprint) and `saes` (site → id, d_sae, k); the run's card holds them as well."""
        try:
            return self.part("saes", "saes.json", _SAES)
        except IclensError as cause:
            try:
                card = check_form(self.card, _SAES, self.run.path / CARD)
            except IclensError:
                raise cause from None
            return {key: card.get(key) for key in ("model", "saes")}

    @cached_property
    def card(self) -> dict[str, Any]:
        """Versions, commit, hashes, dtype and seeds.

        Raises:
            RunError, TableError: when it is missing or damaged.
        """
        return check_form(load_json(self._there(CARD)), {}, self.run.path / CARD)

    @cached_property
    def bayes(self) -> dict[str, Any]:
        """Belief → fits of LO_0 + nλ for the model and the exact posterior, and their agreement."""
        return self.part("growth", "bayes.json", _FITS)

    @cached_property
    def facts_of_growth(self) -> dict[str, Any]:
        """What the growth stage says beside its tables: splits, manifest hash, calibration, accounts."""
        return self.part("growth", "growth.json", {"accounts": dict})

    @cached_property
    def decoder_norms(self) -> dict[str, Any]:
        """Site (short) → decoder norm ‖decode(e_f) − decode(0)‖ of every latent, [latent]."""
        sites = self.facts["saes"]
        arrays, _ = self._arrays("saes", "decoder_norms.safetensors", tuple(sites))
        strange = [site for site, fact in sites.items() if arrays[site].shape != (fact["d_sae"],)]
        if strange:
            path = self.path_of("saes", "decoder_norms.safetensors")
            raise _of_another_form(path, f"{strange[0]} has shape {arrays[strange[0]].shape}")
        return arrays

    def beliefs_of(self, arm: str) -> tuple[Any, Any, str]:
        """Log-odds of model and exact posterior [prompt example belief], and why the latter is NaN."""
        name = f"beliefs_{arm}.safetensors"
        arrays, about = self._arrays("track", name, ("model", "exact"), "reason")
        return arrays["model"], arrays["exact"], about

    def latents(self, arm: str, site: Site, role: str) -> LatentActs:
        """Active latents of an arm at a site and role."""
        return LatentActs.open(self.file("track", f"latents_{arm}_{site.short}_{role}.safetensors"))

    def prompts(self, arm: str) -> PromptSet:
        """The prompts of an arm."""
        return load_prompts(self.file("prompts"), arm)

    @property
    def grid_prompts(self) -> PromptSet:
        """The prompts of the task grid."""
        return load_prompts(self.file("identify"), "grid")

    @cached_property
    def grid(self) -> dict[str, Any]:
        """Which tasks of the grid are `discovery` and which `held_out`."""
        return self.part("identify", "grid.json", {"discovery": list, "held_out": list})

    @cached_property
    def task_means(self) -> tuple[dict[str, Any], list[str]]:
        """Mean activation [latent task] by `<site> <role>`, and the tasks' names."""
        return self._arrays("identify", "task_means.safetensors", (), "tasks")

    def json(self, stage: str, name: str) -> Any:
        """A JSON file of a stage.

        Raises:
            RunError, TableError: when it is missing or damaged.
        """
        return load_json(self.file(stage, name))

    def part(self, stage: str, name: str, form: Any) -> Any:
        """A JSON file of a stage, when it has a form (`store.check_form`).

        Raises:
            RunError, TableError: when it is missing or damaged, or of another form.
        """
        path = self.file(stage, name)
        return check_form(load_json(path), form, path)

    def _arrays(self, stage: str, name: str, named: tuple[str, ...], key: str = "") -> tuple[Any, Any]:
        """Arrays of a file that has those named, and the value at a key of its metadata."""
        path = self.file(stage, name)
        arrays, about = load_arrays(path)
        absent = [wanted for wanted in named if wanted not in arrays]
        absent += [key] if key and key not in about else []
        if absent:
            raise _of_another_form(path, f"lacks {absent[0]}")
        try:
            return arrays, json.loads(about[key]) if key else None
        except ValueError as cause:
            raise _of_another_form(path, f"{key} is not JSON") from cause

    def path_of(self, stage: str, name: str) -> Path:
        """Where a stage's output is, or would be."""
        return self.run.path / FOLDERS[stage] / name

    def file(self, stage: str, name: str = "") -> Path:
        """A stage's output, or its folder.

        Raises:
            RunError: when it is not there.
        """
        return self._there(f"{FOLDERS[stage]}/{name}".rstrip("/"))

    def _there(self, name: str) -> Path:
        file = self.run.path / name
        if not file.exists():
            raise RunError(
                f"{name} of run '{self.run.path}'",
                "not there",
                "Run `iclens study` on the run's config.yaml, which makes what is missing.",
            )
        return file


def having(frame: pd.DataFrame, table: str, *columns: str) -> pd.DataFrame:
    """The frame, when it has some columns.

    Raises:
        TableError: naming the first that it lacks.
    """
    absent = [name for name in columns if name not in frame]
    if absent:
        found = f"lacks {absent[0]}"
        raise TableError(
            f"table {table}",
            found,
            "Run `iclens study` on the run's config.yaml again with this version of iclens.",
        )
    return frame


def _of_another_form(path: Path, found: str) -> TableError:
    return TableError(f"{path}", f"unreadable: {found}", REDO_STAGE)


def _short(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its sites in their short form."""
    if "site" in frame:
        names = {name: Site.parse(str(name)).short for name in frame["site"].unique()}
        frame["site"] = frame["site"].map(names).astype(str)
    return frame
