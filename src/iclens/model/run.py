"""One forward pass: what it records, what it edits, and the answers that it gives."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from iclens.core import EditError, ModelError, Site, position
from iclens.model.load import LanguageModel, as_numpy
from iclens.model.shape import refuse_longer, window
from iclens.prompts.beliefs import AnswerProbs
from iclens.table import Floats, Ints


def run_blocks(
    model: Any, resid: Tensor, start: int, stop: int, *, masks: Mapping[int, Tensor] | None = None
) -> Tensor:
    """Run blocks start..stop−1 causally.

    Args:
        model: a Hugging Face causal language model with `model.layers` and `model.rotary_emb`.
        resid: resid_pre of block `start`, [row pos d_model], positions from 0.
        start: first block.
        stop: block after the last.
        masks: block → what is added to its attention scores in place of the usual mask, [1 1 pos pos].

    Returns:
        resid_post of block stop − 1, [row pos d_model].

    Raises:
        ModelError: for more positions than the model has.
    """
    shared, special = context(model, resid), masks or {}
    for layer, block in enumerate(model.model.layers[start:stop], start):
        own = {"attention_mask": special[layer]} if layer in special else {}
        resid = block(resid, **(shared | own))
    return resid


def run_to_end(model: Any, resid: Tensor, where: Tensor) -> Tensor:
    """Run all blocks causally, and the last one's MLP at the positions `where` alone.

    Hooks on the last block itself do not fire, and those on its MLP see these positions only.

    Args:
        model: a whole Hugging Face causal language model.
        resid: resid_pre of block 0, [row pos d_model].
        where: positions that are read, [read].

    Returns:
        resid_post of the last block there, [row read d_model].

    Raises:
        ModelError: for more positions than the model has.
    """
    last = model.model.layers[-1]
    resid = run_blocks(model, resid, 0, len(model.model.layers) - 1)
    return feed(last, attend(last, resid, context(model, resid))[:, where])


def attend(block: Any, resid: Tensor, context: Mapping[str, Any]) -> Tensor:
    """A block's resid_mid from its resid_pre [row pos d_model].

    Args:
        block: a Llama block.
        resid: resid_pre.
        context: what its attention is told besides: positions, their rotation, the mask, a cache.
    """
    attended, _ = block.self_attn(block.input_layernorm(resid), **context)
    return resid + attended


def feed(block: Any, mid: Tensor) -> Tensor:
    """A block's resid_post from its resid_mid [... d_model]."""
    return mid + block.mlp(block.post_attention_layernorm(mid))


def neurons(block: Any, mlp_in: Tensor) -> Tensor:
    """Activations of a block's MLP neurons, act(gate) · up, [... d_mlp], from what it reads [... d_model]."""
    mlp = block.mlp
    return mlp.act_fn(mlp.gate_proj(mlp_in)) * mlp.up_proj(mlp_in)


def context(model: Any, resid: Tensor) -> dict[str, Any]:
    """What a block is told besides the residual [row pos d_model]: positions, their rotation, the mask.

    Raises:
        ModelError: for more positions than the model has.
    """
    length = resid.shape[1]
    refuse_longer(length, model.config.max_position_embeddings, "the model")
    positions = torch.arange(length, device=resid.device)[None]
    return {
        "attention_mask": _mask(model, resid), "position_ids": positions,
        "position_embeddings": model.model.rotary_emb(resid, positions),
    }  # fmt: skip


def visible(model: Any, queries: Tensor, keys: Tensor) -> Tensor:
    """Whether attention from positions `queries` sees positions `keys`, bool [query key].

    No query sees a later key, nor one that lies a sliding window or more behind it.
    """
    behind, reach = queries[:, None] - keys[None], window(model)
    return (behind >= 0) if reach is None else (behind >= 0) & (behind < reach)


def _mask(model: Any, resid: Tensor) -> Tensor | None:
    """What is added to attention scores so that no position sees more than it may, [1 1 pos pos].

    None under SDPA where every earlier key is seen: it is causal by itself when it is given no mask, whereas
    eager attention would see everything.
    """
    length, reach = resid.shape[1], window(model)
    if model.config._attn_implementation != "eager" and (reach is None or length <= reach):
        return None
    positions = torch.arange(length, device=resid.device)
    return added_to_scores(visible(model, positions, positions), resid)[None, None]


