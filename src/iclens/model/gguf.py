"""GGUF files as models: metadata checked against tensors, dequantised, written as a Hugging Face folder.

transformers reads the weights and the tokenizer. It passes over metadata and tensors that it does not know,
and takes defaults for what is not stated. So a file is refused here unless all that decides what the model
computes is stated, is read, and agrees with the tensors.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import torch
from gguf import MODEL_ARCH_NAMES, GGUFReader, get_tensor_name_map
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer
from transformers.integrations import GGUF_CONFIG_MAPPING
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.utils import logging as transformers_logging

from iclens.core import ModelError
from iclens.model.shape import ARCHITECTURES, ModelShape

Report = Callable[[str], None]
CONVERSION = 1
"""Counted up whenever the same file would be converted otherwise: folders of other numbers are not reused."""
CARD = "converted.json"
MODEL_TYPES = {"llama": "llama", "qwen2": "qwen2", "qwen3": "qwen3", "gemma3": "gemma3_text"}
"""Architectures of GGUF whose files are followed, and their `model_type`; Mistral's files are of `llama`."""
READABLE = tuple(name for name, kind in MODEL_TYPES.items() if kind in ARCHITECTURES)
NEEDED = ("context_length", "embedding_length", "block_count", "attention.head_count", "rope.freq_base")
"""Metadata that transformers takes from the defaults of one checkpoint when it is not stated."""
EPSILON = "attention.layer_norm_rms_epsilon"
HEAD_WIDTHS = ("attention.key_length", "attention.value_length", "rope.dimension_count")
GEMMA_3_HEADS = 256
"""Width of heads in Gemma 3 up to 12B. The scale of scores and the base of local rotations are in no file; of
these sizes they are transformers' defaults."""
_UNREADABLE = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, AssertionError,
    StrictDataclassError,
)  # fmt: skip
"""What gguf and transformers raise on a damaged file."""
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,), "expert_used_count": (0,), "rope.scaling.type": ("none",),
    "rope.scaling.factor": (1.0,), "attention.causal": (True,),
}  # fmt: skip
"""Metadata that is not read, and the values with which it changes nothing."""
ROPE_FACTORS = "rope_freqs.weight"
LLAMA_3 = {
    "rope_type": "llama3", "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip
"""What all Llama 3.1, 3.2 and 3.3 share of their rotation, as transformers names it."""
WHOLE_FIRST = ("llama-bpe", "tekken")
"""Splits (`tokenizer.ggml.pre`) whose pieces become one token where there is one, before any merge is tried.
Such tokenizers also put BOS before a text unless the file says otherwise."""
SPLITS = (*WHOLE_FIRST, "smollm", "qwen2", "gpt-2")
"""Ways to split a text before byte-level merges that a converted tokenizer follows."""
DIGITS_APART = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}
"""The split `smollm`, for which transformers takes GPT-2's: that one splits the spaces or newlines before a
number otherwise."""


