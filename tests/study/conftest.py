"""A study small enough to run in a test, on the built-in model."""

from pathlib import Path

import pytest

import iclens.study.inputs
from iclens.study.config import StudyConfig, parse_study_config
from iclens.study.pipeline import Event, Outcome, run_study

MODEL = iclens.study.inputs.CHECKOUT / "checkpoints" / "icl-tiny"
TRAINING = """
model: {{name: {model}}}
data: {{kind: mixture, examples: 6}}
saes: {{sites: [L1.mlp_out, L2.resid_post], d_sae: 192, k: 12}}
training:
  {{tokens: 12000, batch_tokens: 512, buffer_tokens: 4096, forward_contexts: 16, lr: 0.003, aux_k: 32}}
held_out: {{contexts: 8}}
"""
STUDY = """
study: small
model: {{folder: {model}}}
saes: {{train: {training}}}
prompts: {{task: 2x+3, arms: [T, S, D, W], n_prompts: 40, n_examples: 6}}
track: {{roles: [pre, lab], batch: 8, beliefs: ["against:word:size", "y>=50"]}}
growth: {{shortlist: 12, dose_latents: 2, dose_prompts: 6, n_controls: 8}}
grid: {{n_prompts: 2, n_examples: 6, tasks: [2x, 2x+1, 2x+3, x+1, x+2, 3x, 3x+1, word:parity]}}
transforms: {{shown: 1, layers: [1, 2], probe_rows: 200, n_controls: 4, donor_examples: 3, n_pairs: 6}}
sweep:
  {{donor_examples: 3, n_prompts: 4, roles: [pre, lab], ablations: [[zero, pre], [resample, all positions]],
    ladder_steps: 1, ladder_controls: 1, n_needed: 2}}
patch:
  {{donor_examples: 3, n_prompts: 8, n_tested: 2, n_controls: 4, sites: [L2.resid_post], roles: [pre, lab],
    largest_set: 4, n_random_sets: 3, response_donors: 1}}
dashboard: {{pages_per_site: 3, search_prompts: 8}}
"""


class Small:
    """The small study's folder, its configs, and what running it gave."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.runs = folder, folder / "runs"
        training = folder / "training.yaml"
        training.write_text(TRAINING.format(model=MODEL), encoding="utf-8")
        self.text = STUDY.format(model=MODEL, training=training)
        self.events: list[Event] = []

    def config(self, *changes: tuple[str, str]) -> StudyConfig:
        """The study with pieces of its YAML replaced."""
        text = self.text
        for old, new in changes:
            assert old in text
            text = text.replace(old, new)
        return parse_study_config(text, "small.yaml")

    def run(self, *changes: tuple[str, str]) -> Outcome:
        """Run the study; `events` holds everything that was reported."""
        self.events = []
        return run_study(self.config(*changes), self.runs, self.events.append)


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Small:
    """The small study, not yet run."""
    return Small(tmp_path_factory.mktemp("study"))


@pytest.fixture(scope="session")
def first(small: Small) -> Outcome:
    """The first run of the small study."""
    return small.run()
