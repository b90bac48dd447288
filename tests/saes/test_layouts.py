"""Every layout: the active sets and activations of its own library, and every refusal in one line."""

import json
import math
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import (
    BatchTopKTrainingSAE,
    BatchTopKTrainingSAEConfig,
    JumpReLUSAE,
    JumpReLUSAEConfig,
    MatryoshkaBatchTopKTrainingSAE,
    MatryoshkaBatchTopKTrainingSAEConfig,
)
from sae_lens.loading import pretrained_sae_loaders
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file, save_file
from torch import Tensor

from iclens.core import SaeError, Site
from iclens.saes.layouts import UNFOLDED
from iclens.saes.load import Sae, convert, load_sae
from iclens.saes.parts import named_site

from . import layouts
from .layouts import (
    D_IN,
    D_SAE,
    HOOK,
    LAYOUTS,
    LENGTH,
    SITE,
    K,
    Raw,
    llamascopium,
    refused,
    rows,
    write,
    write_scopium,
)

FIXTURES = Path(__file__).parent / "fixtures"

SPARSIFY, LEARNT = FIXTURES / "sparsify", FIXTURES / "dictionary_learning"


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
    assert (sae.site, sae.l0, sae.model, sae.k) == (SITE, K, "meta-llama/Llama-3.1-8B", None)


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
        JumpReLUSAEConfig(d_in=D_IN, d_sae=D_SAE, apply_b_dec_to_input=config["apply_b_dec_to_input"])
    )
    theirs.load_state_dict(state)
    s, x = math.sqrt(8) / 4.5, torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
    theirs.fold_activation_norm_scaling_factor(s)
    with torch.no_grad():
        agrees(load_sae(folder), x, theirs.encode(x) / s, theirs(x))


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
    refused(lambda: load_sae(folder), "holds more than tensors")
    assert not (tmp_path / "exploded").exists()


def copied(folder: Path, to: Path) -> Path:
    return Path(shutil.copytree(folder, to / folder.name))


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
    refused(lambda: load_sae(folder), word)


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
    refused(lambda: load_sae(write_scope(tmp_path / "scope", **change)), word)


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
    refused(lambda: load_sae(folder), word)


SPARSIFY, LEARNT = FIXTURES / "sparsify", FIXTURES / "dictionary_learning"


def native(folder: Path, config: dict[str, Any], weights: Raw) -> Path:
    return write(folder, "sae_lens standard", config, weights)


def changed_dictionary(folder: Path, name: str, change: Callable[[Raw, dict[str, Any]], object]) -> Path:
    """A fixture of dictionary_learning, its tensors and its trainer's config changed."""
    shutil.copytree(LEARNT / name, folder)
    tensors = torch.load(folder / "ae.pt", weights_only=True)
    config = json.loads((folder / "config.json").read_text())
    change(tensors, config["trainer"])
    torch.save(tensors, folder / "ae.pt")
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def dead_standard(folder: Path, _: Write) -> Path:
    return changed_dictionary(folder, "standard", lambda tensors, _: tensors["decoder.weight"][:, 5].zero_())


def dead_scope(folder: Path, write_scope: Write) -> Path:
    write_scope(folder, torch.float32)
    file = folder / "checkpoints" / "final.safetensors"
    tensors = load_file(file)
    tensors["decoder.weight"][:, 5] = 0
    save_file(tensors, file)
    return folder


def dead_rescaled(folder: Path, _: Write) -> Path:
    config, weights = layouts.native("topk")
    weights["W_dec"][5] = 0
    return native(folder, config | {"rescale_acts_by_decoder_norm": True}, weights)


def dead_llamascopium(folder: Path, _: Write) -> Path:
    config, weights = llamascopium("topk")
    weights["W_D"][5] = 0
    return write_scopium(folder, config, weights)


@pytest.mark.parametrize("make", [dead_standard, dead_scope, dead_rescaled, dead_llamascopium])
def test_a_decoder_row_of_zeros_stays_zero_and_its_latent_dead(
    tmp_path: Path, write_scope: Write, make: Callable[[Path, Write], Path]
) -> None:
    sae = load_sae(make(tmp_path / "sae", write_scope), site=SITE)
    x = 100 * rows()
    latents = sae.encode(x)
    assert all(value.isfinite().all() for value in (sae.W_dec, latents, sae.reconstruct(x, latents)))
    assert not sae.W_dec[5].any() and not latents[:, 5].any()
    assert (latents.sum(dim=0) > 0).sum() > sae.d_sae // 2


