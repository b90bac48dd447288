"""What is every section of a study config? A frozen model that refuses unknown keys."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from iclens.core import check_role


def _known(roles: list[str]) -> list[str]:
    if not roles:
        raise ValueError("give at least one role")
    return [check_role(role) for role in dict.fromkeys(roles)]


Roles = Annotated[list[str], AfterValidator(_known)]


Seed = Annotated[int, Field(ge=0, lt=2**63)]


class Section(BaseModel):
    """A frozen section whose unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_switches(cls, value: Any) -> Any:
        if isinstance(value, bool):  # pydantic would take true for 1
            raise ValueError("no key is true or false")
        return value
