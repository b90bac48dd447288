"""What did a run find? Its tables by name, read from disk, without the model.

Every frame names sites in their short form, `L2.resid_post`.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from iclens.errors import RunError
from iclens.names import Site
from iclens.study.flow import FOLDERS
from iclens.study.runfolder import CARD, RunFolder
from iclens.study.store import load_arrays, load_json, load_prompts
from iclens.tables.activations import LatentActs
from iclens.tables.decomposition import CreationTable, OperandTable
from iclens.tables.dose import (
    ClosureTable,
    DoseCurveTable,
    DoseTable,
    InjectionTable,
    InteractionTable,
)
from iclens.tables.evidence import AccountTable, BayesTestTable, EvidenceTable, LatentAccountTable
from iclens.tables.flow import ConfidenceTable, TransportTable
from iclens.tables.frame import Table
from iclens.tables.growth import AgreementTable, BeliefTable, GrowthTable
from iclens.tables.heads import HeadScoreTable, LensTable
from iclens.tables.patches import GradedTable, HeadTable, LadderTable, PatchTable, SweepTable
from iclens.tables.probes import ProbeTable
from iclens.tables.prompts import PromptSet
from iclens.tables.quality import QualityTable
from iclens.tables.redundancy import DirectTable, RedundancyLadderTable, RedundancyTable
from iclens.tables.responses import ResponseFitTable, ResponseTable
from iclens.tables.sets import ControlTable, ScreenTable, SetTable
from iclens.tables.shapes import ConfirmTable, ShapeTable
from iclens.tables.specificity import SpecificityTable
from iclens.tables.stability import StabilityTable
from iclens.tables.transforms import MassTable, OperandMapTable, TransformTable, TuningCurveTable
from iclens.tables.tuning import SubspaceTable, TuningTable
from iclens.tables.verdicts import FalsifierTable, VerdictTable

PATCH_Q = 0.05
"""False discovery rate at which a patch effect is called."""
TABLES: dict[str, tuple[str, type[Table]]] = {
    "quality": ("saes", QualityTable),
    "detection": ("detect", GrowthTable),
    "shapes": ("shape", ShapeTable),
    "evidence": ("shape", EvidenceTable),
    "latent_tests": ("shape", BayesTestTable),
    "latent_accounts": ("shape", LatentAccountTable),
    "dose": ("dose", DoseTable),
    "dose_curves": ("dose", DoseCurveTable),
    "closure": ("dose", ClosureTable),
    "injections": ("dose", InjectionTable),
    "interactions": ("dose", InteractionTable),
    "growth": ("growth", VerdictTable),
    "confirmed": ("growth", ConfirmTable),
    "beliefs": ("growth", BeliefTable),
    "agreement": ("growth", AgreementTable),
    "tests": ("growth", BayesTestTable),
    "accounts": ("growth", AccountTable),
    "falsifiers": ("growth", FalsifierTable),
    "transforms": ("identify", TransformTable),
    "masses": ("identify", MassTable),
    "tunings": ("identify", TuningTable),
    "tuning_curves": ("identify", TuningCurveTable),
    "operand_maps": ("identify", OperandMapTable),
    "stability": ("identify", StabilityTable),
    "probes": ("transforms", ProbeTable),
    "subspaces": ("transforms", SubspaceTable),
    "specificity": ("transforms", SpecificityTable),
    "operands": ("transforms", OperandTable),
    "creation": ("transforms", CreationTable),
    "confidence": ("transforms", ConfidenceTable),
    "transport": ("transforms", TransportTable),
    "sweep": ("sweep", SweepTable),
    "graded": ("sweep", GradedTable),
    "lens": ("sweep", LensTable),
    "heads": ("sweep", HeadTable),
    "head_scores": ("sweep", HeadScoreTable),
    "direct": ("sweep", DirectTable),
    "redundancy": ("sweep", RedundancyTable),
    "redundancy_ladder": ("sweep", RedundancyLadderTable),
    "patches": ("patch", PatchTable),
    "ladder": ("patch", LadderTable),
    "sets": ("patch", SetTable),
    "patch_controls": ("patch", ControlTable),
    "screens": ("patch", ScreenTable),
    "responses": ("patch", ResponseTable),
    "response_fits": ("patch", ResponseFitTable),
}
"""Table name → the stage that writes `<name>.parquet`, and its type."""


class Results:
    """The outputs of a run.

    Args:
        run: the run folder.
    """

    def __init__(self, run: RunFolder) -> None:
        self.run, self.config = run, run.config

    def table(self, name: str) -> pd.DataFrame:
        """A table as a new frame.

        Raises:
            RunError: when its stage has not run.
        """
        stage, kind = TABLES[name]
        frame = kind.load(self.file(stage, f"{name}.parquet")).df
        if "site" in frame:
            frame["site"] = [Site.parse(str(site)).short for site in frame["site"]]
        return frame

    @property
    def patched(self) -> pd.DataFrame:
        """The table `patches` at the first of `patch.roles`, which the pages and selections show."""
        table = self.table("patches")
        return table[table["role"] == self.config.patch.roles[0]]

    @property
    def sites(self) -> tuple[Site, ...]:
        """The followed sites, in order."""
        return tuple(Site.parse(name) for name in self.facts["saes"])

    @property
    def roles(self) -> tuple[str, ...]:
        """The followed roles."""
        return tuple(self.config.track.roles)

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms, the tested one first."""
        return tuple(self.config.prompts.arms)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`model` (fingerprint) and `saes` (site → id, d_sae, k)."""
        return load_json(self.file("saes", "saes.json"))

    @cached_property
    def card(self) -> dict[str, Any]:
        """Versions, commit, hashes, dtype and seeds."""
        return json.loads(self._there(CARD).read_text(encoding="utf-8"))

    @cached_property
    def bayes(self) -> dict[str, Any]:
        """Belief → fits of LO_0 + nλ for the model and the exact posterior, and their agreement."""
        return load_json(self.file("growth", "bayes.json"))

    @cached_property
    def facts_of_growth(self) -> dict[str, Any]:
        """What the growth stage says beside its tables: splits, manifest hash, calibration, accounts."""
        return load_json(self.file("growth", "growth.json"))

    @cached_property
    def decoder_norms(self) -> dict[str, Any]:
        """Site (short) → length of every latent's decoder row, [latent]."""
        return load_arrays(self.file("saes", "decoder_norms.safetensors"))[0]

    def beliefs_of(self, arm: str) -> tuple[Any, Any, str]:
        """Log-odds of model and exact posterior [prompt example belief], and why the latter is NaN."""
        arrays, about = load_arrays(self.file("track", f"beliefs_{arm}.safetensors"))
        return arrays["model"], arrays["exact"], json.loads(about["reason"])

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
        return load_json(self.file("identify", "grid.json"))

    @cached_property
    def task_means(self) -> tuple[dict[str, Any], list[str]]:
        """Mean activation [latent task] by `<site> <role>`, and the tasks' names."""
        arrays, about = load_arrays(self.file("identify", "task_means.safetensors"))
        return arrays, json.loads(about["tasks"])

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
                f"{name} of run '{self.run.path}'", "not there", "Run `iclens study` on its config."
            )
        return file