def older(config: dict[str, Any]) -> dict[str, Any]:
    """The same as written before 6.0: flat, without a version."""
    flat = {
        key: value for key, value in config.items() if key not in ("metadata", "architecture", "k", "dtype")
    }
    return flat | {"hook_point": HOOK, "model_name": "gpt2", "prepend_bos": True}


def unversioned(config: dict[str, Any]) -> dict[str, Any]:
    """The same as by hand: nested, but without a version or a dtype."""
    metadata = {"hook_name": HOOK, "model_name": "gpt2"}
    return {key: value for key, value in config.items() if key != "dtype"} | {"metadata": metadata}


@pytest.mark.parametrize("written", [older, unversioned])
@pytest.mark.parametrize("architecture", ["standard", "topk"])
def test_a_config_without_a_version_is_read_whole(
    tmp_path: Path, architecture: str, written: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    config, weights = layouts.native(architecture)
    changed = written(config)
    if written is older and architecture == "topk":
        changed |= {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": K}}
    new = load_sae(native(tmp_path / "new", config, weights))
    old = load_sae(native(tmp_path / "old", changed, weights))
    assert (old.site, old.model, old.k, old.l0) == (SITE, "gpt2", new.k, new.l0)
    assert torch.equal(old.encode(rows()), new.encode(rows()))


@pytest.mark.parametrize(
    "stated",
    [
        {"activation_fn_str": "tanh-relu"}, {"activation_fn": "tanh-relu", "activation_fn_kwargs": {}},
        {"activation_fn": "gelu"}, {"activation_fn_str": "topk"},
        {"activation_fn_str": "relu", "activation_fn_kwargs": {"alpha": 0.1}},
    ],
)  # fmt: skip
@pytest.mark.parametrize("nested", [False, True])
def test_an_activation_that_is_not_computed_is_refused_by_name(
    tmp_path: Path, stated: dict[str, Any], nested: bool
) -> None:
    config, weights = layouts.native()
    config = config | ({"metadata": config["metadata"] | stated} if nested else stated)
    words = ("k is None",) if "topk" in stated.values() else (str(next(iter(stated.values()))),)
    words = ("alpha",) if stated.get("activation_fn_kwargs") else words
    refused(lambda: load_sae(native(tmp_path / "sae", config, weights)), "cfg.json", *words)


def test_two_places_that_disagree_are_refused(tmp_path: Path) -> None:
    config, weights = layouts.native("topk")
    kwargs = {"activation_fn": "topk", "activation_fn_kwargs": {"k": K + 1}}
    refused(lambda: load_sae(native(tmp_path / "k", config | kwargs, weights)), "k is 4", "says 5")
    hook = {"hook_name": "blocks.3.hook_resid_post"}
    refused(
        lambda: load_sae(native(tmp_path / "hook", config | hook, weights)), "hook_name", "blocks.3", HOOK
    )
    (tmp_path / "k" / "cfg.json").write_text('{"d_in": 8, "k": 4, "k": 5}')
    refused(lambda: load_sae(tmp_path / "k"), "'k' stands twice in cfg.json")


@pytest.mark.parametrize("architecture", ["temporal", "matching_pursuit", "ReLU", None, 3, ["topk"]])
def test_an_unknown_architecture_is_refused_with_those_that_are_known(
    tmp_path: Path, architecture: Any
) -> None:
    config, weights = layouts.native()
    folder = native(tmp_path / "sae", config | {"architecture": architecture}, weights)
    if architecture is None:
        assert load_sae(folder).network.cfg.architecture() == "standard"
    else:
        refused(lambda: load_sae(folder), "architecture", "jumprelu", "batchtopk", "topk")


def test_a_finetuned_decoder_is_scaled_as_sae_lens_5_did(tmp_path: Path) -> None:
    config, weights = layouts.native()
    factors = torch.linspace(0.5, 2, D_SAE)
    folder = native(
        tmp_path / "sae", config | {"finetuning_scaling_factor": True}, weights | {"scaling_factor": factors}
    )
    sae, x = load_sae(folder), rows()
    acts = ((x - weights["b_dec"]) @ weights["W_enc"] + weights["b_enc"]).relu()
    torch.testing.assert_close(sae.encode(x), acts)
    torch.testing.assert_close(sae.decode(acts), (acts * factors) @ weights["W_dec"] + weights["b_dec"])
    unstated = native(tmp_path / "unstated", config, weights | {"scaling_factor": factors})
    refused(lambda: load_sae(unstated), "finetuning_scaling_factor")
    ones = native(tmp_path / "ones", config, weights | {"scaling_factor": torch.ones(D_SAE)})
    assert torch.equal(load_sae(ones).W_dec, weights["W_dec"])


def batch_top_k(threshold: float, matryoshka: bool = False, **options: Any) -> Any:
    metadata = SAEMetadata(hook_name=HOOK, model_name="gpt2")
    kind: Any = BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig
    if matryoshka:
        kind = MatryoshkaBatchTopKTrainingSAE, MatryoshkaBatchTopKTrainingSAEConfig
        options["matryoshka_widths"] = [8, 24]
    network_class, config_class = kind
    network = network_class(config_class(d_in=D_IN, d_sae=D_SAE, k=K, metadata=metadata, **options))
    with torch.no_grad():
        for name, value in layouts.native()[1].items():
            getattr(network, name).copy_(value)
        network.topk_threshold.fill_(threshold)
    return network


@pytest.mark.parametrize("matryoshka", [False, True])
@pytest.mark.parametrize("rescaled", [False, True])
def test_a_batchtopk_checkpoint_is_its_final_folder(tmp_path: Path, matryoshka: bool, rescaled: bool) -> None:
    network = batch_top_k(2.5, matryoshka, rescale_acts_by_decoder_norm=rescaled)
    network.save_model(tmp_path / "checkpoint")
    network.save_inference_model(tmp_path / "final")
    checkpoint, final = load_sae(tmp_path / "checkpoint"), load_sae(tmp_path / "final")
    acts = checkpoint.encode(rows())
    torch.testing.assert_close(acts, final.encode(rows()))
    torch.testing.assert_close(checkpoint.decode(acts), final.decode(acts))
    assert 0 < (acts > 0).float().mean() < 0.5
    assert checkpoint.l0 == final.l0 == K and checkpoint.k is final.k is None


def unlearnt_learnt(name: str, threshold: float) -> Callable[[Path], object]:
    return lambda folder: changed_dictionary(
        folder, name, lambda tensors, _: tensors["threshold"].fill_(threshold)
    )


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: batch_top_k(0.0).save_inference_model(folder),
        lambda folder: batch_top_k(0.0).save_model(folder),
        lambda folder: batch_top_k(0.0, matryoshka=True).save_inference_model(folder),
        unlearnt_learnt("batchtopk", -1.0),
        unlearnt_learnt("batchtopk", 0.0), unlearnt_learnt("matryoshka", -1.0),
    ],
)  # fmt: skip
def test_a_batchtopk_sae_that_learnt_no_threshold_is_refused(
    tmp_path: Path, make: Callable[[Path], object]
) -> None:
    make(tmp_path / "sae")
    refused(lambda: load_sae(tmp_path / "sae"), "threshold is", "ended before it learnt one", "(k 4)")


