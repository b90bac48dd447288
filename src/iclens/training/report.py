"""The page that shows how training went, from the files of a set."""

from __future__ import annotations

import json
from pathlib import Path

from iclens.dashboards.training import training_page
from iclens.saes.load import CARD_FILE
from iclens.training.config import parse_train_config
from iclens.training.metrics import PACE, read_metrics

REPORT = "report.html"


def write_report(folder: Path, page: Path) -> None:
    """Write the page of a set, from its card and metrics; it opens from disk, alone.

    Not part of training: a change of how pages look must not ask for the SAEs to be trained again.

    Args:
        folder: of the set.
        page: file to write, `report.html` in the set's folder for `iclens train`.
    """
    card = json.loads((folder / CARD_FILE).read_text(encoding="utf-8"))
    members = parse_train_config(card["config"]).saes.members
    metrics = {spec.name: read_metrics(folder / spec.name / "metrics.jsonl") for spec in members}
    page.write_text(
        training_page(card, metrics, read_metrics(folder / f"{PACE}.jsonl")) + "\n", encoding="utf-8"
    )
