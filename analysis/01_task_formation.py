"""Where does the built-in model form the task, and how does its plain twin differ?

1. Whole residuals of run A (examples of a task, then a query) replace those of run B at every layer and
role, in the model and in its twin. 2. The layer of `pre` at which B best applies the task to its own x is
chosen on one draw of prompts. 3. On another draw, that layer is patched from donors with more and more
examples, beside the unpatched curve. What is said at the end is read off these numbers.

    python analysis/01_task_formation.py [--model FOLDER] [--twin FOLDER] [--task SPEC] [--donors N]
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from iclens import (
    IclensError,
    LanguageModel,
    Task,
    build_runs,
    graded,
    load_model,
    parse_task,
    schemas,
    sweep,
)

ROOT = Path(__file__).resolve().parents[1]
ZERO = "zero examples"
COUNTS = (0, 1, 2, 4, 8, 12, 15)
"""Donor examples of the graded patch, beside those asked for."""
OWN, COPY = "task on own x", "copy"
TASK_MOVED, MOSTLY, HARDLY = 0.9, 0.5, 0.05
"""From these on a probability counts as the whole task or as most of something; up to the last as absent."""


def options() -> argparse.Namespace:
    """What to run, from the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=ROOT / "checkpoints" / "icl-tiny", help="model folder")
    parser.add_argument(
        "--twin", default=ROOT / "checkpoints" / "icl-tiny-twin", help="its plain twin's folder"
    )
    parser.add_argument("--task", default="2x+3", help="the donor's task")
    parser.add_argument("--donors", type=int, default=12, help="examples in the donor's context")
    parser.add_argument("--prompts", type=int, default=64, help="pairs of runs")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the prompts that choose the layer; the next one grades"
    )
    return parser.parse_args()


def values(table: schemas.SweepTable, role: str, metric: str, column: str = "value") -> np.ndarray:
    """A column by layer."""
    return table.where((table["role"] == role) & (table["metric"] == metric))[column]


def print_sweep(table: schemas.SweepTable) -> None:
    """One aligned row per role and metric, one column per layer."""
    n_layers = int(table["layer"].max()) + 1
    print(
        f"  {'role':<7}{'metric':<21}" + "".join(f"{layer:>7}" for layer in range(n_layers)) + "  unpatched"
    )
    for role in dict.fromkeys(table["role"]):
        for metric in (OWN, COPY, f"top-1 {OWN}", "effect on exact"):
            cells = "".join(f"{value:7.2f}" for value in values(table, role, metric))
            unpatched = values(table, role, metric, "base")[0]
            print(f"  {role:<7}{metric:<21}{cells}  {unpatched:9.2f}")


def print_graded(table: schemas.GradedTable) -> None:
    """The patched and the unpatched curve by the donor's number of examples."""
    own, copied = (table.where(table["metric"] == metric) for metric in (OWN, COPY))
    print(f"  {'examples':<9}{'P(own x), patched':>22}{'unpatched':>22}{'copy, patched':>15}")
    for i, n_seen in enumerate(own["n_seen"]):
        patched = f"{own['value'][i]:.3f} [{own['ci_low'][i]:.3f} {own['ci_high'][i]:.3f}]"
        plain = f"{own['unpatched'][i]:.3f} [{own['unpatched_low'][i]:.3f} {own['unpatched_high'][i]:.3f}]"
        print(f"  {n_seen:<9}{patched:>22}{plain:>22}{copied['value'][i]:15.3f}")


def regime(own: float, copied: float) -> str:
    """What a patch moved, from P(f(x_B)) and P(f(x_A))."""
    if own >= TASK_MOVED and copied <= HARDLY:
        return "the task"
    if max(own, copied) >= MOSTLY:
        return "most of the task" if own > copied else "the answer"
    return "nothing" if max(own, copied) <= HARDLY else "a little"


