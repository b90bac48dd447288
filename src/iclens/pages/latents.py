"""The table of all latents, and the page of each that is worth one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup

from iclens.activations import Trajectories
from iclens.concepts.labels import CANDIDATE
from iclens.concepts.language import IDENTITY
from iclens.core import Site, SiteError
from iclens.pages import text
from iclens.pages.concepts import RAMP, map_panel, tuning_panel
from iclens.pages.draw import (
    NAN,
    Line,
    Mark,
    Row,
    bars_chart,
    key,
    level,
    lines_chart,
    rows_chart,
    spark,
    tag,
)
from iclens.pages.growth import ANSWER
from iclens.pages.profile import Excerpt, Profile
from iclens.pages.section import (
    Cell,
    Frame,
    Links,
    Panel,
    Section,
    Source,
    chart_of,
    figure,
    frames,
    grid,
    missing,
    paragraph,
    records,
)
from iclens.pages.text import count, interval, joined, number, number_column, percent, shard, word_column
from iclens.patching.sweep import BASE, GIVEN, TARGET
from iclens.prompts.arms import parse_arm
from iclens.results.read import Results, known
from iclens.saes.encode import Near
from iclens.schemas import FALLS, LADDER
from iclens.table import Axis, Points

LEAST_R2 = 0.1
"""Least share of a latent's means that an account has to explain for the latent to follow it."""
PAGES_REASON = (
    "Of each site, latents with a label that is not one task's, then in turn the clearest growth, the best "
    "concept, the largest tested patch effect, until {n} latents are chosen; others get one when "
    "dashboard.latents of the config names them."
)
FIRST_ROWS, TASK_BARS = 50, 12
"""Rows that stand in the page of the table itself; tasks drawn on a latent's page."""
_KEY = ["site", "latent"]


# ---------------------------------------------------------------- table


class Column(NamedTuple):
    """A column of the table of latents."""

    name: str  # of the rows' column, and in a link
    heading: str
    meaning: str  # in a few words, the heading's title
    kind: str = "number"  # "key", "number" or "word"
    beside: str = ""  # column whose word stands beside the number
    first: str = "up"  # order of the first sort, "up" or "down"
    shown: str = "at first"  # or "when chosen"


COLUMNS = (
    Column("latent", "latent", "site of its SAE, and its index there", "key"),
    Column("density", "density", "share of tokens on which it is active", first="down"),
    Column("role", "role", "role at which it grows best", "word"),
    Column("slope", "slope", "rise per example there, task arm minus control arm", first="down"),
    Column("q_value", "q", "of the slope, corrected for the number of tests"),
    Column("verdict", "verdict", "of the growth test", "word"),
    Column("label", "label", "concept granted, or candidate", "word"),
    Column("auroc", "AUROC", "of the best concept on held-out tasks", beside="concept", first="down"),
    Column(
        "effect", "patch effect", "largest change in a belief’s log-odds, nats", "number", "belief", "down"
    ),
    Column("control_p", "control p", "share of matched random latents with at least that effect"),
    Column("answer", "on the answer", "change in the task’s own answer’s log-odds, nats", first="down"),
    Column(
        "follows", "follows", "account of growth that it follows at its role", "word", shown="when chosen"
    ),
    Column("causal", "when pushed", "whether pushing it moves the answer", "word", shown="when chosen"),
)
CHOICES = ("site", "verdict", "label", "concept", "belief")
"""Columns that a reader chooses a value of."""
_WORDS = ("site", "role", "verdict", "label", "concept", "belief", "follows", "causal")
_NUMBERS = ("density", "slope", "q_value", "auroc", "effect", "control_p", "answer")


def address(site: str, latent: int) -> str:
    """The address of a latent's page, relative to the index."""
    return f"latents/{site}-{latent}.html"


def told_best(transforms: Frame) -> Frame:
    """Rows of the table of concepts, granted labels first, then by AUROC."""
    rows = transforms.assign(granted=~transforms["label"].isin(["", CANDIDATE]))
    return rows.sort_values(["granted", "auroc"], ascending=False)


def ranked(source: Source, site: str, n: int) -> list[int]:
    """The `n` latents of a site that get a page: best of growth, concepts and patches, taken in turn."""
    tables = (source.rows("growth"), source.rows("transforms"), _patched(source))
    growth, transforms, patches = (table[table["site"] == site] for table in tables)
    growth, patches = (
        growth.assign(size=-growth["slope"].abs()),
        patches.assign(size=-patches["effect"].abs()),
    )
    lists = {
        "q_value": growth.sort_values(["q_value", "size"]),
        "auroc": told_best(transforms),
        "effect": patches.sort_values(["control_p", "size"]),
    }
    orders = [rows.dropna(subset=[name])["latent"].drop_duplicates().tolist() for name, rows in lists.items()]
    merged = dict.fromkeys(latent for turn in zip_longest(*orders) for latent in turn if latent is not None)
    return [int(latent) for latent in list(merged)[:n]]


