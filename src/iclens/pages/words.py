"""The page of words: what the words that the pages use mean, each in a sentence."""

from __future__ import annotations

from markupsafe import Markup

from iclens.pages.draw import tag
from iclens.pages.section import Page, Section, Source

WORDS = {
    "Prompts": (
        ("example", "one line (x, y) of a prompt"),
        ("role", "a token’s part in its example: open, x, comma, pre, lab, close"),
        ("pre", "the space before y, where the answer is predicted"),
        ("lab", "the y token, where the model sees the label; close is the bracket after it"),
        ("query", "the last x of a prompt, which the model has to answer"),
        ("n_seen", "examples before the query"),
        (
            "arm",
            "a version of the prompts that differs in one respect: T the task’s labels, S the "
            "same labels in other places, R random labels; the page of growth says what the "
            "others are",
        ),
        (
            "run A, run B",
            "A shows examples, then the query; B shows none, or their labels in other places (S arm)",
        ),
        ("A*", "A’s examples and B’s query: what B would answer if it had A’s context"),
        ("held-out", "took no part in choosing what is judged; held-out tasks carry a *"),
    ),
    "Model and SAEs": (
        (
            "site",
            "where an SAE reads: L2.resid_post is the residual stream leaving block 2, L2.mlp_out "
            "what its MLP adds",
        ),
        ("block", "a layer of the model; entering block 3 is the same place as leaving block 2"),
        ("latent", "one unit of an SAE; the word claims nothing about meaning"),
        (
            "activation",
            "a latent’s strength; over the examples it is multiplied by the length of its decoder "
            "row, so that latents can be compared",
        ),
        ("density", "share of tokens on which a latent is active"),
        ("FVU", "fraction of variance that an SAE leaves unexplained"),
    ),
    "Beliefs": (
        ("belief", "a statement about the answer, read from the logits as log-odds"),
        ("log-odds", "ln(p / (1 − p)), in nats; 0 is even odds"),
        (
            "exact",
            "the belief that the answer is the task’s own; exact posterior: what an ideal learner "
            "who knows the mixture of tasks would believe on the same prompts",
        ),
        ("label evidence", "by how much an ideal learner’s belief changes with one more label, in nats"),
    ),
    "Tests": (
        (
            "grows",
            "the task arm’s activation rises with the examples beyond the control arms’, prompt by prompt",
        ),
        (
            "falls",
            "the task arm’s activation falls beside the control arms’, or rises less than theirs",
        ),
        ("confirmed", "of growth: held on prompts kept back; of a cause: moved its own belief most"),
        ("core", "the clause without which a claim does not hold"),
        ("natural growth", "a latent’s own rise from n examples to the last; dose 1 pushes it as far"),
        ("λ", "what one example adds to the log-odds, in nats, on a straight line"),
        (
            "rung",
            "a step of the ladder grows, grows linearly, grows with evidence, causally additive, "
            "accounts for belief; a latent stands on the highest whose gates it passed",
        ),
        (
            "account",
            "a rule by which evidence may add up: exact posterior, counting, …; the named one "
            "predicts held-out prompts best",
        ),
        (
            "p, q",
            "p is of one test; q is corrected for all tests of its kind; no p against n random "
            "latents can be below 1 / (n + 1)",
        ),
        ("control p", "share of matched random latents that do at least as much"),
        ("effect", "patched minus unpatched, in nats"),
        ("necessity, sufficiency", "taking it out of run A; putting it into run B"),
        (
            "label, candidate",
            "a concept that a latent tells on held-out tasks and confuses with none of its "
            "confounds; a candidate failed one of these gates",
        ),
        ("AUROC", "how well a latent tells a concept: .5 is chance, 1 is perfect"),
        ("confound", "what could be mistaken for the concept"),
        ("V", "Cramér’s V: how far the tasks themselves tie a concept to a confound, 0 to 1"),
        ("falsifier", "a result that would refute the claim of additive growth"),
    ),
}
"""Group → (term, meaning); the documentation’s vocabulary has every word of them."""


def _listed(group: str, source: Source) -> Markup:
    terms = (tag("div", tag("dt", term), tag("dd", meaning)) for term, meaning in WORDS[group])
    return tag("dl", *terms, class_="words-list")


PAGE = Page(
    "words.html",
    "Words",
    "Words",
    "What the words on these pages mean.",
    [
        Section(heading=group, id=f"words-{n}", body=lambda source, group=group: _listed(group, source))
        for n, group in enumerate(WORDS, start=1)
    ],
)
