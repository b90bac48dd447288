"""`iclens replicate seed-post`: results on stdout, progress on stderr, one line when it cannot be done."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from iclens.study.inputs import CHECKOUT

from .conftest import run

MODEL = CHECKOUT / "checkpoints" / "icl-tiny"


def test_the_built_in_model_is_run_without_targets(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    out = tmp_path / "replication"
    code, text, err = run(capsys, "replicate", "seed-post", "--model", MODEL, "--out", out)
    assert code == 0 and "logit lens" in err and text.startswith(f"{MODEL}, float32\nprotocol derived")
    assert "no target" in text and f"written: {out}" in text
    assert {path.suffix for path in out.iterdir()} == {".parquet", ".json"}
    code, text, err = run(capsys, "replicate", "seed-post", "--model", MODEL, "--out", out)
    assert code == 2 and not text and err.count("iclens: ") == 1 and "it exists" in err


def test_what_was_left_out_can_be_left_out_and_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, err = run(capsys, "replicate", "seed-post", "--model", MODEL, "--parts", "recorded")
    assert code == 0 and "not run (--parts recorded)" in text and "random" not in text + err
    assert "patch over x" in text and "ablation" in text


def test_json_is_all_that_stands_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    code, text, _ = run(capsys, "replicate", "seed-post", "--model", MODEL, "--json", "--dtype", "bfloat16")
    found = json.loads(text)
    assert code == 0 and found["dtype"] == "bfloat16" and found["folder"] is None
    assert found["verdicts"] == {"no target": len(found["checks"])}
    assert {"lens", "patched", "maps", "donors", "sweeps"} <= found.keys()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (("--protocol", "recorded"), "has 6 blocks of 4 heads"),
        (("--protocol", "mine"), "protocol 'mine': unknown"),
        (("--dtype", "float16"), "dtype 'float16': unknown"),
        (("--parts", "some"), "parts 'some': unknown"),
        (("--model", "no/such/folder"), "no such folder"),
    ],
)
def test_one_line_says_what_is_wrong(
    capsys: pytest.CaptureFixture[str], options: tuple[str, ...], line: str
) -> None:
    code, text, err = run(capsys, "replicate", "seed-post", *options)
    assert code == 2 and not text
    lines = [one for one in err.splitlines() if one.startswith("iclens: ")]
    assert len(lines) == 1 and line in lines[0] and "Traceback" not in err


def test_help_imports_no_torch() -> None:
    code = """
import sys
from typer.testing import CliRunner
from iclens.cli import app
result = CliRunner().invoke(app, ["replicate", "seed-post", "--help"])
assert result.exit_code == 0 and "--protocol" in result.output, result.output
print(*{"torch", "transformers", "pandas"} & set(sys.modules))
"""
    ran = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert ran.stdout.strip() == ""
