"""Which text does each token stand for, where a character may be spread over several tokens?

A byte-level vocabulary cuts an emoji or a Chinese character into pieces that mean nothing alone. 1. Every
token is turned into the bytes that it stands for, as its tokenizer's decoder would. 2. The bytes of all of
them are read as UTF-8. 3. A character belongs to the token that holds its first byte; the tokens with its
other bytes continue it. A byte that belongs to no character is spelt out as `\\xe2`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import pairwise
from typing import Any

BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""How a sentencepiece vocabulary with byte fallback spells single bytes."""
_EURO = [BYTE_PIECES[byte] for byte in "€".encode()]
_SPACE, _SPELT_SPACE = "▁", "Ġ"


@dataclass(frozen=True)
class TokenText:
    """What one token stands for.

    Args:
        text: the characters that begin in it, a special token's name, or "" where none begins.
        continues: whether it begins with bytes of a character that began in a token before it.
    """

    text: str
    continues: bool = False


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[TokenText]:
    """The text of every token of a sequence; joined, they are the decoded sequence.

    Special tokens stand by name, and invalid bytes as `\\xe2`, where decoding gives U+FFFD.

    Args:
        tokenizer: a Hugging Face tokenizer, of any kind.
        ids: token ids, [pos].

    Returns:
        [pos].
    """
    if not (ids := [int(i) for i in ids]):
        return []
    decode_bytes = _reader(tokenizer)
    if decode_bytes is None:
        return _by_decoding(tokenizer, ids)
    added = {i: str(token.content).encode() for i, token in tokenizer.added_tokens_decoder.items()}
    pieces = tokenizer.convert_ids_to_tokens(ids)
    parts = [added[i] if i in added else decode_bytes(p) for i, p in zip(ids, pieces, strict=True)]
    texts = merged(parts)
    whole = "".join(text.text for text in texts)
    if whole.startswith(" ") and _decoded(tokenizer, ids) == whole[1:]:  # the space that a decoder strips
        texts[0] = TokenText(texts[0].text.removeprefix(" "), texts[0].continues)
    return texts


def merged(parts: Sequence[bytes]) -> list[TokenText]:
    """The text of every part of a byte string.

    Args:
        parts: the bytes of each token, [pos].

    Returns:
        [pos].
    """
    texts, owners = [""] * len(parts), [pos for pos, part in enumerate(parts) for _ in part]
    begins = [False] * len(owners)
    for start, text in _characters(b"".join(parts)):
        begins[start] = True
        texts[owners[start]] += text
    first = {owner: byte for byte, owner in reversed(list(enumerate(owners)))}
    return [TokenText(text, pos in first and not begins[first[pos]]) for pos, text in enumerate(texts)]


def _characters(whole: bytes) -> Iterator[tuple[int, str]]:
    """Where each character begins, and the character; a byte of none is spelt out."""
    start = 0
    for character in whole.decode("utf-8", errors="surrogateescape"):
        if "\udc80" <= character <= "\udcff":
            yield start, f"\\x{whole[start]:02x}"
            start += 1
        else:
            yield start, character
            start += len(character.encode())


def _reader(tokenizer: Any) -> Any:
    """How pieces of this tokenizer are read as bytes; None where they are no bytes. Its decoder is asked."""
    if tokenizer.convert_tokens_to_string([_SPELT_SPACE, _SPELT_SPACE]) == "  ":
        return _byte_level
    if tokenizer.convert_tokens_to_string(_EURO) == "€":
        return _with_fallback
    return None


def _byte_level(piece: str) -> bytes:
    spelling = _byte_spelling()
    known = [spelling[character] for character in piece if character in spelling]
    return bytes(known) if len(known) == len(piece) else piece.encode()


def _with_fallback(piece: str) -> bytes:
    if piece in BYTE_PIECES:
        return bytes([BYTE_PIECES.index(piece)])
    return piece.replace(_SPACE, " ").encode()


@cache
def _byte_spelling() -> dict[str, int]:
    """Character → byte in byte-level vocabularies: printable bytes are themselves, others follow U+0100."""
    plain = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _by_decoding(tokenizer: Any, ids: list[int]) -> list[TokenText]:
    """Each token decoded alone; where that does not join to the sequence, what it adds to those before it."""
    alone = [_decoded(tokenizer, [i]) for i in ids]
    if "".join(alone) != _decoded(tokenizer, ids):
        upto = [_decoded(tokenizer, ids[:n]) for n in range(len(ids) + 1)]
        grown = [after.removeprefix(before) for before, after in pairwise(upto)]
        alone = grown if "".join(grown) == upto[-1] else alone
    return [TokenText(text) for text in alone]


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