def added_to_scores(seen: Tensor, like: Tensor) -> Tensor:
    """0 where a key is seen, elsewhere a number that no score outweighs, in the dtype of `like`."""
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, torch.finfo(like.dtype).min
    )


def unembed(model: Any, resid: Tensor) -> Tensor:
    """Logits [... vocabulary] of the last block's resid_post [... d_model]."""
    return model.lm_head(model.model.norm(resid))


KINDS = ("replace", "add", "zero", "mean", "resample")
"""What an edit does. `mean` and `resample` replace as well, and say where the value is from: one mean row for
every prompt, or another run's own row for each."""


@dataclass(frozen=True)
class Edit:
    """Change a site at chosen positions of every row of a forward pass.

    Args:
        site: where.
        kind: one of `KINDS`: "replace" the activation by `value`, "add" `value` to it, set it to "zero", to a
            "mean" over other prompts, or "resample" it from another run, row by row.
        recipient_pos: positions that change, [pos] (the same in every row).
        value: broadcastable to [row pos d_model], with `heads` to [row pos head d_head]; None for "zero".
            A mean has one row at most, a resample one for every prompt.
        donor_pos: where the value came from, [pos]; a record, not used to apply the edit.
        heads: which heads of a `z` site change, [head]; the whole site when not given.
    """

    site: Site
    kind: str
    recipient_pos: Ints
    value: Floats | None = None
    donor_pos: Ints | None = None
    heads: Ints | None = None

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise EditError(f"edit kind '{self.kind}'", "unknown", f"One of {', '.join(KINDS)}.")
        if (self.value is None) != (self.kind == "zero"):
            raise EditError(
                f"edit '{self.kind}' at {self.site}",
                "value missing or not wanted",
                "Give `value` to every kind but zero, which takes none.",
            )
        if self.kind == "mean" and self.per_row:
            raise EditError(
                f"edit 'mean' at {self.site}", f"{self._shape[0]} rows", "Give `value` as one row, the mean."
            )
        if self.kind == "resample" and len(self._shape) != self._axes:
            raise EditError(
                f"edit 'resample' at {self.site}", "its value has no axis of rows", "Give one row per prompt."
            )
        for name, given in (("recipient_pos", self.recipient_pos), ("heads", self.heads)):
            if given is not None and (np.ndim(given) != 1 or not len(given)):
                raise EditError(
                    f"edit at {self.site}",
                    f"{name} is no list of one or more",
                    f"Give `{name}` as a list of whole numbers, or leave heads out for all of them.",
                )
        if self.heads is not None and self.site.hook != "z":
            raise EditError(
                f"edit of heads at {self.site.short}",
                "it has no heads",
                f"Edit heads at L{self.site.layer}.z, or leave `heads` out.",
            )

    @classmethod
    def at(
        cls, site: Site, kind: str, role: str, examples: Sequence[int], value: Floats | None = None,
        *, donor_examples: Sequence[int] | None = None, heads: Sequence[int] | None = None,
    ) -> Edit:  # fmt: skip
        """An edit at a role of some examples.

        Args:
            site: where.
            kind: one of `KINDS`.
            role: one of `core.ROLES`.
            examples: examples of the recipient, from 0; the last of a run is its query.
            value: as above.
            donor_examples: examples of the donor that the value came from.
            heads: as above.

        Raises:
            SiteError: for an unknown role.
            EditError: as for any edit.
        """
        donors = None if donor_examples is None else np.array([position(role, i) for i in donor_examples])
        chosen = None if heads is None else np.asarray(heads)
        return cls(site, kind, np.array([position(role, i) for i in examples]), value, donors, chosen)

    @property
    def _axes(self) -> int:
        """Axes of a value that has one for the rows."""
        return 3 if self.heads is None else 4

    @property
    def _shape(self) -> tuple[int, ...]:
        """Shape of the value."""
        return () if self.value is None else np.shape(self.value)

    @property
    def per_row(self) -> bool:
        """Whether every row of a forward pass has a value of its own."""
        return len(self._shape) == self._axes and self._shape[0] > 1

    def of_rows(self, rows: slice) -> Edit:
        """The same edit for some rows of those that it was made for."""
        return replace(self, value=self.value[rows]) if self.value is not None and self.per_row else self


