"""Malformed inputs: each ends with exit code 2 and one line that says what is wrong, and leaves nothing."""

import json
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sae_lens import TopKSAE, TopKSAEConfig
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file

from iclens.cli import main
from iclens.study.inputs import CHECKOUT

MODEL = CHECKOUT / "checkpoints" / "icl-tiny"
FIXTURES = CHECKOUT / "tests" / "saes" / "fixtures"
WEIGHTS = "sae_weights.safetensors"
Make = Callable[[Path], object]
Case = tuple[str, Make, str]
"""A name; what makes the input in an empty folder and gives the arguments; words of the error."""


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """One process, whatever started the tests."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)


def refused(capsys: pytest.CaptureFixture[str], arguments: object, words: str) -> None:
    """Exit code 2, nothing on stdout, one line of error that holds the words."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sys, "argv", ["iclens", *map(str, arguments)])  # pyright: ignore
        with pytest.raises(SystemExit) as ended:
            main()
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line.strip()]
    assert (ended.value.code, out) == (2, "") and len(lines) == 1, err
    assert lines[0].startswith("iclens: ") and words in lines[0], lines[0]


# ------------------------------------------------------------------------------------------- SAELens folders


def native(folder: Path, hook: str = "blocks.1.hook_mlp_out", d_in: int = 128) -> Path:
    """A good SAE folder."""
    metadata = SAEMetadata(hook_name=hook)
    network = TopKSAE(TopKSAEConfig(d_in=d_in, d_sae=24, k=4, metadata=metadata))
    network.save_model(folder / "sae")
    return folder / "sae"


def converting(folder: Path, *more: object) -> list[object]:
    return ["saes", "convert", folder, "--out", folder.parent / "out", *more]


def config(**changes: object) -> Make:
    """A folder whose cfg.json says something else; None takes a key away."""

    def make(folder: Path) -> list[object]:
        place = native(folder)
        found = json.loads((place / "cfg.json").read_text()) | changes
        (place / "cfg.json").write_text(json.dumps({k: v for k, v in found.items() if v is not None}))
        return converting(place)

    return make


def weights(spoil: Callable[[dict[str, torch.Tensor]], object]) -> Make:
    """A folder whose weights were tampered with."""

    def make(folder: Path) -> list[object]:
        place = native(folder)
        found = load_file(place / WEIGHTS)
        spoil(found)
        save_file(found, place / WEIGHTS)
        return converting(place)

    return make


def content(file: str, text: bytes | None, *, share: float | None = None) -> Make:
    """A folder in which a file holds other bytes, only its first part, or is missing."""

    def make(folder: Path) -> list[object]:
        place = native(folder)
        whole = (place / file).read_bytes()
        (place / file).unlink()
        if share is not None:
            (place / file).write_bytes(whole[: int(share * len(whole))])
        elif text is not None:
            (place / file).write_bytes(text)
        return converting(place)

    return make


def checking(**options: Any) -> Callable[[Path], list[object]]:
    return lambda folder: ["saes", "check", native(folder, **options), "--model", MODEL]


