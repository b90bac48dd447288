"""A replication as text: the checks, then the donors that the notebooks left out."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from iclens.study.replicate.protocol import INTACT
from iclens.study.replicate.tables import CheckTable, DonorTable

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
