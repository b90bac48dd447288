"""Which SAEs can be had? The layouts that can be read, and the releases of sae_lens' registry."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from iclens.errors import SaeError, nearest
from iclens.saes.fit import plain_name
from iclens.saes.formats.detect import LAYOUTS
from iclens.saes.formats.registry import Release, releases


@dataclass(frozen=True)
class Catalogue:
    """What `load_sae` can read.

    Args:
        layouts: (name, its two files, an example) of each layout.
        releases: releases of the registry.
        model: the model they were chosen for; None for all.
    """

    layouts: tuple[tuple[str, str, str], ...]
    releases: tuple[Release, ...]
    model: str | None

    def as_json(self) -> dict[str, Any]:
        """As plain records."""
        names = ("layout", "files", "example")
        return {
            "layouts": [dict(zip(names, row, strict=True)) for row in self.layouts],
            "releases": [asdict(release) for release in self.releases],
            "model": self.model,
        }


def catalogue(model: str | None) -> Catalogue:
    """The layouts, and the registry's releases for `model` (all models by default).

    Raises:
        SaeError: when the registry has none for it.
    """
    everything = releases()
    chosen = tuple(r for r in everything if model is None or plain_name(r.model) == plain_name(model))
    if not chosen:
        known = nearest(plain_name(str(model)), sorted({plain_name(r.model) for r in everything}))
        raise SaeError(f"SAEs for '{model}'", "the registry of sae_lens has none", f"{known}.")
    layouts = tuple((layout.name, " and ".join(layout.files), layout.example) for layout in LAYOUTS)
    return Catalogue(layouts, chosen, model)