def _patched(source: Source) -> Frame:
    """Effects of single latents at the role that the pages show."""
    table = source.rows("patches")
    return table[table["role"] == source.config.patch.roles[0]]


def _asked(results: Results) -> dict[str, list[int]]:
    """Latents that `dashboard.latents` names, by site; refuses a strange site or latent."""
    asked: dict[str, list[int]] = {}
    for name, latents in results.config.dashboard.latents.items():
        site = known("site", Site.parse(name).short, [place.short for place in results.sites])
        d_sae = results.facts["saes"][site]["d_sae"]
        if strange := [latent for latent in latents if not 0 <= latent < d_sae]:
            where = f"dashboard.latents: latent {strange[0]} of {site}"
            raise SiteError(where, f"its SAE has {d_sae}", f"Latents run from 0 to {d_sae - 1}.")
        asked[site] = latents
    return asked


def with_pages(source: Source) -> dict[Site, dict[int, str]]:
    """Site → its latents that get a page → the role at which its best concept is told and its tuning read.

    Pages get those that `dashboard.latents` names, those labelled with a concept, and the ranked ones.
    """
    asked, transforms = _asked(source.results), source.rows("transforms")
    concepts = transforms[~transforms["label"].isin(["", CANDIDATE, IDENTITY])]
    best = told_best(transforms.dropna(subset=["auroc"])).drop_duplicates(_KEY)
    roles: dict[Any, str] = best.set_index(_KEY)["role"].to_dict()
    first, n, chosen = source.config.transforms.roles[0], source.config.dashboard.pages_per_site, {}
    for site in source.results.sites:
        labelled = concepts[concepts["site"] == site.short]["latent"].tolist()
        own = [*asked.get(site.short, ()), *labelled, *ranked(source, site.short, n)]
        chosen[site] = {latent: roles.get((site.short, latent), first) for latent in dict.fromkeys(own)}
    return chosen


def latent_table(source: Source, density: Mapping[str, Any]) -> Frame:
    """A row for every latent of every site, clearest growth first: its site and the columns of `COLUMNS`.

    `density` is site (short) → share of tokens on which each latent is active, [latent]; unknown without.
    """
    growth = clearest_first(source.rows("growth")).drop_duplicates(_KEY)
    best = told_best(source.rows("transforms").dropna(subset=["auroc"])).drop_duplicates(_KEY)
    patches, accounts, dose = _patched(source), source.rows("latent_accounts"), source.rows("dose")
    moved = patches.assign(size=-patches["effect"].abs()).dropna(subset=["effect"]).sort_values("size")
    named = accounts[accounts["named"].astype(bool) & (accounts["r2"] >= LEAST_R2)]
    causal = dose[dose["belief"] == ANSWER].groupby(_KEY)["causal"].any()
    rows = growth[[*_KEY, "role", "slope", "q_value", "verdict"]]
    for other, columns, by in (
        (named.rename(columns={"account": "follows"}), ["follows"], [*_KEY, "role"]),
        (best, ["label", "concept", "auroc"], _KEY),
        (moved.drop_duplicates(_KEY), ["belief", "effect", "control_p"], _KEY),
        (patches[patches["belief"] == ANSWER].rename(columns={"effect": "answer"}), ["answer"], _KEY),
        (causal.map({True: "causal", False: "not causal"}).reset_index(), ["causal"], _KEY),
    ):
        rows = rows.merge(other[[*by, *columns]].astype({"latent": rows["latent"].dtype}), on=by, how="left")
    words = [name for name in _WORDS if name != "site"]
    rows[words] = rows[words].astype(object).fillna("")
    rows.loc[rows["q_value"].isna(), "role"] = ""
    keys = zip(rows["site"], rows["latent"], strict=True)
    return rows.assign(
        density=[float(density[site][latent]) if site in density else NAN for site, latent in keys]
    )


def clearest_first(growth: Frame) -> Frame:
    """Rows of the growth table in the order in which they are shown, a latent's best role before its others.

    A latent's best role is where it gets furthest up the ladder; one that grows at one role and falls at
    another is a growing one. The smallest q comes first; of equal ones what grows, and the steepest.
    """
    height = growth["verdict"].map({rung: i for i, rung in enumerate(LADDER)} | {FALLS: 0.5})
    best = height.groupby([growth[name] for name in _KEY]).transform("max")
    order = growth.assign(beside=height < best, low=-height, size=-growth["slope"].abs())
    order = order.sort_values(["beside", "q_value", "low", "size"], na_position="last", kind="stable")
    return order.drop(columns=["beside", "low", "size"])


