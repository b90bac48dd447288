"""Is patching exact and fast at the true shape of llama-3-8b, all 32 blocks, in 24 GB of memory?

On a folder as in `true_shape`, each stage in a process of its own:

1. `exact`: the tail engine in float32, its network reading one block at a time, against a reference that
shares no code with the package and gives every addition a full forward pass of its own. Several rows, layers,
hooks and positions. Controls that must be far off: the edit one layer later, and one position earlier.
2. `speed`: the whole model in bfloat16. Rows of the tail against a batch of full forward passes with the same
edits, and against single ones, all in turn in one run. They must agree to bfloat16's rounding, and their
controls must not.
3. `replicate`: `iclens replicate seed-post`, the observations that were recorded, in a process of its own.

    python analysis/benchmarks/true_shape_patching.py SCRATCH [--small] [--keep]
    python analysis/benchmarks/true_shape_patching.py FOLDER --stage speed
"""

from __future__ import annotations

import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from streamed_llama import Change, Streamed
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.llama.modeling_llama import LlamaDecoderLayer
from true_shape import TRUE, Scale, prompts, prove

from iclens.core import Site, position
from iclens.model.load import LanguageModel, load_model
from iclens.model.run import Edit, answer_probs
from iclens.model.tail import Tail, hold
from iclens.table import Floats

EXACT = 1e-4
"""Largest difference in log P of a float32 row from the reference; controls must be 100 times as far."""
BFLOAT = 0.04
"""Largest relative distance of a bfloat16 row from a bfloat16 full pass; controls must be at twice that."""
LENGTH = 3.0
"""How many times as long as the residual in the middle of the model an addition is."""
PEAK = 20e9
HOOKS = ("resid_pre", "resid_post", "mlp_out")
N_ROWS, EXAMPLES = 3, 5
"""Rows per site, and examples before the query, of the exact stage."""
WIDE, BATCHED, SINGLES, REPEATS = (64, 256), 8, 2, 3
"""Rows of the tail, rows of a batch of full passes, single full passes in a turn, and turns."""


class LazyBlocks:
    """Blocks that are read from a folder, in float32, one at a time when they are used.

    Args:
        streamed: reads the tensors.
        config: of the network.
        layers: which blocks.
    """

    def __init__(self, streamed: Streamed, config: Any, layers: range) -> None:
        self.streamed, self.config, self.layers = streamed, config, layers

    def __len__(self) -> int:
        return len(self.layers)

    def __getitem__(self, which: int | slice) -> Any:
        if isinstance(which, slice):
            return LazyBlocks(self.streamed, self.config, self.layers[which])
        layer = self.layers[which]
        with torch.device("meta"):
            block = LlamaDecoderLayer(self.config, layer)
        weights = {f"{name}.weight": part for name, part in self.streamed.layer_weights(layer).items()}
        block.load_state_dict(weights, assign=True)
        return block.requires_grad_(False).eval()

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def lazy_model(folder: Path) -> LanguageModel:
    """The whole model in float32, of which only embeddings, last norm and head stay in memory."""
    config = AutoConfig.from_pretrained(folder)
    with torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(
            config, dtype=torch.float32, attn_implementation="sdpa"
        )
    n_blocks, streamed = config.num_hidden_layers, Streamed(folder)
    del network.model.layers
    ends = {key: streamed.weight(key) for key in network.state_dict()}
    network.load_state_dict(ends, assign=True)
    network.model.rotary_emb = type(network.model.rotary_emb)(config=network.config)
    network.model.layers = LazyBlocks(streamed, network.config, range(n_blocks))
    tokenizer = load_model(folder, blocks=1, dtype=torch.bfloat16).tokenizer
    return LanguageModel(str(folder), network.requires_grad_(False).eval(), tokenizer, n_blocks, True)


def middle(scale: Scale) -> int:
    """Layer 14 of 32, or what it is in a smaller model."""
    return scale.config["num_hidden_layers"] * 14 // 32


def exact_sites(scale: Scale) -> list[Site]:
    """First, middle and last block, each hook; and in the middle the two that pass an MLP of their own."""
    layers = (0, middle(scale), scale.config["num_hidden_layers"] - 1)
    inner = [Site(middle(scale), hook) for hook in ("resid_mid", "attn_out")]
    return [Site(layer, hook) for layer in layers for hook in HOOKS] + inner


