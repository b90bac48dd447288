"""One forward pass: the blocks that run, what is recorded, what is edited, and the answers that it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn, cast

import numpy as np
import torch
from torch import Tensor

from iclens.core import PADDING, SIX_TOKENS, EditError, Layout, ModelError, Site
from iclens.model.architectures import Adapter, adapter_of
from iclens.model.load import LanguageModel, as_numpy
from iclens.prompts.beliefs import AnswerProbs
from iclens.table import Floats, Ints

# ------------------------------------------------------------------------------------------------- blocks


def run_blocks(
    model: Any, resid: Tensor, start: int, stop: int, *, masks: Mapping[int, Tensor] | None = None
) -> Tensor:
    """Run blocks start..stop−1 of a Hugging Face causal language model.

    From resid_pre of the first [row pos d_model], positions from 0, to resid_post of the last. `masks` maps a
    block to what is added to its attention scores in place of the usual mask, [1 or row, 1 pos pos].
    """
    adapter, masks = adapter_of(model), masks or {}
    told = adapter.contexts(resid)
    for layer, block in enumerate(adapter.layers[start:stop], start):
        own = told[layer]
        resid = block(resid, **(own | ({"attention_mask": masks[layer]} if layer in masks else {})))
    return resid


def run_to_end(model: Any, resid: Tensor, where: Tensor) -> Tensor:
    """Run all blocks causally, and the last one's MLP at positions `where`, [read] or [row read], alone.

    From resid_pre of block 0 [row pos d_model] to the last resid_post [row read d_model]. Hooks on the last
    block itself do not fire, and those on its MLP see these positions only.
    """
    adapter = adapter_of(model)
    last = adapter.layers[-1]
    resid = run_blocks(model, resid, 0, len(adapter.layers) - 1)
    mid = rows_at(resid + adapter.attend(last, resid, adapter.contexts(resid)[-1]), where)
    return mid + adapter.feed(last, rows_at(resid, where), mid)


def unembed(model: Any, resid: Tensor) -> Tensor:
    """Logits [... vocabulary] of the last block's resid_post [... d_model]."""
    return adapter_of(model).unembed(resid)


# ------------------------------------------------------------------------------------------------ padding


@dataclass(frozen=True)
class Packed:
    """Prompts without the padding between their tokens, as a model sees them."""

    ids: Ints  # a row's tokens, then zeros, [row pos]
    # position of the token of each column, [row column]; that of padding is the last position, behind every
    # token. None where columns are positions.
    place: Ints | None

    def at(self, columns: Ints) -> Ints:
        """Positions of some columns: [column], or [row column] where they differ from row to row."""
        return np.asarray(columns) if self.place is None else self.place[:, np.asarray(columns)]


def packed(tokens: Ints) -> Packed:
    """Take the padding out of prompts [row column]."""
    there = tokens != PADDING
    if there.all():
        return Packed(tokens, None)
    n_tokens = there.sum(axis=1)
    ids = np.zeros((len(tokens), n_tokens.max() + 1), dtype=tokens.dtype)
    ids[np.arange(ids.shape[1]) < n_tokens[:, None]] = tokens[there]
    return Packed(ids, np.where(there, there.cumsum(axis=1) - 1, ids.shape[1] - 1))


def rows_at(values: Tensor, where: Tensor) -> Tensor:
    """What stands at positions `where`, [pos] or [row pos], of `values` [row pos …]: [row pos …]."""
    if where.ndim == 1:
        return values[:, where]
    return values[torch.arange(len(values), device=values.device)[:, None], where]


def with_rows_at(values: Tensor, where: Tensor, new: Tensor) -> Tensor:
    """`values` [row pos …] with `new` at positions `where`, [pos] or [row pos]."""
    if where.ndim == 1:
        return values.index_copy(1, where, new)
    changed = values.clone()
    changed[torch.arange(len(values), device=values.device)[:, None], where] = new
    return changed


# -------------------------------------------------------------------------------------------------- edits

