"""Several processes, as torchrun starts them: the same SAEs as one, and an end for all when one is lost."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from safetensors.torch import load_file

from iclens.core import ConfigError
from iclens.training.config import parse_train_config
from iclens.training.loop import train_saes
from iclens.training.ranks import Ranks

Declare = Callable[..., dict[str, Any]]
Start = Callable[..., list[subprocess.Popen[str]]]
CODE = "from iclens.training import loop; loop.EVERY = 1; from iclens.cli import main; main()"


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts two processes of `iclens train`, connected over the loopback; none outlives the test."""
    started: list[subprocess.Popen[str]] = []

    def begin(declared: dict[str, Any], *more: str, code: str = CODE) -> list[subprocess.Popen[str]]:
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(declared))
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [sys.executable, "-c", code, "train", "config.yaml", "--out", "set", *more]
        common = os.environ | {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        started.extend(
            subprocess.Popen(
                command, cwd=tmp_path, env=common | {"RANK": rank, "LOCAL_RANK": rank}, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            )
            for rank in ("0", "1")
        )  # fmt: skip
        return started

    yield begin
    for process in started:
        process.kill()
        process.communicate()


def ends(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str, str]]:
    """Exit code, stdout and stderr of each."""
    said = [process.communicate(timeout=120) for process in processes]
    return [(process.returncode, *texts) for process, texts in zip(processes, said, strict=True)]


def wait_for(file: Path, processes: list[subprocess.Popen[str]]) -> None:
    while not (file.is_file() and file.stat().st_size):
        assert all(process.poll() is None for process in processes), ends(processes)
        time.sleep(0.01)


def trio(short: Declare, **sections: dict[str, Any]) -> dict[str, Any]:
    """Three SAEs for two processes, which both read L1.resid_post; blocks that cannot be halved."""
    sites = [
        {"site": "L1.resid_post", "d_sae": 96},
        "L2.mlp_out",
        {"site": "L1.resid_post", "target": "L1.mlp_out"},
    ]
    training = short()["training"] | {"forward_contexts": 5}
    return short(saes={"sites": sites}, training=training, **sections)


def test_two_processes_train_what_one_trains(short: Declare, start: Start, tmp_path: Path) -> None:
    declared = trio(short)
    (first, out, err), (second, silent, _) = ends(start(declared))
    assert (first, second) == (0, 0), err
    assert out == "saes: set, with report.html\n" and silent == ""
    alone = train_saes(parse_train_config(declared), tmp_path / "alone")
    cards = [json.loads((folder / "card.json").read_text()) for folder in (tmp_path / "set", alone)]
    assert [card["processes"] for card in cards] == [2, 1]
    # Batches of other sizes round otherwise, which may exchange two latents at the edge of the k largest and
    # turn the sign of a gradient near 0; a step of Adam is as long for it as for any other.
    names = ["L1.resid_post", "L2.mlp_out", "L1.resid_post-mlp_out"]
    for name, together, by_itself in zip(names, *(card["quality"] for card in cards), strict=True):
        assert together["fvu"] == pytest.approx(by_itself["fvu"], rel=0.01)
        weights = [load_file(f / name / "sae_weights.safetensors") for f in (tmp_path / "set", alone)]
        for key, x in weights[0].items():
            assert ((x - weights[1][key]).abs() < 1e-3).double().mean() > 0.9, key
    assert not list(tmp_path.glob("*.checkpoints"))


def test_a_signal_to_one_stops_both_and_one_process_can_go_on(
    short: Declare, start: Start, tmp_path: Path
) -> None:
    declared = trio(short)
    processes = start(declared)
    wait_for(tmp_path / "set.checkpoints" / "metrics" / "pace.jsonl", processes)
    processes[1].send_signal(signal.SIGTERM)
    (first, _, err), (second, _, _) = ends(processes)
    assert (first, second) == (143, 143)
    assert "stopped by SIGTERM, checkpoint" in err.splitlines()[-1]
    told: list[dict[str, Any]] = []
    train_saes(parse_train_config(declared), tmp_path / "set", told.append, resume="newest")
    assert told[0]["continued_at"] > 0 and (tmp_path / "set" / "card.json").is_file()


