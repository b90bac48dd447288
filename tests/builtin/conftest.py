"""A recipe of the built-in one's form, small enough to train in a test, and its three stages trained."""

from pathlib import Path

import pytest

from iclens.builtin.model import Recipe, Stage, load_recipe
from iclens.builtin.train import Trainer

STEPS = 4
EXAMPLES = 4
CONTEXTS = 6
_TOKENS = CONTEXTS * (2 + 6 * EXAMPLES)

MIXTURE = {
    "numbers": [0, 19],
    "noise": {0.0: 0.5, 0.6: 0.5},
    "families": {
        "affine": {"weight": 0.5, "tasks": ["{1..3}x+{0..3}"]},
        "parity": {"weight": 0.1, "tasks": ["odd", "even"]},
        "random": {"weight": 0.1, "tasks": ["random"]},
        "letter": {"weight": 0.2, "tasks": ["letter:next", "letter:index"]},
        "word": {"weight": 0.1, "tasks": ["word:opposite"]},
    },
}


@pytest.fixture(scope="session")
def recipe() -> Recipe:
    shipped = load_recipe()
    sizes = {"d_model": 32, "d_mlp": 48, "n_heads": 2, "n_key_value_heads": 1, "max_positions": 64}
    swaps = {
        "block": 1,
        "recipients_per_step": 4,
        "blank_recipients_per_step": 5,
        "excluded_donors": ["2x+3", "letter:next"],
    }
    return shipped.model_copy(
        update={
            "mixture": MIXTURE,
            "shape": shipped.shape.model_copy(update=sizes),
            "contexts_per_step": CONTEXTS,
            "examples": EXAMPLES,
            "optimiser": shipped.optimiser.model_copy(update={"warmup_steps": 1}),
            "interchange": shipped.interchange.model_copy(update=swaps),
            "trunk": Stage(blocks=2, tokens=STEPS * _TOKENS),
            "main": Stage(blocks=3, tokens=(STEPS - 1) * _TOKENS),
            "twin": Stage(blocks=3, tokens=(STEPS - 1) * _TOKENS),
            "finish": shipped.finish.model_copy(update={"tokens": _TOKENS}),
        }
    )


@pytest.fixture(scope="session")
def trained(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the trunk, main and twin of the small recipe."""
    out = tmp_path_factory.mktemp("trained")
    for stage in ("trunk", "main", "twin"):
        rows: list[dict] = []
        Trainer(recipe, stage, out).fit(rows.append, every=2)
        assert [row["step"] for row in rows] == [2, 4]
        (out / f"{stage}.jsonl").write_text(
            "".join(f'{{"stage": "{stage}", "step": {r["step"]}}}\n' for r in rows)
        )
    return out