KINDS = ("replace", "add", "zero", "mean", "resample")
"""What an edit does. `mean` and `resample` replace as well, and say where the value is from: one mean row for
every prompt, or another run's own row for each."""


@dataclass(frozen=True)
class Edit:
    """Change a site at chosen positions of every row of a forward pass."""

    site: Site  # where
    # one of `KINDS`: "replace" the activation by `value`, "add" `value` to it, set it to "zero", to a "mean"
    # over other prompts, or "resample" it from another run, row by row
    kind: str
    recipient_pos: Ints  # positions that change, [pos] (the same in every row)
    # broadcastable to [row pos d_model], with `heads` to [row pos head d_head]; None for "zero". A mean has
    # one row at most, a resample one for every prompt.
    value: Floats | None = None
    donor_pos: Ints | None = None  # where the value came from, [pos]; a record, not used to apply the edit
    heads: Ints | None = None  # which heads of a `z` site change, [head]; the whole site when not given

    def __post_init__(self) -> None:
        def refuse(asked: str, found: str, remedy: str) -> NoReturn:
            raise EditError(f"edit {asked}", found, remedy)

        named = f"'{self.kind}' at {self.site}"
        if self.kind not in KINDS:
            refuse(f"kind '{self.kind}'", "unknown", f"One of {', '.join(KINDS)}.")
        if (self.value is None) != (self.kind == "zero"):
            remedy = "Give `value` to every kind but zero, which takes none."
            refuse(named, "value missing or not wanted", remedy)
        if self.kind == "mean" and self.per_row:
            refuse(named, f"{self._shape[0]} rows", "Give `value` as one row, the mean.")
        if self.kind == "resample" and len(self._shape) != self._axes:
            refuse(named, "its value has no axis of rows", "Give one row per prompt.")
        for name, given in (("recipient_pos", self.recipient_pos), ("heads", self.heads)):
            if given is not None and (np.ndim(given) != 1 or not len(given)):
                refuse(
                    f"at {self.site}", f"{name} is no list of one or more",
                    f"Give `{name}` as a list of whole numbers, or leave heads out for all of them.",
                )  # fmt: skip
        if self.heads is not None and self.site.hook != "z":
            remedy = f"Edit heads at L{self.site.layer}.z, or leave `heads` out."
            refuse(f"of heads at {self.site.short}", "it has no heads", remedy)

    @classmethod
    def at(
        cls, site: Site, kind: str, role: str, examples: Sequence[int], value: Floats | None = None,
        *, donor_examples: Sequence[int] | None = None, heads: Sequence[int] | None = None,
        layout: Layout = SIX_TOKENS,
    ) -> Edit:  # fmt: skip
        """An edit at a role (one of `core.ROLES`) of some examples of the recipient, from 0.

        The last example of a run is its query. `donor_examples` are those that the value came from; `layout`
        is that of the prompts, `PromptSet.layout`.

        Raises:
            SiteError: for an unknown role.
            EditError: as for any edit.
        """
        recipient, donors = (
            None if some is None else np.array([layout.position(role, i) for i in some])
            for some in (examples, donor_examples)
        )
        chosen = None if heads is None else np.asarray(heads)
        return cls(site, kind, cast("Ints", recipient), value, donors, chosen)

    @property
    def _axes(self) -> int:
        """Axes of a value that has one for the rows."""
        return 3 if self.heads is None else 4

    @property
    def _shape(self) -> tuple[int, ...]:
        return () if self.value is None else np.shape(self.value)

    @property
    def per_row(self) -> bool:
        """Whether every row of a forward pass has a value of its own."""
        return len(self._shape) == self._axes and self._shape[0] > 1

    def of_rows(self, rows: slice) -> Edit:
        """The same edit for some rows of those that it was made for."""
        return replace(self, value=self.value[rows]) if self.value is not None and self.per_row else self