def wrapped(network: Any, s: float, x: Tensor) -> tuple[Tensor, Tensor]:
    """What an SAE that was trained on s·x computes of x, by sae_lens itself."""
    with torch.no_grad():
        acts = network.encode(s * x)
        return acts, network.decode(acts) / s


@pytest.mark.parametrize("architecture", ["standard", "topk", "jumprelu", "gated"])
@pytest.mark.parametrize("subtracted", [True, False])
@pytest.mark.parametrize("given", ["beside it", "to the command"])
def test_an_input_scale_is_written_into_the_weights(
    tmp_path: Path, architecture: str, subtracted: bool, given: str
) -> None:
    s, x = 0.37, 10 * rows()
    config, weights = layouts.native(architecture)
    config |= {"apply_b_dec_to_input": subtracted}
    reference = load_sae(native(tmp_path / "reference", config, weights)).network
    folder = native(tmp_path / "sae", config | {"normalize_activations": "expected_average_only_in"}, weights)
    refused(lambda: load_sae(folder), "expected_average_only_in", "iclens saes convert", "--input-scale")
    refused(lambda: convert(folder, tmp_path / "no"), "activation_scaler.json", "--input-scale")
    if given == "beside it":
        (folder / "activation_scaler.json").write_text(
            json.dumps({"scaling_factor": s, "has_whitening": False})
        )
        folded = load_sae(convert(folder, tmp_path / "out"))
    else:
        folded = load_sae(convert(folder, tmp_path / "out", input_scale=s))
    acts, x_hat = wrapped(reference, s, x)
    torch.testing.assert_close(folded.encode(x), acts, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(folded.reconstruct(x, acts), x_hat, rtol=1e-4, atol=1e-4)
    assert folded.normalisation == "none" and (acts > 0).any()


def test_an_input_scale_must_be_wanted_and_possible(tmp_path: Path) -> None:
    config, weights = layouts.native()
    folder = native(tmp_path / "plain", config, weights)
    refused(lambda: load_sae(folder, input_scale=2.0), "needs no input scale")
    scaled = native(tmp_path / "scaled", config | {"normalize_activations": True}, weights)
    refused(lambda: load_sae(scaled, input_scale=0.0), "input_scale is 0.0")
    refused(lambda: load_sae(scaled, input_scale=math.nan), "input_scale is nan")
    for text in ('{"scaling_factor": null}', '{"scaling_factor": "2"}', '{"scaling_factor": -1}', "[]"):
        (scaled / "activation_scaler.json").write_text(text)
        refused(lambda: load_sae(scaled), "activation_scaler.json")
    whitened = native(tmp_path / "white", config | {"normalize_activations": "covariance_whitening"}, weights)
    refused(lambda: load_sae(whitened), "covariance_whitening", "final folder")


def inferred(config: dict[str, Any], weights: Raw, x: Tensor) -> tuple[Tensor, Tensor]:
    """Its own steps: scale, encode with decoder norms, decode, undo the scale; latents of unit rows."""
    mean = weights[LENGTH]
    s = {
        "dataset-wise": torch.full((len(x), 1), math.sqrt(D_IN) / float(mean)),
        "inference": torch.ones(len(x), 1), "token-wise": math.sqrt(D_IN) / x.norm(dim=1, keepdim=True),
    }[config["norm_activation"]]  # fmt: skip
    v = weights["W_D"].norm(dim=1) if config["sparsity_include_decoder_norm"] else torch.ones(D_SAE)
    z = (s * x @ weights["W_E"] + weights["b_E"]) * v
    if config["act_fn"] == "jumprelu":
        acts = z * (z > weights["activation_function.log_jumprelu_threshold"].exp())
    elif config["act_fn"] == "topk":
        best = z.relu().topk(config["top_k"], dim=1)
        acts = torch.zeros_like(z).scatter(1, best.indices, best.values)
    else:
        acts = z.relu()
    return acts, ((acts / v) @ weights["W_D"] + weights.get("b_D", 0)) / s


@pytest.mark.parametrize("act_fn", ["jumprelu", "topk", "relu"])
@pytest.mark.parametrize("norm", ["dataset-wise", "inference", "token-wise"])
@pytest.mark.parametrize("included", [True, False])
def test_llamascopium_is_read_as_it_infers(tmp_path: Path, act_fn: str, norm: str, included: bool) -> None:
    config, weights = llamascopium(act_fn, norm_activation=norm, sparsity_include_decoder_norm=included)
    folder = write_scopium(tmp_path / "sae", config, weights)
    sae, x = load_sae(folder), 3 * rows()
    acts, x_hat = inferred(config, weights, x)
    latents = sae.encode(x)
    assert torch.equal(latents > 0, acts > 0) and 0 < (acts > 0).float().mean() < 1
    torch.testing.assert_close(sae.reconstruct(x, latents), x_hat, rtol=1e-4, atol=1e-4)
    s = math.sqrt(D_IN) / 7 if norm == "dataset-wise" else 1.0
    torch.testing.assert_close(latents, acts / s, rtol=1e-4, atol=1e-4)
    assert (sae.layout, sae.site, sae.mean_length) == (
        "llamascopium",
        SITE,
        7.0 if norm == "dataset-wise" else None,
    )
    again = load_sae(convert(folder, tmp_path / "out"))
    assert again.mean_length == sae.mean_length and torch.equal(again.encode(x), latents)


@pytest.mark.parametrize(
    "file", ["sae_weights.pt", "checkpoints/final.safetensors", "checkpoints/pruned.safetensors"]
)
def test_llamascopium_weights_stand_in_several_places(tmp_path: Path, file: str) -> None:
    config, weights = llamascopium(use_decoder_bias=False)
    del weights["b_D"]
    sae = load_sae(write_scopium(tmp_path / "sae", config, weights, file))
    acts, x_hat = inferred(config, weights, rows())
    torch.testing.assert_close(sae.reconstruct(rows(), sae.encode(rows())), x_hat, rtol=1e-4, atol=1e-4)
    assert (acts > 0).any()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sae_type": "lorsa"}, ("sae_type is 'lorsa'",)), ({"expansion_factor": "3"}, ("'3'",)),
        ({"act_fn": "batchtopk"}, ("act_fn is 'batchtopk'", "jumprelu")),
        ({"norm_activation": "batch-wise"}, ("batch-wise",)),
        ({"use_glu_encoder": True}, ("use_glu_encoder",)),
        ({"hook_point_out": "blocks.2.hook_mlp_out"}, ("hook_point_out",)),
        ({"act_fn": "gelu"}, ("gelu",)), ({"top_k": True, "act_fn": "topk"}, ("top_k is True",)),
    ],
)  # fmt: skip
def test_llamascopium_configs_that_mean_something_else(
    tmp_path: Path, change: dict[str, Any], words: tuple[str, ...]
) -> None:
    config, weights = llamascopium(change.get("act_fn", "jumprelu"))
    refused(
        lambda: load_sae(write_scopium(tmp_path / "sae", config | change, weights)), "config.json", *words
    )


