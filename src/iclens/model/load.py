"""Loading a language model: its weights by key, its tokenizer, the text of its tokens, and what it is.

1. config.json is checked (`model.shape`), and the network is built empty. 2. Only the tensors of the blocks
that are asked for are read, from a folder or the hub's cache. 3. A fingerprint names what the model computes.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError, safe_open
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import logging as transformers_logging
from transformers.utils.hub import cached_file

from iclens.core import SPANS, ModelError, Site, SiteError, TokenizerError
from iclens.model.architectures import Adapter, adapter_class, adapter_of
from iclens.model.shape import LAYERED, model_folder, read_shape
from iclens.prompts.beliefs import NUMBERS
from iclens.prompts.render import DEFAULT, Template, answer_ids, bos_id, split
from iclens.table import Ints

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"
READABLE = ("F64", "F32", "F16", "BF16")
"""Stored dtypes that are weights as they stand; anything else is quantised or damaged."""
_UNREADABLE = (
    OSError, ValueError, RuntimeError, LookupError, TypeError, AttributeError, SafetensorError,
    StrictDataclassError,
)  # fmt: skip
"""What transformers and safetensors raise on a damaged folder."""


@dataclass(frozen=True)
class LanguageModel:
    """A loaded causal language model."""

    name: str  # folder, GGUF file or hub name it came from
    network: Any  # the Hugging Face model, in eval mode
    tokenizer: Any  # of Hugging Face
    n_blocks: int  # blocks loaded
    whole: bool  # whether these are all of its blocks, so that it has logits
    template: Template = DEFAULT  # how examples are written whose answers are read

    @cached_property
    def adapter(self) -> Adapter:
        """Where the network's parts are, and how its blocks are run in parts."""
        return adapter_of(self.network)

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return self.adapter.d_model

    @property
    def n_heads(self) -> int:
        """Attention heads of each block."""
        return self.adapter.n_heads

    @property
    def d_head(self) -> int:
        """Width of one head's output."""
        return self.adapter.d_head

    def check_site(self, site: Site) -> Site:
        """Return `site`, or raise a SiteError when the model has no such block."""
        if site.layer >= self.n_blocks:
            raise SiteError(
                f"site {site}", f"the model has blocks 0 to {self.n_blocks - 1}", "Choose one of these."
            )
        return site

    def answer_space(
        self, extra: tuple[str, ...] = (), *, shared: bool = False
    ) -> tuple[tuple[str, ...], Tensor]:
        """The answers whose probabilities are read, and the first token of each.

        They are the numbers 0–999, where each is one token, and `extra`. Where a token may be `shared`, what
        is read is the probability of the answer's first token.

        Raises:
            TokenizerError: when two of them begin with the same token, so that it tells neither.
        """
        numbers = NUMBERS if self._number_ids is not None else ()
        more = tuple(dict.fromkeys(y for y in extra if y not in numbers))
        ids = answer_ids(self.tokenizer, more, self.template)
        every = ids if self._number_ids is None else np.concatenate([self._number_ids, ids])
        answers, (_, first, again) = numbers + more, np.unique(every, return_index=True, return_inverse=True)
        if not shared and (same := first[again] != np.arange(len(every))).any():
            two = int(same.argmax())
            pair = str(answers[first[again[two]]]), str(answers[two])
            raise TokenizerError(
                f"answers {pair[0]!r} and {pair[1]!r}",
                f"both begin with the token {self.tokenizer.convert_ids_to_tokens([int(every[two])])[0]!r}",
                "Leave out the inputs of one of them: give `inputs`, or a file of pairs without them.",
            )
        return answers, torch.from_numpy(every)

    @cached_property
    def _number_ids(self) -> Ints | None:
        """The token of each number, or None where some number is more than one."""
        splits = split(self.tokenizer, [[("7", number)] for number in NUMBERS], self.template)
        spans = np.array([one.counts(1)[0] for one in splits])
        whole = spans[:, SPANS.index("y")] == 1
        return answer_ids(self.tokenizer, NUMBERS, self.template) if whole.all() else None

    def embed(self, tokens: Ints) -> Tensor:
        """resid_pre of block 0, [row pos d_model], of tokens [row pos] at positions from 0.

        Raises:
            ModelError: for an id that the model has no embedding of.
        """
        ids, n_vocab = np.asarray(tokens), int(self.network.config.vocab_size)
        if ids.size and not 0 <= ids.min() <= ids.max() < n_vocab:
            wrong = ids.min() if ids.min() < 0 else ids.max()
            raise ModelError(
                f"token {wrong} in '{self.name}'", f"it has embeddings of tokens 0 to {n_vocab - 1}",
                "Tokenise with the tokenizer that belongs to the model.",
            )  # fmt: skip
        return self.adapter.embed(torch.as_tensor(ids, device=self.device()))

    @cached_property
    def fingerprint(self) -> str:
        """What the model is, `model.load.fingerprint`; taken when first asked for."""
        return fingerprint(self.network, self.whole)

    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.network.parameters()).device


