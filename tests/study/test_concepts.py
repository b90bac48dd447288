"""The grid is followed once and kept; what probes read is of the same rows as what they are asked."""

import numpy as np
import pytest

from iclens.concepts.language import concept
from iclens.core import Site
from iclens.saes.encode import encode_rows
from iclens.schemas import TransformTable
from iclens.study.concepts import best_place, follow_grid, representations, saved_grid, some_prompts
from iclens.study.config import demo_config
from iclens.study.grid import task_grid
from iclens.study.run import RunContext, find_run


@pytest.fixture(scope="module")
def run(first):
    """What the small study's stages worked with."""
    return RunContext(find_run(first.run), {})


def test_the_grid_that_identify_kept_is_the_grid_followed_again(run) -> None:
    kept, again = saved_grid(run), follow_grid(run, run.saes)
    np.testing.assert_array_equal(kept.label_log_prob, again.label_log_prob)
    for name in ("task", "x", "y", "answer", "tokens"):
        np.testing.assert_array_equal(getattr(kept.prompts, name), getattr(again.prompts, name))
    assert list(kept.latents) == list(again.latents)
    for place, acts in again.latents.items():
        for name in ("indptr", "index", "value", "error_sq", "total_sq"):
            np.testing.assert_array_equal(getattr(kept.latents[place], name), getattr(acts, name))
            assert getattr(acts, name).dtype.kind == getattr(kept.latents[place], name).dtype.kind


def test_every_representation_is_of_the_same_rows(run) -> None:
    """The activation encoded again gives the tracked latents; neurons make the output of the MLP."""
    place = (Site(1, "mlp_out"), "lab")
    rows, read = representations(run, saved_grid(run), concept("odd"), place)
    again = encode_rows(run.saes[place[0]], read["activation"]).latents.toarray()
    alike = np.isclose(read["latents"].toarray(), again, rtol=1e-4, atol=1e-4).all(axis=1)
    assert alike.mean() > 0.99  # in another batch, latents at the edge of the k largest may change places
    down = run.model.network.model.layers[1].mlp.down_proj.weight.detach().numpy()
    near = 1e-5 * np.abs(read["activation"]).max()
    np.testing.assert_allclose(read["neurons"] @ down.T, read["activation"], rtol=0, atol=near)
    assert len(rows) == len(again)
    assert (np.diff(rows.prompt) >= 0).all()


def test_some_prompts_are_spread_over_tasks_and_ascend() -> None:
    from iclens.concepts.language import rows_of
    from iclens.prompts.tasks import parse_task

    grid = task_grid(demo_config())
    names = [name for name in ("3x", "x+1", "2x") for _ in range(20)]
    x = np.tile(np.arange(1, 13).astype(str), (60, 1))
    y = np.array([[parse_task(name).answer(v) for v in row] for name, row in zip(names, x, strict=True)])
    rows = rows_of(np.array(names), x, y, grid.rules)
    found = some_prompts(rows, concept("odd"), 96)  # 8 used rows a prompt: 8 prompts of each task
    assert (np.diff(found) > 0).all()
    assert np.bincount(found // 20).tolist() == [8, 8, 8]


def test_the_best_place_is_chosen_on_discovery_tasks() -> None:
    n = 3
    empty = {"str": np.full(n, "", dtype=object), "float": np.full(n, np.nan), "int": np.zeros(n, dtype=int)}
    columns = {name: empty[column.kind] for name, column in TransformTable.COLUMNS.items()}
    table = TransformTable(columns | {
        "concept": ["odd", "odd", "double"], "site": [str(Site(i, "mlp_out")) for i in range(n)],
        "role": ["pre", "lab", "pre"], "discovery_auroc": [0.7, 0.9, 0.99], "auroc": [1.0, 0.5, 1.0],
    })  # fmt: skip
    assert best_place(table, concept("odd")) == (Site(1, "mlp_out"), "lab")
    assert best_place(table, concept("offset")) is None
