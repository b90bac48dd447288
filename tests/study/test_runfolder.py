import json
from pathlib import Path

import pytest

from iclens.core import RunError
from iclens.study.config import parse_study_config
from iclens.study.run import RunFolder, find_run, run_for

CONFIG = parse_study_config(
    "study: s\nmodel: {folder: m}\nsaes: {folder: f}\nprompts: {task: 2x}\n", "s.yaml"
)


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return run_for(CONFIG, tmp_path / "runs")


def write(folder: Path) -> dict[str, object]:
    (folder / "inner").mkdir()
    (folder / "inner" / "a.txt").write_text("one")
    return {"key": "k"}


def test_the_same_config_is_the_same_run_and_another_is_not(run: RunFolder, tmp_path: Path) -> None:
    assert run_for(CONFIG, tmp_path / "runs").path == run.path
    other = CONFIG.model_copy(update={"growth": CONFIG.growth.model_copy(update={"q": 0.1})})
    assert run_for(other, tmp_path / "runs").path != run.path


def test_a_stage_that_raises_leaves_nothing_and_keeps_what_was_there(run: RunFolder) -> None:
    run.write_stage("01_a", write)

    def fails(folder: Path) -> dict[str, object]:
        (folder / "half.txt").write_text("half")
        raise ValueError

    before = sorted(run.path.rglob("*"))
    with pytest.raises(ValueError):
        run.write_stage("01_a", fails)
    assert sorted(run.path.rglob("*")) == before
    assert run.record("01_a") is not None


def test_an_interrupt_leaves_nothing_half_written(run: RunFolder) -> None:
    def interrupted(folder: Path) -> dict[str, object]:
        (folder / "half.txt").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run.write_stage("01_a", interrupted)
    assert [path.name for path in run.path.iterdir()] == ["config.yaml"]
    run.discard_if_empty()
    assert not run.path.parent.parent.exists()


def test_changed_missing_and_additional_outputs_are_noticed(run: RunFolder) -> None:
    run.write_stage("01_a", write)
    file = run.path / "01_a" / "inner" / "a.txt"
    record = run.record("01_a")
    assert record is not None
    assert list(record["outputs"]) == ["inner/a.txt"]
    for spoil, mend in (
        (lambda: file.write_text("two"), lambda: file.write_text("one")),
        (lambda: file.with_name("b.txt").touch(), lambda: file.with_name("b.txt").unlink()),
        (file.unlink, lambda: file.write_text("one")),
    ):
        spoil()
        assert run.record("01_a") is None
        mend()
        assert run.record("01_a") is not None


def test_redoing_a_stage_takes_done_away(run: RunFolder) -> None:
    run.write_text("DONE", "now")
    run.write_stage("01_a", write)
    assert not run.done


def test_a_run_with_a_stage_is_not_discarded(run: RunFolder) -> None:
    run.write_stage("01_a", write)
    run.discard_if_empty()
    assert run.record("01_a") is not None


def test_a_run_whose_training_was_interrupted_is_not_discarded(run: RunFolder) -> None:
    (run.path / "trained.checkpoints").mkdir()
    run.discard_if_empty()
    assert (run.path / "trained.checkpoints").is_dir()


def test_log_lines_are_json(run: RunFolder) -> None:
    run.log(stage="a", seconds=1.5)
    run.log(stage="b", found={"x": "≤"})
    lines = [json.loads(line) for line in (run.path / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [line["stage"] for line in lines] == ["a", "b"]
    assert all("utc" in line for line in lines)


def test_finding_a_run_names_what_is_there(run: RunFolder) -> None:
    assert find_run(run.path).path == run.path
    with pytest.raises(RunError, match="only unfinished runs"):
        find_run(run.path.parent)
    with pytest.raises(RunError, match="Nearest: s"):
        find_run(run.path.parent.with_name("ss"))
    run.write_text("DONE", "now")
    assert find_run(run.path.parent).config == CONFIG
    with pytest.raises(RunError, match="no run in it"):
        find_run(run.path.parent.parent)
