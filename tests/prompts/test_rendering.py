"""Six tokens to an example, or a refusal that names the string and its pieces."""

from collections.abc import Sequence
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from iclens.builtin.model import BOS, build_tokenizer
from iclens.core import ROLES, TEMPLATE, TaskError, TokenizerError, position
from iclens.prompts.render import (
    DEFAULT,
    TEMPLATES,
    Template,
    answer_ids,
    check_tokenizer,
    encode,
    fingerprint,
    parse_template,
    render,
    spelling,
    supported_templates,
)
from iclens.prompts.tasks import LABEL_WORDS, LETTERS, WORDS


class Pieces:
    """A tokenizer that splits text greedily into the longest of its pieces.

    Args:
        pieces: its vocabulary, after `<s>` (id 0).
        before, after: what it puts around a text by itself.
        bos: the id that it names as BOS.
    """

    def __init__(
        self, *pieces: str, before: Sequence[int] = (0,), after: Sequence[int] = (), bos: int | None = 0
    ) -> None:
        self.pieces = ["<s>", *sorted(pieces, key=len, reverse=True)]
        self.before, self.after, self.bos_token_id = list(before), list(after), bos

    def __call__(
        self, text: str, *, add_special_tokens: bool = True, verbose: bool = True
    ) -> SimpleNamespace:
        ids = []
        while text:
            ids.append(next(i for i, piece in enumerate(self.pieces) if text.startswith(piece)))
            text = text.removeprefix(self.pieces[ids[-1]])
        return SimpleNamespace(input_ids=[*self.before, *ids, *self.after] if add_special_tokens else ids)

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [self.pieces[i].replace(" ", "Ġ") for i in ids]

    def decode(self, token_ids: list[int]) -> str:
        return "".join(self.pieces[i] for i in token_ids)

    def get_vocab(self) -> dict[str, int]:
        return {piece: i for i, piece in enumerate(self.pieces)}


LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|"
    r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
"""How Llama-3 splits text before it merges: a word takes the space, or the bracket, before it."""


EVERY_WORD = (*LETTERS, *WORDS, *LABEL_WORDS)


def joining_tokenizer(known: Sequence[str] = EVERY_WORD) -> PreTrainedTokenizerFast:
    """Llama-3's split and byte-level merges over a small vocabulary, in which words begin with their space.

    `hot` alone is also made by merges, so that `(hot` is two tokens; of other words after a bracket, letters.
    """
    words = [f"Ġ{word}" for word in known]
    merges = [("h", "o"), ("ho", "t")]
    pieces = [
        BOS, *sorted(pre_tokenizers.ByteLevel.alphabet()), *map(str, range(10, 1000)), *words,
        ")Ċ", "]Ċ", "(a", *map("".join, merges),
    ]  # fmt: skip
    vocabulary = {piece: i for i, piece in enumerate(pieces)}
    backend = Tokenizer(models.BPE(vocabulary, merges, ignore_merges=True))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, clean_up_tokenization_spaces=False
    )


@pytest.fixture(scope="module")
def joining() -> PreTrainedTokenizerFast:
    return joining_tokenizer()


WHOLE = [str(n) for n in range(1000)]
MARKS = ["(", ")\n", ",", " ", "\n"]
OTHER_MARKS = ["[", "]\n", "{", ":", "}\n", "<", ";", ">\n"]


@pytest.fixture(scope="module")
def extended() -> PreTrainedTokenizerFast:
    """The built-in tokenizer with the marks of the other templates."""
    tokenizer = build_tokenizer()
    assert tokenizer.add_tokens(OTHER_MARKS) == len(OTHER_MARKS)
    return tokenizer


def test_render() -> None:
    assert render([("28", "59"), ("7", "17")]) == "\n(28, 59)\n(7, 17)\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("(x, y)", "\n(28, 59)\n(7, 17)\n"),
        ("[x, y]", "\n[28, 59]\n[7, 17]\n"),
        ("{x: y}", "\n{28: 59}\n{7: 17}\n"),
        ("<x; y>", "\n<28; 59>\n<7; 17>\n"),
    ],
)
def test_render_in_each_template(name: str, text: str) -> None:
    assert render([("28", "59"), ("7", "17")], parse_template(name)) == text


