"""Training several TopK SAEs from one forward pass per block of contexts.

1. The model and the source of contexts are opened. 2. A shuffled buffer holds the same rows of every site.
3. Each SAE takes one step per batch. 4. The SAEs are written, read back, and measured on held-out contexts.
The set appears under its name only when it is whole.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from iclens.errors import ConfigError
from iclens.models.load import LanguageModel, load_model
from iclens.names import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, Site, position
from iclens.saes.load import load_sae
from iclens.saes.quality import measure_quality
from iclens.tables.quality import QualityTable
from iclens.training.buffer import ShuffleBuffer, activation_blocks
from iclens.training.config import MixtureContexts, TrainConfig
from iclens.training.contexts import Source, build_source
from iclens.training.folder import folder_when_whole, save_card, save_sae
from iclens.training.step import Scaling, TopKStep

Report = Callable[[dict[str, Any]], None]
_EVERY = 20
"""Steps between two lines of metrics."""


def train_saes(config: TrainConfig, out: Path, report: Report | None = None) -> Path:
    """Train every SAE of a configuration and write them as one set.

    Args:
        config: what to train.
        out: folder to make; `<out>/<site>/` holds each SAE and its metrics.jsonl, `<out>/card.json` the rest.
        report: called with {"step", "of", "tokens", "seconds", "sites": {site: metrics}} as training goes,
            then once with {"quality": [...]} of the held-out contexts.

    Returns:
        `out`.

    Raises:
        ConfigError, ModelError, SiteError: when what is asked for cannot be trained; nothing is left behind.
    """
    with folder_when_whole(Path(out)) as partial:
        model = _open_model(config)
        source = build_source(config, model.tokenizer)
        held_out = source.held_out(config.held_out.contexts)
        started = time.monotonic()
        trained = _fit(config, model, source, partial, report or (lambda _: None))
        seconds = time.monotonic() - started
        for site, step in trained.items():
            save_sae(partial / site.short, site, step.export(), config.saes.k or 0, model, config)
        quality = _measure(config, model, partial, held_out)
        save_card(partial, _card(config, model, quality, seconds))
        if report is not None:
            report({"quality": quality.df.to_dict("records")})
    return Path(out)


def _open_model(config: TrainConfig) -> LanguageModel:
    deepest = max(site.layer for site in config.saes.recorded)
    blocks = deepest + 1 if config.model.load == "needed" else None
    dtype = getattr(torch, config.model.dtype)
    model = load_model(config.model.name, blocks=blocks, dtype=dtype, device=config.model.device)
    for site in config.saes.recorded:
        model.check_site(site)
    return model


def _fit(
    config: TrainConfig, model: LanguageModel, source: Source, folder: Path, report: Report
) -> dict[Site, TopKStep]:
    settings, sites = config.training, config.saes.recorded
    generator = torch.Generator().manual_seed(config.seed)
    blocks = activation_blocks(
        model, source.stream(settings.forward_contexts), sites, config.data.excluded_positions
    )
    buffer = ShuffleBuffer(blocks, settings.buffer_tokens, settings.batch_tokens, generator)
    steps = {
        site: TopKStep(
            Scaling.of(buffer.values[site]),
            config.saes.d_sae or 0,
            config.saes.k or 0,
            settings,
            buffer.values[site],
            generator,
        )
        for site in sites
    }
    for site in sites:
        (folder / site.short).mkdir()
    n_steps = math.ceil(settings.tokens / settings.batch_tokens)
    started = time.monotonic()
    for number, batch in zip(range(n_steps), buffer.batches(), strict=False):
        rate = learning_rate(config, number / n_steps)
        metrics = {site: steps[site].update(batch[site], rate) for site in sites}
        _refuse_divergence(number, metrics)
        if number % _EVERY == 0 or number == n_steps - 1:
            tokens = (number + 1) * settings.batch_tokens
            for site, found in metrics.items():
                line = {"step": number + 1, "tokens": tokens, "lr": settings.lr * rate, **found}
                with (folder / site.short / "metrics.jsonl").open("a", encoding="utf-8") as file:
                    file.write(json.dumps(line) + "\n")
            report({
                "step": number + 1, "of": n_steps, "tokens": tokens,
                "seconds": round(time.monotonic() - started, 1),
                "sites": {site.short: found for site, found in metrics.items()},
            })  # fmt: skip
    return steps


def learning_rate(config: TrainConfig, done: float) -> float:
    """Fraction of the peak rate when a fraction `done` of training is over: rise, plateau, linear fall."""
    settings = config.training
    rising = min(1.0, done / settings.warmup) if settings.warmup else 1.0
    falling = (1 - done) / (1 - settings.decay_from) if done > settings.decay_from else 1.0
    return min(rising, falling)


def _refuse_divergence(number: int, metrics: dict[Site, dict[str, float]]) -> None:
    for site, found in metrics.items():
        if not math.isfinite(found["fvu"]):
            raise ConfigError(
                f"training of {site.short}", f"error not finite at step {number + 1}", "Lower lr."
            )


def _measure(config: TrainConfig, model: LanguageModel, folder: Path, held_out: np.ndarray) -> QualityTable:
    saes = {site: load_sae(folder / site.short, d_model=model.d_model) for site in config.saes.recorded}
    for sae in saes.values():
        sae.network.to(model.device())
    pre = np.empty(0, dtype=int)
    if isinstance(config.data, MixtureContexts):
        n_examples = (held_out.shape[1] - PREFIX_LENGTH) // TOKENS_PER_EXAMPLE
        pre = np.array([position("pre", j) for j in range(n_examples)])
    return measure_quality(model, saes, held_out, pre=pre, excluded=config.data.excluded_positions)


def _card(config: TrainConfig, model: LanguageModel, quality: QualityTable, seconds: float) -> dict[str, Any]:
    return {
        "model": {"name": model.name, "fingerprint": model.fingerprint},
        "config": config.model_dump(mode="json"),
        "quality": json.loads(quality.df.to_json(orient="records")),
        "measured_on": f"{config.held_out.contexts} contexts not trained on, seed {config.held_out.seed}",
        "seconds": round(seconds, 1),
        "threads": torch.get_num_threads(),
        "versions": {name: _version(name) for name in ("iclens", "sae_lens", "torch", "transformers")},
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
