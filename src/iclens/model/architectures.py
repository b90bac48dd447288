"""Architectures: where the parts of a network are, and how a block is run in parts.

A block adds twice to the stream that passes it, [row pos d_model]:

    attn_out = N₂(attention(N₁(resid_pre)))      resid_mid = resid_pre + attn_out
    mlp_out  = N₄(MLP(N₃(resid_mid)))            resid_post = resid_mid + mlp_out

Norms that an architecture lacks are left out. The MLP of a GPT-NeoX reads resid_pre instead of resid_mid. An
`Adapter` knows one network of one architecture; `ADAPTERS` lists them all.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from iclens.core import ModelError
from iclens.model.shape import refuse_longer
from iclens.table import Floats

FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of attention: a query sees all earlier keys, or those less than a window behind it."""
Rotary = tuple[Tensor, ...]
"""Cosines and sines, [1 or row, pos, rotated dimension] each; empty where nothing is rotated."""
Rows = TypeVar("Rows", Floats, Tensor)
_LLAMA = (
    "model_type", "vocab_size", "hidden_size", "intermediate_size", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "rms_norm_eps", "rope_parameters", "tie_word_embeddings",
)  # fmt: skip


class Adapter:
    """A network, a Hugging Face causal language model, by its parts; this class itself is Llama's.

    Blocks and norms are modules of the network. Paths of modules count from the block, or from the trunk,
    which holds the embedding, the blocks and the final norm.
    """

    trunk: ClassVar[str] = "model"
    embedding: ClassVar[str] = "embed_tokens"
    blocks: ClassVar[str] = "layers"
    final: ClassVar[str] = "norm"
    attention: ClassVar[str] = "self_attn"
    qkv: ClassVar[tuple[str, ...]] = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
    """Projections to queries, keys and values: one each, or one to all."""
    out: ClassVar[str] = "self_attn.o_proj"
    mlp: ClassVar[str] = "mlp"
    down: ClassVar[str] = "mlp.down_proj"
    # N₁ to N₄; empty where there is none
    before_attention: ClassVar[str] = "input_layernorm"
    after_attention: ClassVar[str] = ""
    before_mlp: ClassVar[str] = "post_attention_layernorm"
    after_mlp: ClassVar[str] = ""
    cache: ClassVar[str] = "past_key_values"
    """The argument of a block that takes a cache."""
    depth: ClassVar[str] = "num_hidden_layers"
    activation: ClassVar[str] = "hidden_act"
    computed: ClassVar[tuple[str, ...]] = _LLAMA
    """Keys of a config that decide what the weights compute; biases and depth show in the weights."""
    ignored: ClassVar[str] = r"rotary_emb\.inv_freq$"
    """Stored keys that are no weights: they follow from the config."""

    def __init__(self, network: Any) -> None:
        self.network, self.config = network, network.config

    # -------------------------------------------------------------------------------------------- parts

    @property
    def body(self) -> Any:
        """The trunk."""
        return getattr(self.network, self.trunk)

    @property
    def layers(self) -> Any:
        """The blocks, in order."""
        return getattr(self.body, self.blocks)

    @property
    def final_norm(self) -> Any:
        """The norm that the unembedding reads through."""
        return getattr(self.body, self.final)

    @property
    def embeddings(self) -> Tensor:
        """W_E as it is stored, [vocabulary d_model]."""
        return getattr(self.body, self.embedding).weight

    @property
    def unembedding(self) -> Tensor:
        """W_U, [vocabulary d_model]."""
        return self.network.lm_head.weight

    @property
    def d_model(self) -> int:
        """Width of the residual stream."""
        return int(self.config.hidden_size)

    @property
    def n_heads(self) -> int:
        """Query heads of a block."""
        return int(self.config.num_attention_heads)

    @property
    def d_head(self) -> int:
        """Width of a head."""
        return int(getattr(self.config, "head_dim", None) or self.d_model // self.n_heads)

    @property
    def d_mlp(self) -> int:
        """Neurons of a block."""
        return int(self.config.intermediate_size)

    @property
    def not_carried(self) -> str:
        """Why a direction of the stream has no fixed image in what heads add to it; empty where it has."""
        if self.after_attention:
            return "a norm stands between what they write and the residual stream"
        return "" if self.before_attention else "no norm stands before them"

    @property
    def neurons_normed(self) -> bool:
        """Whether a norm stands between what neurons write and the stream."""
        return bool(self.after_mlp)

    def hooked(self, block: Any, hook: str) -> tuple[Any, bool]:
        """The module that a site's activation enters or leaves, and whether it enters.

        Nothing gives out resid_mid; it is told by attn_out.
        """
        inputs = {"mlp_in": self.mlp, "z": self.out}
        outputs = {
            "attn_out": self.after_attention or self.attention, "mlp_out": self.after_mlp or self.mlp,
        }  # fmt: skip
        outputs["resid_mid"] = outputs["attn_out"]
        if hook in inputs:
            return block.get_submodule(inputs[hook]), True
        if hook in outputs:
            return block.get_submodule(outputs[hook]), False
        return block, hook == "resid_pre"

    # ---------------------------------------------------------------------------------------------- runs

    def embed(self, ids: Tensor) -> Tensor:
        """resid_pre of block 0, [row pos d_model], of tokens [row pos] at positions from 0."""
        return getattr(self.body, self.embedding)(ids)

    def attend(self, block: Any, pre: Tensor, told: dict[str, Any]) -> Tensor:
        """attn_out from resid_pre, [row pos d_model] each; `told` as from `contexts`."""
        attended, _ = getattr(block, self.attention)(_normed(block, self.before_attention, pre), **told)
        return _normed(block, self.after_attention, attended)

    def feed(self, block: Any, pre: Tensor, mid: Tensor) -> Tensor:
        """mlp_out from resid_pre and resid_mid, [... d_model] each; only one of them is read."""
        fed = getattr(block, self.mlp)(_normed(block, self.before_mlp, self.read_by_mlp(block, pre, mid)))
        return _normed(block, self.after_mlp, fed)

    def read_by_mlp(self, block: Any, pre: Tensor, mid: Tensor) -> Tensor:
        """Which of the two the MLP reads, through its norm where it has one."""
        return mid

    def unembed(self, resid: Tensor) -> Tensor:
        """Logits [... vocabulary] of the last resid_post [... d_model]."""
        return self.capped(self.network.lm_head(self.final_norm(resid)))

    def capped(self, logits: Tensor) -> Tensor:
        """Logits as the model gives them, from W_U's products."""
        return logits

    # ----------------------------------------------------------------------------------------- attention

    @property
    def kinds(self) -> tuple[str, ...]:
        """`FULL` or `SLIDING`, [block]."""
        return (FULL,) * len(self.layers)

    @property
    def window(self) -> int | None:
        """How many keys a query of a sliding block sees, itself included; None where no block slides."""
        return None

    def reach(self, kind: str) -> int | None:
        """How many keys a query sees in blocks of a kind, itself included; None for all earlier ones."""
        return self.window if kind == SLIDING else None

    def contexts(self, resid: Tensor) -> list[dict[str, Any]]:
        """What each block is told besides the residual [row pos d_model], positions from 0; [block]."""
        length = resid.shape[1]
        refuse_longer(length, self.config.max_position_embeddings, "the model")
        positions = torch.arange(length, device=resid.device)
        told: dict[str, dict[str, Any]] = {}
        for kind in dict.fromkeys(self.kinds):
            reach = self.reach(kind)
            # SDPA is causal by itself when it is given no mask, whereas eager attention would see everything.
            causal = self.config._attn_implementation != "eager" and (reach is None or length <= reach)
            seen = None if causal else visible(positions, positions, reach)
            mask = None if seen is None else added_to_scores(seen, resid)[None, None]
            rotary = self.rotary(resid, positions[None], kind)
            told[kind] = self.told(mask, rotary) | {"position_ids": positions[None]}
        return [told[kind] for kind in self.kinds]

    def told(self, mask: Tensor | None, rotary: Rotary, cache: Any = None) -> dict[str, Any]:
        """A block's arguments: what is added to scores, the rotation, and a cache where one is given."""
        given = {} if cache is None else {self.cache: cache}
        return {"attention_mask": mask, "position_embeddings": rotary} | given

    def rotary(self, resid: Tensor, positions: Tensor, kind: str) -> Rotary:
        """The rotation of positions [1 pos] in blocks of a kind."""
        return self.body.rotary_emb(resid, positions)

    def projections(self, block: Any) -> list[Any]:
        """The modules whose outputs `queries_keys` takes: those of queries and keys."""
        return [block.get_submodule(path) for path in self.qkv[:2]]

    def queries_keys(self, block: Any, projected: Sequence[Tensor], rotary: Rotary) -> tuple[Tensor, Tensor]:
        """Queries [row head pos d_head] and keys [row kv_head pos d_head], as their products are taken."""
        heads = [part.unflatten(-1, (-1, self.d_head)) for part in self.split(projected)[:2]]
        q, k = (rotated(part.transpose(1, 2), rotary) for part in self.normed_heads(block, *heads))
        return q, k

    def split(self, joined: Sequence[Tensor]) -> list[Tensor]:
        """What belongs to queries, keys and values, [... head·d_head] each, of what `qkv` gives."""
        return list(joined)

    def normed_heads(self, block: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Queries and keys [row pos head d_head] after their norms."""
        return q, k

    def scores(self, block: Any, products: Tensor) -> Tensor:
        """Attention scores of products q·k: scaled, and capped where the architecture does so."""
        return products * getattr(block, self.attention).scaling

    # ------------------------------------------------------------------------------------------- weights

    def columns(self, linear: Any) -> Tensor:
        """A projection's weight as it multiplies rows, [in out]."""
        return linear.weight.T

    def head_weights(self, block: Any, which: str) -> tuple[Tensor, Tensor | None]:
        """Each head's part of a projection, [head d_head d_model], and of its bias, [head d_head].

        Args:
            block: one of `layers`.
            which: "q", "k", "v" or "o"; heads that share a key or a value are one. The bias of "o" is
                [d_model]. A bias is None where there is none.
        """
        if which == "o":
            linear = block.get_submodule(self.out)
            return self.columns(linear).unflatten(0, (-1, self.d_head)), linear.bias
        linears = [block.get_submodule(path) for path in self.qkv]
        weight = self.split([self.columns(linear) for linear in linears])["qkv".index(which)]
        per_head = weight.T.unflatten(0, (-1, self.d_head))
        if linears[0].bias is None:
            return per_head, None
        bias = self.split([linear.bias for linear in linears])["qkv".index(which)]
        return per_head, bias.unflatten(-1, (-1, self.d_head))

    def neurons(self, block: Any, mlp_in: Tensor) -> Tensor:
        """What the down projection reads, [... neuron], of what the MLP reads, [... d_model]."""
        mlp = block.mlp
        return mlp.act_fn(mlp.gate_proj(mlp_in)) * mlp.up_proj(mlp_in)

    def neuron_directions(self, block: Any) -> Tensor:
        """What each neuron writes, [neuron d_model], before the norm that may follow the MLP."""
        return self.columns(block.get_submodule(self.down))

    def norm(self, block: Any, path: str) -> Any:
        """A block's norm by its path, such as `before_attention`; None where there is none."""
        return block.get_submodule(path) if path else None

    def gain(self, norm: Any) -> Tensor:
        """What a norm multiplies each dimension by after its division, float32 [d_model]."""
        return norm.weight.detach().float()

    def centred(self, rows: Rows) -> Rows:
        """Rows [... d_model] as a norm divides them: less their mean where the norm is a LayerNorm."""
        return rows

    def divisor(self, norm: Any, rows: Floats) -> Floats:
        """What a norm divides rows [... d_model] by, [...]."""
        return np.sqrt((self.centred(rows) ** 2).mean(axis=-1) + self.epsilon(norm))

    def epsilon(self, norm: Any) -> float:
        """What a norm adds to the mean square."""
        return norm.variance_epsilon

    # ------------------------------------------------------------------------------------------- loading

    @classmethod
    def implementation(cls, asked: str) -> str:
        """The attention that computes this architecture: the one asked for, unless it cannot."""
        return asked

    @classmethod
    def key(cls, stored: str) -> str:
        """The network's own key of a tensor, by its key in a file."""
        return stored

    def left_out(self, key: str, total: int) -> bool:
        """Whether a key of a file is of a model of `total` blocks though this network has no use for it."""
        block = re.match(rf"{self.trunk}\.{self.blocks}\.(\d+)\.", key)
        headless = not hasattr(self.network, "lm_head")
        return (
            (block is not None and len(self.layers) <= int(block[1]) < total)
            or re.search(self.ignored, key) is not None
            or (key == "lm_head.weight" and (headless or bool(self.config.tie_word_embeddings)))
            or (key.startswith(f"{self.trunk}.{self.final}.") and headless)
        )

    def behead(self) -> None:
        """Take away what only logits need: the final norm and the unembedding."""
        del self.network.lm_head
        delattr(self.body, self.final)

    def restore(self, device: str) -> None:
        """Make anew what no file holds, of a network that was built without memory."""
        self.body.rotary_emb = type(self.body.rotary_emb)(config=self.config).to(device)

    def identity(self, block: int) -> list[tuple[str, Tensor]]:
        """What a block computes with, by name."""
        return list(self.layers[block].named_parameters())

    def embedded(self) -> list[tuple[str, Tensor]]:
        """What the embedding computes with, by name."""
        return [("embedding", self.embeddings)]


class Mistral(Adapter):
    """Llama's blocks, all with a sliding window where the config has one."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """One for all blocks."""
        return (FULL if self.window is None else SLIDING,) * len(self.layers)

    @property
    def window(self) -> int | None:
        """As the config says."""
        return self.config.sliding_window


class Layered(Adapter):
    """Llama's blocks, of which some may have a sliding window. Qwen 2 adds biases, which show in weights."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """As `layer_types` says."""
        return tuple(self.config.layer_types)

    @property
    def window(self) -> int | None:
        """As the config says."""
        return self.config.sliding_window

    def identity(self, block: int) -> list[tuple[str, Tensor]]:
        """A block that slides has other numbers from one that does not."""
        slides = [("sliding", torch.ones(1))] if self.kinds[block] == SLIDING else []
        return super().identity(block) + slides


class Qwen3(Layered):
    """Qwen 3: queries and keys are normed head by head."""

    def normed_heads(self, block: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """By one norm for all queries, and one for all keys."""
        attention = getattr(block, self.attention)
        return attention.q_norm(q), attention.k_norm(k)


class Gemma(Layered):
    """What Gemma 2 and 3 share: norms before and after, scaled embeddings, a soft cap of logits."""

    after_attention = "post_attention_layernorm"
    before_mlp, after_mlp = "pre_feedforward_layernorm", "post_feedforward_layernorm"
    activation = "hidden_activation"
    computed = (
        *(key for key in _LLAMA if key != "hidden_act"), "hidden_activation", "query_pre_attn_scalar",
        "final_logit_softcapping", "attn_logit_softcapping",
    )  # fmt: skip

    def capped(self, logits: Tensor) -> Tensor:
        """cap · tanh(logit / cap)."""
        return _capped(logits, self.config.final_logit_softcapping)

    def gain(self, norm: Any) -> Tensor:
        """Weights of these norms count from 1."""
        return 1 + super().gain(norm)

    def epsilon(self, norm: Any) -> float:
        """The same number by another name."""
        return norm.eps

    def restore(self, device: str) -> None:
        """Besides the rotation, the factor of the embeddings."""
        super().restore(device)
        embedding = getattr(self.body, self.embedding)
        embedding.embed_scale = torch.tensor(embedding.scalar_embed_scale, device=device)


class Gemma2(Gemma):
    """Gemma 2: scores are capped too."""

    @classmethod
    def implementation(cls, asked: str) -> str:
        """SDPA knows no cap of scores; transformers refuses it here."""
        return "eager"

    def scores(self, block: Any, products: Tensor) -> Tensor:
        """Capped after they are scaled, by `query_pre_attn_scalar`."""
        return _capped(super().scores(block, products), self.config.attn_logit_softcapping)


class Gemma3(Gemma, Qwen3):
    """Gemma 3: queries and keys are normed, and each kind of block has its rotation."""

    def rotary(self, resid: Tensor, positions: Tensor, kind: str) -> Rotary:
        """Sliding blocks rotate faster."""
        return self.body.rotary_emb(resid, positions, kind)


class Phi3(Mistral):
    """Phi 3: queries, keys and values from one projection, gates and values of neurons from another."""

    qkv = ("self_attn.qkv_proj",)

    def split(self, joined: Sequence[Tensor]) -> list[Tensor]:
        """All queries stand before all keys, and these before all values."""
        keys = self.config.num_key_value_heads * self.d_head
        return list(joined[0].split([self.n_heads * self.d_head, keys, keys], dim=-1))

    def neurons(self, block: Any, mlp_in: Tensor) -> Tensor:
        """Gates stand before what they multiply."""
        gate, up = block.mlp.gate_up_proj(mlp_in).chunk(2, dim=-1)
        return up * block.mlp.activation_fn(gate)


class Olmo2(Adapter):
    """OLMo 2: norms after attention and MLP alone; one norm over all queries, and one over all keys."""

    before_attention, after_attention = "", "post_attention_layernorm"
    before_mlp, after_mlp = "", "post_feedforward_layernorm"

    def normed_heads(self, block: Any, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """All heads side by side."""
        attention = getattr(block, self.attention)
        q, k = (norm(x.flatten(-2)) for norm, x in ((attention.q_norm, q), (attention.k_norm, k)))
        return q.unflatten(-1, (-1, self.d_head)), k.unflatten(-1, (-1, self.d_head))


class LayerNormed(Adapter):
    """What GPT-2 and GPT-NeoX share: LayerNorms, neurons without gates, heads that fill the residual."""

    @property
    def d_head(self) -> int:
        """All heads side by side are as wide as the residual."""
        return self.d_model // self.n_heads

    def centred(self, rows: Rows) -> Rows:
        """Less the mean of each."""
        return cast("Rows", rows - rows.mean(-1)[..., None])

    def epsilon(self, norm: Any) -> float:
        """The same number by another name."""
        return norm.eps


class Gpt2(LayerNormed):
    """GPT-2: learned positions, projections stored the other way round, nothing rotated."""

    trunk, embedding, blocks, final = "transformer", "wte", "h", "ln_f"
    attention, qkv, out = "attn", ("attn.c_attn",), "attn.c_proj"
    down = "mlp.c_proj"
    before_attention, before_mlp = "ln_1", "ln_2"
    depth, activation = "n_layer", "activation_function"
    computed = (
        "model_type", "vocab_size", "n_embd", "n_head", "activation_function", "layer_norm_epsilon",
        "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "tie_word_embeddings",
    )  # fmt: skip
    ignored = r"\.attn\.(masked_)?bias$"

    @property
    def d_mlp(self) -> int:
        """Four times the width unless the config says otherwise."""
        return int(self.config.n_inner or 4 * self.d_model)

    def embed(self, ids: Tensor) -> Tensor:
        """Of the token and of its position."""
        refuse_longer(ids.shape[1], self.config.max_position_embeddings, "the model")
        return self.body.wte(ids) + self.body.wpe(torch.arange(ids.shape[1], device=ids.device))

    def rotary(self, resid: Tensor, positions: Tensor, kind: str) -> Rotary:
        """None."""
        return ()

    def told(self, mask: Tensor | None, rotary: Rotary, cache: Any = None) -> dict[str, Any]:
        """There is no rotation to tell of."""
        return {"attention_mask": mask} | ({} if cache is None else {self.cache: cache})

    def split(self, joined: Sequence[Tensor]) -> list[Tensor]:
        """Queries, keys and values, one after the other."""
        return list(joined[0].chunk(3, dim=-1))

    def columns(self, linear: Any) -> Tensor:
        """These are stored as they multiply."""
        return linear.weight

    def neurons(self, block: Any, mlp_in: Tensor) -> Tensor:
        """One nonlinearity."""
        return block.mlp.act(block.mlp.c_fc(mlp_in))

    @classmethod
    def key(cls, stored: str) -> str:
        """The published files hold the trunk alone."""
        return stored if stored.startswith(("transformer.", "lm_head.")) else f"transformer.{stored}"

    def restore(self, device: str) -> None:
        """Nothing is missing."""

    def embedded(self) -> list[tuple[str, Tensor]]:
        """Positions have embeddings too."""
        return [*super().embedded(), ("positions", self.body.wpe.weight)]


class GptNeoX(LayerNormed):
    """GPT-NeoX, and so Pythia: attention and MLP read the same stream, a part of each head is rotated."""

    trunk, embedding, final = "gpt_neox", "embed_in", "final_layer_norm"
    attention, qkv, out = "attention", ("attention.query_key_value",), "attention.dense"
    down = "mlp.dense_4h_to_h"
    cache = "layer_past"
    computed = (
        "model_type", "vocab_size", "hidden_size", "num_attention_heads", "hidden_act", "layer_norm_eps",
        "rope_parameters", "use_parallel_residual", "tie_word_embeddings",
    )  # fmt: skip
    ignored = r"\.attention\.((masked_)?bias|rotary_emb\.inv_freq)$"

    def read_by_mlp(self, block: Any, pre: Tensor, mid: Tensor) -> Tensor:
        """resid_pre, unless the config has them one after the other."""
        return pre if block.use_parallel_residual else mid

    def split(self, joined: Sequence[Tensor]) -> list[Tensor]:
        """Each head's query, key and value stand together."""
        by_head = joined[0].unflatten(-1, (self.n_heads, 3, self.d_head))
        return [part.flatten(-2) for part in by_head.unbind(dim=-2)]

    def neurons(self, block: Any, mlp_in: Tensor) -> Tensor:
        """One nonlinearity."""
        return block.mlp.act(block.mlp.dense_h_to_4h(mlp_in))

    @classmethod
    def key(cls, stored: str) -> str:
        """Published files name the unembedding otherwise."""
        return re.sub(r"^embed_out\.", "lm_head.", stored)


ADAPTERS: dict[str, type[Adapter]] = {
    "llama": Adapter, "mistral": Mistral, "qwen2": Layered, "qwen3": Qwen3, "gemma2": Gemma2,
    "gemma3_text": Gemma3, "phi3": Phi3, "olmo2": Olmo2, "gpt2": Gpt2, "gpt_neox": GptNeoX,
}  # fmt: skip
"""Model type → its adapter, for every architecture that is run here."""


def adapter_of(network: Any) -> Adapter:
    """The adapter of a Hugging Face causal language model.

    Raises:
        ModelError: for an architecture that has none.
    """
    return adapter_class(str(network.config.model_type))(network)


def adapter_class(kind: str) -> type[Adapter]:
    """The adapter of a model type; raises a ModelError where there is none."""
    if kind not in ADAPTERS:
        raise ModelError(
            f"a network of type '{kind}'", "it is not known how its blocks are run",
            f"Types that are: {', '.join(ADAPTERS)}.",
        )  # fmt: skip
    return ADAPTERS[kind]


def visible(queries: Tensor, keys: Tensor, reach: int | None) -> Tensor:
    """Whether attention from positions `queries` sees positions `keys`, bool [query key].

    No query sees a later key, nor one that lies `reach` or more behind it.
    """
    behind = queries[:, None] - keys[None]
    return (behind >= 0) if reach is None else (behind >= 0) & (behind < reach)


def added_to_scores(seen: Tensor, like: Tensor) -> Tensor:
    """0 where a key is seen, elsewhere a number that no score outweighs, in the dtype of `like`."""
    return torch.zeros(seen.shape, dtype=like.dtype, device=like.device).masked_fill_(
        ~seen, torch.finfo(like.dtype).min
    )


def rotated(heads: Tensor, rotary: Rotary) -> Tensor:
    """Heads [row head pos d_head] rotated in as many of their first dimensions as `rotary` has."""
    if not rotary:
        return heads
    cos, sin = (part.unsqueeze(1) for part in rotary)
    turned, still = heads[..., : cos.shape[-1]], heads[..., cos.shape[-1] :]
    first, second = turned.chunk(2, dim=-1)
    turned = (turned * cos) + (torch.cat((-second, first), dim=-1) * sin)
    turned = turned.to(heads.dtype)
    return torch.cat([turned, still], dim=-1) if still.shape[-1] else turned


def _normed(block: Any, path: str, x: Tensor) -> Tensor:
    return getattr(block, path)(x) if path else x


def _capped(x: Tensor, cap: float | None) -> Tensor:
    return x if cap is None else cap * torch.tanh(x / cap)