def load_model(
    name: str | Path, *, blocks: int | None = None, dtype: torch.dtype = torch.float32, device: str = "cpu",
    attention: Literal["sdpa", "eager"] = "sdpa", template: Template = DEFAULT,
) -> LanguageModel:  # fmt: skip
    """Load a model from a folder with config.json, safetensors and a tokenizer, a GGUF file, or the hub.

    A GGUF file is converted once, into the user's cache (`convert_gguf`).

    With fewer `blocks` than all there are no logits. `attention` is how it is computed, but for architectures
    that cap scores, which SDPA cannot. Shards that hold none of them may be absent, and are not
    downloaded.

    Raises:
        ModelError: when the folder is missing, a file is damaged, or weights are missing or mismatched.
    """
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as cause:
        raise ModelError(
            f"device '{device}'", "torch cannot use it here", "Give cpu, or cuda where there is one."
        ) from cause
    source = model_folder(name) or name
    total = read_shape(source).n_blocks
    n_blocks = total if blocks is None else blocks
    if not 1 <= n_blocks <= total:
        raise ModelError(f"{n_blocks} blocks of '{name}'", f"it has {total}", f"Ask for 1 to {total}.")
    transformers_logging.disable_progress_bar()
    with _reading(name, "config.json"):
        config = _config(source, n_blocks)
        adapter = adapter_class(config.model_type)
        activation = getattr(config, adapter.activation)
        if activation not in ACT2FN:
            raise ValueError(f"{adapter.activation} '{activation}' is no activation of transformers")
        with torch.device("meta"):
            network: Any = AutoModelForCausalLM.from_config(
                config, dtype=dtype, attn_implementation=adapter.implementation(attention)
            )
    tokenizer = load_tokenizer(source)
    if n_blocks < total:
        adapter(network).behead()
    with _reading(name, "weights"):
        _fill(str(source), network, total, dtype, device)
    return LanguageModel(str(name), network, tokenizer, n_blocks, n_blocks == total, template)


def load_tokenizer(name: str | Path) -> Any:
    """The tokenizer of a folder, GGUF file or hub name; its `bos_token_id` is what sequences begin with.

    That is what the tokenizer puts before a text, else the `bos_token` it names, else the token that
    config.json states; None where there is none of these.
    """
    source = model_folder(name) or name
    shape = read_shape(source)
    with _reading(name, "tokenizer"):
        config, _ = PreTrainedConfig.get_config_dict(source)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        bos, stated = bos_id(tokenizer), config.get("bos_token_id")
    if bos is None and type(stated) is int and stated >= 0:
        bos = stated
    if bos is not None and bos >= (n_tokens := min(len(tokenizer), shape.n_vocab)):
        raise ModelError(
            f"model '{name}'", f"its BOS is token {bos}, and its tokens are 0 to {n_tokens - 1}",
            "Set bos_token_id in config.json and bos_token in tokenizer_config.json to one of these tokens.",
        )  # fmt: skip
    if bos is not None and bos != tokenizer.bos_token_id:
        tokenizer.bos_token = tokenizer.convert_ids_to_tokens(bos)
    return tokenizer


