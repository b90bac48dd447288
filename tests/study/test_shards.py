"""Ranks that track a share of the prompts each leave, once joined, the files that one process writes."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from iclens.core import RunError
from iclens.study.follow import PARTS
from iclens.study.pipeline import Outcome, run_stage, run_track_shard
from iclens.study.run import FOLDERS
from iclens.study.store import hash_files

TRACK = FOLDERS["track"]


def hashes(run: Path) -> dict[str, str]:
    return hash_files(run / TRACK)


@pytest.fixture
def copied(first: Outcome, tmp_path: Path) -> Path:
    """The first run without its tracked latents."""
    run = tmp_path / first.run.name
    shutil.copytree(first.run, run)
    shutil.rmtree(run / TRACK)
    return run


def test_joined_parts_are_what_one_process_writes(first: Outcome, copied: Path) -> None:
    for rank in range(3):
        part = run_track_shard(copied, rank, 3)
        assert part.name == f"{rank}-of-3" and not list(part.parent.glob("*.new"))
    outcome = run_stage(copied, "track", lambda event: None)
    event = next(e for e in outcome.events if e.stage == "track")
    assert event.found["joined from ranks"] == 3
    assert {k: v for k, v in hashes(copied).items() if k != "stage.json"} == {
        k: v for k, v in hashes(first.run).items() if k != "stage.json"
    }


def test_an_incomplete_set_of_parts_is_not_joined(copied: Path) -> None:
    run_track_shard(copied, 0, 2)
    outcome = run_stage(copied, "track", lambda event: None)
    event = next(e for e in outcome.events if e.stage == "track")
    assert "joined from ranks" not in event.found
    assert list((copied / PARTS).rglob("0-of-2"))


def test_more_ranks_than_batches_are_refused(copied: Path) -> None:
    with pytest.raises(RunError, match="Start at most 5 processes"):
        run_track_shard(copied, 0, 6)


def test_the_command_tracks_its_ranks_share(copied: Path) -> None:
    code = "from iclens.cli import main; main()"
    environment = os.environ | {"RANK": "1", "WORLD_SIZE": "2"}
    ran = subprocess.run(
        [sys.executable, "-c", code, "track", str(copied)], env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip().endswith("1-of-2")
