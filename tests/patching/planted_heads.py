"""Models whose heads are built by hand, and what ablating them does, computed without running them.

Every token carries a large constant, so that RMSNorm divides by nearly the same number everywhere. A head
looks at marked tokens (numbers and `)`), wherever they stand, and writes `amount` times their mean evidence
along the task's direction; `)` has evidence 1 and a number a little of its own, so prompts differ. A head
with a `tag` writes that as well, and a head with a `gate` stops looking where it finds the tag: a backup. An
MLP may amplify. Numbers' logits are `GAIN` times what stands along the task's direction. Rivals, where there
are any, rise with them, so that the belief in a number saturates.

    log-odds(numeric) = log N + g·s − log(N_plain e^β + N_rival e^(g·s + β − δ))

`Planted.run` works this out per prompt from counts of tokens: it knows no matrix and shares no code with
what is tested.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from iclens.model.load import LanguageModel
from iclens.patching.runs import Runs
from iclens.prompts.beliefs import NUMBERS
from iclens.prompts.build import PromptSet

D_MODEL, N_HEADS, D_HEAD = 64, 4, 16
CONSTANT, FILL = 40.0, 2.0
"""Length of the part that all tokens share, and of what else a token carries."""
GAIN, FLOOR = 32.0, -10.0
"""Logit of a number per unit along the task's direction; log-odds of a number where nothing stands there."""
EVIDENCE = 0.15
"""Greatest evidence of a number token; `)` has 1."""
N_OTHERS = 78
"""Tokens of the built-in vocabulary that are not numbers."""
KINDS = ("backup", "both", "delay", "neither")
BELIEF = "numeric"


@dataclass(frozen=True)
class Head:
    """A head that reads marked tokens.

    Args:
        layer, head: where it is.
        amount: what it writes along the task's direction, per unit of mean evidence.
        sharpness: score of a marked token; others have 0.
        tag: what it writes along the tag's direction, per share of attention on `)`.
        gate: how far the score falls per unit of tag in the residual.
        aside: what it writes along a direction that nothing reads.
    """

    layer: int
    head: int
    amount: float
    sharpness: float
    tag: float = 0.0
    gate: float = 0.0
    aside: float = 0.0


