"""The post's protocol, its recorded observations and prompts, and the tables of a replication."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from iclens.core import ModelError, TokenizerError
from iclens.model.load import LanguageModel
from iclens.patching.heads import WHOLE_LAYER, Heads, heads_by_layer, last_position, score_maps
from iclens.prompts.render import bos_id, text_ids
from iclens.study.store import load_arrays
from iclens.table import Float, Floats, Int, Ints, Str, Table

BRIGHTEST = 5
"""Heads that a derived protocol ablates first."""
INTACT = ""
"""Names the absence of an ablation."""


@dataclass(frozen=True)
class ScoreMap:
    """A map of heads' scores at the last position of a run."""

    name: str  # for tables
    ablation: str  # name of the ablation in force, `INTACT` for none
    reference_layer: int  # block whose resid_pre the heads' outputs are set against
    prompt: str  # name of the prompt


@dataclass(frozen=True)
class Protocol:
    """Layers, heads and maps of a replication."""

    how: str  # where it is from, for the print-out
    patch_layer: int  # block whose resid_pre is patched for every x
    x: tuple[int, ...]  # inputs of that patch
    attention_layer: int  # block whose attention is read
    score_layers: int  # maps hold layers 0 to score_layers − 1
    numbers: tuple[str, ...]  # answers among which the lens is also read
    # name → heads that are ablated together, those that were recorded, in their order
    ablations: dict[str, Heads]
    further: dict[str, Heads]  # those that were not
    maps: tuple[ScoreMap, ...]  # score maps

    def ablated(self, name: str) -> Heads:
        """The heads of the ablation of this name; none for `INTACT`."""
        return {INTACT: (), **self.ablations, **self.further}[name]

    def check(self, model: LanguageModel) -> None:
        """Raise a ModelError when the model lacks a layer or head that is asked for."""
        together = (*self.ablations.values(), *self.further.values())
        chosen = [heads_by_layer(heads, model.n_heads) for heads in together]
        references = [one.reference_layer for one in self.maps]
        layers = [layer for one in chosen for layer in one] + [self.attention_layer]
        deepest = max(
            *layers, *(layer - 1 for layer in references), self.patch_layer - 1, self.score_layers - 1
        )
        widest = max(int(heads.max()) for one in chosen for heads in one.values())
        if deepest >= model.n_blocks or widest >= model.n_heads:
            raise ModelError(
                f"the {self.how} protocol, which asks for block {deepest} and head {widest}",
                f"'{model.name}' has {model.n_blocks} blocks of {model.n_heads} heads",
                "Choose --protocol derived, or a model of the recorded shape.",
            )


def derived_protocol(model: LanguageModel, like: Protocol, blocks: int, donor: Ints) -> Protocol:
    """A protocol for any model, from the recorded one.

    Args:
        blocks: blocks of the model that it was recorded on.
        donor: tokens of the prompt whose score map chooses the heads, [pos].
    """

    def depth(layer: int) -> int:
        return min(model.n_blocks, max(1, round(layer * model.n_blocks / blocks)))

    references = sorted({one.reference_layer for one in like.maps})
    scaled = dict(zip(references, (depth(references[0]) + i for i in range(len(references))), strict=True))
    scaled = {layer: min(model.n_blocks, at) for layer, at in scaled.items()}
    first = scaled[references[0]]
    read = last_position(model, donor[None], reference_layer=first, layers=range(first))
    heads = brightest(score_maps(model, read)[0], BRIGHTEST)
    ablations = {f"{len(heads)} heads": heads}
    layers = sorted({layer for layer, _ in heads})
    for count in range(len(layers)):
        ablations |= _whole_layers(layers[: count + 1])
    spared = tuple(layer for layer in range(1, max(scaled.values())) if layer not in layers)
    maps = [ScoreMap(f"intact, ref {at}", INTACT, at, "sweep donor") for at in dict.fromkeys(scaled.values())]
    for i, name in enumerate(ablations):
        at = scaled[references[0] if i < 2 else references[-1]]
        maps.append(ScoreMap(f"{name}, ref {at}", name, at, "sweep donor"))
    at = scaled[references[-1]]
    maps.append(ScoreMap(f"recipient, ref {at}", INTACT, at, "sweep recipient"))
    named = ", ".join(f"L{layer}H{head}" for layer, head in heads)
    return Protocol(
        how=(
            f"derived: layers scaled from {blocks} to {model.n_blocks} blocks; ablated are the {len(heads)} "
            f"brightest heads before block {first} of its own score map against that block's resid_pre "
            f"({named}), then all heads of the layers that hold them, a layer at a time; and, beside the "
            "record, those of the layers between"
        ),
        patch_layer=depth(like.patch_layer), x=like.x,
        attention_layer=min(depth(like.attention_layer), model.n_blocks - 1),
        score_layers=max(scaled.values()), numbers=like.numbers, ablations=ablations,
        further=_whole_layers(spared) if spared else {}, maps=tuple(maps),
    )  # fmt: skip


