"""Tails: forward passes that begin at a block, from saved residuals, many edits in one batch.

1. `hold` runs prompts once, and keeps residuals of their last positions (the suffix) and keys and values of
those before (the prefix). 2. Rows, each a changed suffix, stand side by side in sequences of `WIDTH`
positions: a mask lets each see its prompt's prefix and itself. 3. Only blocks above the change are run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from iclens.core import PADDING, EditError, Site
from iclens.model.architectures import Rotary, added_to_scores, visible
from iclens.model.load import LanguageModel
from iclens.model.run import Edit, attached, packed, read_answers, refuse_part, rows_at
from iclens.prompts.beliefs import AnswerProbs
from iclens.table import Floats, Ints

WIDTH = 64
"""Positions that stand side by side in one sequence."""
MEMORY = 2**30
"""Bytes that one batch of rows may need beside the model, unless told otherwise."""
MOST_ROWS, MOST_TOGETHER = 4096, 128
"""Rows of a batch, and prompts that are edited together, at most."""
MID = ("resid_mid", "attn_out")
"""Hooks whose addition passes through the MLP of its own block."""
KeysValues = dict[int, tuple[Tensor, Tensor]]
"""Block → keys and values, [prompt head pos d_head] each."""


class _Keep:
    """A cache that keeps each block's keys and values as they pass."""

    def __init__(self) -> None:
        self.kept: KeysValues = {}

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        self.kept[layer] = (key, value)
        return key, value


class _Prefix:
    """A read-only cache: rows see the kept prefix of their prompt and themselves.

    Args:
        sequences: how many sequences of rows each prompt has.
    """

    def __init__(self, kept: Sequence[KeysValues], sequences: Sequence[int]) -> None:
        self.prompts = list(zip(kept, sequences, strict=True))

    def update(self, key: Tensor, value: Tensor, layer: int, *_: Any, **__: Any) -> tuple[Tensor, Tensor]:
        longest = max(kept[layer][0].shape[2] for kept, _ in self.prompts)

        def extended(side: int, new: Tensor) -> Tensor:
            before = torch.cat(
                [
                    F.pad(part := kept[layer][side], (0, 0, 0, longest - part.shape[2])).expand(n, -1, -1, -1)
                    for kept, n in self.prompts
                ]
            )
            return torch.cat([before, new], dim=2)

        return extended(0, key), extended(1, value)


@dataclass(frozen=True)
class Held:
    """What one prompt's run leaves for the rows."""

    first: int  # the first column that a row may change
    there: tuple[bool, ...]  # whether a token stands in each column from `first` on, or padding, [suffix]
    # resid_pre of every block and the last resid_post, in the columns from `first` on, [suffix d_model] each
    resid: tuple[Tensor, ...]
    mid: tuple[Tensor, ...]  # resid_mid of every block, likewise
    kept: KeysValues  # keys and values of the tokens before `first`, [1 head pos d_head] each
    # rotation of the columns from `first` on in each kind of block: cosines and sines, [1 suffix d_head] each
    rotary: dict[str, Rotary]

    @property
    def n_kept(self) -> int:
        """Tokens before `first`."""
        return next(iter(self.kept.values()))[0].shape[2]


