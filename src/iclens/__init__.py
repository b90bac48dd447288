"""Does in-context learning add features, one Bayesian update per example, and which features?

    run = iclens.open("runs/demo")
    run.growth.query("q_value < .05 and verdict == 'grows'")

Names are looked up when first used, so that `import iclens` stays cheap and loads no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from iclens.core import IclensError, RunWarning, Site
    from iclens.prompts.tasks import parse_task
    from iclens.results.run import Run, Selection
    from iclens.results.run import open_run as open  # the way in reads `iclens.open(...)`

__version__ = "0.1.0"
__all__ = ["open", "Run", "Selection", "Site", "parse_task", "IclensError", "RunWarning", "__version__"]

_HOMES = {
    "open": ("iclens.results.run", "open_run"),
    "Run": ("iclens.results.run", "Run"),
    "Selection": ("iclens.results.run", "Selection"),
    "Site": ("iclens.core", "Site"),
    "parse_task": ("iclens.prompts.tasks", "parse_task"),
    "IclensError": ("iclens.core", "IclensError"),
    "RunWarning": ("iclens.core", "RunWarning"),
}


def __getattr__(name: str) -> Any:
    """The public name, imported now.

    Raises:
        AttributeError: for a name that `iclens` does not offer.
    """
    if name not in _HOMES:
        raise AttributeError(f"module 'iclens' has no attribute '{name}'")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    """The public names."""
    return sorted(__all__)
