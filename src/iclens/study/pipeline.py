"""How does a question become pages? The stages of `flow` are brought up to date, one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from iclens.core import RunError, nearest
from iclens.study.bench import Bench, Hashes, check_task
from iclens.study.card import study_card
from iclens.study.config import StudyConfig
from iclens.study.flow import FLOW, FOLDERS, NAMES
from iclens.study.grid import check_concepts
from iclens.study.limits import check_model
from iclens.study.outside import outside_inputs
from iclens.study.runfolder import CARD, DONE, RunFolder, find_run, now, run_for
from iclens.study.stage import Event, Report, bring_up_to_date

INDEX = "site/index.html"


@dataclass(frozen=True)
class Outcome:
    """What running a study gave.

    Args:
        run: the run folder.
        events: one per stage brought up to date, in order.
        index: the pages' index.html, when they are written.
    """

    run: Path
    events: tuple[Event, ...]
    index: Path | None

    def as_text(self) -> str:
        """Where the run and its pages are."""
        pages = [] if self.index is None else [f"pages: {self.index.resolve()}"]
        return "\n".join([f"run: {self.run}", *pages])

    def as_json(self) -> dict[str, object]:
        """For `--json`."""
        stages = [
            {"stage": e.stage, "state": e.state, "seconds": e.seconds, "why": e.why, "found": dict(e.found)}
            for e in self.events
        ]
        return {
            "run": str(self.run),
            "index": None if self.index is None else str(self.index),
            "stages": stages,
        }


def run_study(config: StudyConfig, root: Path, report: Report, *, last: str | None = None) -> Outcome:
    """Run every stage that is not up to date.

    Args:
        config: the resolved study.
        root: folder of all runs.
        report: told what each stage does.
        last: only this stage and those that it reads; all when not given.

    Raises:
        RunError: for a stage that does not exist.
        IclensError: for anything wrong in what was asked; a run in which no stage finished is removed again.
    """
    names = NAMES if last is None else _reached_from(_known(last))
    outside = _checked(config)
    return _bring(run_for(config, root), names, outside, report)


def run_stage(path: Path, name: str, report: Report) -> Outcome:
    """Bring one stage of a run up to date, and the earlier ones that it reads.

    Args:
        path: a run folder, or a study folder with a finished run.
        name: one of `NAMES`.
        report: told what each stage does.

    Raises:
        RunError: for a run or stage that does not exist.
    """
    names = _reached_from(_known(name))
    run = find_run(path)
    return _bring(run, names, _checked(run.config), report)


def run_track_shard(path: Path, rank: int, world: int) -> Path:
    """Track one rank's slice of a run's prompts; `run_stage(path, "track", …)` joins the parts of all ranks.

    Args:
        path: a run folder, or a study folder with a finished run.
        rank: from 0.
        world: number of ranks.

    Raises:
        RunError: when the run's SAEs or prompts are not there yet, or there are too many ranks.
    """
    from iclens.study.shards import write_shard  # loads torch, which a run that is up to date does not need

    run = find_run(path)
    bench = Bench(run, FOLDERS, _checked(run.config), lambda found: None)
    return write_shard(bench, rank, world)


def _checked(config: StudyConfig) -> Mapping[str, Hashes]:
    """The outside inputs, after refusing what can be seen to be wrong before a run folder is made."""
    check_model(config)
    check_task(config)
    check_concepts(config)
    return outside_inputs(config)


def _bring(run: RunFolder, names: tuple[str, ...], outside: Mapping[str, Hashes], report: Report) -> Outcome:
    running = FLOW[0]

    def progress(found: dict[str, object]) -> None:
        report(Event(running.name, "progress", found=found))

    bench = Bench(run, FOLDERS, outside, progress)
    events: list[Event] = []
    try:
        for running in (stage for stage in FLOW if stage.name in names):
            events.append(bring_up_to_date(running, bench, report))
            if events[-1].state != "up to date" or not (run.path / CARD).is_file():
                run.write_json(CARD, study_card(bench))
        if names == NAMES and not run.done:
            run.write_text(DONE, now() + "\n")
    finally:
        run.discard_if_empty()
    index = run.path / FLOW[-1].folder / INDEX
    return Outcome(run.path, tuple(events), index if index.is_file() else None)


def _known(name: str) -> str:
    if name not in NAMES:
        raise RunError(f"stage '{name}'", "unknown", nearest(name, NAMES) + ".")
    return name


def _reached_from(name: str) -> tuple[str, ...]:
    """`name` and the stages that it reads, directly or not, in order."""
    stages = {stage.name: stage for stage in FLOW}
    wanted, todo = set(), [name]
    while todo:
        current = todo.pop()
        wanted.add(current)
        todo += [read for read in stages[current].reads if read in stages and read not in wanted]
    return tuple(stage for stage in NAMES if stage in wanted)