def convert_gguf(file: str | Path, out: str | Path, *, report: Report | None = None) -> Path:
    """Write the model of a GGUF file as a Hugging Face folder `out` in float32, and return that.

    The folder holds config.json, model.safetensors, the tokenizer's files, and converted.json: the name and
    sha256 of the file, and how many of its tensors are of each type.

    Args:
        file: of an architecture that `load_model` takes.
        out: appears when it is whole.
        report: is told what is being done, a line at a time.

    Raises:
        ModelError: when the file is damaged, of another architecture, leaves out what decides its results or
            contradicts its tensors, or when `out` holds anything.
    """
    file, out = Path(file), Path(out)
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ModelError(f"output '{out}'", "it exists", "Name a new folder, or remove this one.")
    with _reading(file):
        reader = GGUFReader(file)
    config = _checked_config(file, reader)
    types = Counter(tensor.tensor_type.name for tensor in reader.tensors)
    if report is not None:
        kinds = ", ".join(f"{count} {kind}" for kind, count in types.most_common())
        report(f"{file.name}: {config.model_type}, tensors {kinds}; converting to float32")
    partial = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
        _write_tokenizer(file, reader, partial)
        _write_network(file, config, partial)
        card = {
            "gguf": file.name, "sha256": _sha256(file), "tensor_types": dict(types), "conversion": CONVERSION,
        }  # fmt: skip
        (partial / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        for path in partial.iterdir():
            path.chmod(0o644)
        partial.chmod(0o755)
        if out.is_dir():
            out.rmdir()
        return partial.rename(out)
    except (OSError, SafetensorError) as cause:
        why = getattr(cause, "strerror", None) or cause
        raise ModelError(
            f"output '{out}'", f"cannot be written ({why})", "Name a folder that can be made."
        ) from cause
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def cached_folder(file: Path) -> Path:
    """The folder that a GGUF file was converted to, made when there is none of the same bytes."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with _reading(file):
        folder = cache / "iclens" / "gguf" / f"{_sha256(file)[:16]}-{CONVERSION}"
    if not folder.is_dir():
        sys.stderr.write(f"iclens: converting {file.name} once, into {folder}\n")
        try:
            convert_gguf(file, folder)
        except ModelError:
            if not folder.is_dir():  # it is there when another process was quicker
                raise
    return folder


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    """Turns what gguf and transformers raise on a file that they cannot read into one line."""
    try:
        yield
    except _UNREADABLE as cause:
        line = " ".join(str(cause).split()) or type(cause).__name__
        raise ModelError(
            f"GGUF file '{file}'", f"cannot be read ({line[:300]})", "Give a whole GGUF file, unsplit."
        ) from cause


# ------------------------------------------------------------------------------------- what is checked


def _checked_config(file: Path, reader: GGUFReader) -> Any:
    """The config that a file states; refused where anything is missing, passed over or in contradiction."""

    def refuse(found: str, remedy: str) -> NoReturn:
        raise ModelError(f"GGUF file '{file}'", found, remedy)

    stated = {key: field.contents() for key, field in reader.fields.items() if len(field.data) < 1000}
    architecture = str(stated.get("general.architecture"))
    if architecture not in READABLE:
        refuse(f"its architecture is '{architecture}'", f"It must be {' or '.join(READABLE)}.")
    _check_metadata(architecture, stated, refuse)
    with _reading(file), redirect_stderr(io.StringIO()):
        config: Any = AutoConfig.from_pretrained(file.parent, gguf_file=file.name)
        config = type(config).from_dict(_shortest(config.to_dict()))
    ModelShape.from_config(config.to_dict(), file.name)
    _scale_rotation(reader, config, refuse)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    for key in HEAD_WIDTHS:
        if (value := stated.get(f"{architecture}.{key}", width)) != width:
            refuse(
                f"{architecture}.{key} is {value}, its heads are {width} wide", "Only one width is computed."
            )
    if (n := _n_tokens(reader)) != config.vocab_size:
        refuse(f"{n} tokens and a vocabulary of {config.vocab_size}", "They must be as many.")
    with _reading(file), torch.device("meta"):
        network: Any = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _check_tensors(architecture, reader, network, refuse)
    return config


def _check_metadata(
    architecture: str, stated: dict[str, Any], refuse: Callable[[str, str], NoReturn]
) -> None:
    """Refuse what is missing, and what would be passed over."""
    for key in NEEDED:
        if f"{architecture}.{key}" not in stated:
            refuse(f"no {architecture}.{key}", "It decides what the model computes, and must be stated.")
    epsilon = stated.get(f"{architecture}.{EPSILON}")
    if not isinstance(epsilon, float) or not 0 < epsilon < 1:
        refuse(f"its norm's epsilon is {epsilon}", f"{architecture}.{EPSILON} must lie between 0 and 1.")
    width = stated.get("gemma3.attention.key_length")
    if architecture == "gemma3" and width != GEMMA_3_HEADS:
        refuse(
            f"its heads are {width} wide",
            f"Of Gemma 3 only sizes with heads of {GEMMA_3_HEADS} are computed.",
        )
    read = {key for key, name in GGUF_CONFIG_MAPPING[architecture].items() if name}
    for key, value in stated.items():
        prefix, _, rest = key.partition(".")
        passed_over = prefix == architecture and rest not in {*read, *HEAD_WIDTHS}
        if passed_over and value not in NEUTRAL.get(rest, ()):
            refuse(f"{key} is {str(value)[:80]}", "This is not computed here.")
    kind, split = stated.get("tokenizer.ggml.model"), stated.get("tokenizer.ggml.pre")
    if split not in {"gpt2": SPLITS, "llama": (None, "default")}.get(str(kind), ()):
        refuse(
            f"its tokenizer is '{kind}', splitting as '{split}'",
            f"tokenizer.ggml.model must be llama, or gpt2 with tokenizer.ggml.pre {', '.join(SPLITS)}.",
        )


def _check_tensors(
    architecture: str, reader: GGUFReader, network: Any, refuse: Callable[[str, str], NoReturn]
) -> None:
    """Refuse tensors that the config leaves no place for, and places that have no tensor."""
    arch = next(key for key, name in MODEL_ARCH_NAMES.items() if name == architecture)
    names, wanted = get_tensor_name_map(arch, network.config.num_hidden_layers), {}
    for key, part in network.state_dict().items():
        module, _, suffix = key.rpartition(".")
        wanted[f"{names.get_name(module)}.{suffix}"] = tuple(part.shape)
    if network.config.tie_word_embeddings:
        wanted.pop("output.weight", None)
    there = {tensor.name: tuple(map(int, reversed(tensor.shape))) for tensor in reader.tensors}
    there.pop(ROPE_FACTORS, None)
    for what, those in (("no tensor", wanted.keys() - there), ("a tensor more,", there.keys() - wanted)):
        if those:
            refuse(f"{what} {min(those)}", "Its tensors must be those that its metadata tell of.")
    for name, shape in wanted.items():
        if there[name] != shape:
            refuse(f"{name} is {list(there[name])}, its metadata make it {list(shape)}", "They must agree.")


def _scale_rotation(reader: GGUFReader, config: Any, refuse: Callable[[str, str], NoReturn]) -> None:
    """Set the rotation of Llama 3.1 and later, of which a file states only the factors of each frequency."""
    divisors = next((tensor.data for tensor in reader.tensors if tensor.name == ROPE_FACTORS), None)
    if divisors is None:
        return
    plain = config.rope_parameters["rope_theta"] ** -(np.arange(0, config.head_dim, 2) / config.head_dim)
    config.rope_parameters |= LLAMA_3 | {"factor": float(divisors.max())}
    scaled = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))[0].numpy()
    if divisors.shape != scaled.shape or not np.allclose(plain / divisors, scaled, rtol=1e-5, atol=0):
        refuse(f"{ROPE_FACTORS} are not the factors of Llama 3", "Another rotation is not computed here.")


def _n_tokens(reader: GGUFReader) -> int:
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    return 0 if tokens is None else len(tokens.data)


def _shortest(value: Any) -> Any:
    """Numbers of a config as the shortest decimals of their float32: 1e-05 for 9.999999747378752e-06."""
    if isinstance(value, dict):
        return {key: _shortest(inner) for key, inner in value.items()}
    return float(str(np.float32(value))) if isinstance(value, float) else value


# ------------------------------------------------------------------------------------ what is written


def _write_network(file: Path, config: Any, folder: Path) -> None:
    """Write config.json and model.safetensors."""
    transformers_logging.disable_progress_bar()
    with _reading(file), redirect_stderr(io.StringIO()):  # one more bar, which no setting turns off
        network: Any = AutoModelForCausalLM.from_pretrained(
            file.parent, gguf_file=file.name, dtype=torch.float32
        )
    network.hf_quantizer = None  # else transformers would not save it, though its weights are plain by now
    network.config = config
    network.save_pretrained(folder)


def _write_tokenizer(file: Path, reader: GGUFReader, folder: Path) -> None:
    """Write the tokenizer, split and merged as the file says."""
    stated = {
        key: field.contents()
        for key in ("model", "pre", "add_bos_token", "add_space_prefix")
        if (field := reader.fields.get(f"tokenizer.ggml.{key}")) is not None
    }
    n_tokens = _n_tokens(reader)
    with _reading(file):
        tokenizer: Any = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    add_bos = stated.get("add_bos_token", stated["model"] == "llama" or stated.get("pre") in WHOLE_FIRST)
    tokenizer.add_bos_token = add_bos
    tokenizer.save_pretrained(folder)

    def change(name: str, how: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
        path = folder / name
        changed = how(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(changed, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")

    def as_stated(made: dict[str, Any]) -> dict[str, Any]:
        # transformers adds special tokens of its own, such as GPT-2's <|endoftext|>, where the file has none
        made["added_tokens"] = [token for token in made["added_tokens"] if token["id"] < n_tokens]
        if stated.get("pre") in WHOLE_FIRST:
            made["model"]["ignore_merges"] = True
        return made | ({"pre_tokenizer": DIGITS_APART} if stated.get("pre") == "smollm" else {})

    change("tokenizer.json", as_stated)
    if "add_bos_token" in stated or add_bos:
        change("tokenizer_config.json", lambda saved: saved | {"add_bos_token": add_bos})
    with _reading(file):
        again: Any = AutoTokenizer.from_pretrained(folder)
    if len(again) != n_tokens:
        found = f"{n_tokens} tokens, of which transformers makes {len(again)}"
        raise ModelError(f"GGUF file '{file}'", found, "Give a file whose tokens all differ.")
    prefix = stated.get("add_space_prefix") if stated["model"] == "llama" else None
    if prefix is not None and prefix != again.tokenize("a")[0].startswith("\u2581"):
        raise ModelError(
            f"GGUF file '{file}'",
            f"tokenizer.ggml.add_space_prefix is {prefix}",
            "This is not followed here.",
        )
