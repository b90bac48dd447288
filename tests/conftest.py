"""One thread, no network, the same examples every time."""

import copy
import os
import shutil

# Before anything imports torch or huggingface_hub, which read these once.
os.environ.update(
    OMP_NUM_THREADS="1",
    MKL_NUM_THREADS="1",
    TOKENIZERS_PARALLELISM="false",
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    WANDB_MODE="disabled",
)

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from iclens.model.load import LanguageModel

EXACT = 1e-10
"""What two ways to one number may differ by in float64, in nats. Logits around 40 are met to some 4e-14 after
six blocks, and log-odds of 14 nats, which divide that by 1 − P, to some 2e-12."""
FLOAT32 = 1e-6
"""What rounding to float32 alone may do to a number, as a share of it or of what it is a small sum of."""
InFloat64 = Callable[[LanguageModel], LanguageModel]

settings.register_profile("iclens", deadline=None, derandomize=True, database=None, max_examples=50)
settings.load_profile("iclens")

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
AXE = Path(__file__).parent / "pages" / "node_modules" / "axe-core" / "axe.min.js"
LLAMA_3 = Path(__file__).parent / "prompts" / "node_modules" / "@lenml" / "tokenizer-llama3" / "models"


def browser_tests_stay_out() -> bool:
    """Whether tests that need a browser are left out: there is none, and this is not CI, where they fail."""
    return os.environ.get("CI") != "true" and not any(map(shutil.which, BROWSERS))


def axe_tests_stay_out() -> bool:
    """Whether tests that need axe-core are left out: it was not fetched, and this is not CI."""
    return os.environ.get("CI") != "true" and not AXE.is_file()


def llama_3_is_there() -> bool:
    """Whether llama-3's tokenizer, and others with it, were fetched."""
    return (LLAMA_3 / "tokenizer.json").is_file()


def stays_out(item: pytest.Item) -> bool:
    """Whether a test is left out for what this machine lacks."""
    if {"llama_3_folder", "tokenizers_folder"} & {*getattr(item, "fixturenames", ())}:
        return not llama_3_is_there()
    if item.get_closest_marker("browser") is None:
        return False
    return browser_tests_stay_out() or ("axe" in getattr(item, "fixturenames", ()) and axe_tests_stay_out())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect the tests that stay out."""
    if left_out := [item for item in items if stays_out(item)]:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item not in left_out]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say so where everyone looks."""
    if browser_tests_stay_out():
        notice = "NOTICE: no chromium on this machine, so the browser tests were left out; CI runs them."
        terminalreporter.write_line(notice, yellow=True)
    elif axe_tests_stay_out():
        notice = "NOTICE: axe-core was not fetched (make test does, with a network), so the accessibility "
        terminalreporter.write_line(notice + "tests were left out; CI runs them.", yellow=True)
    if not llama_3_is_there():
        notice = "NOTICE: llama-3's tokenizer was not fetched (make test does, with a network), so its tests "
        terminalreporter.write_line(notice + "were left out.", yellow=True)


@pytest.fixture(scope="session")
def axe() -> str:
    """The source of axe-core, which judges a page's accessibility."""
    if not AXE.is_file():
        pytest.fail("axe-core was not fetched: make test fetches it, with a network")
    return AXE.read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def in_float64() -> InFloat64:
    """Copies a model into float64 throughout, so that what is equal by algebra is equal to `EXACT`.

    In float32 the order of sums, which a processor's kernels and the size of a batch decide, moves a logit by
    1e-6 of its size and more, and log-odds near certainty by 1 / (1 − P) as much again.
    """

    def copied(model: LanguageModel) -> LanguageModel:
        network = copy.deepcopy(model.network).double()
        for parent in list(network.modules()):
            for name, norm in list(parent.named_children()):
                if isinstance(norm, LlamaRMSNorm):  # computes in float32, whatever it is given
                    exact = torch.nn.RMSNorm(norm.weight.shape, norm.variance_epsilon, dtype=torch.float64)
                    exact.weight = norm.weight
                    setattr(parent, name, exact)
        return replace(model, network=network)

    return copied


@pytest.fixture(scope="session")
def llama_3_folder() -> Path:
    """The folder of llama-3's tokenizer."""
    return LLAMA_3


@pytest.fixture(scope="session")
def tokenizers_folder() -> Path:
    """The folder of several families' tokenizers, fetched with llama-3's."""
    return LLAMA_3.parents[1]


@pytest.fixture(scope="session")
def digit_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with a byte-level tokenizer that gives each digit a token, as Llama-2's does."""
    folder = tmp_path_factory.mktemp("digits") / "model"
    shutil.copytree(Path(__file__).parents[1] / "checkpoints" / "icl-tiny", folder)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend = Tokenizer(models.BPE({piece: i for i, piece in enumerate(["<s>", *alphabet])}, []))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    backend.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=backend, bos_token="<s>").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def random_model() -> Callable[..., LanguageModel]:
    """Makes Llamas of any shape, with random weights and another model's tokenizer."""

    def make(
        like: LanguageModel, seed: int, blocks: int, heads: int, kv_heads: int, kind: str
    ) -> LanguageModel:
        """A Llama with random weights, float32, and the tokenizer of `like`."""
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=like.network.config.vocab_size, hidden_size=heads * 8, intermediate_size=40,
            num_hidden_layers=blocks, num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=8,
            max_position_embeddings=256, initializer_range=0.15, attn_implementation=kind,
        )  # fmt: skip
        network = LlamaForCausalLM(config).eval().requires_grad_(False)
        return LanguageModel("random", network, like.tokenizer, blocks, True)

    return make