@contextmanager
def _reading(name: str | Path, part: str) -> Iterator[None]:
    """Turns what transformers and safetensors raise on a damaged part of a folder into one line."""
    try:
        yield
    except _UNREADABLE as cause:
        line = " ".join(str(cause).split()) or type(cause).__name__
        raise ModelError(
            f"{part} of model '{name}'", f"cannot be loaded ({line[:300]})", f"Its {part} must be whole."
        ) from cause


def _config(name: str | Path, n_blocks: int) -> Any:
    """The config of the first blocks, of the class that its `model_type` names.

    `AutoConfig` would read a Mistral with `layer_types` as another architecture.
    """
    stated, _ = PreTrainedConfig.get_config_dict(name)
    kind, layers = stated["model_type"], stated.pop("layer_types", None)
    if kind in LAYERED and layers:
        stated["layer_types"] = layers[:n_blocks]
    config = CONFIG_MAPPING[kind].from_dict(stated | {adapter_class(kind).depth: n_blocks})
    if kind not in LAYERED and layers and layers[0] == "full_attention":
        config.sliding_window = None  # `model.shape` refuses blocks that differ
    return config


def _fill(name: str, network: Any, total: int, dtype: torch.dtype, device: str) -> None:
    """Give a network on the meta device its weights, and freeze it; `total` are the whole model's blocks."""
    adapter = adapter_of(network)
    tied = hasattr(network, "lm_head") and bool(network.config.tie_word_embeddings)
    shapes = {key: tuple(part.shape) for key, part in network.state_dict().items()}
    if tied:
        del shapes["lm_head.weight"]
    weights = read_weights(
        name, shapes, lambda key: adapter.left_out(key, total), dtype=dtype, device=device, spelt=adapter.key
    )
    network.load_state_dict(weights, strict=False, assign=True)  # `read_weights` was strict
    if tied:
        network.tie_weights()
    adapter.restore(device)
    empty = [key for key, part in chain(network.named_parameters(), network.named_buffers()) if part.is_meta]
    if empty:
        raise ModelError(f"weights of '{name}'", f"{empty[0]} is in no file", "Give another model.")
    network.requires_grad_(False).eval()


def read_weights(
    name: str, shapes: Mapping[str, tuple[int, ...]], left_out: Callable[[str], bool],
    *, dtype: torch.dtype, device: str | torch.device, spelt: Callable[[str], str] = str,
) -> dict[str, Tensor]:  # fmt: skip
    """The tensors of `shapes`, from a folder or hub name; headers of all files are checked first.

    `spelt` gives the key of a stored one, and `left_out` says whether a key that is not wanted belongs to the
    model all the same. On the CPU, tensors that keep their dtype stay memory-mapped.
    """

    def refuse(what: str, keys: Iterable[str]) -> None:
        if wrong := sorted(keys):
            raise ModelError(
                f"weights of '{name}'", f"{len(wrong)} {what}, first {wrong[0]}", "The folder is not whole."
            )

    stored_files = _files(name)
    stored_as = {spelt(key): key for key in stored_files}
    refuse("stored twice", (key for key in stored_files if stored_as[spelt(key)] != key))
    file_of = {key: stored_files[stored] for key, stored in stored_as.items()}
    refuse("missing", shapes.keys() - file_of.keys())
    refuse("unexpected", (key for key in file_of if key not in shapes and not left_out(key)))
    keys_of: dict[str, list[str]] = {}
    for key in shapes:
        keys_of.setdefault(file_of[key], []).append(key)
    paths = {file: _path(name, file) for file in keys_of}
    for file, keys in keys_of.items():
        if paths[file] is None:
            raise ModelError(f"weights of '{name}'", f"no {file}, which holds {keys[0]}", "Add this shard.")
    for file, keys in keys_of.items():
        with safe_open(paths[file], framework="pt") as stored:
            held = set(stored.keys())
            refuse("missing", (key for key in keys if stored_as[key] not in held))
            parts = {key: stored.get_slice(stored_as[key]) for key in keys}
            refuse("mismatched", (
                f"{key} of shape {list(part.get_shape())}, not {list(shapes[key])}"
                for key, part in parts.items() if tuple(part.get_shape()) != tuple(shapes[key])
            ))  # fmt: skip
            refuse("mismatched", (
                f"{key} of dtype {part.get_dtype()}, not a float"
                for key, part in parts.items() if part.get_dtype() not in READABLE
            ))  # fmt: skip
    weights: dict[str, Tensor] = {}
    for file, keys in keys_of.items():
        with safe_open(paths[file], framework="pt") as stored:
            weights |= {key: stored.get_tensor(stored_as[key]).to(device=device, dtype=dtype) for key in keys}
    return weights