@pytest.mark.parametrize("value", [0.0, -3.0, math.nan, math.inf])
def test_a_mean_length_that_is_none_is_refused(tmp_path: Path, write_scope: Write, value: float) -> None:
    config, weights = llamascopium()
    name = LENGTH
    weights[name] = torch.tensor(value)
    refused(
        lambda: load_sae(write_scopium(tmp_path / "sae", config, weights)), name, "sae_weights.safetensors"
    )
    del weights[name]
    refused(lambda: load_sae(write_scopium(tmp_path / "none", config, weights)), name, "dataset-wise")


@pytest.mark.parametrize("stored", [HOOK, "blocks.2.hook_out", "model.layers.2", "L2.resid_post"])
@pytest.mark.parametrize("stated", [HOOK, "blocks.2.hook_out", None])
def test_a_mean_length_stands_under_any_spelling_of_its_site(
    tmp_path: Path, stored: str, stated: str | None
) -> None:
    config, weights = llamascopium()
    reference = load_sae(write_scopium(tmp_path / "reference", config, weights))
    name = LENGTH.replace(HOOK, stored)
    weights[name] = weights.pop(LENGTH)
    hooks = {"hook_point_in": stated, "hook_point_out": stated}
    sae = load_sae(write_scopium(tmp_path / "sae", config | hooks, weights))
    assert (sae.site, sae.mean_length) == (SITE, 7.0)
    assert torch.equal(sae.encode(rows()), reference.encode(rows()))