NATIVE: list[Case] = [
    ("no folder", lambda folder: converting(folder / "nowhere"), "no such folder"),
    ("an empty folder", lambda folder: converting(folder), "no SAE in a known layout"),
    ("no config", content("cfg.json", None), "cfg.json is missing"),
    ("no weights", content(WEIGHTS, None), "is missing"),
    ("half a config", content("cfg.json", None, share=0.5), "cfg.json is not JSON"),
    ("a config in another encoding", content("cfg.json", b"\xff\xfe{\x00"), "cfg.json is not UTF-8"),
    ("a config that is a list", content("cfg.json", b"[1, 2]"), "not a mapping"),
    ("empty weights", content(WEIGHTS, b""), "cannot be read"),
    ("weights cut short", content(WEIGHTS, None, share=0.7), "cannot be read"),
    ("weights that are a pickle", content(WEIGHTS, pickle.dumps({"W_enc": 1})), "cannot be read"),
    ("weights that are text", content(WEIGHTS, b"<html>not found</html>"), "cannot be read"),
    ("another number of latents", config(d_sae=25), "W_enc is [128, 24]"),
    ("another width", config(d_in=64), "the config promises [64, 24]"),
    ("an unknown architecture", config(architecture="perceptron"), "perceptron"),
    ("an architecture of whole sequences", config(architecture="temporal"), "temporal"),
    ("k of zero", config(k=0), "k is 0"),
    ("k above the latents", config(k=25), "k is 25 in cfg.json. It must be a whole number from 1 to 24"),
    ("k in words", config(k="four"), "k is 'four'"),
    (
        "activations normalised by a constant",
        config(normalize_activations="expected_average_only_in"),
        "expected_average",
    ),
    ("heads apart", config(reshape_activations="hook_z"), "hook_z"),
    ("metadata that are a list", config(metadata=[1]), "metadata"),
    ("no site", config(metadata={}), "names no site"),
    ("a site that is no site", config(metadata={"hook_name": "blocks.1.attn.hook_z"}), "hook_z"),
    ("NaN", weights(lambda w: w["b_enc"].fill_(float("nan"))), "b_enc is not finite"),
    ("a missing tensor", weights(lambda w: w.pop("b_dec")), "b_dec [128] is missing"),
    ("one tensor too many", weights(lambda w: w.update(more=torch.ones(2))), "more [2] is not known"),
    (
        "a transposed decoder",
        weights(lambda w: w.update(W_dec=w["W_dec"].T.contiguous())),
        "W_dec is [128, 24]",
    ),
    ("an SAE of another width than the model", checking(d_in=64), "its width is 64, the model's is 128"),
    ("a layer that the model lacks", checking(hook="blocks.9.hook_mlp_out"), "blocks 0 to 5"),
    ("an SAE that was never trained", checking(), "FVU is"),
    ("--site that is no site", lambda folder: converting(native(folder), "--site", "L1.mlp"), "unknown"),
    (
        "--site of a whole set",
        lambda folder: ["saes", "check", f"{MODEL}-saes", "--model", MODEL, "--site", "L2.mlp_out"],
        "a set names the site of each",
    ),
    (
        "a model in an unknown dtype",
        lambda f: [*checking()(f), "--dtype", "float61"],
        "dtype 'float61': unknown",
    ),
    ("a check on an unknown device", lambda f: [*checking()(f), "--device", "abacus"], "abacus"),
    ("an unknown release", lambda folder: converting(Path("llama_scope_lxr_9x") / "l1r_8x"), "Nearest"),
    ("a model without SAEs", lambda folder: ["saes", "list", "--model", "llama-3-9b"], "none are known"),
]


# ------------------------------------------------------------------------------------------- other libraries


def learnt(spoil: Callable[[Path], object], name: str = "topk") -> Make:
    """A folder of dictionary_learning, tampered with."""

    def make(folder: Path) -> list[object]:
        place = Path(shutil.copytree(FIXTURES / "dictionary_learning" / name, folder / "sae"))
        spoil(place)
        return converting(place)

    return make


def trainer(**changes: object) -> Callable[[Path], object]:
    def spoil(place: Path) -> None:
        found = json.loads((place / "config.json").read_text())
        found["trainer"] |= changes
        (place / "config.json").write_text(json.dumps(found))

    return spoil


def cut(place: Path) -> None:
    (place / "ae.pt").write_bytes((place / "ae.pt").read_bytes()[:1500])


