"""The table of all latents, and the page of each that is worth one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import zip_longest
from typing import Any

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
    Figure,
    Frame,
    Panel,
    Section,
    Source,
    Words,
    figure,
    frames,
    grid,
    missing,
    paragraph,
    records,
)
from iclens.pages.shard import joined, number_column, shard, word_column
from iclens.pages.text import count, interval, number, percent
from iclens.patching.sweep import BASE, GIVEN, TARGET
from iclens.prompts.arms import parse_arm
from iclens.results.read import Results, known
from iclens.saes.encode import Near
from iclens.schemas import FALLS, LADDER

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


@dataclass(frozen=True)
class Column:
    """A column of the table of latents.

    Args:
        name: of the rows' column, and in a link.
        heading: what stands above it.
        meaning: in a few words, the heading's title.
        kind: "key", "number" or "word".
        beside: column whose word stands beside the number, or "".
        first: order of the first sort, "up" or "down".
        shown: "at first" or "when chosen".
    """

    name: str
    heading: str
    meaning: str
    kind: str = "number"
    beside: str = ""
    first: str = "up"
    shown: str = "at first"


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


def ranked(source: Source, site: str, n: int) -> list[int]:
    """The `n` latents of a site that get a page: best of growth, concepts and patches, taken in turn."""
    tables = (source.rows("growth"), source.rows("transforms"), _patched(source))
    growth, transforms, patches = (table[table["site"] == site] for table in tables)
    granted = (~transforms["label"].isin(["", CANDIDATE])).astype(int)
    lists = {
        "q_value": growth.assign(size=growth["slope"].abs()).sort_values(
            ["q_value", "size"], ascending=[True, False]
        ),
        "auroc": transforms.assign(granted=granted).sort_values(["granted", "auroc"], ascending=False),
        "effect": patches.assign(size=patches["effect"].abs()).sort_values(
            ["control_p", "size"], ascending=[True, False]
        ),
    }
    orders = [rows.dropna(subset=[name])["latent"].drop_duplicates().tolist() for name, rows in lists.items()]
    merged = dict.fromkeys(latent for turn in zip_longest(*orders) for latent in turn if latent is not None)
    return [int(latent) for latent in list(merged)[:n]]


def _patched(source: Source) -> Frame:
    """Effects of single latents at the role that the pages show."""
    table = source.rows("patches")
    return table[table["role"] == source.config.patch.roles[0]]


def _asked(results: Results) -> dict[str, list[int]]:
    """Latents that `dashboard.latents` names, by site.

    Raises:
        SiteError: when it names a site that is not followed, or a latent that the SAE does not have.
    """
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
    order = transforms.dropna(subset=["auroc"])
    order = order.assign(granted=~order["label"].isin(["", CANDIDATE])).sort_values(
        ["granted", "auroc"], ascending=False
    )
    best: dict[Any, str] = order.drop_duplicates(_KEY).set_index(_KEY)["role"].to_dict()
    first, n, found = source.config.transforms.roles[0], source.config.dashboard.pages_per_site, {}
    for site in source.results.sites:
        labelled = concepts[concepts["site"] == site.short]["latent"].tolist()
        own = [*asked.get(site.short, ()), *labelled, *ranked(source, site.short, n)]
        found[site] = {latent: best.get((site.short, latent), first) for latent in dict.fromkeys(own)}
    return found


def latent_table(source: Source, density: Mapping[str, Any]) -> Frame:
    """A row for every latent of every site, clearest growth first: its site and the columns of `COLUMNS`.

    Args:
        source: the run.
        density: site (short) → share of tokens on which each latent is active, [latent]; unknown without.
    """
    growth = clearest_first(source.rows("growth")).drop_duplicates(_KEY)
    transforms = source.rows("transforms").dropna(subset=["auroc"])
    rank = (~transforms["label"].isin(["", CANDIDATE])).astype(int)
    best = transforms.assign(rank=rank).sort_values(["rank", "auroc"], ascending=False).drop_duplicates(_KEY)
    patches = _patched(source)
    answer = patches[patches["belief"] == ANSWER].rename(columns={"effect": "answer"})
    moved = patches.assign(size=patches["effect"].abs()).dropna(subset=["effect"])
    moved = moved.sort_values("size", ascending=False).drop_duplicates(_KEY)
    accounts = source.rows("latent_accounts")
    named = accounts[accounts["named"].astype(bool) & (accounts["r2"] >= LEAST_R2)]
    dose = source.rows("dose")
    pushed = (
        dose[dose["belief"] == ANSWER]
        .groupby(_KEY)["causal"]
        .any()
        .map({True: "causal", False: "not causal"})
    )
    rows = growth[[*_KEY, "role", "slope", "q_value", "verdict"]]
    for other, columns, by in (
        (named.rename(columns={"account": "follows"}), ["follows"], [*_KEY, "role"]),
        (best, ["label", "concept", "auroc"], _KEY),
        (moved, ["belief", "effect", "control_p"], _KEY),
        (answer, ["answer"], _KEY),
        (pushed.rename("causal").reset_index(), ["causal"], _KEY),
    ):
        rows = rows.merge(other[[*by, *columns]].astype({"latent": rows["latent"].dtype}), on=by, how="left")
    words = ["role", "verdict", "label", "concept", "belief", "follows", "causal"]
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


def table_script(rows: Frame, links: Mapping[tuple[str, int], str]) -> str:
    """The rows as a shard, column by column.

    `rows` is their number. `words` has the different words of each column of words, and `values` a string for
    each column, as `shard.joined` writes it: places among the words, numbers, and `page`, 1 where the latent
    has one.
    """
    words, values = {}, {}
    for name in _WORDS:
        words[name], values[name] = word_column(rows[name].tolist())
    values["latent"] = joined(map(str, rows["latent"]))
    for name in _NUMBERS:
        values[name] = number_column(rows[name])
    values["page"] = joined(
        "1" if key in links else "" for key in zip(rows["site"], rows["latent"], strict=True)
    )
    return shard("latents", {"rows": len(rows), "words": words, "values": values})


# ---------------------------------------------------------------- pages

WAYS = {
    "ablate": "Taken out of run A",
    "ablate all": "Taken out of run A at every example,",
    "mean": "Set to run B’s value in run A",
}
"""Other ways of moving a latent, in words."""
SILENT = "It is active on none of the searched prompts."


class SiteLatents:
    """The pages of some latents of a site.

    Args:
        source: the run.
        site: theirs.
        roles: latent → the role at which its tuning was read.
        profile: what they do on prompts.
        rows: their rows of the table of latents, by latent.
    """

    def __init__(
        self,
        source: Source,
        site: Site,
        roles: Mapping[int, str],
        profile: Profile,
        rows: Mapping[int, Mapping[str, Any]],
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
        config, found = self.source.config, {}
        names = config.belief_names
        for role in self.results.roles:
            drawn = []
            for arm, name in ((config.treated, "task"), (config.controls[0], "control")):
                of = Trajectories.of(
                    self.results.latents(arm, self.site, role), ids, arm=arm, decoder_norm=norms,
                    beliefs=self.results.beliefs_of(arm)[0], belief_names=names,
                )  # fmt: skip
                summary = of.summary(seed=config.prompts.seed)
                columns = ("n_seen", "mean", "ci_low", "ci_high")
                drawn.append({
                    latent: Line(f"{name} arm", name, *(rows[column].tolist() for column in columns))
                    for latent, rows in summary.groupby("latent")
                })  # fmt: skip
            found |= {(latent, role): (drawn[0][latent], drawn[1][latent]) for latent in self.roles}
        return found

    @cached_property
    def arms(self) -> dict[int, list[tuple[str, list[float]]]]:
        """Latent → its mean activation × decoder norm over the examples, arm by arm, at its clearest role."""
        norms = self.results.decoder_norms[self.site.short]
        found: dict[int, list[tuple[str, list[float]]]] = {latent: [] for latent in self.clearest}
        for role in dict.fromkeys(self.clearest.values()):
            chosen = np.array(
                [latent for latent, own in self.clearest.items() if own == role], dtype=np.int64
            )
            for arm in self.results.arms:
                means = (
                    self.results.latents(arm, self.site, role).dense(chosen).mean(axis=1)
                    * norms[chosen, None]
                )
                for latent, mean in zip(chosen.tolist(), means.tolist(), strict=True):
                    found[latent].append((arm, mean))
        return found

    @cached_property
    def responses(self) -> dict[int, tuple[list[Line], str]]:
        """Latent → how the answer follows x when it alone is patched, and that in words."""
        table, fits = (
            t[t["site"] == self.site.short] for t in map(self.source.rows, ("responses", "response_fits"))
        )
        curves = {patch: rows.sort_values("x") for patch, rows in table.groupby("patch", sort=False)}
        if not {BASE, TARGET, GIVEN} <= set(curves):
            return {}
        fitted = {row["latents"]: row for row in records(fits[fits["patch"] == GIVEN])}
        base, target = (curves[name]["mean"].tolist() for name in (BASE, TARGET))
        found = {}
        for members, rows in curves[GIVEN].groupby("latents", sort=False):
            if str(members).isdigit():
                fit, x = fitted[members], rows["x"].tolist()
                words = (
                    f"Slope {number(fit['slope'])} {interval(fit['slope_low'], fit['slope_high'])}, changed "
                    f"by {number(fit['slope_change'])} "
                    f"{interval(fit['slope_change_low'], fit['slope_change_high'])}."
                )
                lines = [Line("in run B", "control", x, base), Line("in A*", "exact", x, target),
                         Line("with this latent patched", "task", x, rows["mean"].tolist())]  # fmt: skip
                found[int(str(members))] = lines, words
        return found


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

    @property
    def summary(self) -> str:
        """What is known of it, in a few sentences."""
        concepts = best_roles(self.site.of("transforms", self.latent))
        labels = [label for label in dict.fromkeys(concepts["label"]) if label not in ("", CANDIDATE)]
        said = [standing(self), f"It is labelled {', '.join(labels)}." if labels else "No label was granted."]
        role, patches = self.site.source.config.patch.roles[0], self.site.of("patches", self.latent)
        own = patches[(patches["belief"] == ANSWER) & (patches["role"] == role) & patches["effect"].notna()]
        if own.empty:
            return " ".join([*said, f"It was not patched at {role}."])
        row = records(own)[0]
        beside = f", control p {number(row['control_p'])}" if math.isfinite(row["control_p"]) else ""
        change = f"{number(row['effect'])} {interval(row['ci_low'], row['ci_high'])} nats{beside}"
        return " ".join(
            [*said, f"Patched from run A into run B at {role} it changes the answer’s log-odds by {change}."]
        )

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
        return [
            Section(heading=words, id=id_, body=lambda _, make=make: make(self)) for id_, words, make in parts
        ]


def _legend(keys: Mapping[str, str], *more: str | Markup) -> Markup:
    kinds = (key(kind, words) for kind, words in keys.items())
    return tag("p", *kinds, *(tag("span", words, class_="key") for words in more), class_="legend")


def trajectory(page: LatentPage) -> Markup:
    """Its activation over the examples at each role, and in every arm at its clearest."""
    latent, growth = page.latent, {row["role"]: row for row in records(page.site.of("growth", page.latent))}
    clearest, panels, note = page.site.clearest.get(latent), [], ""
    fitted = (
        None
        if clearest is None
        else scaled_posterior(page.site.source, page.site.curves[latent, clearest][0])
    )
    for role in page.site.results.roles:
        task, control = page.site.curves[latent, role]
        row = growth.get(role, {"verdict": "", "slope": NAN, "q_value": NAN, "reason": ""})
        said = ""
        if math.isfinite(row["slope"]):
            sure = f" {interval(row['ci_low'], row['ci_high'])}, q {number(row['q_value'])}"
            said = f"slope {number(row['slope'])}{sure if math.isfinite(row['q_value']) else ''}. "
        caption = Markup("{}<small>{}{}</small>").format(row["verdict"] or "not tested", said, row["reason"])
        if task.flat and control.flat:
            panels.append(Panel(f"at {role}", caption, missing("never active")))
            continue
        lines = [
            control if role == clearest else Line(control.name, control.kind, control.x, control.y),
            task,
        ]
        if fitted is not None and role == clearest:
            lines.append(fitted[0])
        label = f"Mean activation at {role} by examples seen: {task.ends}, on the control arm {control.ends}."
        panels.append(Panel(f"at {role}", caption, lines_chart(lines, "", said=label)))
    keys = {"task": "task arm", "control": "control arm"}
    if fitted is not None:
        keys["exact"] = "exact posterior’s log-odds, fitted"
        note = (
            f"At {clearest} a line through the exact posterior’s log-odds explains R² {number(fitted[1])} of "
            "the task arm’s means."
        )
    parts = [
        _legend(keys, "mean activation × decoder norm, bands 95 % over prompts"),
        *frames(panels, "roles"),
    ]
    parts += [
        paragraph("under", words) for words in (note, *follows(page.site.of("latent_accounts", latent)))
    ]
    if page.site.arms.get(latent):
        means = [value for _, mean in page.site.arms[latent] for value in mean if math.isfinite(value)]
        bounds = min(0.0, *means, 0.0), max(0.0, *means, 0.0) or 1.0
        table = grid(
            "In every arm",
            {
                "arm": "arm",
                "its labels": lambda row: parse_arm(row["arm"]).meaning,
                "mean": lambda row: spark(row["mean"], *bounds),
                "first": lambda row: Figure(row["mean"][0]),
                "last": lambda row: Figure(row["mean"][-1]),
            },
            [{"arm": arm, "mean": mean} for arm, mean in page.site.arms[latent]],
            kind="compact",
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
    exact, mean = (
        dict(zip(x, y, strict=True)) for x, y in ((rows["n_seen"], rows["exact_mean"]), (task.x, task.y))
    )
    seen = [n for n in task.x if n in exact and math.isfinite(mean[n])]
    means = np.array([mean[n] for n in seen])
    if len(seen) < 3 or np.ptp(means) == 0:
        return None
    design = np.column_stack([np.ones(len(seen)), [exact[n] for n in seen]])
    weights, *_ = np.linalg.lstsq(design, means, rcond=None)
    fitted = design @ weights
    r2 = 1 - float(((means - fitted) ** 2).sum() / ((means - means.mean()) ** 2).sum())
    return Line("exact posterior", "exact", seen, fitted.tolist()), r2


def standing(page: LatentPage) -> str:
    """Whether a latent grows, and how sure that is, in a sentence."""
    rows = page.site.of("growth", page.latent)
    if rows.empty:
        return "Growth was not tested."
    row = records(clearest_first(rows))[0]
    if not math.isfinite(row["q_value"]):
        return f"Growth was not tested: {row['reason']}." if row["reason"] else "Growth was not tested."
    sure = (
        f"slope {number(row['slope'])} {interval(row['ci_low'], row['ci_high'])}, q {number(row['q_value'])}"
    )
    task = page.site.curves[page.latent, row["role"]][0]
    means = [value for value in task.y if math.isfinite(value)]
    alone = f" The task arm alone goes from {number(means[0])} to {number(means[-1])}." if means else ""
    beside = "beside the control arm" if row["verdict"] in (FALLS, LADDER[0]) else "beyond the control arms"
    grows = "does not grow" if row["verdict"] == LADDER[0] else row["verdict"]
    return f"At {row['role']} it {grows} {beside} ({sure}).{alone}"


def follows(accounts: Frame) -> Iterator[str]:
    """The account that is named for a latent at each role, and over which arms."""
    for role, rows in accounts.groupby("role", sort=False):
        best = rows[rows["named"].astype(bool)].iloc[0]
        at = f", {best['parameter']}" if best["parameter"] else ""
        named = f"{best['account']}{at}, with R² {number(best['r2'])} over arms {best['arms']}"
        if best["r2"] >= LEAST_R2:
            yield f"At {role} it follows {named}."
        else:
            yield f"At {role} it follows none of the accounts; the nearest is {named}."


def ladder(page: LatentPage) -> Markup:
    """The rung it reached, why not higher, and the figures of its gates."""
    rows = page.site.of("growth", page.latent)
    if rows.empty:
        return missing(f"No verdict was given. {page.site.source.why('growth')}")
    row = records(clearest_first(rows))[0]
    height = LADDER.index(row["verdict"]) if row["verdict"] in LADDER else -1
    rungs = (
        tag("li", rung, class_="here" if n == height else "passed" if n < height else "open")
        for n, rung in enumerate(LADDER[1:], start=1)
    )
    where = f"It stands on “{row['verdict']}”{page.at}."
    if height <= 0:
        where = f"It stands on no rung{page.at}."
        where = (
            where if not height else f"It {row['verdict']} beside its control, and stands beside the ladder."
        )
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
    """What the gates of the ladder rest on: name, value and what it is.

    Args:
        row: of the table `growth`.
    """

    def spanned(name: str, low: str, high: str) -> str:
        return f"{number(row[name])} {interval(row[low], row[high])}"

    figures = []
    if math.isfinite(row["confirm_slope"]):
        value = f"{number(row['confirm_slope'])}, Holm p {number(row['confirm_p'])}"
        figures.append(("slope on held-out prompts", value, "per example, after the claim was frozen"))
    if math.isfinite(row["own_slope"]):
        figures.append(("own slope", number(row["own_slope"]), "tested arm alone, no control subtracted"))
    if math.isfinite(row["exponent"]):
        value = spanned("exponent", "exponent_low", "exponent_high")
        figures.append(("exponent", value, "of a + b·n^p; 1 is one equal step per example"))
    if row["best_curve"]:
        figures.append(("best curve", str(row["best_curve"]), "smallest BIC of the curves tried"))
    if math.isfinite(row["evidence"]):
        value = spanned("evidence", "evidence_low", "evidence_high")
        meaning = f"of a label; a label without any adds {number(row['count'])}"
        figures.append(("step per nat of evidence", value, meaning))
    if math.isfinite(row["dose_effect"]):
        value = f"{spanned('dose_effect', 'dose_low', 'dose_high')} nats"
        figures.append(("effect of its own growth", value, f"control p {number(row['control_p'])}"))
    return figures


def patching(page: LatentPage) -> Markup:
    """Its effect on each belief, moved in other ways, how the answer follows x, and its doses."""
    config, patches = page.site.source.config, page.site.of("patches", page.latent)
    parts = [_patched_table(patches)]
    if patches.empty:
        there = _patched(page.site.source)["site"].eq(page.site.site.short).any()
        same = f"At {config.patch.roles[0]} its activation is the same in run A and run B."
        why = page.site.source.why("patches") or f"{page.site.site.short} was not patched."
        parts = [missing(f"Not patched. {same if there else why}")]
    parts += [paragraph("under", words) for words in moved_words(page.site.of("specificity", page.latent))]
    panels = []
    response, doses = page.site.responses.get(page.latent), [*dose_panels(page)]
    if response is not None:
        lines, words = response
        ends = "; ".join(f"{line.name} {line.ends}" for line in lines)
        legend = _legend({"control": "run B", "task": "B with this latent", "exact": "A*"})
        chart = lines_chart(lines, "", "x", said=f"Expected answer by x: {ends}.")
        panels.append(Panel("how the answer follows x", words, chart, legend))
    parts += frames([*panels, *doses], "roles") if panels or doses else []
    if doses:
        note = (
            "Pushed along its decoder row: change of the answer’s log-odds in nats, band 95 % over prompts; "
            "dose 1 is the latent’s own rise from there to the last example."
        )
        parts.append(paragraph("under", note))
    else:
        parts.append(
            missing("It was not pushed. Pushed are the first of the short list at pre of each site.")
        )
    if response is None:
        why = "Response curves are drawn for the tested latents of the site that carries most."
        parts.append(missing(f"No response curve was drawn for it. {why}"))
    return Markup("\n").join(parts)


def _patched_table(patches: Frame) -> Markup:
    if patches.empty:
        return Markup("")
    roles = list(dict.fromkeys(patches["role"]))
    drawn = [
        Row(row["belief"], [Mark(row["effect"], row["ci_low"], row["ci_high"])])
        for row in records(patches[patches["role"] == roles[0]])
    ]
    chart = rows_chart(
        drawn, "Change in log-odds by belief", "change in log-odds, nats", said="values in the table"
    )
    caption = tag("figcaption", tag("b", "effect on each belief"), f" at {roles[0]}, with its 95 % interval")
    first = patches.iloc[0]
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
    table = tag(
        "div", grid("Effect on each belief", columns, records(patches), kind=""), paragraph("under", note)
    )
    return tag("div", tag("figure", caption, chart), table, class_="chart-first")


def moved_words(rows: Frame) -> Iterator[str]:
    """What moving a latent in other ways than from A to B does to the belief that its concept names."""
    own = rows[rows["own"].astype(bool) & (rows["way"] != "patch") & rows["reason"].eq("")]
    for row in records(own.drop_duplicates(["role", "way", "belief"])):
        if row["way"] in WAYS:
            effect = (
                f"{number(row['effect'])} {interval(row['ci_low'], row['ci_high'])} nats on {row['belief']}"
            )
            beside = f"control p {number(row['control_p'])} beside {row['n_controls']} matched latents"
            where = f"{WAYS[row['way']]} at {row['role']}"
            yield f"{where}: {effect}, of {number(row['base'])} without the change; {beside}."


def dose_panels(page: LatentPage) -> Iterator[Panel]:
    """Effects on the answer's log-odds by dose, for each number of examples in context."""
    dose, curves = page.site.of("dose", page.latent), page.site.of("dose_curves", page.latent)
    for row in records(dose[dose["belief"] == ANSWER]):
        at = curves[(curves["belief"] == ANSWER) & (curves["n_examples"] == row["n_examples"])]
        line = Line("dose", "task", *(at[name].tolist() for name in ("dose", "effect", "ci_low", "ci_high")))
        judged = "causal" if row["causal"] else row["reason"]
        slope = f"{number(row['slope'])} {interval(row['slope_low'], row['slope_high'])}"
        slope = f"{slope} nats per natural growth; {judged}"
        label = f"Change of the answer’s log-odds by dose: {line.ends}."
        chart = lines_chart([line], "", "natural growths added", said=label)
        caption = tag("small", slope)
        yield Panel(f"pushed after {count(int(row['n_examples']))} examples", caption, chart)


