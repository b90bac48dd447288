"""Configs of real models: each is run as transformers runs it, and keys left out are what it takes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from iclens.model.load import load_model
from iclens.model.run import answer_probs, record_neurons
from iclens.model.shape import ModelShape, read_shape
from iclens.model.tail import Tail

Save = Callable[..., Path]
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64, "rope_theta": 500000.0}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "rope_theta": 10000.0}
RUN_ALIKE: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"attention_bias": True}),
    ("llama", {"mlp_bias": True}),
    ("llama", {"head_dim": 12}),
    ("mistral", {"head_dim": 12, "sliding_window": 9}),
    ("llama", {"num_key_value_heads": 1}),
    ("llama", {"num_key_value_heads": 4}),
    ("llama", {"hidden_act": "gelu"}),
    ("llama", {"hidden_act": "relu2"}),
    ("mistral", {"hidden_act": "gelu_pytorch_tanh"}),
    ("llama", {"tie_word_embeddings": True}),
    ("mistral", {"tie_word_embeddings": True, "sliding_window": 3}),
    ("llama", {"rms_norm_eps": 0.1}),
    ("llama", {"pretraining_tp": 2}),
    ("llama", {"sliding_window": 4}),
    ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 300.0}}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10000.0}}),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": YARN}),
    ("mistral", {"rope_parameters": YARN, "sliding_window": 20}),
]


@pytest.mark.parametrize(("kind", "changes"), RUN_ALIKE)
def test_logits_are_those_of_transformers(saved_model: Save, kind: str, changes: dict[str, Any]) -> None:
    folder, tokens = saved_model(kind, **changes), np.random.default_rng(3).integers(1, 1000, (2, 150))
    network: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    model, last = load_model(folder), np.array([149])
    with torch.no_grad():
        log_p = network(torch.as_tensor(tokens)).logits[:, last].log_softmax(dim=-1)
    found = answer_probs(model, tokens, last)
    wanted = log_p[:, 0][:, model.answer_space()[1]].numpy()
    np.testing.assert_allclose(found.log_prob[:, 0], wanted, rtol=1e-4, atol=1e-4)
    tail = Tail(model, tokens[0])
    np.testing.assert_allclose(tail.run(tail.resid_pre(1)[None], 1).log_prob[0], wanted[0], atol=1e-3)


@pytest.mark.parametrize("changes", [{"mlp_bias": True}, {"hidden_act": "gelu"}, {}])
def test_neurons_are_what_the_down_projection_reads(saved_model: Save, changes: dict[str, Any]) -> None:
    model, tokens = load_model(saved_model(**changes)), np.full((1, 5), 4)
    seen: list[torch.Tensor] = []
    handle = model.network.model.layers[1].mlp.down_proj.register_forward_pre_hook(
        lambda _module, args: seen.append(args[0])
    )
    found = record_neurons(model, tokens, 1, np.arange(5))
    answer_probs(model, tokens, np.array([4]))
    handle.remove()
    np.testing.assert_allclose(found, seen[-1].numpy(), rtol=1e-5, atol=1e-6)


PUBLISHED: dict[str, tuple[int, dict[str, Any]]] = {
    "gpt2": (124_439_808, {
        "model_type": "gpt2", "n_ctx": 1024, "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024,
        "vocab_size": 50257,
    }),
    "pythia-70m": (70_426_624, {
        "model_type": "gpt_neox", "hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8,
        "num_hidden_layers": 6, "max_position_embeddings": 2048, "rotary_pct": 0.25, "vocab_size": 50304,
        "tie_word_embeddings": False, "use_parallel_residual": True,
    }),
    "Mistral-7B-v0.1": (7_241_732_096, {
        "model_type": "mistral", "hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 8, "sliding_window": 4096, "vocab_size": 32000,
    }),
    "Qwen2.5-0.5B": (494_032_768, {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_attention_heads": 14,
        "num_hidden_layers": 24, "num_key_value_heads": 2, "max_window_layers": 24, "sliding_window": 32768,
        "use_sliding_window": False, "tie_word_embeddings": True, "vocab_size": 151936,
    }),
    "Qwen3-0.6B": (596_049_920, {
        "model_type": "qwen3", "hidden_size": 1024, "intermediate_size": 3072, "num_attention_heads": 16,
        "num_hidden_layers": 28, "num_key_value_heads": 8, "head_dim": 128, "sliding_window": None,
        "use_sliding_window": False, "tie_word_embeddings": True, "vocab_size": 151936,
    }),
    "gemma-2-2b": (2_614_341_888, {
        "model_type": "gemma2", "hidden_size": 2304, "intermediate_size": 9216, "num_attention_heads": 8,
        "num_hidden_layers": 26, "num_key_value_heads": 4, "head_dim": 256, "sliding_window": 4096,
        "vocab_size": 256000, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
    }),
    "gemma-3-1b": (999_885_952, {
        "model_type": "gemma3_text", "hidden_size": 1152, "intermediate_size": 6912, "num_attention_heads": 4,
        "num_hidden_layers": 26, "num_key_value_heads": 1, "head_dim": 256, "sliding_window": 512,
        "sliding_window_pattern": 6, "rope_local_base_freq": 10000, "vocab_size": 262144,
    }),
    "Phi-3-mini-4k": (3_821_079_552, {
        "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "sliding_window": 2047, "vocab_size": 32064,
    }),
    "OLMo-2-0425-1B": (1_484_916_736, {
        "model_type": "olmo2", "hidden_size": 2048, "intermediate_size": 8192, "num_attention_heads": 16,
        "num_hidden_layers": 16, "num_key_value_heads": 16, "vocab_size": 100352,
        "tie_word_embeddings": False,
    }),
}  # fmt: skip
"""Weights that a published model has, and what of its config.json decides their number."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_published_number_of_weights(name: str) -> None:
    wanted, config = PUBLISHED[name]
    shape = ModelShape.from_config(config, name)
    assert shape.parameters(shape.n_blocks, head=1) == wanted


def test_keys_that_are_left_out_are_what_transformers_takes(tmp_path: Path) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 8, "num_hidden_layers": 1, "intermediate_size": 8,
             "vocab_size": 9}  # fmt: skip
    for kind, positions in (("llama", 2048), ("mistral", 131072)):
        (tmp_path / "config.json").write_text(json.dumps(sizes | {"model_type": kind, "head_dim": None}))
        shape = read_shape(tmp_path)
        assert (shape.n_positions, shape.n_kv_heads, shape.d_head) == (positions, 8, 4)