def apply_edit(edit: Edit, before: Tensor, d_head: int = 1, rows: Packed | None = None) -> Tensor:
    """The activation [row pos d_model] after the edit; `d_head` is a head's width, for edits of heads.

    `rows` are the prompts that run, where they have padding.
    """
    columns = np.asarray(edit.recipient_pos)
    n_columns = before.shape[1] if rows is None or rows.place is None else rows.place.shape[1]
    if columns.max() >= n_columns or columns.min() < 0:
        raise EditError(
            f"edit at {edit.site}", f"position {columns.max()} of {n_columns}",
            f"Give recipient_pos from 0 to {n_columns - 1}.",
        )  # fmt: skip
    where = torch.as_tensor(columns if rows is None else rows.at(columns), device=before.device)
    there = rows_at(before, where)
    if edit.heads is None:
        return with_rows_at(before, where, _changed(edit, there))
    parts = there.unflatten(-1, (-1, d_head))  # [row pos head d_head]
    heads = torch.as_tensor(np.asarray(edit.heads), device=before.device)
    if int(heads.max()) >= parts.shape[2] or int(heads.min()) < 0:
        raise EditError(
            f"edit of head {int(heads.max())} at {edit.site.short}", f"it has {parts.shape[2]} heads",
            "Choose one of these.",
        )  # fmt: skip
    after = parts.index_copy(2, heads, _changed(edit, parts[:, :, heads])).flatten(2)
    return with_rows_at(before, where, after)


def _changed(edit: Edit, before: Tensor) -> Tensor:
    """What stands at the edit's positions (and heads) after it, from what stood there."""
    if edit.value is None:
        return torch.zeros_like(before)
    value = torch.as_tensor(np.asarray(edit.value), dtype=before.dtype, device=before.device)
    try:
        value = value.expand_as(before)
    except RuntimeError as cause:
        raise EditError(
            f"edit '{edit.kind}' at {edit.site}",
            f"its value is {tuple(value.shape)}, the activation there {tuple(before.shape)}",
            "Give [row pos d_model], or what broadcasts to it.",
        ) from cause
    return (value + before) if edit.kind == "add" else value


# -------------------------------------------------------------------------------------------------- hooks


@dataclass
class Recording:
    """What hooks saw during one forward pass."""

    # site → activations at the asked positions, [row pos d_model]
    values: dict[Site, Tensor] = field(default_factory=dict)
    fired: list[int] = field(default_factory=list)  # how often each edit was applied, in forward passes


@contextmanager
def attached(
    model: LanguageModel, sites: Sequence[Site], positions: Ints, edits: Sequence[Edit] = (),
    rows: Packed | None = None,
) -> Iterator[Recording]:  # fmt: skip
    """Record `sites` at `positions` and apply `edits` in every forward pass inside the block.

    Edits at a site come before its recording, so a recording shows what the model went on with. Where `rows`
    are given, the prompts that run, positions are their columns.
    """
    recording = Recording(fired=[0] * len(edits))
    where = torch.as_tensor(
        np.asarray(positions) if rows is None else rows.at(positions), device=model.device()
    )

    def passes(site: Site, activation: Tensor) -> Tensor:
        for i, edit in enumerate(edits):
            if edit.site == site:
                activation = apply_edit(edit, activation, model.d_head, rows)
                recording.fired[i] += 1
        if site in sites:
            recording.values[site] = rows_at(activation, where)
        return activation

    handles: list[Any] = []
    try:
        hooked = dict.fromkeys([*sites, *(edit.site for edit in edits)])
        for site in sorted(hooked, key=lambda site: site.hook == "resid_mid"):  # after an edit of attn_out
            handles += _hooks(model.adapter, model.check_site(site), passes)
        yield recording
    finally:
        for handle in handles:
            handle.remove()
    for edit, count in zip(edits, recording.fired, strict=True):
        if count != 1:
            raise EditError(
                f"edit '{edit.kind}' at {edit.site}", f"it fired {count} times", "It must fire once."
            )


