"""Every table of a run: its stage, its columns with types, units and meanings, its key, and its chart.

Tables stand in the order of the stages that write them. At the end stand the frames that a query makes.
"""

from __future__ import annotations

import numpy as np

from iclens.table import FRAMES as FRAMES
from iclens.table import TABLES as TABLES
from iclens.table import Axis, Bool, Curves, Estimate, Float, Heat, Int, Ints, Points, Str, Strip, Table

PATCH_Q = 0.05
"""False discovery rate at which a patch effect is called."""
VERDICTS = ("none", "grows", "falls")
"""Verdicts of the detection gate; "none" also where nothing could be tested (see the row's reason)."""
LADDER = (
    "none",
    "grows",
    "grows linearly",
    "grows with evidence",
    "causally additive",
    "accounts for belief",
)
"""Verdicts of a latent, each of which needs all before it; a latent that falls stands beside the ladder."""
FALLS = "falls"
"""Verdict of a latent whose paired trajectory falls: not the hypothesis, but worth a page."""
CREATED = "created by the MLP"
"""The verdict of M3 that claim 3 asks for."""
IN_ATTENTION = "in attention's output, not before"
"""Its verdict where a concept first stands in what attention writes; no ablation is asked for this one."""

# ------------------------------------------------------------------------------------- shared columns

BOOTSTRAP = "its 95 % prompt-bootstrap interval"
T_INTERVAL = "its 95 % t interval over prompts"

SITE = Str("hook and layer", "site")
ROLE = Str("token of each example", "role")
LATENT = Int("latent id, of the SAE at that site", "latent")
BELIEF = Str("which read-out of the logits, in log-odds", "belief")
ARM = Str("arm of the prompts", "arm")
ARMS = Str("arms compared")
REASON = Str("why a value of the row is NaN; empty otherwise")
REASON_OR_CAVEAT = Str("why a value of the row is NaN, or what keeps it from being plain; empty otherwise")
N_PROMPTS = Int("prompts averaged")
N_TESTED = Int("prompts of the test half")
N_PUSHED = Int("prompts that are pushed")
N_EXAMPLES = Int("examples in context", "n_examples")
N_SEEN = Int("examples in the context, of a patch the donor's", "n_seen")
SHOWN_FOR = Str("the concept for which the latent is shown", "concept")
PATCHED_ROLE = ROLE.means(
    "at which token: of the query; for `lab` and `close`, of the last example before it"
)
WAY = Str(
    "\"sufficiency\": B receives A's values; \"necessity\": A* (A's context, B's query) receives B's, which "
    "takes from the belief"
)
METRIC = Str(
    '"task on own x" = P(f(x_B)), "copy" = P(f(x_A)), "top-1 task on own x" and "top-1 copy" = share of '
    'prompts whose most probable answer that is, "effect on <belief>" = mean rise of the belief\'s log-odds',
    "metric",
)
SCALE = Str('"probability" or "nats"')
LAYER = Int("block", "layer")
REPLACED = LAYER.means("block whose resid_pre is replaced; n_blocks stands for the last resid_post")
HEAD = Int("head", "head")
RECIPIENT = Str('run B: "zero examples", or the length-matched "S arm" or "R arm"', "recipient")
ABLATED = Str("heads and layers whose output z is replaced, all in one run", "ablated")
KIND = Str("by what: zero, the mean over length-matched recipients, or resample, the prompt's own", "kind")
PLACE = Str("where: the query's `pre`, or all positions", "place")
EFFECT = Estimate("mean of patched − base over prompts, nats", ends="ci")
PUSHED_EFFECT = Estimate("pushed − base, mean over prompts, nats", BOOTSTRAP, ends="ci")
BEHIND = Estimate(
    "held-out log-likelihood behind the best account, nats per prompt", "its 95 % interval over prompts"
)

_LATENT = ("site", "role", "latent")
_SIZE = "activation × decoder norm per example"
_EFFECT = Axis("effect", "nats")
_LAYER = Axis("layer", "block")
_MEAN = Axis("mean", "mean gated activation")
_OF_METRIC = "probability or log-odds in nats, by metric"


# --------------------------------------------------------------------------------------------- saes


class QualityTable(Table, name="quality", stage="saes"):
    """One row per SAE, measured on tokens that it was not trained on; `saes.quality` defines each figure."""

    key = (SITE,)
    sae_id = Str("fingerprint of the SAE")
    d_sae = Int("number of latents")
    k = Float("active latents that the SAE allows per token; NaN where it sets no number")
    l0 = Float("mean number of active latents per token")
    fvu = Float("fraction of variance unexplained, over all measured tokens")
    fvu_pre = Float("the same over the `pre` positions only, about their own mean")
    ce_base = Float("next-token cross-entropy of the model as it is, nats per token")
    ce_spliced = Float("the same with the site replaced by its reconstruction")
    ce_zeroed = Float("the same with the site set to zero")
    ce_recovered = Float("(ce_zeroed − ce_spliced) / (ce_zeroed − ce_base), all next tokens")
    ce_recovered_pre = Float("the same over predictions made at `pre` only")
    kl = Float("KL(model ‖ model with the reconstruction), nats per prediction")
    kl_pre = Float("the same over predictions made at `pre` only")
    dead = Float("fraction of latents active on none of the measured tokens")
    n_tokens = Int("tokens measured")
    mismatch = Str("in what the SAE does not fit the model, used all the same; else empty")
    reason = REASON
    chart = Points(Axis("ce_recovered", "fraction of cross-entropy"), ("site",))


class FidelityTable(Table):
    """One row per SAE and role, the role `all` standing for every measured token."""

    key = "site", "role"
    site = SITE
    sae_id = QualityTable.sae_id
    role = ROLE.means("which token of each example; `all` for every measured token")
    l0 = QualityTable.l0
    fvu = Float("fraction of variance unexplained, about the role's own mean")
    kl = Float("KL(model ‖ model with the reconstruction) of predictions made there, nats")
    ce_base = Float("next-token cross-entropy there of the model as it is, nats")
    ce_spliced = Float("the same with the site replaced by its reconstruction everywhere")
    ce_zeroed = Float("the same with the site set to zero everywhere")
    ce_recovered = Float("(ce_zeroed − ce_spliced) / (ce_zeroed − ce_base)")
    n_tokens = Int("tokens measured")
    reason = REASON


class DensityTable(Table):
    """Histogram of latents by density, one row per SAE and bin; dead latents in the first, `high` 0."""

    key = "site", "low"
    site = SITE
    sae_id = QualityTable.sae_id
    low = Float("densities above this (share of measured tokens on which a latent is active)")
    high = Float("up to and including this")
    n_latents = Int("latents in the bin")


# ------------------------------------------------------------------------------------------- detect


