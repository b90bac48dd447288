"""The command line: what it prints, where, its exit codes, and that a failure leaves nothing."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors.numpy import load_file, save_file
from typer.testing import CliRunner

from iclens.cli import app
from iclens.core import WontFitError
from iclens.study.inputs import CHECKOUT

from .conftest import run

MODEL = CHECKOUT / "checkpoints" / "icl-tiny"
STUDY = """
study: wrong
model: {{folder: {model}}}
saes: {{folder: {saes}}}
prompts: {{task: {task}, n_prompts: 40, n_examples: 4}}
"""
COMMANDS = ("demo", "train", "study", "track", "growth", "transforms", "sweep", "patch", "dashboard")


def one_line(err: str) -> str:
    """The error's only line."""
    lines = [line for line in err.splitlines() if line.startswith("iclens: ")]
    assert len(lines) == 1, err
    assert "Traceback" not in err
    return lines[0]


def study(folder: Path, model: Path = MODEL, saes: object = "none", task: str = "2x+3") -> Path:
    file = folder / "study.yaml"
    file.write_text(STUDY.format(model=model, saes=saes, task=task), encoding="utf-8")
    return file


def tiny_set(folder: Path, width: int) -> Path:
    """An SAE set that claims the built-in model, with SAEs of another width."""
    inner = folder / "L1.mlp_out"
    inner.mkdir(parents=True)
    card = {"model": {"name": "icl-tiny"}}
    (folder / "card.json").write_text(json.dumps(card), encoding="utf-8")
    config = {
        "architecture": "topk", "d_in": width, "d_sae": 8, "k": 2, "dtype": "float32", "device": "cpu",
        "metadata": {"hook_name": "blocks.1.hook_mlp_out"},
    }  # fmt: skip
    (inner / "cfg.json").write_text(json.dumps(config), encoding="utf-8")
    (inner / "sae_weights.safetensors").write_bytes(b"")
    return folder


def test_help_imports_no_torch() -> None:
    code = """
import sys
from typer.testing import CliRunner
from iclens.cli import app
for words in ("--help", "study --help", "saes check --help", "reference train --help"):
    arguments = words.split()
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
print(*{"torch", "transformers", "sae_lens", "transformer_lens", "pandas"} & set(sys.modules))
"""
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.strip() == ""


def test_every_command_is_there() -> None:
    text = CliRunner().invoke(app, ["--help"]).output
    assert all(name in text for name in (*COMMANDS, "saes", "reference"))


def test_a_typo_in_a_key(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = study(tmp_path)
    file.write_text(file.read_text(encoding="utf-8") + "growth: {qq: 0.1}\n", encoding="utf-8")
    code, out, err = run(capsys, "study", file, "--runs", tmp_path / "runs")
    assert (code, out) == (2, "")
    assert "key 'growth.qq': unknown. Nearest: q." in one_line(err)
    assert not (tmp_path / "runs").exists()


def test_a_missing_model_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "study", study(tmp_path, model=tmp_path / "no"), "--runs", tmp_path / "runs")
    assert code == 2
    assert "no such folder" in one_line(err)
    assert not (tmp_path / "runs").exists()


def test_a_missing_sae_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "study", study(tmp_path, saes=tmp_path / "no"), "--runs", tmp_path / "runs")
    assert code == 2
    assert "no such folder" in one_line(err)
    assert not (tmp_path / "runs").exists()