def brightest(scores: np.ndarray, count: int) -> tuple[tuple[int, int], ...]:
    """(layer, head) of the highest scores [layer head], at most `count`, highest first."""
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    return tuple((int(i) // scores.shape[1], int(i) % scores.shape[1]) for i in order)


def _whole_layers(layers: Sequence[int]) -> dict[str, Heads]:
    return {"L" + "+".join(map(str, layers)): tuple((layer, WHOLE_LAYER) for layer in layers)}


_FOLDER = Path(__file__).parent
RANKS = 5
"""Most probable tokens that are kept of any answer."""
LOOKED_AT = 20
"""Most probable tokens of the lens among which numbers are counted."""
DATA, ATTENTION = _FOLDER / "recorded.json", _FOLDER / "layer9_attention.safetensors"


@dataclass(frozen=True)
class RecordedPrompt:
    """One prompt as its tokens."""

    name: str  # what it is for
    tokens: tuple[str, ...]  # token strings after BOS; `{x}` stands for an input that varies
    read: int  # where it is read, counted from the end
    x: int | None  # the query; None where it varies


@dataclass(frozen=True)
class Lens:
    """An unnormalised logit lens over layers, after each block."""

    top: tuple[tuple[str, ...], ...]  # most probable tokens of the whole vocabulary, [layer][rank]
    prob: tuple[tuple[float, ...], ...]  # their probabilities, [layer][rank]
    digits: tuple[int, ...]  # how many of the first `LOOKED_AT` tokens are numbers, [layer]
    numbers: tuple[tuple[str, ...], ...]  # most probable numbers among those of the protocol, [layer][rank]
    answer_share: tuple[float, ...]  # probability of the task's answer among these numbers, [layer]


@dataclass(frozen=True)
class Observations:
    """Everything that was recorded, or the same of another model."""

    lens: Lens  # over all layers
    x: tuple[tuple[str, ...], ...]  # most probable tokens after the patch at one layer, [x][rank]
    donors: dict[str, tuple[str, ...]]  # ablation → the ablated donor's most probable tokens, [rank]
    # ablation → most probable tokens after the patch, [layer][rank]
    sweeps: dict[str, tuple[tuple[str, ...], ...]]
    maps: dict[str, Floats]  # name → heads' scores, [layer head]
    attention: Floats  # one block's pattern, [head query key]


@dataclass(frozen=True)
class Recorded:
    """The shipped data."""

    model: str  # name of the model it was recorded on
    # blocks, heads: its shape
    blocks: int
    heads: int
    # slope, offset: of the task, y = slope·x + offset
    slope: int
    offset: int
    prompts: dict[str, RecordedPrompt]  # name → prompt
    protocol: Protocol  # layers, heads and maps
    tolerances: dict[str, Any]  # name → number, as the observations' own re-check lines give them
    targets: Observations  # what was observed


@cache
def recorded() -> Recorded:
    """The shipped data, read once."""
    data = json.loads(DATA.read_text(encoding="utf-8"))
    prompts = {
        name: RecordedPrompt(name, tuple(row["tokens"]), row["read"], row["x"])
        for name, row in data["prompts"].items()
    }
    return Recorded(
        model=data["model"]["name"], blocks=data["model"]["blocks"], heads=data["model"]["heads"],
        slope=data["task"]["slope"], offset=data["task"]["offset"], prompts=prompts,
        protocol=_protocol(data["protocol"]), tolerances=data["tolerances"],
        targets=_observations(data["targets"], 1 + len(prompts["attention"].tokens)),
    )  # fmt: skip


def _protocol(held: dict[str, Any]) -> Protocol:
    first, last = held["x"]
    low, high = held["numbers"]
    return Protocol(
        how="recorded", patch_layer=held["patch_layer"], x=tuple(range(first, last + 1)),
        attention_layer=held["attention_layer"], score_layers=held["score_layers"],
        numbers=tuple(map(str, range(low, high + 1))),
        ablations={row["name"]: _heads(row) for row in held["ablations"]},
        further={row["name"]: _heads(row) for row in held["further"]},
        maps=tuple(ScoreMap(**row) for row in held["maps"]),
    )  # fmt: skip


def _heads(row: dict[str, Any]) -> Heads:
    single = tuple((layer, head) for layer, head in row["heads"])
    return (*single, *((layer, WHOLE_LAYER) for layer in row["layers"]))


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


_LABEL_AFTER = (",", " ")
"""The two tokens before a label."""


def encoded(tokenizer: Any, prompt: RecordedPrompt, x: int | None = None) -> Ints:
    """Token ids up to the position that is read, [pos]; later ones cannot be seen from there.

    Args:
        x: stands for `{x}`.
    """
    wanted = [piece.format(x=x) for piece in prompt.tokens]
    subject = f"the recorded tokens of the prompt '{prompt.name}'"
    remedy = "Use a model whose tokenizer splits numbers and brackets as Llama-3's does."
    bos = bos_id(tokenizer)
    if bos is None:
        raise TokenizerError(subject, "the model has no BOS token, with which they begin", remedy)
    ids = [bos, *text_ids(tokenizer, "".join(wanted))]
    pieces = [tokenizer.decode([i]) for i in ids]
    for place, (piece, token) in enumerate(zip(pieces[1:], wanted, strict=False), start=1):
        if piece != token:
            raise TokenizerError(subject, f"token {place} is {piece!r} in place of {token!r}", remedy)
    if len(ids) != 1 + len(wanted):
        raise TokenizerError(subject, f"{len(ids)} tokens in place of {1 + len(wanted)}", remedy)
    return np.array(ids[: len(ids) + 1 + prompt.read], dtype=np.int64)


def check_prompts(tokenizer: Any, source: Recorded) -> None:
    """Raise as `encoded` unless the tokenizer gives every recorded prompt its recorded tokens."""
    for prompt in source.prompts.values():
        encoded(tokenizer, prompt, source.protocol.x[-1])


def context_x(prompt: RecordedPrompt) -> set[int]:
    """The inputs that a prompt shows, its query among them."""
    pieces = prompt.tokens
    return {int(pieces[i]) for i in range(1, len(pieces)) if pieces[i - 1] == "(" and pieces[i].isdigit()}


def without_task(prompt: RecordedPrompt, tokens: Ints, draws: int, rng: np.random.Generator) -> Ints:
    """The prompt with its labels moved so that none stands where it stood, [draw pos].

    Args:
        tokens: its ids up to the position that is read, [pos].
        draws: how many.
    """
    pieces = ("", *prompt.tokens)  # BOS first, as in the ids
    places = [i for i in range(2, len(tokens)) if pieces[i - 2 : i] == _LABEL_AFTER and pieces[i].isdigit()]
    rows = np.tile(tokens, (draws, 1))
    for row in rows:
        order = rng.permutation(len(places))
        row[np.array(places)[order]] = tokens[np.array(places)[np.roll(order, 1)]]
    return rows


_TOP = "five most probable tokens of the whole vocabulary, separated by spaces (spaces in them: ␣)"
_OTHER = "the same as recorded; empty without a target"


class CheckTable(Table):
    """Recorded values set against this model's: one row per check."""

    part = Str("which experiment")
    check = Str("what is compared")
    target = Str("the recorded value; empty without one")
    ours = Str("this model's")
    tolerance = Str("how far apart they may be")
    verdict = Str('"agrees", "differs", or "no target" where the protocol was derived')


class LensRows(Table):
    """The logit lens without the final norm's division: one row per block."""

    layer = Int("block after which it is read (resid_post)")
    top = Str(_TOP)
    top_target = Str(_OTHER)
    prob = Float("probability of the first of them")
    numbers = Str("five most probable of the protocol's numbers")
    numbers_target = Str(_OTHER)
    answer_share = Float("probability of the task's answer among these numbers")
    answer_share_target = Float("the same as recorded; NaN without a target")


class PatchedRows(Table):
    """Whole-residual patches of a last position: one row per donor, input and layer."""

    prompt = Str("the donor's recorded prompt")
    donor = Str("what is ablated in the donor at its last position; empty for nothing")
    x = Int("the recipient's input")
    layer = Int("block whose resid_pre is replaced")
    top = Str(_TOP)
    top_target = Str(_OTHER)


class MapRows(Table):
    """Scores of heads at the last position: one row per map, layer and head."""

    map = Str("what is ablated, and the block whose resid_pre is the reference")
    layer = Int("block")
    head = Int("head")
    score = Float("dot of the head's output and the reference / the run's final-norm scale")
    score_target = Float("as recorded, up to one factor per map; NaN without a target")
    change = Float(
        "score − that of the intact run of the same prompt and reference; NaN where no such map is made"
    )


class DonorTable(Table):
    """Donors with heads ablated, and where their patch brings the task: one row per donor."""

    donor = Str("what is ablated, or which ablation random heads or layers stand in for")
    heads = Str('"none", "named", "random heads" or "random layers"')
    draw = Int("number of the random draw, from 0; -1 for none")
    kind = Str('what replaces the heads\' output: "none", "zero", "mean" over prompts without the task')
    place = Str('"last position" or "all positions"; "none" without ablation')
    n_heads = Int("heads ablated")
    top = Str(f"the donor's own {_TOP}")
    p_answer = Float("the donor's own P(the task's answer)")
    first_layer = Int(
        "first block whose patch makes slope·x the most probable token at the recorded x; -1 for none"
    )
    slope_half = Int(
        "first block whose patch makes slope·x the most probable number for half of the x; -1 for none"
    )
    slope_best = Int("block at which that share is greatest, the first of equals")
    slope_share = Float("the share there")
    task_half = Int("as slope_half, for the task's own answer, slope·x + offset")
    task_best = Int("as slope_best, for it")
    task_share = Float("as slope_share, for it")
    n_x = Int("inputs that it is a share of; none of them stands in the donor")


class DonorSweepTable(Table):
    """Patches from every donor over many inputs: one row per donor, layer and metric."""

    donor = DonorTable.donor
    heads = DonorTable.heads
    draw = DonorTable.draw
    kind = DonorTable.kind
    place = DonorTable.place
    layer = Int("block whose resid_pre is replaced at the last position")
    metric = Str(
        '"top-1 slope·x", "top-1 task" (slope·x + offset), "top-1 donor" (the donor\'s answer by the '
        "task): share of x whose most probable number that is; and the probability of each"
    )
    value = Float("mean over x")
    ci_low = Float("lower end of its 95 % bootstrap interval over x")
    ci_high = Float("upper end")
    n_x = DonorTable.n_x
