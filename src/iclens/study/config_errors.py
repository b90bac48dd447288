"""What is wrong with a config, in one line? pydantic's errors named by key, with the nearest known one."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ValidationError

from iclens.core import ConfigError, nearest


def explain(cause: ValidationError, root: type[BaseModel], source: str) -> ConfigError:
    """The first validation error as one line: the key, what stands there, and what is allowed."""
    errors = cause.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    path = [str(part) for part in first["loc"]]
    asked = f"{source}: key '{'.'.join(path)}'"
    if first["type"] == "extra_forbidden":
        return ConfigError(asked, "unknown", nearest(path[-1], _keys_at(root, path[:-1])) + ".")
    if first["type"] == "missing":
        return ConfigError(asked, "missing", f"Write it in {source}: it has no default.")
    allowed = one_line(first["msg"]).removeprefix("Value error, ").replace("Input should", "It should", 1)
    return ConfigError(asked, f"{first['input']!r}"[:200], f"{allowed[:1].upper()}{allowed[1:]}.")


def _keys_at(root: type[BaseModel], path: list[str]) -> list[str]:
    section = root
    for part in path:
        inner: Any = section.model_fields[part].annotation
        if not (isinstance(inner, type) and issubclass(inner, BaseModel)):
            return []
        section = inner
    return list(section.model_fields)


def one_line(cause: object) -> str:
    """Text without line breaks."""
    return " ".join(str(cause).split())