def test_several_mean_lengths_are_named_where_no_hook_says_which(tmp_path: Path) -> None:
    config, weights = llamascopium()
    weights[LENGTH.replace("resid_post", "mlp_out")] = torch.tensor(3.0)
    assert load_sae(write_scopium(tmp_path / "stated", config, weights)).mean_length == 7
    del config["hook_point_in"], config["hook_point_out"]
    folder = write_scopium(tmp_path / "unstated", config, weights)
    refused(lambda: load_sae(folder, site=SITE), "hook_point_in", HOOK, "blocks.2.hook_mlp_out")
    for name in [name for name in weights if "average" in name]:
        del weights[name]
    message = refused(lambda: load_sae(write_scopium(tmp_path / "none", config, weights)), "dataset-wise")
    assert ".None" not in message


@pytest.mark.parametrize("value", [1e-38, 1e-7, 1e7, 3e38])
def test_a_length_or_factor_of_no_training_is_refused_by_its_key_and_file(
    tmp_path: Path, write_scope: Write, value: float
) -> None:
    config, weights = llamascopium()
    weights[LENGTH] = torch.tensor(value)
    refused(
        lambda: load_sae(write_scopium(tmp_path / "sae", config, weights)), LENGTH, "sae_weights.safetensors"
    )
    key = "dataset_average_activation_norm"
    scope = write_scope(tmp_path / "scope", **{key: {"in": value, "out": 1.0}})
    refused(lambda: load_sae(scope), f"{key}.in is", "hyperparams.json")
    config, weights = layouts.native()
    folder = native(tmp_path / "native", config | {"normalize_activations": UNFOLDED}, weights)
    refused(lambda: load_sae(folder, input_scale=value), "input_scale is")
    (folder / "activation_scaler.json").write_text(json.dumps({"scaling_factor": value}))
    refused(lambda: load_sae(folder), "scaling_factor is", "activation_scaler.json")