class GrowthTable(Table, name="detection", stage="detect"):
    """One row per site, role and latent: does its paired trajectory T − S rise with the examples seen?"""

    key = SITE, ROLE, LATENT
    slope = Estimate(
        "mean over prompts of the slope of T − S, activation × decoder norm per example",
        T_INTERVAL,
        ends="ci",
    )
    p_value = Float("one-sided p for growth; near 1 speaks for a fall")
    q_value = Float("smallest q at which the study calls this latent, in the direction of its slope")
    n_prompts = Int("prompt pairs")
    n_active = Int("prompt pairs in which the latent is active in either arm")
    verdict = Str("none, grows or falls")
    reason = REASON
    chart = Strip(Axis("slope", _SIZE), ("site", "role"), "verdict")

    def significant(self, q: float = 0.05) -> GrowthTable:
        """The rows, growing or falling, that hold at false discovery rate `q`."""
        return self.where(self["q_value"] <= q)

    def growing(self) -> GrowthTable:
        """The rows whose verdict is "grows"."""
        return self.where(self["verdict"] == "grows")

    @property
    def latent_ids(self) -> Ints:
        """Distinct latents of the rows, sorted; meaningful for the rows of one site."""
        return np.unique(self["latent"])


# -------------------------------------------------------------------------------------------- shape


class ShapeTable(Table, name="shapes", stage="shape"):
    """One row per short-listed latent: the shape of its mean paired pre-activation, on the shape prompts."""

    key = SITE, ROLE, LATENT
    n_prompts = Int("prompt pairs of the shape split")
    growth = Float("mean paired rise from the first to the last example, pre-activation × decoder norm")
    snr = Float("that rise ÷ the standard deviation of one prompt's value at an example")
    exponent = Estimate("p̂ of a + b·n^p", "its 90 % profile interval")
    best_curve = Str("family with the smallest BIC")
    curve_parameter = Str("its parameter")
    step_margin = Float("BIC of the best step − BIC of the line; above 0 the step loses")
    lack_of_fit_p = Float("Hotelling's p that the power curve is right")
    own_steps_p = Float("p that prompts climb straight, against steps at places of their own")
    certified = Bool("whether the additive certificate is granted")
    reason = Str("why it is not; empty otherwise")
    chart = Points(Axis("exponent", "power of n"), _LATENT, "certified")


class EvidenceTable(Table, name="evidence", stage="shape"):
    """One row per short-listed latent: its increments regressed on the evidence of the example just read."""

    key = SITE, ROLE, LATENT
    evidence = Estimate(
        "Δ pre-activation × decoder norm per nat of label evidence", "its 95 % interval, clustered by prompt"
    )
    count = Estimate("Δ per example at no evidence, at the mean age and nearness", "its 95 % interval")
    similarity = Estimate(
        "Δ from the farthest to the nearest example before a query; NaN for inputs that are no numbers",
        "its 95 % interval",
    )
    n_prompts = Int("prompts")
    n_increments = Int("increments, over all arms")
    weighting = Str('"evidence", "count", "both" or "neither"; empty when undefined')
    reason = REASON
    chart = Points(Axis("evidence", "activation per nat"), _LATENT, "weighting")


class LatentTestTable(Table, name="latent_tests", stage="shape"):
    """One row per test of how a read-out takes evidence: duplicates, order, reversal, prior, increments."""

    key = "test", "response"
    test = Str("what was tested")
    response = Str(
        '"model" or "exact posterior" (log-odds of the task\'s answer), or a latent: site, role and id'
    )
    arms = ARMS
    estimate = Float("the quantity that `meaning` names")
    low = Float("lower end of its 95 % interval over prompts")
    high = Float("upper end")
    meaning = Str("what the estimate is, with the value that Bayes predicts")
    verdict = Str("the answer in words")
    reason = REASON
    chart = Points(Axis("estimate", "see `meaning`", "low", "high"), ("response",), panel=("test",))


class LatentAccountTable(Table, name="latent_accounts", stage="shape"):
    """One row per short-listed latent and account, fitted to all arms at once; see `accounts`."""

    key = SITE, ROLE, LATENT, "account"
    account = Str("its name")
    behind = BEHIND
    parameter = Str("its fitted parameters")
    r2 = Float("share of the arms' mean pre-activations that it explains, held-out prompts")
    named = Bool("whether it is the simplest of those that the data do not separate from the best")
    arms = ARMS
    chart = Strip(Axis("r2", "fraction of variance"), ("account",), "named")


# --------------------------------------------------------------------------------------------- dose


class DoseTable(Table, name="dose", stage="dose"):
    """One row per pushed latent, belief and number of examples in context; pushed at the query's `pre`.

    A latent's natural growth is how much its activation in the task's arm rises from these examples to the
    last one, on prompts other than those that are pushed. Doses run from −1 to 2 natural growths.
    """

    key = "site", "role", LATENT, BELIEF, N_EXAMPLES
    site = SITE.means("where the latent's decoder direction is added, by its TransformerLens name")
    role = ROLE.means("token that is pushed: `pre`")
    n_prompts = N_PUSHED
    growth = Float("its natural growth, activation × decoder norm")
    slope = Estimate(
        "nats of the belief per natural growth of the latent (dose 1), from all doses", T_INTERVAL
    )
    quadratic_share = Float("share of the dose-response's variance over doses −1 to 1 that is its k² term's")
    share = Estimate(
        "exchange rate: slope ÷ the belief's own growth from these examples to the last one, a ratio of "
        "means; NaN where that growth's interval includes 0",
        BOOTSTRAP,
    )
    off_role = Float("the effect of dose 1 when it is put at `comma` instead; NaN if not asked")
    n_controls = Int("matched random latents pushed as far; 0 when not compared")
    control_p = Float("(1 + controls that raise the belief as much) / (1 + n_controls)")
    q_value = Float("Benjamini–Hochberg over the pushed latents of the study, by belief")
    causal = Bool("whether it moves the belief linearly, upwards and beyond its controls")
    reason = Str("why not, or why a value is NaN; empty otherwise")
    chart = Points(
        Axis("slope", "nats per natural growth"), ("site", "latent", "n_examples"), "causal", ("belief",)
    )


class DoseCurveTable(Table, name="dose_curves", stage="dose"):
    """One row per pushed latent, belief, number of examples in context and dose: context × dose."""

    key = SITE, LATENT, BELIEF, N_EXAMPLES, "dose"
    dose = Float("natural growths added; 0 is the base")
    effect = PUSHED_EFFECT
    n_prompts = N_PUSHED
    reason = REASON
    chart = Curves(Axis("dose", "natural growths"), _EFFECT, ("site", "latent"), ("belief", "n_examples"))


class ClosureTable(Table, name="closure", stage="dose"):
    """One row per site and belief: how much of the belief's growth the pushed latents account for."""

    key = SITE, BELIEF, N_EXAMPLES
    n_prompts = N_PUSHED
    growth = Float("the belief's own growth from these examples to the last one, nats")
    n_latents = Int("latents pushed one by one")
    closure = Estimate("sum of their slopes ÷ the belief's growth", BOOTSTRAP)
    joint = Float("the same when they are pushed together, at dose 1")
    n_listed = Int("short-listed latents of the site at `pre`")
    listed = Float("the same when all of these are pushed together")
    reason = REASON
    chart = Points(
        Axis("closure", "fraction of the belief's growth"), ("site", "n_examples"), panel=("belief",)
    )


