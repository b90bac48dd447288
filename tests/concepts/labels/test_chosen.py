import numpy as np

from iclens.concepts.labels import best_of, granted
from iclens.schemas import TransformTable


def table(rows):
    """(concept, latent, role, auroc, label) → a table; other columns are empty."""
    n = len(rows)
    empty = {"str": np.full(n, "", dtype=object), "float": np.full(n, np.nan), "int": np.zeros(n, dtype=int)}
    columns = {name: empty[column.kind] for name, column in TransformTable.COLUMNS.items()}
    named = dict(zip(("concept", "latent", "role", "auroc", "label"), zip(*rows, strict=True), strict=True))
    return TransformTable(columns | named)


ROWS = [
    ("odd", 3, "lab", 0.99, "candidate"),
    ("odd", 4, "lab", 0.92, "odd"),
    ("odd", 5, "pre", 0.95, "odd"),
    ("odd", 6, "lab", 0.80, ""),
    ("double", 3, "pre", 0.91, "candidate"),
]


def test_granted_come_first_then_candidates_each_by_auroc() -> None:
    found = best_of(table(ROWS), 3)
    assert [(row["concept"], row["latent"]) for row in found] == [
        ("odd", 5), ("odd", 4), ("odd", 3), ("double", 3),
    ]  # fmt: skip
    assert len(granted(table(ROWS))) == 2


def test_at_most_so_many_of_each_concept_and_of_one_role() -> None:
    assert [row["latent"] for row in best_of(table(ROWS), 1)] == [5, 3]
    assert [row["latent"] for row in best_of(table(ROWS), 1, role="lab")] == [4]
    assert best_of(table(ROWS).where(np.zeros(5, dtype=bool)), 4) == []