def best_roles(concepts: Frame) -> Frame:
    """One row per concept: at the role where it has a label, or else is told best."""
    order = concepts.assign(granted=~concepts["label"].isin(["", CANDIDATE]), place=range(len(concepts)))
    first = order.groupby("concept")["place"].transform("min")
    order = (
        order.assign(first=first)
        .sort_values(["granted", "auroc"], ascending=False)
        .drop_duplicates("concept")
    )
    return order.sort_values("first")


def selectivity(page: LatentPage) -> Markup:
    """Its activation by task, by concept and by number."""
    role = page.site.roles[page.latent]
    concepts = grid(
        "By concept",
        {
            "concept": "concept",
            "role": "role",
            "AUROC": figure("auroc"),
            "worst confound": lambda row: Figure(row["confound_auroc"], small=row["worst_confound"]),
            "label": lambda row: Words(row["label"], row["reason"]),
        },
        records(best_roles(page.site.of("transforms", page.latent))),
        kind="tight",
    )
    missed = f"No concept was tested. {page.site.source.why('transforms')}"
    by_concept = tag("div", tag("h3", "By concept", id="concepts"), concepts or missing(missed))
    parts = [tag("div", _by_task(page, role), by_concept, class_="two")]
    tunings, boxes = page.site.profile.tunings.get(page.latent, {}), page.site.profile.boxes.get(page.latent)
    panels = [tuning_panel(rows, of, page.name, role) for of, rows in tunings.items()]
    if panels:
        panels += [map_panel(boxes, page.name, role)] if boxes else []
        parts += [tag("h3", f"By number at {role}"), *frames(panels, "tuned")]
    else:
        parts.append(missing(f"Its tuning to numbers was not measured. {page.site.profile.reason}"))
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
    return tag(
        "figure", caption, rows_chart(bars, "Mean activation by task", said=said), paragraph("under", others)
    )