def test_a_template_is_named_as_it_is_written() -> None:
    assert list(TEMPLATES) == ["(x, y)", "[x, y]", "{x: y}", "<x; y>"]
    assert DEFAULT.name == TEMPLATE
    assert Template("|", " ->", "|\n").name == "|x -> y|"


def test_an_unknown_template_is_one_line_with_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"template '\[x,y\]\\n': unknown. Nearest: \[x, y\]\.$"):
        parse_template("[x,y]\n")


def test_the_extended_tokenizer_supports_every_template(extended: PreTrainedTokenizerFast) -> None:
    assert supported_templates(extended) == ("(x, y)", "[x, y]", "{x: y}", "<x; y>")


@pytest.mark.parametrize("name", ["(x, y)", "[x, y]", "{x: y}", "<x; y>"])
def test_roles_of_each_template(name: str, extended: PreTrainedTokenizerFast) -> None:
    pairs = [("28", "59"), ("hot", "cold")]
    ids = encode(extended, pairs, parse_template(name))
    assert len(ids) == 14
    text = [extended.decode([i]) for i in ids]
    for example, (x, y) in enumerate(pairs):
        found = {role: text[position(role, example)] for role in ROLES}
        assert found["open"] + "x" + found["comma"] + found["pre"] + "y" + found["close"] == name + "\n"
        assert (found["x"], found["pre"], found["lab"]) == (x, " ", y)


def test_support_is_found_by_trying() -> None:
    """One mark that joins a neighbour loses its template and no other."""
    assert supported_templates(build_tokenizer()) == ("(x, y)",)
    assert supported_templates(Pieces(*WHOLE, *MARKS, *OTHER_MARKS, ": ")) == ("(x, y)", "[x, y]", "<x; y>")
    assert supported_templates(Pieces(*WHOLE, *MARKS, *OTHER_MARKS, "]", "]\n[")) == (
        "(x, y)", "{x: y}", "<x; y>",
    )  # fmt: skip
    assert supported_templates(Pieces(*map(str, range(10)), *MARKS, *OTHER_MARKS)) == ()


@pytest.mark.parametrize("name", ["[x, y]", "{x: y}", "<x; y>"])
def test_the_built_in_tokenizer_refuses_other_templates(name: str) -> None:
    line = name.replace("x", "86").replace("y", "175")
    with pytest.raises(TokenizerError) as caught:
        encode(build_tokenizer(), [("86", "175")], parse_template(name))
    assert caught.value.asked == f"six tokens for '{line}\\n'"
    assert "'<unk>', '86'" in caught.value.found
    assert "template" in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_positions_of_the_roles() -> None:
    tokenizer = build_tokenizer()
    ids = encode(tokenizer, [("28", "59"), ("7", "17"), ("hot", "cold")])
    text = [tokenizer.decode([i]) for i in ids]
    assert ids[0] == tokenizer.convert_tokens_to_ids("<|begin_of_text|>")
    assert text[1] == "\n"
    for example, (x, y) in enumerate([("28", "59"), ("7", "17"), ("hot", "cold")]):
        found = {role: text[position(role, example)] for role in ROLES}
        assert found == {"open": "(", "x": x, "comma": ",", "pre": " ", "lab": y, "close": ")\n"}


def test_the_built_in_tokenizer_passes_and_a_good_stranger_too() -> None:
    check_tokenizer(build_tokenizer())
    check_tokenizer(Pieces(*WHOLE, *MARKS))


