"""Examples as six tokens, under tokenizers of many kinds."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from iclens.builtin.model import BOS, build_tokenizer
from iclens.core import ROLES, TEMPLATE, TaskError, TokenizerError, position
from iclens.prompts.build import TokenTable, build_prompts
from iclens.prompts.render import (
    DEFAULT,
    TEMPLATES,
    Template,
    answer_ids,
    bos_id,
    bos_in_words,
    check_tokenizer,
    encode_examples,
    fingerprint,
    parse_template,
    render,
    spelling,
    supported_templates,
    text_ids,
)
from iclens.prompts.tasks import LABEL_WORDS, LETTERS, WORDS, parse_task


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
    ids = encode_examples(extended, pairs, parse_template(name))
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
        encode_examples(build_tokenizer(), [("86", "175")], parse_template(name))
    assert caught.value.asked == f"six tokens for '{line}\\n'"
    assert "'<unk>', '86'" in caught.value.found
    assert "template" in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_positions_of_the_roles() -> None:
    tokenizer = build_tokenizer()
    ids = encode_examples(tokenizer, [("28", "59"), ("7", "17"), ("hot", "cold")])
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
        encode_examples(build_tokenizer(), [("zebra", "1")])
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
        encode_examples(joining, [("24", "even")])


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
    ids = encode_examples(joining, pairs).tolist()
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
    """Here ` 59` is one token and `59` is none: the text is left, and `encode_examples` refuses it."""
    odd = Pieces(*map(str, range(10)), " 59", *MARKS)
    assert spelling(odd, ["59"], "y") == {"59": "59"}
    assert len(encode_examples(odd, [("1", " 59")])) == 8
    with pytest.raises(TokenizerError, match=r"six tokens for '\(1, 59\)"):
        encode_examples(odd, [("1", "59")])


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
    ids = encode_examples(build_tokenizer(), [("1", "2")])
    assert ids.dtype == np.int64
    assert ids.shape == (8,)


ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "checkpoints" / "icl-tiny"
IDS = [0, 1007, 1002, 30, 1004, 1005, 61, 1006, 1002, 1034, 1004, 1005, 1054, 1006]
"""BOS, a newline, `(28, 59)` and `(hot, cold)`, as the shipped tokenizer numbers them."""
Edit = Callable[[dict[str, Any]], object]
BEGIN = {"SpecialToken": {"id": "<|begin_of_text|>", "type_id": 0}}
UNKNOWN = {"SpecialToken": {"id": "<unk>", "type_id": 0}}


def edited(folder: Path, edit: Edit) -> PreTrainedTokenizerFast:
    """The shipped tokenizer with another tokenizer.json."""
    whole = json.loads((MODEL / "tokenizer.json").read_text())
    whole["post_processor"]["special_tokens"]["<unk>"] = {"id": "<unk>", "ids": [1], "tokens": ["<unk>"]}
    edit(whole)
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    (folder / "tokenizer_config.json").write_text((MODEL / "tokenizer_config.json").read_text())
    return AutoTokenizer.from_pretrained(folder)


def around(*pieces: dict[str, Any]) -> Edit:
    """A post-processor that puts pieces around a text, `{}` stands for it."""
    text = {"Sequence": {"id": "A", "type_id": 0}}
    return lambda whole: whole["post_processor"].update(single=[piece or text for piece in pieces])


PADDED = {
    "strategy": {"Fixed": 64}, "direction": "Left", "pad_to_multiple_of": None, "pad_id": 1,
    "pad_type_id": 0, "pad_token": "<unk>",
}  # fmt: skip
CUT = {"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0}


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda whole: None, ""),
        (lambda whole: whole.update(post_processor=None), "puts [] before a text and [] after it"),
        (around(BEGIN, BEGIN, {}), "puts ['<|begin_of_text|>', '<|begin_of_text|>'] before a text and []"),
        (around(BEGIN, {}, UNKNOWN), "and ['<unk>'] after it"),
        (around({}, BEGIN), "puts [] before a text and ['<|begin_of_text|>'] after it"),
        (around(BEGIN, UNKNOWN, {}, UNKNOWN), "puts ['<|begin_of_text|>', '<unk>'] before"),
        (lambda whole: whole.update(truncation=CUT), ""),
        (lambda whole: whole.update(padding=PADDED), ""),
        (lambda whole: whole.update(normalizer={"type": "NFKC"}), ""),
        (lambda whole: whole.update(decoder=None), ""),
    ],
    ids=["plain", "none", "two", "end", "only end", "many", "cut", "padded", "NFKC", "no decoder"],
)  # fmt: skip
def test_bos_is_put_there_once_whatever_the_tokenizer_adds(edit: Edit, said: str, tmp_path: Path) -> None:
    tokenizer = edited(tmp_path, edit)
    assert encode_examples(tokenizer, [("28", "59"), ("hot", "cold")]).tolist() == IDS
    assert bos_in_words(tokenizer).startswith("<|begin_of_text|>, id 0, once")
    assert said in bos_in_words(tokenizer) and ("by itself" in bos_in_words(tokenizer)) == bool(said)
    long = "\n".join(map(str, range(200)))
    assert text_ids(tokenizer, long) == text_ids(edited(tmp_path, lambda whole: None), long)
    assert len(text_ids(tokenizer, long)) == 399, "neither cut nor padded"
    made = build_prompts(tokenizer, parse_task("2x+3"), arm="T", n_prompts=2, n_examples=3, seed=0)
    assert (made.tokens == 0).sum(axis=1).tolist() == [1, 1]
    assert TokenTable.of_words(["28"], ["59"], tokenizer).prefix.tolist() == [0, 1007]


def test_the_tokens_own_begin_goes_before_another_that_it_names(tmp_path: Path) -> None:
    tokenizer = edited(tmp_path, lambda whole: None)
    tokenizer.bos_token = "<unk>"
    assert bos_id(tokenizer) == 0
    tokenizer = edited(tmp_path, around({}))
    tokenizer.bos_token = "<unk>"
    assert bos_id(tokenizer) == 1


def test_without_any_bos_prompts_are_refused_and_text_is_not(tmp_path: Path) -> None:
    tokenizer = edited(tmp_path, around({}))
    tokenizer.bos_token = None
    assert bos_id(tokenizer) is None and bos_in_words(tokenizer).startswith("none, as")
    assert text_ids(tokenizer, "7 8") == [9, 1005, 10]
    for asked in (
        check_tokenizer,
        lambda t: encode_examples(t, [("1", "2")]),
        lambda t: answer_ids(t, ["1"]),
    ):
        with pytest.raises(
            TokenizerError, match=r"begin with BOS: .* Name it: bos_token in tokenizer_config"
        ):
            asked(tokenizer)


def token(content: str, ident: int = 1078, **options: bool) -> Edit:
    """A vocabulary with one more added token."""
    fixed = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return lambda whole: whole["added_tokens"].append({"id": ident, "content": content, **fixed, **options})


def pieces(regex: str) -> Edit:
    return lambda whole: whole["pre_tokenizer"]["pattern"].update(Regex=regex)


@pytest.mark.parametrize(
    ("edit", "shown"),
    [
        (pieces(r"[0-9]|\)\n|\n|\(|\)|,| |[a-z]+"), "gives ['(', '2', '8', ',', ' ', '5', '9', ')\\n']."),
        (token("(2"), "gives ['(2', '8', ',', ' ', '59', ')\\n']."),
        (token(", "), "gives ['(', '28', ', ', '59', ')\\n']."),
        (token("59", 61, lstrip=True), "gives ['(', '28', ',', '59', ')\\n'], which read '(28,59)\\n'."),
        (lambda whole: whole["model"]["vocab"].pop("59"), ", which read '(28, <unk>)\\n'."),
        (lambda whole: whole.update(normalizer={"type": "Prepend", "prepend": " "}),
         "gives [' ', '\\n'] for"),
        (lambda whole: whole.update(normalizer={"type": "Strip", "strip_left": True, "strip_right": True}),
         "gives ['(', '28'] for"),
        (lambda whole: whole.update(
            normalizer={"type": "Replace", "pattern": {"String": "2"}, "content": "3"}),
         "gives ['(', '38', ',', ' ', '59', ')\\n'], which read '(38, 59)\\n'."),
    ],
    ids=["digits", "swallowed bracket", "comma and space", "swallowed space", "unknown", "space before",
         "stripped", "changed"],
)  # fmt: skip
def test_what_does_not_come_back_is_refused_and_the_split_is_shown(
    edit: Edit, shown: str, tmp_path: Path
) -> None:
    with pytest.raises(TokenizerError) as caught:
        check_tokenizer(edited(tmp_path, edit))
    assert shown in str(caught.value)
    assert "data.kind: text" in caught.value.remedy and "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def llama_3(llama_3_folder: Path) -> PreTrainedTokenizerFast:
    """Llama-3's own tokenizer, which adds no BOS by itself in this copy."""
    return AutoTokenizer.from_pretrained(llama_3_folder, clean_up_tokenization_spaces=False)


