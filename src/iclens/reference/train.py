"""Training of the built-in model and its plain twin.

1. The *trunk* is trained on next tokens; at `pre` the target is the exact posterior predictive, which
   has the same expected gradient as sampled answers and less noise.
2. The trunk grows by blocks that start as the identity, and two *branches* train on from it with
   the same data and number of steps: *twin* as before, *main* with interchange interventions: resid
   entering block L at `pre` is replaced by a donor's, and the answer must be the donor's
   posterior applied to the recipient's own x (Geiger et al. 2021).
A stage writes checkpoints as it goes and continues from the last one.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F
from transformers import LlamaForCausalLM

from iclens.errors import ConfigError
from iclens.models.blocks import run_blocks, unembed
from iclens.names import PREFIX_LENGTH, ROLES, TOKENS_PER_EXAMPLE
from iclens.reference.batches import Batch, BatchMaker, Interchanges
from iclens.reference.network import build_network, grow
from iclens.reference.optimiser import build_optimisers
from iclens.reference.recipe import Recipe, Stage, StageName
from iclens.reference.tokenizer import build_tokenizer

_STREAM = {"trunk": 0, "main": 1, "twin": 1}
"""Branches draw the same batches: their data stream is one."""
_OTHER_ROWS = 8
"""Contexts of a batch on which the other tokens' loss is computed."""
Report = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Swaps:
    """A step's interchanges.

    Args:
        whole: every `pre` of the first contexts of the batch.
        blank: first `pre` of contexts, which have seen no example.
    """

    whole: Interchanges
    blank: Interchanges


def _mean_loss(swaps: Interchanges, answers: Tensor) -> Tensor:
    """Weighted mean cross-entropy of log-probabilities answers[pair answer]."""
    return -(swaps.weight * (swaps.target * answers).sum(-1)).sum() / swaps.weight.sum()


class Trainer:
    """One stage of the recipe.

    Args:
        recipe: the recipe.
        stage: trunk, main or twin.
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
