"""Sites, roles and positions as users write them, and the errors that users see."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass


class IclensError(Exception):
    """A problem in what was asked or supplied, in one line.

    Args:
        asked: what the user wanted, in their words (a key, a path, a spec).
        found: what is there instead.
        remedy: what to do about it.
    """

    exit_code = 2

    def __init__(self, asked: str, found: str, remedy: str) -> None:
        self.asked, self.found, self.remedy = asked, found, remedy
        super().__init__(f"{asked}: {found}. {remedy}")

    def also(self, remedy: str) -> None:
        """Add a sentence to the remedy."""
        self.remedy = f"{self.remedy} {remedy}"
        self.args = (f"{self.asked}: {self.found}. {self.remedy}",)


class ConfigError(IclensError):
    """A configuration file that does not validate."""


class TaskError(IclensError):
    """A task spec that names no task, pairs that can be none, or a task undefined on the given x."""


class TokenizerError(IclensError):
    """A tokenizer that cannot write a prompt."""


class ModelError(IclensError):
    """A model folder that is missing, damaged or not the model that was asked for."""


class SaeError(IclensError):
    """An SAE that is missing, damaged or does not fit the model it is used on."""


class SiteError(IclensError):
    """A site, role, label or latent that does not exist."""


class TableError(IclensError):
    """A table whose axes or columns do not agree."""


class EditError(IclensError):
    """An intervention that cannot be applied, or that did not fire."""


class RunError(IclensError):
    """A run folder that is missing, incomplete or of another study."""


class StoppedError(IclensError):
    """Work that was ended before its time: by a signal, or because another process of it is gone.

    `exit_code` is 128 plus the number of the signal; 1 for a lost process.
    """

    def __init__(self, asked: str, found: str, remedy: str, exit_code: int = 1) -> None:
        super().__init__(asked, found, remedy)
        self.exit_code = exit_code


class WontFitError(IclensError):
    """The plan does not fit the named device."""

    exit_code = 3


class RunWarning(UserWarning):
    """A run of another version, or one that is damaged, of which only a part can be shown."""


REDO_STAGE = "Run `iclens study` on the run's config.yaml, which redoes a stage whose files are damaged."
"""What to do about a damaged file of a run."""


def nearest(word: str, options: Iterable[str], n: int = 3) -> str:
    """The `n` closest options to `word`, as text for a remedy."""
    known = list(options)
    close = difflib.get_close_matches(word, known, n=n, cutoff=0.4) or known[:n]
    return "Nearest: " + ", ".join(close) if close else "Nothing is available"


ROLES = ("open", "x", "comma", "pre", "lab", "close")
"""Tokens of one example `(x, y)\\n` that have a name, in order; the answer is predicted at `pre`.

`open`, `x`, `lab` and `close` are the last tokens of what stands before x, of x, of y and of what closes the
example; `comma` and `pre` are the first and the last token between x and y.
"""

SPANS = ("open", "x", "separator", "y", "close")
"""Texts that an example is made of, in order."""

PADDING = -1
"""In place of a token id: nothing stands there, and no token sees it."""

TEMPLATE = "(x, y)"
"""The template of prompts that name none; `prompts.render` holds it and the others."""

BELIEFS = ("numeric", "odd", "double", "exact", "copy")
"""Beliefs read from the logits at `pre`; `prompts.beliefs` defines each."""

HOOKS = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_in", "mlp_out", "z")
"""Activations that can be recorded or edited, by their TransformerLens names.

