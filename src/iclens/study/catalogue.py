"""Which SAEs can be had? The layouts that can be read, and the releases of sae_lens' registry."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from iclens.core import SaeError, nearest
from iclens.model.load import plain_name, same_name
from iclens.saes.formats.detect import LAYOUTS
from iclens.saes.formats.registry import Release, releases


@dataclass(frozen=True)
class Catalogue:
    """What `load_sae` can read.

    Args:
        layouts: (name, its two files, where it comes from) of each layout.
        published: (an SAE on the hub, its model) that the registry does not have.
        releases: releases of the registry.
        model: the model they were chosen for; None for all.
    """

    layouts: tuple[tuple[str, str, str], ...]
    published: tuple[tuple[str, str], ...]
    releases: tuple[Release, ...]
    model: str | None

    def as_json(self) -> dict[str, Any]:
        """As plain records."""
        names = ("layout", "files", "origin")
        return {
            "layouts": [dict(zip(names, row, strict=True)) for row in self.layouts],
            "published": [dict(zip(("sae", "model"), row, strict=True)) for row in self.published],
            "releases": [asdict(release) for release in self.releases],
            "model": self.model,
        }


def catalogue(model: str | None) -> Catalogue:
    """The layouts, and the registry's releases for `model` (all models by default).

    Raises:
        SaeError: when none are known for it.
    """
    everything, published = releases(), tuple(row for layout in LAYOUTS for row in layout.published)

    def wanted(name: str) -> bool:
        return model is None or same_name(name, model)

    chosen = tuple(release for release in everything if wanted(release.model))
    outside = tuple(row for row in published if wanted(row[1]))
    if not chosen and not outside:
        names = {
            plain_name(name) for name in (*(r.model for r in everything), *(row[1] for row in published))
        }
        raise SaeError(
            f"SAEs for '{model}'",
            "none are known",
            f"{nearest(plain_name(str(model)), names)}; `iclens saes list` names all.",
        )
    layouts = tuple((layout.name, " and ".join(layout.files), layout.origin) for layout in LAYOUTS)
    return Catalogue(layouts, outside, chosen, model)