@dataclass(frozen=True)
class Planted:
    """A hand-built model on paper.

    Args:
        n_blocks: blocks.
        heads: its heads that write anything, in no order.
        ablated: the set to be ablated, (layer, head).
        amplifiers: block → what its MLP adds of what stands along the task's direction.
        n_rivals: tokens that rise with the numbers.
        rival_gap: δ, nats by which rivals stay below where numbers have overtaken the others.
        evidence: of each number, [1000].
        seed: of its directions.
    """

    n_blocks: int
    heads: tuple[Head, ...]
    ablated: tuple[tuple[int, int], ...]
    evidence: np.ndarray
    seed: int
    amplifiers: dict[int, float] = field(default_factory=dict)
    n_rivals: int = 0
    rival_gap: float = 9.0

    @property
    def level(self) -> float:
        """β, the others' logit."""
        return float(np.log(len(NUMBERS) / N_OTHERS) - FLOOR)

    def log_odds(self, s: np.ndarray) -> np.ndarray:
        """Of a number, where `s` stands along the task's direction."""
        plain = np.log(N_OTHERS - self.n_rivals) + self.level + 0 * s
        rival = np.log(self.n_rivals) + GAIN * s + self.level - self.rival_gap if self.n_rivals else -np.inf
        return np.log(len(NUMBERS)) + GAIN * s - np.logaddexp(plain, rival)

    def run(
        self, prompts: PromptSet, ablated: tuple[tuple[int, int], ...] = (), *, start: int = 0,
        held: tuple[np.ndarray, np.ndarray] | None = None,
    ) -> Trace:  # fmt: skip
        """What stands at the query's `pre` of each prompt, block by block from `start`.

        Args:
            prompts: A, B or A*.
            ablated: heads whose output is 0.
            start: first block.
            held: along the task's and the tag's direction before it, [prompt] each; 0 by default.
        """
        n_seen = prompts.n_examples - 1
        shown = self.evidence[prompts.x.astype(int)].sum(axis=1)
        shown = shown + self.evidence[prompts.y[:, :n_seen].astype(int)].sum(axis=1)
        n_marked, n_plain = 3 * n_seen + 1, 3 * n_seen + 5
        s, tag = held if held is not None else (np.zeros(len(shown)), np.zeros(len(shown)))
        trace = Trace({start: (s, tag)}, {})
        for layer in range(start, self.n_blocks):
            before = tag
            for head in (h for h in self.heads if h.layer == layer):
                score = np.exp(head.sharpness - head.gate * before)
                weight = score / (n_marked * score + n_plain) * ((layer, head.head) not in ablated)
                trace.written[layer, head.head] = head.amount * weight * (n_seen + shown)
                s = s + trace.written[layer, head.head]
                tag = tag + head.tag * weight * n_seen
            trace.written[layer, -1] = self.amplifiers.get(layer, 0.0) * s
            s = s + trace.written[layer, -1]
            trace.held[layer + 1] = (s, tag)
        return trace

    def total(self, runs: Runs, ablated: tuple[tuple[int, int], ...]) -> np.ndarray:
        """Effect of an ablation on A*, nats [prompt]."""
        base, after = self.run(runs.target), self.run(runs.target, ablated)
        return self.log_odds(after.end) - self.log_odds(base.end)

    def direct(self, runs: Runs, components: list[tuple[int, int]]) -> np.ndarray:
        """Direct effect of some components together under the planted ablation, nats [prompt]."""
        base, after = self.run(runs.target), self.run(runs.target, self.ablated)
        change = sum((after.written.get(c, 0.0) - base.written.get(c, 0.0) for c in components), 0 * base.end)
        return self.log_odds(base.end + change) - self.log_odds(base.end)

    def given(self, runs: Runs, components: list[tuple[int, int]]) -> np.ndarray:
        """What the change of some components is worth once the planted set is ablated, nats [prompt]."""
        base, after = self.run(runs.target), self.run(runs.target, self.ablated)
        back = sum((base.written.get(c, 0.0) - after.written.get(c, 0.0) for c in components), 0 * base.end)
        return self.log_odds(after.end) - self.log_odds(after.end + back)

    def normalised(self, runs: Runs, ablated: tuple[tuple[int, int], ...]) -> np.ndarray:
        """NE of A's residual in B at each layer, [layer]."""
        donor, base = self.run(runs.donor, ablated), self.log_odds(self.run(runs.recipient).end)
        span = (self.log_odds(self.run(runs.target).end) - base).mean()
        patched = [
            self.log_odds(self.run(runs.recipient, start=layer, held=donor.held[layer]).end) - base
            for layer in range(self.n_blocks + 1)
        ]
        return np.array([effect.mean() for effect in patched]) / span


@dataclass(frozen=True)
class Trace:
    """A run on paper.

    Args:
        held: block → what stands along the task's and the tag's direction before it, [prompt] each.
        written: (block, head) → what it writes along the task's direction, [prompt]; head -1 is the MLP.
    """

    held: dict[int, tuple[np.ndarray, np.ndarray]]
    written: dict[tuple[int, int], np.ndarray]

    @property
    def end(self) -> np.ndarray:
        """Along the task's direction after the last block, [prompt]."""
        return self.held[max(self.held)][0]


