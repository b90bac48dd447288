"""The built-in model's tokenizer: splits `(28, 59)\\n` as Llama-3 does.

Vocabulary: integers 0–999, the punctuation of the template, letters, words, BOS and an unknown
token that no prompt of ours may contain (`tasks.rendering.encode` refuses it).
"""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from iclens.tasks.rendering import check_tokenizer
from iclens.tasks.words import LABEL_WORDS, LETTERS, WORDS

BOS, UNKNOWN = "<|begin_of_text|>", "<unk>"
_PIECES = r"[0-9]{1,3}|\)\n|\n|\(|\)|,| |[a-z]+"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer, six tokens to an example."""
    words = [
        BOS,
        UNKNOWN,
        *map(str, range(1000)),
        "(",
        ")",
        ",",
        " ",
        ")\n",
        "\n",
        *LETTERS,
        *WORDS,
        *LABEL_WORDS,
    ]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex(_PIECES), behavior="isolated")
    backend.decoder = decoders.Fuse()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, vocabulary[BOS])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token=BOS, unk_token=UNKNOWN, clean_up_tokenization_spaces=False
    )
    check_tokenizer(tokenizer)
    return tokenizer
