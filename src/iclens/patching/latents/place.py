"""Which token of a run does a latent patch at a role mean?"""

from __future__ import annotations

from iclens.errors import EditError
from iclens.names import ROLES, check_role, position
from iclens.tables.prompts import PromptSet


def example_of(prompts: PromptSet, role: str) -> int:
    """Which example a role is taken of: the query, or the one before it for a token that the query lacks."""
    in_query = ROLES.index(check_role(role)) <= ROLES.index("pre")
    example = prompts.n_examples - (1 if in_query else 2)
    if example < 0:
        raise EditError(
            f"a patch at `{role}`",
            "the run shows no example before its query",
            "Patch at `pre` or earlier, or build the runs with recipient='S arm' (patch.recipient).",
        )
    return example


def place_of(prompts: PromptSet, role: str) -> int:
    """Token index of a role, as `LatentRuns` places it."""
    return position(role, example_of(prompts, role))