NUMBERS = ["(", "28", ",", "Ġ", "59", ")Ċ"]


def test_llama_3_gives_six_tokens_behind_one_bos(
    llama_3: PreTrainedTokenizerFast, llama_3_folder: Path
) -> None:
    ids = encode_examples(llama_3, [("28", "59"), ("7", "17")]).tolist()
    assert llama_3.convert_ids_to_tokens(ids[:8]) == ["<|begin_of_text|>", "Ċ", *NUMBERS]
    assert ids.count(128_000) == 1 and len(ids) == 14
    assert "puts [] before a text" in bos_in_words(llama_3)
    hub = AutoTokenizer.from_pretrained(llama_3_folder, clean_up_tokenization_spaces=False)
    hub._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 128_000)]
    )
    assert hub("7").input_ids == [128_000, 22], "as the hub's copy does"
    assert encode_examples(hub, [("28", "59"), ("7", "17")]).tolist() == ids
    assert bos_in_words(hub) == "<|begin_of_text|>, id 128000, once"


def test_llama_3_has_every_number_as_one_token(llama_3: PreTrainedTokenizerFast) -> None:
    numbers = [str(n) for n in range(1000)]
    ids = answer_ids(llama_3, numbers).tolist()
    assert [llama_3.decode([i]) for i in ids] == numbers and len(set(ids)) == 1000
    check_tokenizer(llama_3)


