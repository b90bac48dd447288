"""The page of growth: beliefs over the examples, latents that grow, and what bears on additive growth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd
from markupsafe import Markup

from iclens.growth.accounts import ACCOUNTS
from iclens.pages.draw import Line, Mark, Row, heat_chart, lines_chart, reach, rows_chart
from iclens.pages.section import (
    Frame,
    Page,
    Panel,
    Section,
    Source,
    Words,
    figure,
    records,
    role_order,
    values_of,
)
from iclens.pages.text import count, minus
from iclens.prompts.arms import parse_arm
from iclens.prompts.beliefs import BAND
from iclens.schemas import FALLS, LADDER
from iclens.table import Axis, Points

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


def _line(name: str, kind: str, rows: Frame) -> Line:
    return Line(name, kind, *(rows[column].tolist() for column in ("n_seen", "mean", "ci_low", "ci_high")))


def belief_lines(table: Frame, belief: str, arm: str, control: str = "") -> list[Line]:
    """Log-odds of a belief in an arm: a control's, the exact posterior's where there is one, the model's."""
    own, other = (
        table[(table["belief"] == belief) & (table["arm"] == one) & (table["n_prompts"] > 0)]
        for one in (arm, control)
    )
    lines = [] if other.empty else [_line("control arm", "control", other)]
    if np.isfinite(own["exact_mean"].astype(float)).any():
        lines.append(Line("exact posterior", "exact", own["n_seen"].tolist(), own["exact_mean"].tolist()))
    return [*lines, _line("model", "task", own)] if len(own) else []


def belief_panel(lines: Sequence[Line], name: str, caption: str) -> Panel:
    """A belief's curves and their values."""
    chart = lines_chart(lines, f"Log-odds of {name} in nats", width=310, zero=False)
    return Panel(name, caption, chart, values_of([*reversed(lines)], "seen", name))


def belief_panels(table: Frame, source: Source) -> list[Panel]:
    """A panel for each belief that is defined, that of the task's own answer first."""
    treated, control, words = source.config.treated, source.config.controls[0], meanings(source)
    names = sorted(source.config.belief_names, key=lambda belief: belief != ANSWER)
    drawn = {name: belief_lines(table, name, treated, control) for name in names}
    return [belief_panel(lines, name, words[name]) for name, lines in drawn.items() if lines]


def arm_panels(table: Frame, source: Source) -> Iterator[Panel]:
    """The answer's log-odds by examples seen, arm by arm."""
    agreement = source.rows("agreement")
    for arm in source.results.arms:
        lines = belief_lines(table, ANSWER, arm)
        follows = records(agreement[(agreement["arm"] == arm) & (agreement["belief"] == ANSWER)])
        known = follows and any(line.kind == "exact" for line in lines)
        said = f"Model on exact: slope {follows[0]['slope']:.2f}, r {follows[0]['r']:.2f}." if known else ""
        chart = lines_chart(lines, f"Log-odds of {ANSWER} in arm {arm} in nats", width=310, zero=False)
        yield Panel(arm, f"{parse_arm(arm).meaning}{'. ' if said else ''}{said}", chart)


def growth_counts(growth: Frame) -> Frame:
    """How many latents are tested, grow and fall, a row per site and role."""
    flags = growth[["site", "role"]].assign(
        tested=growth["q_value"].notna(),
        grows=growth["verdict"].isin(LADDER[1:]),
        falls=growth["verdict"] == FALLS,
    )
    return flags.groupby(["site", "role"], sort=False).sum().reset_index()


def count_panels(growth: Frame, source: Source) -> list[Panel]:
    """Latents that grow (right) and fall (left), role by role, on one scale."""
    counts = growth_counts(growth)
    rows = {
        role: [
            Row(row["site"], [Mark(row["grows"], kind="bar"), Mark(-row["falls"], kind="bar control")],
                f"{row['grows']:,} and {row['falls']:,}")
            for row in records(counts[counts["role"] == role])
        ]
        for role in role_order(set(counts["role"]))
    }  # fmt: skip
    bounds, panels = reach(row for own in rows.values() for row in own), []
    for role, own in rows.items():
        grow, fall, tested = (
            int(counts[counts["role"] == role][name].sum()) for name in ("grows", "falls", "tested")
        )
        said = "; ".join(f"{row.name} {row.marks[0].value} grow, {-row.marks[1].value} fall" for row in own)
        chart = rows_chart(own, f"Latents at {role}", "", bounds, said=said, width=270)
        panels.append(
            Panel(f"at {role}", f"{count(grow)} grow, {count(fall)} fall of {count(tested)}", chart)
        )
    return panels