LOGITS = 2**26
"""Logits that are held at a time when answers are read: 256 MiB of float32."""


@dataclass
class Recording:
    """What hooks saw during one forward pass.

    Args:
        values: site → activations at the asked positions, [row pos d_model].
        fired: how often each edit was applied, in forward passes.
    """

    values: dict[Site, Tensor] = field(default_factory=dict)
    fired: list[int] = field(default_factory=list)


def _hook_points(model: LanguageModel, site: Site) -> tuple[Any, str]:
    """The module that holds a site, and whether it is its input or its output."""
    block = model.network.model.layers[model.check_site(site).layer]
    return {
        "resid_pre": (block, "input"),
        "resid_post": (block, "output"),
        "attn_out": (block.self_attn, "output"),
        "mlp_in": (block.mlp, "input"),
        "mlp_out": (block.mlp, "output"),
        "z": (block.self_attn.o_proj, "input"),
    }[site.hook]


def apply_edit(edit: Edit, held: Tensor, d_head: int = 1) -> Tensor:
    """The activation [row pos d_model] after the edit.

    Args:
        edit: what changes.
        held: the activation before.
        d_head: width of a head, by which an edit of heads finds its part; not used by others.

    Raises:
        EditError: when a position lies outside the prompt, or a head outside the site.
    """
    where = torch.as_tensor(np.asarray(edit.recipient_pos), device=held.device)
    if int(where.max()) >= held.shape[1] or int(where.min()) < 0:
        raise EditError(
            f"edit at {edit.site}",
            f"position {int(where.max())} of {held.shape[1]}",
            f"Give recipient_pos from 0 to {held.shape[1] - 1}.",
        )
    before = held[:, where]
    if edit.heads is not None:
        parts = before.unflatten(-1, (-1, d_head))
        heads = torch.as_tensor(np.asarray(edit.heads), device=held.device)
        if int(heads.max()) >= parts.shape[2] or int(heads.min()) < 0:
            raise EditError(
                f"edit of head {int(heads.max())} at {edit.site.short}", f"it has {parts.shape[2]} heads",
                "Choose one of these.",
            )  # fmt: skip
        after = parts.index_copy(2, heads, _changed(edit, parts[:, :, heads])).flatten(2)
        return held.index_copy(1, where, after)
    return held.index_copy(1, where, _changed(edit, before))


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


@contextmanager
def attached(
    model: LanguageModel, sites: Sequence[Site], positions: Ints, edits: Sequence[Edit] = ()
) -> Iterator[Recording]:
    """Record `sites` at `positions` and apply `edits` in every forward pass inside the block.

    Edits at a site come before its recording, so a recording shows what the model went on with.

    Raises:
        EditError: on leaving, when an edit did not fire exactly once.
        SiteError: when the model has no such block.
    """
    recording = Recording(fired=[0] * len(edits))
    where = torch.as_tensor(np.asarray(positions), device=model.device())

    def seen(site: Site, held: Tensor) -> Tensor:
        for i, edit in enumerate(edits):
            if edit.site == site:
                held = apply_edit(edit, held, model.d_head)
                recording.fired[i] += 1
        if site in sites:
            recording.values[site] = held[:, where]
        return held

    handles = []
    try:
        asked = dict.fromkeys([*sites, *(edit.site for edit in edits)])
        for site in sorted(asked, key=lambda site: site.hook == "resid_mid"):  # after an edit of attn_out
            if site.hook == "resid_mid":
                handles += _on_mid(model, site, seen)
                continue
            module, side = _hook_points(model, site)
            if side == "input":
                handles.append(module.register_forward_pre_hook(_on_input(site, seen)))
            else:
                handles.append(module.register_forward_hook(_on_output(site, seen)))
        yield recording
    finally:
        for handle in handles:
            handle.remove()
    for edit, count in zip(edits, recording.fired, strict=True):
        if count != 1:
            raise EditError(
                f"edit '{edit.kind}' at {edit.site}", f"it fired {count} times", "It must fire once."
            )