class InjectionTable(Table, name="injections", stage="dose"):
    """One row per site, belief and what is injected at `pre`: does the site's own growth move the belief?

    Everything injected is a mean over prompts that are not pushed, so it carries the task and no answer.
    """

    key = SITE, "injected", BELIEF, N_EXAMPLES
    injected = Str('for example "short-listed latents", "all latents", "error only" or "full activation"')
    n_prompts = N_PUSHED
    effect = PUSHED_EFFECT
    share = Estimate("effect ÷ the belief's own growth; NaN where that is below 1 nat or unclear", BOOTSTRAP)
    reason = REASON
    chart = Points(_EFFECT, ("site", "n_examples"), "injected", ("belief",))


class InteractionTable(Table, name="interactions", stage="dose"):
    """One row per pair of pushed latents: does the effect of both equal the sum of their effects?"""

    key = SITE, "latent", "other", BELIEF
    latent = Int("one latent")
    other = Int("the other")
    effect = Float("effect of the one at dose 1, nats")
    other_effect = Float("effect of the other at dose 1, nats")
    both = Float("effect of both, nats")
    interaction = Estimate("both − one − other, nats", T_INTERVAL)
    n_prompts = N_PUSHED
    chart = Points(Axis("interaction", "nats"), ("site", "latent", "other"), panel=("belief",))


# ------------------------------------------------------------------------------------------- growth


class VerdictTable(Table, name="growth", stage="growth"):
    """One row per site, role and latent: what each test found, the rung it reaches, and why not the next one.

    The gates behind detection are asked of the short list only; elsewhere their columns are NaN or empty.
    """

    key = SITE, ROLE, LATENT
    verdict = Str('rung of the ladder, or "falls"')
    reason = Str("why the verdict is not one rung higher, in words")
    slope = Estimate(
        "discovery: mean paired slope, activation × decoder norm per example", T_INTERVAL, ends="ci"
    )
    p_value = Float("discovery: one-sided p for growth, the largest over the controls")
    q_value = Float("smallest q at which the study calls it, in the direction of its slope")
    n_prompts = Int("prompt pairs of the discovery split")
    n_active = Int("of these, pairs in which the latent is active in either arm")
    shortlisted = Bool("whether the gates behind detection were asked")
    exponent = Estimate(
        "shape: p̂ of a + b·n^p in the mean paired pre-activation", "its 90 % profile interval"
    )
    best_curve = Str("the trajectory model with the smallest BIC")
    evidence = Estimate(
        "Δ pre-activation × decoder norm per nat of label evidence", "its 95 % interval, clustered by prompt"
    )
    count = Float("Δ pre-activation × decoder norm per example at no evidence")
    dose_effect = Estimate(
        "nats of the task's answer per natural growth of the latent, at `pre`",
        "its 95 % interval over prompts",
        ends="dose",
    )
    control_p = Float("(1 + matched random latents at least as strong) / (1 + their number)")
    share = Float("dose effect ÷ the belief's natural growth on the same prompts")
    confirm_slope = Float("the paired slope on the confirm split")
    confirm_p = Float("its p in the discovered direction, Holm over the short list")
    shrinkage = Float("confirm ÷ discovery slope; below 1 the discovery was lucky")
    own_slope = Float("confirm: slope of the task's arm alone, no control subtracted")
    own_low = Float(f"lower end of {T_INTERVAL}")
    chart = Strip(Axis("slope", _SIZE), ("site", "role"), "verdict")

    def growing(self) -> VerdictTable:
        """The rows that grow: any rung above "none"."""
        return self.where(np.isin(self["verdict"], LADDER[1:]))

    def at_least(self, rung: str) -> VerdictTable:
        """The rows at or above a rung of `LADDER`."""
        return self.where(np.isin(self["verdict"], LADDER[LADDER.index(rung) :]))

    @property
    def latent_ids(self) -> Ints:
        """Distinct latents of the rows, sorted; meaningful for the rows of one site."""
        return np.unique(self["latent"])


class ConfirmTable(Table, name="confirmed", stage="growth"):
    """One row per short-listed latent: the paired slope on prompts that no choice was made on."""

    key = SITE, ROLE, LATENT
    n_prompts = Int("prompt pairs of the confirm split")
    discovery_slope = Float("paired slope that put it on the list, per example")
    confirm_slope = Estimate(
        "paired slope here, gated activation × decoder norm per example", T_INTERVAL, ends="confirm"
    )
    confirm_p = Float("one-sided p of growth, Holm over the short list")
    shrinkage = Float("confirm ÷ discovery slope")
    own_slope = Float("slope of the task's arm alone, no control subtracted")
    own_low = Float(f"lower end of {T_INTERVAL}")
    reason = REASON
    chart = Points(Axis("confirm_slope", _SIZE), _LATENT)


class BeliefTable(Table, name="beliefs", stage="growth"):
    """One row per belief, arm and number of examples seen, read at `pre`; means over prompts."""

    key = BELIEF, ARM, "n_seen"
    n_seen = Int("examples seen")
    mean = Estimate("mean of the model's log-odds, nats", BOOTSTRAP, ends="ci")
    exact_mean = Float("mean of the exact posterior's log-odds on the same prompts, nats")
    probability = Estimate("mean of the model's probability", BOOTSTRAP)
    exact_probability = Float("mean of the exact posterior's probability on the same prompts")
    n_prompts = Int("prompts on which the belief is defined")
    reason = REASON
    chart = Curves(Axis("n_seen", "examples"), Axis("mean", "log-odds, nats"), ("arm",), ("belief",))


class AgreementTable(Table, name="agreement", stage="growth"):
    """One row per arm and belief: the model's log-odds on the exact ones, over prompts and examples."""

    key = ARM, "belief"
    belief = BELIEF.means("one of core.BELIEFS, or `task`: P(the task) fitted with guess and lapse")
    slope = Estimate("1 for an exact learner; below 1 the model moves less than it should", BOOTSTRAP)
    intercept = Float("the model's log-odds where the exact ones are 0, nats")
    r = Float("correlation")
    n_prompts = Int("prompts with at least one finite pair")
    goal_met = Bool("whether slope is 1 ± .05 and r at least .98")
    reason = REASON
    chart = Points(Axis("slope", "nats per exact nat"), ("arm",), "goal_met", ("belief",))


class BayesTestTable(LatentTestTable, name="tests", stage="growth"):
    """One row per test of how the model, and the exact posterior beside it, takes evidence."""


