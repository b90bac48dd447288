"""What a training run asks of its model, held against the model's config.json before a weight is read.

Its sites lie in blocks that the model has, and no context is longer than the model's positions.
"""

from __future__ import annotations

from iclens.core import ConfigError, SiteError, examples_within, prompt_length
from iclens.model.shape import ModelShape, refuse_longer
from iclens.training.config import TextContexts, TokenContexts, TrainConfig
from iclens.training.data.stored import tokens_shape


def check_limits(config: TrainConfig, shape: ModelShape) -> None:
    """Refuse a run that its model cannot serve.

    Raises:
        SiteError: for a site in a block that the model does not have.
        ModelError: for contexts longer than the model's positions.
        ConfigError: when the length of a context cannot be known.
    """
    for site in config.saes.recorded:
        if site.layer >= shape.n_blocks:
            raise SiteError(
                f"site {site}", f"the model has blocks 0 to {shape.n_blocks - 1}", "Choose one of these."
            )
    lengths = {_length_key(config): context_length(config)}
    if config.data.prompts:
        lengths[f"data.examples: {config.data.examples}"] = prompt_length(config.data.examples)
    positions = shape.n_positions
    for key, tokens in lengths.items():
        in_examples = key.startswith("data.examples")
        most = f"{examples_within(positions)} examples" if in_examples else f"{positions} tokens to a context"
        refuse_longer(tokens, positions, f"'{config.model.name}'", f"key '{key}'", f"Give at most {most}.")


def context_length(config: TrainConfig) -> int:
    """Tokens of a context of the main source.

    Raises:
        ConfigError: when it is not declared, and the file of tokens cannot be read.
    """
    data = config.data
    if isinstance(data, TextContexts):
        return data.context_tokens
    if not isinstance(data, TokenContexts):
        return prompt_length(data.examples)
    if data.context_tokens:
        return data.context_tokens
    shape = tokens_shape(data.path)
    if len(shape) != 2:
        raise ConfigError(
            f"tokens '{data.path}'",
            "they are flat, or in rows of several lengths",
            "Give data.context_tokens.",
        )
    return shape[1]


def _length_key(config: TrainConfig) -> str:
    data = config.data
    if isinstance(data, TokenContexts):
        return f"data.path: {data.path}"
    if isinstance(data, TextContexts):
        return f"data.context_tokens: {data.context_tokens}"
    return f"data.examples: {data.examples}"
