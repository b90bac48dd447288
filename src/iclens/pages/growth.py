"""The page of growth: beliefs over the examples, latents that grow, and what bears on additive growth."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from markupsafe import Markup

from iclens.growth.accounts import ACCOUNTS
from iclens.pages.section import Cell, Frame, Page, Panel, Section, Source, figure, records, role_order
from iclens.pages.text import count, minus
from iclens.prompts.arms import parse_arm
from iclens.prompts.beliefs import BAND
from iclens.schemas import FALLS, LADDER
from iclens.table import Axis, Curves, Heat, Points

ANSWER = "exact"
"""The belief that the growth claim is about: the task's own answer."""
BEHIND = Axis("behind", "nats per held-out prompt behind the best account", "behind_low", "behind_high")
GROWS = Markup(
    '<a href="latents.html#verdict=grows&amp;sort=-slope">Every latent that grows, steepest first</a>'
)


def meanings(source: Source) -> dict[str, str]:
    """Every belief's definition in words, the declared ones after the five of every study."""
    task, slope = source.config.prompts.task, source.config.prompts.rule.slope
    band = f"P(|y − {slope}x| ≤ {BAND} | number)" if slope is not None else "undefined: the task has no slope"
    return {
        "numeric": "P(any number)",
        "odd": "P(y odd | number)",
        "double": band,
        "exact": f"P({task} applied to x)",
        "copy": "P(the label of the example just before)",
    } | {belief.name: belief.meaning for belief in source.config.declared}


LOG_ODDS = Curves(Axis("n_seen", "examples seen"), Axis("mean", "", "ci_low", "ci_high"), ())
LOOK: dict[str, Any] = {"unit": "", "width": 310, "zero": False, "marked": False, "over": "seen"}


def belief_lines(table: Frame, arm: str, control: str = "") -> Frame:
    """Log-odds of beliefs in an arm: the model's, the exact posterior's where there is one, a control's."""
    table = table[table["n_prompts"] > 0]
    own, other = (table[table["arm"] == one] for one in (arm, control))
    known = own[own["exact_mean"].astype(float).abs().lt(np.inf).groupby(own["belief"]).transform("any")]
    exact = known.assign(mean=known["exact_mean"], ci_low=np.nan, ci_high=np.nan)
    parts = {("model", "task"): own, ("exact posterior", "exact"): exact, ("control arm", "control"): other}
    drawn = pd.concat([rows.assign(name=name, line=line) for (name, line), rows in parts.items()])
    return drawn[drawn["belief"].isin(own["belief"])]


def belief_rows(table: Frame, source: Source) -> Frame:
    """The beliefs in the tested arm beside its control, that of the task's own answer first."""
    words, order = meanings(source), source.config.belief_names
    rows = belief_lines(table[table["belief"].isin(order)], source.config.treated, source.config.controls[0])
    places = rows["belief"].map(lambda name: -1 if name == ANSWER else order.index(name))
    return rows.assign(place=places, meaning=rows["belief"].map(words)).sort_values("place", kind="stable")


def arm_rows(table: Frame, source: Source) -> Frame:
    """The answer's log-odds, arm by arm."""
    rows = table[table["belief"] == ANSWER]
    return pd.concat([belief_lines(rows, arm) for arm in source.results.arms])


def arm_caption(rows: Frame, source: Source) -> str:
    """What an arm's labels are, and how far the model follows the exact posterior on them."""
    arm, agreement = rows["arm"].iloc[0], source.rows("agreement")
    follows = agreement[(agreement["arm"] == arm) & (agreement["belief"] == ANSWER)]
    said = parse_arm(arm).meaning
    if follows.empty or not (rows["line"] == "exact").any():
        return said
    return f"{said}. Model on exact: slope {follows['slope'].iloc[0]:.2f}, r {follows['r'].iloc[0]:.2f}."


def growth_counts(growth: Frame) -> Frame:
    """How many latents are tested, grow and fall, a row per site and role."""
    flags = growth[["site", "role"]].assign(
        tested=growth["q_value"].notna(),
        grows=growth["verdict"].isin(LADDER[1:]),
        falls=growth["verdict"] == FALLS,
    )
    return flags.groupby(["site", "role"], sort=False).sum().reset_index()


