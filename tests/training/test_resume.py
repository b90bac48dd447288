"""Ends before the time: a signal, a kill, a divergence; and going on from a checkpoint, to the bit."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors import SafetensorError

from iclens.core import ConfigError, IclensError, RunError, StoppedError
from iclens.model.load import load_model
from iclens.saes.load import load_saes
from iclens.training import data, loop, topk
from iclens.training.config import TrainConfig, parse_train_config
from iclens.training.loop import train_saes

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
    code = "from iclens.training import loop; loop.EVERY = 1; from iclens.cli import main; main()"
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
    monkeypatch.setattr("iclens.training.loop.load_model", lambda *_, **__: send(signal.SIGTERM)())
    with pytest.raises(StoppedError, match="Nothing was trained yet") as caught:
        train_saes(parse_train_config(short()), tmp_path / "set")
    assert caught.value.exit_code == 143 and list(tmp_path.iterdir()) == []


def test_a_signal_while_measuring_keeps_the_last_checkpoint(
    whole: tuple[TrainConfig, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = whole
    monkeypatch.setattr("iclens.training.loop.evaluate", lambda *_: send(signal.SIGINT)())
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
    (tmp_path / "other").mkdir()
    with pytest.raises(ConfigError, match="it exists"):
        train_saes(config, tmp_path / "other")
    changed = {
        "training.decay_from' = 0.7: .* made with 0.5": ("training", {"decay_from": 0.7}),
        "data.massive' = None: .* made with {'ratio': 10.0}": ("data", {"massive": None}),
        "saes.options.a' = 1: .* made with None": ("saes", {"options": {"a": 1}}),
    }
    for words, (section, change) in changed.items():
        other = config.model_copy(update={section: getattr(config, section).model_copy(update=change)})
        with pytest.raises(ConfigError, match=f"key '{words}"):
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


def no_numbers(*_: Any, **__: Any) -> Any:
    raise RuntimeError("a fault that nobody thought of")


def out_of_memory(*_: Any, **__: Any) -> Any:
    raise torch.OutOfMemoryError("out of memory")


def full(*_: Any, **__: Any) -> Any:
    raise OSError(28, "No space left on device")


class Panic(BaseException):
    """What tokenizers and safetensors raise when their own code breaks is no Exception either."""


def panics(*_: Any) -> None:
    raise Panic("called `unwrap` on nothing")


def second_fails() -> Callable[..., Any]:
    """A `reconstruct` that runs out of memory at its second call."""
    calls, real = iter(range(2)), topk.reconstruct
    return lambda *given: real(*given) if next(calls) == 0 else out_of_memory()


BREAKS: dict[str, tuple[Any, str, Any]] = {
    "the data": (data.TokenStream, "next", no_numbers),
    "the model": (data, "run_blocks", out_of_memory),
    "the metrics": (loop.MetricsLog, "add", full),
    "a report": (None, "", None),
    "an SAE": (topk, "reconstruct", out_of_memory),
    "the second SAE": (topk, "reconstruct", second_fails()),
    "a library that panics": (data.TokenStream, "next", panics),
}


@pytest.mark.parametrize("place", BREAKS)
def test_an_error_leaves_a_checkpoint_from_which_the_same_weights_follow(
    whole: tuple[TrainConfig, dict[str, bytes]], tmp_path: Path, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = whole
    holder, name, wrong = BREAKS[place]

    def act() -> None:
        if holder is None:
            no_numbers()
        monkeypatch.setattr(holder, name, wrong)

    with pytest.raises(BaseException) as caught:
        train_saes(config, tmp_path / "set", at_step(5, act))
    monkeypatch.undo()
    words = str(caught.value) + "".join(getattr(caught.value, "__notes__", []))
    (kept,) = (tmp_path / "set.checkpoints").glob("0*")
    tokens = int(kept.name)
    assert tokens >= 5 * 512 and f"'{kept}'. --resume goes on from there, at {tokens:,} tokens." in words
    told: Told = []
    train_saes(config, tmp_path / "set", told.append, resume="newest")
    assert told[0] == {"continued_at": tokens}
    again = files(tmp_path / "set")
    if place == "the metrics":  # the line that the disk did not take is missing; the weights are the same
        again |= {name: expected[name] for name in expected if name.endswith("metrics.jsonl")}
    assert again == expected


def test_an_sae_that_fails_while_its_weights_change_keeps_the_checkpoint_before_it(
    short: Declare,
    whole: tuple[TrainConfig, dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config, expected = parse_train_config(short(checkpoints={"every_tokens": 1024})), whole[1]
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train_saes(
            config,
            tmp_path / "set",
            at_step(5, lambda: monkeypatch.setattr(topk.SparseStep, "_count", out_of_memory)),
        )
    monkeypatch.undo()
    newest = tmp_path / "set.checkpoints" / f"{2048:012d}"
    assert caught.value.__notes__ == [
        f"The last good checkpoint is '{newest}'. --resume goes on from there, at 2,048 tokens."
    ]
    assert files(train_saes(config, tmp_path / "set", resume="newest")) == expected


def test_measuring_that_fails_does_not_take_the_saes_along(
    whole: tuple[TrainConfig, dict[str, bytes]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, expected = whole
    monkeypatch.setattr("iclens.training.loop.tally", out_of_memory)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        train_saes(config, tmp_path / "set")
    assert f"The SAEs are whole in '{tmp_path / 'set'}'" in caught.value.__notes__[0]
    assert files(tmp_path / "set") == expected
    assert list((tmp_path / "set.checkpoints").glob("0*"))  # a study takes it up and measures again
    card = json.loads((tmp_path / "set" / "card.json").read_text())
    assert card["quality"] == [] and card["not_measured"] == "out of memory"
    assert list(load_saes(tmp_path / "set", load_model(config.model.name))) == list(config.saes.recorded)


@pytest.mark.parametrize(
    "library", [OSError(28, "No space left on device"), SafetensorError("No space left")]
)
def test_a_full_disk_keeps_older_checkpoints(
    short: Declare, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, library: Exception
) -> None:
    config = parse_train_config(short(checkpoints={"every_tokens": 2048}))

    def refuse(*_: Any) -> Any:
        raise library

    with pytest.raises(
        RunError, match=r"No space left.*\. Make room; the last good checkpoint is '.*0002048'"
    ):
        train_saes(
            config, tmp_path / "set", at_step(5, lambda: monkeypatch.setattr(loop, "write_part", refuse))
        )
    assert [p.name for p in (tmp_path / "set.checkpoints").glob("*0*")] == [f"{2048:012d}"]


TEXTS = [f"({n}, {2 * n + 3})\n" * 20 for n in range(60)]


@pytest.mark.parametrize(("bad", "line"), [("{", 45), ('{"text": 3}', 46), ('["text"]', 47)])
def test_a_mended_row_is_gone_on_with(short: Declare, tmp_path: Path, bad: str, line: int) -> None:
    rows = [json.dumps({"text": text}) for text in TEXTS]
    declared = short(checkpoints={"every_minutes": None})
    declared["data"] = {"kind": "text", "dataset": str(tmp_path / "t.jsonl"), "context_tokens": 64}

    def write(lines: list[str]) -> None:
        (tmp_path / "t.jsonl").write_text("\n".join(lines) + "\n")

    write([*rows[: line - 1], bad, *rows[line:]])
    config = parse_train_config(declared)
    with pytest.raises(
        ConfigError, match=rf"t.jsonl', line {line}: it .*--resume goes on from there"
    ) as caught:
        train_saes(config, tmp_path / "set")
    (kept,) = (tmp_path / "set.checkpoints").glob("0*")
    assert f"{int(kept.name):,} tokens" in str(caught.value)
    write(rows)
    mended = train_saes(config, tmp_path / "set", resume="newest")
    assert files(mended) == files(train_saes(config, tmp_path / "never-broken"))
