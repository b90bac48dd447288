"""The built-in model: its Llama config, tokenizer and training recipe."""

from __future__ import annotations

import math
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from iclens.core import ConfigError
from iclens.prompts.mixture import Mixture
from iclens.prompts.render import check_six_tokens
from iclens.prompts.tasks import LABEL_WORDS, LETTERS, WORDS

BOS, UNKNOWN = "<|begin_of_text|>", "<unk>"
_PIECES = r"[0-9]{1,3}|\)\n|\n|\(|\)|,| |[a-z]+"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A word-level tokenizer, six tokens to an example."""
    numbers, marks = map(str, range(1000)), ("(", ")", ",", " ", ")\n", "\n")
    words = [BOS, UNKNOWN, *numbers, *marks, *LETTERS, *WORDS, *LABEL_WORDS]
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
    check_six_tokens(tokenizer)
    return tokenizer


StageName = Literal["trunk", "main", "twin"]


class Strict(BaseModel):
    """A frozen section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Shape(Strict):
    """The Llama's shape, but for its number of blocks."""

    d_model: int
    d_mlp: int
    n_heads: int
    n_key_value_heads: int
    rope_theta: float
    max_positions: int


class Optimiser(Strict):
    """Learning rates of Muon (matrices) and AdamW (embeddings, head, norms) and their schedule."""

    matrix_lr: float
    other_lr: float
    warmup_steps: int
    branch_start: float
    """Fraction of the peak rate at the end of the trunk, from where the branches fall linearly to 0."""


class Interchange(Strict):
    """Interchange-intervention training (Geiger et al. 2021) of resid_pre at `block`, role `pre`."""

    block: int
    weight: float
    recipients_per_step: int
    """Contexts of a batch that are patched at every `pre`; donors come from all of them."""
    blank_recipients_per_step: int
    """Contexts, cut at their first `pre`, that are patched there: recipients that have seen no example."""
    excluded_donors: list[str]
    """Tasks whose contexts never serve as donors."""


class Stage(Strict):
    """One training: the trunk, or a branch from it."""

    blocks: int
    tokens: int


class Finish(Strict):
    """A last stretch of a branch, at falling rates, in which rare domains are seen more often."""

    tokens: int
    start: float
    """Fraction of the peak rate at its start; it falls linearly to 0."""
    rare_share: float
    """Share of contexts drawn evenly from the tasks on letters and words, noiseless; targets stay exact."""


class Recipe(Strict):
    """Everything that decides the built-in model and its plain twin."""

    mixture: dict[str, Any]
    shape: Shape
    seed: int
    contexts_per_step: int
    examples: int
    other_token_weight: float
    noise_full_at: float
    """Fraction of the trunk after which noise levels follow their prior; it starts noiseless."""
    optimiser: Optimiser
    interchange: Interchange
    trunk: Stage
    main: Stage
    twin: Stage
    finish: Finish
    history: tuple[str, ...] = ()
    """How the training of the shipped weights differed from what is declared above."""

    @property
    def declared_mixture(self) -> Mixture:
        """The mixture that contexts are drawn from."""
        return Mixture.from_dict(self.mixture)


def load_recipe(path: str | Path | None = None) -> Recipe:
    """Read a recipe; without a path, the built-in model's own.

    Raises:
        ConfigError: for a missing file, invalid YAML, an unknown key or a wrong type.
    """
    source = Path(path) if path else files("iclens.builtin") / "icl_tiny.yaml"
    try:
        return Recipe.model_validate(yaml.safe_load(source.read_text()))
    except FileNotFoundError as cause:
        raise ConfigError(f"recipe {path}", "no such file", "Give the path of a YAML recipe.") from cause
    except yaml.YAMLError as cause:
        raise ConfigError(
            f"recipe {path}", f"not YAML ({cause})".replace("\n", " "), "Correct the YAML where it says."
        ) from cause
    except ValidationError as cause:
        first = cause.errors()[0]
        key = ".".join(map(str, first["loc"]))
        raise ConfigError(
            f"recipe key '{key}'",
            first["msg"],
            f"The keys and types are those of {files('iclens.builtin') / 'icl_tiny.yaml'}.",
        ) from cause


_PERIODS = (2, 3, 5, 7, 10, 20, 25, 50, 100, 200, 500)


def build_network(
    shape: Shape, blocks: int, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlamaForCausalLM:
    """A Llama whose blocks start as the identity and whose number embeddings are Fourier features."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.d_model,
        intermediate_size=shape.d_mlp,
        num_hidden_layers=blocks,
        num_attention_heads=shape.n_heads,
        num_key_value_heads=shape.n_key_value_heads,
        max_position_embeddings=shape.max_positions,
        rope_parameters={"rope_type": "default", "rope_theta": shape.rope_theta},
        bos_token_id=tokenizer.get_vocab()[BOS],
        eos_token_id=None,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for block in model.model.layers:
            _start_block(block, generator)
        model.lm_head.weight.zero_()
        model.model.embed_tokens.weight.copy_(_embeddings(tokenizer, shape.d_model, generator))
    return model


def grow(
    model: LlamaForCausalLM, shape: Shape, blocks: int, tokenizer: PreTrainedTokenizerFast, seed: int
) -> LlamaForCausalLM:
    """The same function with more blocks: new ones come last and start as the identity."""
    taller = build_network(shape, blocks, tokenizer, seed)
    taller.load_state_dict(model.state_dict(), strict=False)
    return taller


def _start_block(block: nn.Module, generator: torch.Generator) -> None:
    for name, weight in block.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            weight.zero_()
        elif weight.ndim == 2:
            weight.normal_(0.0, weight.shape[1] ** -0.5, generator=generator)


def _embeddings(tokenizer: PreTrainedTokenizerFast, d_model: int, generator: torch.Generator) -> Tensor:
    """Random rows; numbers get cos and sin of 2πn/T and n itself, randomly rotated."""
    table = 0.5 * torch.randn(len(tokenizer), d_model, generator=generator)
    n = torch.arange(1000.0)
    waves = [f(2 * math.pi * n / period) for period in _PERIODS for f in (torch.cos, torch.sin)]
    features = torch.stack([*waves, n / 250 - 1], dim=1)
    rotation = torch.linalg.qr(torch.randn(d_model, d_model, generator=generator)).Q[: features.shape[1]]
    numbers = features @ rotation
    ids = [tokenizer.convert_tokens_to_ids(str(i)) for i in range(1000)]
    table[ids] = 0.1 * table[ids] + 0.5 * numbers * (d_model / features.shape[1]) ** 0.5
    return table
