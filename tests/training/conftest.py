"""A small run on the shipped model, trained once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from iclens.model.load import LanguageModel, load_model
from iclens.training.config import parse_train_config
from iclens.training.loop import train_saes

ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "checkpoints" / "icl-tiny"
Declare = Callable[..., dict[str, Any]]


def declared(**sections: dict[str, Any]) -> dict[str, Any]:
    """A declared configuration; each section given is merged into the small one."""
    base: dict[str, Any] = {
        "model": {"name": str(MODEL)},
        "data": {"kind": "mixture", "examples": 8, "prompts": [{"task": "2x+3", "weight": 0.1}]},
        "saes": {"sites": ["L1.resid_post", "L2.mlp_out"], "d_sae": 256, "k": 32},
        "training": {
            "tokens": 49_152, "batch_tokens": 1024, "buffer_tokens": 8192, "lr": 0.004,
            "dead_after_tokens": 10_000, "scaling_tokens": 4096,
        },
        "held_out": {"contexts": 32},
    }  # fmt: skip
    return base | {name: {**base.get(name, {}), **changes} for name, changes in sections.items()}


def brief(**sections: dict[str, Any]) -> dict[str, Any]:
    """A declared configuration of 16 short steps on two sites."""
    training = {
        "tokens": 8192, "batch_tokens": 512, "buffer_tokens": 2048, "forward_contexts": 8,
        "scaling_tokens": 512, "dead_after_tokens": 1024, "aux_k": 16,
    }  # fmt: skip
    base = declared(
        training=training, saes={"d_sae": 64, "k": 8}, held_out={"contexts": 4}, checkpoints={"keep": 2}
    )
    return base | {name: {**base[name], **changes} for name, changes in sections.items()}


@pytest.fixture(scope="session")
def short() -> Declare:
    """Declares a configuration of 16 short steps; each section given is merged into it."""
    return brief


@pytest.fixture(scope="session")
def small() -> Declare:
    """Declares a small configuration; each section given is merged into it."""
    return declared


@pytest.fixture(scope="session")
def model() -> LanguageModel:
    return load_model(MODEL)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, Any]]]:
    """The trained set, and what was reported on the way."""
    reports: list[dict[str, Any]] = []
    out = tmp_path_factory.mktemp("run") / "new" / "saes"
    return train_saes(parse_train_config(declared()), out, reports.append), reports
