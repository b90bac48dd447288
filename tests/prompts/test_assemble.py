"""Assembled tokens equal those of the tokenizer."""

from pathlib import Path

import numpy as np
import yaml
from transformers import AutoTokenizer

from iclens.prompts.build import TokenTable
from iclens.prompts.mixture import Mixture
from iclens.prompts.render import encode

MODEL = Path(__file__).resolve().parents[2] / "checkpoints" / "icl-tiny"


def test_assembled_contexts_equal_encoded_ones() -> None:
    mixture = Mixture.from_dict(yaml.safe_load((MODEL / "mixture.yaml").read_text()))
    tokenizer = AutoTokenizer.from_pretrained(MODEL)
    contexts = mixture.sample(np.random.default_rng(0), 50, 6)
    tokens = TokenTable.of(mixture, tokenizer).assemble(contexts)
    assert tokens.shape == (50, 38)
    for row, x, y in zip(tokens, contexts.x, contexts.y, strict=True):
        pairs = [(mixture.inputs[i], mixture.answers[j]) for i, j in zip(x, y, strict=True)]
        np.testing.assert_array_equal(row, encode(tokenizer, pairs))
