"""Plans: parts counted by hand and against real tensors, remedies that do what they say, exit codes."""

import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open

from iclens.core import ConfigError, ModelError, SiteError, WontFitError
from iclens.model.shape import LLAMA3_8B, ModelShape, read_shape
from iclens.training.config import TrainConfig, load_train_config, parse_train_config
from iclens.training.plan import (
    CARDS,
    INTERPRETER,
    KNOBS,
    NAMES,
    Device,
    Job,
    Plan,
    cpu,
    find_device,
    plan,
    present_device,
)

Declare = Callable[..., dict[str, Any]]
ROOT = Path(__file__).resolve().parents[2]
MODEL = ROOT / "checkpoints" / "icl-tiny"
SHAPE = ModelShape(
    d_model=8, n_blocks=4, n_heads=2, n_kv_heads=1, d_head=4, d_mlp=20, n_vocab=50, tied=False
)  # fmt: skip


def declared(**sections: dict[str, Any]) -> TrainConfig:
    base: dict[str, Any] = {
        "model": {"name": "none", "load": "needed"},
        "data": {"kind": "mixture", "examples": 3},
        "saes": {"sites": ["L1.resid_post", "L2.mlp_out"], "d_sae": 64, "k": 2},
        "training": {
            "tokens": 10_000, "batch_tokens": 16, "buffer_tokens": 64, "forward_contexts": 2, "lr": 0.004,
        },
    }  # fmt: skip
    return parse_train_config(base | {name: {**base[name], **found} for name, found in sections.items()})


def part(found: Plan, words: str, phase: str = "step") -> float:
    (held,) = [p.held.get(phase, 0) for p in found.memory if words in p.name]
    return held


def card(memory: float) -> Device:
    """A card whose every byte a tensor can have."""
    return replace(CARDS["a100-40gb"], memory=int(memory), reserve=0, slack=0.0)


def test_llama_3_8b_has_its_published_number_of_weights() -> None:
    shape = ModelShape.from_config(LLAMA3_8B)
    assert shape.parameters(32, head=1) == 8_030_261_248
    assert shape.block_parameters == 218_112_000
    assert read_shape("meta-llama/Meta-Llama-3-8B") == shape


def test_arithmetic_of_a_block_by_hand() -> None:
    # q, o: 8 × 8; k, v: 8 × 4; gate, up, down: 8 × 20; 10 positions seen on average of 20, 8 wide, twice.
    assert SHAPE.block_matrices == 64 + 64 + 32 + 32 + 3 * 160
    assert SHAPE.block_flops(20) == 2 * SHAPE.block_matrices + 2 * 2 * 10 * 8


def test_embeddings_that_stay_mapped_are_counted_by_the_ids_that_occur(tmp_path: Path) -> None:
    shape = ModelShape.from_config(LLAMA3_8B)
    bfloat16 = declared(model={"dtype": "bfloat16"})
    whole, mapped = plan(bfloat16, card(80e9), shape), plan(bfloat16, cpu(), shape)
    assert part(whole, "model") - part(mapped, "model") == 2 * 4096 * (128_256 - 2048)
    np.save(tmp_path / "ids.npy", np.zeros((10, 7), dtype=np.int64))
    stored = {"kind": "tokens", "path": str(tmp_path / "ids.npy")}
    tokens = plan(parse_train_config({**bfloat16.model_dump(mode="json"), "data": stored}), cpu(), shape)
    assert part(tokens, "model") - part(mapped, "model") == 2 * 4096 * 70
    converted = plan(declared(), cpu(), shape)
    assert part(converted, "model") == 2 * part(whole, "model")


