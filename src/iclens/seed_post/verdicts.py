"""The verdict on each of the post's claims, and the run that gives it."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iclens.core import ConfigError, RunError, nearest
from iclens.model.load import LanguageModel, load_model, load_tokenizer
from iclens.model.shape import read_shape, refuse_longer
from iclens.patching.heads import heads_by_layer
from iclens.seed_post.observe import Report, go_beyond, joined, observe
from iclens.seed_post.protocol import (
    INTACT,
    CheckTable,
    DonorSweepTable,
    DonorTable,
    Lens,
    LensRows,
    MapRows,
    Observations,
    PatchedRows,
    Protocol,
    Recorded,
    brightest,
    check_prompts,
    derived_protocol,
    encoded,
    recorded,
)
from iclens.study.inputs import locate
from iclens.table import Floats, Table

AGREES, DIFFERS, NO_TARGET = "agrees", "differs", "no target"
LENS, PATCH, ABLATION, MAPS, ATTENTION = "logit lens", "patch over x", "ablation", "score map", "attention"


@dataclass(frozen=True)
class Check:
    """One row of a CheckTable; `held` says whether it agrees, None without a target."""

    part: str
    check: str
    target: str
    ours: str
    tolerance: str
    held: bool | None


def check_table(
    ours: Observations, source: Recorded, protocol: Protocol, targets: Observations | None, dtype: str
) -> CheckTable:
    """Every check of what a model shows.

    Args:
        ours: what it shows.
        source: gives the task and the tolerances.
        protocol: what was run.
        targets: what was recorded; None when the protocol was derived.
        dtype: of the model's weights, "float32" or "bfloat16": attention has a tolerance for each.
    """
    limits = source.tolerances
    rows = [
        *_lens(ours.lens, None if targets is None else targets.lens, limits),
        *_patch(ours.x, None if targets is None else targets.x, source, protocol),
        *_ablation(ours, targets, source, protocol),
        *_maps(ours, targets, protocol, limits),
        _attention(ours.attention, None if targets is None else targets.attention, limits, dtype),
    ]
    columns = {name: [getattr(row, name) for row in rows] for name in CheckTable.COLUMNS if name != "verdict"}
    verdicts = [NO_TARGET if row.held is None else AGREES if row.held else DIFFERS for row in rows]
    return CheckTable(columns | {"verdict": verdicts})


def _row(
    part: str, check: str, target: object, ours: object, tolerance: str, held: bool | np.bool_ | None
) -> Check:
    """A check; None as target means that there is none."""
    known = target is not None and held is not None
    return Check(
        part, check, _text(target) if known else "", _text(ours), tolerance, bool(held) if known else None
    )


def _text(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.5g}"
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _first(rows: Sequence[bool]) -> int | str:
    """Index of the first row that holds, or "none"."""
    return next((i for i, row in enumerate(rows) if row), "none")


def _lens(ours: Lens, target: Lens | None, limits: dict[str, Any]) -> Iterator[Check]:
    if target is None:
        yield from _lens_without(ours)
        return
    start, stop = limits["lens_top1_layers"]
    tie = limits["lens_near_tie"]
    layers = range(start, stop + 1)
    other = [layer for layer in layers if ours.top[layer][0] != target.top[layer][0]]
    swapped = other == [tie] and ours.top[tie][:2] == target.top[tie][1::-1]
    known, found = (tuple(lens.top[layer][0] for layer in layers) for lens in (target, ours))
    text = f"equal; first two may swap at {tie}"
    agrees = not other or swapped
    yield _row(LENS, f"full-vocabulary top-1, blocks {start}-{stop}", known, found, text, agrees)

    start, stop = limits["lens_numbers_layers"]
    layers = range(start, stop + 1)
    same = [set(ours.numbers[layer]) == set(target.numbers[layer]) for layer in layers]
    yield _row(
        LENS,
        f"top-5 numbers as sets, blocks {start}-{stop}: equal sets",
        len(layers),
        sum(same),
        "all",
        all(same),
    )
    last = dict(zip(ours.top[-1], ours.prob[-1], strict=True))
    for token, prob in list(zip(target.top[-1], target.prob[-1], strict=True))[: limits["lens_probs"]]:
        found = last.get(token, f"below the first {len(last)}")
        near = isinstance(found, float) and abs(found - prob) <= limits["lens_prob"] * prob
        yield _row(LENS, f"last block, P({token})", prob, found, f"{limits['lens_prob']:.0%}", near)
    yield from _shares(ours, target, limits)
    for name, read in _TRANSITIONS.items():
        yield _row(LENS, name, read(target), read(ours), "equal", read(ours) == read(target))


def _shares(ours: Lens, target: Lens, limits: dict[str, Any]) -> Iterator[Check]:
    split = limits["answer_share_from"]
    apart = np.abs(np.array(ours.answer_share) - np.array(target.answer_share))
    early = float(apart[:split].max())
    absolute = limits["answer_share_absolute"]
    yield _row(
        LENS, f"P(answer | numbers), blocks 0-{split - 1}: greatest distance", 0.0, early, f"{absolute:g}",
        early <= absolute,
    )  # fmt: skip
    late = float((apart[split:] / np.array(target.answer_share)[split:]).max())
    relative = limits["answer_share_relative"]
    name = f"P(answer | numbers), blocks {split} on: greatest relative distance"
    yield _row(LENS, name, 0.0, late, f"{relative:.0%}", late <= relative)


_TRANSITIONS = {
    "first block with a number in the top 20": lambda lens: _first([count > 0 for count in lens.digits]),
    "first block whose top-1 is a number": lambda lens: _first([row[0].isdigit() for row in lens.top]),
    "first block whose top 5 are numbers": lambda lens: _first(
        [all(t.isdigit() for t in row) for row in lens.top]
    ),
}
"""Name → where in the lens something happens first."""


def _lens_without(ours: Lens) -> Iterator[Check]:
    yield _row(LENS, "full-vocabulary top-1 by block", None, tuple(row[0] for row in ours.top), "", None)
    yield _row(LENS, "last block, top 5", None, ours.top[-1], "", None)
    yield _row(LENS, "P(answer | numbers), last block", None, float(ours.answer_share[-1]), "", None)
    for name, read in _TRANSITIONS.items():
        yield _row(LENS, name, None, read(ours), "", None)


def _patch(
    ours: tuple[tuple[str, ...], ...], target: tuple[tuple[str, ...], ...] | None, source: Recorded,
    protocol: Protocol,
) -> Iterator[Check]:  # fmt: skip
    limits = source.tolerances
    n, where = len(protocol.x), f"resid_pre {protocol.patch_layer}"
    if target is not None:
        same = sum(mine[0] == row[0] for mine, row in zip(ours, target, strict=True))
        least = limits["x_top1"]
        yield _row(
            PATCH, f"{where}: top-1 as recorded, of {n} x", n, same, f"at least {least}", same >= least
        )

    def count(rows: tuple[tuple[str, ...], ...], ranks: int, offset: int) -> int:
        wanted = [str(source.slope * x + offset) for x in protocol.x]
        return sum(answer in row[:ranks] for answer, row in zip(wanted, rows, strict=True))

    double, exact = f"{source.slope}x", f"{source.slope}x+{source.offset}"
    within, most = limits["x_double"], limits["x_exact"]
    for name, ranks, offset in ((f"top-1 is {double}", 1, 0), (f"{double} in the top 5", 5, 0),
                                (f"{exact} in the top 5", 5, source.offset)):  # fmt: skip
        n_right = count(ours, ranks, offset)
        wanted = None if target is None else count(target, ranks, offset)
        near = None if wanted is None else abs(n_right - wanted) <= within
        yield _row(
            PATCH, f"{where}: {name}, of {n} x", wanted, n_right, f"± {within}" if target else "", near
        )
    n_right = count(ours, 1, source.offset)
    wanted = None if target is None else count(target, 1, source.offset)
    few = None if wanted is None else n_right <= most
    yield _row(
        PATCH,
        f"{where}: top-1 is {exact}, of {n} x",
        wanted,
        n_right,
        f"at most {most}" if target else "",
        few,
    )


def _ablation(
    ours: Observations, targets: Observations | None, source: Recorded, protocol: Protocol
) -> Iterator[Check]:
    double = str(source.slope * (source.prompts["sweep recipient"].x or 0))
    for name in protocol.ablations:
        swept = ours.sweeps[name]
        known = None if targets is None else targets.sweeps[name]
        wanted = None if targets is None else targets.donors[name]
        text = "equal, in order" if targets else ""
        yield _row(ABLATION, f"{name}: the donor's own top 5", wanted, ours.donors[name], text,
                   None if wanted is None else wanted == ours.donors[name])  # fmt: skip
        first = _first([row[0] == double for row in swept])
        before = None if known is None else _first([row[0] == double for row in known])
        yield _row(
            ABLATION, f"{name}: first layer whose patch gives {double}", before, first,
            "equal" if known else "", None if known is None else first == before,
        )  # fmt: skip
        if known is None:
            yield _row(ABLATION, f"{name}: top-1 by layer", None, tuple(row[0] for row in swept), "", None)
            continue
        same = sum(mine[0] == row[0] for mine, row in zip(swept, known, strict=True))
        least = source.tolerances["sweep_top1"]
        yield _row(
            ABLATION, f"{name}: top-1 as recorded, of {len(known)} layers", len(known), same,
            f"at least {least}", same >= least,
        )  # fmt: skip


def _maps(
    ours: Observations, targets: Observations | None, protocol: Protocol, limits: dict[str, Any]
) -> Iterator[Check]:
    top, least = limits["map_top"], limits["map_r"]
    for one in protocol.maps:
        found = ours.maps[one.name]
        heads = brightest(found, top)
        if targets is None:
            yield _row(MAPS, f"{one.name}: brightest heads", None, _named(heads), "", None)
            continue
        known = targets.maps[one.name]
        r = pearson(found, known)
        yield _row(MAPS, f"{one.name}: Pearson r", 1.0, r, f"at least {least}", r >= least)
        wanted = brightest(known, top)
        yield _row(
            MAPS, f"{one.name}: brightest heads", _named(wanted), _named(heads), "the same heads",
            set(heads) == set(wanted),
        )  # fmt: skip
        ablated = heads_by_layer(protocol.ablated(one.ablation), found.shape[1])
        off = [(layer, int(head)) for layer in ablated if layer < len(found) for head in ablated[layer]]
        if off:
            zeros, dark = (sum(float(scores[pair]) == 0 for pair in off) for scores in (known, found))
            yield _row(MAPS, f"{one.name}: ablated heads with score 0", zeros, dark, "equal", zeros == dark)


def pearson(a: Floats, b: Floats) -> float:
    """Correlation of two maps' entries; 0 where one of them is constant."""
    x, y = (np.asarray(part, dtype=float).ravel() for part in (a, b))
    x, y = x - x.mean(), y - y.mean()
    lengths = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / lengths if lengths > 0 else 0.0


