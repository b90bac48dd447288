"""A made-up run of realistic shape: every table with rows, and any text wherever a run puts text."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from iclens.core import BELIEFS, RunError, Site
from iclens.model.load import TokenText
from iclens.pages.draw import Line
from iclens.pages.latents import SiteLatents, address
from iclens.pages.profile import Excerpt, Profile
from iclens.pages.section import Chrome, Place, Source
from iclens.pages.site import Assembled
from iclens.results.read import Results
from iclens.saes.encode import Near
from iclens.schemas import LADDER, TABLES
from iclens.study.config import StudyConfig, parse_study_config

from .made_up_prompts import make_prompts

HOSTILE = "</script><img src=x onerror=alert(1)>"
SITES = tuple(f"L{layer}.{hook}" for layer in (1, 2, 3) for hook in ("resid_post", "mlp_out"))
ROLES, ARMS, EXAMPLES = ("x", "pre", "lab", "close"), ("T", "S", "D"), 16
CONCEPTS = ("double", "odd", "numeric")
STUDY = """
study: made
model: {folder: nowhere}
saes: {train: training of mine.yaml}
prompts: {task: 2x+3, arms: [T, S, D]}
track: {roles: [x, pre, lab, close]}
transforms: {concepts: [double, odd, numeric], roles: [pre, lab]}
"""
FREE = {
    *("reason", "says", "evidence", "question", "worst_confound", "confounded_with", "best_curve", "meaning"),
    *("task", "component", "ablated", "recipient", "representation", "measure", "over", "rival", "account"),
    *("parameter", "arms", "test", "sae_id", "of", "injected", "label"),
}
"""Columns that hold what a model, a task or a config is called, or sentences."""
WORDS: dict[str, tuple[str, ...]] = {
    "site": SITES[:2], "role": ("pre", "lab"), "belief": BELIEFS[:4], "arm": ARMS, "scale": ("probability",),
    "recipient": ("zero examples", "S arm"), "metric": ("task on own x", "copy", "effect on exact"),
    "kind": ("greedy", "neurons", "by own effect", "all latents", "full activation"), "place": ("pre",),
    "direction": ("sufficiency", "necessity"), "part": ("total", "later heads", "later MLP"),
    "rung": ("best single latent", "all latents", "error only", "full activation"), "unit": ("layer",),
    "control": ("own", "another token", "backwards"), "chosen_for": ("exact",), "concept": CONCEPTS,
    "representation": ("latents", "dense", "random labels"), "source": ("resid_mid", "mlp_out", "attn_out"),
    "weights": ("attention", "equal"), "over": ("all rows", "active rows"), "way": ("patch", "ablate all"),
    "patch": ("base", "A*", "full activation", "given latents"), "of": ("y", "x", "y-2x"),
    "account": ("exact posterior", "counting", "attention pooling"), "falsifier": ("F1", "F2", "F7"),
    "fired": ("fired", "did not fire", "not tested"), "measure": ("x decodable", "x and y overlap"),
    "injected": ("all latents", "full activation"), "verdict": LADDER, "label": ("odd", "candidate", ""),
    "other": ("seed 1", "seed 2"), "ablated": ("L2", "L2H0 L2H2"), "latents": ("12 7 31", "12"),
}  # fmt: skip
"""Column → values it may have."""
STEPS: dict[str, range] = {
    "layer": range(4), "head": range(-1, 3), "n_seen": range(0, EXAMPLES, 3), "n_examples": range(4, 5),
    "size": range(1, 5), "latent": range(3), "step": range(3), "k": range(-1, 3), "value": range(0, 12, 2),
    "x": range(0, 30, 10), "y": range(0, 30, 10), "other_d_sae": range(64, 65), "reader": range(4, 5),
    "dose": range(3), "period": range(2, 6),
}  # fmt: skip
ONE = {"site": SITES[:1], "n_seen": (8,), "recipient": ("S arm",)}
OF_TABLE: dict[str, dict[str, Any]] = {
    "heads": {"kind": ("zero", "mean")}, "direct": {"kind": ("zero",)}, "redundancy": {"kind": ("zero",)},
    "redundancy_ladder": {"kind": ("zero",), "ablated": ("",), "belief": ("exact",)},
    "masses": {"kind": ("detection", "")}, "patch_controls": {"belief": ("exact",)},
    "operand_maps": {"width": (10,), "concept": ("odd",)}, "tuning_curves": {"concept": ("odd",)},
    "beliefs": {"belief": BELIEFS, "n_seen": tuple(range(EXAMPLES))}, "responses": ONE, "response_fits": ONE,
    "growth": {"role": ROLES, "site": SITES}, "patches": {"site": SITES}, "dose": {"site": SITES},
    "transforms": {"sign": (1,), "site": SITES}, "dose_curves": {"site": SITES},
    "creation": {"verdict": ("created by the MLP",)},
    "probes": {"site": SITES[:1], "role": ("lab",), "verdict": ("below dense",)},
}  # fmt: skip
Text = Callable[[str], str]


def made_up(name: str, text: Text, seed: int = 0) -> pd.DataFrame:
    """A table: a row for each combination of what its key may be, numbers at random, and free texts made."""
    kind, rng = TABLES[name], np.random.default_rng(seed)
    may = {**WORDS, **STEPS, **OF_TABLE.get(name, {})}
    keys = [list(may.get(column, ("word",))) for column in kind.KEY or tuple(kind.COLUMNS)[:1]]
    rows = pd.DataFrame(list(itertools.product(*keys)), columns=list(kind.KEY or tuple(kind.COLUMNS)[:1]))
    n = len(rows)
    for column, about in kind.COLUMNS.items():
        if column in rows:
            continue
        base = column.removesuffix("_low").removesuffix("_high")
        if base != column and base in rows:
            rows[column] = rows[base] + (0.1 if column.endswith("_high") else -0.1)
        elif about.kind == "str":
            given = may.get(column, ("a word",))
            rows[column] = [given[i % len(given)] for i in range(n)]
        elif about.kind == "bool":
            rows[column] = rng.random(n) < 0.5
        elif about.kind == "int":
            rows[column] = [may[column][0]] * n if column in may else rng.integers(3, 60, n)
        else:
            rows[column] = rng.uniform(0.02, 1, n)
    for column in sorted(FREE & {name for name, about in kind.COLUMNS.items() if about.kind == "str"}):
        each = [f" {i}" if column not in kind.KEY else "" for i in range(n)]
        made = [value and text(f"{value}{i}") for value, i in zip(rows[column], each, strict=True)]
        rows[column] = [value.encode("utf-8", "replace").decode() for value in made]  # as a file holds them
    return rows[list(kind.COLUMNS)]


class MadeUp(Results):
    """A run whose tables are made up; `gone` are missing."""

    def __init__(self, text: Text = lambda word: word, gone: set[str] | None = None) -> None:
        config = parse_study_config(STUDY, "made.yaml")
        self.made_config = config.model_copy(update={"study": text("In-context learning")})
        self.text, self.gone, self._made = text, gone or set(), {}
        self.path = Path("runs/made-up")

    @property
    def config(self) -> StudyConfig:
        return self.made_config

    def table(self, name: str, site: Site | None = None) -> pd.DataFrame:
        if name in self.gone:
            raise RunError(f"{name}.parquet of run 'made up'", "not there", "Make it.")
        if name not in self._made:
            self._made[name] = _mended(name, made_up(name, self.text))
        return self._made[name].copy()

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(map(Site.parse, SITES))

    @property
    def roles(self) -> tuple[str, ...]:
        return ROLES

    @property
    def arms(self) -> tuple[str, ...]:
        return ARMS

    @property
    def card(self) -> dict[str, Any]:
        text = self.text
        return {
            "versions": {"torch": "2.13.0", "numpy": text("2.1")}, "seeds": {"prompts": 0}, "python": "3.12",
            "model folder": {"name": text("icl-tiny"), "files": {"model.safetensors": "41c8" * 5}},
            "model": "41c8e0d2b7f95a13", "config": "ed89ef76", "dtype": "float32", "device": "cpu",
            "saes": {site: {"sae_id": f"{i:016x}"} for i, site in enumerate(SITES)},
            "iclens": {"version": "0.1.0", "commit": text("0123456789abcdef")},
            "SAE source": {"folder": text("icl-tiny-saes")},
        }  # fmt: skip

    bayes = property(lambda self: {"exact": {
        "model": {"lam": 0.4, "lam_low": 0.3, "lam_high": 0.5, "n_first": 2, "n_last": 15, "r": 0.97},
        "exact": {"lam": 0.5, "lam_low": 0.4, "lam_high": 0.6}, "agreement": {"slope": 0.9, "r": 0.98},
    }})  # type: ignore[assignment]  # fmt: skip
    facts = property(lambda self: {"saes": {site: {"d_sae": 40} for site in SITES}})  # type: ignore[assignment]
    facts_of_growth = property(
        lambda self: {"accounts": {"arms": ["T", "S"], "verdict": self.text("Named.")}}
    )  # type: ignore[assignment]
    grid = property(lambda self: {"discovery": ["2x"] * 40, "held_out": ["3x"] * 22})  # type: ignore[assignment]

    @property
    def task_means(self) -> Any:
        tasks = [self.text(f"{a}x+{b}") for a in (1, 2, 3) for b in (0, 1)]
        means = np.random.default_rng(3).gamma(1.2, 0.5, (4000, len(tasks)))
        return {f"{site} {role}": means for site in SITES for role in ROLES}, tasks

    def beliefs_of(self, arm: str) -> tuple[Any, Any, str]:
        return None, None, self.text("the task is not in the mixture")

    def file(self, stage: str, name: str = "") -> Path:
        raise RunError(f"{stage} of run 'made up'", "not there", "Make it.")


def _mended(name: str, rows: pd.DataFrame) -> pd.DataFrame:
    """What no product of keys gives: one step of a ladder after another, digits, own beliefs."""
    if name == "redundancy_ladder":
        rows["ablated"] = ["", "L2", "L2 L3"]
        rows["verdict"] = ["", "neither", "backup"]
        rows.loc[0, ["ne_before", "control_ne_least", "control_ne_greatest"]] = np.nan
    if name in ("responses", "response_fits"):
        rows = rows[(rows["patch"] == "given latents") | (rows["latents"] == "12 7 31")]
        rows["latents"] = rows["latents"].where(rows["patch"] == "given latents", "")
    if name == "responses":
        rows["answer"] = [str(2 * x + 3) for x in rows["x"]]
    if name == "ladder":
        rows["latent"] = ["12" if rung == "best single latent" else "" for rung in rows["rung"]]
    if name == "specificity":
        rows["own"] = rows["belief"] == rows["concept"]
    if name == "quality":
        rows = pd.concat([rows.assign(site=site) for site in SITES], ignore_index=True).assign(mismatch="")
    if name in ("tests", "latent_tests", "growth", "patches"):
        rows["q_value"] = rows["q_value"] / 20
    return rows.reset_index(drop=True)


# ---------------------------------------------------------------- the site


def make_rows(per_site: int, hostile: str) -> pd.DataFrame:
    """`per_site` latents for every site, by q; the first few grow, and texts of the first are hostile."""
    rng, rows = np.random.default_rng(0), []
    for site, latent in itertools.product(SITES, range(per_site)):
        grows = latent < per_site // 20 + 1
        one = {
            "site": site, "latent": latent, "density": rng.beta(1, 30), "role": ROLES[latent % 4],
            "slope": rng.normal(0.2 if grows else 0, 0.05),
            "q_value": 10 ** -rng.uniform(2, 14) if grows else rng.uniform(0.05, 1),
            "verdict": "grows" if grows else "none", "label": ("double", "candidate", "")[latent % 3],
            "concept": "double", "auroc": rng.uniform(0.5, 1), "belief": "exact",
            "effect": rng.normal(0, 0.5), "control_p": rng.uniform(0.01, 1),
            "follows": ("exact posterior", "counting", "")[latent % 3],
            "causal": ("causal", "not causal")[latent % 2], "answer": rng.normal(0, 0.5),
        }  # fmt: skip
        words = dict.fromkeys(("label", "concept", "belief", "follows", "causal"), "")
        numbers = dict.fromkeys(("auroc", "effect", "control_p", "answer"), np.nan)
        rows.append(one if grows else one | words | numbers)
    found = pd.DataFrame(rows).sort_values("q_value", ignore_index=True)
    if hostile:
        found.loc[0, "verdict"] = "grows" + hostile
        found.loc[0, ["label", "concept", "belief", "follows"]] = hostile
    return found


def make_profile(latents: list[int], text: Text) -> Profile:
    """Prompts, logits, histograms, neighbours and tuning of some latents."""
    rng = np.random.default_rng(4)
    words = ["<s>", "\n", *["(", "1", ",", " ", text("5"), ")\n"] * 5, "😀", text("\u202e7"), text(" word")]
    tokens = [*map(TokenText, words), TokenText("", True)]

    def excerpt() -> Excerpt:
        values = np.where(rng.random(len(tokens)) < 0.6, 0, rng.gamma(2, 1, len(tokens))).tolist()
        return Excerpt(text("task 2x+3"), tokens, values, True, False)

    effects = [(text(word), 2.2 - 0.2 * i) for i, word in enumerate(("59", "\u202e7", " opposite", "odd"))]
    edges, counts = np.linspace(0, 3, 25).tolist(), (900 * np.exp(-np.arange(24) / 6)).astype(int).tolist()
    near = Near(np.array([1, 2, 3]), np.array([0.9, 0.5, 0.2]))
    rows = [{"value": v, "mean": float(rng.random()), "n_rows": 30} for v in range(0, 60, 2)]
    boxes = [{"x": x, "y": y, "width": 10, "mean": float(rng.random()), "n_rows": 5}
             for x in range(0, 50, 10) for y in range(0, 50, 10)]  # fmt: skip
    return Profile(
        np.full(4000, 0.012),
        {n: [excerpt() for _ in range(3)] for n in latents}, {n: [excerpt()] for n in latents},
        dict.fromkeys(latents, (edges, counts)), *[dict.fromkeys(latents, effects)] * 2,
        *[dict.fromkeys(latents, near)] * 2,
        {n: {of: rows for of in ("y", "x", "y-2x")} for n in latents}, dict.fromkeys(latents, boxes),
    )  # fmt: skip


def make_site(
    per_site: int = 40,
    n_pages: int = 4,
    hostile: str = HOSTILE,
    text: Text | None = None,
    gone: set[str] | None = None,
) -> Assembled:
    """A whole site; `hostile` ends its free texts, or `text` makes them."""
    made: Text = text or (lambda word: word + hostile)
    results, rows = MadeUp(made, gone), make_rows(per_site, hostile)
    keys = [(str(site), int(latent)) for site, latent in zip(rows["site"], rows["latent"], strict=True)][
        :n_pages
    ]
    source = Source(results, {key: address(*key) for key in keys})
    by_key = {(row["site"], row["latent"]): row for row in rows.head(n_pages).to_dict("records")}
    pages = []
    for site in dict.fromkeys(site for site, _ in keys):
        own = [latent for at, latent in keys if at == site]
        page = SiteLatents(source, Site.parse(site), dict.fromkeys(own, "pre"), make_profile(own, made),
                           {latent: by_key[site, latent] for latent in own})  # fmt: skip
        vars(page).update(curves=_curves(own), clearest=dict.fromkeys(own, "pre"), arms=_arms(own))
        pages.append(page)
    places = [("Index", "index"), ("Growth", "growth"), ("Latents", "latents"), ("Concepts", "concepts"),
              ("Patching", "patching"), ("Prompts", "prompts"), ("How", "how")]  # fmt: skip
    chrome = Chrome(results.config.study, tuple(Place(name, f"{path}.html") for name, path in places))
    prompts = make_prompts([*keys, *((site, 9) for site in SITES[:2])], made)
    return Assembled(source, rows, pages, prompts, chrome)


def _curves(latents: list[int]) -> Mapping[tuple[int, str], tuple[Line, Line]]:
    n = list(range(EXAMPLES))

    def line(kind: str, slope: float) -> Line:
        mean = [slope * k**0.5 for k in n]
        return Line(f"{kind} arm", kind, n, mean, [m - 0.1 for m in mean], [m + 0.1 for m in mean])

    return {(latent, role): (line("task", 0.3), line("control", 0.1)) for latent in latents for role in ROLES}


def _arms(latents: list[int]) -> dict[int, list[tuple[str, list[float]]]]:
    return {latent: [(arm, [0.1 * k for k in range(EXAMPLES)]) for arm in ARMS] for latent in latents}