class AccountTable(Table, name="accounts", stage="growth"):
    """One row per account of growth, fitted to all arms at once and judged on held-out prompts."""

    key = ("account",)
    account = Str("its name")
    behind = BEHIND
    parameter = Str("its fitted parameters")
    r2 = Float("share of the arms' mean log-odds that it explains on the held-out prompts")
    says = Str("what the account says, in words")
    chart = Points(Axis("behind", "nats per prompt"), ("account",))


class FalsifierTable(Table, name="falsifiers", stage="growth"):
    """One row per way in which the claim of additive Bayesian feature growth can fail, and whether it did."""

    key = ("falsifier",)
    falsifier = Str("F1 to F8")
    question = Str("what was asked, in words")
    fired = Str('"fired", "did not fire" or "not tested"')
    evidence = Str("the figures it rests on, in one sentence")


# ----------------------------------------------------------------------------------------- identify


class TransformTable(Table, name="transforms", stage="identify"):
    """One row per (site, role, latent, concept); every figure but `discovery_auroc` is of held-out tasks.

    For `task identity`, whose task no other could confirm, they are of held-out prompts.
    """

    key = SITE, ROLE, LATENT, "concept"
    concept = Str("what was asked of the latent")
    of = Str("the task that `task identity` is about; empty for other concepts")
    sign = Int("+1: higher on positives, -1: on negatives; chosen on discovery tasks")
    auroc = Estimate(
        "P(higher on a positive than on a matched negative) in direction `sign`", BOOTSTRAP, ends="ci"
    )
    discovery_auroc = Float("the same AUROC on the discovery tasks, at least .5")
    worst_confound = Str("the confound that the latent answers to most")
    confound_auroc = Float("max(a, 1 - a) of that confound with the concept held fixed")
    selectivity = Float("auroc - confound_auroc")
    confounding = Float("largest Cramer's V, in the design, of the concept and a confound")
    confounded_with = Str("that confound")
    effect_size = Float("Cohen's d, positives minus negatives, matched by overlap weights")
    mutual_info_nats = Float("of activation (off, thirds) and concept, bias-corrected, nats")
    overlap = Float("Cohen's kappa of being active and the concept; negative where reversed")
    p_value = Float("one-sided, for auroc > .5 in the direction `sign`; prompts are the unit")
    q_value = Float("Benjamini-Hochberg over all rows that were identified together")
    unmeasured = Str("confounds that no held-out rows could measure")
    n_positive = Int("held-out positives (prompt x example) that have a matched negative")
    n_negative = Int("held-out negatives that have a matched positive")
    n_positive_tasks = Int("tasks that these positives are of")
    n_negative_tasks = Int("tasks that these negatives are of")
    label = Str("the concept's name when every gate is passed, 'candidate', or empty")
    reason = Str("the gate that failed, or why a statistic is undefined")
    chart = Strip(Axis("auroc", "AUROC"), ("concept",), "label")


class MassTable(Table, name="masses", stage="identify"):
    """One row per (site, latent): whether it works where labels are read or where answers are predicted."""

    key = SITE, LATENT
    lab_share = Estimate("activation summed at lab, over that at lab and pre together", BOOTSTRAP, ends="ci")
    n_active = Int("rows (prompt x example) at lab or pre in which it is active")
    kind = Str("detection (nearly all at lab), execution (nearly all at pre), or empty")
    reason = Str("why nothing is said, or empty")
    chart = Strip(Axis("lab_share", "fraction of activation at `lab`"), ("site",), "kind", kept="spread")


class TuningTable(Table, name="tunings", stage="identify"):
    """One row per (site, role, latent, of): the curve of mean activation by a number, as line and waves."""

    key = SITE, ROLE, LATENT, "of"
    of = Str("the number: y, x or y-2x")
    n_values = Int("values of the number on the curve")
    r2 = Float("share of the curve's variance that line and waves explain, values by rows")
    null_q95 = Float("95 % quantile of r2 when the order of the values is random")
    p_value = Float("(1 + random orders with r2 as large) / (1 + random orders)")
    q_value = Float("Benjamini-Hochberg over the rows that were fitted together")
    linear_share = Float("share of the curve's variance that a line alone explains")
    parity_share = Float("share lost without the period 2; NaN where it is no column of its own")
    best_period = Float("period whose waves lose most when left out, units of the number")
    best_share = Float("share lost when that period is left out")
    reason = REASON
    chart = Strip(Axis("r2", "fraction of variance"), ("of", "role"), kept="spread")


class TuningCurveTable(Table, name="tuning_curves", stage="identify"):
    """One row per (concept, site, role, latent, of, value): mean activation of a shown latent."""

    key = SHOWN_FOR, SITE, ROLE, LATENT, "of", "value"
    of = Str("y, x or y-2x")
    value = Int("the value")
    mean = Float("mean gated activation over rows with that value, zeros included, in the latent's own units")
    n_rows = Int("rows with that value")
    chart = Curves(Axis("value", "number"), _MEAN, ("site", "latent"), ("concept", "role", "of"))


class OperandMapTable(Table, name="operand_maps", stage="identify"):
    """One row per (concept, site, role, latent, x, y): mean activation over a box of inputs and labels."""

    key = SHOWN_FOR, SITE, ROLE, LATENT, "x", "y"
    x = Int("least x of the box")
    y = Int("least y of the box")
    width = Int("width of the box in x and in y")
    mean = Float("mean gated activation over the rows in the box, zeros included, in the latent's own units")
    n_rows = Int("rows in the box")
    chart = Heat("x", ("y",), _MEAN, ("concept", *_LATENT))


class StabilityTable(Table, name="stability", stage="identify"):
    """One row per labelled (site, role, latent, concept) and other set of SAEs."""

    key = SITE, ROLE, "latent", "concept", "other"
    latent = Int("labelled latent of the SAE at that site")
    concept = Str("what it was asked")
    other = Str("name of the other set of SAEs")
    other_d_sae = Int("latents of the other SAE at that site; -1 when it has none there")
    match = Int("latent of the other SAE that correlates most; -1 when there is none")
    correlation = Float("Pearson correlation of the two activations over the same rows")
    match_label = Str("the match's own label for the same concept; empty when it has none")
    stable = Bool("correlation is at least `least` and the match is granted the same label")
    reason = Str("why there is no match, or why the match is not stable; empty when it is")
    chart = Points(Axis("correlation", "r"), ("site", "latent", "concept", "other"), "stable")


# --------------------------------------------------------------------------------------- transforms