def prompts(page: LatentPage) -> Markup:
    """The prompts on which it is most active, and some at random."""
    profile = page.site.profile
    top, random = profile.prompts.get(page.latent, ()), profile.random.get(page.latent, ())
    peak = max(
        (value for one in (*top, *random) for value in one.values if math.isfinite(value)), default=0.0
    )
    parts = [missing(f"No prompt is shown. {profile.reason or SILENT}")]
    if top:
        scale = Markup("0 {} {}").format(RAMP, number(peak))
        words = "the activation stands in a token’s title, and beside it on focus (arrow keys move along)"
        parts = [_legend({}, scale, words), _shown(top, peak)]
    if random:
        parts += [tag("h3", "Prompts at random"), _shown(random, peak)]
    return Markup("\n").join(parts)


def _shown(excerpts: Sequence[Excerpt], peak: float) -> Markup:
    figures = (
        tag("figure", tag("figcaption", one.title),
            tag("div", "… " if one.before else "", token_lines(one, peak), "…" if one.after else "",
                class_="tokens"),
            class_="prompt")
        for one in excerpts
    )  # fmt: skip
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
    coloured = Markup("<b class=a{} title={}>{}</b>")
    drawn = (
        Markup("").join(
            coloured.format(n, number(v), shown) if n else Markup.escape(shown) for shown, v, n in line
        )
        for line in lines
        if line
    )
    return Markup("").join(Markup("<i>{}</i>").format(line) for line in drawn)