@torch.no_grad()
def hold(model: LanguageModel, tokens: Ints, first: int | None = None) -> list[Held]:
    """Run prompts [prompt column] together; what each leaves, [prompt].

    `first` is the first column that rows may change; the last of the prompt when not given.
    """
    refuse_part(model)
    length = tokens.shape[1]
    start = length - 1 if first is None else first
    if not 0 <= start < length:
        raise EditError(f"rows from position {start}", f"{length} positions", "Choose one of these.")
    packing, there = packed(tokens), tokens != PADDING
    resid = model.embed(packing.ids)
    suffix = torch.as_tensor(packing.at(np.arange(start, length)), device=resid.device)
    keep, adapter = _Keep(), model.adapter
    told, pre, mids = adapter.contexts(resid), [rows_at(resid, suffix)], []
    for layer, block in enumerate(adapter.layers):
        mid = resid + adapter.attend(block, resid, told[layer] | {adapter.cache: keep})
        mids.append(rows_at(mid, suffix))
        # Nothing attends to what the last block leaves: its MLP is needed from `start` on alone.
        entered, left = (resid, mid) if layer < model.n_blocks - 1 else (pre[-1], mids[-1])
        resid = left + adapter.feed(block, entered, left)
        pre.append(rows_at(resid, suffix) if layer < model.n_blocks - 1 else resid)
    positions = torch.arange(packing.ids.shape[1], device=resid.device)[None]
    whole = {kind: adapter.rotary(resid, positions, kind) for kind in dict.fromkeys(adapter.kinds)}
    rotary = [
        {kind: tuple(rows_at(part, of_prompt) for part in parts) for kind, parts in whole.items()}
        for of_prompt in suffix.expand(len(tokens), -1)
    ]
    return [
        Held(
            start, tuple(there[i, start:].tolist()), tuple(rows[i] for rows in pre),
            tuple(rows[i] for rows in mids),
            {layer: (k[i : i + 1, :, :n], v[i : i + 1, :, :n]) for layer, (k, v) in keep.kept.items()},
            rotary[i],
        )
        for i, n in enumerate(there[:, :start].sum(axis=1).tolist())
    ]  # fmt: skip


def tails_of(
    model: LanguageModel, tokens: Ints, extra: tuple[str, ...] = (), batch: int = 32, first: int | None = None
) -> list[Tail]:
    """Prompts [prompt column], each prepared for edits from column `first` on; see `hold`.

    Held are 2 × blocks × key width numbers for every token of every prompt. `extra` are answers to read
    besides the numbers.
    """
    starts = range(0, len(tokens), batch)
    prompts = [held for start in starts for held in hold(model, tokens[start : start + batch], first)]
    return [Tail(model, row, extra, held) for row, held in zip(tokens, prompts, strict=True)]