def _hooks(adapter: Adapter, site: Site, passes: Callable[[Site, Tensor], Tensor]) -> list[Any]:
    """Hooks on a block through which a site's activation `passes`, and may be changed.

    The residual between attention and MLP is given out by no module. It is the block's input plus attn_out;
    a change of it is put into attn_out, so that both the MLP and the stream that passes it by go on with it.
    """
    entered: dict[str, Tensor] = {}

    def through(activation: Tensor) -> Tensor:
        if site.hook != "resid_mid":
            return passes(site, activation)
        mid = entered["resid"] + activation
        after = passes(site, mid)
        return activation if after is mid else activation + (after - mid)

    def enter(_module: Any, args: Any) -> None:
        entered["resid"] = args[0]

    def on_input(_module: Any, args: Any) -> Any:
        return (through(args[0]), *args[1:])

    def on_output(_module: Any, _args: Any, output: Any) -> Any:
        return (through(output[0]), *output[1:]) if isinstance(output, tuple) else through(output)

    block = adapter.layers[site.layer]
    module, enters = adapter.hooked(block, site.hook)
    if enters:
        return [module.register_forward_pre_hook(on_input)]
    before = [block.register_forward_pre_hook(enter)] if site.hook == "resid_mid" else []
    return [*before, module.register_forward_hook(on_output)]


# ----------------------------------------------------------------------------------- recordings and answers

Masks = Callable[[Packed], Mapping[int, Tensor]]
LOGITS = 2**26
"""Logits that are held at a time when answers are read: 256 MiB of float32."""


@torch.no_grad()
def record(
    model: LanguageModel, tokens: Ints, sites: Sequence[Site], positions: Ints,
    *, edits: Sequence[Edit] = (), masks: Masks | None = None, batch: int = 128,
) -> dict[Site, Floats]:  # fmt: skip
    """Activations of `sites` in `tokens` [row column] at columns `positions`, float32 [row pos d_model] each.

    Only blocks up to the deepest site or edit are run; `masks` gives those of `run_blocks` for some rows.
    """
    stop = 1 + max(site.layer for site in [*sites, *(e.site for e in edits)])
    parts: dict[Site, list[np.ndarray]] = {site: [] for site in sites}
    for rows, some in batches(tokens, batch, edits):
        with attached(model, sites, positions, some, rows) as recording:
            run_blocks(
                model.network, model.embed(rows.ids), 0, stop, masks=None if masks is None else masks(rows)
            )
        for site in sites:
            parts[site].append(as_numpy(recording.values[site]))
    return {site: np.concatenate(values) for site, values in parts.items()}


@torch.no_grad()
def record_neurons(
    model: LanguageModel, tokens: Ints, layer: int, positions: Ints, *, batch: int = 128
) -> Floats:
    """Activations of a block's MLP neurons, as `record` gives a site's: [row pos neuron].

    They are what the down projection reads: act(gate) · up, or act(up) where there are no gates.
    """
    read = record(model, tokens, [site := Site(layer, "mlp_in")], positions, batch=batch)[site]
    adapter = model.adapter
    return as_numpy(adapter.neurons(adapter.layers[layer], torch.as_tensor(read).to(adapter.embeddings)))


def answer_probs(
    model: LanguageModel, tokens: Ints, positions: Ints,
    *, extra: tuple[str, ...] = (), edits: Sequence[Edit] = (), batch: int = 128,
) -> AnswerProbs:  # fmt: skip
    """log P(answer) read at columns `positions`, [row pos answer]: the answers of `edited_answers`."""
    return edited_answers(model, tokens, positions, edits, extra=extra, batch=batch).answers


@dataclass(frozen=True)
class EditedAnswers:
    """What a model answers under edits, and proof that they happened."""

    answers: AnswerProbs  # log_prob as [row pos answer]
    # rows in which each edit was applied, [edit]; all of them, or the run would have failed
    fired: tuple[int, ...]


