"""The live line, the page, and the mirror that is there only when it is asked for."""

import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from iclens.core import ConfigError
from iclens.pages.training import write_report
from iclens.training.config import parse_train_config
from iclens.training.report import mirrored, progress_text, read_metrics

Run = tuple[Path, list[dict[str, Any]]]
FOUND: dict[str, Any] = {
    "step": 21, "of": 100, "tokens": 1_234_567, "of_tokens": 100_000_000, "seconds": 58.0,
    "tokens_per_second": 21_300.0, "seconds_left": 4637.0,
    "sites": {
        "L1.mlp_out": {"fvu": 0.2104, "l0": 32.0, "dead": 0.012},
        "L2.mlp_out": {"fvu": 0.341, "l0": 32.0, "dead": 0.0},
    },
}  # fmt: skip


def test_the_live_line_says_pace_time_left_and_the_spread_over_saes() -> None:
    assert progress_text(FOUND) == (
        "1.23 M of 100 M tokens, 21.3 k tokens/s, 1:17:17 left, FVU 0.21 to 0.341, L0 32, dead 0.0 % to 1.2 %"
    )
    first = FOUND | {"tokens": 512, "tokens_per_second": None, "seconds_left": None}
    first["sites"] = {"L1.mlp_out": {"fvu": float("nan"), "l0": 32.0, "dead": 0.0}}
    assert progress_text(first) == "512 of 100 M tokens, L0 32, dead 0.0 %"
    rounded = first | {"tokens": 999_936, "of_tokens": 999_999_488}
    assert progress_text(rounded) == "1 M of 1 G tokens, L0 32, dead 0.0 %"


def test_a_line_cut_in_half_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"step": 1}\n{"st')
    assert read_metrics(tmp_path / "a.jsonl") == [{"step": 1}]


def test_the_mirror_sends_what_is_reported(monkeypatch: pytest.MonkeyPatch, small: Any) -> None:
    sent: list[Any] = []

    class Run:
        summary: dict[str, Any] = {}  # noqa: RUF012 - the service's run has one, too

        def log(self, figures: dict[str, Any], step: int) -> None:
            sent.append((step, figures))

        def finish(self) -> None:
            sent.append("finished")

    service = ModuleType("wandb")
    service.init = lambda **asked: sent.append(asked["project"]) or Run()  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "wandb", service)
    told: list[Any] = []
    with mirrored(told.append, "mine", parse_train_config(small())) as report:
        report(FOUND)
        report({"quality": [{"site": "blocks.1.hook_mlp_out", "fvu": 0.2}]})
    assert told[0] is FOUND and len(told) == 2
    assert sent[0] == "mine" and sent[-1] == "finished"
    step, figures = sent[1]
    assert step == 21 and figures["L1.mlp_out/fvu"] == 0.2104 and figures["tokens"] == 1_234_567
    assert Run.summary == {
        "blocks.1.hook_mlp_out/site": "blocks.1.hook_mlp_out",
        "blocks.1.hook_mlp_out/fvu": 0.2,
    }


def test_without_the_package_the_mirror_is_refused(monkeypatch: pytest.MonkeyPatch, small: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    config = parse_train_config(small())
    with pytest.raises(ConfigError, match="wandb is not installed"), mirrored(print, "mine", config):
        pass


def test_help_loads_neither_torch_nor_the_service() -> None:
    code = (
        "import sys; from iclens.cli import app; from typer.testing import CliRunner;"
        "found = CliRunner().invoke(app, ['train', '--help']); assert '--resume' in found.output;"
        "print(*{'torch', 'wandb', 'altair', 'sae_lens'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == ""


def test_the_report_is_one_file_that_needs_no_other(run: Run, tmp_path: Path) -> None:
    write_report(run[0], tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert page.count("role=img") == 3 * 2 + 2 + 1
    assert "L1.resid_post" in page and "<script" not in page
    assert not re.search(r'(?:src|href)="', page)