def test_memory_by_hand() -> None:
    found = plan(declared(), card(1e9), SHAPE)
    parameters = 2 * 8 * 64 + 64 + 8
    blocks = 64 + 64 + 32 + 32 + 3 * 160 + 2 * 8
    assert part(found, "model, 3 of 4 blocks") == 4 * (50 * 8 + 3 * blocks + 8)
    assert part(found, "weights of 2 SAEs") == 2 * 4 * parameters
    assert part(found, "Adam's moments, float32") == 2 * 8 * parameters
    assert part(found, "buffer") == 2 * 8 * 4 * (64 + 2 * (2 + 6 * 3 - 1))
    assert found.peak == max(sum(p.held.get(phase, 0) for p in found.memory) for phase in found.peaks)


def test_the_model_is_counted_as_its_file_holds_it(small: Declare) -> None:
    with safe_open(MODEL / "model.safetensors", "np") as file:
        sizes = {key: file.get_tensor(key).nbytes for key in file.keys()}  # noqa: SIM118 - no mapping
    whole = plan(parse_train_config(small()), card(1e12))
    assert part(whole, "model, 6 blocks, head") == sum(sizes.values())
    needed = plan(parse_train_config(small(model={"load": "needed"})), card(1e12))
    left_out = [f"model.layers.{layer}." for layer in (3, 4, 5)] + ["lm_head"]
    kept = sum(size for key, size in sizes.items() if not key.startswith(tuple(left_out)))
    assert part(needed, "model, 3 of 6 blocks") == kept


def test_precision_and_load_change_the_parts_they_should() -> None:
    base = plan(declared(), card(1e9), SHAPE)
    half = plan(declared(training={"moment_dtype": "bfloat16"}), card(1e9), SHAPE)
    assert part(half, "Adam") == part(base, "Adam") / 2 and part(half, "weights") == part(base, "weights")
    narrow = plan(declared(model={"dtype": "bfloat16"}), card(1e9), SHAPE)
    assert (
        part(narrow, "model") == part(base, "model") / 2
        and part(narrow, "buffer") == part(base, "buffer") / 2
    )
    whole = plan(declared(model={"load": "whole"}), card(1e9), SHAPE)
    block = 4 * SHAPE.block_parameters
    assert part(whole, "model") == part(base, "model") + block + 4 * 50 * 8


def test_a_card_keeps_memory_back_and_a_cpu_holds_the_interpreter() -> None:
    held = plan(declared(), card(1e9), SHAPE).peak
    assert plan(declared(), CARDS["h200"], SHAPE).peak == int(1.03 * held) + 10**9
    assert plan(declared(), cpu(), SHAPE).peak > INTERPRETER


@given(
    st.sampled_from([
        ("saes", "d_sae", 128), ("training", "batch_tokens", 32), ("training", "buffer_tokens", 256),
        ("training", "forward_contexts", 64), ("data", "examples", 40), ("model", "load", "whole"),
    ]),
    st.sampled_from(["bfloat16", "float32"]),
)  # fmt: skip
def test_more_of_anything_never_takes_less(change: tuple[str, str, Any], dtype: str) -> None:
    section, key, value = change
    less = plan(declared(model={"dtype": dtype}), card(1e9), SHAPE)
    settings = {"model": {"dtype": dtype}}
    more = plan(
        declared(**{**settings, section: {**settings.get(section, {}), key: value}}), card(1e9), SHAPE
    )
    assert all(more.peaks[phase] >= less.peaks[phase] for phase in less.peaks)
    assert sum(more.peaks.values()) > sum(less.peaks.values())


def test_scores_of_all_pairs_are_counted_where_they_stand() -> None:
    """Two contexts and two heads; scores in float32, and before and after their softmax."""
    config, capped = declared(data={"examples": 50}), replace(SHAPE, whole_scores=True)
    context, plain = Job(config, SHAPE).context, Job(config, SHAPE).forward
    beside = 4 * 2 * context * (3 + 2 + 1) * 8  # the residual, its norm and the two recorded sites
    assert Job(config, capped).forward == beside + 2 * 2 * context**2 * (4 + 4 + 4) > plain
    wide, both = (replace(shape, d_mlp=10_000) for shape in (SHAPE, capped))
    assert Job(config, both).forward == Job(config, wide).forward  # never both at a time


