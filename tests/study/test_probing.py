"""What probes read is of the same rows as what they are asked."""

import numpy as np
import pytest

from iclens.concepts.language import concept
from iclens.core import Site
from iclens.saes.encode import encode_rows
from iclens.schemas import TransformTable
from iclens.study import probing
from iclens.study.bench import Bench
from iclens.study.config import demo_config
from iclens.study.flow import FOLDERS
from iclens.study.grid import task_grid
from iclens.study.stages.identify import tracked_grid


@pytest.fixture(scope="module")
def bench(first):
    """The small study's bench after its run."""
    from iclens.study.runfolder import find_run

    return Bench(find_run(first.run), FOLDERS, {}, lambda found: None)


def test_every_representation_is_of_the_same_rows(bench, monkeypatch) -> None:
    """The activation encoded again gives the tracked latents; neurons make the output of the MLP."""
    seen = {}

    def caught(read, one, rows, **kw):
        seen.update(read, rows=rows)
        raise StopIteration

    monkeypatch.setattr(probing, "probe", caught)
    tracked, grid = tracked_grid(bench), task_grid(bench.config)
    place = (Site(1, "mlp_out"), "lab")
    with pytest.raises(StopIteration):
        probing._probed(bench, tracked, grid, concept("odd"), place)
    sae = bench.saes[place[0]]
    again = encode_rows(sae, seen["activation"]).latents.toarray()
    alike = np.isclose(seen["latents"].toarray(), again, rtol=1e-4, atol=1e-4).all(axis=1)
    assert alike.mean() > 0.99  # in another batch, latents at the edge of the k largest may change places
    down = bench.model.network.model.layers[1].mlp.down_proj.weight.detach().numpy()
    near = 1e-5 * np.abs(seen["activation"]).max()
    np.testing.assert_allclose(seen["neurons"] @ down.T, seen["activation"], rtol=0, atol=near)
    assert len(seen["rows"]) == len(again)
    assert (np.diff(seen["rows"].prompt) >= 0).all()


def test_some_prompts_are_spread_over_tasks_and_ascend() -> None:
    from iclens.concepts.language import rows_of
    from iclens.prompts.tasks import parse_task

    grid = task_grid(demo_config())
    names = [name for name in ("3x", "x+1", "2x") for _ in range(20)]
    x = np.tile(np.arange(1, 13).astype(str), (60, 1))
    y = np.array([[parse_task(name).answer(v) for v in row] for name, row in zip(names, x, strict=True)])
    rows = rows_of(np.array(names), x, y, grid.rules)
    found = probing._some_prompts(rows, concept("odd"), 96)  # 8 used rows a prompt: 8 prompts of each task
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
    assert probing.best_place(table, concept("odd")) == (Site(1, "mlp_out"), "lab")
    assert probing.best_place(table, concept("offset")) is None
