"""A whole study of words under a tokenizer that gives every letter a token, so that prompts hold padding."""

import json
from pathlib import Path

import numpy as np
import pytest

import iclens
from iclens.core import PADDING
from iclens.results.read import Results
from iclens.study.config import parse_study_config
from iclens.study.pipeline import run_study

from .conftest import STUDY, TRAINING

YOUNG = dict(zip(
    ("cow", "sheep", "pig", "hen", "cat", "dog", "goose", "horse", "frog", "bear", "duck", "deer", "swan",
     "owl"),
    ("calf", "lamb", "piglet", "baby chick", "kitten", "young", "gosling", "foal", "tadpole", "whelp",
     "duckling", "rising fawn", "snow cygnet", "night owlet"),
    strict=True,
))  # fmt: skip
"""Animal → its young, each beginning with another letter, for one read tells them apart."""


@pytest.fixture(scope="module")
def finished(digit_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of a small study of these pairs, run to the end."""
    folder = tmp_path_factory.mktemp("words")
    others = dict(zip(YOUNG, [*list(YOUNG.values())[5:], *list(YOUNG.values())[:5]], strict=True))
    for name, pairs in (("young", YOUNG), ("other", others)):
        lines = [json.dumps({"x": x, "y": y}) + "\n" for x, y in pairs.items()]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    own, other = (f"pairs:{folder}/{name}.jsonl" for name in ("young", "other"))
    (folder / "prose.jsonl").write_text(json.dumps({"text": "Animals and their young. " * 400}) + "\n")
    mixed = f"prompts: [{{task: '{own}', weight: 0.4}}, {{task: '{own}', arm: S, weight: 0.3}}]"
    training = TRAINING.format(model=digit_folder).replace(
        "data: {kind: mixture, examples: 6}",
        f"data: {{kind: text, dataset: {folder}/prose.jsonl, context_tokens: 48, examples: 6, {mixed}}}",
    )
    (folder / "training.yaml").write_text(training)
    study = STUDY.format(model=digit_folder, training=folder / "training.yaml")
    for old, new in (
        ("task: 2x+3, arms: [T, S, D, W]", f"task: '{own}', rival: '{other}', arms: [T, S, D, W, N3]"),
        ('"against:word:size", "y>=50"', f'"against:{other}"'),
        ("[2x, 2x+1, 2x+3, x+1, x+2, 3x, 3x+1, word:parity]", f"['{own}', '{other}']"),
        ("study: small", "study: words"),
    ):
        assert old in study
        study = study.replace(old, new)
    run_study(parse_study_config(study, "words.yaml"), folder / "runs", lambda _event: None)
    return folder / "runs"


def test_the_study_runs_to_its_pages(finished: Path) -> None:
    run = iclens.open(finished / "words")
    (folder,) = (finished / "words").glob("2*")
    prompts = Results(folder).prompts("T")
    assert (prompts.tokens == PADDING).any() and prompts.layout.y > 1
    assert set(prompts.y.ravel()) <= set(YOUNG.values())
    own = run.beliefs.query("belief == 'exact'")
    assert len(own) and np.isfinite(own["mean"]).all()
    assert run.beliefs.query("belief == 'numeric'")["mean"].isna().all(), "no number is one token"
    assert set(run.operands["reason"]) == {"no example of the grid has numbers for x and y"}
    for table in (run.sweep, run.heads, run.redundancy, run.patches, run.sets, run.detection):
        assert len(table)
    assert list(folder.rglob("index.html"))


def test_what_is_before_the_examples_brings_no_task(finished: Path) -> None:
    run = iclens.open(finished / "words")
    rows = run.sweep.query("metric == 'effect on exact' and recipient == 'zero examples'")
    first, last = rows.loc[rows["layer"].idxmin()], rows.loc[rows["layer"].idxmax()]
    assert abs(first["value"]) < 1e-6, "the last token before y is the same in both runs"
    assert abs(last["value"]) > 1e-3