def test_a_killed_process_ends_the_other_with_a_checkpoint(
    short: Declare, start: Start, tmp_path: Path
) -> None:
    processes = start(trio(short, checkpoints={"every_tokens": 512, "keep": 20}))
    wait_for(tmp_path / "set.checkpoints" / "000000000512" / "state.json", processes)
    processes[1].kill()
    (first, _, err), (second, _, _) = ends(processes)
    assert (first, second) == (1, -signal.SIGKILL)
    assert "another process is gone" in err.splitlines()[-1] and "Traceback" not in err
    assert list(tmp_path.glob("set.checkpoints/0*/state.json")) and not (tmp_path / "set").exists()


def test_a_bad_row_stops_both_with_a_checkpoint_and_mended_both_go_on(
    short: Declare, start: Start, tmp_path: Path
) -> None:
    rows = [json.dumps({"text": f"({n}, {2 * n + 3})\n" * 20}) for n in range(60)]
    (tmp_path / "t.jsonl").write_text("\n".join([*rows[:44], "{", *rows[45:]]))
    declared = trio(short)
    declared["data"] = {"kind": "text", "dataset": str(tmp_path / "t.jsonl"), "context_tokens": 64}
    for code, _, err in ends(start(declared)):
        assert code == 2 and "Traceback" not in err
        assert "t.jsonl', line 45: it is not JSON" in err and "--resume goes on from there, at " in err
    (kept,) = (tmp_path / "set.checkpoints").glob("0*")
    assert int(kept.name) > 0
    (tmp_path / "t.jsonl").write_text("\n".join(rows))
    (first, _, err), (second, _, _) = ends(start(declared, "--resume")[2:])
    assert (first, second) == (0, 0), err
    assert f"continued at {int(kept.name):,} tokens" in err


@pytest.mark.parametrize("place", ["data.run_blocks", "topk.reconstruct"])
def test_what_fails_in_one_process_ends_both(
    short: Declare, start: Start, tmp_path: Path, place: str
) -> None:
    module, name = place.split(".")
    failing = (
        "import os; from iclens.training import loop; loop.EVERY = 1\n"
        f"import iclens.training.{module} as place\n"
        "def fail(*_, **__): raise MemoryError('no memory left')\n"
        "before = loop.Loop._tell\n"
        "def tell(self, *args):\n"
        "    before(self, *args)\n"
        f"    if self.done == 5 and os.environ['RANK'] == '1': place.{name} = fail\n"
        "loop.Loop._tell = tell\n"
        "from iclens.cli import main; main()"
    )
    declared = trio(short, checkpoints={"every_tokens": 1024, "keep": 9})
    (first, _, err), (second, _, other) = ends(start(declared, code=failing))
    assert (first, second) == (1, 1)
    assert "another one failed" in err.splitlines()[-1] and "no memory left" in err.splitlines()[-1]
    assert "MemoryError: no memory left" in other and "--resume goes on from there" in other
    assert sorted((tmp_path / "set.checkpoints").glob("0*"))


def test_saes_are_dealt_out_evenly(short: Declare) -> None:
    sites = [{"site": f"L{layer}.mlp_out", "d_sae": 64 * size} for layer, size in enumerate((1, 4, 2, 2, 3))]
    members = parse_train_config(short(saes={"sites": sites})).saes.members
    owner = Ranks(0, 2).deal(members)
    assert [owner[spec.name] for spec in members] == [1, 0, 1, 0, 1]
    with pytest.raises(ConfigError, match="6 processes: for 5 SAEs"):
        Ranks(0, 6).deal(members)


def test_one_process_needs_no_other() -> None:
    alone = Ranks()
    assert alone.largest(3, 4) == (3, 4) and alone.collect({"a": 1}) == [{"a": 1}] and alone.first
