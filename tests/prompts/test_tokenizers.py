"""Tokenizers as people have them: BOS is put there once, and text that does not come back is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from iclens.core import TokenizerError
from iclens.prompts.build import TokenTable, build_prompts
from iclens.prompts.render import (
    answer_ids,
    bos_id,
    bos_in_words,
    check_tokenizer,
    encode,
    spelling,
    text_ids,
)
from iclens.prompts.tasks import WORDS, parse_task

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
    assert encode(tokenizer, [("28", "59"), ("hot", "cold")]).tolist() == IDS
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
    for asked in (check_tokenizer, lambda t: encode(t, [("1", "2")]), lambda t: answer_ids(t, ["1"])):
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
    ids = encode(llama_3, [("28", "59"), ("7", "17")]).tolist()
    assert llama_3.convert_ids_to_tokens(ids[:8]) == ["<|begin_of_text|>", "Ċ", *NUMBERS]
    assert ids.count(128_000) == 1 and len(ids) == 14
    assert "puts [] before a text" in bos_in_words(llama_3)
    hub = AutoTokenizer.from_pretrained(llama_3_folder, clean_up_tokenization_spaces=False)
    hub._tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[("<|begin_of_text|>", 128_000)]
    )
    assert hub("7").input_ids == [128_000, 22], "as the hub's copy does"
    assert encode(hub, [("28", "59"), ("7", "17")]).tolist() == ids
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
        encode(llama_3, [("28", "59"), pair])
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