def exact(folder: Path, scale: Scale) -> dict[str, Any]:
    """Largest differences in log P(answer) between the float32 engine and the reference."""
    tokens = prompts(folder, 1)[0, : position("pre", EXAMPLES) + 1]
    sites, last, layer = exact_sites(scale), len(tokens) - 1, middle(scale)
    earlier = [last - 6, last - 1]
    begun = time.monotonic()
    ours, context, deltas, ids = of_engine(folder, tokens, sites, Site(layer, "resid_post"), earlier)
    engine = time.monotonic() - begun
    gc.collect()
    plans = [(site, last) for site in sites] + [(Site(layer, "resid_post"), place) for place in earlier]
    changes = [Change(site.layer, site.hook, place, row) for site, place in plans for row in deltas]
    begun = time.monotonic()
    with torch.no_grad():
        logits = Streamed(folder).logits(torch.as_tensor(tokens), scale.config["rope_theta"], changes)
    log_prob = logits.log_softmax(dim=1)[:, ids].numpy()
    base, theirs = log_prob[0], log_prob[1:].reshape(len(plans), N_ROWS, -1)
    differences = {site.short: apart(ours[i], theirs[i]) for i, site in enumerate(sites)}
    for i, place in enumerate(earlier):
        differences[f"{last - place} before the last"] = apart(context[i], theirs[len(sites) + i])
    pre, post = sites.index(Site(layer, "resid_pre")), sites.index(Site(layer, "resid_post"))
    return {
        "tokens": len(tokens), "rows": N_ROWS, "engine_seconds": round(engine, 1),
        "reference_seconds": round(time.monotonic() - begun, 1), "differences": differences,
        "largest_effect": apart(theirs, base),
        "least_effect": min(apart(rows, base) for rows in theirs),
        "one layer later": apart(ours[pre], theirs[post]),
        "one position earlier": apart(ours[post], theirs[-1]),
    }  # fmt: skip


def of_engine(
    folder: Path, tokens: np.ndarray, sites: list[Site], long: Site, earlier: list[int]
) -> tuple[list[Floats], list[Floats], Tensor, Tensor]:
    """What our engine gives, in float32.

    Returns:
        log P(answer) at each site, [row answer]; the same at the site `long` for each of the `earlier`
            positions; the additions, [row d_model]; the answers' ids.
    """
    model = lazy_model(folder)
    tail = Tail(model, tokens)
    deltas = additions(N_ROWS, tail.resid_pre(long.layer))
    found = [tail.added(site, deltas).log_prob for site in sites]
    suffix = Tail(model, tokens, (), hold(model, tokens[None], min(earlier))[0])
    context = [suffix.added(long, deltas, positions=np.array([place])).log_prob for place in earlier]
    return found, context, deltas, tail.ids


def additions(n: int, resid: Tensor) -> Tensor:
    """Random additions, `LENGTH` times as long as a residual [d_model] each, [row d_model]."""
    drawn = torch.randn(n, len(resid), generator=torch.Generator().manual_seed(3))
    return LENGTH * resid.float().norm() * torch.nn.functional.normalize(drawn, dim=1)


def apart(one: Floats, other: Floats) -> float:
    """Largest absolute difference."""
    return float(np.abs(one - other).max())


def speed(folder: Path, scale: Scale) -> dict[str, Any]:
    """ms per row of the tail, of a batch of full passes and of single ones, in turn; and how they agree."""
    begun = time.monotonic()
    model = load_model(folder, dtype=torch.bfloat16)
    loaded = time.monotonic() - begun
    tokens = prompts(folder, 1)[0, : position("pre", 12) + 1]
    site, tail = Site(middle(scale), "resid_pre"), Tail(model, tokens)
    deltas = additions(max(WIDE), tail.resid_pre(site.layer))

    def full(rows: Tensor, at: Site = site) -> Floats:
        return full_pass(model, tokens, at, rows)

    few = deltas[:BATCHED]
    kinds: dict[str, tuple[int, Callable[[], Any]]] = {
        "preparation": (1, lambda: Tail(model, tokens)),
        **{f"tail, {n} rows": (n, lambda n=n: tail.added(site, deltas[:n])) for n in WIDE},
        "batched full": (BATCHED, lambda: full(few)),
        "single full": (SINGLES, lambda: [full(row[None]) for row in deltas[:SINGLES]]),
    }
    ours, theirs, later = tail.added(site, few).log_prob, full(few), full(few, Site(site.layer, "resid_post"))
    took = {name: [] for name in kinds}
    for _ in range(REPEATS):
        for name, (rows, run) in kinds.items():
            begun = time.monotonic()
            run()
            took[name].append(1000 * (time.monotonic() - begun) / rows)
    each = [f"tail, {n} rows" for n in WIDE]
    return {
        "tokens": len(tokens), "threads": torch.get_num_threads(),
        "blocks_above": model.n_blocks - site.layer, "load_seconds": round(loaded, 1),
        "ms_per_row": {name: round(statistics.median(times), 2) for name, times in took.items()},
        "times_batched": {name: ratios(took["batched full"], took[name]) for name in each},
        "times_single": {name: ratios(took["single full"], took[name]) for name in each},
        "distance": relative(ours, theirs), "single from batched": relative(full(few[:1]), theirs[:1]),
        "one layer later": relative(ours, later), "the next row": relative(ours, np.roll(theirs, 1, axis=0)),
        "not at all": relative(np.repeat(tail.base(site).log_prob, len(few), axis=0), theirs),
    }  # fmt: skip


