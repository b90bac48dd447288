"""What is every section of a study config? A frozen model that refuses unknown keys."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict

from iclens.names import check_role


def _known(roles: list[str]) -> list[str]:
    return [check_role(role) for role in dict.fromkeys(roles)]


Roles = Annotated[list[str], AfterValidator(_known)]


class Section(BaseModel):
    """A frozen section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)
