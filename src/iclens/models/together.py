"""Rows of several prompts in common batches: the tail engine where each prompt has few rows.

1. Each prompt's rows are made as for it alone. 2. They are put into sequences of one width, none of which
holds rows of two prompts, as many at a time as fit the memory. 3. Every sequence sees the keys and values of
its own prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from iclens.errors import EditError
from iclens.models.forward import read_answers
from iclens.models.tail import Tail, side_by_side
from iclens.names import Site
from iclens.tables.answers import AnswerProbs
from iclens.tables.arrays import Ints


def added_together(
    tails: Sequence[Tail], site: Site, deltas: Sequence[Tensor], positions: Ints | None = None
) -> list[AnswerProbs]:
    """`Tail.added` of several prompts in common batches: faster where each has few rows.

    Args:
        tails: prompts of one length, prepared from one position on.
        site: any residual, attn_out or mlp_out.
        deltas: of each prompt, [row d_model].
        positions: where they are added, indices into the prompt [pos]; the last when not given.

    Returns:
        log_prob as [row answer] of each prompt.

    Raises:
        EditError: as `Tail.added`, and when the prompts were prepared from different positions.
    """
    if not tails:
        return []
    return _in_batches(
        tails, deltas, tails[0].entry(site), lambda tail, delta: tail.edited(site, delta, positions)
    )


def run_together(tails: Sequence[Tail], resid: Sequence[Tensor], layer: int) -> list[AnswerProbs]:
    """`Tail.run` of several prompts in common batches.

    Args:
        tails: prompts of one length, prepared from one position on.
        resid: of each prompt, what enters block `layer`, [row suffix d_model].
        layer: n_blocks goes straight to the unembedding.

    Returns:
        log_prob as [row answer] of each prompt.

    Raises:
        EditError: when the prompts were prepared from different positions.
    """
    return _in_batches(tails, resid, layer, lambda _tail, rows: rows) if tails else []


@torch.no_grad()
def _in_batches(
    tails: Sequence[Tail], given: Sequence[Tensor], layer: int, enter: Callable[[Tail, Tensor], Tensor]
) -> list[AnswerProbs]:
    """Answers of every prompt's rows; `enter` makes of some given rows what enters block `layer`."""
    first = tails[0]
    if len({(tail.held.first, tail.n_suffix) for tail in tails}) > 1:
        raise EditError("rows of several prompts", "their lengths differ", "Prepare them with `tails_of`.")
    most = first.rows_at_once()
    pieces = [(i, some) for i, rows in enumerate(given) for some in rows.split(most) if len(some)]
    found: list[list[Tensor]] = [[] for _ in tails]
    while pieces:
        taken = 1
        while taken < len(pieces) and sum(len(some) for _, some in pieces[: taken + 1]) <= most:
            taken += 1
        batch, pieces = pieces[:taken], pieces[taken:]
        rows = [enter(tails[i], some) for i, some in batch]
        last = side_by_side([tails[i] for i, _ in batch], rows, layer)
        read = read_answers(first.model, torch.cat(last), first.ids).cpu()
        for (i, _), part in zip(batch, read.split([len(part) for part in last]), strict=True):
            found[i].append(part)
    nothing = torch.zeros(0, len(first.answers))
    return [AnswerProbs(first.answers, torch.cat([nothing, *parts]).numpy()) for parts in found]