class ProbeTable(Table, name="probes", stage="transforms"):
    """One row per (site, role, concept, representation, k); every AUROC is of held-out tasks."""

    key = SITE, ROLE, "concept", "representation", "k"
    concept = Str("what was read")
    representation = Str("what it was read from, or the control")
    k = Int("features that the probe may use; -1: all")
    auroc = Estimate(
        "P(higher on a positive than on a matched negative), mean over folds",
        "its 95 % t interval over folds; approximate",
        ends="ci",
    )
    minus_dense = Estimate(
        "AUROC minus that of the dense probe, mean over folds", "its 95 % t interval over folds, paired"
    )
    verdict = Str("below dense, as dense or above dense; empty for dense and controls")
    n_folds = Int("held-out folds of whole tasks that were measured")
    n_rows = Int("rows (prompt x example) used, training and held-out")
    n_tasks = Int("tasks used")
    reason = Str("why a figure is NaN, or how many folds could not be measured; else empty")
    chart = Curves(
        Axis("k", "features"), Axis("auroc", "AUROC"), ("representation",), ("concept", "site", "role")
    )


class SubspaceTable(Table, name="subspaces", stage="transforms"):
    """One row per (site, role, representation, of, period): a wave read linearly on held-out tasks."""

    key = SITE, ROLE, "representation", "of", "period"
    representation = Str("what it was read from: latents or activation")
    of = Str("the number: y, x or y-2x")
    period = Float("period of the wave, units of the number")
    r2 = Float("1 - SSE/SST on held-out tasks, cosine and sine pooled; can be below 0")
    p_value = Float("(1 + random relabellings with r2 as large) / (1 + relabellings)")
    n_features = Int("features that were read, chosen on the training tasks")
    n_for_90 = Float("fewest of 1, 2, 4 ... of them that reach 90 % of r2; NaN if r2 <= 0")
    n_train = Int("rows (prompt x example) of discovery tasks")
    n_held = Int("rows of held-out tasks")
    reason = REASON
    chart = Points(Axis("r2", "fraction of variance"), ("representation", "period"))


class SpecificityTable(Table, name="specificity", stage="transforms"):
    """One row per site, role, way, concept, latent and belief; intervals are 95 % bootstraps over prompts.

    Margins stand in the row of the concept's own belief alone.
    """

    key = "site", "role", "way", "concept", "latent", "belief"
    site = SITE
    role = ROLE.means(
        'token at which the latent is moved: of the query or the last example before it; for "ablate all" of '
        "every example up to there"
    )
    way = Str(
        '"ablate": set to 0 in A* at one token; "ablate all": the same at that token of every example; '
        '"mean": set to B\'s value in A*; "patch": set to A\'s value in B'
    )
    concept = Str("what the latent was labelled with")
    label = Str('the label that was granted, "candidate", or "joint" for latent -1')
    latent = Int("latent id; -1: all chosen latents of the concept moved together")
    belief = BELIEF
    own = Bool("whether that is the belief that the concept names")
    base = Float("mean log-odds without the change, nats")
    effect = Estimate("mean of changed - base over prompts, nats", ends="ci")
    control_sd = Float("root mean square of the controls' mean effects on this belief, nats; pushed as far")
    standardised = Float("effect / control_sd")
    control_p = Float("(1 + controls whose |mean effect| is as large) / (1 + n_controls)")
    n_controls = Int("matched random live latents (or sets of as many) compared with")
    against = Str("beliefs that the margin is taken over, separated by spaces")
    rival = Str("the one of these that is moved most, nats")
    margin = Estimate(
        "|effect| on own - largest |effect| on a rival, nats",
        "its interval; the largest is taken in each resample",
    )
    specific = Bool("margin_low > 0, by more than float32 resolves")
    margin_standardised = Estimate(
        "the same margin of standardised effects", "its interval, control_sd held fixed"
    )
    specific_standardised = Bool("the same of the standardised margin")
    n_active = Int("prompts in which the change is not 0 (at some example)")
    n_prompts = N_PROMPTS
    reason = Str("why a value of the row is NaN, or its effect exactly 0; empty otherwise")
    chart = Heat("belief", ("concept", "site", "role", "latent"), _EFFECT, ("way",), centred=0.0)


class OperandTable(Table, name="operands", stage="transforms"):
    """One row per (layer, measure): x and y in the residual that a block's MLP reads at `lab`."""

    key = "layer", "measure"
    layer = Int("block; its resid_mid at lab is read")
    measure = Str("overlap of the x- and y-subspaces or of halves (0 to 1), or R2 of the code of x or y")
    value = Estimate(
        "mean squared cosine over half splits, or R2 on prompts not trained on",
        "its 95 % interval: over half splits for overlaps, prompts resampled for R2",
        ends="ci",
    )
    null = Float("mean of the same with the values of x (or y, where no x is used) permuted")
    n_rows = Int("rows used (prompt x example at lab)")
    reason = REASON
    chart = Curves(_LAYER, Axis("value", "squared cosine or R2, by measure"), ("measure",))


class CreationTable(Table, name="creation", stage="transforms"):
    """One row per (concept, layer, source): a dense probe of the concept at `lab`, read on held-out tasks.

    `verdict`, `larger` and the difference are of the concept and layer, and repeated on each of its rows.
    """

    key = "concept", LAYER, "source"
    concept = Str("what the probe is trained to read")
    source = Str("a site of the block, or the last block's resid_post as it is or with a part ablated")
    auroc = Estimate(
        "of the probe's decision values on held-out tasks, within strata",
        "its 95 % interval, held-out prompts resampled",
        ends="ci",
    )
    n_positive = Int("held-out positives (rows)")
    n_negative = Int("held-out negatives (rows)")
    verdict = Str("what the block's AUROCs say of where the concept comes from")
    attention_minus_mlp = Estimate(
        "AUROC of attn_out minus that of mlp_out", "its 95 % interval, the same prompts resampled in both"
    )
    larger = Str("attention or MLP when the interval excludes 0, else neither; or empty")
    reason = REASON
    chart = Curves(_LAYER, Axis("auroc", "AUROC"), ("source",), ("concept",))


class ConfidenceTable(Table, name="confidence", stage="transforms"):
    """Two rows per (site, latent, concept): over all rows at `lab`, and over those where it is active.

    Every r is a rank correlation of the latent's activation. Both partial ones hold x, the number of examples
    seen and the concept's own label fixed.
    """

    key = SITE, LATENT, "concept", "over"
    concept = Str("the concept whose label is held fixed")
    over = Str("all rows or active rows (prompt x example at lab, x and y numbers)")
    n_rows = Int("rows used")
    n_prompts = Int("prompts with a row that was used")
    r = Estimate("Spearman's, with the log-probability that the model gave the label shown", BOOTSTRAP)
    r_given_magnitude = Estimate("the same with y, x, example number and label held fixed", BOOTSTRAP)
    magnitude_r = Estimate("with y, the log-probability, x, example number and label held fixed", BOOTSTRAP)
    verdict = Str("confidence, magnitude, both or neither; empty where a figure is undefined")
    reason = Str("why a figure is NaN, or what kept a name from being given; else empty")
    chart = Points(Axis("r", "correlation"), ("site", "latent", "concept"), "over")


