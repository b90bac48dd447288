"""Do tokens show the text that they stand for, whatever their tokenizer and however characters are cut?"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from iclens.model.load import BYTE_PIECES, LanguageModel, TokenText, merged, token_texts

CORPUS = ["naïve café 😀😃😄👩‍👩‍👧 مرحبا بالعالم 你好世界 é̂ ạ̈ (28, 59)\n hello"] * 20
HARD = "aé😀😃👩‍👧مرحبا你好世界e\u0301\u0302 \n\t(1,)▁Ġ\u202e"
TEXTS = st.text(st.sampled_from(HARD) | st.characters(codec="utf-8"), max_size=30)


@cache
def byte_level() -> Any:
    """A small byte-level BPE, trained here; its 300 pieces cut most characters into bytes."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    every = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, initial_alphabet=every, special_tokens=["<|begin|>"], show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|begin|>")


@cache
def byte_fallback() -> Any:
    """A sentencepiece-like vocabulary: `▁` for spaces, and `<0xE2>` for what it does not hold."""
    words = ["<s>", "<unk>", "▁", "a", "▁a", "好"]
    vocabulary = {piece: i for i, piece in enumerate([*BYTE_PIECES, *words])}
    tokenizer = Tokenizer(models.BPE(vocabulary, [("▁", "a")], unk_token="<unk>", byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence([
        decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0),
    ])  # fmt: skip
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", unk_token="<unk>")


def joined(texts: list[TokenText]) -> str:
    return "".join(text.text for text in texts)


@pytest.mark.parametrize("made", [byte_level, byte_fallback])
@given(text=TEXTS)
def test_joined_they_are_the_decoded_sequence(made: Any, text: str) -> None:
    tokenizer = made()
    ids = [tokenizer.bos_token_id, *tokenizer(text).input_ids]
    found = token_texts(tokenizer, ids)
    assert len(found) == len(ids)
    assert joined(found) == tokenizer.decode(ids, clean_up_tokenization_spaces=False)
    assert all(text.continues for text in found if not text.text)
    assert joined(token_texts(tokenizer, ids[1:])) == tokenizer.decode(ids[1:])


@given(text=TEXTS)
def test_a_character_that_is_cut_off_is_spelt_out_byte_by_byte(text: str) -> None:
    tokenizer = byte_level()
    ids = tokenizer(text + "🦜").input_ids
    start = next(pos for pos, one in enumerate(token_texts(tokenizer, ids)) if "🦜" in one.text)
    assert start + 1 < len(ids)
    cut = joined(token_texts(tokenizer, ids[: start + 1]))
    assert cut.startswith(text)
    assert cut.removeprefix(text) in ("\\xf0", "\\xf0\\x9f", "\\xf0\\x9f\\xa6")


@given(text=st.text(max_size=12), cuts=st.lists(st.integers(0, 50), max_size=8))
def test_each_character_stands_where_its_first_byte_is(text: str, cuts: list[int]) -> None:
    whole = text.encode(errors="ignore")
    edges = [0, *sorted(min(cut, len(whole)) for cut in cuts), len(whole)]
    parts = [whole[a:b] for a, b in pairwise(edges)]
    found = merged(parts)
    assert joined(found) == whole.decode()
    for part, one in zip(parts, found, strict=True):
        inside = len(part) - len(part.lstrip(bytes(range(0x80, 0xC0))))
        assert one.continues == (inside > 0)
        assert len(one.text) == sum(byte & 0xC0 != 0x80 for byte in part)


def test_pieces_of_one_character_by_hand() -> None:
    assert merged([b"a\xf0", b"\x9f\x98", b"\x80b", b"c"]) == [
        TokenText("a😀"), TokenText("", True), TokenText("b", True), TokenText("c"),
    ]  # fmt: skip
    assert merged([b"\x80x", b"", b"\xe2\x82"]) == [
        TokenText("\\x80x"), TokenText(""), TokenText("\\xe2\\x82"),
    ]  # fmt: skip


def test_special_tokens_stand_by_name() -> None:
    tokenizer = byte_level()
    ids = [0, *tokenizer(" 한").input_ids, 0]
    found = token_texts(tokenizer, ids)
    assert found[0] == found[-1] == TokenText("<|begin|>")
    assert joined(found[1:-1]) == " 한" and any(one.continues for one in found)


def test_a_leading_space_is_dropped_only_where_the_decoder_drops_it() -> None:
    tokenizer = byte_fallback()
    ids = tokenizer("a 好€").input_ids
    assert [one.text for one in token_texts(tokenizer, ids)] == ["a", " ", "好", "€", "", ""]
    assert [one.text for one in token_texts(tokenizer, [256, *ids])][:2] == ["<s>", " a"]


def test_the_built_in_tokenizer(tiny_model: LanguageModel) -> None:
    ids = tiny_model.tokenizer("\n(28, hot)\n").input_ids
    assert [one.text for one in token_texts(tiny_model.tokenizer, ids)] == [
        "<|begin_of_text|>", "\n", "(", "28", ",", " ", "hot", ")\n",
    ]  # fmt: skip
    assert token_texts(tiny_model.tokenizer, []) == []


def test_words_that_a_decoder_puts_apart() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "play": 1, "##ing": 2, "now": 3}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.Whitespace(), decoders.WordPiece()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    assert [one.text for one in token_texts(fast, [1, 2, 3])] == ["play", "ing", " now"]
