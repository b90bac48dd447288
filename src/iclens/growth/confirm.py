"""Does what was found hold on prompts that no choice was made on?

1. The claims (short list, direction, what is claimed of each) are frozen in a manifest with a hash, together
with the prompts that may confirm them. 2. Only then are those prompts read: the paired slope of each claim,
one test each, Holm over the list. 3. Shrinkage, confirm ÷ discovery slope, says how lucky discovery was.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import stats

from iclens.errors import REDO_STAGE, TableError
from iclens.names import Site
from iclens.tables.arrays import Floats, Ints
from iclens.tables.shapes import ConfirmTable

Place = tuple[Site, str]


@dataclass(frozen=True)
class Claim:
    """One latent and what is claimed of it.

    Args:
        site: short form.
        role: token of each example.
        latent: its id.
        slope: paired slope of the discovery split, activation × decoder norm per example.
        says: "grows" or "grows linearly".
    """

    site: str
    role: str
    latent: int
    slope: float
    says: str


@dataclass(frozen=True)
class Manifest:
    """Everything that was decided before the confirm split was read.

    Args:
        claims: in the order of the short list.
        prompts: prompts of the confirm split, [prompt].
        study: hash of what the study was asked.
    """

    claims: tuple[Claim, ...]
    prompts: tuple[int, ...]
    study: str

    @property
    def sha256(self) -> str:
        """Hash of the canonical JSON."""
        return hashlib.sha256(self.json().encode()).hexdigest()

    def json(self) -> str:
        """Canonical JSON: sorted keys, no spaces, exact numbers."""
        held = {
            "claims": [[c.site, c.role, c.latent, float(c.slope).hex(), c.says] for c in self.claims],
            "prompts": list(self.prompts),
            "study": self.study,
        }
        return json.dumps(held, sort_keys=True, separators=(",", ":"))

    def freeze(self, path: Path) -> str:
        """Write the manifest and its hash; returns the hash."""
        path.write_text(f"{self.sha256}\n{self.json()}\n", encoding="utf-8")
        return self.sha256

    @classmethod
    def thaw(cls, path: Path) -> Manifest:
        """Read what `freeze` wrote.

        Raises:
            TableError: when it is missing, or not what was frozen.
        """
        try:
            said, text = path.read_text(encoding="utf-8").splitlines()
            held = json.loads(text)
            claims = tuple(
                Claim(site, role, latent, float.fromhex(slope), says)
                for site, role, latent, slope, says in held["claims"]
            )
            manifest = cls(claims, tuple(held["prompts"]), held["study"])
        except (OSError, ValueError, KeyError, TypeError) as cause:
            raise TableError(f"manifest {path}", f"unreadable ({cause})", REDO_STAGE) from cause
        if said != manifest.sha256 or text != manifest.json():
            raise TableError(
                f"manifest {path}",
                "changed after it was frozen",
                REDO_STAGE,
            )
        return manifest


def confirm(
    manifest: Manifest,
    differences: Mapping[Place, Floats],
    prompts: Ints,
    own: Mapping[Place, Floats] | None = None,
) -> ConfirmTable:
    """The paired slope of every claim on the confirm split.

    Args:
        manifest: what was claimed.
        differences: (site, role) → paired T − control of its claims in the manifest's order, activation
            × decoder norm, [claim prompt example].
        prompts: the prompts they come from, [prompt].
        own: (site, role) → the same of the task's arm alone; its slope is NaN when not given.

    Raises:
        TableError: when they are not the manifest's prompts, or claims are missing.
    """
    if tuple(int(p) for p in prompts) != manifest.prompts:
        raise TableError(
            "confirmation", "other prompts than the manifest's", "Give those that `manifest.prompts` lists."
        )
    slopes, alone = (np.full((len(manifest.claims), len(prompts)), np.nan) for _ in range(2))
    for place, rows in _by_place(manifest.claims).items():
        if place not in differences or len(differences[place]) != len(rows):
            raise TableError(
                f"confirmation at {place[0].short} {place[1]}",
                "claims are missing",
                "Give `differences` of this site and role for every one of its claims.",
            )
        slopes[rows] = _slopes(differences[place])
        if own is not None:
            alone[rows] = _slopes(own[place])
    return _table(manifest.claims, slopes, alone)


def holm(p_values: Floats) -> Floats:
    """Holm's adjusted p-values, [test]; NaN marks a test that was not made and is not counted."""
    adjusted = np.full(len(p_values), np.nan)
    made = np.flatnonzero(np.isfinite(p_values))
    order = made[np.argsort(p_values[made], kind="stable")]
    scaled = p_values[order] * np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    return adjusted


def _by_place(claims: Sequence[Claim]) -> dict[Place, list[int]]:
    places: dict[Place, list[int]] = {}
    for i, claim in enumerate(claims):
        places.setdefault((Site.parse(claim.site), claim.role), []).append(i)
    return places


def _slopes(values: Floats) -> Floats:
    """Least-squares slope over examples, [claim prompt]."""
    centred = np.arange(values.shape[2]) - (values.shape[2] - 1) / 2
    return values.astype(np.float64) @ (centred / (centred**2).sum())


def _table(claims: Sequence[Claim], slopes: Floats, alone: Floats) -> ConfirmTable:
    n = slopes.shape[1]
    mean, error = slopes.mean(axis=1), slopes.std(axis=1, ddof=1) / np.sqrt(n)
    differing = (slopes != 0).sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        tail = stats.t.sf(mean / error, n - 1)
    # As in detection: no sign test of so many prompts could go lower.
    p = np.where(differing > 0, np.maximum(tail, 0.5 ** differing.astype(float)), np.nan)
    half = stats.t.ppf(0.975, n - 1) * error
    own_half = stats.t.ppf(0.975, n - 1) * alone.std(axis=1, ddof=1) / np.sqrt(n)
    discovery = np.array([claim.slope for claim in claims], dtype=float)
    return ConfirmTable(
        {
            "site": [str(Site.parse(claim.site)) for claim in claims],
            "role": [claim.role for claim in claims],
            "latent": [claim.latent for claim in claims],
            "n_prompts": np.full(len(claims), n),
            "discovery_slope": discovery,
            "confirm_slope": mean,
            "confirm_low": mean - half,
            "confirm_high": mean + half,
            "confirm_p": holm(p),
            "shrinkage": mean / discovery,
            "own_slope": alone.mean(axis=1),
            "own_low": alone.mean(axis=1) - own_half,
            "reason": np.where(differing > 0, "", "the arms do not differ on the confirm split"),
        }
    )
