"""In what order does a study work, what does each stage read, and which key says that it is done?

    Task → PromptSet → Activations → LatentActs → Trajectories
         → GrowthTable → TransformTable → PatchTable → pages

    key = hash(config slice, code that the stage can reach, its libraries, hashes of what it reads)

The work of stage `growth` is `work` in `stages/growth.py`, imported when it is needed, so that a run that is
up to date loads no model. Its code is whatever that module imports, directly or not (`study.imports`).
Growth takes four stages, because each of them narrows what the next one looks at.
"""

from __future__ import annotations

from dataclasses import dataclass

from iclens.study import digests, imports
from iclens.study.bench import Bench


@dataclass(frozen=True)
class Stage:
    """One step of a study.

    Args:
        name: of the stage; its folder is `NN_name`.
        number: place in the flow, from 1.
        settings: config sections that decide its result.
        reads: earlier stages, or outside inputs (`model`, `SAE source`, `other SAEs`), that it reads.
    """

    name: str
    number: int
    settings: tuple[str, ...]
    reads: tuple[str, ...]

    @property
    def folder(self) -> str:
        """Folder name inside the run."""
        return f"{self.number:02d}_{self.name}"

    @property
    def module(self) -> str:
        """The module whose `work` is the stage."""
        return f"iclens.study.stages.{self.name}"


FLOW = (
    # the SAEs, trained on the model or loaded, and how good they are
    Stage("saes", 1, ("model", "saes", "track", "grid"), ("model", "SAE source")),
    # Task → PromptSet, one for each arm
    Stage("prompts", 2, ("prompts",), ("model",)),
    # PromptSet → Activations → LatentActs, and the beliefs beside them
    Stage("track", 3, ("model", "track"), ("model", "saes", "prompts")),
    # LatentActs of the arms, discovery prompts → DetectionTable and the short list
    Stage("detect", 4, ("prompts", "track", "growth"), ("saes", "prompts", "track")),
    # the short list's pre-activations in every arm, shape prompts → ShapeTable, EvidenceTable
    Stage("shape", 5, ("model", "prompts", "track", "growth"),
          ("model", "saes", "prompts", "track", "detect")),
    # the short list's effect on the beliefs when it is pushed → DoseTable, ClosureTable
    Stage("dose", 6, ("model", "prompts", "track", "growth"), ("model", "saes", "prompts", "track", "shape")),
    # confirm prompts, and everything above → a rung of the ladder per latent, falsifiers, accounts
    Stage("growth", 7, ("prompts", "track", "growth"),
          ("saes", "prompts", "track", "detect", "shape", "dose")),
    # LatentActs on a grid of tasks → TransformTable, and what it rests on
    Stage("identify", 8, ("model", "track", "grid", "transforms"), ("model", "saes", "other SAEs")),
    # what labelled latents do: probes, the causal matrix, what MLPs write where labels are read
    Stage("transforms", 9, ("model", "prompts", "track", "grid", "transforms"),
          ("model", "saes", "prompts", "identify")),
    # whole residuals from run A into run B → SweepTable
    Stage("sweep", 10, ("model", "prompts", "sweep"), ("model",)),
    # single latents from run A into run B → PatchTable
    Stage("patch", 11, ("model", "prompts", "track", "patch"), ("model", "saes")),
    # every table → pages
    Stage("dashboard", 12,
          ("study", "model", "prompts", "track", "growth", "grid", "transforms", "dashboard"),
          ("model", "saes", "prompts", "track", "detect", "shape", "dose", "growth", "identify", "transforms",
           "sweep", "patch")),
)  # fmt: skip
FOLDERS = {stage.name: stage.folder for stage in FLOW}
"""Stage → its folder in a run."""
NAMES = tuple(FOLDERS)


def inputs_of(stage: Stage, bench: Bench) -> dict[str, str]:
    """Everything that decides a stage's result, each as a hash."""
    settings = bench.config.model_dump(mode="json", include=set(stage.settings))
    inputs = {
        "config": digests.of_json({"stage": stage.name} | settings),
        "code": digests.of_json(imports.sources(stage.module)),
        "libraries": digests.of_json(imports.libraries(stage.module)),
    }
    return inputs | {name: bench.digest(name) for name in stage.reads}