def _files(name: str) -> dict[str, str]:
    """Key → name of the file that should hold it."""
    if (index := _path(name, INDEX)) is not None:
        declared: Any = json.loads(Path(index).read_text(encoding="utf-8"))
        files = declared.get("weight_map") if isinstance(declared, dict) else None
        if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
            raise ModelError(f"weights of '{name}'", f"{INDEX} has no weight_map", "Fetch the folder again.")
        return files
    if (single := _path(name, SINGLE)) is None:
        raise ModelError(
            f"weights of '{name}'", f"neither {SINGLE} nor {INDEX}", "Fetch or convert the weights."
        )
    with safe_open(single, framework="pt") as stored:
        return dict.fromkeys(stored.keys(), SINGLE)


def _path(name: str, file: str) -> str | None:
    """Path of a file of a folder or hub name, downloaded when need be; None when it cannot be had."""
    return cached_file(
        name, file,
        _raise_exceptions_for_missing_entries=False, _raise_exceptions_for_connection_errors=False,
    )  # fmt: skip


def as_numpy(tensor: Tensor) -> np.ndarray:
    """A float32 (or integer) numpy copy on the CPU."""
    return (tensor.float() if tensor.is_floating_point() else tensor).cpu().numpy()


# ------------------------------------------------------------------------------------------ text of tokens

BYTE_PIECES = tuple(f"<0x{byte:02X}>" for byte in range(256))
"""How a sentencepiece vocabulary with byte fallback spells single bytes."""


@dataclass(frozen=True)
class TokenText:
    """What one token stands for."""

    text: str  # the characters that begin in it, a special token's name, or "" where none begins
    continues: bool = False  # whether it begins with bytes of a character that began in a token before it


def token_texts(tokenizer: Any, ids: Sequence[int]) -> list[TokenText]:
    """The text of every token [pos] of a sequence; joined, they are the decoded sequence.

    Special tokens stand by name, and invalid bytes as `\\xe2`, where decoding gives U+FFFD. Any Hugging Face
    tokenizer will do.
    """
    if not (ids := [int(i) for i in ids]):
        return []
    decode_bytes = _piece_reader(tokenizer)
    if decode_bytes is None:
        return _by_decoding(tokenizer, ids)
    added = {i: str(token.content).encode() for i, token in tokenizer.added_tokens_decoder.items()}
    # An embedding may have more rows than the tokenizer has tokens.
    named = zip(tokenizer.convert_ids_to_tokens(ids), ids, strict=True)
    pieces = [f"<token {i}>" if piece is None else piece for piece, i in named]
    texts = merged([added[i] if i in added else decode_bytes(p) for i, p in zip(ids, pieces, strict=True)])
    whole = "".join(text.text for text in texts)
    if whole.startswith(" ") and _decoded(tokenizer, ids) == whole[1:]:  # the space that a decoder strips
        texts[0] = TokenText(texts[0].text.removeprefix(" "), texts[0].continues)
    return texts