`attn_out` and `mlp_out` are what is added to the residual, after the norm that some architectures have there.
`mlp_in` is what the MLP reads, after its norm: `blocks.N.mlp.hook_in`. TransformerLens' own `hook_mlp_in` is
the residual before that norm, here `resid_mid`. `z` is the heads' outputs side by side, before their output
projection: `blocks.N.attn.hook_z`.
"""

_INNER = {"mlp_in": "mlp.hook_in", "z": "attn.hook_z"}
"""Hooks whose TransformerLens name stands inside a part of the block."""
_BRIDGE = {
    "hook_in": "resid_pre", "ln1.hook_in": "resid_pre", "ln2.hook_in": "resid_mid",
    "hook_out": "resid_post", "attn.hook_out": "attn_out", "mlp.hook_out": "mlp_out", "attn.o.hook_in": "z",
}  # fmt: skip
"""TransformerLens 3's names of the same hooks, where they differ from those of version 2."""
_MODULES = {None: "resid_post", "mlp": "mlp_out", "self_attn": "attn_out", "attn": "attn_out",
            "attention": "attn_out", "mlp.down_proj": "mlp_out", "self_attn.o_proj": "attn_out"}  # fmt: skip
"""Modules of a block, as Hugging Face names them, and the hook that their output is."""
_EMBEDDING = ("embed_tokens", "wte", "embed_in", "hook_embed")
_LONG = re.compile(r"blocks\.(\d+)\.(?:hook_(?!(?:mlp_in|z)$)(\w+)|((?:\w+\.)*hook_\w+))")
_PARTS = "|".join(re.escape(module) for module in _MODULES if module)
_MODULE = re.compile(rf"(?:\w+\.)*(?:layers|layer|h)[._](\d+)(?:\.({_PARTS}))?(?:\.output)?")
_SHORT = re.compile(r"L(\d+)\.(\w+)")
_HOOK_FIRST = re.compile(r"(\w+?)_layer_?(\d+)")


@dataclass(frozen=True, order=True)
class Site:
    """Where an activation is read or edited: a hook at a layer.

    Raises:
        SiteError: for a hook or layer that cannot exist.
    """

    layer: int  # block index, from 0
    hook: str  # one of `HOOKS`

    def __post_init__(self) -> None:
        if self.hook not in HOOKS:
            raise SiteError(f"site hook '{self.hook}'", "unknown", nearest(self.hook, HOOKS))
        if self.layer < 0:
            raise SiteError(f"site layer {self.layer}", "negative", "Layers count from 0.")

    def __str__(self) -> str:
        return f"blocks.{self.layer}.{_INNER.get(self.hook, f'hook_{self.hook}')}"

    @property
    def short(self) -> str:
        """The short form, for example `L4.mlp_out`."""
        return f"L{self.layer}.{self.hook}"

    @classmethod
    def parse(cls, text: str) -> Site:
        """Read a site in any of the ways in which it is written.

            L4.mlp_out                             this package
            blocks.4.hook_mlp_out                  TransformerLens 2, SAELens
            blocks.4.hook_out, .mlp.hook_out …     TransformerLens 3
            model.layers.4, layers.4.mlp …         Hugging Face's modules, sparsify: what the module gives out
            model.layers[4].mlp.output             nnsight
            resid_post_layer_4                     dictionary_learning

        Raises:
            SiteError: for any other form, or a hook that is not known.
        """
        if text.split(".")[-1] in _EMBEDDING:
            return cls(0, "resid_pre")
        inside = {name: hook for hook, name in _INNER.items()} | _BRIDGE
        if match := _LONG.fullmatch(text):
            within = text.split(".", 2)[2]
            if within in inside:
                return cls(int(match[1]), inside[within])
            if match[2] is not None:
                return cls(int(match[1]), _known_hook(match[2], text))
        if match := _MODULE.fullmatch(re.sub(r"\[(\d+)\]", r".\1", text)):
            return cls(int(match[1]), _MODULES[match[2]])
        if match := _SHORT.fullmatch(text):
            return cls(int(match[1]), _known_hook(match[2], text))
        if match := _HOOK_FIRST.fullmatch(text):
            return cls(int(match[2]), _known_hook(match[1], text))
        raise SiteError(
            f"site '{text}'", "not a site name",
            "Write it as L4.mlp_out, blocks.4.hook_mlp_out or model.layers.4.mlp.",
        )  # fmt: skip


