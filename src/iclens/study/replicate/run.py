"""Does a model show what the seed post's notebooks recorded on llama-3-8b, and what did they leave out?

1. The model is loaded whole, and every recorded prompt is held to its token strings. 2. The recorded protocol
is run where the model has the recorded shape, one derived from the model itself where it has another. 3. Each
recorded observation becomes a check with a target, a tolerance and a verdict; a miss is a result. 4. Then
what was left out: the intact donor, many inputs, other kinds of ablation, random heads (`beyond`).
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iclens.errors import ConfigError, RunError, nearest
from iclens.models.load import LanguageModel, load_model, load_tokenizer
from iclens.models.shape import read_shape, refuse_longer
from iclens.study.bench import locate
from iclens.study.replicate.beyond import go_beyond
from iclens.study.replicate.observe import Report, observe
from iclens.study.replicate.passes import joined
from iclens.study.replicate.prompts import check_prompts, encoded
from iclens.study.replicate.protocol import INTACT, Protocol, derived_protocol
from iclens.study.replicate.recorded import Observations, Recorded, recorded
from iclens.study.replicate.tables import (
    CheckTable,
    DonorSweepTable,
    DonorTable,
    LensRows,
    MapRows,
    PatchedRows,
)
from iclens.study.replicate.text import check_lines, donor_lines
from iclens.study.replicate.verdicts import check_table
from iclens.tables.frame import Table

DTYPES = ("float32", "bfloat16")
PROTOCOLS = ("auto", "recorded", "derived")
PARTS = ("all", "recorded")
Tops = tuple[tuple[str, ...], ...]
"""Most probable tokens, [layer][rank]."""
_TEMPORARY = ".new"


@dataclass(frozen=True)
class Replication:
    """A model's observations beside the recorded ones.

    Args:
        model: its name.
        dtype: of its weights.
        protocol: how the protocol came about.
        checks: one row per check.
        lens, patched, maps: the rows behind them.
        donors, sweeps: what the notebooks left out.
        folder: where it was written; None when nowhere.
    """

    model: str
    dtype: str
    protocol: str
    checks: CheckTable
    lens: LensRows
    patched: PatchedRows
    maps: MapRows
    donors: DonorTable
    sweeps: DonorSweepTable
    folder: Path | None = None

    @property
    def tables(self) -> dict[str, Table]:
        """Name → table, as they are written."""
        names = ("checks", "lens", "patched", "maps", "donors", "sweeps")
        return {name: getattr(self, name) for name in names}

    def counts(self) -> dict[str, int]:
        """Verdict → number of checks."""
        names, counts = np.unique(self.checks["verdict"].astype(str), return_counts=True)
        return dict(zip(names.tolist(), counts.tolist(), strict=True))

    def as_json(self) -> dict[str, Any]:
        """Everything as plain records; an undefined figure is null."""
        about = {
            "model": self.model,
            "dtype": self.dtype,
            "protocol": self.protocol,
            "verdicts": self.counts(),
        }
        tables = {name: json.loads(table.df.to_json(orient="records")) for name, table in self.tables.items()}
        return about | tables | {"folder": None if self.folder is None else str(self.folder)}

    def as_text(self) -> str:
        """The checks, the donors, and where it was written."""
        verdicts = ", ".join(f"{count} {name}" for name, count in self.counts().items())
        lines = [f"{self.model}, {self.dtype}", f"protocol {self.protocol}", ""]
        lines += [*check_lines(self.checks), f"{len(self.checks)} checks: {verdicts}", ""]
        if not len(self.donors):
            lines.append("what the notebooks left out: not run (--parts recorded)")
            return "\n".join([*lines, *([] if self.folder is None else [f"written: {self.folder}"])])
        lines.append(
            "what the notebooks left out: first layer whose patch answers slope·x at the recorded x; for "
            f"slope·x and the task, the first layer that gives it for half of {self.donors['n_x'][0]} other "
            "x, and the greatest share"
        )
        lines += donor_lines(self.donors)
        intact = (self.patched["prompt"] == "sweep donor") & (self.patched["donor"] == INTACT)
        tops = [top.split(" ")[0] for top in self.patched["top"][intact]]
        lines.append(f"intact donor at the recorded x, top-1 by layer: {' '.join(tops)}")
        return "\n".join([*lines, *([] if self.folder is None else [f"written: {self.folder}"])])


def replicate_seed_post(
    model: str, *, protocol: str = "auto", parts: str = "all", dtype: str = "float32", device: str = "cpu",
    out: Path | None = None, seed: int = 0, report: Report = lambda _line: None,
) -> Replication:  # fmt: skip
    """Run every recorded observation on a model, and what the notebooks left out.

    Args:
        model: folder or hub name.
        protocol: one of `PROTOCOLS`; "auto" takes the recorded one for a model of the recorded shape.
        parts: "all", or "recorded" without what the notebooks left out, which takes far longer.
        dtype: of the weights, float32 or bfloat16.
        device: torch device.
        out: folder to make with the tables as parquet and everything as JSON.
        seed: of random heads, of prompts without the task, and of the bootstrap.
        report: told what is under way.

    Raises:
        ConfigError: for an unknown protocol, part or dtype.
        RunError: when `out` exists.
        ModelError: when the model cannot be loaded, or lacks what the recorded protocol asks for.
        TokenizerError: when a prompt has other tokens than recorded.
    """
    for name, asked, known in (
        ("protocol", protocol, PROTOCOLS), ("parts", parts, PARTS), ("dtype", dtype, DTYPES),
    ):  # fmt: skip
        if asked not in known:
            raise ConfigError(f"{name} '{asked}'", "unknown", nearest(asked, known) + ".")
    if out is not None and out.exists():
        raise RunError(f"output '{out}'", "it exists", "Name a new folder, or remove this one.")
    longest = max(recorded().prompts.values(), key=lambda prompt: len(prompt.tokens))
    refuse_longer(
        1 + len(longest.tokens), read_shape(locate(model)).n_positions, f"'{model}'",
        f"recorded prompt '{longest.name}'", "Choose a model with more positions.",
    )  # fmt: skip
    report(f"loading {model}")
    check_prompts(load_tokenizer(locate(model)), recorded())
    loaded = load_model(locate(model), dtype=getattr(torch, dtype), device=device)
    found = replicated(loaded, protocol, dtype, seed, report, parts)
    return found if out is None else written(replace(found, model=model), out)


def replicated(
    loaded: LanguageModel, protocol: str, dtype: str, seed: int, report: Report, parts: str = "all"
) -> Replication:
    """The same for a loaded model; `dtype` is that of its weights."""
    source = recorded()
    check_prompts(loaded.tokenizer, source)
    alike = (loaded.n_blocks, loaded.n_heads) == (source.blocks, source.heads)
    chosen = source.protocol
    if protocol == "derived" or (protocol == "auto" and not alike):
        report("choosing layers and heads")
        donor = encoded(loaded.tokenizer, source.prompts["sweep donor"])
        chosen = derived_protocol(loaded, source.protocol, source.blocks, donor)
    chosen.check(loaded)
    targets = source.targets if chosen is source.protocol and alike else None
    ours = observe(loaded, source, chosen, report)
    donors, sweeps, intact = DonorTable.concat([]), DonorSweepTable.concat([]), ()
    if parts == "all":
        donors, sweeps, intact = go_beyond(loaded, source, chosen, report, seed)
    return Replication(
        loaded.name, dtype, chosen.how, check_table(ours, source, chosen, targets, dtype),
        _lens_rows(ours, targets), _patched_rows(ours, targets, source, chosen, intact),
        _map_rows(ours, targets, chosen), donors, sweeps,
    )  # fmt: skip


def written(found: Replication, out: Path) -> Replication:
    """Write the tables and the JSON to a new folder, whole or not at all."""
    fresh = out.with_name(f"{out.name}{_TEMPORARY}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir(parents=True)
    try:
        done = replace(found, folder=out)
        for name, table in found.tables.items():
            table.save(fresh / f"{name}.parquet")
        text = json.dumps(done.as_json(), indent=1, ensure_ascii=False) + "\n"
        (fresh / "replication.json").write_text(text, encoding="utf-8")
        for path in fresh.iterdir():
            with path.open("rb") as stream:
                os.fsync(stream.fileno())
        fresh.rename(out)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
    return done


def _lens_rows(ours: Observations, targets: Observations | None) -> LensRows:
    mine, n = ours.lens, len(ours.lens.top)
    known = None if targets is None else targets.lens
    return LensRows({
        "layer": range(n), "top": list(map(joined, mine.top)),
        "top_target": [""] * n if known is None else list(map(joined, known.top)),
        "prob": [row[0] for row in mine.prob], "numbers": list(map(joined, mine.numbers)),
        "numbers_target": [""] * n if known is None else list(map(joined, known.numbers)),
        "answer_share": mine.answer_share,
        "answer_share_target": [np.nan] * n if known is None else known.answer_share,
    })  # fmt: skip


def _patched_rows(
    ours: Observations, targets: Observations | None, source: Recorded, protocol: Protocol, intact: Tops
) -> PatchedRows:
    """Rows of every patch; `intact` is the sweep that has no target, from the donor without an ablation."""
    columns: dict[str, list[Any]] = {name: [] for name in PatchedRows.COLUMNS}

    def add(prompt: str, donor: str, x: int, layer: int, top: Sequence[str], target: Sequence[str]) -> None:
        values = (prompt, donor, x, layer, joined(top), joined(target))
        for name, value in zip(columns, values, strict=True):
            columns[name].append(value)

    for i, x in enumerate(protocol.x):
        target = () if targets is None else targets.x[i]
        add("x donor", INTACT, x, protocol.patch_layer, ours.x[i], target)
    x = source.prompts["sweep recipient"].x or 0
    known = {} if targets is None else targets.sweeps
    for name, rows in {INTACT: intact, **ours.sweeps}.items():
        for layer, top in enumerate(rows):
            add("sweep donor", name, x, layer, top, known[name][layer] if name in known else ())
    return PatchedRows(columns)


def _map_rows(ours: Observations, targets: Observations | None, protocol: Protocol) -> MapRows:
    parts = []
    for one in protocol.maps:
        scores = ours.maps[one.name]
        intact = [
            ours.maps[other.name]
            for other in protocol.maps
            if (other.ablation, other.reference_layer, other.prompt)
            == (INTACT, one.reference_layer, one.prompt)
        ]
        layer, head = np.indices(scores.shape)
        blank = np.full(scores.shape, np.nan)
        parts.append(MapRows({
            "map": [one.name] * scores.size, "layer": layer.ravel(), "head": head.ravel(),
            "score": scores.ravel(),
            "score_target": (blank if targets is None else targets.maps[one.name]).ravel(),
            "change": (scores - intact[0] if intact else blank).ravel(),
        }))  # fmt: skip
    return MapRows.concat(parts)