class TransportTable(Table, name="transport", stage="transforms"):
    """Four rows per (site, latent, concept): what reaches later `pre` tokens, by four predictions of it."""

    key = SITE, LATENT, SHOWN_FOR, "layer", "weights"
    layer = Int("block whose attention reads the site")
    weights = Str("prediction: attention, equal, or attention with the mean z or with other prompts' z")
    slope = Float("of what the heads write along the latent's image, on the predicted part")
    r2 = Estimate("squared correlation of the two over (prompt, query)", BOOTSTRAP)
    attention_minus_equal = Estimate(
        "r2 minus that of equal weights; on the row of attention",
        "its 95 % interval, the same prompts resampled in both",
    )
    lab_attention = Float("mean attention of a query to all earlier labels, over the heads")
    n_rows = Int("(prompt, query) pairs used")
    n_prompts = Int("prompts used")
    reason = Str("why a figure is NaN, or why it says little; else empty")
    chart = Points(Axis("r2", "fraction of variance"), ("site", "latent", "layer"), "weights")


# -------------------------------------------------------------------------------------------- sweep


class SweepTable(Table, name="sweep", stage="sweep"):
    """Whole-residual replacement A→B: one row per role, layer and metric."""

    key = "role", REPLACED, RECIPIENT, N_SEEN, METRIC
    role = ROLE.means("what is replaced: `pre` of the query, or this role in every example of the context")
    scale = SCALE
    value = Estimate("the metric with the patch, mean over prompts", ends="ci")
    base = Float("the same without the patch (for an effect: the mean log-odds without it)")
    n_prompts = N_PROMPTS
    chart = Heat("role", ("layer",), Axis("value", _OF_METRIC), ("recipient", "metric"))


class GradedTable(Table, name="graded", stage="sweep"):
    """One site's patch by the donor's number of examples, beside the unpatched curve."""

    key = "role", REPLACED, RECIPIENT, N_SEEN, METRIC
    role = SweepTable.role
    scale = SCALE
    value = SweepTable.value
    unpatched = Estimate("the metric of A* (as many examples in context, B's query), no patch")
    n_prompts = N_PROMPTS
    chart = Curves(Axis("n_seen", "the donor's examples"), Axis("value", _OF_METRIC), ("metric",), ("scale",))


class LensTable(Table, name="lens", stage="sweep"):
    """What the residual would answer if the model ended there: one row per role, layer and metric."""

    key = "role", "layer", N_SEEN, "metric"
    role = ROLE.means("token of the query whose residual is read; after `pre` the label is in view")
    layer = Int("block whose resid_pre is read, 0 for the embedding; n_blocks, the last resid_post")
    metric = Str(
        '"task on own x" = P(f(x_B)), "copy" = P(f(x_A)), "top-1 task on own x" and "top-1 copy" = share of '
        'prompts whose most probable answer that is, "log-odds of <belief>"'
    )
    scale = SCALE
    value = Estimate("the metric through the final norm and unembedding, mean over prompts", ends="ci")
    n_prompts = N_PROMPTS
    chart = Heat("role", ("layer",), Axis("value", _OF_METRIC), ("metric",))


class HeadTable(Table, name="heads", stage="sweep"):
    """Heads of A* ablated: one row per kind, place, layer, head and metric."""

    key = "kind", PLACE, LAYER, "head", N_SEEN, METRIC
    kind = Str("what replaces the head's output: zero, its mean over recipients, or resample")
    head = Int("head; -1 stands for all heads of the layer at once")
    scale = SCALE
    base = Float("the metric (for an effect: the log-odds) without the ablation, mean")
    ablated = Float("the same with it")
    effect = Estimate("ablated − base, mean over prompts", BOOTSTRAP, ends="ci")
    n_prompts = N_PROMPTS
    chart = Heat("head", ("layer",), Axis("effect", _OF_METRIC), ("kind", "place", "metric"), centred=0.0)


class HeadScoreTable(Table, name="head_scores", stage="sweep"):
    """Every head at the query's `pre`: what it writes and where it looks; one row per layer and head."""

    key = "layer", "head", "n_seen"
    layer = LAYER
    head = HEAD
    reference_layer = Int(
        "block whose resid_pre the score is taken against; a head in it or later writes nothing into it"
    )
    n_seen = N_SEEN
    score = Estimate(
        "dot of the head's output and the reference / the run's final-norm scale, mean over prompts"
    )
    attribution = Float(
        "what the head's output adds to logit f(x_B) − mean logit of the numbers 0–999, with the final norm "
        "frozen at the run's own scale; nats, mean over prompts"
    )
    label_mass = Estimate("attention to the y tokens of the examples, mean over prompts")
    label_share = Float("mean label_mass / mean attention outside BOS; NaN where that is 0")
    own_x_mass = Float("attention to the query's x, mean over prompts")
    bos_mass = Float("attention to BOS, mean over prompts")
    n_prompts = N_PROMPTS
    reason = REASON
    chart = Heat("head", ("layer",), Axis("score", "nats"), centred=0.0)


class DirectTable(Table, name="direct", stage="sweep"):
    """Direct effects of an ablation at the query's `pre` of A*: one row per component and belief."""

    key = "ablated", "kind", "place", "reader", "part", "component", "n_seen", "belief"
    ablated = ABLATED
    kind = KIND
    place = PLACE
    reader = Int("layer whose residual the outputs are put into; n_blocks stands for the final norm")
    part = Str(
        '"total" (TE), "ablated" (DE, these heads together), "compensation" (CE = TE − DE), "later heads", '
        '"later MLPs", "later" (both together), the first and last also "…, given the loss"; then one '
        'component each: "ablated head", "later head", "later MLP"'
    )
    component = Str("the single component, `L3H1` or `L3.mlp`; empty for a sum")
    layer = Int("its block; -1 for a sum")
    head = Int("its head; -1 for an MLP or a sum")
    n_seen = N_SEEN
    belief = BELIEF
    base = Float("mean log-odds of A* without the ablation, nats")
    effect = Estimate(
        "log-odds with only this component's own output at `pre` as in the ablated run − base, mean; given "
        "the loss: log-odds of the ablated run − those with these outputs as in A*",
        ends="ci",
    )
    ratio = Estimate(
        "effect / DE, a ratio of means; of the compensation, −1 is a loss wholly made up and 0 is none; NaN "
        "where |DE| is below 1 nat or its interval includes 0"
    )
    n_prompts = N_PROMPTS
    reason = REASON_OR_CAVEAT
    chart = Points(_EFFECT, ("part", "component"), panel=("belief",))