@torch.no_grad()
def edited_answers(
    model: LanguageModel, tokens: Ints, positions: Ints, edits: Sequence[Edit],
    *, extra: tuple[str, ...] = (), batch: int = 128,
) -> EditedAnswers:  # fmt: skip
    """log P(answer) over the full vocabulary, read at columns `positions`, and how often each edit fired.

    Every row of `tokens` [row column] is edited, at one site in the order of `edits`. `extra` are answers to
    read besides the numbers 0–999.
    """
    refuse_part(model)
    answers, ids = model.answer_space(extra)
    parts, fired = [], np.zeros(len(edits), dtype=int)
    for rows, some in batches(tokens, batch, edits):
        with attached(model, (), positions, some, rows) as recording:
            resid = run_blocks(model.network, model.embed(rows.ids), 0, model.n_blocks)
        fired += len(rows.ids) * np.array(recording.fired, dtype=int)
        read = rows_at(resid, torch.as_tensor(rows.at(positions), device=resid.device))
        parts.append(read_answers(model, read, ids).cpu().numpy())
        if np.isnan(parts[-1]).any():
            raise ModelError(
                f"logits of '{model.name}'", "they are not finite",
                "Check that its weights are; float16 overflows where bfloat16 and float32 do not.",
            )  # fmt: skip
    return EditedAnswers(AnswerProbs(answers, np.concatenate(parts)), tuple(fired.tolist()))


@torch.no_grad()
def record_and_answer(
    model: LanguageModel, tokens: Ints, sites: Sequence[Site], positions: Ints, answer_positions: Ints,
    *, extra: tuple[str, ...] = (), shared: bool = False, batch: int = 128,
) -> Iterator[tuple[dict[Site, Tensor], AnswerProbs]]:  # fmt: skip
    """Activations and answers from the same forward pass, batch by batch.

    Sites are recorded at columns `positions` [pos] of `tokens` [row column], float32 [row pos d_model] on the
    model's device; answers are read at `answer_positions` [answer pos], log_prob as [row answer pos, answer].
    """
    refuse_part(model)
    answers, ids = model.answer_space(extra, shared=shared)
    last_is_recorded = any(site.layer == model.n_blocks - 1 for site in sites)
    for rows, _ in batches(tokens, batch, ()):
        where = torch.as_tensor(rows.at(answer_positions), device=model.device())
        with attached(model, sites, positions, rows=rows) as recording:
            embedded = model.embed(rows.ids)
            if last_is_recorded:
                read = rows_at(run_blocks(model.network, embedded, 0, model.n_blocks), where)
            else:
                read = run_to_end(model.network, embedded, where)
        probs = AnswerProbs(answers, read_answers(model, read, ids).cpu().numpy())
        yield {site: recording.values[site].float() for site in sites}, probs


def refuse_part(model: LanguageModel) -> None:
    """Raise a ModelError when only some blocks are loaded: there are no logits."""
    if not model.whole:
        raise ModelError(
            f"logits of '{model.name}'", f"only {model.n_blocks} blocks are loaded", "Load all of them."
        )


def read_answers(model: LanguageModel, resid: Tensor, ids: Tensor) -> Tensor:
    """log P of the answers `ids` [answer] from the last block's resid_post [... d_model], as [... answer].

    In float32, or float64 for a model in float64. Logits over the whole vocabulary, which the normaliser
    needs, exist for `LOGITS` entries at a time.
    """
    rows, chosen = resid.flatten(0, -2), ids.to(resid.device)
    parts = []
    for some in rows.split(max(1, LOGITS // model.network.config.vocab_size)):
        logits = unembed(model.network, some)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        parts.append(logits[:, chosen] - logits.logsumexp(dim=-1, keepdim=True))
    return torch.cat(parts).unflatten(0, resid.shape[:-1])


def batches(tokens: Ints, batch: int, edits: Sequence[Edit]) -> Iterator[tuple[Packed, tuple[Edit, ...]]]:
    """Rows of `tokens` [row column] without padding, and the edits of these rows, `batch` at a time."""
    for edit in edits:
        by_row = edit.per_row or edit.kind == "resample"
        if edit.value is not None and by_row and len(edit.value) != len(tokens):
            raise EditError(
                f"edit at {edit.site}", f"{len(edit.value)} rows of values for {len(tokens)} of tokens",
                "Give one row per prompt.",
            )  # fmt: skip
    for start in range(0, len(tokens), batch):
        rows = slice(start, start + batch)
        yield packed(tokens[rows]), tuple(edit.of_rows(rows) for edit in edits)