def _named(heads: Sequence[tuple[int, int]]) -> tuple[str, ...]:
    return tuple(f"L{layer}H{head}" for layer, head in heads)


def _attention(ours: Floats, target: Floats | None, limits: dict[str, Any], dtype: str) -> Check:
    if target is None:
        own = f"{ours.shape[0]} heads, BOS takes {float(ours[:, -1, 0].mean()):.3f} of the last position"
        return _row(ATTENTION, "mean over heads", None, own, "", None)
    most = limits["attention"][dtype]
    apart = float(np.abs(ours - target).max())
    return _row(
        ATTENTION,
        f"all {ours.shape[0]} heads: greatest distance",
        0.0,
        apart,
        f"{most:g} ({dtype})",
        apart <= most,
    )


_WIDEST = 44
"""Characters of a value before it goes on in the next line."""


def check_lines(table: CheckTable) -> Iterator[str]:
    """The checks, one line each; a long value takes several."""
    columns = ("part", "check", "target", "ours", "tolerance", "verdict")
    rows = [{name: str(table[name][i]) for name in columns} for i in range(len(table))]
    yield from _aligned(columns, rows)


def donor_lines(table: DonorTable) -> Iterator[str]:
    """The donors, one line each; the random draws of one ablation together, as ranges."""
    frame = table.df
    random = frame["draw"] >= 0
    rows = [_donor(frame[i : i + 1]) for i in frame.index[~random]]
    rows += [_donor(some) for _, some in frame[random].groupby(["donor", "heads"], sort=False)]
    yield from _aligned(tuple(rows[0]), rows)
    controlled = {INTACT, *frame["donor"][random]}
    if bare := [name for name in dict.fromkeys(frame["donor"]) if name not in controlled]:
        yield f"no random control for {', '.join(bare)}: not drawn, or too few other heads or layers"