def merged(parts: Sequence[bytes]) -> list[TokenText]:
    """The text of every part [pos] of a byte string."""
    texts, owners = [""] * len(parts), [pos for pos, part in enumerate(parts) for _ in part]
    begins = [False] * len(owners)
    whole, start = b"".join(parts), 0
    for character in whole.decode("utf-8", errors="surrogateescape"):
        invalid = "\udc80" <= character <= "\udcff"  # a byte of no character is spelt out
        begins[start] = True
        texts[owners[start]] += f"\\x{whole[start]:02x}" if invalid else character
        start += 1 if invalid else len(character.encode())
    first = {owner: byte for byte, owner in reversed(list(enumerate(owners)))}
    return [TokenText(text, pos in first and not begins[first[pos]]) for pos, text in enumerate(texts)]


def _piece_reader(tokenizer: Any) -> Callable[[str], bytes] | None:
    """How pieces of this tokenizer are read as bytes; None where they are no bytes. Its decoder is asked."""
    if tokenizer.convert_tokens_to_string(["Ġ", "Ġ"]) == "  ":
        return _byte_level
    if tokenizer.convert_tokens_to_string([BYTE_PIECES[byte] for byte in "€".encode()]) == "€":
        return _with_fallback
    return None


def _byte_level(piece: str) -> bytes:
    byte_of = _byte_spelling()
    return bytes(map(byte_of.__getitem__, piece)) if all(c in byte_of for c in piece) else piece.encode()


@cache
def _byte_spelling() -> dict[str, int]:
    """Character → byte in byte-level vocabularies."""
    return {character: byte for byte, character in bytes_to_unicode().items()}


def _with_fallback(piece: str) -> bytes:
    return bytes([BYTE_PIECES.index(piece)]) if piece in BYTE_PIECES else piece.replace("▁", " ").encode()


def _by_decoding(tokenizer: Any, ids: list[int]) -> list[TokenText]:
    """Each token decoded alone; where that does not join to the sequence, what it adds to those before it."""
    alone = [_decoded(tokenizer, [i]) for i in ids]
    if "".join(alone) != _decoded(tokenizer, ids):
        upto = [_decoded(tokenizer, ids[:n]) for n in range(len(ids) + 1)]
        grown = [after.removeprefix(before) for before, after in pairwise(upto)]
        alone = grown if "".join(grown) == upto[-1] else alone
    return [TokenText(text) for text in alone]


