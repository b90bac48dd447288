"""Layouts of other libraries: the same active sets and activations as theirs, and every refusal in one line.

`fixtures/` holds folders that eai-sparsify, dictionary_learning and llamascopium wrote, with what those
libraries compute from them. The formulas are written out here once more, so that the fixtures are checked as
well. OpenMOSS' current library no longer reads the layout of Llama Scope: its inference steps are written out
below, and sae_lens' loader of that layout is run beside ours.
"""

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import JumpReLUSAE, JumpReLUSAEConfig
from sae_lens.loading import pretrained_sae_loaders
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclens.core import SaeError, Site
from iclens.saes.load import Sae, load_sae
from iclens.saes.parts import named_site

FIXTURES = Path(__file__).parent / "fixtures"
SPARSIFY, LEARNT = FIXTURES / "sparsify", FIXTURES / "dictionary_learning"
SITE = Site(2, "resid_post")
Raw = dict[str, Tensor]
Write = Callable[..., Path]


def agrees(sae: Sae, x: Tensor, acts: Tensor, x_hat: Tensor) -> None:
    """Identical active sets; activations and reconstructions to 1e-5 of the largest, being sums of such."""
    found = sae.encode(x)
    assert torch.equal(found > 0, acts > 0)
    assert 0 < (acts > 0).float().mean() < 1
    torch.testing.assert_close(found, acts, rtol=0, atol=1e-5 * float(acts.abs().max()))
    torch.testing.assert_close(sae.decode(found), x_hat, rtol=0, atol=1e-5 * float(x_hat.abs().max()))


def top(z: Tensor, k: int) -> Tensor:
    best = z.topk(k, dim=1)
    return torch.zeros_like(z).scatter(1, best.indices, best.values)


# ------------------------------------------------------------------------------------------------- sparsify


@pytest.mark.parametrize(
    ("name", "site", "d_sae"), [("layers.2", SITE, 32), ("layers.3.mlp", Site(3, "mlp_out"), 24)]
)
def test_sparsify_is_read_as_sparsify_reads_it(name: str, site: Site, d_sae: int) -> None:
    expected, raw = (
        load_file(SPARSIFY / name / "expected.safetensors"),
        load_file(SPARSIFY / name / "sae.safetensors"),
    )
    sae = load_sae(SPARSIFY / name)
    agrees(sae, expected["x"], expected["acts"], expected["x_hat"])
    x = expected["x"]
    acts = top(((x - raw["b_dec"]) @ raw["encoder.weight"].T + raw["encoder.bias"]).relu(), 4)
    agrees(sae, x, acts, acts @ raw["W_dec"] + raw["b_dec"])
    assert (sae.site, sae.d_sae, sae.k, sae.l0) == (site, d_sae, 4, 4)
    assert (sae.layout, sae.model) == ("sparsify", "meta-llama/Meta-Llama-3-8B")


def test_each_sparsify_convention_is_needed() -> None:
    expected = load_file(SPARSIFY / "layers.2" / "expected.safetensors")
    sae, x = load_sae(SPARSIFY / "layers.2"), expected["x"]
    untouched = sae.encode(x + sae.network.b_dec)  # as if b_dec were not subtracted
    overlap = ((untouched > 0) & (expected["acts"] > 0)).sum() / (expected["acts"] > 0).sum()
    assert overlap < 0.9


@pytest.mark.parametrize(
    ("name", "site"),
    [
        ("layers.10", Site(10, "resid_post")), ("layers.10.mlp", Site(10, "mlp_out")),
        ("layers.0.self_attn", Site(0, "attn_out")), ("layers.7.attention", Site(7, "attn_out")),
        ("gpt_neox.layers.3.mlp", Site(3, "mlp_out")), ("model.layers.31", Site(31, "resid_post")),
        ("layer_24", Site(24, "resid_post")), ("h.5.attn", Site(5, "attn_out")),
        ("embed_tokens", Site(0, "resid_pre")), ("layers.3.mlp.act_fn", None), ("sae", None),
        ("layers.ten", None),
    ],
)  # fmt: skip
def test_hookpoints_are_sites(name: str, site: Site | None) -> None:
    assert named_site(name) == site


# ---------------------------------------------------------------------------------------------- Llama Scope


def raw_of(folder: Path) -> Raw:
    return {k: v.float() for k, v in load_file(folder / "checkpoints" / "final.safetensors").items()}


