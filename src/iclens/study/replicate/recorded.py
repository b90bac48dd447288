"""What was recorded on llama-3-8b: prompts, protocol, numbers and tolerances, as the package ships them.

`recorded.json` holds prompts as token strings, the protocol, and what the notebooks printed;
`layer9_attention.safetensors` holds the attention of one block. Both are data: no result is computed here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from iclens.study.replicate.protocol import Ablation, Protocol, ScoreMap
from iclens.study.store import load_arrays
from iclens.tables.arrays import Floats

_FOLDER = Path(__file__).parent
RANKS = 5
"""Most probable tokens that are kept of any answer."""
LOOKED_AT = 20
"""Most probable tokens of the lens among which numbers are counted."""
DATA, ATTENTION = _FOLDER / "recorded.json", _FOLDER / "layer9_attention.safetensors"


@dataclass(frozen=True)
class RecordedPrompt:
    """One prompt as its tokens.

    Args:
        name: what it is for.
        tokens: token strings after BOS; `{x}` stands for an input that varies.
        read: where it is read, counted from the end.
        x: the query; None where it varies.
    """

    name: str
    tokens: tuple[str, ...]
    read: int
    x: int | None


@dataclass(frozen=True)
class Lens:
    """An unnormalised logit lens over layers, after each block.

    Args:
        top: most probable tokens of the whole vocabulary, [layer][rank].
        prob: their probabilities, [layer][rank].
        digits: how many of the first `LOOKED_AT` tokens are numbers, [layer].
        numbers: most probable numbers among those of the protocol, [layer][rank].
        answer_share: probability of the task's answer among these numbers, [layer].
    """

    top: tuple[tuple[str, ...], ...]
    prob: tuple[tuple[float, ...], ...]
    digits: tuple[int, ...]
    numbers: tuple[tuple[str, ...], ...]
    answer_share: tuple[float, ...]


@dataclass(frozen=True)
class Observations:
    """Everything that was recorded, or the same of another model.

    Args:
        lens: over all layers.
        x: most probable tokens after the patch at one layer, [x][rank].
        donors: ablation → the ablated donor's most probable tokens, [rank].
        sweeps: ablation → most probable tokens after the patch, [layer][rank].
        maps: name → heads' scores, [layer head].
        attention: one block's pattern, [head query key].
    """

    lens: Lens
    x: tuple[tuple[str, ...], ...]
    donors: dict[str, tuple[str, ...]]
    sweeps: dict[str, tuple[tuple[str, ...], ...]]
    maps: dict[str, Floats]
    attention: Floats


@dataclass(frozen=True)
class Recorded:
    """The shipped data.

    Args:
        model: name of the model it was recorded on.
        blocks, heads: its shape.
        slope, offset: of the task, y = slope·x + offset.
        prompts: name → prompt.
        protocol: layers, heads and maps.
        tolerances: name → number, as the observations' own re-check lines give them.
        targets: what was observed.
    """

    model: str
    blocks: int
    heads: int
    slope: int
    offset: int
    prompts: dict[str, RecordedPrompt]
    protocol: Protocol
    tolerances: dict[str, Any]
    targets: Observations


@cache
def recorded() -> Recorded:
    """The shipped data, read once."""
    held = json.loads(DATA.read_text(encoding="utf-8"))
    prompts = {
        name: RecordedPrompt(name, tuple(row["tokens"]), row["read"], row["x"])
        for name, row in held["prompts"].items()
    }
    return Recorded(
        model=held["model"]["name"], blocks=held["model"]["blocks"], heads=held["model"]["heads"],
        slope=held["task"]["slope"], offset=held["task"]["offset"], prompts=prompts,
        protocol=_protocol(held["protocol"]), tolerances=held["tolerances"],
        targets=_observations(held["targets"], 1 + len(prompts["attention"].tokens)),
    )  # fmt: skip


def _protocol(held: dict[str, Any]) -> Protocol:
    first, last = held["x"]
    low, high = held["numbers"]
    return Protocol(
        how="recorded", patch_layer=held["patch_layer"], x=tuple(range(first, last + 1)),
        attention_layer=held["attention_layer"], score_layers=held["score_layers"],
        numbers=tuple(map(str, range(low, high + 1))),
        ablations=tuple(_ablation(row) for row in held["ablations"]),
        further=tuple(_ablation(row) for row in held["further"]),
        maps=tuple(ScoreMap(**row) for row in held["maps"]),
    )  # fmt: skip


def _ablation(row: dict[str, Any]) -> Ablation:
    heads = tuple((layer, head) for layer, head in row["heads"])
    return Ablation(row["name"], heads=heads, layers=tuple(row["layers"]))


def _observations(held: dict[str, Any], length: int) -> Observations:
    rows = held["lens"]
    top, prob, numbers = (tuple(tuple(row[key]) for row in rows) for key in ("top", "prob", "numbers"))
    digits, share = (tuple(row[key] for row in rows) for key in ("digits", "answer_share"))
    return Observations(
        lens=Lens(top, prob, digits, numbers, share),
        x=tuple(map(tuple, held["x"])),
        donors={name: tuple(top) for name, top in held["donors"].items()},
        sweeps={name: tuple(map(tuple, rows)) for name, rows in held["sweeps"].items()},
        maps={name: np.array(rows) for name, rows in held["maps"].items()},
        attention=_whole(load_arrays(ATTENTION)[0]["lower"], length),
    )


def _whole(lower: Floats, length: int) -> Floats:
    """Patterns [head query key] from their lower triangles [head entry], row by row."""
    query, key = np.tril_indices(length)
    pattern = np.zeros((len(lower), length, length), dtype=lower.dtype)
    pattern[:, query, key] = lower
    return pattern