def _known_hook(hook: str, text: str) -> str:
    if hook not in HOOKS:
        raise SiteError(f"site '{text}'", f"hook '{hook}' is unknown", nearest(hook, HOOKS) + ".")
    return hook


def sae_site(text: str) -> Site:
    """A site that an SAE may read or write: any but the heads' outputs, which no layout keeps as one row."""
    site = Site.parse(text)
    if site.hook == "z":
        raise SiteError(
            f"an SAE of '{text}'", "heads' outputs (hook_z)", "Choose a residual, attn_out or MLP."
        )
    return site


def check_latent(site: Site, latent: int, d_sae: int) -> None:
    """Raise a SiteError unless the SAE at `site` has this latent."""
    if not 0 <= latent < d_sae:
        subject = f"latent {latent} of {site.short}"
        raise SiteError(subject, f"the SAE has {d_sae}", f"Choose one from 0 to {d_sae - 1}.")


def check_role(role: str) -> str:
    """Return `role`, or raise a SiteError that names the nearest one."""
    if role not in ROLES:
        raise SiteError(f"role '{role}'", "unknown", nearest(role, ROLES))
    return role


@dataclass(frozen=True)
class Layout:
    """Columns of prompts: a prefix, then for each span of an example as many as its longest text has tokens.

    Tokens stand at the right end of their span's columns, and `PADDING` before them. So a role has the same
    column in every prompt, whatever the lengths; `model.run` takes the padding out before a model sees it.
    """

    prefix: int  # BOS and the newline
    open: int
    x: int
    separator: int
    y: int
    close: int

    @property
    def widths(self) -> tuple[int, ...]:
        """Columns of each of `SPANS`."""
        return tuple(getattr(self, span) for span in SPANS)

    @property
    def example(self) -> int:
        """Columns of one example."""
        return sum(self.widths)

    def length(self, examples: int) -> int:
        """Columns of a prompt of so many examples."""
        return self.prefix + self.example * examples

    def columns(self) -> dict[str, int]:
        """Role → its column, counted from the begin of an example; roles without one are left out."""
        behind = self.open + self.x
        columns = {
            "open": self.open - 1,
            "x": behind - 1,
            "comma": behind if self.separator > 1 else -1,  # one token is `pre`
            "pre": behind + self.separator - 1,
            "lab": behind + self.separator + self.y - 1,
            "close": self.example - 1 if self.close else -1,
        }
        return {role: column for role, column in columns.items() if column >= 0}

    def position(self, role: str, example: int) -> int:
        """Column of `role` in example number `example` (from 0).

        Raises:
            SiteError: for a role that is unknown, or that has no column here.
        """
        place = self.columns().get(check_role(role))
        if place is None:
            raise SiteError(
                f"role '{role}'", "this tokenizer gives it no token of its own",
                f"Choose another, such as {', '.join(r for r in ('x', 'pre', 'lab') if r != role)}.",
            )  # fmt: skip
        return self.prefix + self.example * example + place

    def wider(self, other: Layout) -> Layout:
        """The narrowest layout that has room for the texts of both."""
        return Layout(max(self.prefix, other.prefix), *map(max, zip(self.widths, other.widths, strict=True)))


SIX_TOKENS = Layout(2, 1, 1, 2, 1, 1)
"""BOS and a newline, then six tokens to an example: numbers under Llama-3's tokenizers."""
PREFIX_LENGTH, TOKENS_PER_EXAMPLE = SIX_TOKENS.prefix, SIX_TOKENS.example


def prompt_length(examples: int) -> int:
    """Tokens of a prompt of so many examples of six tokens."""
    return SIX_TOKENS.length(examples)


def examples_within(tokens: int) -> int:
    """Examples of the longest prompt of at most so many tokens, six to an example."""
    return (tokens - SIX_TOKENS.prefix) // SIX_TOKENS.example


def position(role: str, example: int) -> int:
    """Token index of `role` in example number `example` (from 0) where examples are six tokens."""
    return SIX_TOKENS.position(role, example)