def test_llama_scope_is_read_as_openmoss_infers_with_it(tmp_path: Path, write_scope: Write) -> None:
    folder = write_scope(tmp_path / "Llama3_1-8B-Base-L2R-8x")
    raw = raw_of(folder)
    s = math.sqrt(8) / 4.5
    # 1. standardise for raw activations: biases / s, and s / s on the decoder's weight.
    E, e, D, d = (
        raw["encoder.weight"],
        raw["encoder.bias"] / s,
        raw["decoder.weight"],
        raw["decoder.bias"] / s,
    )
    # 2. unit decoder columns; 3. the released threshold.
    v = D.norm(dim=0)
    E, e, D = E * v[:, None], e * v, D / v
    x = 2 * torch.randn(40, 8, generator=torch.Generator().manual_seed(1)) + 1
    z = x @ E.T + e
    acts = z * (z > 1.25)
    sae = load_sae(folder)
    agrees(sae, x, acts, acts @ D.T + d)
    assert (sae.site, sae.l0, sae.model, sae.k) == (SITE, 8, "meta-llama/Llama-3.1-8B", None)


def test_llama_scope_agrees_with_sae_lens_where_decoder_columns_are_unit(
    tmp_path: Path, write_scope: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    # sae_lens scales the input by s: its latents are s times ours. It takes columns to be unit, as released.
    folder = write_scope(tmp_path / "scope", torch.float32)
    raw, file = raw_of(folder), folder / "checkpoints" / "final.safetensors"
    raw["decoder.weight"] /= raw["decoder.weight"].norm(dim=0)
    save_file(raw, file)
    monkeypatch.setattr(
        pretrained_sae_loaders, "hf_hub_download",
        lambda *names, filename=None, **_: str(file if filename else folder / "hyperparams.json"),
    )  # fmt: skip
    config, state, _ = pretrained_sae_loaders.llama_scope_sae_huggingface_loader(
        "fnlp", "scope", cfg_overrides={"dtype": "float32", "device": "cpu"}
    )
    theirs = JumpReLUSAE(
        JumpReLUSAEConfig(d_in=8, d_sae=32, apply_b_dec_to_input=config["apply_b_dec_to_input"])
    )
    theirs.load_state_dict(state)
    s, x = math.sqrt(8) / 4.5, torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
    theirs.fold_activation_norm_scaling_factor(s)
    with torch.no_grad():
        agrees(load_sae(folder), x, theirs.encode(x) / s, theirs(x))


# ---------------------------------------------------------------------------------------- dictionary_learning


def standard(raw: Raw, x: Tensor) -> Tensor:
    lengths = raw["decoder.weight"].norm(dim=0)
    return ((x - raw["bias"]) @ raw["encoder.weight"].T + raw["encoder.bias"]).relu() * lengths


def encoded(raw: Raw, x: Tensor) -> Tensor:
    return ((x - raw["b_dec"]) @ raw["encoder.weight"].T + raw["encoder.bias"]).relu()


def matrices(raw: Raw, x: Tensor) -> Tensor:
    return ((x - raw["b_dec"]) @ raw["W_enc"] + raw["b_enc"]).relu()


def gated(raw: Raw, x: Tensor) -> Tensor:
    z = (x - raw["decoder_bias"]) @ raw["encoder.weight"].T
    return (z + raw["gate_bias"] > 0) * (raw["r_mag"].exp() * z + raw["mag_bias"]).relu()


REFERENCE: dict[str, Callable[[Raw, Tensor], Tensor]] = {
    "standard": standard,
    "new": lambda raw, x: (x @ raw["encoder.weight"].T + raw["encoder.bias"]).relu(),
    "topk": lambda raw, x: top(encoded(raw, x), 4),
    "batchtopk": lambda raw, x: encoded(raw, x) * (encoded(raw, x) > 1.5),
    "matryoshka": lambda raw, x: matrices(raw, x) * (matrices(raw, x) > 1.5),
    "jumprelu": lambda raw, x: (
        (x @ raw["W_enc"] + raw["b_enc"]) * (x @ raw["W_enc"] + raw["b_enc"] > raw["threshold"])
    ),
    "gated": gated,
}


@pytest.mark.parametrize("name", REFERENCE)
def test_dictionary_learning_is_read_as_it_reads_itself(name: str) -> None:
    expected = load_file(LEARNT / name / "expected.safetensors")
    sae = load_sae(LEARNT / name, site=SITE)
    agrees(sae, expected["x"], expected["acts"], expected["x_hat"])
    raw = torch.load(LEARNT / name / "ae.pt", weights_only=True)
    acts = REFERENCE[name](raw, expected["x"])
    agrees(sae, expected["x"], acts, expected["x_hat"])
    assert (sae.layout, sae.model, sae.d_in, sae.d_sae) == (
        "dictionary_learning", "meta-llama/Meta-Llama-3-8B", 8, 32,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["jumprelu", "topk", "relu"])
def test_llamascopium_is_read_as_it_reads_itself(name: str) -> None:
    expected = load_file(FIXTURES / "llamascopium" / name / "expected.safetensors")
    sae = load_sae(FIXTURES / "llamascopium" / name)
    latents = sae.encode(expected["x"])
    assert torch.equal(latents > 0, expected["acts"] > 0) and 0 < (latents > 0).float().mean() < 1
    found = sae.reconstruct(expected["x"], latents)
    torch.testing.assert_close(found, expected["x_hat"], rtol=1e-5, atol=1e-5)
    assert (sae.layout, sae.site, sae.d_sae) == ("llamascopium", SITE, 32)
    assert sae.mean_length == (None if name == "relu" else 4.5)


def test_dictionary_learning_states_k_and_site() -> None:
    assert load_sae(LEARNT / "topk").site == SITE
    assert [load_sae(LEARNT / name).l0 for name in ("topk", "batchtopk", "gated")] == [4, 4, None]
    with pytest.raises(SaeError, match="names no site"):
        load_sae(LEARNT / "new")


class _Bomb:
    """A pickle that runs code when it is loaded without care."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return (Path.touch, (Path("exploded"),))  # pyright: ignore


@pytest.mark.parametrize("write", [torch.save, lambda value, file: file.write_bytes(pickle.dumps(value))])
def test_a_pickle_that_runs_code_is_refused_and_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, write: Callable[[object, Path], None]
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = copied(LEARNT / "topk", tmp_path)
    write({"encoder.weight": _Bomb()}, folder / "ae.pt")
    refused(folder, "holds more than tensors")
    assert not (tmp_path / "exploded").exists()


# -------------------------------------------------------------------------------------------------- refusals


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


def refused(folder: Path, *words: str) -> None:
    with pytest.raises(SaeError) as caught:
        load_sae(folder, site=None)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"transcode": True}, "transcode"), ({"skip_connection": True}, "skip_connection"),
        ({"activation": "groupmax"}, "groupmax"), ({"signed": True}, "signed"), ({"k": 0}, "k is 0"),
        ({"k": 33}, "k is 33"), ({"k": "4"}, "k is '4'"), ({"d_in": 9}, "9"),
        ({"expansion_factor": 3}, "24"),
        ({"num_latents": 16}, "16"), ({"num_latents": -1}, "num_latents is -1"), ({"d_in": None}, "d_in"),
    ],
)  # fmt: skip
def test_sparsify_configs_that_mean_something_else(tmp_path: Path, change: dict[str, Any], word: str) -> None:
    folder = copied(SPARSIFY / "layers.2", tmp_path)
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | change))
    refused(folder, word)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"hook_point_out": "blocks.2.hook_mlp_out"}, "transcoder"), ({"act_fn": "topk"}, "act_fn is 'topk'"),
        ({"hook_point_in": "blocks.2.attn.hook_z", "hook_point_out": "blocks.2.attn.hook_z"}, "hook_z"),
        ({"dataset_average_activation_norm": None}, "dataset_average_activation_norm"),
        ({"dataset_average_activation_norm": {"in": 0}}, "is 0"), ({"jump_relu_threshold": "x"}, "is 'x'"),
        ({"norm_activation": "token-wise"}, "token-wise"), ({"d_sae": 31}, "31"),
        ({"apply_decoder_bias_to_pre_encoder": True}, "apply_decoder_bias"),
    ],
)  # fmt: skip
def test_llama_scope_configs_that_mean_something_else(
    tmp_path: Path, write_scope: Write, change: dict[str, Any], word: str
) -> None:
    refused(write_scope(tmp_path / "scope", **change), word)


@pytest.mark.parametrize(
    ("spoil", "word"),
    [
        (lambda raw: raw.pop("b_dec"), "b_dec [8] is missing"),
        (lambda raw: raw.update(W_dec=raw["W_dec"].T.contiguous()), "W_dec is [8, 32]"),
        (lambda raw: raw.update(extra=torch.zeros(1)), "extra [1] is not known"),
        (lambda raw: raw.update(b_dec=torch.zeros(8, dtype=torch.int64)), "torch.int64"),
        (lambda raw: raw.update(b_dec=torch.full((8,), float("nan"))), "b_dec is not finite"),
    ],
)
def test_weights_that_do_not_belong(tmp_path: Path, spoil: Callable[[Raw], object], word: str) -> None:
    folder = copied(SPARSIFY / "layers.2", tmp_path)
    raw = load_file(folder / "sae.safetensors")
    spoil(raw)
    save_file(raw, folder / "sae.safetensors")
    refused(folder, word)


def test_a_folder_that_holds_no_sae_or_half_of_one(tmp_path: Path) -> None:
    refused(tmp_path, "no SAE in a known layout", "hyperparams.json")
    folder = copied(SPARSIFY / "layers.2", tmp_path)
    (folder / "cfg.json").unlink()
    refused(folder, "cfg.json is missing")