def output(page: LatentPage) -> Markup:
    """Tokens whose logit it moves, its neighbours, and how large its activations are."""
    profile, latent, site = page.site.profile, page.latent, page.site.site.short
    density = page.site.rows[latent]["density"] if latent in page.site.rows else NAN
    promotes, suppresses = profile.promotes.get(latent, ()), profile.suppresses.get(latent, ())
    close, together = profile.close.get(latent), profile.together.get(latent)
    logits = missing(f"Logit effects were not computed. {profile.reason}")
    if promotes or suppresses:
        lists = _effects(promotes, "Raises the logit of"), _effects(suppresses, "Lowers the logit of")
        logits = tag("div", *lists, class_="logits")
    near = missing(f"No neighbour is shown. {profile.reason or SILENT}")
    if close is not None or together is not None:
        links, rows = page.site.source.links, []
        for held, heading in (
            (close, "Nearest decoder rows, cosine"),
            (together, "Active together, correlation"),
        ):
            rows.append(_neighbours(held, heading, site, links))
        near = tag("div", *rows, class_="logits")
    chart = missing(f"No histogram was made. {profile.reason or SILENT}")
    if latent in profile.histograms:
        edges, counts = profile.histograms[latent]
        label = f"Histogram of activations between {number(edges[0])} and {number(edges[-1])}."
        chart = bars_chart(edges, counts, label, "activation where active")
    caption = tag("figcaption", tag("b", "activations"), f" active on {percent(density)} of tokens")
    return tag("div", logits, near, tag("figure", caption, chart), class_="two")


def _effects(effects: Sequence[tuple[str, float]], heading: str) -> Markup:
    items = (
        tag("li", tag("code", text.visible(token)), tag("span", number(value), class_="n"))
        for token, value in effects
    )
    return tag("div", tag("h3", heading), tag("ol", *items))


def _neighbours(near: Near | None, heading: str, site: str, links: Mapping[tuple[str, int], str]) -> Markup:
    pairs = [] if near is None else zip(near.latents.tolist(), near.values.tolist(), strict=True)
    items = []
    for latent, value in pairs:
        own = links.get((site, latent))
        name = tag("a", str(latent), href=own.removeprefix("latents/")) if own else tag("span", str(latent))
        items.append(tag("li", name, tag("span", number(value), class_="n")))
    return tag("div", tag("h3", heading), tag("ol", *(items or [tag("li", "none")])))


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
