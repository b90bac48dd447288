from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from iclens.core import ConfigError, IclensError, SiteError, TableError, TaskError
from iclens.study.config import GrowthSection, StudyConfig, demo_config, load_study_config, parse_study_config
from iclens.study.inputs import CHECKOUT, check_task
from iclens.study.patching import wrong_task
from iclens.study.pipeline import run_study

from .conftest import Small

SMALL = "study: s\nmodel: {folder: m}\nsaes: {folder: f}\nprompts: {task: 2x+3}\n"


def config(extra: str = "", **replaced: str) -> StudyConfig:
    text = SMALL
    for old, new in replaced.items():
        text = text.replace(old, new)
    return parse_study_config(text + extra, "s.yaml")


@pytest.mark.parametrize(
    ("extra", "key", "nearest"),
    [
        ("growht: {q: 0.1}\n", "'growht'", "growth"),
        ("growth: {qq: 0.1}\n", "'growth.qq'", "q"),
        ("patch: {n_control: 7}\n", "'patch.n_control'", "n_controls"),
        ("dashboard: {page_per_site: 7}\n", "'dashboard.page_per_site'", "pages_per_site"),
    ],
)
def test_an_unknown_key_is_named_with_the_nearest(extra: str, key: str, nearest: str) -> None:
    with pytest.raises(ConfigError) as caught:
        config(extra)
    line = str(caught.value)
    assert key in line
    assert "unknown" in line
    assert f"Nearest: {nearest}" in line
    assert "\n" not in line


@pytest.mark.parametrize(
    ("extra", "error", "words"),
    [
        ("growth: {q: 2}\n", ConfigError, "growth.q"),
        ("track: {roles: [lab]}\n", ConfigError, "'pre'"),
        ("track: {roles: [pre, lib]}\n", SiteError, "Nearest: lab"),
        ("track: {sites: [L1.mlp]}\n", SiteError, "mlp_out"),
        ("track: {sites: [one]}\n", SiteError, "not a site name"),
        ("grid: {tasks: [2x+, 3x]}\n", TaskError, "2x+"),
        ("growth: 3\n", ConfigError, "growth"),
        ("growth: {dose_examples: 15}\n", ConfigError, "Push after 14 at most"),
        ("track: {beliefs: [agianst:3x]}\n", TaskError, "Nearest: against:3x"),
        ("track: {beliefs: ['against:2x+3']}\n", TaskError, "the studied task itself"),
        ("track: {beliefs: ['y<9', 'y < 9']}\n", TaskError, "stands twice"),
    ],
)
def test_a_wrong_value_is_one_line(extra: str, error: type[Exception], words: str) -> None:
    with pytest.raises(error) as caught:
        config(extra)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_task_that_does_not_exist_names_the_nearest_form() -> None:
    with pytest.raises(TaskError, match="no such task"):
        config(**{"2x+3": "2y+3"})


def test_saes_have_exactly_one_source() -> None:
    with pytest.raises(ConfigError, match="exactly one"):
        config(**{"{folder: f}": "{folder: f, train: t.yaml}"})
    with pytest.raises(ConfigError, match="exactly one"):
        config(**{"{folder: f}": "{}"})


@pytest.mark.parametrize("text", ["", "[1, 2]", "study: [", "study: s\n"])
def test_text_that_is_no_study_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        parse_study_config(text, "s.yaml")


def test_the_resolved_config_reads_back_the_same() -> None:
    resolved = config()
    assert parse_study_config(resolved.yaml(), "again") == resolved
    growth = yaml.safe_load(resolved.yaml())["growth"]
    assert growth.keys() == GrowthSection.model_fields.keys() and growth["q"] == 0.05


def test_shipped_configs_validate() -> None:
    assert demo_config().prompts.task == "2x+3"
    assert load_study_config(CHECKOUT / "sae_configs" / "study_llama3_8b.yaml").model.dtype == "bfloat16"


def test_a_task_undefined_on_its_inputs_is_refused_before_anything_is_loaded() -> None:
    with pytest.raises(TaskError, match="x=41"):
        check_task(config(**{"2x+3": "40-x"}))
    with pytest.raises(TaskError, match="distinct inputs"):
        check_task(config(**{"{task: 2x+3}": "{task: 2x+3, numbers: [0, 9]}"}))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("arms: [T, S, D, W]", "arms: [T]", "at least two different arms"),
        ("arms: [T, S, D, W]", "arms: [T, Q]", "arm 'Q': unknown. Nearest: Q"),
        (
            "shortlist: 12",
            "controls: [R]",
            "growth.controls: arm R: prompts.arms has T, S, D, W.",
        ),
        ("task: 2x+3", "task: 2x+3, rival: 2x+3", "prompts.rival: '2x+3': the task itself"),
        ("shortlist: 12", "shortlst: 12", "Nearest: shortlist"),
    ],
)
def test_growth_that_cannot_be_tested_is_one_line(small: Small, old: str, new: str, said: str) -> None:
    with pytest.raises(IclensError) as caught:
        small.config((old, new))
    assert said in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 250


@pytest.mark.parametrize(
    ("patch", "said"),
    [
        ("chosen_for: exakt", "patch.chosen_for: belief 'exakt': not followed. Nearest: exact"),
        ("wrong_task: 2x+3", "task '2x+3' as a control: it is the studied task itself"),
        ("wrong_task: odd", "task 'odd' as a control: it has several answers at an x"),
        ("wrong_task: word:opposite", "its x are words, not numbers"),
        ("roles: [pre, lab], recipient: zero examples", "patch.roles: lab: run B shows no example"),
        ("roles: [lap]", "role 'lap': unknown. Nearest: lab"),
    ],
)
def test_patches_that_cannot_be_made_are_one_line_before_anything_runs(patch: str, said: str) -> None:
    with pytest.raises(IclensError) as caught:
        config(f"patch: {{{patch}}}")
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_sweep_on_a_belief_that_is_not_followed_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"sweep\.belief: belief 'duble': not followed\. Nearest: double"):
        config("sweep: {belief: duble}")
    with pytest.raises(TaskError, match=r"patch\.donor_examples: 60 and two queries"):
        check_task(config("patch: {donor_examples: 60}"))


@pytest.mark.parametrize(
    ("task", "rival", "found"),
    [
        ("2x+3", "", "3x+1"),
        ("word:size", "", None),
        ("2x+3", ", rival: odd", None),
        ("2x+3", ", rival: x+5", "x+5"),
    ],
)
def test_without_a_task_that_could_serve_there_is_no_control_task(
    task: str, rival: str, found: str | None
) -> None:
    studied = config(**{"{task: 2x+3}": f"{{task: {task}{rival}}}"})
    chosen = wrong_task(SimpleNamespace(config=studied))  # pyright: ignore[reportArgumentType]
    assert (None if chosen is None else chosen.name) == found


def test_too_few_prompts_are_refused_before_anything_runs(small: Small, tmp_path: Path) -> None:
    with pytest.raises(TableError, match="Give at least 34 prompts"):
        run_study(small.config(("n_prompts: 40", "n_prompts: 20")), tmp_path, lambda event: None)
    assert not list(tmp_path.rglob("*.yaml"))