def count_marks(growth: Frame, source: Source) -> Frame:
    """Latents that grow (a bar to the right) and fall (to the left) at each site and role."""
    counts = growth_counts(growth)
    words = [f"{row['grows']:,} and {row['falls']:,}" for row in records(counts)]
    said = [f"{row['site']} {row['grows']} grow, {row['falls']} fall" for row in records(counts)]
    counts = counts.assign(name=counts["site"], words=words, said=said)
    grow, fall = (counts.assign(n=sign * counts[name], mark=mark)
                  for name, sign, mark in (("grows", 1, "bar"), ("falls", -1, "bar control")))  # fmt: skip
    order = {role: i for i, role in enumerate(role_order(counts["role"].tolist()))}
    return pd.concat([grow, fall]).sort_values("role", key=lambda roles: roles.map(order), kind="stable")


def count_caption(rows: Frame, source: Source) -> str:
    """How many latents grow and fall at a role, of how many."""
    n = rows[rows["mark"] == "bar"][["grows", "falls", "tested"]].sum()
    return f"{count(int(n['grows']))} grow, {count(int(n['falls']))} fall of {count(int(n['tested']))}"


def rung_counts(growth: Frame, source: Source) -> Frame:
    """Latent × role rows on each rung above "none", by site."""
    counts = growth.groupby(["site", "verdict"], sort=False).size()
    keys = [(site, rung) for site in dict.fromkeys(growth["site"]) for rung in LADDER[1:]]
    rows = pd.DataFrame(keys, columns=["site", "rung"])
    n = [int(counts.get(key, 0)) for key in keys]
    shade = (np.array(n) / max(1, *n)) ** 0.5
    return rows.assign(n=n, words=[f"{one:,}" for one in n], shade=shade)


def accounts_words(rows: Frame, source: Source) -> str:
    """On which arms the accounts were compared, and whether the best stands out."""
    found = source.results.facts_of_growth["accounts"]
    return (
        f"Each account predicts the answer's log-odds in {len(found['arms'])} arms "
        f"({', '.join(found['arms'])}) with shared parameters, fitted on half of the prompts and judged on "
        f"the other half. {found['verdict']}"
    )


def followed(table: Frame, source: Source) -> Frame:
    """How many short-listed rows, latent × role, each account is named for, the most frequent first."""
    r2 = table[table["named"].astype(bool)].groupby("account")["r2"]
    rows = r2.agg(["size", "median"]).reset_index().sort_values("size", ascending=False, kind="stable")
    return rows.assign(says=rows["account"].map({account.name: account.says for account in ACCOUNTS}))


def injected(table: Frame, source: Source) -> Frame:
    """Every part of a site's growth, added after the first number of examples at which latents are pushed."""
    rows = table[(table["belief"] == ANSWER) & (table["n_examples"] == source.config.pushed_after)]
    names = [f"{site} {part}" for site, part in zip(rows["site"], rows["injected"], strict=True)]
    return rows.assign(name=names, mark="bar")


def injected_words(rows: Frame, source: Source) -> str:
    """After how many examples growth is added, what it is, and what the answer gains by itself."""
    closure = injected(source.rows("closure").assign(injected=""), source)
    if closure.empty:
        return ""
    first = closure.iloc[0]
    return (
        f"After {first['n_examples']} examples, what a site gains on other prompts up to the last example is "
        "added at pre, whole and in parts. The examples themselves raise the answer's log-odds by "
        f"{first['growth']:.2f} nats: what the whole gain does not do there, no sum over its latents can."
    )