def test_an_sae_of_another_width(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    file = study(tmp_path, saes=tiny_set(tmp_path / "set", width=64))
    code, _, err = run(capsys, "study", file, "--runs", tmp_path / "runs")
    assert code == 2
    assert "its width is 64, the model's is 128" in one_line(err)
    assert not (tmp_path / "runs").exists()
    code, _, err = run(capsys, "saes", "check", tmp_path / "set", "--model", MODEL)
    assert code == 2
    assert "width is 64" in one_line(err)


def test_a_task_that_does_not_exist(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "study", study(tmp_path, task="2z+3"), "--runs", tmp_path / "runs")
    assert code == 2
    assert "task '2z+3': no such task. Nearest: 2x+3" in one_line(err)
    assert not (tmp_path / "runs").exists()


def test_a_truncated_model(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    copy = tmp_path / "model"
    shutil.copytree(MODEL, copy)
    weights = copy / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])
    saes = tiny_set(tmp_path / "set", width=128)
    code, _, err = run(capsys, "study", study(tmp_path, copy, saes), "--runs", tmp_path / "runs")
    assert code == 2
    assert "cannot be loaded" in one_line(err)
    assert not (tmp_path / "runs").exists()


def test_a_truncated_sae(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    saes = tiny_set(tmp_path / "set", width=128)
    weights = saes / "L1.mlp_out" / "sae_weights.safetensors"
    save_file({"W_dec": load_file(MODEL / "model.safetensors")["model.norm.weight"]}, weights)
    weights.write_bytes(weights.read_bytes()[:100])
    code, _, err = run(capsys, "study", study(tmp_path, saes=saes), "--runs", tmp_path / "runs")
    assert code == 2
    assert "cannot be read" in one_line(err)
    assert not (tmp_path / "runs").exists()


def test_a_training_config_with_a_typo_leaves_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    file = tmp_path / "train.yaml"
    file.write_text("model: {nmae: x}\n", encoding="utf-8")
    code, _, err = run(capsys, "train", file, "--out", tmp_path / "set")
    assert code == 2
    assert "nmae" in one_line(err)
    assert "name" in one_line(err)
    assert not (tmp_path / "set").exists()


@pytest.mark.parametrize("stage", COMMANDS[3:])
def test_a_stage_of_a_run_that_is_not_there(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, stage: str
) -> None:
    code, _, err = run(capsys, stage, tmp_path / "runs" / "demo")
    assert code == 2
    assert "no such folder" in one_line(err)
    assert not (tmp_path / "runs").exists()


def test_usage_errors_end_with_two(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "study")[0] == 2
    assert run(capsys, "studdy")[0] == 2


def test_an_interrupt_ends_with_130(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("iclens.study.pipeline.run_study", interrupted)
    assert run(capsys, "demo")[0] == 130


def test_what_will_not_fit_ends_with_three(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise WontFitError("40 GB", "the device has 8 GB", "Choose fewer sites.")

    monkeypatch.setattr("iclens.study.pipeline.run_study", refused)
    code, _, err = run(capsys, "demo")
    assert code == 3
    assert one_line(err) == "iclens: 40 GB: the device has 8 GB. Choose fewer sites."


def test_an_unknown_reference_stage(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, _, err = run(capsys, "reference", "train", "--out", tmp_path / "out", "--stage", "trnuk")
    assert code == 2
    assert "Nearest: trunk" in one_line(err)
    assert not (tmp_path / "out").exists()


def test_results_are_on_stdout_and_progress_on_stderr(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from iclens.study.pipeline import Event, Outcome

    def ran(_config: object, root: Path, report: object) -> Outcome:
        events = (
            Event("saes", "up to date", found={"FVU": {"L1.mlp_out": 0.1}}),
            Event("track", "done", 1.5),
        )
        for event in events:
            report(event)  # pyright: ignore
        return Outcome(root / "demo" / "r", events, root / "index.html")

    monkeypatch.setattr("iclens.study.pipeline.run_study", ran)
    code, out, err = run(capsys, "demo", "--runs", tmp_path)
    assert code == 0
    assert out == f"run: {tmp_path / 'demo' / 'r'}\npages: {tmp_path / 'index.html'}\n"
    assert "saes: up to date. FVU: L1.mlp_out 0.1" in err
    assert "track: done in 1.5 s" in err
    code, out, _ = run(capsys, "demo", "--runs", tmp_path, "--json")
    record = json.loads(out)
    assert record["stages"][0]["state"] == "up to date"
    assert record["index"] == str(tmp_path / "index.html")