def ladder_panels(growth: Frame, source: Source) -> list[Panel]:
    """Latent × role rows on each rung above "none" by site, every count as text."""
    counts = growth.groupby(["site", "verdict"], sort=False).size()
    sites, rungs = list(dict.fromkeys(growth["site"].tolist())), LADDER[1:]
    n = {(rung, site): int(counts.get((site, rung), 0)) for site in sites for rung in rungs}
    most = max(1, *n.values())
    cells = {at: ((value / most) ** 0.5, f"{value:,}") for at, value in n.items()}
    said = (
        "; ".join(f"{site} {rung} {value}" for (rung, site), value in n.items() if value) or "none above none"
    )
    return [
        Panel("", "", heat_chart(rungs, sites, cells, "Latents by site and rung of the ladder", said=said))
    ]


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
    says = {account.name: account.says for account in ACCOUNTS}
    named = table[table["named"].astype(bool)]
    shares, counts = named.groupby("account")["r2"].median().to_dict(), named["account"].value_counts()
    rows = [
        {"account": name, "n": int(n), "r2": shares[name], "says": says[str(name)]}
        for name, n in counts.items()
    ]
    return pd.DataFrame(rows)


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
        "Beliefs over the examples", "beliefs", id="beliefs", nav="Beliefs", panels=belief_panels, shape="",
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
        panels=count_panels, shape="roles", columns={},
    ),
    Section(
        "Does it add, one Bayesian update per example?", "beliefs", id="additive", nav="Does it add?",
        intro="The claim has to survive what would refute it: arms whose evidence differs while their "
        "tokens are alike, latents judged one gate at a time, and eight falsifiers.",
        chart=None, columns={},
    ),
    Section(
        "The answer’s log-odds in every arm", "beliefs", level=3, shape="", columns={}, marked=False,
        panels=lambda rows, source: [*arm_panels(rows, source)],
        legend={"task": "model; band: 95 % over prompts", "exact": "exact posterior on the same prompts"},
    ),
    Section(
        "How far latents get on the ladder", "growth", level=3, panels=ladder_panels, shape="heat",
        columns={},
        intro="Each latent at each role stands on the highest rung all of whose gates it passed; its page "
        "says why it is not one higher.",
    ),
    Section(
        "Which account predicts all arms at once", "accounts", level=3, intro=accounts_words,
        where=lambda table, source: table.sort_values("behind", kind="stable").assign(mark="bar"),
        chart=Points(BEHIND, ("account",)),
        values="",
        columns={"account": "account", "behind, nats": figure("behind", "behind"), "it says": "says"},
    ),
    Section(
        "What the short-listed latents follow", "latent_accounts", id="follows", level=3, where=followed,
        intro="The same accounts for each latent’s pre-activation, and the model’s own log-odds of the "
        "answer beside them: a latent of that account grows as the model’s belief does, whatever the "
        "belief follows. Named is the best of these accounts, which need not be good: R² is the share of "
        "the arms’ means that it explains on held-out prompts.",
        empty="No latent was compared with accounts in this run.", chart=None, values="",
        columns={"account": "account", "latents × roles": "n", "median R²": "r2", "it says": "says"},
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
            "fired?": lambda row: Words(row["fired"], strong=row["fired"] == "fired"),
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
    beliefs, growth = source.rows("beliefs"), source.rows("growth")
    panels = belief_panels(beliefs, source)[:1] if len(beliefs) else []
    if len(growth):
        counts = growth_counts(growth).groupby("role", sort=False)[["grows", "tested"]].sum()
        role = str(counts["grows"].idxmax())
        own = count_panels(growth[growth["role"] == role], source)[0]
        tested = f"of {count(int(counts['tested'][role]))} tested."
        panels.append(Panel(f"latents that grow, and fall, at {role}", tested, own.chart))
    return panels
