"""Task → PromptSet: the same inputs under every arm's labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iclens.core import TaskError
from iclens.prompts.build import build_prompts, check_pairing
from iclens.prompts.render import bos_in_words, spelling
from iclens.study.bench import Bench
from iclens.study.store import save_prompts


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write `<arm>.parquet` and `<arm>.safetensors` for every arm."""
    section, built = bench.config.prompts, []
    _refuse_joined_words(bench)
    for arm in section.arms:
        prompts = build_prompts(
            bench.model.tokenizer, section.rule, arm=arm, n_prompts=section.n_prompts,
            n_examples=section.n_examples, seed=section.seed, inputs=section.inputs, rival=section.rival,
        )  # fmt: skip
        built.append(prompts)
        save_prompts(prompts, folder, arm)
    check_pairing(built)
    return {
        "task": section.task,
        "arms": section.arms,
        "prompts": section.n_prompts,
        "examples": section.n_examples,
        "BOS": bos_in_words(bench.model.tokenizer),
    }


def _refuse_joined_words(bench: Bench) -> None:
    """Raise where a declared belief names words that this tokenizer writes with the space before them."""
    for belief in bench.config.declared:
        for word, written in spelling(bench.model.tokenizer, belief.words, "y").items():
            if word != written:
                raise TaskError(
                    f"belief '{belief.name}'", f"this tokenizer's prompts hold '{written}' for '{word}'",
                    "With this tokenizer, declare beliefs about numbers alone (track.beliefs).",
                )  # fmt: skip