@pytest.mark.parametrize(
    ("pair", "split"),
    [
        (("-3", "-3"), "['(-', '3', ',', 'Ġ-', '3', ')Ċ']"),
        (("1234", "5678"), "['(', '123', '4', ',', 'Ġ', '567', '8', ')Ċ']"),
        (("hot", "cold"), "['(h', 'ot', ',', 'Ġcold', ')Ċ']"),
    ],
)
def test_llama_3_splits_other_pairs_and_is_shown_doing_it(
    pair: tuple[str, str], split: str, llama_3: PreTrainedTokenizerFast
) -> None:
    with pytest.raises(TokenizerError) as caught:
        encode_examples(llama_3, [("28", "59"), pair])
    assert str(caught.value).startswith(
        f"six tokens for '({pair[0]}, {pair[1]})\\n': the tokenizer gives {split}."
    )


def test_llama_3_spells_all_words_alike(llama_3: PreTrainedTokenizerFast) -> None:
    """Of 40 words, `early`, `lose` and `soft` are one token after a bracket as well; all are with a space."""

    def alone(text: str) -> list[int]:
        return llama_3(text, add_special_tokens=False).input_ids

    apart = [word for word in WORDS if alone(f"({word},") == alone("(") + alone(word) + alone(",")]
    assert [word for word in apart if len(alone(word)) == 1] == ["early", "soft", "lose"]
    spaced = {word: f" {word}" for word in WORDS}
    for place in ("x", "y"):
        assert spelling(llama_3, WORDS, place) == spaced
        for word in ("hot", "early", "lose", "soft"):
            assert spelling(llama_3, [word], place) == {word: f" {word}"}
    few = ("early", "lose", "soft", "win")
    made = build_prompts(
        llama_3, parse_task("word:same"), arm="S", n_prompts=3, n_examples=4, seed=1, inputs=few
    )
    assert {*made.x.ravel()} == {*made.y.ravel()} == {f" {word}" for word in few}
    ids = [alone(f" {word}") for word in WORDS]
    table = TokenTable.of_words(WORDS, WORDS, llama_3)
    assert [[i] for i in table.inputs.tolist()] == [[i] for i in table.answers.tolist()] == ids
    at_x = {text: made.tokens[:, made.positions("x")][made.x == text][0] for text in np.unique(made.x)}
    assert {text: alone(text) for text in at_x} == {text: [i] for text, i in at_x.items()}
