"""How near is the example just read to the query that follows it?

    similarity_ij = 1 − |x_ij − x_i,j+1| / (largest difference among the prompts' inputs)

A learner that copies from near neighbours gains more from a near example than from a far one, whatever the
label says about the task; evidence regressions take it as a regressor beside evidence and count. Only
numbers have a distance here.
"""

from __future__ import annotations

import numpy as np

from iclens.tables.arrays import Floats
from iclens.tables.prompts import PromptSet


def example_similarity(prompts: PromptSet) -> Floats | None:
    """Similarity of the last example before query j + 1 to that query, [prompt example]; the last is NaN.

    In an inline arm that example is example j; in a probed arm it stands last in the query's own context.

    Args:
        prompts: one arm.

    Returns:
        None where the inputs are not numbers, or all alike.
    """
    if not np.char.isdigit(prompts.x).all():
        return None
    query = prompts.x.astype(int)
    read = query[:, :-1]
    if prompts.context_x is not None and prompts.slots is not None:
        last = [prompts.context_x[:, n, prompts.slots[n] - 1] for n in range(1, prompts.n_examples)]
        read = np.stack(last, axis=1).astype(int)
    widest = query.max() - query.min()
    if widest == 0:
        return None
    found = np.full(query.shape, np.nan)
    found[:, :-1] = 1 - np.abs(read - query[:, 1:]) / widest
    return found
