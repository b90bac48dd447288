"""Made-up prompts in two runs, with hostile text, right-to-left words and a character cut into pieces."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from iclens.core import ROLES
from iclens.pages.prompts import START, Belief, Pair, Read, Run, Shown, Token

SHOWN = 12
"""Examples of run A."""
WORDS = ("مرحبا", "你好", "\u202e7", "e\u0301")
"""Inputs that a page could draw wrongly."""


def example(x: str, y: str, number: int) -> list[Token]:
    """The six tokens of an example."""
    texts = ("(", x, ",", " ", y, ")\n")
    return [Token(text, role, number) for text, role in zip(texts, ROLES, strict=True)]


def run(xs: Sequence[str], answer: str, probability: float) -> Run:
    """A run that shows all but the last x, and asks about a character cut into two pieces."""
    tokens = [Token("<|begin_of_text|>", "start", START), Token("\n", "start", START)]
    for number, x in enumerate(xs):
        tokens += example(x, str(2 * number + 3), number)
    tokens = tokens[:-2]
    tokens[-3] = replace(tokens[-3], text="😀")
    tokens[-2] = Token("", "comma", len(xs) - 1, continues=True)
    return Run(tokens, Read([(answer, probability)], probability / 2))


def latents(rng: np.random.Generator, ids: Sequence[int], sizes: tuple[int, int]) -> list[Shown]:
    """Latents that are silent on half of the tokens."""
    found = []
    for i, latent in enumerate(ids):
        a, b = (np.where(rng.random(n) < 0.5, 0.0, rng.gamma(2.0, 3.0, n)) for n in sizes)
        why = ("differs at the query", "grows over examples", "most active")[3 * i // len(ids)]
        found.append(Shown(latent, why, a.tolist(), b.tolist()))
    return found


def make_prompts(keys: Sequence[tuple[str, int]], text: Callable[[str], str], n: int = 3) -> list[Pair]:
    """Prompts whose latents are those of `keys` and some more; texts of the first are made by `text`."""
    rng = np.random.default_rng(5)
    sites = sorted({site for site, _ in keys})
    found = []
    for i in range(n):
        say = text if i == 0 else str
        xs = [str(x) for x in rng.permutation(50)[: SHOWN + 1]]
        if i == 0:
            xs[: len(WORDS) + 1] = [say("7"), *WORDS]
        a, b = run(xs, say("41"), 0.98), run(xs[-1:], " 7", 0.02)
        sizes = (len(a.tokens), len(b.tokens))
        walk = np.cumsum(rng.normal(0.6, 0.4, SHOWN + 1)) - 4
        reads = [Read([(say("41"), 0.1 * k), ("\n", 0.02), ("", 1e-5)], 0.14 * k) for k in range(8)]
        unknown = [math.nan] * (SHOWN + 1)
        own = {
            site: [*(latent for at, latent in keys if at == site), *range(700, 711)][:12] for site in sites
        }
        found.append(
            Pair(
                say("2x+3"), say(xs[-1]), say("41"), a, b,
                {site: latents(rng, ids, sizes) for site, ids in own.items()},
                [
                    Belief(say("exact"), say("its own"), walk.tolist(), (walk + 0.3).tolist(), -4.4, -4.3),
                    Belief("copy", "before", [math.nan, *walk[1:].tolist()], unknown, math.nan, math.nan),
                ],
                say("of some") if i == 0 else "",
                [(f"into block {k}", read, reads[0]) for k, read in enumerate(reads)],
            )
        )  # fmt: skip
    return found