FOREIGN: list[Case] = [
    ("a pickled module", learnt(lambda p: torch.save(torch.nn.Linear(2, 2), p / "ae.pt")), "not unpickled"),
    ("a bare pickle", learnt(lambda p: (p / "ae.pt").write_bytes(pickle.dumps(Path))), "not unpickled"),
    (
        "a list of tensors",
        learnt(lambda p: torch.save([torch.ones(2)], p / "ae.pt")),
        "not a mapping of names to tensors",
    ),
    ("numbers", learnt(lambda p: torch.save({"k": 4}, p / "ae.pt")), "not a mapping of names to tensors"),
    ("half an ae.pt", learnt(cut), "SAE '"),
    ("an empty ae.pt", learnt(lambda p: (p / "ae.pt").write_bytes(b"")), "SAE '"),
    ("one tensor of four", learnt(lambda p: torch.save({"b_dec": torch.ones(8)}, p / "ae.pt")), "is missing"),
    ("an unknown dictionary", learnt(trainer(dict_class="CrossCoder")), "dict_class is 'CrossCoder'"),
    ("the class of another", learnt(trainer(dict_class="GatedAutoEncoder")), "is missing"),
    ("widths of another", learnt(trainer(activation_dim=16)), "the config promises"),
    ("a dictionary without a trainer", learnt(lambda p: (p / "config.json").write_text("{}")), "config.json"),
    ("a dictionary without a site", learnt(trainer(submodule_name=None)), "--site"),
]


# ------------------------------------------------------------------------------------------------- training

GOOD: dict[str, Any] = {
    "model": {"name": str(MODEL)},
    "data": {"kind": "mixture", "examples": 4},
    "saes": {"sites": ["L1.mlp_out"], "d_sae": 16, "k": 2},
    "training": {"tokens": 4096, "lr": 0.003, "batch_tokens": 256, "buffer_tokens": 1024},
    "held_out": {"contexts": 8},
}


def training(section: str, **changes: object) -> Make:
    """A training config in which a section says something else."""

    def make(folder: Path) -> list[object]:
        declared = GOOD | {section: GOOD.get(section, {}) | changes}
        (folder / "train.yaml").write_text(yaml.safe_dump(declared))
        return ["train", folder / "train.yaml", "--out", folder / "out"]

    return make


def good(folder: Path) -> Path:
    """A config that validates."""
    (folder / "train.yaml").write_text(yaml.safe_dump(GOOD))
    return folder / "train.yaml"


def text(written: bytes) -> Make:
    """A training config of these bytes."""

    def make(folder: Path) -> list[object]:
        (folder / "train.yaml").write_bytes(written)
        return ["train", folder / "train.yaml", "--out", folder / "out"]

    return make


def tokens(array: np.ndarray | bytes, **changes: object) -> Make:
    """A config that trains on this file of token ids."""

    def make(folder: Path) -> list[object]:
        file = folder / "tokens.npy"
        if isinstance(array, bytes):
            file.write_bytes(array)
        else:
            np.save(file, array, allow_pickle=True)
        declared = {"kind": "tokens", "path": str(file), "examples": 4} | changes
        (folder / "train.yaml").write_text(yaml.safe_dump(GOOD | {"data": declared}))
        return ["train", folder / "train.yaml", "--out", folder / "out"]

    return make


def model(spoil: Callable[[Path], object]) -> Make:
    """A training config on a model folder that was tampered with."""

    def make(folder: Path) -> list[object]:
        place = Path(shutil.copytree(MODEL, folder / "model"))
        spoil(place)
        return training("model", name=str(place))(folder)  # pyright: ignore

    return make


def without(name: str) -> Callable[[Path], object]:
    """Take one tensor out of a model's weights."""

    def spoil(place: Path) -> None:
        found = load_file(place / "model.safetensors")
        del found[name]
        save_file(found, place / "model.safetensors", metadata={"format": "pt"})

    return spoil


def cut_model(place: Path) -> None:
    file = place / "model.safetensors"
    file.write_bytes(file.read_bytes()[:100_000])