def _on_mid(model: LanguageModel, site: Site, seen: Callable[[Site, Tensor], Tensor]) -> list[Any]:
    """Hooks for the residual between attention and MLP, which no module of the block returns.

    It is the block's input plus attn_out, and a change of it is put into attn_out, so that both the MLP and
    the stream that passes it by go on with the change.
    """
    block, entered = model.network.model.layers[model.check_site(site).layer], {}

    def enter(_module: Any, args: Any) -> None:
        entered["resid"] = args[0]

    def changed(_site: Site, attended: Tensor) -> Tensor:
        mid = entered["resid"] + attended
        after = seen(site, mid)
        return attended if after is mid else attended + (after - mid)

    return [
        block.register_forward_pre_hook(enter),
        block.self_attn.register_forward_hook(_on_output(site, changed)),
    ]


def _on_input(site: Site, seen: Callable[[Site, Tensor], Tensor]) -> Callable[..., Any]:
    return lambda _module, args: (seen(site, args[0]), *args[1:])


def _on_output(site: Site, seen: Callable[[Site, Tensor], Tensor]) -> Callable[..., Any]:
    def hook(_module: Any, _args: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (seen(site, output[0]), *output[1:])
        return seen(site, output)

    return hook


@torch.no_grad()
def record(
    model: LanguageModel, tokens: Ints, sites: Sequence[Site], positions: Ints,
    *, edits: Sequence[Edit] = (), batch: int = 128,
) -> dict[Site, Floats]:  # fmt: skip
    """Activations of `sites` at `positions`.

    Args:
        model: the model; only blocks up to the deepest site or edit are run.
        tokens: [row pos].
        sites: what to record.
        positions: [pos].
        edits: applied to every row.
        batch: rows per forward pass.

    Returns:
        site → float32 [row pos d_model].

    Raises:
        EditError: when an edit has values for another number of rows, or did not fire.
    """
    stop = 1 + max(site.layer for site in [*sites, *(e.site for e in edits)])
    parts: dict[Site, list[np.ndarray]] = {site: [] for site in sites}
    for rows, some in batches(tokens, batch, edits):
        with attached(model, sites, positions, some) as seen:
            run_blocks(model.network, model.embed(rows), 0, stop)
        for site in sites:
            parts[site].append(as_numpy(seen.values[site]))
    return {site: np.concatenate(found) for site, found in parts.items()}


@torch.no_grad()
def record_neurons(
    model: LanguageModel, tokens: Ints, layer: int, positions: Ints, *, batch: int = 128
) -> Floats:
    """Activations of a block's MLP neurons at `positions`, float32 [row pos neuron].

    Args:
        model: the model; only blocks up to this one are run.
        tokens: [row pos].
        layer: block.
        positions: [pos].
        batch: rows per forward pass.

    Raises:
        SiteError: for a layer that the model does not have.
    """
    site = Site(layer, "mlp_in")
    read = record(model, tokens, [site], positions, batch=batch)[site]
    block = model.network.model.layers[layer]
    return as_numpy(neurons(block, torch.as_tensor(read).to(block.mlp.gate_proj.weight)))


@torch.no_grad()
def answer_probs(
    model: LanguageModel, tokens: Ints, positions: Ints,
    *, extra: tuple[str, ...] = (), edits: Sequence[Edit] = (), batch: int = 128,
) -> AnswerProbs:  # fmt: skip
    """log P(answer) read at `positions`, normalised over the full vocabulary: `edited_answers`' answers.

    Args:
        model: a whole model.
        tokens: [row pos].
        positions: [pos], usually those of `pre`.
        extra: word answers to read besides the numbers 0–999.
        edits: applied to every row.
        batch: rows per forward pass.

    Returns:
        log_prob as [row pos answer].

    Raises:
        ModelError, EditError: as in `edited_answers`.
    """
    return edited_answers(model, tokens, positions, edits, extra=extra, batch=batch).answers


@dataclass(frozen=True)
class EditedAnswers:
    """What a model answers under edits, and proof that they happened.

    Args:
        answers: log_prob as [row pos answer].
        fired: rows in which each edit was applied, [edit]; all of them, or the run would have failed.
    """

    answers: AnswerProbs
    fired: tuple[int, ...]


@torch.no_grad()
def edited_answers(
    model: LanguageModel, tokens: Ints, positions: Ints, edits: Sequence[Edit],
    *, extra: tuple[str, ...] = (), batch: int = 128,
) -> EditedAnswers:  # fmt: skip
    """log P(answer) read at `positions` under `edits`, and how often each fired.

    Args:
        model: a whole model.
        tokens: [row pos].
        positions: [pos], usually those of `pre`.
        edits: applied to every row, those of one site in their order.
        extra: word answers to read besides the numbers 0–999.
        batch: rows per forward pass.

    Raises:
        ModelError: when only some blocks are loaded, or logits are not finite.
        EditError: when an edit did not fire once in every row, lies outside the prompt, or has values for
            another number of rows.
    """
    refuse_part(model)
    answers, ids = model.answer_space(extra)
    where = torch.as_tensor(np.asarray(positions), device=model.device())
    parts, fired = [], np.zeros(len(edits), dtype=int)
    for rows, some in batches(tokens, batch, edits):
        with attached(model, (), positions, some) as seen:
            embedded = model.embed(rows)
            resid = run_blocks(model.network, embedded, 0, model.n_blocks)
        fired += len(rows) * np.array(seen.fired, dtype=int)
        parts.append(read_answers(model, resid[:, where], ids).cpu().numpy())
        refuse_not_finite(model, parts[-1])
    return EditedAnswers(AnswerProbs(answers, np.concatenate(parts)), tuple(fired.tolist()))


@torch.no_grad()
def record_and_answer(
    model: LanguageModel, tokens: Ints, sites: Sequence[Site], positions: Ints, answer_positions: Ints,
    *, extra: tuple[str, ...] = (), batch: int = 128,
) -> Iterator[tuple[dict[Site, Tensor], AnswerProbs]]:  # fmt: skip
    """Activations and answers from the same forward pass, batch by batch.

    Args:
        model: a whole model.
        tokens: [row pos].
        sites: what to record.
        positions: where to record it, [pos].
        answer_positions: where to read answers, [answer pos], usually those of `pre`.
        extra: word answers to read besides the numbers 0–999.
        batch: rows per forward pass.

    Yields:
        For each batch: site → float32 [row pos d_model] on the model's device, and log_prob as
            [row answer pos, answer].

    Raises:
        ModelError: when only some blocks are loaded.
    """
    refuse_part(model)
    answers, ids = model.answer_space(extra)
    where = torch.as_tensor(np.asarray(answer_positions), device=model.device())
    last_is_recorded = any(site.layer == model.n_blocks - 1 for site in sites)
    for rows, _ in batches(tokens, batch, ()):
        with attached(model, sites, positions) as seen:
            embedded = model.embed(rows)
            if last_is_recorded:
                read = run_blocks(model.network, embedded, 0, model.n_blocks)[:, where]
            else:
                read = run_to_end(model.network, embedded, where)
        probs = AnswerProbs(answers, read_answers(model, read, ids).cpu().numpy())
        yield {site: seen.values[site].float() for site in sites}, probs


def refuse_part(model: LanguageModel) -> None:
    """Raise a ModelError when only some blocks are loaded: there are no logits."""
    if not model.whole:
        raise ModelError(
            f"logits of '{model.name}'", f"only {model.n_blocks} blocks are loaded", "Load all of them."
        )


def refuse_not_finite(model: LanguageModel, log_prob: Floats) -> None:
    """Raise a ModelError when log-probabilities are NaN: there is no answer in them."""
    if np.isnan(log_prob).any():
        raise ModelError(
            f"logits of '{model.name}'", "they are not finite",
            "Check that its weights are; float16 overflows where bfloat16 and float32 do not.",
        )  # fmt: skip


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


def batches(tokens: Ints, batch: int, edits: Sequence[Edit]) -> Iterator[tuple[Ints, tuple[Edit, ...]]]:
    """Rows and the edits of these rows, `batch` at a time.

    Raises:
        EditError: when an edit has values for another number of rows.
    """
    for edit in edits:
        own = edit.per_row or edit.kind == "resample"
        if edit.value is not None and own and len(edit.value) != len(tokens):
            raise EditError(
                f"edit at {edit.site}", f"{len(edit.value)} rows of values for {len(tokens)} of tokens",
                "Give one row per prompt.",
            )  # fmt: skip
    for start in range(0, len(tokens), batch):
        rows = slice(start, start + batch)
        yield tokens[rows], tuple(edit.of_rows(rows) for edit in edits)
