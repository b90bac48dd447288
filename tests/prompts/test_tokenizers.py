"""Prompts under real tokenizers of many families: spans cover the text, `pre` predicts the begin of y."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from iclens.core import PADDING, SPANS
from iclens.prompts.build import build_prompts
from iclens.prompts.render import (
    TEMPLATES,
    Pair,
    answer_ids,
    bos_id,
    laid_out,
    layout_of,
    parse_template,
    render,
    split,
)
from iclens.prompts.tasks import parse_task

FAMILIES = {
    "llama3": "<|begin_of_text|>", "llama2": "<s>", "gemma2": "<bos>", "gpt2": "<|endoftext|>",
    "qwen2_5": None, "mistral_nemo": "<s>", "deepseek_v3": "<｜begin▁of▁sentence｜>", "yi": "<|startoftext|>",
}  # fmt: skip
"""Tokenizer → what its sequences begin with."""
TEXTS = (*TEMPLATES, "Q: {x}\nA: {y}\n\n", "{x} -> {y}\n", "the opposite of {x} is {y}. ")
WORDS = st.text(st.sampled_from("abcxyzABC0123456789-'éßñ東京"), min_size=1, max_size=9).filter(
    lambda text: text[0].isalnum() and text[-1].isalnum()
)


@dataclass(frozen=True)
class Held:
    """A tokenizer, which alone would be shown with its whole vocabulary."""

    name: str
    own: Any = field(repr=False)


@pytest.fixture(scope="module", params=FAMILIES)
def held(request: pytest.FixtureRequest, tokenizers_folder: Path) -> Held:
    folder = tokenizers_folder / f"tokenizer-{request.param}" / "models"
    return Held(request.param, AutoTokenizer.from_pretrained(folder, clean_up_tokenization_spaces=False))


def test_what_sequences_begin_with(held: Held) -> None:
    bos = bos_id(held.own)
    named = None if bos is None else held.own.convert_ids_to_tokens([bos])[0]
    assert named == FAMILIES[held.name]


@settings(max_examples=25, deadline=None)
@given(
    pairs=st.lists(st.tuples(WORDS, WORDS), min_size=1, max_size=5),
    template=st.sampled_from(TEXTS),
)  # fmt: skip
def test_spans_cover_the_text_and_come_back(pairs: list[Pair], template: str, held: Held) -> None:
    """What is decoded of the tokens up to the end of a span is the text up to there, but for spaces."""
    tokenizer = held.own
    written = parse_template(template)
    (one,) = split(tokenizer, [pairs], written)
    text = render(pairs, written)
    assert tokenizer.decode(one.ids).lstrip(" ") == text
    assert (np.diff(one.span) >= 0).all()
    expected, pieces = "\n", [text for x, y in pairs for text in written.spans(x, y)]
    for span, piece in enumerate(pieces, start=1):
        expected += piece
        n = int((one.span <= span).sum())
        upto, beyond = (tokenizer.decode(one.ids[:m]).lstrip(" ") for m in (n, n + 1))
        assert expected.startswith(upto), "no token of the span reaches beyond it"
        # The next one does, or it is the space with which the next span begins.
        assert n == len(one.ids) or len(beyond) > len(expected.rstrip(" "))
        if SPANS[(span - 1) % len(SPANS)] in ("x", "y"):
            assert (one.span == span).any()
    bos = bos_id(tokenizer)
    layout = layout_of([one], bos)
    (row,) = laid_out([one], layout, bos, len(pairs))
    ids = row[row != PADDING]
    assert ids.tolist() == ([] if bos is None else [bos]) + one.ids.tolist()


@pytest.mark.parametrize("template", [TEXTS[0], *TEXTS[-3:]])
@pytest.mark.parametrize("spec", ["2x+3", "pairs:capital"])
def test_prompts_of_tasks(spec: str, template: str, held: Held) -> None:
    """Roles have the same columns in every arm, and the first token of y stands behind `pre`."""
    tokenizer = held.own
    arms = {
        arm: build_prompts(
            tokenizer, parse_task(spec), arm=arm, n_prompts=3, n_examples=4, seed=0, template=template
        )
        for arm in ("T", "S", "D")
    }  # fmt: skip
    assert len({prompts.layout for prompts in arms.values()}) == 1
    made = arms["T"]
    pre, lab = made.positions("pre"), made.positions("lab")
    for j, (start, end) in enumerate(zip(pre + 1, lab + 1, strict=True)):
        behind = [row[row != PADDING][0] for row in made.tokens[:, start:end]]
        assert behind == answer_ids(tokenizer, made.y[:, j].tolist(), parse_template(template)).tolist()
    for row, x, y in zip(made.tokens, made.x, made.y, strict=True):
        ids = row[row != PADDING][bos_id(tokenizer) is not None :]
        text = render(list(zip(x, y, strict=True)), parse_template(template))
        assert tokenizer.decode(ids).lstrip(" ") == text
