"""How good are the trained SAEs? Measured from the files written, on contexts that none of them saw.

1. Held-out contexts of the data. 2. Prompts of the tasks that were mixed in, from a seed of their own, so
that the behaviour under study is measured as well as running text. All definitions are those of
`saes.quality`; the forward pass of the model as it is serves all SAEs.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from iclens.core import PREFIX_LENGTH, TOKENS_PER_EXAMPLE, Site, position
from iclens.model.load import LanguageModel
from iclens.prompts.build import build_prompts
from iclens.prompts.tasks import parse_task
from iclens.saes.load import Sae, load_sae
from iclens.saes.quality import LeftOut, density_table, quality_table, tally
from iclens.table import Ints
from iclens.training.config import MixtureContexts, SaeSpec, TrainConfig

Measured = dict[str, dict[str, list[dict[str, Any]]]]
"""SAE name → `quality` and `density` on held-out contexts, `quality_prompts` on prompts; a record per row."""


def evaluate(
    config: TrainConfig, model: LanguageModel, specs: Sequence[SaeSpec], folder: Path, contexts: Ints,
    left_out: LeftOut,
) -> Measured:  # fmt: skip
    """Measure SAEs that were written into `folder`.

    Args:
        config: what was trained.
        model: the model.
        specs: the SAEs to measure.
        folder: holds a folder for each.
        contexts: held-out contexts, [context pos].
        left_out: tokens neither measured nor changed.
    """
    device = str(model.device())
    saes = {spec.name: load_sae(folder / spec.name, d_model=model.d_model, device=device) for spec in specs}
    found: Measured = {name: {} for name in saes}
    pre = contexts.shape[1] if isinstance(config.data, MixtureContexts) else 0
    for group in _apart(saes):
        counted = tally(model, group, contexts, {"pre": _pre(pre)}, left_out=left_out)
        prompts = _prompts(config, model)
        for name, sae in saes.items():
            if group.get(sae.site) is not sae:
                continue
            counts = [counted[sae.site]]
            found[name] = {
                "quality": _records(quality_table(counts)), "density": _records(density_table(counts))
            }  # fmt: skip
        if prompts is not None:
            counted = tally(model, group, prompts, {"pre": _pre(prompts.shape[1])}, left_out=left_out)
            for name, sae in saes.items():
                if group.get(sae.site) is sae:
                    found[name]["quality_prompts"] = _records(quality_table([counted[sae.site]]))
    return found


def _apart(saes: dict[str, Sae]) -> list[dict[Site, Sae]]:
    """The SAEs in groups in which each site stands once."""
    groups: list[dict[Site, Sae]] = []
    for sae in saes.values():
        free = next((group for group in groups if sae.site not in group), None)
        if free is None:
            groups.append({sae.site: sae})
        else:
            free[sae.site] = sae
    return groups


def _pre(length: int) -> Ints:
    """Positions of `pre` in prompts of `length` tokens."""
    n_examples = max(0, (length - PREFIX_LENGTH) // TOKENS_PER_EXAMPLE)
    return np.array([position("pre", j) for j in range(n_examples)], dtype=np.int64)


def _prompts(config: TrainConfig, model: LanguageModel) -> Ints | None:
    """Prompts of every task and arm mixed in, in equal parts, [prompt pos]; None when there is none."""
    wanted = config.data.prompts
    if not wanted:
        return None
    each = max(1, config.held_out.contexts // len(wanted))
    parts = [
        build_prompts(
            model.tokenizer, parse_task(one.task), arm=one.arm, n_prompts=each,
            n_examples=config.data.examples, seed=config.held_out.seed,
        ).tokens
        for one in wanted
    ]  # fmt: skip
    return np.concatenate(parts)


def _records(table: Any) -> list[dict[str, Any]]:
    """Rows as plain mappings; an undefined figure is null."""
    return json.loads(table.df.to_json(orient="records"))