def test_time_is_arithmetic_over_the_assumed_rate() -> None:
    found = plan(declared(), CARDS["a100-40gb"], SHAPE)
    cost = {c.name: c.seconds(found.device) for c in found.times}
    assert cost["encoding"] == pytest.approx(2 * 2 * 8 * 64 / (0.65 * 19.5e12))
    narrow = plan(declared(training={"encode_dtype": "bfloat16"}), found.device, SHAPE)
    assert {c.name: c.seconds(found.device) for c in narrow.times}["encoding"] == cost[
        "encoding"
    ] * 19.5 / 312
    assert found.seconds == pytest.approx(10_000 * sum(cost.values()))
    larger = plan(declared(training={"batch_tokens": 32}), found.device, SHAPE)
    assert {c.name: c.seconds(found.device) for c in larger.times}["optimiser"] == cost["optimiser"] / 2


def test_dense_architectures_do_six_products_and_keep_every_latent() -> None:
    dense = declared(saes={"architecture": "standard", "k": None})
    found, sparse = (plan(config, card(1e9), SHAPE) for config in (dense, declared()))
    (cost,) = [c for c in found.times if c.name == "dense steps"]
    assert cost.flops == 2 * 6 * 2 * 8 * 64
    assert part(found, "activations") > part(sparse, "activations")


# -------------------------------------------------------------------------------------- remedies


BIG = {"saes": {"d_sae": 65_536, "k": 32}, "training": {"batch_tokens": 4096, "buffer_tokens": 131_072}}


def test_a_run_that_fits_needs_no_remedy() -> None:
    found = plan(declared(**BIG), card(1e12), SHAPE)
    assert found.fits and found.remedies == () and "fits:" in found.as_text()
    found.refuse_unfit("x.yaml")


@pytest.mark.parametrize("share", [0.95, 0.8, 0.5, 0.3, 0.1])
def test_remedies_lower_the_peak_step_by_step_until_it_fits(share: float) -> None:
    config = declared(**BIG)
    peak = plan(config, card(1e12), SHAPE).peak
    found = plan(config, card(share * peak), SHAPE)
    peaks = [peak, *(remedy.peak for remedy in found.remedies)]
    assert not found.fits and all(after < 0.99 * before for before, after in pairwise(peaks))
    assert peaks[-1] <= share * peak < peaks[-2]
    with pytest.raises(WontFitError) as caught:
        found.refuse_unfit("x.yaml")
    message = str(caught.value)
    assert "\n" not in message and found.remedies[0].change in message and caught.value.exit_code == 3


def test_a_remedy_does_what_it_says() -> None:
    config = declared(**BIG, model={"load": "needed", "dtype": "bfloat16"})
    peak = plan(config, card(1e12), SHAPE).peak
    (remedy,) = plan(config, card(0.9 * peak), SHAPE).remedies
    key, value = remedy.change.split(": ")
    section, name = key.split(".")
    settings: dict[str, Any] = {**BIG, "model": {"load": "needed", "dtype": "bfloat16"}}
    settings[section] = {**settings[section], name: int(value)}
    assert plan(declared(**settings), card(1e12), SHAPE).peak == remedy.peak
    with pytest.raises(WontFitError, match="Even this is not enough"):
        plan(declared(), card(1), SHAPE).refuse_unfit("x.yaml")


def test_every_change_yields_valid_configurations() -> None:
    config = declared(**BIG, model={"load": "whole"})
    for change in KNOBS:
        for words, changed in change(config):
            assert words and changed != config
            TrainConfig.model_validate(changed.model_dump())


# ------------------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"model_type": "llama", "hidden_size": 8}, "num_attention_heads is None"),
        ({"model_type": "mistral", "hidden_size": "8"}, "hidden_size is '8'"),
        ({"hidden_size": 8}, "its architecture is 'None'"),
        ([1], "no mapping"),
        ("{", "it is not JSON"),
    ],
)
def test_a_config_that_is_no_llamas_is_one_line(tmp_path: Path, config: Any, words: str) -> None:
    text = config if isinstance(config, str) else json.dumps(config)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelError, match=words) as caught:
        read_shape(tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["no/such/folder", "/nowhere", "./x/y", "plain"])
