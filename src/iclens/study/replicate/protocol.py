"""What is run: layers, heads and maps, as data. Recorded for one shape of model, derived for any other.

A derived protocol keeps the recorded one's steps. 1. Layers stand at the same depth (layer × blocks / 32,
rounded, at least 1 where something is patched). 2. The heads ablated are the brightest five of the model's
own score map, among layers below the reference. 3. Then all heads of the layers that hold them, one more
layer at a time. The heads are chosen on the prompt that they are ablated in, as the recorded ones were.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from iclens.errors import ModelError
from iclens.models.load import LanguageModel
from iclens.patching.heads.scores import last_position, score_maps
from iclens.tables.arrays import Ints

BRIGHTEST = 5
"""Heads that a derived protocol ablates first."""
INTACT = ""
"""Names the absence of an ablation."""


@dataclass(frozen=True)
class Ablation:
    """Heads that are ablated together.

    Args:
        name: short, for tables.
        heads: (layer, head) of each.
        layers: layers of which every head is ablated.
    """

    name: str
    heads: tuple[tuple[int, int], ...] = ()
    layers: tuple[int, ...] = ()

    def by_layer(self, n_heads: int) -> dict[int, Ints]:
        """Layer → its ablated heads, in a model of `n_heads` per layer."""
        chosen = {layer: np.arange(n_heads) for layer in self.layers}
        for layer in sorted({layer for layer, _ in self.heads} - chosen.keys()):
            chosen[layer] = np.array([head for where, head in self.heads if where == layer])
        return dict(sorted(chosen.items()))

    def pairs(self, n_heads: int) -> tuple[tuple[int, int], ...]:
        """(layer, head) of every ablated head."""
        return tuple((layer, int(head)) for layer, heads in self.by_layer(n_heads).items() for head in heads)


@dataclass(frozen=True)
class ScoreMap:
    """A map of heads' scores at the last position of a run.

    Args:
        name: for tables.
        ablation: name of the ablation in force, `INTACT` for none.
        reference_layer: block whose resid_pre the heads' outputs are set against.
        prompt: name of the prompt.
    """

    name: str
    ablation: str
    reference_layer: int
    prompt: str


@dataclass(frozen=True)
class Protocol:
    """Layers, heads and maps of a replication.

    Args:
        how: where it is from, for the print-out.
        patch_layer: block whose resid_pre is patched for every x.
        x: inputs of that patch.
        attention_layer: block whose attention is read.
        score_layers: maps hold layers 0 to score_layers − 1.
        numbers: answers among which the lens is also read.
        ablations: those that were recorded, in their order.
        further: those that were not.
        maps: score maps.
    """

    how: str
    patch_layer: int
    x: tuple[int, ...]
    attention_layer: int
    score_layers: int
    numbers: tuple[str, ...]
    ablations: tuple[Ablation, ...]
    further: tuple[Ablation, ...]
    maps: tuple[ScoreMap, ...]

    def ablation(self, name: str) -> Ablation:
        """The ablation of this name, without heads for `INTACT`."""
        known = {one.name: one for one in (Ablation(INTACT), *self.ablations, *self.further)}
        return known[name]

    def check(self, model: LanguageModel) -> None:
        """Raise a ModelError when the model lacks a layer or head that is asked for."""
        chosen = [one.by_layer(model.n_heads) for one in (*self.ablations, *self.further)]
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
        model: a whole model.
        like: the recorded protocol.
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
    ablations = [Ablation(f"{len(heads)} heads", heads=heads)]
    layers = sorted({layer for layer, _ in heads})
    ablations += [_whole_layers(layers[: count + 1]) for count in range(len(layers))]
    spared = tuple(layer for layer in range(1, max(scaled.values())) if layer not in layers)
    maps = [ScoreMap(f"intact, ref {at}", INTACT, at, "sweep donor") for at in dict.fromkeys(scaled.values())]
    for i, one in enumerate(ablations):
        at = scaled[references[0] if i < 2 else references[-1]]
        maps.append(ScoreMap(f"{one.name}, ref {at}", one.name, at, "sweep donor"))
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
        score_layers=max(scaled.values()), numbers=like.numbers, ablations=tuple(ablations),
        further=(_whole_layers(spared),) if spared else (), maps=tuple(maps),
    )  # fmt: skip


def brightest(scores: np.ndarray, count: int) -> tuple[tuple[int, int], ...]:
    """(layer, head) of the highest scores [layer head], at most `count`, highest first."""
    order = np.argsort(-scores, axis=None, kind="stable")[:count]
    return tuple((int(i) // scores.shape[1], int(i) % scores.shape[1]) for i in order)


def _whole_layers(layers: Sequence[int]) -> Ablation:
    return Ablation("L" + "+".join(map(str, layers)), layers=tuple(layers))
