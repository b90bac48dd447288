"""Examples as text with spans, under tokenizers of many kinds."""

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
from iclens.core import (
    PADDING,
    ROLES,
    SIX_TOKENS,
    SPANS,
    TEMPLATE,
    Layout,
    SiteError,
    TaskError,
    TokenizerError,
    position,
)
from iclens.prompts.build import TokenTable, build_prompts
from iclens.prompts.mixture import Contexts
from iclens.prompts.render import (
    DEFAULT,
    TEMPLATES,
    Pair,
    Template,
    answer_ids,
    bos_id,
    bos_in_words,
    check_six_tokens,
    encode_examples,
    fingerprint,
    laid_out,
    layout_of,
    parse_template,
    render,
    six_tokens,
    split,
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
        self, text: str | list[str], *, add_special_tokens: bool = True, **_options: bool
    ) -> SimpleNamespace:
        ids, offsets = [], []
        for one in [text] if isinstance(text, str) else text:
            found, at = [], 0
            while at < len(one):
                found.append(next(i for i, piece in enumerate(self.pieces) if one.startswith(piece, at)))
                at += len(self.pieces[found[-1]])
            ends = np.cumsum([len(self.pieces[i]) for i in found]).tolist()
            offsets.append(list(zip([0, *ends], ends, strict=False)))
            ids.append([*self.before, *found, *self.after] if add_special_tokens else found)
        if isinstance(text, str):
            return SimpleNamespace(input_ids=ids[0])
        return SimpleNamespace(input_ids=ids, offset_mapping=offsets)

    def __len__(self) -> int:
        return len(self.pieces)

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
    assert DEFAULT.name == TEMPLATE and Template("(", ", ", ")\n") == DEFAULT
    for name in (*TEMPLATES, "Q: {x}\nA: {y}\n\n", "{x} -> {y}\n", "x={x} y={y};"):
        assert parse_template(name).name == name


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("[x,y]\n", r"'\[x,y\]\\n': unknown. Nearest: \[x, y\]; or a text with {x} and then {y}, each once"),
        ("{y} {x}\n", "unknown"),
        ("{x} {x} {y}\n", "unknown"),
        ("{x} {y} {y}\n", "unknown"),
        ("{x}{y}\n", r"nothing stands between {x} and {y}. Write something there, such as a space"),
        ("{x}: {y}", "nothing stands behind {y}"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_template_is_one_line(name: str, line: str) -> None:
    with pytest.raises(TaskError, match=line) as caught:
        parse_template(name)
    assert "\n" not in str(caught.value)


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


def test_which_tokenizers_give_six_tokens(extended: PreTrainedTokenizerFast) -> None:
    """One mark that joins a neighbour loses its template and no other."""

    def able(tokenizer: Any) -> list[str]:
        return [name for name, template in TEMPLATES.items() if six_tokens(tokenizer, template)]

    assert able(extended) == ["(x, y)", "[x, y]", "{x: y}", "<x; y>"]
    assert able(build_tokenizer()) == ["(x, y)"]
    assert able(Pieces(*WHOLE, *MARKS, *OTHER_MARKS, ": ")) == ["(x, y)", "[x, y]", "<x; y>"]
    assert able(Pieces(*map(str, range(10)), *MARKS, *OTHER_MARKS)) == []
    assert six_tokens(Pieces(*WHOLE, *MARKS)) and not six_tokens(Pieces(*WHOLE, *MARKS, bos=None, before=()))


@pytest.mark.parametrize("name", ["[x, y]", "{x: y}", "<x; y>"])
def test_unknown_tokens_are_refused(name: str) -> None:
    line = name.replace("x", "86").replace("y", "175")
    with pytest.raises(TokenizerError) as caught:
        encode_examples(build_tokenizer(), [("86", "175")], parse_template(name))
    assert caught.value.asked == f"tokens of x and of y in '{line}\\n'"
    assert "'<unk>', '86'" in caught.value.found
    assert "template" in caught.value.remedy
    assert "\n" not in str(caught.value)


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(TokenizerError, match=r"'\(zebra, 1\)"):
        encode_examples(build_tokenizer(), [("7", "17"), ("zebra", "1")])
    with pytest.raises(TokenizerError, match="zebra"):
        answer_ids(build_tokenizer(), ["1", "zebra"])


def test_answer_ids() -> None:
    tokenizer = build_tokenizer()
    found = answer_ids(tokenizer, ["175", "hot", "175"])
    assert [tokenizer.decode([i]) for i in found] == ["175", "hot", "175"]
    assert answer_ids(tokenizer, []).tolist() == []
    assert tokenizer.decode(answer_ids(tokenizer, ["1750"])) == "175", "the first of several"


DIGITS = Pieces(*map(str, range(10)), "(", ")", ",", " ", "\n", "hot", " cold", "(cold", before=(), bos=None)
EXAMPLES: list[Pair] = [("28", "7"), ("hot", "cold"), ("cold", "119")]


def spans(tokenizer: Any, pairs: Sequence[Pair], template: Template = DEFAULT) -> list[list[str]]:
    """The tokens of each span, what stands before the first example first."""
    (one,) = split(tokenizer, [pairs], template)
    texts = tokenizer.convert_ids_to_tokens(one.ids.tolist())
    return [
        [text for text, owner in zip(texts, one.span, strict=True) if owner == span]
        for span in range(1 + len(SPANS) * len(pairs))
    ]


def test_a_token_belongs_to_the_span_of_its_last_character_that_is_no_space() -> None:
    assert spans(DIGITS, EXAMPLES) == [
        ["\n"],
        ["("], ["2", "8"], [",", "Ġ"], ["7"], [")", "\n"],
        ["("], ["hot"], [","], ["Ġcold"], [")", "\n"],
        [], ["(cold"], [",", "Ġ"], ["1", "1", "9"], [")", "\n"],
    ]  # fmt: skip
    joins = Pieces("7", "8", "a", ".\n", "a.", " ", "\n", before=())
    assert spans(joins, [("7", "8")], Template("", " ", "a.\n")) == [
        ["\n"],
        [],
        ["7"],
        ["Ġ"],
        ["8"],
        ["a.", "\n"],
    ]


def test_columns_hold_texts_of_any_number_of_tokens() -> None:
    (one,) = split(DIGITS, [EXAMPLES])
    layout = layout_of([one], None)
    assert layout == Layout(prefix=1, open=1, x=2, separator=2, y=3, close=2)
    (row,) = laid_out([one], layout, None, 3)
    tokens = [DIGITS.pieces[i] if i != PADDING else "" for i in row]
    assert tokens == [
        "\n",
        "(", "2", "8", ",", " ", "", "", "7", ")", "\n",
        "(", "", "hot", "", ",", "", "", " cold", ")", "\n",
        "", "", "(cold", ",", " ", "1", "1", "9", ")", "\n",
    ]  # fmt: skip
    at = {role: [tokens[layout.position(role, j)] for j in range(3)] for role in ("x", "pre", "lab", "close")}
    assert at == {
        "x": ["8", "hot", "(cold"],
        "pre": [" ", ",", " "],
        "lab": ["7", " cold", "9"],
        "close": ["\n"] * 3,
    }
    with_bos = laid_out([one], layout_of([one], 5), 5, 3)
    assert with_bos[0, 0] == 5 and (with_bos[0, 1:] == row).all()


def test_what_is_predicted_at_pre_is_the_first_token_of_y() -> None:
    found = answer_ids(DIGITS, ["cold", "119", "7"])
    assert [DIGITS.pieces[i] for i in found] == [" cold", "1", "7"]


def test_a_token_before_y_that_is_sometimes_part_of_x_is_refused() -> None:
    tokenizer = Pieces("7", "8", " 8", "9", " ", "\n", before=())
    for pairs, separator in (([("7", "8"), ("9", "8")], 0), ([("7", "9"), ("8", "9")], 1)):
        assert layout_of(split(tokenizer, [pairs], Template("", " ", "\n")), None).separator == separator
    with pytest.raises(TokenizerError, match="in some examples it is part of x") as caught:
        layout_of(split(tokenizer, [[("7", "8"), ("8", "9")]], Template("", " ", "\n")), None)
    assert "such as (x, y)" in caught.value.remedy


def test_without_pre_of_its_own_x_is_pre() -> None:
    layout = Layout(1, 0, 2, 0, 1, 1)
    assert layout.position("pre", 1) == layout.position("x", 1) == 1 + 4 + 1
    assert layout.columns() == {"x": 1, "pre": 1, "lab": 2, "close": 3}
    with pytest.raises(SiteError, match="role 'comma': this tokenizer gives it no token of its own"):
        layout.position("comma", 0)


def test_six_tokens_are_a_layout() -> None:
    assert [SIX_TOKENS.position(role, 1) for role in ROLES] == list(range(8, 14))
    assert SIX_TOKENS.length(3) == 20
    assert SIX_TOKENS.wider(Layout(1, 2, 1, 1, 3, 1)) == Layout(2, 2, 1, 2, 3, 1)


def test_a_tokenizer_without_offsets_is_refused() -> None:
    def slow(text: object, **options: bool) -> object:
        if options.get("return_offsets_mapping"):
            raise NotImplementedError("only fast tokenizers have offsets")
        return DIGITS(text, **options)  # pyright: ignore[reportArgumentType]

    with pytest.raises(
        TokenizerError, match=r"does not say where its tokens begin and end\. Give .* tokenizer\.json"
    ):
        split(slow, [[("2", "7")]])  # pyright: ignore[reportArgumentType]


def test_words_that_join_their_space(joining: PreTrainedTokenizerFast) -> None:
    assert spans(joining, [("24", "even"), ("hot", "59")]) == [
        ["Ċ"], ["("], ["24"], [","], ["Ġeven"], [")Ċ"], ["("], ["hot"], [",", "Ġ"], ["59"], [")Ċ"],
    ]  # fmt: skip


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


def test_without_any_bos_prompts_begin_with_the_newline(tmp_path: Path) -> None:
    tokenizer = edited(tmp_path, around({}))
    tokenizer.bos_token = None
    assert bos_id(tokenizer) is None and bos_in_words(tokenizer) == "none"
    assert text_ids(tokenizer, "7 8") == [9, 1005, 10]
    assert encode_examples(tokenizer, [("28", "59"), ("hot", "cold")]).tolist() == IDS[1:]
    assert answer_ids(tokenizer, ["59"]).tolist() == [61]
    with pytest.raises(TokenizerError, match="and has no BOS"):
        check_six_tokens(tokenizer)


def test_a_named_bos_that_is_not_to_be_added_is_none(tmp_path: Path) -> None:
    tokenizer = edited(tmp_path, around({}))
    assert bos_id(tokenizer) == 0
    tokenizer.init_kwargs["add_bos_token"] = False
    assert bos_id(tokenizer) is None
    tokenizer = edited(tmp_path, around({}))
    tokenizer.chat_template = "{{ bos_token }}{{ messages[0].content }}"
    assert bos_id(tokenizer) == 0, "the template puts it where the sequence begins"
    tokenizer.chat_template = "{% for m in messages %}<|begin_of_text|>{{ m.role }}{% endfor %}"
    assert bos_id(tokenizer) is None, "it begins a turn"


def token(content: str, ident: int = 1078, **options: bool) -> Edit:
    """A vocabulary with one more added token."""
    fixed = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return lambda whole: whole["added_tokens"].append({"id": ident, "content": content, **fixed, **options})


def pieces(regex: str) -> Edit:
    return lambda whole: whole["pre_tokenizer"]["pattern"].update(Regex=regex)


@pytest.mark.parametrize(
    ("edit", "y"),
    [
        (pieces(r"[0-9]|\)\n|\n|\(|\)|,| |[a-z]+"), ["5", "9"]),
        (token("(2"), ["59"]),
        (token(", "), ["59"]),
        (token("59", 61, lstrip=True), ["59"]),
    ],
    ids=["digits", "swallowed bracket", "comma and space", "swallowed space"],
)  # fmt: skip
def test_splits_that_are_not_six_tokens(edit: Edit, y: list[str], tmp_path: Path) -> None:
    tokenizer = edited(tmp_path, edit)
    assert spans(tokenizer, [("28", "59")])[4] == y
    with pytest.raises(
        TokenizerError, match=r"six tokens for each example of numbers, such as \(28, 59\)"
    ) as caught:
        check_six_tokens(tokenizer)
    assert "data.kind: text" in caught.value.remedy and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("normalizer", "read"),
    [
        ({"type": "Strip", "strip_left": True, "strip_right": True}, r"'\(28, 59\)'"),
        ({"type": "Replace", "pattern": {"String": "2"}, "content": "3"}, r"'\\n\(38, 59\)\\n'"),
        ({"type": "Lowercase"}, None),
    ],
)  # fmt: skip
def test_a_text_that_the_tokenizer_changes_is_refused(
    normalizer: dict[str, Any], read: str | None, tmp_path: Path
) -> None:
    tokenizer = edited(tmp_path, lambda whole: whole.update(normalizer=normalizer))
    if read is None:
        assert len(encode_examples(tokenizer, [("28", "59")])) == 8
        return
    with pytest.raises(TokenizerError, match=f"the tokenizer reads them as {read}"):
        encode_examples(tokenizer, [("28", "59")])


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
    check_six_tokens(llama_3)


