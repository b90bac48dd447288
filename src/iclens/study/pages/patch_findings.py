"""What did patching find? The index's cards on single latents, sets, and answers by x."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Any

import pandas as pd

from iclens.dashboards.records.site import Finding
from iclens.patching.sets import FULL, GREEDY, HALF
from iclens.patching.sweep import BASE, GIVEN, TARGET
from iclens.patching.sweep import FULL as WHOLE
from iclens.results.read import Results
from iclens.schemas import PATCH_Q
from iclens.study.pages.latent_rows import Address


def moved(results: Results, address: Address) -> Finding:
    """Which single latents move a belief."""
    table = results.table("patches")
    question = "Does one latent, patched from run A into run B, move a belief?"
    if table.empty:
        return Finding(question, "nothing was patched", "No latent differs between the runs.")
    tested = table[table["n_controls"] > 0].drop_duplicates(["site", "latent"])
    n_controls = int(table["n_controls"].max())
    called = table[table["q_value"] <= PATCH_Q].to_dict("records")
    n_called = len({(record["site"], record["latent"]) for record in called})
    best = max(called, key=lambda record: abs(record["effect"]), default=None)
    strongest = ""
    if best is not None:
        said = f"{best['site']} latent {best['latent']} on {best['belief']}, {best['effect']:+.2f} nats"
        strongest = f"Largest at q ≤ {PATCH_Q}: {said}. {_missed(table, best)}"
    n_tests = int(table.groupby(["site", "role"])["control_p"].count().max())
    least = math.ceil(n_tests / (PATCH_Q * (n_controls + 1)))
    floor = (
        f"With {n_controls} controls no q of {n_tests} tests can be that small unless {least} of them beat "
        "every control. "
        if not n_called and least > 1
        else ""
    )
    return Finding(
        question,
        f"{n_called} of {len(tested)} tested latents",
        f"{strongest}Against {n_controls} matched random latents pushed as far. {floor}Run B: "
        f"{results.config.patch.recipient}.",
        *((address(best["site"], best["latent"]), "The page of this latent") if best is not None else ()),
    )


def _missed(table: pd.DataFrame, best: dict[Hashable, Any]) -> str:
    """The tested effect that is larger than the largest called one, if any, and why it is not called."""
    larger = table[(table["effect"].abs() > abs(best["effect"])) & table["q_value"].notna()]
    if larger.empty:
        return ""
    row = larger.loc[[larger["effect"].abs().idxmax()]].to_dict("records")[0]
    return (
        f"Larger, but not called: {row['site']} latent {row['latent']} on {row['belief']}, "
        f"{row['effect']:+.2f} nats (control p {row['control_p']:.2g}, q {row['q_value']:.2g}). "
    )


def carried(results: Results) -> Finding:
    """How few latents together bring half of what the whole activation brings."""
    sets, belief = results.table("sets"), results.config.patch.chosen_for
    question = (
        f"How much do few latents bring of what the whole activation brings, chosen to bring half ({belief})?"
    )
    sets = sets[(sets["direction"] == "sufficiency") & (sets["belief"] == belief)]
    whole = sets[sets["kind"] == FULL].to_dict("records")
    full = max(whole, key=lambda row: row["effect"], default=None)
    if full is None:
        return Finding(question, "nothing was patched", "")
    said = f"The whole activation moves it most at {full['site']} {full['role']}: {full['effect']:+.2f} nats."
    greedy = sets[(sets["kind"] == GREEDY) & (sets["screen_share"] >= HALF)]
    greedy = greedy[(greedy["site"] == full["site"]) & (greedy["role"] == full["role"])]
    if greedy.empty:
        best = sets[(sets["kind"] == GREEDY) & (sets["site"] == full["site"])]["share_of_full"].max()
        most = f" The greedy order reaches {best:.2f} of it." if best == best else ""
        return Finding(question, f"no set of up to {results.config.patch.largest_set}", said + most)
    best = greedy.sort_values("size").to_dict("records")[0]
    beside = (
        f" that of {best['n_controls']} sets of matched random latents pushed as far "
        f"{best['control_share']:.2f} [{best['control_low']:.2f}, {best['control_high']:.2f}]."
        if best["n_controls"]
        else ""
    )
    return Finding(
        question,
        f"{best['size']} at {best['site']} {best['role']} bring {best['share_of_full']:.2f}",
        f"Chosen on half of the prompts; on the others their share is {best['share_of_full']:.2f} "
        f"[{best['share_low']:.2f}, {best['share_high']:.2f}],{beside} {said}",
    )


def follows(results: Results) -> Finding:
    """Whether the patched answer follows run B's x."""
    fits = {
        row["patch"]: row
        for row in results.table("response_fits").drop_duplicates("patch").to_dict("records")
    }
    question = "Does the patched answer follow run B's own x?"
    if WHOLE not in fits:
        return Finding(question, "not asked", "No response curve was drawn.")
    whole = fits[WHOLE]
    slopes = "; ".join(
        f"{name} {fits[patch]['slope']:.2f}"
        for name, patch in (("run B", BASE), ("A*", TARGET), ("the greedy set alone", GIVEN))
        if patch in fits
    )
    first = 100 * whole["top_1_answer"]
    return Finding(
        question,
        f"slope {whole['slope']:.2f} [{whole['slope_low']:.2f}, {whole['slope_high']:.2f}]",
        f"E[y | x] on x with the whole activation of {whole['site']} patched; {slopes}. It "
        f"answers f(x) first on {first:.0f} % of {whole['n_x']} x. Run B: {whole['recipient']}.",
    )