TRAINING: list[Case] = [
    ("no config file", lambda folder: ["train", folder / "no.yaml", "--out", folder / "out"], "no such file"),
    ("broken YAML", text(b"model: {name: [}"), "not YAML"),
    ("YAML in another encoding", text(b"\xff\xfem\x00"), "not YAML"),
    ("a YAML list", text(b"- model"), "holds no keys"),
    ("an empty YAML", text(b""), "holds no keys"),
    ("a misspelt section", training("sae", k=2), "Nearest: saes"),
    ("a misspelt key", training("training", batch_token=5), "Nearest: batch_tokens"),
    ("a negative size", training("saes", d_sae=-1), "d_sae"),
    ("a number in words", training("training", tokens="many"), "tokens"),
    ("a rate of zero", training("training", lr=0), "lr"),
    ("more of k than latents", training("saes", k=17), "17 of 16"),
    ("an unknown architecture of SAE", training("saes", architecture="topkk"), "architecture"),
    ("k where none is chosen", training("saes", sites=[{"site": "L1.mlp_out", "k": 2}], architecture="gated"),
     "does not choose it"),
    ("a transcoder to nowhere", training("saes", k=None, architecture="transcoder"), "target"),
    ("a site twice", training("saes", sites=["L1.mlp_out", "blocks.1.hook_mlp_out"]), "stands twice"),
    ("not one site", training("saes", sites=[]), "sites"),
    ("a site that is none", training("saes", sites=["L1.mlp_oot"]), "Nearest: mlp_out"),
    ("a layer too deep", training("saes", sites=["L6.mlp_out"]), "0 to 5"),
    ("an unknown kind of data", training("data", kind="audio"), "data"),
    ("an unknown task", training("data", prompts=[{"task": "2z+3", "weight": 0.1}]), "2z+3"),
    ("weights above one", training("data", prompts=[{"task": "2x+3", "weight": 1.5}]), "weight"),
    ("a buffer of one batch", training("training", buffer_tokens=256), "two batches"),
    ("the seed of training held out", training("held_out", seed=0), "held_out.seed"),
    ("an unknown dtype", training("model", dtype="float8"), "dtype"),
    ("an unknown device", training("model", device="abacus"), "abacus"),
    ("a model that is not there", training("model", name="./nowhere"), "no such folder"),
    ("text that is not there", training("data", kind="text", dataset="./no.jsonl"), "no.jsonl"),
    ("tokens that are not there", training("data", kind="tokens", path="./no.npy"), "no.npy"),
    ("tokens that are fractions", tokens(np.ones((4, 8), np.float32)), "tokens.npy"),
    ("tokens outside the vocabulary", tokens(np.full((4, 8), 10**6)), "tokens.npy"),
    ("tokens in three axes", tokens(np.ones((2, 2, 2), np.int64)), "tokens.npy"),
    ("tokens that are pickled objects", tokens(np.array([{1: 2}], dtype=object)), "tokens.npy"),
    ("tokens cut short", tokens(b"\x93NUMPY\x01\x00"), "tokens.npy"),
    ("a model cut short", model(cut_model), "model"),
    ("a model without a tensor", model(without("model.layers.1.mlp.up_proj.weight")), "missing"),
    ("a model without a config", model(lambda place: (place / "config.json").unlink()), "model"),
    ("a model with a damaged config", model(lambda p: (p / "config.json").write_text("{")), "model"),
    ("a model without a tokenizer", model(lambda p: (p / "tokenizer.json").write_text("{}")), "model"),
    ("a plan for an unknown machine",
     lambda folder: ["plan", good(folder), "--device", "tpu"], "tpu"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "words"),
    [pytest.param(make, words, id=name) for name, make, words in [*NATIVE, *FOREIGN, *TRAINING]],
)
def test_it_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, make: Make, words: str
) -> None:
    arguments = make(tmp_path)
    before = set(tmp_path.rglob("*"))
    refused(capsys, arguments, words)
    assert set(tmp_path.rglob("*")) == before


def test_there_are_enough() -> None:
    names = [name for name, _, _ in [*NATIVE, *FOREIGN, *TRAINING]]
    assert len(names) == len(set(names)) >= 40
