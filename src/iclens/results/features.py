"""Latents for the tools that show features: SAEDashboard's batch JSON, and a feature list.

The batch has the fields of `NeuronpediaDashboardBatch` and `NeuronpediaDashboardFeature`
(jbloomAus/SAEDashboard, sae_dashboard/neuronpedia/neuronpedia_dashboard.py), filled as its
neuronpedia_converter.py fills them: `activations` of top prompts have bin_min −1 and bin_contains −1, bin_max
is the largest value; bar values of a histogram are the middles of its bins. The list is that of sae_lens'
`get_neuronpedia_quick_list` (sae_lens/analysis/neuronpedia_integration.py): modelId, layer, index.

A study does not compute these fields, and they are left out rather than filled with something else:
neuron_alignment_*, correlated_neurons_*, correlated_features_*, logits_hist_data_*, decoder_weights_dist,
dataset, n_prompts_total, n_tokens_in_prompt. SAEDashboard's reader gives each its empty default.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from iclens.core import IclensError, RunError, RunWarning, Site, SiteError, TableError
from iclens.results.answer import Answer, frame_html, write_json
from iclens.results.read import Results, having

LATENTS = "latents.json"
"""What the dashboard stage saw of the latents that have a page."""
_FOUND = ("growth", "transforms", "patches", "masses", "dose")
"""Tables whose rows of a latent say what the study found."""
_PAGES = [{"site": str, "latent": int}]


@dataclass(frozen=True)
class Features:
    """Latents of one site, as other tools know them."""

    results: Results  # the run's outputs
    site: Site  # where the SAE reads
    latents: tuple[int, ...]  # latent ids
    # latent → what the dashboard stage saw of it; of those that have a page
    pages: Mapping[int, Mapping[str, Any]]

    @cached_property
    def batch(self) -> dict[str, Any]:
        """SAEDashboard's batch: `model_id`, `layer`, `sae_set` and the `features` that have a page.

        Raises:
            RunError: when the run holds neither tokens nor logits of any of the latents.
            TableError: when what it holds is damaged.
        """
        file = self.results.path_of("dashboard", LATENTS)
        features = []
        for latent in self.latents:
            if latent in self.pages:
                try:
                    features.append(_feature(latent, self.pages[latent]))
                except (LookupError, TypeError, ValueError, AttributeError) as cause:
                    reason = f"unreadable: latent {latent} of {self.site.short} is of another form"
                    raise TableError(f"{file}", reason, "Run `iclens dashboard RUN`.") from cause
        if not features:
            subject = f"tokens and logits of latents of {self.site.short}"
            if file.is_file():
                self.results.part("dashboard", LATENTS, _PAGES)
            reason = "none of them has a page" if file.is_file() else f"{file} is not there"
            raise RunError(subject, reason, "Run `iclens dashboard RUN`, or ask for `.found`.")
        return {
            "model_id": self._model, "layer": self.site.layer, "sae_set": self._set, "features": features
        }  # fmt: skip

    @property
    def quick_list(self) -> list[dict[str, str]]:
        """sae_lens' list: `modelId`, `layer` (layer and SAE set) and `index` of each latent."""
        layer = f"{self.site.layer}-{self._set}"
        return [{"modelId": self._model, "layer": layer, "index": str(latent)} for latent in self.latents]

    @cached_property
    def found(self) -> list[dict[str, Any]]:
        """What the study found, a record per latent: `site`, `latent`, and its rows by table."""
        tables = {}
        for name in _FOUND:
            try:
                rows = having(self.results.frame(name, self.site), name, "latent")
            except (RunError, TableError):
                continue
            rows = rows[rows["latent"].isin(self.latents)].drop(columns="site")
            tables[name] = {
                int(str(key)): part.drop(columns="latent") for key, part in rows.groupby("latent")
            }
        return [
            {"site": self.site.short, "latent": latent}
            | {name: _records(rows[latent]) if latent in rows else [] for name, rows in tables.items()}
            for latent in self.latents
        ]

    @property
    def df(self) -> pd.DataFrame:
        """A row per latent: `site`, `latent`, `page` (whether tokens and logits are there), `density`."""
        nothing: Mapping[str, Any] = {}
        rows = [
            (self.site.short, latent, latent in self.pages, self.pages.get(latent, nothing).get("density"))
            for latent in self.latents
        ]
        return pd.DataFrame(rows, columns=["site", "latent", "page", "density"])

    def plot(self) -> Any:
        """The growth of these latents, as the table is drawn.

        Raises:
            TableError: when there is nothing to draw, saying why.
        """
        growth = having(self.results.frame("growth", self.site), "growth", "latent")
        return Answer.of(growth[growth["latent"].isin(self.latents)], "growth").plot()

    def save(self, path: str | Path) -> Path:
        """Write them as JSON.

        Args:
            path: a `.json` file takes the batch alone; a folder takes `batch-0.json`, `quick_list.json` and
                `found.json`, and, with a RunWarning, the last two when there is nothing for the batch.

        Raises:
            RunError: for a file, when there is nothing for the batch.
            TableError: for a file, when its batch is damaged; for another ending, or where nothing can be
                written.
        """
        target = Path(path)
        if target.suffix == ".json":
            return write_json(target, self.batch)
        if target.suffix and not target.is_dir():
            raise TableError(
                f"file '{target}'",
                f"features are not written as '{target.suffix}'",
                "Name a file that ends in .json, or a folder.",
            )
        try:
            target.mkdir(parents=True, exist_ok=True)
        except OSError as cause:
            raise TableError(
                f"folder '{target}'",
                f"it cannot be made ({cause.strerror})",
                "Name a folder whose parent is there and can be written.",
            ) from cause
        batch = None
        try:
            batch = self.batch
        except (RunError, TableError) as problem:
            warnings.warn(f"{problem} Without them there is no batch.", RunWarning, stacklevel=2)
        if batch is not None:
            write_json(target / "batch-0.json", batch)
        write_json(target / "quick_list.json", self.quick_list)
        write_json(target / "found.json", self.found)
        return target

    @property
    def _model(self) -> str:
        folder = self.results.setting("model.folder", str, "") or "unknown"
        return folder.rstrip("/").split("/")[-1]

    @property
    def _set(self) -> str:
        return f"{self.site.hook}-{self.results.facts['saes'][self.site.short]['sae_id']}"

    def __repr__(self) -> str:
        with_page = sum(latent in self.pages for latent in self.latents)
        return f"Features({self.site.short}, {len(self.latents)} latents, {with_page} with tokens and logits)"

    def _repr_html_(self) -> str:
        """The first latents, and which of them have tokens and logits."""
        return frame_html(repr(self), self.df)