def _donor(some: Any) -> dict[str, str]:
    """One line of one donor, or of several draws."""
    first = some.iloc[0]
    draws = f" ({len(some)} draws)" if first["draw"] >= 0 else ""
    how = "" if first["kind"] == "none" else f"{first['kind']}, {first['place']}"
    return {
        "ablated": "nothing" if first["donor"] == INTACT else first["donor"],
        "heads": f"{first['heads']}{draws}", "how": how,
        "own top-1": "/".join(dict.fromkeys(top.split(" ")[0] for top in some["top"])),
        "P(answer)": _span(some["p_answer"], 3), "first layer": _layers(some["first_layer"]),
        "slope·x: half": _layers(some["slope_half"]),
        "most": f"{_span(some['slope_share'], 2)} at {_layers(some['slope_best'])}",
        "task: half": _layers(some["task_half"]),
        "most ": f"{_span(some['task_share'], 2)} at {_layers(some['task_best'])}",
    }  # fmt: skip


def _layers(layers: Any) -> str:
    """The layers that occur, in order."""
    return "/".join("none" if layer < 0 else str(layer) for layer in sorted(set(layers)))


def _span(values: Any, digits: int) -> str:
    """One value, or the least and the greatest of several."""
    low, high = f"{values.min():.{digits}f}", f"{values.max():.{digits}f}"
    return low if low == high else f"{low}-{high}"


