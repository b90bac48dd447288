"""What was run, exactly? Versions, commit, hashes, dtype and seeds of a run, for its card.json."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import iclens
from iclens.study import digests
from iclens.study.bench import CHECKOUT, Bench

PACKAGES = (
    "torch",
    "transformers",
    "sae_lens",
    "transformer_lens",
    "numpy",
    "scipy",
    "scikit-learn",
    "pandas",
)
"""Packages whose version can move a number."""


def study_card(bench: Bench) -> dict[str, Any]:
    """The card of a run; of its SAEs once they exist."""
    config = bench.config
    sections = config.model_dump(mode="json")
    seeds = {
        f"{section}.{key}": value
        for section, keys in sections.items() if isinstance(keys, dict)
        for key, value in keys.items() if key.endswith("seed")
    }  # fmt: skip
    return {
        "study": config.study,
        "config": digests.of_json(sections),
        "iclens": {"version": iclens.__version__, "commit": _commit()},
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "model folder": {"name": config.model.folder, "files": bench.outside["model"]},
        "SAE source": bench.outside["SAE source"],
        **(bench.facts if bench.there("saes") else {}),
        "dtype": config.model.dtype,
        "device": config.model.device,
        "seeds": seeds,
    }


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _commit() -> str:
    """Commit of the checkout, with "+" when files of the package differ from it; "unknown" outside of one."""
    if not (CHECKOUT / ".git").exists():
        return "unknown"
    try:
        commit = _git("rev-parse", "HEAD")
        return commit + ("+" if _git("status", "--porcelain", "--", "src") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    ran = subprocess.run(["git", "-C", str(CHECKOUT), *arguments], capture_output=True, text=True, check=True)
    return ran.stdout.strip()