def full_pass(model: LanguageModel, tokens: np.ndarray, site: Site, rows: Tensor) -> Floats:
    """log P(answer) from full forward passes, all rows in one batch, [row answer]."""
    last = np.array([len(tokens) - 1])
    edit = Edit(site, "add", last, rows[:, None].numpy())
    batch = np.tile(tokens, (len(rows), 1))
    return answer_probs(model, batch, last, edits=[edit], batch=len(rows)).log_prob[:, 0]


def ratios(slow: list[float], fast: list[float]) -> list[float]:
    """Median, least and greatest of slow / fast, turn by turn."""
    found = [a / b for a, b in zip(slow, fast, strict=True)]
    return [round(value, 1) for value in (statistics.median(found), min(found), max(found))]


def relative(one: Floats, other: Floats) -> float:
    """‖one − other‖ / ‖other‖ of log P(answer) [row answer], each row's mean taken out."""
    a, b = (rows - rows.mean(axis=1, keepdims=True) for rows in (one, other))
    return float(np.linalg.norm(a - b) / np.linalg.norm(b))


def replicate(folder: Path, scale: Scale) -> dict[str, Any]:
    """Exit status, wall time and peak memory of `iclens replicate seed-post`, its recorded part.

    The recorded layers and heads are asked for where the model has them.
    """
    protocol = "recorded" if scale is TRUE else "derived"
    command = [
        sys.executable, "-c", "from iclens.cli import main; main()", "replicate", "seed-post",
        "--model", str(folder.absolute()), "--dtype", "bfloat16", "--protocol", protocol,
        "--parts", "recorded",
    ]  # fmt: skip
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:
        child = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(child.pid, 0)
        output.seek(0)
        lines = output.read().splitlines()
    child.returncode = os.waitstatus_to_exitcode(status)
    return {
        "exit": child.returncode, "seconds": round(time.monotonic() - begun, 1),
        "peak_gb": round(1024 * used.ru_maxrss / 1e9, 2), "protocol": protocol,
        "last_lines": lines[-8:],
    }  # fmt: skip


STAGES: dict[str, Callable[[Path, Scale], dict[str, Any]]] = {
    "exact": exact, "speed": speed, "replicate": replicate,
}  # fmt: skip


def faults(found: dict[str, dict[str, Any]]) -> list[str]:
    """What is not as it must be, in words; empty when all is well."""
    wrong = [f"{stage}: peak {f['peak_gb']} GB" for stage, f in found.items() if f["peak_gb"] * 1e9 > PEAK]
    exact, speed = found["exact"], found["speed"]
    wrong += [
        f"exact: {value:.1e} at {name}" for name, value in exact["differences"].items() if not value <= EXACT
    ]
    wrong += [
        f"exact, control '{name}': only {exact[name]:.1e} off"
        for name in ("one layer later", "one position earlier")
        if not exact[name] >= 100 * EXACT
    ]
    if not exact["least_effect"] >= 10 * EXACT:
        wrong.append(f"exact: an addition changes only {exact['least_effect']:.1e}")
    if not speed["distance"] <= BFLOAT:
        wrong.append(f"speed: {speed['distance']:.3f} from a full pass")
    wrong += [
        f"speed, control '{name}': only {speed[name]:.3f} off"
        for name in ("one layer later", "the next row", "not at all")
        if not speed[name] >= 2 * BFLOAT
    ]
    if found.get("replicate", {"exit": 0})["exit"] != 0:
        wrong.append(f"replicate: {found['replicate']}")
    return wrong


if __name__ == "__main__":
    raise SystemExit(prove(__file__, __doc__, STAGES, faults))
