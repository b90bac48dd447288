"""Checkpoints: whole or not there, the newest whole one is found, older ones go only after a newer one."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from iclens.core import RunError
from iclens.training.folder import PACE, STATE, MetricsLog, TrainingFolder, write_part
from iclens.training.report import read_metrics


def parts(value: float) -> dict[str, dict[str, Tensor]]:
    return {
        "sae": {"W": torch.full((2, 3), value), "moment": torch.full((4,), value, dtype=torch.bfloat16)},
        "buffer": {"order": torch.arange(int(value), int(value) + 3), "count": torch.tensor(7)},
    }


def save(folder: TrainingFolder, tokens: int) -> Path:
    partial = folder.begin(tokens)
    files = {}
    for name, tensors in parts(tokens).items():
        files |= write_part(partial, name, tensors)
    return folder.finish(partial, files, {"step": tokens // 10, "position": [1, 2**70]}).folder


@pytest.fixture
def folder(tmp_path: Path) -> TrainingFolder:
    return TrainingFolder(tmp_path / "run", keep=2)


def test_what_was_written_comes_back_to_the_bit(folder: TrainingFolder) -> None:
    assert folder.newest() is None
    save(folder, 10)
    found = folder.newest()
    assert found is not None and found.tokens == 10
    assert found.state == {"step": 1, "position": [1, 2**70]}
    for name, tensors in parts(10).items():
        back = found.tensors(name)
        assert set(back) == set(tensors)
        assert all(back[key].dtype == x.dtype and torch.equal(back[key], x) for key, x in tensors.items())
    with pytest.raises(RunError, match="part 'other'"):
        found.tensors("other")


def test_views_of_one_large_tensor_are_written_as_they_are(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    write_part(tmp_path, "views", {"row": whole[1], "column": whole[:, 2], "transposed": whole.T})
    back = load_file(tmp_path / "views.safetensors")
    assert back["row"].tolist() == [4, 5, 6, 7] and back["column"].tolist() == [2, 6, 10]
    assert torch.equal(back["transposed"], whole.T)
    assert write_part(tmp_path, "nothing", {}) == {} and not (tmp_path / "nothing.safetensors").exists()


def test_only_the_newest_are_kept_and_nothing_else_is_there(folder: TrainingFolder) -> None:
    for tokens in (10, 20, 30):
        save(folder, tokens)
    assert sorted(p.name for p in folder.root.iterdir()) == ["000000000020", "000000000030"]


@pytest.mark.parametrize(
    ("file", "words"),
    [
        ("sae.safetensors", "another sha256"),
        (STATE, "missing or damaged"),
    ],
)
def test_a_flipped_bit_is_noticed(folder: TrainingFolder, file: str, words: str) -> None:
    path = save(folder, 10) / file
    content = bytearray(path.read_bytes())
    place = len(content) - 6 if file != STATE else content.index(b"step") + 8
    content[place] ^= 1
    path.write_bytes(bytes(content))
    with pytest.raises(RunError, match=words):
        folder.newest()


def test_a_damaged_one_is_passed_over_and_does_not_count_as_kept(folder: TrainingFolder) -> None:
    save(folder, 10)
    newest = save(folder, 20)
    os.truncate(newest / "buffer.safetensors", 10)
    found = folder.newest()
    assert found is not None and found.tokens == 10
    save(folder, 15)
    assert sorted(p.name for p in folder.root.iterdir()) == ["000000000010", "000000000015"]


def test_the_state_is_of_these_files(folder: TrainingFolder) -> None:
    path = save(folder, 10)
    (path / "sae.safetensors").unlink()
    with pytest.raises(RunError, match=r"sae.safetensors is missing.*Remove the folder"):
        folder.newest()


def test_an_end_while_writing_leaves_the_older_one_whole(
    folder: TrainingFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(folder, 10)

    def ended(path: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("iclens.training.folder.flush", ended)
    with pytest.raises(KeyboardInterrupt):
        save(folder, 20)
    monkeypatch.undo()
    found = folder.newest()
    assert found is not None and found.tokens == 10
    assert len(list(folder.root.iterdir())) == 2
    folder.tidy()
    assert [p.name for p in folder.root.iterdir()] == ["000000000010"]


def test_one_of_the_same_tokens_is_replaced(folder: TrainingFolder) -> None:
    save(folder, 10)
    path = save(folder, 10)
    assert json.loads((path / STATE).read_text())["tokens"] == 10
    assert [p.name for p in folder.root.iterdir()] == ["000000000010"]


def test_no_file_is_a_pickle(folder: TrainingFolder) -> None:
    assert {p.suffix for p in save(folder, 10).iterdir()} == {".safetensors", ".json"}


def test_lines_after_a_checkpoint_are_cut_off(tmp_path: Path) -> None:
    log = MetricsLog(tmp_path / "metrics", ("a", PACE))
    log.cut({})
    log.add("a", {"step": 1, "fvu": 0.5})
    sizes = log.sizes()
    assert sizes[PACE] == 0
    log.add("a", {"step": 2, "fvu": float("nan")})
    log.add(PACE, {"step": 2})
    assert read_metrics(log.file("a")) == [{"step": 1, "fvu": 0.5}, {"step": 2, "fvu": None}]
    log.cut(sizes)
    assert read_metrics(log.file("a")) == [{"step": 1, "fvu": 0.5}] and read_metrics(log.file(PACE)) == []