def test_a_threshold_of_llamascopium_is_finite_and_may_be_one_for_all(tmp_path: Path) -> None:
    config, weights = llamascopium()
    name = "activation_function.log_jumprelu_threshold"
    weights[name] = torch.full((D_SAE,), 0.25)
    each = load_sae(write_scopium(tmp_path / "each", config, weights))
    for kind, value in (("scalar", torch.tensor(0.25)), ("row", torch.tensor([0.25]))):
        one = load_sae(write_scopium(tmp_path / kind, config, weights | {name: value}))
        assert torch.equal(one.encode(rows()), each.encode(rows()))
    weights[name][5] = 200
    folder = write_scopium(tmp_path / "large", config, weights)
    message = refused(
        lambda: load_sae(folder), name, "sae_weights.safetensors: 1 of 24, at [5]", "logarithms"
    )
    assert "diverged" not in message


def test_what_overflows_in_conversion_names_its_file_and_the_cause(tmp_path: Path) -> None:
    config, weights = llamascopium("relu")
    weights["b_E"][3] = 3e38
    weights["W_D"][3] *= 1e3
    message = refused(
        lambda: load_sae(write_scopium(tmp_path / "sae", config, weights)),
        "b_enc", "in sae_weights.safetensors: 1 of 24", "too large for float32",
    )  # fmt: skip
    assert "diverged" not in message


def test_a_threshold_of_0_is_a_relu(tmp_path: Path, write_scope: Write) -> None:
    sae, x = load_sae(write_scope(tmp_path / "zero", jump_relu_threshold=0)), rows()
    z = x @ sae.network.W_enc + sae.network.b_enc
    torch.testing.assert_close(sae.encode(x), z.relu())
    folder = write_scope(tmp_path / "below", jump_relu_threshold=-1)
    refused(lambda: load_sae(folder), "jump_relu_threshold is -1", "hyperparams.json")