def table_script(rows: Frame, links: Links) -> str:
    """The rows as a shard, column by column.

    `rows` is their number. `words` has the different words of each column of words, and `values` a string for
    each column, as `text.joined` writes it: places among the words, numbers, and `page`, 1 where the latent
    has one.
    """
    words, values = {}, {}
    for name in _WORDS:
        words[name], values[name] = word_column(rows[name].tolist())
    values["latent"] = joined(map(str, rows["latent"]))
    values |= {name: number_column(rows[name]) for name in _NUMBERS}
    keys = zip(rows["site"], rows["latent"], strict=True)
    values["page"] = joined("1" if key in links else "" for key in keys)
    return shard("latents", {"rows": len(rows), "words": words, "values": values})


# ---------------------------------------------------------------- pages

WAYS = {
    "ablate": "Taken out of run A",
    "ablate all": "Taken out of run A at every example,",
    "mean": "Set to run B’s value in run A",
}
"""Other ways of moving a latent, in words."""
SILENT = "It is active on none of the searched prompts."


def estimate(row: Mapping[str, Any], name: str, ends: str = "") -> str:
    """A number of a row with its interval, `<name>_low` to `<name>_high` unless its ends are named."""
    low, high = (row[f"{ends or name}_{end}"] for end in ("low", "high"))
    return f"{number(row[name])} {interval(low, high)}".rstrip()


class SiteLatents:
    """The pages of some latents of a site."""

    def __init__(
        self,
        source: Source,
        site: Site,
        roles: Mapping[int, str],  # latent → the role at which its tuning was read
        profile: Profile,  # what they do on prompts
        rows: Mapping[int, Mapping[str, Any]],  # latent → its row of the table of latents
    ) -> None:
        self.source, self.results, self.site = source, source.results, site
        self.roles, self.profile, self.rows = roles, profile, rows
        self._tables: dict[str, dict[int, Frame]] = {}

    def of(self, table: str, latent: int) -> Frame:
        """A latent's rows of a table."""
        if table not in self._tables:
            rows = self.source.rows(table)
            here = rows[(rows["site"] == self.site.short) & rows["latent"].isin(list(self.roles))]
            self._tables[table] = {int(str(key)): own for key, own in here.groupby("latent", sort=False)}
            self._tables[table][-1] = here.iloc[:0]
        return self._tables[table].get(latent, self._tables[table][-1])

    @cached_property
    def clearest(self) -> dict[int, str]:
        """Latent → the role at which it gets furthest up the ladder."""
        growth = {latent: self.of("growth", latent) for latent in self.roles}
        return {n: str(clearest_first(rows)["role"].iloc[0]) for n, rows in growth.items() if len(rows)}

    @cached_property
    def curves(self) -> dict[tuple[int, str], tuple[Line, Line]]:
        """(Latent, role) → its mean activation × decoder norm in the tested arm, and in its control."""
        ids, norms = np.array(list(self.roles), dtype=np.int64), self.results.decoder_norms[self.site.short]
        config, columns = self.source.config, ("n_seen", "mean", "ci_low", "ci_high")
        curves = {}
        for role in self.results.roles:
            drawn = []
            for arm, name in ((config.treated, "task"), (config.controls[0], "control")):
                of = Trajectories.of(
                    self.results.latents(arm, self.site, role), ids, arm=arm, decoder_norm=norms,
                    beliefs=self.results.beliefs_of(arm)[0], belief_names=config.belief_names,
                )  # fmt: skip
                drawn.append({
                    latent: Line(f"{name} arm", name, *(rows[column].tolist() for column in columns))
                    for latent, rows in of.summary(seed=config.prompts.seed).groupby("latent")
                })  # fmt: skip
            curves |= {(latent, role): (drawn[0][latent], drawn[1][latent]) for latent in self.roles}
        return curves

    @cached_property
    def arms(self) -> dict[int, list[tuple[str, list[float]]]]:
        """Latent → its mean activation × decoder norm over the examples, arm by arm, at its clearest role."""
        norms = self.results.decoder_norms[self.site.short]
        means: dict[int, list[tuple[str, list[float]]]] = {latent: [] for latent in self.clearest}
        for role in dict.fromkeys(self.clearest.values()):
            chosen = np.array([n for n, own in self.clearest.items() if own == role], dtype=np.int64)
            for arm in self.results.arms:
                dense = self.results.latents(arm, self.site, role).dense(chosen)  # [latent prompt example]
                of_arm = dense.mean(axis=1) * norms[chosen, None]
                for latent, mean in zip(chosen.tolist(), of_arm.tolist(), strict=True):
                    means[latent].append((arm, mean))
        return means

    @cached_property
    def responses(self) -> dict[int, tuple[list[Line], str]]:
        """Latent → how the answer follows x when it alone is patched, and that in words."""
        tables = map(self.source.rows, ("responses", "response_fits"))
        table, fits = (rows[rows["site"] == self.site.short] for rows in tables)
        curves = {patch: rows.sort_values("x") for patch, rows in table.groupby("patch", sort=False)}
        if not {BASE, TARGET, GIVEN} <= set(curves):
            return {}
        fitted = {row["latents"]: row for row in records(fits[fits["patch"] == GIVEN])}
        base, target = (curves[name]["mean"].tolist() for name in (BASE, TARGET))
        drawn = {}
        for members, rows in curves[GIVEN].groupby("latents", sort=False):
            if str(members).isdigit():
                fit, x = fitted[members], rows["x"].tolist()
                words = f"Slope {estimate(fit, 'slope')}, changed by {estimate(fit, 'slope_change')}."
                lines = [Line("with this latent patched", "task", x, rows["mean"].tolist()),
                         Line("in A*", "exact", x, target), Line("in run B", "control", x, base)]  # fmt: skip
                drawn[int(str(members))] = lines, words
        return drawn


