"""Training of the built-in model."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from iclens.builtin.model import Recipe, Stage, StageName, build_network, build_tokenizer, grow
from iclens.core import PREFIX_LENGTH, ROLES, TOKENS_PER_EXAMPLE, ConfigError
from iclens.model.run import run_blocks, unembed
from iclens.prompts.build import TokenTable
from iclens.prompts.mixture import Contexts, Floats, Ints, exact_posterior, mix_answers
from iclens.prompts.tasks import parse_task


@dataclass(frozen=True)
class Batch:
    """One step's data."""

    tokens: Tensor  # [context pos]
    target: Tensor  # exact P(y | x, examples before) as [context example answer]
    # own, other: mixing weights of the posterior, [context example task] and [context example]
    own: Floats
    other: Floats
    contexts: Contexts  # what was drawn


@dataclass(frozen=True)
class Interchanges:
    """Pairs of `pre` positions of a batch: a recipient gets a donor's resid and should answer as it believes.

    Positions are flat, context · examples + example.
    """

    recipient: Tensor  # [pair]
    donor: Tensor  # [pair]
    target: Tensor  # exact predictive of the donor's posterior at the recipient's x, [pair answer]
    weight: Tensor  # [pair]; 0 where nothing is to be learned


class BatchMaker:
    """Draws batches from a recipe's mixture; the same step always gives the same batch."""

    def __init__(self, recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> None:
        self.recipe, self.mixture = recipe, recipe.declared_mixture
        self._table = TokenTable.of(self.mixture, tokenizer)
        self.answer_ids = self._table.answer_ids

    @cached_property
    def domain(self) -> Ints:
        """Domain of each input, as the index of its first task."""
        return (self.mixture.domain_prior > 0).argmax(axis=1)

    @cached_property
    def _excluded(self) -> Ints:
        excluded = self.recipe.interchange.excluded_donors
        return np.array([self.mixture.index(parse_task(name)) for name in excluded], dtype=np.int64)

    def tokens(self, contexts: Contexts) -> Tensor:
        """Token ids of drawn contexts as [context pos]."""
        return torch.from_numpy(self._table.assemble(contexts))

    def batch(
        self,
        rng: np.random.Generator,
        noise_share: float = 1.0,
        n_contexts: int | None = None,
        rare_share: float = 0.0,
    ) -> Batch:
        """Draw a batch.

        Args:
            noise_share: below 1, the noise prior is mixed with noiseless contexts.
            n_contexts: contexts of the batch; the recipe's by default.
            rare_share: share of contexts drawn evenly from the tasks on letters and words, noiseless.
        """
        mixture, size = self.mixture, n_contexts or self.recipe.contexts_per_step
        clean = int(np.argmin(mixture.noise_levels))
        prior = noise_share * np.array(mixture.noise_prior)
        prior[clean] += 1 - noise_share
        tasks = rng.choice(len(mixture.tasks), size, p=np.array(mixture.prior))
        noise = rng.choice(len(mixture.noise_levels), size, p=prior)
        rare = [i for i, task in enumerate(mixture.tasks) if task.domain != "number"]
        if rare and rare_share:
            chosen = rng.random(size) < rare_share
            tasks, noise = np.where(chosen, rng.choice(rare, size), tasks), np.where(chosen, clean, noise)
        contexts = mixture.sample(rng, size, self.recipe.examples, tasks=tasks, noise=noise)
        posterior = exact_posterior(mixture, contexts.x, contexts.y)
        own, other = posterior.mixing()
        target = torch.from_numpy(posterior.predictive(contexts.x)).float()
        return Batch(self.tokens(contexts), target, own, other, contexts)

    def interchanges(self, rng: np.random.Generator, batch: Batch, recipient: Ints) -> Interchanges:
        """Pair `pre` positions with random donors of the same domain.

        Args:
            batch: where both come from.
            recipient: flat positions, [pair].
        """
        examples = batch.contexts.x.shape[1]
        x = batch.contexts.x.reshape(-1)
        kind, allowed = self.domain[batch.contexts.x[:, 0]], ~np.isin(batch.contexts.task, self._excluded)
        wanted, donor, weight = kind[recipient // examples], recipient.copy(), np.zeros(len(recipient))
        for value in np.unique(kind):
            members, rows = np.flatnonzero((kind == value) & allowed), np.flatnonzero(wanted == value)
            if len(members):
                donor[rows] = rng.choice(members, len(rows)) * examples
                donor[rows] += rng.integers(0, examples, len(rows))
                weight[rows] = 1.0
        weight[x[donor] == x[recipient]] = 0.0
        own, other = batch.own.reshape(len(x), -1)[donor], batch.other.reshape(-1)[donor]
        target = torch.from_numpy(mix_answers(self.mixture, own, other, x[recipient])).float()
        return Interchanges(
            torch.from_numpy(recipient), torch.from_numpy(donor), target, torch.from_numpy(weight).float()
        )


_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalise(g: Tensor, steps: int = 5) -> Tensor:
    """The semi-orthogonal polar factor of each matrix of g[batch, row, col], approximately."""
    a, b, c = _COEFFICIENTS
    x = g / (g.norm(dim=(1, 2), keepdim=True) + 1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if tall else x


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised; the step of a matrix is lr·√max(1, rows/cols).

    Args:
        params: matrices only.
        lr: learning rate.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, momentum: float = 0.95) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every matrix from its gradient."""
        for group in self.param_groups:
            by_shape: dict[torch.Size, list[nn.Parameter]] = {}
            for p in group["params"]:
                by_shape.setdefault(p.shape, []).append(p)
            for (rows, cols), members in by_shape.items():
                updates = []
                for p in members:
                    if p.grad is None:
                        raise RuntimeError("step before backward")
                    velocity = self.state[p].setdefault("velocity", torch.zeros_like(p))
                    velocity.lerp_(p.grad, 1 - group["momentum"])
                    updates.append(torch.lerp(p.grad, velocity, group["momentum"]))
                scale = group["lr"] * max(1.0, rows / cols) ** 0.5
                for p, update in zip(members, orthogonalise(torch.stack(updates)), strict=True):
                    p.add_(update, alpha=-scale)


def build_optimisers(model: nn.Module, matrix_lr: float, other_lr: float) -> tuple[Muon, torch.optim.AdamW]:
    """Muon over the matrices inside blocks, AdamW over everything else."""
    inside = [p for n, p in model.named_parameters() if ".layers." in n and p.ndim == 2]
    chosen = {id(p) for p in inside}
    rest = [p for p in model.parameters() if id(p) not in chosen]
    return Muon(inside, matrix_lr), torch.optim.AdamW(rest, other_lr, betas=(0.9, 0.98), weight_decay=0.0)


_STREAM = {"trunk": 0, "main": 1, "twin": 1}
"""Branches draw the same batches: their data stream is one."""
_OTHER_ROWS = 8
"""Contexts of a batch on which the other tokens' loss is computed."""
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Swaps:
    """A step's interchanges."""

    whole: Interchanges  # every `pre` of the first contexts of the batch
    blank: Interchanges  # first `pre` of contexts, which have seen no example


def _mean_loss(swaps: Interchanges, answers: Tensor) -> Tensor:
    """Weighted mean cross-entropy of log-probabilities answers[pair answer]."""
    return -(swaps.weight * (swaps.target * answers).sum(-1)).sum() / swaps.weight.sum()


class Trainer:
    """One stage of the recipe.

    Args:
        out: folder of all stages; this one's checkpoint goes to `out/stage`.
        compiled: run the blocks through torch.compile (same mathematics, faster, needs a C compiler).
    """

    def __init__(self, recipe: Recipe, stage: StageName, out: Path, compiled: bool = False) -> None:
        self.recipe, self.name, self.folder = recipe, stage, out / stage
        self.stage: Stage = getattr(recipe, stage)
        self.tokenizer = build_tokenizer()
        self.maker = BatchMaker(recipe, self.tokenizer)
        self.model = self._start(out)
        self.optimisers = build_optimisers(self.model, recipe.optimiser.matrix_lr, recipe.optimiser.other_lr)
        length = PREFIX_LENGTH + TOKENS_PER_EXAMPLE * recipe.examples
        self.tokens_per_step = recipe.contexts_per_step * length
        self.body = self.stage.tokens // self.tokens_per_step
        last = 0 if stage == "trunk" else recipe.finish.tokens // self.tokens_per_step
        self.steps = self.body + last
        self.pre = PREFIX_LENGTH + ROLES.index("pre") + TOKENS_PER_EXAMPLE * torch.arange(recipe.examples)
        self.others = torch.tensor([i for i in range(length - 1) if i not in set(self.pre.tolist())])
        self.answer_ids = torch.from_numpy(self.maker.answer_ids)
        self._run = torch.compile(run_blocks, dynamic=False) if compiled else run_blocks
        self.step, self.seconds = 0, 0.0

    def _start(self, out: Path) -> LlamaForCausalLM:
        r = self.recipe
        trunk = build_network(r.shape, r.trunk.blocks, self.tokenizer, r.seed)
        if self.name == "trunk":
            return trunk
        weights = out / "trunk" / "model.safetensors"
        if not weights.exists():
            raise ConfigError(
                f"stage {self.name}",
                f"{weights} is missing",
                "Run `iclens reference train --stage trunk` first.",
            )
        trunk.load_state_dict(load_file(weights))
        return grow(trunk, r.shape, self.stage.blocks, self.tokenizer, r.seed + 1)

    def learning_rate(self, step: int) -> float:
        """Fraction of the peak rate: 1 → branch_start over the trunk, branch_start → 0 over a branch."""
        o, done = self.recipe.optimiser, step / self.body
        warm = min(1.0, (step + 1) / o.warmup_steps)
        if self.name == "trunk":
            return warm * (1 - (1 - o.branch_start) * max(0.0, done - 0.2) / 0.8)
        if step >= self.body:
            return self.recipe.finish.start * (self.steps - step) / (self.steps - self.body)
        return warm * o.branch_start * (1 - done)

    def loss(self, batch: Batch, swaps: Swaps | None) -> dict[str, Tensor]:
        """Cross-entropies in nats: `answer` (at pre), `other` tokens, and of main `interchange`, `blank`."""
        site, blocks, n = self.recipe.interchange.block, self.stage.blocks, len(batch.tokens)
        resid = self.model.model.embed_tokens(batch.tokens)
        if swaps is None:
            return self._own_losses(batch, self._run(self.model, resid, 0, blocks))
        early = self._run(self.model, resid, 0, site)
        donors = early[:, self.pre].flatten(0, 1)
        values = donors[swaps.whole.donor].unflatten(0, (-1, len(self.pre)))
        patched = early[: len(values)].index_copy(1, self.pre, values)
        final = self._run(self.model, torch.cat([early, patched]), site, blocks)
        before = early[swaps.blank.recipient // len(self.pre), : int(self.pre[0])]
        blank = torch.cat([before, donors[swaps.blank.donor][:, None]], dim=1)
        final_blank = self._run(self.model, blank, site, blocks)[:, -1]
        return self._own_losses(batch, final[:n]) | {
            "interchange": _mean_loss(swaps.whole, self._answers(final[n:, self.pre]).flatten(0, 1)),
            "blank": _mean_loss(swaps.blank, self._answers(final_blank)),
        }

    def _own_losses(self, batch: Batch, final: Tensor) -> dict[str, Tensor]:
        """Losses of unpatched contexts from their last resid_post [context pos d_model]."""
        others = unembed(self.model, final[:_OTHER_ROWS, self.others])
        following = batch.tokens[:_OTHER_ROWS, self.others + 1]
        return {
            "answer": -(batch.target * self._answers(final[:, self.pre])).sum(-1).mean(),
            "other": F.cross_entropy(others.flatten(0, 1), following.flatten()),
        }

    def _answers(self, resid: Tensor) -> Tensor:
        """Log-probabilities of the answers, [... d_model] → [... answer]."""
        return F.log_softmax(unembed(self.model, resid), dim=-1)[..., self.answer_ids]

    def _swaps(self, rng: np.random.Generator, batch: Batch) -> Swaps:
        settings, (n, examples) = self.recipe.interchange, batch.contexts.x.shape
        whole = np.arange(min(settings.recipients_per_step, n) * examples)
        blank = rng.integers(0, n, settings.blank_recipients_per_step) * examples
        return Swaps(*(self.maker.interchanges(rng, batch, rows) for rows in (whole, blank)))

    def train_step(self) -> dict[str, float]:
        """Draw a batch, update, and return the losses, with `kl` = answer loss minus its floor."""
        rng = np.random.default_rng([self.recipe.seed, _STREAM[self.name], self.step])
        share, rare = 1.0, self.recipe.finish.rare_share if self.step >= self.body else 0.0
        if self.name == "trunk":
            share = min(1.0, self.step / self.body / self.recipe.noise_full_at)
        batch = self.maker.batch(rng, share, rare_share=rare)
        swaps = self._swaps(rng, batch) if self.name == "main" else None
        losses = self.loss(batch, swaps)
        total = losses["answer"] + self.recipe.other_token_weight * losses["other"]
        if swaps is not None:
            total = total + self.recipe.interchange.weight * (losses["interchange"] + losses["blank"])
        total.backward()
        rate, o = self.learning_rate(self.step), self.recipe.optimiser
        for optimiser, peak in zip(self.optimisers, (o.matrix_lr, o.other_lr), strict=True):
            for group in optimiser.param_groups:
                group["lr"] = peak * rate
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.step += 1
        floor = -torch.xlogy(batch.target, batch.target).sum(-1).mean()
        return {"kl": float(losses["answer"].detach() - floor)} | {
            k: float(v.detach()) for k, v in losses.items()
        }

    def fit(self, report: Report, every: int = 100, save_minutes: float = 5.0) -> None:
        """Train to the end of the stage, saving as it goes; continues from a saved step."""
        self.load()
        self.model.train()
        mark, kept = time.monotonic(), time.monotonic()
        recent: list[dict[str, float]] = []
        while self.step < self.steps:
            recent.append(self.train_step())
            self.seconds, mark = self.seconds + time.monotonic() - mark, time.monotonic()
            if not np.isfinite(recent[-1]["answer"]):
                raise ConfigError(
                    f"stage {self.name}",
                    f"loss not finite at step {self.step}",
                    "Lower the learning rates of the recipe.",
                )
            if self.step % every == 0:
                means = {k: float(np.mean([r[k] for r in recent])) for k in recent[0]}
                tokens = self.step * self.tokens_per_step
                report(
                    {
                        "stage": self.name,
                        "step": self.step,
                        "of": self.steps,
                        "tokens": tokens,
                        "seconds": round(self.seconds, 1),
                        **means,
                    }
                )
                recent = []
            if time.monotonic() - kept > 60 * save_minutes:
                self.save()
                kept = time.monotonic()
        self.save()

    def save(self) -> None:
        """Write weights, optimiser state and progress to a temporary folder, then swap it in."""
        new, old = self.folder.with_suffix(".new"), self.folder.with_suffix(".old")
        shutil.rmtree(new, ignore_errors=True)
        self.model.save_pretrained(new)
        self.tokenizer.save_pretrained(new)
        state = {}
        for i, optimiser in enumerate(self.optimisers):
            for index, values in optimiser.state_dict()["state"].items():
                state |= {f"{i}/{index}/{k}": v.clone() for k, v in values.items()}
        save_file(state, new / "optimiser.safetensors")
        (new / "progress.json").write_text(
            json.dumps({"step": self.step, "of": self.steps, "seconds": self.seconds})
        )
        shutil.rmtree(old, ignore_errors=True)
        if self.folder.exists():
            self.folder.rename(old)
        new.rename(self.folder)
        shutil.rmtree(old, ignore_errors=True)

    def load(self) -> None:
        """Continue from the stage's checkpoint, when there is one."""
        if not (self.folder / "progress.json").exists():
            return
        progress = json.loads((self.folder / "progress.json").read_text())
        self.step, self.seconds = progress["step"], progress["seconds"]
        self.model.load_state_dict(load_file(self.folder / "model.safetensors"))
        saved = load_file(self.folder / "optimiser.safetensors")
        for i, optimiser in enumerate(self.optimisers):
            state: dict[int, dict[str, Tensor]] = {}
            for key, value in saved.items():
                which, index, name = key.split("/")
                if int(which) == i:
                    state.setdefault(int(index), {})[name] = value
            optimiser.load_state_dict(optimiser.state_dict() | {"state": state})