def test_llama_scope_may_keep_its_lengths_among_the_weights(tmp_path: Path, write_scope: Write) -> None:
    name = "dataset_average_activation_norm"
    plain_folder = write_scope(tmp_path / "plain")
    file = Path("checkpoints") / "final.safetensors"
    for folder, lengths, config in (
        ("both", {"in": 4.5, "out": 4.5}, {}), ("alone", {"in": 4.5, "out": 4.5}, {name: None}),
        ("hook", {HOOK: 4.5}, {name: None}),
    ):  # fmt: skip
        write_scope(tmp_path / folder, **config)
        inner = {f"{name}.{key}": torch.tensor(value) for key, value in lengths.items()}
        save_file(load_file(tmp_path / folder / file) | inner, tmp_path / folder / file)
        assert torch.equal(load_sae(tmp_path / folder).encode(rows()), load_sae(plain_folder).encode(rows()))
    write_scope(tmp_path / "unnamed", **{name: None, "hook_point_in": None, "hook_point_out": None})
    shutil.copy(tmp_path / "hook" / file, tmp_path / "unnamed" / file)
    unnamed = load_sae(tmp_path / "unnamed")
    assert (unnamed.site, unnamed.mean_length) == (SITE, 4.5)
    inner = {f"{name}.in": torch.tensor(9.0)}
    save_file(load_file(plain_folder / file) | inner, plain_folder / file)
    refused(lambda: load_sae(plain_folder), name, "says 9")


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_k_may_stand_in_the_config_alone_or_in_both(tmp_path: Path, name: str) -> None:
    alone = changed_dictionary(
        tmp_path / "alone", name, lambda tensors, trainer: trainer.update(k=int(tensors.pop("k")))
    )
    expected = load_file(LEARNT / name / "expected.safetensors")
    sae = load_sae(alone, site=SITE)
    torch.testing.assert_close(sae.encode(expected["x"]), expected["acts"], rtol=1e-5, atol=1e-4)
    assert sae.l0 == K
    other = changed_dictionary(tmp_path / "other", name, lambda _, trainer: trainer.update(k=9))
    refused(lambda: load_sae(other), "k is 9 in config.json", "ae.pt says 4")
    none = changed_dictionary(
        tmp_path / "none", name, lambda tensors, trainer: (tensors.pop("k"), trainer.pop("k"))
    )
    refused(lambda: load_sae(none), "k is None in config.json")


@pytest.mark.parametrize("name", ["topk", "batchtopk", "matryoshka"])
def test_k_as_a_float_and_a_threshold_of_one_row_are_the_same_numbers(tmp_path: Path, name: str) -> None:
    def change(tensors: Raw, _: dict[str, Any]) -> None:
        tensors["k"] = tensors["k"].float()
        if name != "topk":
            tensors["threshold"] = tensors["threshold"].reshape(1)

    changed = load_sae(changed_dictionary(tmp_path / "changed", name, change), site=SITE)
    reference = load_sae(LEARNT / name, site=SITE)
    assert torch.equal(changed.encode(rows()), reference.encode(rows())) and changed.l0 == K
    half = changed_dictionary(tmp_path / "half", name, lambda raw, _: raw.update(k=torch.tensor(4.5)))
    refused(lambda: load_sae(half), "k is 4.5 in ae.pt", "whole number")


@pytest.mark.parametrize(
    ("module", "site"),
    [
        ("model.layers.2.mlp", Site(2, "mlp_in")), ("transformer.h.2", Site(2, "resid_pre")),
        ("model.layers.2.self_attn", None), ("resid_post_layer_2", None),
        ("model.layers.2.mlp.down_proj", None), ("model.layers.2.self_attn.o_proj", None),
    ],
)  # fmt: skip
def test_the_input_of_a_module_is_its_own_site(tmp_path: Path, module: str, site: Site | None) -> None:
    folder = changed_dictionary(
        tmp_path / "sae", "topk", lambda _, trainer: trainer.update(submodule_name=module)
    )
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"buffer": {"io": "in"}}))
    if site is None:
        refused(lambda: load_sae(folder), f"it reads '{module} (in)'", "--site")
    else:
        assert load_sae(folder).site == site


def test_an_expansion_factor_need_not_be_whole(tmp_path: Path) -> None:
    config, weights = layouts.sparsify()
    weights["encoder.weight"], weights["W_dec"] = weights["encoder.weight"][:20], weights["W_dec"][:20]
    weights["encoder.bias"] = weights["encoder.bias"][:20]
    folder = write(tmp_path / "layers.2", "sparsify", config | {"expansion_factor": 2.5}, weights)
    assert load_sae(folder).d_sae == 20