@dataclass(frozen=True)
class LatentPage:
    """One latent's page: its summary and its sections, each of which says why it is empty."""

    site: SiteLatents
    latent: int

    @property
    def name(self) -> str:
        """Site and latent."""
        return f"{self.site.site.short} · {self.latent}"

    @property
    def at(self) -> str:
        """Its clearest role, in words."""
        role = self.site.clearest.get(self.latent, "")
        return f" at {role}" if role else ""

    def of(self, table: str) -> Frame:
        """Its rows of a table."""
        return self.site.of(table, self.latent)

    @property
    def summary(self) -> str:
        """What is known of it, in a few sentences."""
        labels = [
            label for label in best_roles(self.of("transforms"))["label"] if label not in ("", CANDIDATE)
        ]
        named = f"It is labelled {', '.join(dict.fromkeys(labels))}." if labels else "No label was granted."
        role, patches = self.site.source.config.patch.roles[0], self.of("patches")
        own = patches[(patches["belief"] == ANSWER) & (patches["role"] == role) & patches["effect"].notna()]
        moved = f"It was not patched at {role}."
        if len(own):
            row = records(own)[0]
            beside = f", control p {number(row['control_p'])}" if math.isfinite(row["control_p"]) else ""
            moved = f"Patched from run A into run B at {role} it changes the answer’s log-odds by "
            moved += f"{estimate(row, 'effect', 'ci')} nats{beside}."
        return f"{standing(self)} {named} {moved}"

    def sections(self) -> list[Section]:
        """All of them."""
        parts: tuple[tuple[str, str, Callable[[LatentPage], Markup]], ...] = (
            ("trajectory", "Over the examples", trajectory),
            ("verdict", "How far up the ladder, and why not higher", ladder),
            ("patching", "What it does when patched from run A into run B", patching),
            ("selectivity", "What it responds to", selectivity),
            ("prompts", "Where it is most active", prompts),
            ("output", "What it writes, how often, and what is near", output),
        )
        return [Section(words, id=id_, body=lambda _, make=make: make(self)) for id_, words, make in parts]


def _legend(keys: Mapping[str, str], *more: str | Markup) -> Markup:
    kinds = (key(kind, words) for kind, words in keys.items())
    return tag("p", *kinds, *(tag("span", words, class_="key") for words in more), class_="legend")


def trajectory(page: LatentPage) -> Markup:
    """Its activation over the examples at each role, and in every arm at its clearest."""
    latent, growth = page.latent, {row["role"]: row for row in records(page.of("growth"))}
    clearest, panels, fitted = page.site.clearest.get(latent), [], None
    if clearest is not None:
        fitted = scaled_posterior(page.site.source, page.site.curves[latent, clearest][0])
    for role in page.site.results.roles:
        task, control = page.site.curves[latent, role]
        row = growth.get(role, {"verdict": "", "slope": NAN, "q_value": NAN, "reason": ""})
        said = ""
        if math.isfinite(row["slope"]):
            tested = math.isfinite(row["q_value"])
            slope = (
                f"{estimate(row, 'slope', 'ci')}, q {number(row['q_value'])}"
                if tested
                else number(row["slope"])
            )
            said = f"slope {slope}. "
        caption = Markup("{}<small>{}{}</small>").format(row["verdict"] or "not tested", said, row["reason"])
        if task.flat and control.flat:
            panels.append(Panel(f"at {role}", caption, missing("never active")))
            continue
        bare = Line(control.name, control.kind, control.x, control.y)
        lines = [task, control if role == clearest else bare]
        lines = [fitted[0], *lines] if fitted is not None and role == clearest else lines
        label = f"Mean activation at {role} by examples seen: {task.ends}, on the control arm {control.ends}."
        panels.append(Panel(f"at {role}", caption, lines_chart(lines, "", said=label)))
    keys, notes = {"task": "task arm", "control": "control arm"}, [*follows(page.of("latent_accounts"))]
    if fitted is not None:
        keys["exact"] = "exact posterior’s log-odds, fitted"
        fit = f"explains R² {number(fitted[1])} of the task arm’s means."
        notes.insert(0, f"At {clearest} a line through the exact posterior’s log-odds {fit}")
    parts = [
        _legend(keys, "mean activation × decoder norm, bands 95 % over prompts"),
        *frames(panels, "roles"),
    ]
    parts += [paragraph("under", words) for words in notes]
    if arms := page.site.arms.get(latent):
        means = [value for _, mean in arms for value in mean if math.isfinite(value)]
        bounds = min(0.0, *means, 0.0), max(0.0, *means, 0.0) or 1.0
        columns = {
            "arm": "arm",
            "its labels": lambda row: parse_arm(row["arm"]).meaning,
            "mean": lambda row: spark(row["mean"], *bounds),
            "first": lambda row: row["mean"][0],
            "last": lambda row: row["mean"][-1],
        }
        table = grid(
            "In every arm", columns, [{"arm": arm, "mean": mean} for arm, mean in arms], kind="compact"
        )
        parts += [tag("h3", f"In every arm{page.at}", id="arms"), table]
    return Markup("\n").join(parts)


