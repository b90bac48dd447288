"""A finished demo, small, and for each page a folder of its own that holds a copy of it."""

import fcntl
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM

from iclens.builtin.model import load_recipe
from iclens.study.config import load_study_config
from iclens.study.pipeline import run_study

from ..prompts.test_render import joining_tokenizer
from .blocks import ROOT

HERE = Path(__file__).parent
LINKED = ("analysis", "docs", "Makefile")


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """`runs/` with a finished demo and `llama/`, made once for all workers."""
    base = tmp_path_factory.getbasetemp()
    folder = (base if worker_id == "master" else base.parent) / "documented"
    folder.mkdir(exist_ok=True)
    with (folder / "lock").open("w") as lock, pytest.MonkeyPatch.context() as patched:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            patched.chdir(ROOT)
            run_study(load_study_config(HERE / "demo.yaml"), folder / "runs", lambda event: None)
            tiny_llama(folder / "llama")
            (folder / "recipe.yaml").write_text(yaml.safe_dump(short_recipe()), encoding="utf-8")
            (folder / "made").touch()
    return folder


def tiny_llama(folder: Path) -> None:
    """Write a Llama of 12 narrow blocks, random, and a byte-level tokenizer that splits as Llama-3's."""
    tokenizer = joining_tokenizer()
    tokenizer.add_tokens(["}\n"])  # of the third template
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=12, bos_token_id=0,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=256, initializer_range=0.15,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    text = folder.parent / "text.jsonl"
    text.write_text("".join(json.dumps({"text": f"line {n} of some text"}) + "\n" for n in range(4000)))


def short_recipe() -> dict[str, Any]:
    """The built-in model's recipe for a hundred small steps."""
    recipe = load_recipe().model_dump(mode="json")
    recipe["shape"] |= {"d_model": 32, "d_mlp": 16, "n_heads": 2, "n_key_value_heads": 1}
    return recipe | {"contexts_per_step": 4, "examples": 2, "trunk": {"blocks": 1, "tokens": 100 * 4 * 14}}


@pytest.fixture
def page_folder(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Makes the current folder one as a reader has it: the checkout's, with a finished demo in `runs/`."""

    def make(file: Callable[[str], str]) -> Path:
        """`file` rewrites the shipped configurations."""
        shutil.copytree(shared / "runs", tmp_path / "runs")
        for name in LINKED:
            (tmp_path / name).symlink_to(ROOT / name)
        (tmp_path / "checkpoints").mkdir()
        for path in (ROOT / "checkpoints").iterdir():
            (tmp_path / "checkpoints" / path.name).symlink_to(path)
        (tmp_path / "sae_configs").mkdir()
        for path in (ROOT / "sae_configs").glob("*.yaml"):
            (tmp_path / "sae_configs" / path.name).write_text(file(path.read_text(encoding="utf-8")))
        monkeypatch.chdir(tmp_path)
        return tmp_path

    return make