def test_a_model_that_is_not_there_is_one_line(name: str) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        read_shape(name)


def test_a_hub_name_out_of_reach_is_one_line() -> None:
    with pytest.raises(ModelError, match=r"config\.json of 'no-such/model'") as caught:
        read_shape("no-such/model")
    assert "\n" not in str(caught.value)


def test_a_site_beyond_the_model_is_refused() -> None:
    with pytest.raises(SiteError, match="blocks 0 to 3"):
        plan(declared(saes={"sites": ["L4.mlp_out"]}), card(1e9), SHAPE)


def test_stored_tokens_give_their_own_length(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", np.zeros((3, 37), dtype=np.int32))
    np.save(tmp_path / "flat.npy", np.zeros(37, dtype=np.int32))

    def job(**data: Any) -> Job:
        config = declared()
        found = parse_train_config({
            **config.model_dump(mode="json", exclude={"data", "saes"}), "data": {"kind": "tokens", **data},
            "saes": {"sites": ["L1.mlp_out"], "d_sae": 64, "k": 2},
        })  # fmt: skip
        return Job(found, SHAPE)

    assert job(path=str(tmp_path / "a.npy")).context == 37
    assert job(path=str(tmp_path / "flat.npy"), context_tokens=16).context == 16
    for name, words in (("flat.npy", "they are flat"), ("none.npy", "no such file")):
        with pytest.raises(ConfigError, match=words):
            job(path=str(tmp_path / name))


# -------------------------------------------------------------------------------------- command


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    code = (
        "import sys; from iclens.cli import main; sys.argv = ['iclens', *sys.argv[1:]]\n"
        "try:\n    main()\n"
        "finally:\n    heavy = {'torch', 'transformers', 'sae_lens'} & set(sys.modules)\n"
        "    print(*heavy, file=sys.stderr, end='!')"
    )
    command = [sys.executable, "-c", code, "plan", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_command_plans_from_config_json_alone_and_exits_by_the_verdict(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(json.dumps(LLAMA3_8B))
    path = tmp_path / "run.yaml"
    text = f"model: {{name: {model}, load: needed, dtype: bfloat16, device: cuda}}\ndata: {{kind: mixture}}\n"
    path.write_text(
        f"{text}saes: {{sites: [L14.mlp_out], d_sae: 131072, k: 64}}\ntraining: {{tokens: 1000, lr: 1e-4}}\n"
    )
    fits = run(str(path), "--device", "a100-40gb", "--json")
    assert fits.returncode == 0 and fits.stderr == "!"
    found = json.loads(fits.stdout)
    assert found["fits"] and found["peak"] == max(found["peaks"].values()) and found["remedies"] == []
    path.write_text(
        f"{text}saes: {{sites: [L14.mlp_out, L15.mlp_out, L16.mlp_out], d_sae: 131072, k: 64}}\n"
        "training: {tokens: 1000, lr: 1e-4}\n"
    )
    too_large = run(str(path), "--device", "a100-40gb")
    assert too_large.returncode == 3 and "memory, GB" in too_large.stdout
    assert too_large.stderr.startswith("iclens: config") and too_large.stderr.count("\n") == 1
    assert "SAEs at a time" in too_large.stderr
    unknown = run(str(path), "--device", "a1000")
    assert unknown.returncode == 2 and unknown.stdout == "" and "a100-40gb" in unknown.stderr


def test_the_text_adds_up(small: Declare) -> None:
    found = plan(parse_train_config(small()), CARDS["a100-80gb"])
    lines = found.as_text().splitlines()
    (total,) = [line for line in lines if line.startswith("total") and "tokens/s" not in line]
    assert [float(cell) for cell in total.split()[1:]] == pytest.approx(
        [peak / 1e9 for peak in found.peaks.values()], abs=0.005
    )
    assert all(len(line) <= 110 for line in lines[:-1])


# ---------------------------------------------------------------------------------------- devices


def test_named_devices_have_the_data_sheets_figures() -> None:
    assert NAMES == ("a100-40gb", "a100-80gb", "h100-80gb", "h200", "cpu")
    card = CARDS["a100-40gb"]
    assert (card.memory, card.bf16_flops, card.fp32_flops, card.bandwidth) == (
        40e9,
        312e12,
        19.5e12,
        1.555e12,
    )
    assert CARDS["h200"].memory == 141e9 and CARDS["h200"].bandwidth == 4.8e12
    assert card.matrix_rate("bfloat16") == 0.65 * 312e12 and card.matrix_rate("float32") == 0.65 * 19.5e12


def test_a_device_is_found_by_name_or_by_what_the_configuration_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find_device("h200", "cpu") is CARDS["h200"]
    assert find_device("cpu", "cuda").name == find_device(None, "cpu").name == "cpu"
    with pytest.raises(ConfigError, match=r"device 'a100': unknown\. Nearest: a100-"):
        find_device("a100")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no accelerator is here"):
        find_device(None, "cuda")


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200"),
        ("Radeon", None),
    ],
)
def test_a_card_is_recognised_and_keeps_the_memory_it_reports(
    reported: str, name: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = SimpleNamespace(name=reported, total_memory=7)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: seen)
    if name is None:
        with pytest.raises(ConfigError, match="'Radeon': its rates are not known"):
            present_device()
    else:
        assert present_device() == replace(CARDS[name], memory=7)


@pytest.mark.parametrize("threads", ["1", "1,4", " 1 , 2 ", "", "many", "0"])
def test_the_cpu_counts_the_threads_that_torch_would_use(
    threads: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    every = cpu().fp32_flops
    monkeypatch.setenv("OMP_NUM_THREADS", threads)
    assert cpu().fp32_flops == (96e9 if "1" in threads else every)
    assert cpu().reserve == 0 and 1e8 < cpu().memory < 1e14


# -------------------------------------------------------------------------------- shipped configs


def _script() -> ModuleType:
    path = ROOT / "analysis" / "benchmarks" / "shipped_plans.py"
    spec = importlib.util.spec_from_file_location("shipped_plans", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()
SHIPPED: dict[str, str] = SCRIPT.SHIPPED


def test_every_configuration_for_llama_is_listed() -> None:
    found = {path.stem for path in (ROOT / "sae_configs").glob("llama3_8b_*.yaml")}
    assert found == set(SHIPPED)
    assert sum(device == "a100-40gb" for device in SHIPPED.values()) >= 5


@pytest.mark.parametrize("name", SHIPPED)
def test_it_fits_its_card(name: str) -> None:
    config = load_train_config(ROOT / "sae_configs" / f"{name}.yaml")
    found = plan(config, CARDS[SHIPPED[name]])
    assert found.fits and found.peak < 0.95 * found.device.memory
    assert found.seconds < 24 * 3600
    assert config.data.excluded_positions == () and config.data.prompts


def test_they_cover_what_is_wanted() -> None:
    layers: dict[int, set[int]] = {}
    for name in SHIPPED:
        for spec in load_train_config(ROOT / "sae_configs" / f"{name}.yaml").saes.members:
            times = spec.d_sae // 4096
            if spec.target is None:
                layers.setdefault(times, set()).add(spec.site.layer)
            else:
                assert (spec.site.hook, spec.target.hook) == ("mlp_in", "mlp_out")
    assert layers == {4: set(range(10, 17)), 8: set(range(10, 17)), 32: {14}}


def test_the_page_says_what_the_command_says() -> None:
    page = SCRIPT.PAGE.read_text(encoding="utf-8")
    shown = page.split(SCRIPT.BEGIN)[1].split(SCRIPT.END)[0]
    assert shown.strip() == SCRIPT.pages().strip(), "run analysis/benchmarks/shipped_plans.py"
