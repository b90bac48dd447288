"""The recorded prompts as a model's tokens, position by position; and prompts as long without the task.

A tokenizer that splits a prompt otherwise is refused: a position would then be another token's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from iclens.errors import TokenizerError
from iclens.study.replicate.recorded import Recorded, RecordedPrompt
from iclens.tables.arrays import Ints
from iclens.tasks.rendering import bos_id, text_ids

_LABEL_AFTER = (",", " ")
"""The two tokens before a label."""


def encoded(tokenizer: Any, prompt: RecordedPrompt, x: int | None = None) -> Ints:
    """Token ids up to the position that is read, [pos]; later ones cannot be seen from there.

    Args:
        tokenizer: of the model.
        prompt: as recorded.
        x: stands for `{x}`.

    Raises:
        TokenizerError: naming the first token that is another one.
    """
    wanted = [piece.format(x=x) for piece in prompt.tokens]
    asked = f"the recorded tokens of the prompt '{prompt.name}'"
    remedy = "Use a model whose tokenizer splits numbers and brackets as Llama-3's does."
    bos = bos_id(tokenizer)
    if bos is None:
        raise TokenizerError(asked, "the model has no BOS token, with which they begin", remedy)
    ids = [bos, *text_ids(tokenizer, "".join(wanted))]
    pieces = [tokenizer.decode([i]) for i in ids]
    for place, (piece, token) in enumerate(zip(pieces[1:], wanted, strict=False), start=1):
        if piece != token:
            raise TokenizerError(asked, f"token {place} is {piece!r} in place of {token!r}", remedy)
    if len(ids) != 1 + len(wanted):
        raise TokenizerError(asked, f"{len(ids)} tokens in place of {1 + len(wanted)}", remedy)
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
        prompt: as recorded.
        tokens: its ids up to the position that is read, [pos].
        draws: how many.
        rng: draws the moves.
    """
    pieces = ("", *prompt.tokens)  # BOS first, as in the ids
    places = [i for i in range(2, len(tokens)) if pieces[i - 2 : i] == _LABEL_AFTER and pieces[i].isdigit()]
    rows = np.tile(tokens, (draws, 1))
    for row in rows:
        order = rng.permutation(len(places))
        row[np.array(places)[order]] = tokens[np.array(places)[np.roll(order, 1)]]
    return rows