def scaled_posterior(source: Source, task: Line) -> tuple[Line, float] | None:
    """The exact posterior's log-odds fitted to a latent's means, and the share of them that it explains.

        minimise over a, b:  Σ_n (mean(n) − a − b·LO_exact(n))²

    None where the posterior is unknown or the means are flat.
    """
    beliefs = source.rows("beliefs")
    rows = beliefs[(beliefs["belief"] == ANSWER) & (beliefs["arm"] == source.results.arms[0])]
    rows = rows[np.isfinite(rows["exact_mean"].astype(float))]
    exact = dict(zip(rows["n_seen"], rows["exact_mean"], strict=True))
    points = [
        (n, exact[n], mean)
        for n, mean in zip(task.x, task.y, strict=True)
        if n in exact and math.isfinite(mean)
    ]
    n_seen, log_odds, means = (
        (np.array(column) for column in zip(*points, strict=True)) if points else [np.zeros(0)] * 3
    )
    if len(points) < 3 or np.ptp(means) == 0:
        return None
    design = np.column_stack([np.ones(len(points)), log_odds])
    weights, *_ = np.linalg.lstsq(design, means, rcond=None)
    fitted = design @ weights
    r2 = 1 - float(((means - fitted) ** 2).sum() / ((means - means.mean()) ** 2).sum())
    return Line("exact posterior", "exact", n_seen.tolist(), fitted.tolist()), r2


def standing(page: LatentPage) -> str:
    """Whether a latent grows, and how sure that is, in a sentence."""
    rows = page.of("growth")
    row = records(clearest_first(rows))[0] if len(rows) else {"q_value": NAN, "reason": ""}
    if not math.isfinite(row["q_value"]):
        return f"Growth was not tested{': ' if row['reason'] else ''}{row['reason']}."
    task = page.site.curves[page.latent, row["role"]][0]
    means = [value for value in task.y if math.isfinite(value)]
    alone = f" The task arm alone goes from {number(means[0])} to {number(means[-1])}." if means else ""
    beside = "beside the control arm" if row["verdict"] in (FALLS, LADDER[0]) else "beyond the control arms"
    grows = "does not grow" if row["verdict"] == LADDER[0] else row["verdict"]
    sure = f"slope {estimate(row, 'slope', 'ci')}, q {number(row['q_value'])}"
    return f"At {row['role']} it {grows} {beside} ({sure}).{alone}"


def follows(accounts: Frame) -> Iterator[str]:
    """The account that is named for a latent at each role, and over which arms."""
    for role, rows in accounts.groupby("role", sort=False):
        best = rows[rows["named"].astype(bool)].iloc[0]
        at = f", {best['parameter']}" if best["parameter"] else ""
        named = f"{best['account']}{at}, with R² {number(best['r2'])} over arms {best['arms']}"
        none = "" if best["r2"] >= LEAST_R2 else "none of the accounts; the nearest is "
        yield f"At {role} it follows {none}{named}."


