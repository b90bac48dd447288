"""In what order does a study work, and what does each stage read?

    Task → PromptSet → Activations → LatentActs → Trajectories
         → GrowthTable → TransformTable → PatchTable → pages

Stage by stage: which config sections decide it, what it reads, and which steps' code it runs. The work of
stage `growth` is `work` in `stages/growth.py`, imported when it is needed, so that a run that is up to date
loads no model. Growth takes four stages, because each of them narrows what the next one looks at.
"""

from __future__ import annotations

from iclens.study.stage import Stage

FLOW = (
    # the SAEs, trained on the model or loaded, and how good they are
    Stage("saes", 1, ("model", "saes", "track", "grid"), ("model", "SAE source"),
          ("models", "saes", "training", "tasks", "transforms/grid", "study/grid")),
    # Task → PromptSet, one for each arm
    Stage("prompts", 2, ("prompts",), ("model",), ("tasks",)),
    # PromptSet → Activations → LatentActs, and the beliefs beside them
    Stage("track", 3, ("model", "track"), ("model", "saes", "prompts"),
          ("models", "saes", "tracking", "tasks")),
    # LatentActs of the arms, discovery prompts → DetectionTable and the short list
    Stage("detect", 4, ("prompts", "track", "growth"), ("saes", "prompts", "track"),
          ("growth", "study/growth_inputs")),
    # the short list's pre-activations in every arm, shape prompts → ShapeTable, EvidenceTable
    Stage("shape", 5, ("model", "prompts", "track", "growth"),
          ("model", "saes", "prompts", "track", "detect"),
          ("models", "saes", "tracking", "tasks", "growth", "study/growth_inputs", "study/shown",
           "study/latent_accounts")),
    # the short list's effect on the beliefs when it is pushed → DoseTable, ClosureTable
    Stage("dose", 6, ("model", "prompts", "track", "growth"), ("model", "saes", "prompts", "track", "shape"),
          ("models", "saes", "tracking", "tasks", "growth", "patching", "study/growth_inputs")),
    # confirm prompts, and everything above → a rung of the ladder per latent, falsifiers, accounts
    Stage("growth", 7, ("prompts", "track", "growth"),
          ("saes", "prompts", "track", "detect", "shape", "dose"),
          ("growth", "tasks", "study/growth_inputs", "study/growth_figures")),
    # LatentActs on a grid of tasks → TransformTable, and what it rests on
    Stage("identify", 8, ("model", "track", "grid", "transforms"), ("model", "saes", "other SAEs"),
          ("models", "saes", "tracking", "tasks", "transforms", "study/grid")),
    # what labelled latents do: probes, the causal matrix, what MLPs write where labels are read
    Stage("transforms", 9, ("model", "prompts", "track", "grid", "transforms"),
          ("model", "saes", "prompts", "identify"),
          ("models", "saes", "tracking", "tasks", "transforms", "decomposition", "patching", "study/grid",
           "study/probing", "study/stages/identify", "study/stages/patch")),
    # whole residuals from run A into run B → SweepTable
    Stage("sweep", 10, ("model", "prompts", "sweep"), ("model",), ("models", "tasks", "patching")),
    # single latents from run A into run B → PatchTable
    Stage("patch", 11, ("model", "prompts", "track", "patch"), ("model", "saes"),
          ("models", "saes", "tasks", "patching")),
    # every table → pages
    Stage("dashboard", 12,
          ("study", "model", "prompts", "track", "growth", "grid", "transforms", "dashboard"),
          ("model", "saes", "prompts", "track", "detect", "shape", "dose", "growth", "identify", "transforms",
           "sweep", "patch"),
          ("dashboards", "models", "tracking", "saes", "patching", "growth", "transforms", "tasks",
           "study/results", "study/declared", "study/opening", "study/pages", "study/grid")),
)  # fmt: skip
FOLDERS = {stage.name: stage.folder for stage in FLOW}
"""Stage → its folder in a run."""
NAMES = tuple(FOLDERS)