def _aligned(names: Sequence[str], rows: Sequence[dict[str, str]]) -> Iterator[str]:
    cells = [[_wrapped(row[name]) for name in names] for row in [dict(zip(names, names, strict=True)), *rows]]
    widths = [max(len(line) for row in cells for line in row[i]) for i in range(len(names))]
    for row in cells:
        for k in range(max(map(len, row))):
            held = (part[k] if k < len(part) else "" for part in row)
            yield "  ".join(f"{line:<{width}}" for line, width in zip(held, widths, strict=True)).rstrip()


def _wrapped(text: str) -> list[str]:
    """A text in lines of at most `_WIDEST` characters, broken at spaces."""
    lines = [""]
    for word in text.split(" "):
        longer = f"{lines[-1]} {word}" if lines[-1] else word
        if len(longer) > _WIDEST and lines[-1]:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


DTYPES = ("float32", "bfloat16")
PROTOCOLS = ("auto", "recorded", "derived")
PARTS = ("all", "recorded")
Tops = tuple[tuple[str, ...], ...]
"""Most probable tokens, [layer][rank]."""
_TEMPORARY = ".new"


@dataclass(frozen=True)
class Replication:
    """A model's observations beside the recorded ones."""

    model: str  # its name
    dtype: str  # of its weights
    protocol: str  # how the protocol came about
    checks: CheckTable  # one row per check
    # lens, patched, maps: the rows behind them
    lens: LensRows
    patched: PatchedRows
    maps: MapRows
    # donors, sweeps: what the notebooks left out
    donors: DonorTable
    sweeps: DonorSweepTable
    folder: Path | None = None  # where it was written; None when nowhere

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
        protocol: one of `PROTOCOLS`; "auto" takes the recorded one for a model of the recorded shape.
        parts: "all", or "recorded" without what the notebooks left out, which takes far longer.
        dtype: of the weights, float32 or bfloat16.
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
    replication = replicated(loaded, protocol, dtype, seed, report, parts)
    return replication if out is None else written(replace(replication, model=model), out)


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