def test_llama_3_splits_other_pairs_as_it_likes(llama_3: PreTrainedTokenizerFast) -> None:
    assert spans(llama_3, [("-3", "-3"), ("1234", "5678"), ("hot", "cold")])[1:] == [
        [], ["(-", "3"], [","], ["Ġ-", "3"], [")Ċ"],
        ["("], ["123", "4"], [",", "Ġ"], ["567", "8"], [")Ċ"],
        [], ["(h", "ot"], [","], ["Ġcold"], [")Ċ"],
    ]  # fmt: skip


def test_contexts_of_llama_3s_words_are_assembled(llama_3: PreTrainedTokenizerFast) -> None:
    table = TokenTable.of_words(WORDS, WORDS, llama_3)
    alone = [llama_3(f" {word}", add_special_tokens=False).input_ids for word in WORDS]
    assert table.answer_ids.tolist() == [ids[0] for ids in alone]
    at = np.array([[3, 9, 20]])
    made = table.assemble(Contexts(np.zeros(1, int), np.zeros(1, int), at, at[:, ::-1]))[0]
    pairs = [(WORDS[i], WORDS[j]) for i, j in zip(at[0], at[0, ::-1], strict=True)]
    assert made[made != PADDING].tolist() == encode_examples(llama_3, pairs).tolist()