def plant(kind: str, seed: int) -> Planted:
    """A model in which ablating a head brings out one of `KINDS`; layers, amounts and directions are drawn.

    backup   two heads of one layer write; a later one gives back half or more of the smaller one's part
    both     one head writes; a later one writes when it is gone
    delay    two heads of different layers write as much as is needed, whatever the other does
    neither  two heads of one layer write; nothing makes up for the smaller one

    Delay needs rivals: either of two heads is enough only where the belief saturates. Others may have them;
    a backup's are further off, so that the loss of its smaller head is still one to be given back.
    """
    rng = np.random.default_rng([seed, KINDS.index(kind)])
    n_blocks = int(rng.integers(5, 8))
    early, late = sorted(int(i) for i in rng.choice(n_blocks, 2, replace=False))
    first, second, other, aside = (int(h) for h in rng.permutation(N_HEADS))
    size, part = rng.uniform(0.9, 1.1), rng.uniform(0.3, 0.4)
    sharp = rng.uniform(3.5, 4.5, 4)
    if kind == "delay":
        heads = [
            Head(early, first, size, sharp[0]),
            Head(late, second, size * rng.uniform(0.95, 1.05), sharp[1]),
        ]
    elif kind == "both":
        heads = [
            Head(early, first, size, sharp[0], tag=3.0),
            Head(late, second, size * rng.uniform(0.7, 1.0), sharp[1], gate=11.0),
        ]
    else:
        heads = [
            Head(early, first, size * part, sharp[0], tag=3.0),
            Head(early, other, size * (1 - part), sharp[2]),
        ]
        if kind == "backup":
            heads.append(Head(late, second, size * part * rng.uniform(0.5, 1.0), sharp[1], gate=11.0))
    heads.append(Head(int(rng.integers(n_blocks)), aside, 0.0, sharp[3], aside=rng.uniform(0.5, 1.0)))
    amplifiers = {int(rng.integers(n_blocks)): rng.uniform(0.1, 0.4)} if rng.random() < 0.5 else {}
    return Planted(
        n_blocks, tuple(heads), ((early, first),), rng.uniform(-EVIDENCE, EVIDENCE, len(NUMBERS)), seed,
        amplifiers=amplifiers, n_rivals=39 if kind == "delay" or rng.random() < 0.5 else 0,
        rival_gap=11.5 if kind == "backup" else 9.0,
    )  # fmt: skip


def plant_causal(seed: int) -> Planted:
    """A model of three heads that write, a head that writes aside, and an amplifying MLP; two are ablated.

    Every other one has rivals, so that its effects do not add up.
    """
    rng = np.random.default_rng([seed, len(KINDS)])
    n_blocks = int(rng.integers(4, 8))
    amounts = rng.uniform(0.2, 0.6, 3)
    places = [divmod(int(i), N_HEADS) for i in rng.choice(n_blocks * N_HEADS, 4, replace=False)]
    heads = [Head(*place, a, rng.uniform(3.5, 4.5)) for place, a in zip(places, amounts, strict=False)]
    heads.append(Head(*places[3], 0.0, 4.0, aside=1.0))
    return Planted(
        n_blocks, tuple(heads), tuple(sorted(places[:2])),
        rng.uniform(-EVIDENCE, EVIDENCE, len(NUMBERS)), seed,
        amplifiers={int(rng.integers(n_blocks)): rng.uniform(-0.3, 0.5)}, n_rivals=39 * (seed % 2),
    )  # fmt: skip


def plant_chain(seed: int, n_writers: int = 3) -> Planted:
    """Heads in rising layers that each write all that is needed, whatever the others do."""
    rng = np.random.default_rng([seed, len(KINDS) + 1])
    n_blocks = 7
    layers = sorted(int(i) for i in rng.choice(n_blocks, n_writers, replace=False))
    heads = [
        Head(i, int(rng.integers(N_HEADS)), rng.uniform(0.9, 1.1), rng.uniform(3.5, 4.5)) for i in layers
    ]
    evidence = rng.uniform(-EVIDENCE, EVIDENCE, len(NUMBERS))
    first = ((heads[0].layer, heads[0].head),) if heads else ()
    return Planted(n_blocks, tuple(heads), first, evidence, seed, n_rivals=39)


