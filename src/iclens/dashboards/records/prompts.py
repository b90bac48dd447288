"""What does the page of a prompt show? Run A and run B side by side: tokens, latents, beliefs, logit lens.

Run A shows examples and asks about x; run B asks about the same x and shows none. The conventions are those
of `site`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from iclens.core import TableError

START = -1
"""`example` of the tokens before the first example."""
SECTIONS = ("latents", "beliefs", "lens")
"""Parts of a prompt's page that may be empty; `PromptPair.reasons` says why by these names."""


@dataclass(frozen=True)
class RunToken:
    """One token of a run.

    Args:
        text: the characters that begin in it; "" where it only continues one.
        role: its part in the example, or "start".
        example: number of its example from 0, the last one of a run being the query; `START` before them.
        continues: whether it begins inside a character.
    """

    text: str
    role: str
    example: int
    continues: bool = False


@dataclass(frozen=True)
class RunView:
    """One of the two runs, up to the query's pre, where the answer is read.

    Args:
        tokens: [token].
        answer: the model's most probable token, as text.
        probability: of that token.
        wanted: probability of the task's answer.
    """

    tokens: Sequence[RunToken]
    answer: str
    probability: float
    wanted: float

    @property
    def query(self) -> int:
        """Number of the example that is the query."""
        return max((token.example for token in self.tokens), default=START)


@dataclass(frozen=True)
class ShownLatent:
    """A latent at every token of both runs.

    Args:
        latent: index in the SAE.
        why: why it is shown, in a few words.
        a, b: its activation in run A and run B, [token].
    """

    latent: int
    why: str
    a: Sequence[float]
    b: Sequence[float]

    @property
    def peak(self) -> float:
        """Its largest activation in both runs after the first token, or else on it.

        On the first token residuals of large models are out of all scale.
        """
        return max((*self.a[1:], *self.b[1:]), default=0.0) or max((*self.a, *self.b), default=0.0)


@dataclass(frozen=True)
class SiteLatents:
    """The latents of one site, which stands in its short form."""

    site: str
    latents: Sequence[ShownLatent]


@dataclass(frozen=True)
class PairBelief:
    """A belief before every example of run A, and in run B, as log-odds in nats.

    Args:
        belief: its name.
        meaning: in words.
        a: the model's after 0, 1, … examples of run A, each about the x that follows, the last about the
            query, [example].
        exact: the exact posterior's on the same, [example]; NaN where there is none.
        b: the model's about the query in run B.
        exact_b: the exact posterior's on the same.
    """

    belief: str
    meaning: str
    a: Sequence[float]
    exact: Sequence[float]
    b: float
    exact_b: float


@dataclass(frozen=True)
class LensRead:
    """What a residual would answer: its most probable tokens with probabilities, and P(the task's answer)."""

    top: Sequence[tuple[str, float]]
    wanted: float


@dataclass(frozen=True)
class LensRow:
    """Run A and run B at one depth; `layer` says where, in words."""

    layer: str
    a: LensRead
    b: LensRead


@dataclass(frozen=True)
class PromptPair:
    """One prompt in both runs.

    Args:
        task: spec of the task.
        query: the x that is asked, as text.
        wanted: the task's answer to it, as text.
        a, b: the runs.
        sites: latents by site, in the order of the model.
        beliefs: those that are defined.
        lens: from the first block to the last.
        reasons: section (one of `SECTIONS`) → why it is empty or lacks something, in a sentence.

    Raises:
        TableError: for an unknown section, or a latent without a value for every token.
    """

    task: str
    query: str
    wanted: str
    a: RunView
    b: RunView
    sites: Sequence[SiteLatents] = ()
    beliefs: Sequence[PairBelief] = ()
    lens: Sequence[LensRow] = ()
    reasons: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if strange := set(self.reasons) - set(SECTIONS):
            raise TableError(
                "PromptPair.reasons", f"unknown {sorted(strange)}", f"One of {', '.join(SECTIONS)}."
            )
        sizes = len(self.a.tokens), len(self.b.tokens)
        for held in self.sites:
            for one in held.latents:
                if (len(one.a), len(one.b)) != sizes:
                    found = f"{len(one.a)} and {len(one.b)} values for {sizes[0]} and {sizes[1]} tokens"
                    raise TableError(f"{held.site} latent {one.latent}", found, "Give one value per token.")

    @property
    def n_examples(self) -> int:
        """Examples that run A shows before the query."""
        return self.a.query


@dataclass(frozen=True)
class PromptsView:
    """The prompts that are shown, in order; `about` says how they and their latents were chosen."""

    prompts: Sequence[PromptPair] = ()
    about: str = ""
