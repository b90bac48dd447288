"""Made-up prompts in two runs, with hostile text, right-to-left words and a character cut into pieces."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from iclens.core import ROLES
from iclens.dashboards.records.prompts import (
    START,
    LensRead,
    LensRow,
    PairBelief,
    PromptPair,
    PromptsView,
    RunToken,
    RunView,
    ShownLatent,
    SiteLatents,
)

SHOWN = 12
"""Examples of run A."""
WORDS = ("مرحبا", "你好", "\u202e7", "e\u0301")
"""Inputs that a page could draw wrongly."""


def example(x: str, y: str, number: int) -> list[RunToken]:
    """The six tokens of an example."""
    texts = ("(", x, ",", " ", y, ")\n")
    return [RunToken(text, role, number) for text, role in zip(texts, ROLES, strict=True)]


def run(xs: Sequence[str], answer: str, probability: float) -> RunView:
    """A run that shows all but the last x, and asks about a character cut into two pieces."""
    tokens = [RunToken("<|begin_of_text|>", "start", START), RunToken("\n", "start", START)]
    for number, x in enumerate(xs):
        tokens += example(x, str(2 * number + 3), number)
    tokens = tokens[:-2]
    tokens[-3] = replace(tokens[-3], text="😀")
    tokens[-2] = RunToken("", "comma", len(xs) - 1, continues=True)
    return RunView(tokens, answer, probability, probability / 2)


def latents(rng: np.random.Generator, ids: Sequence[int], sizes: tuple[int, int]) -> list[ShownLatent]:
    """Latents that are silent on half of the tokens."""
    found = []
    for i, latent in enumerate(ids):
        a, b = (np.where(rng.random(n) < 0.5, 0.0, rng.gamma(2.0, 3.0, n)) for n in sizes)
        why = ("differs at the query", "grows over examples", "most active")[3 * i // len(ids)]
        found.append(ShownLatent(latent, why, a.tolist(), b.tolist()))
    return found


def make_prompts(keys: Sequence[tuple[str, int]], hostile: str, n: int = 3) -> PromptsView:
    """Prompts whose latents are those of `keys` and some more; `hostile` stands in all texts of the first."""
    rng = np.random.default_rng(5)
    sites = sorted({site for site, _ in keys})
    prompts = []
    for i in range(n):
        said = hostile if i == 0 else ""
        xs = [str(x) for x in rng.permutation(50)[: SHOWN + 1]]
        if said:
            xs[: len(WORDS) + 1] = [said, *WORDS]
        a, b = run(xs, "41" + said, 0.98), run(xs[-1:], " 7", 0.02)
        sizes = (len(a.tokens), len(b.tokens))
        walk = np.cumsum(rng.normal(0.6, 0.4, SHOWN + 1)) - 4
        reads = [LensRead([("41" + said, 0.1 * k), ("\n", 0.02), ("", 1e-5)], 0.14 * k) for k in range(8)]
        held = [
            SiteLatents(
                site,
                latents(rng, [*(latent for at, latent in keys if at == site), *range(700, 711)][:12], sizes),
            )
            for site in sites
        ]
        prompts.append(
            PromptPair(
                "2x+3" + said, xs[-1] + said, "41" + said, a, b,
                sites=held,
                beliefs=[
                    PairBelief("exact" + said, "the answer is the task’s own" + said, walk.tolist(),
                               (walk + 0.3).tolist(), -4.4, -4.3),
                    PairBelief("copy", "the label just before", [math.nan, *walk[1:].tolist()],
                               [math.nan] * (SHOWN + 1), math.nan, math.nan),
                ],
                lens=[LensRow(f"into block {k}", read, reads[0]) for k, read in enumerate(reads)],
                reasons={"beliefs": "There is no exact posterior of some." + said} if said else {},
            )
        )  # fmt: skip
    return PromptsView(prompts, "The first prompts." + hostile)