def build(planted: Planted, tokenizer: Any) -> LanguageModel:
    """The planted model in weights, run as any other."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=D_MODEL, intermediate_size=4,
        num_hidden_layers=planted.n_blocks,
        num_attention_heads=N_HEADS, num_key_value_heads=N_HEADS, head_dim=D_HEAD, tie_word_embeddings=False,
        rope_parameters={"rope_type": "default", "rope_theta": 1e30},
    )  # fmt: skip
    network = LlamaForCausalLM(config)
    basis = torch.linalg.qr(
        torch.randn(D_MODEL, D_MODEL, generator=torch.Generator().manual_seed(planted.seed))
    ).Q
    ids = [tokenizer.convert_tokens_to_ids(str(n)) for n in range(len(NUMBERS))]
    with torch.no_grad():
        for name, weight in network.named_parameters():
            weight.fill_(1.0 if "norm" in name else 0.0)
        _embed(network.model.embed_tokens.weight, basis, ids, tokenizer, planted)
        for head in planted.heads:
            _write_head(network.model.layers[head.layer].self_attn, basis, head)
        for layer, factor in planted.amplifiers.items():
            _write_amplifier(network.model.layers[layer].mlp, basis, factor)
        _unembed(network.lm_head.weight, basis, ids, planted)
    network.requires_grad_(False).eval()
    return LanguageModel("planted", network, tokenizer, planted.n_blocks, True)


_SCALE = (D_MODEL / (CONSTANT**2 + FILL**2)) ** 0.5
"""What RMSNorm multiplies a token by."""
_SHARED, _MARK, _VALUE, _CLOSE, _TASK, _TAG, _ASIDE, _REST = range(8)
"""Rows of the basis."""
_STILL = D_HEAD // 2 - 1
"""The coordinate of a head that RoPE turns least, here not at all."""


def _embed(
    weight: torch.Tensor, basis: torch.Tensor, ids: list[int], tokenizer: Any, planted: Planted
) -> None:
    parts = torch.zeros(len(weight), D_MODEL)
    parts[:, _SHARED] = CONSTANT
    close = tokenizer("(1, 2)\n", add_special_tokens=False)["input_ids"][-1]
    parts[[*ids, close], _MARK] = 1
    parts[ids, _VALUE] = torch.as_tensor(planted.evidence, dtype=torch.float32)
    parts[close, [_VALUE, _CLOSE]] = 1
    parts[:, _REST] = (FILL**2 - parts[:, 1:].square().sum(dim=1)).sqrt()
    weight.copy_(parts @ basis)


def _write_head(attention: Any, basis: torch.Tensor, head: Head) -> None:
    rows = head.head * D_HEAD
    score = head.sharpness / CONSTANT * basis[_SHARED] - head.gate * basis[_TAG]
    attention.q_proj.weight[rows + _STILL] = D_HEAD**0.5 * score / _SCALE
    attention.k_proj.weight[rows + _STILL] = basis[_MARK] / _SCALE
    attention.v_proj.weight[rows] = basis[_VALUE] / _SCALE
    attention.v_proj.weight[rows + 1] = basis[_CLOSE] / _SCALE
    attention.o_proj.weight[:, rows] = head.amount * basis[_TASK]
    attention.o_proj.weight[:, rows + 1] = head.tag * basis[_TAG] + head.aside * basis[_ASIDE]


def _write_amplifier(mlp: Any, basis: torch.Tensor, factor: float) -> None:
    opened = 10.0
    mlp.gate_proj.weight[0] = opened / CONSTANT * basis[_SHARED] / _SCALE
    mlp.up_proj.weight[0] = basis[_TASK] / _SCALE
    mlp.down_proj.weight[:, 0] = factor / opened * basis[_TASK]


def _unembed(weight: torch.Tensor, basis: torch.Tensor, ids: list[int], planted: Planted) -> None:
    others = [i for i in range(len(weight)) if i not in set(ids)]
    rivals = others[: planted.n_rivals]
    weight[others] = planted.level / CONSTANT * basis[_SHARED] / _SCALE
    weight[rivals] = (planted.level - planted.rival_gap) / CONSTANT * basis[_SHARED] / _SCALE
    weight[[*ids, *rivals]] += GAIN * basis[_TASK] / _SCALE