@dataclass(frozen=True)
class Finding:
    """A model's sweeps, the layer they choose, and that layer's graded curve."""

    name: str
    zero: schemas.SweepTable
    matched: schemas.SweepTable
    layer: int
    curve: schemas.GradedTable

    def words(self) -> list[str]:
        """What the numbers say, one sentence each."""
        said = []
        for table in (self.zero, self.matched):
            own, copied = values(table, "pre", OWN), values(table, "pre", COPY)
            kinds = [regime(a, b) for a, b in zip(own, copied, strict=True)]
            spans = ", ".join(
                f"{kind} at {' '.join(str(i) for i, k in enumerate(kinds) if k == kind)}"
                for kind in dict.fromkeys(kinds)
            )
            said.append(f"Into {table['recipient'][0]} at pre, a patch carries: {spans}.")
        own, copied = values(self.zero, "pre", OWN), values(self.zero, "pre", COPY)
        said.append(
            f"P(task on own x) at pre is highest at layer {self.layer}: {own[self.layer]:.3f}, with copy "
            f"{copied[self.layer]:.3f}; at layer 0 they are {own[0]:.3f} and {copied[0]:.3f}, "
            f"at layer {len(own) - 1} {own[-1]:.3f} and {copied[-1]:.3f}."
        )
        context = [role for role in dict.fromkeys(self.matched["role"]) if role != "pre"]
        role = max(context, key=lambda r: values(self.matched, r, OWN).max())
        by_layer, base = values(self.matched, role, OWN), values(self.matched, role, OWN, "base")[0]
        said.append(
            f"Of the context's roles, {role} moves the task most: {by_layer.max():.3f} at layer "
            f"{by_layer.argmax()}, against {base:.3f} unpatched."
        )
        own_curve = self.curve.where(self.curve["metric"] == OWN)
        patched, plain = own_curve["value"], own_curve["unpatched"]
        rises, gap = int((np.diff(patched) > 0).sum()), np.abs(patched - plain).max()
        said.append(
            f"On fresh prompts that layer gives {patched[0]:.3f} from {own_curve['n_seen'][0]} examples "
            f"and {patched[-1]:.3f} from {own_curve['n_seen'][-1]}, rising in {rises} of "
            f"{len(patched) - 1} steps; the largest gap to the unpatched curve is {gap:.3f}."
        )
        return said


def examine(name: str, model: LanguageModel, task: Task, asked: argparse.Namespace) -> Finding:
    """Sweep, choose a layer, grade it on other prompts."""
    zero, matched = (
        sweep(
            model,
            build_runs(
                model.tokenizer, task, recipient=recipient, n_prompts=asked.prompts,
                donor_examples=asked.donors, seed=asked.seed,
            ),
            seed=asked.seed,
        )
        for recipient in (ZERO, "S arm")
    )  # fmt: skip
    layer = int(values(zero, "pre", OWN).argmax())
    counts = sorted({*COUNTS, asked.donors})
    curve = graded(model, task, layer=layer, counts=counts, n_prompts=asked.prompts, seed=asked.seed + 1)
    return Finding(name, zero, matched, layer, curve)


def report(finding: Finding, asked: argparse.Namespace) -> None:
    """Print a finding."""
    print(f"\n{finding.name}: {asked.task}, {asked.donors}-example donors, {asked.prompts} prompts")
    for table in (finding.zero, finding.matched):
        print(f"\n  A → {table['recipient'][0]}, by layer (probability; effects in nats)")
        print_sweep(table)
    print(f"\n  pre, layer {finding.layer}, by the donor's examples (fresh prompts; 95 % intervals)")
    print_graded(finding.curve)
    print()
    for sentence in finding.words():
        print(f"  {sentence}")


def main() -> int:
    """Examine the model and its twin."""
    asked = options()
    try:
        task = parse_task(asked.task)
        for name, folder in (("Model", asked.model), ("Twin", asked.twin)):
            report(examine(name, load_model(folder), task, asked), asked)
    except IclensError as problem:
        print(problem, file=sys.stderr)
        return problem.exit_code
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