def ladder(page: LatentPage) -> Markup:
    """The rung it reached, why not higher, and the figures of its gates."""
    rows = page.of("growth")
    if rows.empty:
        return missing(f"No verdict was given. {page.site.source.why('growth')}")
    row = records(clearest_first(rows))[0]
    height = LADDER.index(row["verdict"]) if row["verdict"] in LADDER else -1
    rungs = (
        tag("li", rung, class_="here" if n == height else "passed" if n < height else "open")
        for n, rung in enumerate(LADDER[1:], start=1)
    )
    where = {
        0: f"It stands on no rung{page.at}.",
        -1: f"It {row['verdict']} beside its control, and stands beside the ladder.",
    }.get(height, f"It stands on “{row['verdict']}”{page.at}.")
    why = f" Not higher: {row['reason']}." if row["reason"] else ""
    parts = [tag("ol", *rungs, class_="ladder"), tag("p", where, why)]
    if figures := gates(row):
        cells = (
            tag("div", tag("dt", name), tag("dd", value), tag("dd", meaning, class_="why"))
            for name, value, meaning in figures
        )
        parts.append(tag("dl", *cells, class_="facts"))
    return Markup("\n").join(parts)


def gates(row: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """What the gates of the ladder rest on, of a row of `growth`: name, value and what it is."""
    held_out = f"{number(row['confirm_slope'])}, Holm p {number(row['confirm_p'])}"
    label = f"of a label; a label without any adds {number(row['count'])}"
    dose = f"{estimate(row, 'dose_effect', 'dose')} nats"
    figures = {
        "confirm_slope": ("slope on held-out prompts", held_out, "per example, after the claim was frozen"),
        "own_slope": ("own slope", number(row["own_slope"]), "tested arm alone, no control subtracted"),
        "exponent": ("exponent", estimate(row, "exponent"), "of a + b·n^p; 1 is one equal step per example"),
        "best_curve": ("best curve", str(row["best_curve"]), "smallest BIC of the curves tried"),
        "evidence": ("step per nat of evidence", estimate(row, "evidence"), label),
        "dose_effect": ("effect of its own growth", dose, f"control p {number(row['control_p'])}"),
    }
    return [
        shown for name, shown in figures.items()
        if (row[name] if isinstance(row[name], str) else math.isfinite(row[name]))
    ]  # fmt: skip


def patching(page: LatentPage) -> Markup:
    """Its effect on each belief, moved in other ways, how the answer follows x, and its doses."""
    source, patches = page.site.source, page.of("patches")
    if patches.empty:
        there = _patched(source)["site"].eq(page.site.site.short).any()
        same = f"At {source.config.patch.roles[0]} its activation is the same in run A and run B."
        why = source.why("patches") or f"{page.site.site.short} was not patched."
        parts = [missing(f"Not patched. {same if there else why}")]
    else:
        parts = [_patched_table(patches)]
    parts += [paragraph("under", words) for words in moved_words(page.of("specificity"))]
    response, doses = page.site.responses.get(page.latent), [*dose_panels(page)]
    panels = doses
    if response is not None:
        lines, words = response
        ends = "; ".join(f"{line.name} {line.ends}" for line in lines)
        legend = _legend({"control": "run B", "task": "B with this latent", "exact": "A*"})
        chart = lines_chart(lines, "", "x", said=f"Expected answer by x: {ends}.")
        panels = [Panel("how the answer follows x", words, chart, legend), *doses]
    parts += frames(panels, "roles")
    pushed = (
        "Pushed along its decoder row: change of the answer’s log-odds in nats, band 95 % over prompts; "
        "dose 1 is the latent’s own rise from there to the last example."
    )
    unpushed = "It was not pushed. Pushed are the first of the short list at pre of each site."
    parts.append(paragraph("under", pushed) if doses else missing(unpushed))
    if response is None:
        why = "Response curves are drawn for the tested latents of the site that carries most."
        parts.append(missing(f"No response curve was drawn for it. {why}"))
    return Markup("\n").join(parts)


def _patched_table(patches: Frame) -> Markup:
    roles, first = list(dict.fromkeys(patches["role"])), patches.iloc[0]
    spec = Points(Axis("effect", "change in log-odds, nats", "ci_low", "ci_high"), ("belief",))
    drawn = patches[patches["role"] == roles[0]].assign(words="")
    chart, _ = chart_of(spec, drawn, "Change in log-odds by belief", said="values in the table")
    caption = tag("figcaption", tag("b", "effect on each belief"), f" at {roles[0]}, with its 95 % interval")
    columns = {
        **({"role": "role"} if len(roles) > 1 else {}), "belief": "belief", "effect": figure("effect"),
        "control p": "control_p", "q": "q_value", "B": "base", "patched": "patched", "A": "donor",
    }  # fmt: skip
    reasons = "".join(f" {row['belief']}: {row['reason']}." for row in records(patches) if row["reason"])
    note = (
        f"Mean log-odds in nats; A’s and B’s activation differ in {count(int(first['n_changed']))} of "
        f"{count(int(first['n_prompts']))} prompts{f' at {roles[0]}' if len(roles) > 1 else ''}. The SAE’s "
        "error is left in place. Control p: share of matched random latents with at least that "
        f"effect.{reasons}"
    )
    table = grid("Effect on each belief", columns, records(patches), kind="")
    table = tag("div", table, paragraph("under", note))
    return tag("div", tag("figure", caption, chart), table, class_="chart-first")


def moved_words(rows: Frame) -> Iterator[str]:
    """What moving a latent in other ways than from A to B does to the belief that its concept names."""
    own = rows[rows["own"].astype(bool) & rows["way"].isin(WAYS) & rows["reason"].eq("")]
    for row in records(own.drop_duplicates(["role", "way", "belief"])):
        beside = f"control p {number(row['control_p'])} beside {row['n_controls']} matched latents"
        effect = f"{estimate(row, 'effect', 'ci')} nats on {row['belief']}, of {number(row['base'])}"
        yield f"{WAYS[row['way']]} at {row['role']}: {effect} without the change; {beside}."


def dose_panels(page: LatentPage) -> Iterator[Panel]:
    """Effects on the answer's log-odds by dose, for each number of examples in context."""
    dose, curves = (rows[rows["belief"] == ANSWER] for rows in map(page.of, ("dose", "dose_curves")))
    for row in records(dose):
        at = curves[curves["n_examples"] == row["n_examples"]]
        line = Line("dose", "task", *(at[name].tolist() for name in ("dose", "effect", "ci_low", "ci_high")))
        judged = "causal" if row["causal"] else row["reason"]
        caption = tag("small", f"{estimate(row, 'slope')} nats per natural growth; {judged}")
        label = f"Change of the answer’s log-odds by dose: {line.ends}."
        chart = lines_chart([line], "", "natural growths added", said=label)
        yield Panel(f"pushed after {count(int(row['n_examples']))} examples", caption, chart)


def best_roles(concepts: Frame) -> Frame:
    """One row per concept: at the role where it has a label, or else is told best."""
    best = told_best(concepts).drop_duplicates("concept").set_index("concept", drop=False)
    return best.loc[list(dict.fromkeys(concepts["concept"]))]


def selectivity(page: LatentPage) -> Markup:
    """Its activation by task, by concept and by number."""
    role, profile = page.site.roles[page.latent], page.site.profile
    columns = {
        "concept": "concept", "role": "role", "AUROC": figure("auroc"),
        "worst confound": figure("confound_auroc", "worst_confound", ends=""),
        "label": lambda row: Cell(row["label"], small=row["reason"]),
    }  # fmt: skip
    concepts = grid("By concept", columns, records(best_roles(page.of("transforms"))), kind="tight")
    concepts = concepts or missing(f"No concept was tested. {page.site.source.why('transforms')}")
    by_concept = tag("div", tag("h3", "By concept", id="concepts"), concepts)
    parts = [tag("div", _by_task(page, role), by_concept, class_="two")]
    panels = [
        tuning_panel(rows, of, page.name, role) for of, rows in profile.tunings.get(page.latent, {}).items()
    ]
    if panels:
        boxes = profile.boxes.get(page.latent)
        panels += [map_panel(boxes, page.name, role)] if boxes else []
        parts += [tag("h3", f"By number at {role}"), *frames(panels, "tuned")]
    else:
        parts.append(missing(f"Its tuning to numbers was not measured. {profile.reason}"))
    return Markup("\n").join(parts)


def _by_task(page: LatentPage, role: str) -> Markup:
    means, names = page.site.results.task_means
    held_out = set(page.site.results.grid["held_out"])
    own = dict(zip(names, means[f"{page.site.site.short} {role}"][page.latent].tolist(), strict=True))
    order = sorted(own, key=lambda name: -own[name] if math.isfinite(own[name]) else math.inf)
    drawn = [name for name in order[:TASK_BARS] if own[name] != 0] or order[:1]
    rest = [name for name in order if name not in drawn]
    bars = [
        Row(f"{name}{'*' if name in held_out else ''}", [Mark(own[name], kind="bar")], number(own[name]))
        for name in drawn
    ]
    said = f"largest {number(own[drawn[0]])} on {drawn[0]}"
    caption = tag("figcaption", tag("b", "by task"), f" mean activation at {role}; * held-out task")
    others = f"{len(rest)} other tasks: at most {number(own[rest[0]])}." if rest else ""
    chart = rows_chart(bars, "Mean activation by task", said=said)
    return tag("figure", caption, chart, paragraph("under", others))


def prompts(page: LatentPage) -> Markup:
    """The prompts on which it is most active, and some at random."""
    profile = page.site.profile
    top, random = profile.prompts.get(page.latent, ()), profile.random.get(page.latent, ())
    values = (value for one in (*top, *random) for value in one.values if math.isfinite(value))
    peak = max(values, default=0.0)
    parts = [missing(f"No prompt is shown. {profile.reason or SILENT}")]
    if top:
        scale = Markup("0 {} {}").format(RAMP, number(peak))
        words = "the activation stands in a token’s title, and beside it on focus (arrow keys move along)"
        parts = [_legend({}, scale, words), _shown(top, peak)]
    if random:
        parts += [tag("h3", "Prompts at random"), _shown(random, peak)]
    return Markup("\n").join(parts)


def _shown(excerpts: Sequence[Excerpt], peak: float) -> Markup:
    figures = []
    for one in excerpts:
        ends = "… " if one.before else "", "…" if one.after else ""
        tokens = tag("div", ends[0], token_lines(one, peak), ends[1], class_="tokens")
        figures.append(tag("figure", tag("figcaption", one.title), tokens, class_="prompt"))
    return tag("div", *figures, class_="prompts")


def token_lines(one: Excerpt, peak: float) -> Markup:
    """Tokens, coloured by activation, broken after each newline.

    Neighbours on which the latent is silent are joined: nothing tells them apart on the page.
    """
    lines: list[list[tuple[str, float, int]]] = [[]]
    for token, value in zip(one.tokens, one.values, strict=True):
        step, shown = level(value, peak), text.token_text(token.text, token.continues)
        if step == 0 and lines[-1] and lines[-1][-1][2] == 0:
            shown = lines[-1].pop()[0] + shown
        lines[-1].append((shown, value, step))
        if token.text.endswith("\n"):
            lines.append([])
    coloured, drawn = Markup("<b class=a{} title={}>{}</b>"), []
    for line in filter(None, lines):
        parts = (coloured.format(n, number(v), shown) if n else Markup.escape(shown) for shown, v, n in line)
        drawn.append(Markup("<i>{}</i>").format(Markup("").join(parts)))
    return Markup("").join(drawn)


def output(page: LatentPage) -> Markup:
    """Tokens whose logit it moves, its neighbours, and how large its activations are."""
    profile, latent, site = page.site.profile, page.latent, page.site.site.short
    density = page.site.rows[latent]["density"] if latent in page.site.rows else NAN
    promotes, suppresses = profile.promotes.get(latent, ()), profile.suppresses.get(latent, ())
    close, together = profile.close.get(latent), profile.together.get(latent)
    logits = missing(f"Logit effects were not computed. {profile.reason}")
    if promotes or suppresses:
        lists = (
            _listed(heading, ((tag("code", text.visible(token)), value) for token, value in effects))
            for heading, effects in (("Raises the logit of", promotes), ("Lowers the logit of", suppresses))
        )
        logits = tag("div", *lists, class_="logits")
    near = missing(f"No neighbour is shown. {profile.reason or SILENT}")
    if close is not None or together is not None:
        named = ("Nearest decoder rows, cosine", close), ("Active together, correlation", together)
        lists = (_listed(heading, _neighbours(own, site, page.site.source.links)) for heading, own in named)
        near = tag("div", *lists, class_="logits")
    chart = missing(f"No histogram was made. {profile.reason or SILENT}")
    if latent in profile.histograms:
        edges, counts = profile.histograms[latent]
        label = f"Histogram of activations between {number(edges[0])} and {number(edges[-1])}."
        chart = bars_chart(edges, counts, label, "activation where active")
    caption = tag("figcaption", tag("b", "activations"), f" active on {percent(density)} of tokens")
    return tag("div", logits, near, tag("figure", caption, chart), class_="two")


def _listed(heading: str, values: Iterator[tuple[Markup, float]]) -> Markup:
    items = [tag("li", name, tag("span", number(value), class_="n")) for name, value in values]
    return tag("div", tag("h3", heading), tag("ol", *(items or [tag("li", "none")])))


def _neighbours(near: Near | None, site: str, links: Links) -> Iterator[tuple[Markup, float]]:
    pairs = [] if near is None else zip(near.latents.tolist(), near.values.tolist(), strict=True)
    for latent, value in pairs:
        page = links.get((site, latent))
        yield (
            tag("a", str(latent), href=page.removeprefix("latents/")) if page else tag("span", str(latent)),
            value,
        )


def exported(site: str, latent: int, profile: Profile) -> dict[str, Any]:
    """What other tools read of a latent with a page: its tokens, logits and activations, as plain values."""
    edges, counts = profile.histograms.get(latent, ([], []))
    return {
        "site": site,
        "latent": latent,
        "density": float(profile.density[latent]),
        "top_tokens": [[token, value] for token, value in profile.promotes.get(latent, ())],
        "bottom_tokens": [[token, value] for token, value in profile.suppresses.get(latent, ())],
        "histogram": {"edges": edges, "counts": counts},
        "prompts": [
            {"title": one.title, "tokens": [token.text for token in one.tokens], "values": list(one.values)}
            for one in profile.prompts.get(latent, ())
        ],
    }
