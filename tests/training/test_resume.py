"""Ends before the time: a signal, a kill, a divergence; and going on from a checkpoint, to the bit."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from iclens.errors import ConfigError, IclensError, RunError, StoppedError
from iclens.training import loop
from iclens.training.config import TrainConfig, parse_train_config
from iclens.training.train import train_saes

Declare = Callable[..., dict[str, Any]]
Told = list[dict[str, Any]]


@pytest.fixture(scope="module")
def every_step() -> Any:
    """Metrics at every step, so that a test can act at any of them."""
    patch = pytest.MonkeyPatch()
    patch.setattr(loop, "EVERY", 1)
    yield
    patch.undo()


@pytest.fixture(scope="module")
def whole(
    every_step: None, short: Declare, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainConfig, dict[str, bytes]]:
    """A configuration, and the files that training without interruption writes."""
    config = parse_train_config(short())
    return config, files(train_saes(config, tmp_path_factory.mktemp("whole") / "set"))


def files(folder: Path) -> dict[str, bytes]:
    """What training decides: weights, configs and metrics, by path."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.parent != folder)
    return {str(p.relative_to(folder)): p.read_bytes() for p in found}


def at_step(number: int, act: Callable[[], None]) -> Callable[[dict[str, Any]], None]:
    def report(found: dict[str, Any]) -> None:
        if found.get("step") == number:
            act()

    return report


def send(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


@pytest.mark.parametrize(
    ("number", "code", "step"), [(signal.SIGTERM, 143, 5), (signal.SIGINT, 130, 9), (signal.SIGTERM, 143, 16)]
)
def test_a_signal_leaves_a_checkpoint_from_which_the_same_weights_follow(
    whole: tuple[TrainConfig, dict[str, bytes]], tmp_path: Path, number: int, code: int, step: int
) -> None:
    config, expected = whole
    handlers = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    with pytest.raises(
        StoppedError, match=f"{signal.Signals(number).name}, checkpoint .* --resume"
    ) as caught:
        train_saes(config, tmp_path / "set", at_step(step, send(number)))
    assert caught.value.exit_code == code and "\n" not in str(caught.value)
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == handlers
    assert [p.name for p in tmp_path.iterdir()] == ["set.checkpoints"]
    assert (tmp_path / "set.checkpoints" / f"{512 * step:012d}").is_dir()
    told: Told = []
    train_saes(config, tmp_path / "set", told.append, resume="newest")
    assert told[0] == {"continued_at": 512 * step}
    assert files(tmp_path / "set") == expected
    assert [p.name for p in tmp_path.iterdir()] == ["set"]


def test_many_interruptions_change_nothing(
    whole: tuple[TrainConfig, dict[str, bytes]], tmp_path: Path
) -> None:
    config, expected = whole
    for step in (1, 2, 7, 8, 15):
        with pytest.raises(StoppedError):
            train_saes(config, tmp_path / "set", at_step(step, send(signal.SIGTERM)), resume="newest")
    assert len(list((tmp_path / "set.checkpoints").glob("0*"))) == 2
    assert files(train_saes(config, tmp_path / "set", resume="newest")) == expected


def test_a_kill_is_survived_by_the_newest_checkpoint(
    short: Declare, whole: tuple[TrainConfig, dict[str, bytes]], tmp_path: Path
) -> None:
    _, expected = whole
    declared = short(checkpoints={"every_tokens": 512, "keep": 2})
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(declared))
    out = tmp_path / "set"
    code = "from iclens.training import loop; loop.EVERY = 1; from iclens.cli.main import main; main()"
    command = [sys.executable, "-c", code, "train", "config.yaml", "--out", "set"]
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        while process.poll() is None and not list((tmp_path / "set.checkpoints").glob("0*")):
            time.sleep(0.01)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    told: Told = []
    train_saes(parse_train_config(declared), out, told.append, resume="newest")
    assert told[0]["continued_at"] >= 512
    assert files(out) == expected


def test_a_signal_before_the_first_step_leaves_nothing(
    short: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("iclens.training.train.load_model", lambda *_, **__: send(signal.SIGTERM)())
    with pytest.raises(StoppedError, match="Nothing was trained yet") as caught:
        train_saes(parse_train_config(short()), tmp_path / "set")
    assert caught.value.exit_code == 143 and list(tmp_path.iterdir()) == []


def test_a_signal_while_measuring_keeps_the_last_checkpoint(
    whole: tuple[TrainConfig, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = whole
    monkeypatch.setattr("iclens.training.train.evaluate", lambda *_: send(signal.SIGINT)())
    with pytest.raises(StoppedError, match="000000008192") as caught:
        train_saes(config, tmp_path / "set")
    assert caught.value.exit_code == 130
    monkeypatch.undo()
    assert files(train_saes(config, tmp_path / "set", resume="newest")) == expected


def test_a_divergence_names_step_sae_and_last_good_checkpoint(
    short: Declare, tmp_path: Path, every_step: None
) -> None:
    sites = ["L1.resid_post", {"site": "L2.mlp_out", "lr": 1e30}]
    declared = short(saes={"sites": sites}, checkpoints={"every_tokens": 512}, training={"warmup": 0.5})
    with pytest.raises(ConfigError, match=r"training of L2.mlp_out: .* at step \d+. Lower lr") as caught:
        train_saes(parse_train_config(declared), tmp_path / "set")
    kept = sorted(p.name for p in (tmp_path / "set.checkpoints").glob("0*"))
    assert kept and f"'{tmp_path}/set.checkpoints/{kept[-1]}'" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_without_resume_unfinished_training_is_not_thrown_away(
    whole: tuple[TrainConfig, dict[str, bytes]], tmp_path: Path
) -> None:
    config, _ = whole
    with pytest.raises(StoppedError):
        train_saes(config, tmp_path / "set", at_step(2, send(signal.SIGTERM)))
    with pytest.raises(ConfigError, match=r"unfinished training\. Continue it with --resume"):
        train_saes(config, tmp_path / "set")
    other = config.model_copy(update={"training": config.training.model_copy(update={"decay_from": 0.7})})
    with pytest.raises(ConfigError, match=r"key 'training.decay_from' = 0.7: .* made with 0.5"):
        train_saes(other, tmp_path / "set", resume="newest")
    newest = tmp_path / "set.checkpoints" / f"{1024:012d}"
    for file in newest.glob("sae-*"):
        os.truncate(file, 100)
    with pytest.raises(RunError, match="none of 1 is whole"):
        train_saes(config, tmp_path / "set", resume="newest")


def test_resume_without_a_checkpoint_begins(
    whole: tuple[TrainConfig, dict[str, bytes]], tmp_path: Path
) -> None:
    config, expected = whole
    assert files(train_saes(config, tmp_path / "set", resume="newest")) == expected


def test_two_runs_into_one_folder_are_refused(short: Declare, tmp_path: Path) -> None:
    config = parse_train_config(short())
    seen: list[IclensError] = []

    def second() -> None:
        with pytest.raises(ConfigError, match="another process is training it") as caught:
            train_saes(config, tmp_path / "set", resume="newest")
        seen.append(caught.value)

    train_saes(config, tmp_path / "set", at_step(1, second))
    assert seen and (tmp_path / "set" / "card.json").is_file()


def test_a_full_disk_ends_in_one_line(
    short: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> dict[str, Any]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(loop, "write_part", full)
    with pytest.raises(RunError, match=r"No space left on device\)\. Make room; no checkpoint"):
        train_saes(parse_train_config(short()), tmp_path / "set")
    assert list(tmp_path.iterdir()) == []
