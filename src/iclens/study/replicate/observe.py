"""The recorded observations on a model: lens, patches over x, sweeps from ablated donors, maps, attention.

Every step follows the recorded one: the lens without the final norm's division, heads set to zero at the last
position of the donor alone, the ablated donor's residual put into a recipient that is not ablated.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from iclens.models.attention import attention_patterns
from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.patching.heads.scores import last_position, score_maps
from iclens.patching.lens import unnormalised_logits
from iclens.study.replicate.passes import ablation_edits, patched_tops, run_donor, swept_tops, top_tokens
from iclens.study.replicate.prompts import encoded
from iclens.study.replicate.protocol import Protocol
from iclens.study.replicate.recorded import LOOKED_AT, RANKS, Lens, Observations, Recorded
from iclens.tables.arrays import Floats, Ints

Report = Callable[[str], None]


def observe(model: LanguageModel, source: Recorded, protocol: Protocol, report: Report) -> Observations:
    """Everything that was recorded, on this model.

    Args:
        model: a whole model.
        source: gives the prompts and the task.
        protocol: layers, heads and maps.
        report: told what is under way.

    Raises:
        TokenizerError: when a prompt has other tokens than recorded.
    """
    tokens = {
        name: encoded(model.tokenizer, prompt)
        for name, prompt in source.prompts.items() if prompt.x is not None
    }  # fmt: skip
    report("logit lens")
    answer = source.slope * (source.prompts["lens"].x or 0) + source.offset
    lens = read_lens(model, tokens["lens"], protocol.numbers, str(answer))
    report(f"resid_pre {protocol.patch_layer} patched for {len(protocol.x)} x")
    x = patched_x(model, source, protocol, tokens["x donor"])
    report("sweeps from ablated donors")
    length = len(tokens["sweep donor"])
    donors = {
        one.name: run_donor(model, tokens["sweep donor"], ablation_edits(model, one, length))
        for one in protocol.ablations
    }
    swept = swept_tops(model, tokens["sweep recipient"], list(donors.values()))
    report("score maps and attention")
    attention = attention_patterns(
        model, tokens["attention"][None], (protocol.attention_layer,), np.arange(len(tokens["attention"]))
    )[protocol.attention_layer][0]
    return Observations(
        lens=lens, x=x, donors={name: donor.top for name, donor in donors.items()},
        sweeps={name: tuple(map(tuple, rows)) for name, rows in zip(donors, swept, strict=True)},
        maps=read_maps(model, protocol, tokens), attention=attention,
    )  # fmt: skip


def read_lens(model: LanguageModel, tokens: Ints, numbers: tuple[str, ...], answer: str) -> Lens:
    """The lens after each block at the last position of `tokens` [pos], the final norm's division left out.

    Args:
        model: a whole model.
        tokens: [pos].
        numbers: answers among which it is read besides.
        answer: the task's own.
    """
    sites = [Site(layer, "resid_post") for layer in range(model.n_blocks)]
    held = record(model, tokens[None], sites, np.array([len(tokens) - 1]))
    logits = unnormalised_logits(model, np.stack([held[site][0, 0] for site in sites])).astype(np.float64)
    prob = _softmax(logits)
    names, ids = model.answer_space()
    among = ids.cpu().numpy()[[names.index(number) for number in numbers]]
    share = _softmax(logits[:, among])
    top = top_tokens(model, logits, LOOKED_AT)
    first = np.argsort(-logits[:, among], axis=-1, kind="stable")[:, :RANKS]  # shares may all be 0
    return Lens(
        top=tuple(tuple(row[:RANKS]) for row in top),
        prob=tuple(tuple(row) for row in np.sort(prob, axis=-1)[:, : -RANKS - 1 : -1].tolist()),
        digits=tuple(sum(token.isdigit() for token in row) for row in top),
        numbers=tuple(tuple(numbers[i] for i in row) for row in first),
        answer_share=tuple(share[:, numbers.index(answer)].tolist()),
    )


def patched_x(
    model: LanguageModel, source: Recorded, protocol: Protocol, donor: Ints
) -> tuple[tuple[str, ...], ...]:
    """Most probable tokens for every x after the patch at one layer, [x][rank]."""
    recipients = np.stack([encoded(model.tokenizer, source.prompts["x recipient"], x) for x in protocol.x])
    resid = run_donor(model, donor).resid[protocol.patch_layer]
    rows = np.tile(resid, (len(recipients), 1))
    return tuple(map(tuple, patched_tops(model, recipients, rows, protocol.patch_layer)))


def read_maps(model: LanguageModel, protocol: Protocol, tokens: dict[str, Ints]) -> dict[str, Floats]:
    """Scores of every map, name → [layer head]."""
    maps = {}
    for one in protocol.maps:
        ids = tokens[one.prompt]
        edits = ablation_edits(model, protocol.ablation(one.ablation), len(ids))
        read = last_position(
            model,
            ids[None],
            reference_layer=one.reference_layer,
            layers=range(protocol.score_layers),
            edits=edits,
        )
        maps[one.name] = score_maps(model, read)[0]
    return maps


def _softmax(logits: Floats) -> Floats:
    weight = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weight / weight.sum(axis=-1, keepdims=True)