SECTIONS = (
    Section(
        "Beliefs over the examples", "beliefs", id="beliefs", nav="Beliefs", where=belief_rows,
        each=("belief",), title="{belief}", caption="{meaning}",
        label="Log-odds of {belief} in nats", chart=LOG_ODDS, look=LOOK, shape="",
        intro="What the model’s logits say after each number of examples, as log-odds in nats: additive "
        "evidence is a straight line.",
        legend={
            "task": "model, task arm; band: 95 % over prompts", "exact": "exact posterior",
            "control": "model, control arm",
        },
        marked=False, columns={},
    ),
    Section(
        "Latents that grow with the examples", "growth", id="growth", nav="Latents that grow",
        intro=lambda rows, source: Markup(
            "Slope over the examples, task arm minus control arm, prompt by prompt, corrected for the number "
            "of tests. To the right: latents that grow; to the left: latents that fall. {}."
        ).format(GROWS),
        drawn=count_marks, each=("role",), title="at {role}", caption=count_caption,
        label="Latents at {role}",
        chart=Points(Axis("n", ""), ("name",)), look={"axis": "", "width": 270}, shape="roles", columns={},
    ),
    Section(
        "Does it add, one Bayesian update per example?", "beliefs", id="additive", nav="Does it add?",
        intro="The claim has to survive what would refute it: arms whose evidence differs while their "
        "tokens are alike, latents judged one gate at a time, and eight falsifiers.",
        chart=None, columns={},
    ),
    Section(
        "The answer’s log-odds in every arm", "beliefs", level=3, shape="", columns={}, marked=False,
        where=arm_rows, each=("arm",), title="{arm}", caption=arm_caption,
        label=f"Log-odds of {ANSWER} in arm {{arm}} in nats", chart=LOG_ODDS, look=LOOK,
        legend={"task": "model; band: 95 % over prompts", "exact": "exact posterior on the same prompts"},
    ),
    Section(
        "How far latents get on the ladder", "growth", level=3, drawn=rung_counts,
        label="Latents by site and rung of the ladder", shape="heat",
        chart=Heat("rung", ("site",), Axis("n", "latents × roles")),
        columns={},
        intro="Each latent at each role stands on the highest rung all of whose gates it passed; its page "
        "says why it is not one higher.",
    ),
    Section(
        "Which account predicts all arms at once", "accounts", level=3, intro=accounts_words,
        where=lambda table, source: table.sort_values("behind", kind="stable").assign(mark="bar"),
        chart=Points(BEHIND, ("account",)),
        values="",
        columns={"account": "account", "behind, nats": figure("behind"), "it says": "says"},
    ),
    Section(
        "What the short-listed latents follow", "latent_accounts", id="follows", level=3, where=followed,
        intro="The same accounts for each latent’s pre-activation, and the model’s own log-odds of the "
        "answer beside them: a latent of that account grows as the model’s belief does, whatever the "
        "belief follows. Named is the best of these accounts, which need not be good: R² is the share of "
        "the arms’ means that it explains on held-out prompts.",
        empty="No latent was compared with accounts in this run.", chart=None, values="",
        columns={"account": "account", "latents × roles": "size", "median R²": "median", "it says": "says"},
    ),
    Section(
        "Does a site’s own growth move the answer?", "injections", level=3, where=injected,
        intro=injected_words,
        chart=Points(Axis("effect", "nats of the answer’s log-odds", "ci_low", "ci_high"), ("name",)),
        empty="No growth was injected in this run.", columns={},
    ),
    Section(
        "What would refute it", "falsifiers", id="falsifiers", nav="What would refute it", level=3, kind="",
        chart=None, values="",
        columns={
            "falsifier": "falsifier", "question": "question",
            "fired?": lambda row: Cell(row["fired"], strong=row["fired"] == "fired"),
            "evidence": lambda row: minus(row["evidence"]),
        },
    ),
)  # fmt: skip

GROWTH = Page(
    "growth.html", "Growth", "Growth",
    "Do latents rise with the examples, and does what rises add one Bayesian update per example?", SECTIONS,
)  # fmt: skip


def headline(source: Source) -> list[Panel]:
    """The answer's log-odds, and latents that grow and fall at the role where most grow."""
    panels, growth = list(SECTIONS[0].drawn_panels(source)[:1]), source.rows("growth")
    if len(growth):
        counts = growth_counts(growth).groupby("role", sort=False)[["grows", "tested"]].sum()
        role = str(counts["grows"].idxmax())
        (own,) = [panel for panel in SECTIONS[1].drawn_panels(source) if panel.title == f"at {role}"]
        tested = f"of {count(int(counts['tested'][role]))} tested."
        panels.append(Panel(f"latents that grow, and fall, at {role}", tested, own.chart))
    return panels