class Tail:
    """One prompt, prepared for edits of its last position, or of its last few.

    Args:
        tokens: [column], the prompt up to and including the column that is read.
        extra: answers to read besides the numbers.
        held: what `hold` kept of it, where several prompts were run together; run here when not given.
        memory: bytes that a batch of rows may need.

    Raises:
        ModelError: when only some blocks are loaded.
    """

    def __init__(
        self, model: LanguageModel, tokens: Ints, extra: tuple[str, ...] = (), held: Held | None = None,
        memory: int = MEMORY,
    ) -> None:  # fmt: skip
        self.model, self.memory = model, memory
        self.answers, self.ids = model.answer_space(extra)
        self.held = hold(model, np.asarray(tokens)[None])[0] if held is None else held

    @property
    def n_suffix(self) -> int:
        """Positions from the first that may change to the last."""
        return len(self.held.resid[0])

    def resid_pre(self, layer: int) -> Tensor:
        """The unedited residual entering block `layer` at the last position, [d_model]."""
        return self.held.resid[layer][-1]

    def base(self, site: Site) -> AnswerProbs:
        """Answers without an edit, through the blocks that an addition at `site` passes, [1 answer]."""
        return self.added(site, np.zeros((1, self.model.d_model)))

    def run(self, resid: Tensor, layer: int) -> AnswerProbs:
        """Answers after replacing resid_pre of block `layer` from the first position on, [row answer].

        Args:
            resid: [row suffix d_model], or [row d_model] where the suffix is the last position alone.
            layer: block entered next; n_blocks goes straight to the unembedding.

        Raises:
            EditError: when the rows do not cover the suffix.
        """
        rows = resid[:, None] if resid.ndim == 2 else resid
        return run_together([self], [rows.to(self.held.resid[0].dtype)], layer)[0]

    def added(
        self, site: Site, delta: Tensor | Floats, batch: int | None = None, positions: Ints | None = None
    ) -> AnswerProbs:
        """Answers after adding `delta` at `site`, [row answer].

        Args:
            site: any residual, attn_out or mlp_out.
            delta: [row d_model], the same at every position; or [row pos d_model].
            batch: rows per forward pass; as many as fit the memory when not given.
            positions: where it is added, indices into the prompt [pos]; the last when not given.

        Raises:
            EditError: for a hook that adds nothing to the residual, or a position before the suffix.
        """
        return added_together([self], site, [torch.as_tensor(delta)], positions, batch)[0]

    def entry(self, site: Site) -> int:
        """The block whose resid_pre carries an addition at `site` onwards.

        resid_post and mlp_out of layer L both enter block L + 1; resid_pre enters block L. An addition at
        resid_mid or attn_out goes through its own block's MLP first, and then enters block L + 1; past it
        where the MLP reads resid_pre.

        Raises:
            EditError: for a hook whose addition does not enter the residual stream.
            SiteError: when the model has no such block.
        """
        self.model.check_site(site)
        if site.hook in ("resid_post", "mlp_out", *MID):
            return site.layer + 1
        if site.hook == "resid_pre":
            return site.layer
        raise EditError(
            f"tail from {site}", "an addition there is no addition to the residual", "Use `answer_probs`."
        )

    def edited(self, site: Site, delta: Tensor, positions: Ints | None = None) -> Tensor:
        """The suffix at `entry` of rows that `delta` was added to, [row suffix d_model]; see `added`."""
        base = self.held.mid[site.layer] if site.hook in MID else self.held.resid[self.entry(site)]
        first, end = self.held.first, self.held.first + self.n_suffix
        at = np.array([end - 1]) if positions is None else np.asarray(positions)
        if not len(at) or at.min() < first or at.max() >= end:
            raise EditError(
                f"an addition at positions {list(at)}", f"rows hold positions {first} to {end - 1}",
                "Prepare the tail with an earlier `first`.",
            )  # fmt: skip
        where, added = torch.as_tensor(at - first, device=base.device), delta.to(base)
        rows = base.expand(len(added), -1, -1).index_add(
            1, where, (added[:, None] if added.ndim == 2 else added).expand(-1, len(where), -1)
        )
        if site.hook not in MID:
            return rows
        adapter, entered = self.model.adapter, self.held.resid[site.layer]
        return rows + adapter.feed(adapter.layers[site.layer], entered, rows)

    def rows_at_once(self) -> int:
        """Rows whose widest intermediate values fit the memory, at least 1."""
        adapter, d_model, n_heads = self.model.adapter, self.model.d_model, self.model.n_heads
        item = adapter.unembedding.element_size()
        keys = self.held.first + max(WIDTH, self.n_suffix)
        a_position = item * (6 * d_model + 3 * adapter.d_mlp + 2 * n_heads * keys)
        logits = len(adapter.unembedding) * (item + 8)
        return max(1, min(MOST_ROWS, self.memory // (self.n_suffix * a_position + logits)))


def side_by_side(tails: Sequence[Tail], rows: Sequence[Tensor], layer: int) -> list[Tensor]:
    """The last position's last resid_post of each prompt's rows, [row d_model] each.

    Rows stand in sequences of one width, zeros at their end; no sequence holds rows of two prompts.

    `rows` are, of each prompt, the suffix that enters block `layer`, [row suffix d_model].
    """
    first = tails[0]
    adapter, suffix = first.model.adapter, first.n_suffix
    if layer == first.model.n_blocks:
        return [part[:, -1] for part in rows]
    width = _width([len(part) for part in rows], max(1, WIDTH // suffix))
    counts = [-(-len(part) // width) for part in rows]
    resid = rows[0].new_zeros(sum(counts), width, *rows[0].shape[1:])  # [sequence width suffix d_model]
    for part, sequences in zip(rows, resid.split(counts), strict=True):
        sequences.view(-1, *part.shape[1:])[: len(part)] = part
    resid = resid.flatten(1, 2)  # [sequence width·suffix d_model]
    told = _told(tails, counts, width, resid, layer)
    for kind, block in zip(adapter.kinds[layer:], adapter.layers[layer:], strict=True):
        resid = block(resid, **told[kind])
    last = resid.unflatten(1, (width, suffix))[:, :, -1].split(counts)  # [sequence width d_model] each
    return [own.flatten(0, 1)[: len(part)] for own, part in zip(last, rows, strict=True)]


def _told(
    tails: Sequence[Tail], counts: Sequence[int], width: int, like: Tensor, layer: int
) -> dict[str, dict[str, Any]]:
    """What blocks from `layer` on are told besides the rows, by the kind of block.

    `counts` are the sequences of each prompt, `width` the rows of each sequence.
    """
    adapter, prefix = tails[0].model.adapter, _Prefix([tail.held.kept for tail in tails], counts)
    return {
        kind: adapter.told(*_surroundings(tails, kind, width, counts, like), cache=prefix)
        for kind in dict.fromkeys(adapter.kinds[layer:])
    }


def _width(n_rows: Sequence[int], most: int) -> int:
    """Rows to a sequence: few empty places, and few sequences, each of which costs about eight rows."""
    widths, n = np.arange(1, most + 1), np.array(n_rows)
    cost = (-(-n[:, None] // widths) * (widths + 8)).sum(axis=0)
    return int(widths[cost.argmin()])


def _surroundings(
    tails: Sequence[Tail], kind: str, width: int, counts: Sequence[int], like: Tensor
) -> tuple[Tensor, Rotary]:
    """The mask and the rotation of all prompts' sequences, `counts` of each, in blocks of a kind."""
    first, reach = tails[0], tails[0].model.adapter.reach(kind)
    if len({(tail.held.n_kept, tail.held.there) for tail in tails}) == 1:
        mask, rotary = _mask(first, width, like, first.held.n_kept, reach), first.held.rotary[kind]
    else:
        longest = max(tail.held.n_kept for tail in tails)
        repeats = torch.tensor(counts, device=like.device)
        mask, *rotary = (
            torch.cat(parts).repeat_interleave(repeats, dim=0)
            for parts in (
                [_mask(tail, width, like, longest, reach) for tail in tails],
                *zip(*(tail.held.rotary[kind] for tail in tails), strict=True),
            )
        )
    return mask, tuple(part.repeat(1, width, 1) if first.n_suffix > 1 else part for part in rotary)


def _mask(tail: Tail, width: int, like: Tensor, prefix: int, reach: int | None) -> Tensor:
    """What is added to attention scores, [1 1 width·suffix, prefix + width·suffix].

    0 for what a row sees of the prefix and of itself, a number that no score outweighs elsewhere. `prefix`
    keys stand before the rows' own; the last of them are nobody's where the prompt has fewer.
    """
    n_kept, suffix = tail.held.n_kept, tail.n_suffix
    there = torch.tensor(tail.held.there, device=like.device)
    kept = torch.arange(prefix, device=like.device)
    positions = torch.cat([kept, n_kept - 1 + there.cumsum(dim=0)])
    alone = visible(positions[prefix:], positions, reach)  # [suffix, prefix + suffix]
    alone &= torch.cat([kept < n_kept, there])
    seen = alone.new_zeros(width, suffix, prefix + width * suffix)
    seen[..., :prefix] = alone[:, :prefix]
    itself = seen[..., prefix:].unflatten(2, (width, suffix)).diagonal(dim1=0, dim2=2)
    itself.copy_(alone[:, prefix:, None])  # [suffix suffix width]
    return added_to_scores(seen.flatten(0, 1), like)[None, None]


@torch.no_grad()
def edited_at_end(tails: Sequence[Tail], edits: Sequence[Edit]) -> AnswerProbs:
    """Answers of prompts, prepared for edits of their last column alone, under edits there, [prompt answer].

    Only blocks from the first edit on are run, at that one position.

    Raises:
        EditError: for an edit of another column.
    """
    first, adapter = tails[0], tails[0].model.adapter
    for edit in edits:
        if np.asarray(edit.recipient_pos).tolist() != [first.held.first]:
            raise EditError(
                f"edit at {edit.site}", f"positions {list(edit.recipient_pos)}",
                f"The prompts are prepared for edits of {first.held.first} alone.",
            )  # fmt: skip
    start = min((edit.site.layer for edit in edits), default=first.model.n_blocks)
    some = [replace(edit, recipient_pos=np.array([0]), donor_pos=None) for edit in edits]
    parts = []
    for begin in range(0, len(tails), MOST_TOGETHER):
        rows = slice(begin, begin + MOST_TOGETHER)
        own = list(tails[rows])
        resid = torch.stack([tail.held.resid[start] for tail in own])  # [prompt 1 d_model]
        told = _told(own, [1] * len(own), 1, resid, start)
        with attached(first.model, (), np.array([0]), [edit.of_rows(rows) for edit in some]):
            for kind, block in zip(adapter.kinds[start:], adapter.layers[start:], strict=True):
                resid = block(resid, **told[kind])
        parts.append(read_answers(first.model, resid[:, 0], first.ids).cpu().numpy())
    return AnswerProbs(first.answers, np.concatenate(parts))


def added_together(
    tails: Sequence[Tail], site: Site, deltas: Sequence[Tensor], positions: Ints | None = None,
    batch: int | None = None,
) -> list[AnswerProbs]:  # fmt: skip
    """`Tail.added` of several prompts in common batches, [row answer] each: faster where each has few rows.

    The prompts are of as many columns, and prepared from one column on.
    """
    if not tails:
        return []
    layer = tails[0].entry(site)
    return _in_batches(tails, deltas, layer, lambda tail, delta: tail.edited(site, delta, positions), batch)


def run_together(tails: Sequence[Tail], resid: Sequence[Tensor], layer: int) -> list[AnswerProbs]:
    """`Tail.run` of several prompts in common batches: of each, rows [row suffix d_model] to [row answer]."""
    for tail, rows in zip(tails, resid, strict=True):
        if rows.shape[1] != tail.n_suffix:
            raise EditError(
                f"rows of {rows.shape[1]} positions", f"the suffix has {tail.n_suffix}", "Give all of it."
            )
    return _in_batches(tails, resid, layer, lambda _tail, rows: rows) if tails else []


@torch.no_grad()
def _in_batches(
    tails: Sequence[Tail], given: Sequence[Tensor], layer: int, enter: Callable[[Tail, Tensor], Tensor],
    batch: int | None = None,
) -> list[AnswerProbs]:  # fmt: skip
    """Answers of every prompt's rows; `enter` makes of some given rows what enters block `layer`."""
    first = tails[0]
    if len({(tail.held.first, tail.n_suffix) for tail in tails}) > 1:
        raise EditError("rows of several prompts", "their lengths differ", "Prepare them with `tails_of`.")
    most = batch or first.rows_at_once()
    pieces = [(i, some) for i, rows in enumerate(given) for some in rows.split(most) if len(some)]
    answers: list[list[Tensor]] = [[] for _ in tails]
    while pieces:
        taken = 1
        while taken < len(pieces) and sum(len(some) for _, some in pieces[: taken + 1]) <= most:
            taken += 1
        together, pieces = pieces[:taken], pieces[taken:]
        rows = [enter(tails[i], some) for i, some in together]
        last = side_by_side([tails[i] for i, _ in together], rows, layer)
        read = read_answers(first.model, torch.cat(last), first.ids).cpu()
        for (i, _), part in zip(together, read.split([len(part) for part in last]), strict=True):
            answers[i].append(part)
    nothing = torch.zeros(0, len(first.answers))
    return [AnswerProbs(first.answers, torch.cat([nothing, *parts]).numpy()) for parts in answers]