@pytest.mark.parametrize(
    ("tokenizer", "string", "piece"),
    [
        (Pieces(*map(str, range(10)), *MARKS), "(28, 59)", "'2', '8'"),
        (Pieces(*WHOLE, *MARKS, ", "), "(28, 59)", "',Ġ'"),
        (Pieces(*WHOLE, "(", ")", ",", " ", "\n"), "(28, 59)", "')'"),
        (Pieces(*WHOLE[:100], *MARKS), "(86, 175)", "'17', '5'"),
    ],
    ids=["digits", "comma and space", "bracket and newline", "two digits only"],
)
def test_a_tokenizer_that_splits_differently_is_refused(tokenizer: Pieces, string: str, piece: str) -> None:
    with pytest.raises(TokenizerError) as caught:
        check_tokenizer(tokenizer)
    assert string in caught.value.asked
    assert piece in caught.value.found
    assert "\n" not in str(caught.value)


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(TokenizerError, match="zebra"):
        encode(build_tokenizer(), [("zebra", "1")])
    with pytest.raises(TokenizerError, match="zebra"):
        answer_ids(build_tokenizer(), ["1", "zebra"])


def test_answer_ids() -> None:
    tokenizer = build_tokenizer()
    assert [tokenizer.decode([i]) for i in answer_ids(tokenizer, ["175", "hot", "175"])] == [
        "175",
        "hot",
        "175",
    ]
    assert answer_ids(tokenizer, []).tolist() == []
    with pytest.raises(TokenizerError, match="1750"):
        answer_ids(tokenizer, ["1750"])


def test_a_word_joins_its_space_where_it_has_no_other(joining: PreTrainedTokenizerFast) -> None:
    """What the spelling is for: five tokens with one space, six with two; a number is six with one."""

    def split(text: str) -> list[str]:
        return joining.convert_ids_to_tokens(joining(text, add_special_tokens=False).input_ids)

    assert split("(24, even)\n") == ["(", "24", ",", "Ġeven", ")Ċ"]
    assert split("(24,  even)\n") == ["(", "24", ",", "Ġ", "Ġeven", ")Ċ"]
    assert split("(24, 59)\n") == ["(", "24", ",", "Ġ", "59", ")Ċ"]
    assert split("( cold, 59)\n") == ["(", "Ġcold", ",", "Ġ", "59", ")Ċ"]
    with pytest.raises(TokenizerError, match=r"six tokens for '\(24, even\)"):
        encode(joining, [("24", "even")])


def test_spelling_where_words_join_their_space(joining: PreTrainedTokenizerFast) -> None:
    assert spelling(joining, ["even", "59", "odd", "even"], "y") == {
        "even": " even",
        "59": "59",
        "odd": " odd",
    }
    assert spelling(joining, ["cold", "7"], "x") == {"cold": " cold", "7": "7"}
    assert spelling(joining, ["a"], "x") == {"a": " a"}, "`(a` is one token"
    assert spelling(joining, [" even"], "y") == {" even": " even"}, "what is spelled already stays"
    assert spelling(joining, [], "x") == {}


def test_spelling_depends_on_the_place_and_the_template(joining: PreTrainedTokenizerFast) -> None:
    """`(a` is one token and `[a` two: in one template the letters have a space of their own."""
    square = parse_template("[x, y]")
    assert spelling(joining, ["a", "b"], "x", square) == {"a": "a", "b": "b"}
    assert spelling(joining, ["a", "b"], "x") == {"a": " a", "b": " b"}
    assert spelling(joining, ["a", "b"], "y", square) == {"a": " a", "b": " b"}


def test_the_built_in_tokenizer_spells_every_word_as_it_is() -> None:
    for place in ("x", "y"):
        assert spelling(build_tokenizer(), EVERY_WORD, place) == {word: word for word in EVERY_WORD}


def test_positions_of_spelled_words(joining: PreTrainedTokenizerFast) -> None:
    pairs = [("24", " even"), (" cold", " hot"), ("7", "17"), ("hot", " b")]
    ids = encode(joining, pairs).tolist()
    assert joining.decode(ids[1:]) == render(pairs) == "\n(24,  even)\n( cold,  hot)\n(7, 17)\n(hot,  b)\n"
    text = [joining.decode([i]) for i in ids]
    assert (text[0], text[1]) == (BOS, "\n")
    for example, (x, y) in enumerate(pairs):
        found = {role: text[position(role, example)] for role in ROLES}
        assert found == {"open": "(", "x": x, "comma": ",", "pre": " ", "lab": y, "close": ")\n"}
        assert ids[position("lab", example)] == answer_ids(joining, [y])[0]
    assert len({ids[position("pre", example)] for example in range(4)}) == 1