@pytest.mark.parametrize("name", ["standard", "topk", "gated", "jumprelu"])
def test_names_of_a_compiled_trainer_and_flat_configs(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "sae"
    shutil.copytree(LEARNT / name, folder)
    tensors = torch.load(folder / "ae.pt", weights_only=True)
    torch.save({f"_orig_mod.{key}": value for key, value in tensors.items()}, folder / "ae.pt")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config["trainer"]))
    expected = load_file(folder / "expected.safetensors")
    torch.testing.assert_close(load_sae(folder).encode(expected["x"]), expected["acts"], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module."])
@pytest.mark.parametrize("layout", ["sae_lens topk", "sparsify", "llamascopium jumprelu", "llama_scope"])
def test_prefixes_of_wrappers_are_no_part_of_a_name(tmp_path: Path, layout: str, prefix: str) -> None:
    config, weights = LAYOUTS[layout][2]
    wrapped_up = {f"{prefix}{name}": tensor for name, tensor in weights.items()}
    first, second = (
        write(tmp_path / "layers.2", layout),
        write(tmp_path / "b" / "layers.2", layout, config, wrapped_up),
    )
    assert torch.equal(load_sae(first).encode(rows()), load_sae(second).encode(rows()))
    half = {f"{prefix}{name}" if name.endswith(("W_dec", "W_D", "decoder.bias")) else name: tensor
            for name, tensor in weights.items()}  # fmt: skip
    refused(
        lambda: load_sae(write(tmp_path / "half" / "layers.2", layout, config, half)), prefix, "is missing"
    )


def loads(sae: Sae) -> bool:
    return bool(sae.encode(rows()).isfinite().all())


def test_a_mark_of_byte_order_is_no_damage(tmp_path: Path, write_sae: Write) -> None:
    folder = write_sae(hook=HOOK)
    config = (folder / "cfg.json").read_bytes()
    (folder / "cfg.json").write_bytes(b"\xef\xbb\xbf" + config.replace(b"\n", b"\r\n"))
    assert loads(load_sae(folder))
    (folder / "cfg.json").write_bytes(config.decode().encode("utf-16"))
    refused(lambda: load_sae(folder), "cfg.json is not UTF-8")


@pytest.mark.parametrize("value", ["24", True, [24], {"mean": 24}, -1, 0, 1e400])
def test_a_stated_l0_is_a_number_in_every_layout(tmp_path: Path, write_scope: Write, value: Any) -> None:
    config, weights = layouts.native()
    config["metadata"]["l0"] = value
    refused(lambda: load_sae(native(tmp_path / "native", config, weights)), "l0 is", "cfg.json")
    refused(lambda: load_sae(write_scope(tmp_path / "scope", top_k=value)), "top_k is", "hyperparams.json")
    folder = changed_dictionary(tmp_path / "learnt", "topk", lambda _, trainer: trainer.update(k=value))
    refused(lambda: load_sae(folder), "k is", "config.json")
    shutil.copytree(SPARSIFY / "layers.2", tmp_path / "layers.2")
    sparse = json.loads((tmp_path / "layers.2" / "cfg.json").read_text())
    (tmp_path / "layers.2" / "cfg.json").write_text(json.dumps(sparse | {"k": value}))
    refused(lambda: load_sae(tmp_path / "layers.2"), "k is", "cfg.json")


@pytest.mark.parametrize("normalised", ["layer_norm", "constant_norm_rescale"])
def test_a_transcoder_that_normalises_its_input_is_refused(tmp_path: Path, normalised: str) -> None:
    config, weights = layouts.native("transcoder")
    folder = native(tmp_path / "sae", config | {"normalize_activations": normalised}, weights)
    refused(lambda: load_sae(folder), "of a transcoder", normalised)


def test_negative_thresholds_are_refused_or_read_as_their_library_reads_them(tmp_path: Path) -> None:
    config, weights = layouts.native("jumprelu")
    weights["threshold"][7] = -0.25
    folder = native(tmp_path / "sae", config, weights)
    refused(lambda: load_sae(folder), "threshold of latent 7 is -0.25 in sae_weights.safetensors")
    learnt = changed_dictionary(
        tmp_path / "learnt", "jumprelu", lambda raw, _: raw["threshold"][7:].fill_(-0.25)
    )
    raw, x = torch.load(learnt / "ae.pt", weights_only=True), rows()
    z = x @ raw["W_enc"] + raw["b_enc"]
    torch.testing.assert_close(load_sae(learnt, site=SITE).encode(x), (z * (z > raw["threshold"])).relu())