def features_of(results: Results, site: Site, latents: Sequence[int] | None) -> Features:
    """Latents of a site; by default those that have a page, or else the short-listed ones.

    Raises:
        SiteError: for a latent that the site's SAE does not have.
        RunError, TableError: when the run says neither which have a page nor which are short-listed.
    """
    pages = _pages(results, site)
    if latents is not None:
        d_sae = results.facts["saes"][site.short]["d_sae"]
        strange = [latent for latent in latents if not 0 <= latent < d_sae]
        if strange:
            allowed = f"the SAE has latents 0 to {d_sae - 1}"
            raise SiteError(f"latent {strange[0]} of {site.short}", allowed, "Choose one of these.")
        return Features(results, site, tuple(dict.fromkeys(int(latent) for latent in latents)), pages)
    if pages:
        return Features(results, site, tuple(pages), pages)
    growth = having(results.frame("growth", site), "growth", "latent", "shortlisted")
    listed = growth.loc[growth["shortlisted"], "latent"].drop_duplicates()
    return Features(results, site, tuple(int(latent) for latent in listed), {})


def _pages(results: Results, site: Site) -> dict[int, Mapping[str, Any]]:
    try:
        pages = results.part("dashboard", LATENTS, _PAGES)
    except IclensError:
        return {}
    return {int(one["latent"]): one for one in pages if one["site"] == site.short}


def _feature(latent: int, page: Mapping[str, Any]) -> dict[str, Any]:
    """SAEDashboard's record of a latent."""
    top, bottom = page.get("top_tokens") or [], page.get("bottom_tokens") or []
    histogram = page.get("histogram") or {}
    edges, counts = histogram.get("edges") or [], histogram.get("counts") or []
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    return {
        "feature_index": latent,
        "neg_str": [str(text) for text, _ in bottom],
        "neg_values": [float(value) for _, value in bottom],
        "pos_str": [str(text) for text, _ in top],
        "pos_values": [float(value) for _, value in top],
        "frac_nonzero": float(page["density"]),
        "freq_hist_data_bar_values": middles,
        "freq_hist_data_bar_heights": list(counts),
        "activations": [_activation(prompt) for prompt in page.get("prompts") or []],
    }


def _activation(prompt: Mapping[str, Any]) -> dict[str, Any]:
    values = [float(value) for value in prompt["values"]]
    return {
        "bin_min": -1,
        "bin_max": max(values, default=0.0),
        "bin_contains": -1,
        "tokens": list(prompt["tokens"]),
        "values": values,
    }


def _records(rows: pd.DataFrame) -> list[dict[str, Any]]:
    """Rows as plain values; undefined numbers are None."""
    return [{str(key): _plain(value) for key, value in row.items()} for row in rows.to_dict("records")]


def _plain(value: Any) -> Any:
    plain = value.item() if hasattr(value, "item") else value
    return None if isinstance(plain, float) and not math.isfinite(plain) else plain