class RedundancyTable(Table, name="redundancy", stage="sweep"):
    """Heads ablated together against one at a time, in A*: one row per set and belief."""

    key = "ablated", "kind", "place", "n_seen", "belief"
    ablated = ABLATED
    kind = KIND
    place = PLACE
    n_units = Int("entries of the set (heads, or layers) that are also ablated alone")
    n_seen = N_SEEN
    belief = BELIEF
    base = Float("mean log-odds of A* without an ablation, nats")
    joint = Estimate("effect of the whole set, nats")
    singles = Estimate("sum of the effects of its entries ablated alone, nats")
    index = Estimate(
        "joint − singles, nats of log-odds: below 0 the entries stand in for each other (redundant), above 0 "
        "they need each other (a chain), at 0 they add up"
    )
    span = Float("mean(A* − B), un-ablated: what the context is worth to the belief, nats")
    n_prompts = N_PROMPTS
    reason = REASON_OR_CAVEAT
    chart = Points(Axis("joint", "nats"), ("ablated", "kind"), panel=("belief",))


class RedundancyLadderTable(Table, name="redundancy_ladder", stage="sweep"):
    """Ablate what carries the task, sweep again, ablate what took over: one row per step from 0, intact."""

    key = "unit", "kind", "place", "belief", "step"
    step = Int("how many times something was added to the ablated set; 0 is the intact model")
    unit = Str('"layer" or "heads": what a step adds')
    added = Str("what this step added; empty at step 0")
    ablated = ABLATED
    kind = KIND
    place = PLACE
    recipient = Str('run B, un-ablated: "zero examples", or the length-matched S or R arm')
    n_seen = N_SEEN
    belief = BELIEF
    first_layer = Estimate(
        "L*: first layer whose residual at `pre`, from the ablated donor, has NE ≥ 0.5; NaN where none",
        "its interval; NaN where no layer works there",
        ends="first",
    )
    ne = Estimate("NE = mean(patched − B) / mean(A* − B) at L*; the largest where L* is NaN")
    own = Float("P(f(x_B)) of the patched recipient there, mean")
    copy = Float("P(f(x_A)) of the patched recipient there, mean")
    before_layer = Float("L* of the step before; NaN at step 0")
    ne_before = Estimate("NE that is left at that layer")
    donor = Estimate("P(f(x_A)), the ablated donor's belief in its own answer; mean over prompts")
    n_controls = Int("control sets: as many other heads of the same layers, or other layers")
    control_ne_before = Float("NE left at `before_layer` under a control set, mean over sets")
    control_ne_least = Float("least of them")
    control_ne_greatest = Float("greatest of them")
    control_moved = Float("share of control sets whose L* is later than `before_layer`, or is gone")
    control_donor = Float("P(f(x_A)) of the donor under a control set, mean over sets")
    total = Float("effect of the ablation on A*'s belief (TE), nats")
    direct = Float("direct effect of the ablated heads (DE), nats")
    later_heads = Estimate("direct effect of the change in all later heads together, nats")
    later_heads_given_loss = Estimate("the same given the loss: what that is worth to the ablated run")
    later = Estimate("direct effect of the change in all later heads and MLPs together, nats")
    verdict = Str(
        'of the set against the intact model: "delay", "backup", "both", "neither" or "undecided"; empty at '
        "step 0"
    )
    n_prompts = N_PROMPTS
    reason = REASON_OR_CAVEAT
    chart = Points(Axis("ne", "normalised effect"), ("step", "ablated"))


# -------------------------------------------------------------------------------------------- patch


class PatchTable(Table, name="patches", stage="patch"):
    """Single-latent patches A→B: one row per role, latent whose activation differs, and belief."""

    key = "site", PATCHED_ROLE, LATENT, "belief"
    site = SITE.means("where the latent's decoder direction is added")
    belief = BELIEF.means(
        "which read-out of the logits, in log-odds; `copy` asks for the answers of donors that lent"
    )
    n_prompts = Int("prompts of the test half, over which effects are averaged")
    n_changed = Int("of these, prompts in which the latent's activation differs")
    base = Float("mean log-odds of B, nats")
    patched = Float("mean log-odds of B with the latent set to its donor value, nats")
    donor = Float("mean log-odds of A*, nats")
    effect = EFFECT
    normalised = Estimate("effect / (donor − base), a ratio of means; NaN where the guard fails")
    screen_effect = Float("the same effect on the screening half, nats; it chose what is tested")
    n_controls = Int("matched random live latents compared with; 0 when not tested")
    control_p = Float("(1 + controls at least as far from 0) / (1 + n_controls); NaN when not tested")
    q_value = Float("Benjamini–Hochberg over the tested latents × beliefs")
    reason = REASON
    chart = Points(_EFFECT, _LATENT, panel=("belief",))


class LadderTable(Table, name="ladder", stage="patch"):
    """How much of A a patch must carry: one row per rung and belief, on the test half."""

    key = "site", "role", "rung", "belief"
    site = SITE
    role = PATCHED_ROLE
    rung = Str(
        '"best single latent" (of the screening half), "all latents" (B\'s error kept), "error only", '
        '"full activation"'
    )
    latent = Str("the single latent's id; empty for the other rungs")
    belief = BELIEF
    n_prompts = N_PROMPTS
    base = Float("mean log-odds of B, nats")
    patched = Float("mean log-odds of the patched B, nats")
    donor = Float("mean log-odds of A*, nats")
    effect = EFFECT
    normalised = Estimate("effect / (donor − base); NaN where the guard fails")
    reason = REASON
    chart = Points(_EFFECT, ("site", "role"), "rung", ("belief",))


class SetTable(Table, name="sets", stage="patch"):
    """Sets of latents moved together: one row per way, kind of set, size and belief."""

    key = "site", "role", "direction", "kind", "size", "chosen_for", "belief"
    site = SITE.means("where the decoder directions are added")
    role = PATCHED_ROLE
    direction = WAY
    kind = Str(
        'how members were chosen, on the screening half: "by own effect" (largest single effects first), '
        '"greedy" (each adds most to those before it), "all latents"; beside them "neurons" (of the MLP that '
        'writes here, by own effect), "difference of means" and "full activation"'
    )
    size = Int("members; 1 for the difference of means, 0 for the full activation")
    members = Str("their ids, in the order they were chosen; empty beyond 64")
    chosen_for = Str("the belief by which members were chosen")
    belief = BELIEF
    n_prompts = N_TESTED
    base = Float("mean log-odds of the receiver, nats")
    effect = EFFECT
    normalised = Estimate("effect / (other run − receiver), a ratio of means; NaN where the guard fails")
    share_of_full = Estimate(
        "effect / effect of the full activation there, a ratio of means; NaN below 1 nat", ends="share"
    )
    screen_share = Float(
        "share of the full activation's effect on `chosen_for`, screening half: by it sizes are chosen"
    )
    n_controls = Int("sets of as many matched random latents, each pushed as far; 0 where none was drawn")
    control_share = Estimate("mean share_of_full of these sets", "their central 95 %", ends="control")
    control_p = Float("(1 + sets at least as far from 0) / (1 + n_controls)")
    reason = REASON
    chart = Curves(
        Axis("size", "latents"), _EFFECT, ("direction", "kind"), ("site", "role"), ("belief", "exact")
    )


