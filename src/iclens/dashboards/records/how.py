"""How was a run computed? Its config, stages and self-tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class HowView:
    """The page of how it was computed.

    Args:
        config: the resolved config, as YAML.
    """

    config: str = ""
