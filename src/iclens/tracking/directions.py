"""Does a supervised direction grow with the examples, whether or not any latent does?

1. On one set of prompts, the difference of means u = mean(h_T − h_S) after the last example, unit length:
the direction along which context changes a site most. 2. On other prompts, the projection of T − S on it
after every example. Growth there that no latent shows, or the reverse, says what the SAE hides (F8).
Enter a model and two paired arms; leave paired differences per site, ready for the growth test.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from iclens.errors import TableError
from iclens.models.forward import record
from iclens.models.load import LanguageModel
from iclens.names import Site
from iclens.tables.arrays import Floats, Ints
from iclens.tables.prompts import PromptSet


def direction_growth(
    model: LanguageModel,
    treated: PromptSet,
    control: PromptSet,
    sites: Sequence[Site],
    *,
    fit: Ints,
    test: Ints,
    role: str = "pre",
    batch: int = 128,
) -> dict[Site, Floats]:
    """Projections of T − S on each site's difference of means.

    Only `batch` prompts of one site set are held at a time, and the projections.

    Args:
        model: the model.
        treated: arm T.
        control: its paired arm; both inline.
        sites: where.
        fit: prompts that give the directions, [prompt].
        test: prompts that are projected, [prompt]; none of `fit`.
        role: token of each example.
        batch: prompts per forward pass.

    Returns:
        site → [prompt example], in activation units.

    Raises:
        TableError: when a prompt is in both sets, or the arms do not differ at a site.
    """
    if shared := set(fit.tolist()) & set(test.tolist()):
        raise TableError(
            "a supervised direction",
            f"prompt {min(shared)} both fits and tests it",
            "Give `fit` and `test` without a prompt in common.",
        )
    directions: dict[Site, Floats] = {site: np.zeros(model.d_model) for site in sites}
    for difference in _differences(model, treated, control, sites, fit, role, batch):
        for site in sites:
            directions[site] = directions[site] + difference[site][:, -1].sum(axis=0)
    for site, summed in directions.items():
        length = float(np.linalg.norm(summed))
        if length == 0:
            raise TableError(
                f"arms at {site.short}",
                "their activations are equal",
                "Give arms that show other labels, such as T and S.",
            )
        directions[site] = summed / length
    parts: dict[Site, list[Floats]] = {site: [] for site in sites}
    for difference in _differences(model, treated, control, sites, test, role, batch):
        for site in sites:
            parts[site].append(difference[site] @ directions[site])
    return {site: np.concatenate(found) for site, found in parts.items()}


def _differences(
    model: LanguageModel,
    treated: PromptSet,
    control: PromptSet,
    sites: Sequence[Site],
    prompts: Ints,
    role: str,
    batch: int,
) -> Iterator[dict[Site, Floats]]:
    """site → T − S of the next prompts, float64 [prompt example d_model]."""
    where = treated.positions(role)
    for start in range(0, len(prompts), batch):
        rows = prompts[start : start + batch]
        one, other = (record(model, arm.tokens[rows], list(sites), where) for arm in (treated, control))
        yield {site: one[site].astype(np.float64) - other[site] for site in sites}