class ControlTable(Table, name="patch_controls", stage="patch"):
    """The same latents elsewhere, from elsewhere, or backwards: one row per latent, control and belief."""

    key = "site", PATCHED_ROLE, "latents", "control", BELIEF
    site = SITE.means("where the latent's decoder direction is added")
    latents = Str("the latent's id, or those of a greedy set")
    control = Str(
        '"own" (the patch itself), "wrong role <role>" (the same addition at another token), "wrong task '
        '<task>" (donor values of another task), "sign flip" (the addition subtracted)'
    )
    n_prompts = N_TESTED
    effect = EFFECT
    reason = Str("why a value is NaN, or why the control cannot tell; empty otherwise")
    chart = Points(_EFFECT, ("site", "role", "latents"), "control", ("belief",))


class ScreenTable(Table, name="screens", stage="patch"):
    """How far a linear screen is from the exact effects: one row per site, role and belief."""

    key = "site", PATCHED_ROLE, BELIEF
    site = SITE.means("where the decoder directions are added")
    n_effects = Int("latents × prompts compared")
    r2 = Float("1 − Σ(exact − linear)² / Σ(exact − mean exact)²; negative where a constant does better")
    slope = Float("least-squares slope of exact on linear effects")
    worst_miss = Float("largest |exact − linear| of a single patch, nats")
    worst_latent = Int("the latent in which it is")
    worst_exact = Float("that patch's exact effect, nats")
    worst_linear = Float("that patch's linear effect, nats")
    top_found = Float(
        "share of the 10 latents of largest exact mean effect among the linear screen's 10; NaN up to 10"
    )
    reason = REASON
    chart = Points(Axis("r2", "fraction of variance"), ("site", "role"), panel=("belief",))


class ResponseTable(Table, name="responses", stage="patch"):
    """Response curve: one row per site, patch and x."""

    key = "task", "site", "patch", "latents", RECIPIENT, N_SEEN, "x"
    task = Str("spec of the donor's rule, f")
    site = SITE.means("what is patched at the query's `pre`; of base and A*, what they stand beside")
    patch = Str(
        '"base" = B, "A*", and patches of B: "full activation", "all latents" (B\'s error kept), '
        '"error only", "given latents"'
    )
    latents = Str("ids of the given latents, patched at once, separated by spaces; else empty")
    x = Int("run B's query")
    answer = Str("the task's own answer to it, f(x)")
    scaled = Str("a·x for a task a·x + b; empty without a slope or where it is not among 0–999")
    n_donors = Int("pairs of runs with this x")
    mean = Float("E[y | x, y a number] = Σ y P(y) / Σ P(y) over y = 0–999, mean over donors")
    sd = Float("standard deviation of E[y | x, y a number] over donors; NaN with one donor")
    top_1 = Str("the answer of the largest P, P averaged over donors")
    rank = Int("1 + answers of larger P than f(x)")
    rank_scaled = Float("1 + answers of larger P than a·x; NaN where `scaled` is empty")
    p_answer = Float("P(f(x)), mean over donors")
    p_scaled = Float("P(a·x), mean over donors; NaN where `scaled` is empty")
    p_copy = Float("P(an answer of the donors that lent values); of f(x_A) for an instance, mean over donors")
    p_number = Float("P(any number of 0–999), mean over donors")
    reason = REASON
    chart = Curves(Axis("x", "the query"), Axis("mean", "expected answer, a number"), ("patch",))


class ResponseFitTable(Table, name="response_fits", stage="patch"):
    """Response curve in a few numbers: one row per site and patch, intervals a 95 % bootstrap over x."""

    key = "task", "site", "patch", "latents", RECIPIENT, N_SEEN
    task = ResponseTable.task
    site = ResponseTable.site
    patch = ResponseTable.patch
    latents = ResponseTable.latents
    n_x = Int("points of the curve")
    slope = Estimate("least-squares slope of E[y | x, y a number] on x")
    intercept = Estimate("value of the fitted line at x = 0")
    slope_change = Estimate("slope − slope of base, x resampled together; 0 for base itself")
    top_1_answer = Float("share of x whose top-1 answer is f(x)")
    top_5_answer = Float("share of x with f(x) among the five most probable answers")
    top_1_scaled = Float("share of x whose top-1 answer is a·x; NaN for a task without slope")
    top_5_scaled = Float("share of x with a·x among the five; NaN for a task without slope")
    top_1_odd = Float("share of x whose top-1 answer is an odd number")
    reason = REASON
    chart = Points(Axis("slope", "answer per x"), ("patch",))


# ------------------------------------------------------------------------------ frames that queries make


class SelectionTable(VerdictTable, name="selection"):
    """Rows of `growth`, with each latent's best concept and largest patch effect beside them."""

    label = Str("of its best concept: granted first, then by AUROC; candidate when no gate kept it")
    concept = TransformTable.concept
    auroc = Float("of that concept, as in `transforms`")
    belief = BELIEF.means("the belief on which its patch has the largest effect")
    effect = Float("mean of patched − base over prompts, nats")
    patch_control_p = PatchTable.control_p


class SlicedTable(GrowthTable, name="selection over examples"):
    """The growth test over some examples of one site and role, with the same beside it."""

    q_value = Float("Benjamini–Hochberg over the latents of this site and role, rising and falling, alone")
    verdict = Str('"grows", "falls" or "none" over these examples, by that q_value')
    label = SelectionTable.label
    concept = SelectionTable.concept
    auroc = SelectionTable.auroc
    belief = SelectionTable.belief
    effect = SelectionTable.effect
    patch_control_p = SelectionTable.patch_control_p


class SummaryTable(Table, name="summary"):
    """One row per arm, latent and number of labels read: means over prompts."""

    key = SITE, ROLE, ARM, LATENT, "n_seen"
    n_seen = Int("labels read at this role")
    mean = Estimate(
        "mean over prompts, activation × decoder norm", "its 95 % band, prompts resampled", ends="ci"
    )
    n_prompts = N_PROMPTS
    chart = Curves(
        Axis("n_seen", "examples"), Axis("mean", "activation × decoder norm"), ("arm",), ("latent",)
    )


class FitTable(Table, name="bayes"):
    """One row per belief and source: the fit of LO_0 + nλ to the mean curve."""

    key = BELIEF, "source"
    source = Str("model, or the exact posterior")
    lo_0 = Estimate("log-odds before any example, of the fit LO_0 + nλ, nats", "its 95 % interval")
    lam = Estimate("λ, nats per example", "its 95 % interval")
    r = Float("correlation of the mean curve with n_seen over the linear part")
    n_first = Int("first number of examples of the fit")
    n_last = Int("last one")
    n_prompts = N_PROMPTS
    reason = REASON
    chart = Points(Axis("lam", "nats per example"), ("belief",), "source")


class DifferenceTable(Table, name="differences"):
    """One row per setting, input or version in which two runs differ."""

    key = ("what",)
    what = Str("a key of the config, an input's hash or a version")
    a = Str("of the run that was asked")
    b = Str("of the other run")