@pytest.mark.parametrize(("place", "line"), [("x", r"\(zebra, 59\)"), ("y", r"\(28, zebra\)")])
def test_a_text_that_fits_neither_way_is_one_line(
    place: str, line: str, joining: PreTrainedTokenizerFast
) -> None:
    for tokenizer, pieces in ((joining, "'z', 'e'"), (build_tokenizer(), "'<unk>'")):
        with pytest.raises(TokenizerError, match=rf"^six tokens for '{line}") as caught:
            spelling(tokenizer, ["zebra"], place)  # pyright: ignore[reportArgumentType]
        assert "or with a space before 'zebra'" in caught.value.asked
        assert pieces in caught.value.found and "; with the space the tokenizer gives [" in caught.value.found
        assert "\n" not in str(caught.value)


def test_a_number_is_never_respelled() -> None:
    """Here ` 59` is one token and `59` is none: the text that stands is left, and `encode` refuses it."""
    odd = Pieces(*map(str, range(10)), " 59", *MARKS)
    assert spelling(odd, ["59"], "y") == {"59": "59"}
    assert len(encode(odd, [("1", " 59")])) == 8
    with pytest.raises(TokenizerError, match=r"six tokens for '\(1, 59\)"):
        encode(odd, [("1", "59")])


@pytest.mark.parametrize("word", ["hot", "early", "cold"])
def test_words_of_a_vocabulary_are_spelled_alike_whatever_stands_beside_them(
    word: str, joining: PreTrainedTokenizerFast
) -> None:
    """`(hot` is two tokens as `(cold` is not; alone, in a pair and in all of them a word has its space."""
    for beside in ([], ["hot"], ["left"], list(WORDS)):
        made = spelling(joining, [word, *beside], "x")
        assert made == {text: f" {text}" for text in made}


def test_words_of_no_vocabulary_are_spelled_alike_too() -> None:
    """All fit with a space of their own and one as it is as well, so none stays as it is."""
    tokenizer = Pieces(*WHOLE, *MARKS, *"OsloPari", "Rome", " Rome", " Oslo", " Paris")
    assert spelling(tokenizer, ["Rome"], "x") == {"Rome": "Rome"}
    assert spelling(tokenizer, ["Rome", "Oslo", "7", "Paris"], "x") == {
        "Rome": " Rome", "Oslo": " Oslo", "7": "7", "Paris": " Paris",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("pieces", "line"),
    [
        (["Rome", " Oslo", " Paris"], "most fit with a space before them, and 'Rome' only as they are"),
        (["Rome", "Oslo", " Paris"], "most fit as they are, and 'Paris' only with a space before them"),
        (["Rome", " Oslo", "P", "a"], "'Paris'"),
    ],
)  # fmt: skip
def test_words_that_fit_no_common_way_are_named(pieces: list[str], line: str) -> None:
    letters = sorted(set("RomeOsloParis"))
    with pytest.raises(TokenizerError) as caught:
        spelling(Pieces(*WHOLE, *MARKS, *letters, *pieces), ["Rome", "Oslo", "Paris"], "x")
    assert line in str(caught.value) and "\n" not in str(caught.value)


def test_fingerprint_tells_vocabularies_apart() -> None:
    assert fingerprint(build_tokenizer()) == fingerprint(build_tokenizer())
    assert fingerprint(Pieces(*WHOLE, *MARKS)) != fingerprint(Pieces(*WHOLE[:100], *MARKS))
    assert len(fingerprint(build_tokenizer())) == 16


def test_encode_returns_integers() -> None:
    ids = encode(build_tokenizer(), [("1", "2")])
    assert ids.dtype == np.int64
    assert ids.shape == (8,)