def _decoded(tokenizer: Any, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


# ------------------------------------------------------------------------------------- what a model is

WHOLE, RUNS = 1 << 20, 64
"""Numbers up to which a tensor is hashed whole, and runs that are hashed of a larger one, as many in all."""
_DIGITS = 6
_FINGERPRINT = re.compile(r"[0-9a-f]{6}:[0-9a-f]{6}:[0-9a-f]{6}(\.[0-9a-f]{6})*:([0-9a-f]{6})?")
_CACHED = re.compile(r"models--.+?--(.+)")


def fingerprint(network: Any, whole: bool) -> str:
    """Hashes of what a network computes: config, embedding, every block, and, if `whole`, norm and head."""
    adapter = adapter_of(network)
    config: dict[str, Any] = {key: getattr(network.config, key, None) for key in adapter.computed}
    config["window"] = adapter.window
    if "rope_parameters" in config:
        config["rope_parameters"] = _without_type(config["rope_parameters"])
    text = json.dumps(_plain(config), sort_keys=True)
    end = []
    if whole:
        end = [(f"norm{_short(key)}", part) for key, part in adapter.final_norm.named_parameters()]
    if whole and not network.config.tie_word_embeddings:
        end.append(("lm_head", adapter.unembedding))
    return ":".join([
        hashlib.sha256(text.encode()).hexdigest()[:_DIGITS],
        _digest(adapter.embedded()),
        ".".join(_digest(adapter.identity(layer)) for layer in range(len(adapter.layers))),
        _digest(end) if end else "",
    ])  # fmt: skip


def _short(key: str) -> str:
    """A norm's tensor by a name that its weight, the only one of most, has no need of."""
    return "" if key == "weight" else f".{key}"


def _without_type(rope: dict[str, Any]) -> dict[str, Any]:
    """A rotation without the old name of its type, for all blocks or by kind."""
    return {
        key: _without_type(value) if isinstance(value, dict) else value
        for key, value in rope.items() if key != "type"
    }  # fmt: skip


def _plain(value: Any) -> Any:
    """A value of a config in one spelling: numbers as floats, mappings by key."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else value


def _digest(tensors: Iterable[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda pair: pair[0]):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        digest.update(_values(tensor.detach()).contiguous().view(torch.int16).numpy().tobytes())
    return digest.hexdigest()[:_DIGITS]


def _values(tensor: Tensor) -> Tensor:
    """All numbers of a tensor, or evenly spaced runs of a large one, as bfloat16 on the CPU."""
    flat = tensor.flatten()
    if len(flat) > WHOLE:
        size, last = WHOLE // RUNS, len(flat) - WHOLE // RUNS
        flat = torch.cat([flat[i * last // (RUNS - 1) :][:size] for i in range(RUNS)])
    return flat.to(torch.bfloat16).cpu()


def is_fingerprint(value: object) -> bool:
    """Whether a value is written as a fingerprint is."""
    return isinstance(value, str) and _FINGERPRINT.fullmatch(value) is not None


def difference(ours: str, theirs: str) -> str:
    """In what the models of two fingerprints differ, in words; empty when they are the same."""
    (config, embedding, blocks, end), other = ours.split(":"), theirs.split(":")
    if config != other[0]:
        return "another config"
    if embedding != other[1]:
        return "another embedding"
    mine, its = blocks.split("."), other[2].split(".")
    for layer, (left, right) in enumerate(zip(mine, its, strict=False)):
        if left != right:
            return f"other weights in block {layer}"
    # Fewer blocks are a part of the model only where its end is not there either.
    if (end and len(mine) < len(its)) or (other[3] and len(its) < len(mine)):
        return "another number of blocks"
    return "another final norm or head" if end and other[3] and end != other[3] else ""


def other_model(name: str | None, made_with: object, model: LanguageModel) -> str:
    """Whether something was made for another model than `model`, in words; empty when not, or when unknown.

    Args:
        name: what the model that it was made for was called.
        made_with: that model's fingerprint; anything else (of earlier versions, None) counts as unknown.
        model: what it is to be used on.
    """
    if is_fingerprint(made_with):
        differs = difference(str(made_with), model.fingerprint)
        by_weights = differs not in ("another config", "another number of blocks")
        note = " (a float16 copy counts as another model)" if by_weights else ""
        return differs and f"made for '{name}', which has {differs}, used on '{model.name}'{note}"
    if name is None or same_name(name, model.name):
        return ""
    return (
        f"made for '{name}', used on '{model.name}' (only the names can be compared: where they are one "
        "model, a link to its folder under the first name will do)"
    )


def same_name(one: str, other: str) -> bool:
    """Whether two names are of one model, in any spelling or by TransformerLens' short name for it."""
    ours, theirs = plain_name(one), plain_name(other)
    return ours == theirs or _short_names().get(ours, ours) == _short_names().get(theirs, theirs)


@cache
def _short_names() -> dict[str, str]:
    from transformer_lens.supported_models import MODEL_ALIASES  # takes seconds, and is seldom needed

    return {plain_name(short): plain_name(name) for name, shorts in MODEL_ALIASES.items() for short in shorts}


def plain_name(name: str) -> str:
    """A model's name without its owner, folder or `Meta-`, in lower case: the same for all its spellings.

    Folders may be written with either slash; of a snapshot in the hub's cache it is the repository's name.
    """
    parts = [part for part in re.split(r"[/\\]", str(name)) if part] or [str(name)]
    cached = [match[1] for part in parts if (match := _CACHED.fullmatch(part))]
    return (cached or parts)[-1].lower().replace("_", "-").removeprefix("meta-")
