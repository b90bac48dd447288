"""SAEs from folders or the hub, judged against the model they are used on, written in sae_lens' layout."""

from __future__ import annotations

import math
import shutil
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from iclens.core import SaeError, Site
from iclens.model.load import LanguageModel, other_model
from iclens.saes.formats import check, holds_a_part, read_folder, read_hub
from iclens.saes.layouts import UNFOLDED, SaeLens, scaled
from iclens.saes.parts import Settings, read_json, refuse_width

CARD_FILE = "card.json"
_LEFT_BY_ENCODE = ("ln_mu", "ln_std", "x_norm_coeff")
"""What sae_lens' encode leaves on an SAE that normalises its input, for the decode that follows."""


@dataclass(frozen=True)
class Sae:
    """A loaded sparse autoencoder."""

    site: Site  # the activation that it reads and reconstructs
    sae_id: str  # sha256 over the files it was read from, 16 hex digits
    d_in: int  # width of the site it reads
    d_sae: int  # number of latents
    k: int | None  # active latents per token of a TopK SAE; None for another architecture
    network: Any  # the sae_lens SAE; float32, without gradients
    folder: Path  # where it came from
    target: Site | None = None  # what it reconstructs, when that is another site (a transcoder)
    layout: str = "sae_lens"  # the layout it was read from
    model: str | None = None  # name of the model it was trained on; None when it names none
    model_fingerprint: str | None = None  # that model's fingerprint; None when unknown
    l0: float | None = None  # mean number of active latents that its makers state; None when they do not
    # mean length of the site's activations in its training, by which it scales its input; None when it does
    # not, or it is not known
    mean_length: float | None = None
    # in what it does not fit the model it is used on, recorded when its set was made
    mismatches: tuple[str, ...] = ()
    named: Site | None = None  # the site that its files name, where another was asked for; else None

    @torch.no_grad()
    def encode(self, x: Tensor) -> Tensor:
        """Gated activations of all latents [row d_sae], non-negative, of raw activations x [row d_in].

        They are in raw activation units when decoder rows have unit length and the SAE does not normalise its
        input.
        """
        try:
            return self.network.encode(x.to(self.W_dec))
        finally:
            self._forget()

    @torch.no_grad()
    def encoder_input(self, x: Tensor) -> Tensor:
        """What multiplies W_enc for x [row d_in]: normalised, and less b_dec, where the SAE does so."""
        try:
            return self.network.process_sae_in(x.to(self.W_dec))
        finally:
            self._forget()

    def _forget(self) -> None:
        """Drop what an encode left for a decode."""
        for left in _LEFT_BY_ENCODE:
            self.network.__dict__.pop(left, None)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """latents @ W_dec + b_dec of activations [row d_sae], as [row d_in], in the SAE's own units.

        These are the site's, unless the SAE normalises its input: then x̂ = scale(x) · decode(a) + shift(x).
        """
        if self.normalisation == "layer_norm":
            self.network.ln_mu, self.network.ln_std = 0.0, 1.0
        elif self.normalisation == "constant_norm_rescale":
            self.network.x_norm_coeff = 1.0
        return self.network.decode(latents)

    @torch.no_grad()
    def reconstruct(self, x: Tensor, latents: Tensor) -> Tensor:
        """What it makes of x [row d_in] with latents [row d_sae]: decoded, its input's normalisation undone.

        Plus x @ W_skipᵀ if it skips.
        """
        skip = getattr(self.network, "W_skip", None)
        decoded = self.decode(latents)
        if self.normalisation != "none":
            x = x.to(decoded)
            centre = x.mean(dim=1, keepdim=True) if self.normalisation == "layer_norm" else 0.0
            decoded = self.scale(x)[:, None] * decoded + centre
        return decoded if skip is None else decoded + x.to(skip) @ skip.T

    @torch.no_grad()
    def scale(self, x: Tensor) -> Tensor:
        """By how much one unit of decode is longer in the site's units, for x [row d_in], as [row].

        layer_norm: the standard deviation of x over d_in (n − 1); constant_norm_rescale: ‖x‖ / √d_in; else 1.
        """
        x = x.to(self.W_dec)
        if self.normalisation == "layer_norm":
            return x.std(dim=1)
        if self.normalisation == "constant_norm_rescale":
            return x.norm(dim=1) / self.d_in**0.5
        return x.new_ones(len(x))

    @property
    def normalisation(self) -> str:
        """What it does to its input, `normalize_activations` of sae_lens; "none" for most."""
        return getattr(getattr(self.network, "cfg", None), "normalize_activations", "none")

    @property
    def output(self) -> Site:
        """What it reconstructs: its own site, or a transcoder's target."""
        return self.target or self.site

    @property
    def W_dec(self) -> Tensor:  # noqa: N802 - the formula's own name
        """Decoder directions, [latent d_in]; of a transcoder, [latent d_out]."""
        return self.network.W_dec


def load_sae(
    ref: str | Path, *, site: Site | None = None, d_model: int | None = None, device: str = "cpu",
    input_scale: float | None = None,
) -> Sae:  # fmt: skip
    """Load an SAE of any layout in `saes.layouts.LAYOUTS`.

    Args:
        ref: a folder, `release/sae_id` of sae_lens' registry, or `owner/repository/folder` on the hub.
        site: where it is to be used, whatever its files name; the site that they name by default.
        d_model: width of the model that it is to be used on; not checked by default.
        input_scale: √d_in / mean length of the site's activations in training, for an SAE that scales its
            input by it (`expected_average_only_in`) and does not state it.

    Raises:
        SaeError: when it is missing or damaged, when it is of another width, or when it computes
            what one encode of single tokens cannot hold.
    """
    subject = f"SAE '{ref}'"
    parts = read_hub(str(ref), device, d_model) if _on_hub(ref) else read_folder(Path(ref), device, d_model)
    named = None if site in (None, parts.site) else parts.site
    if named is not None and parts.target is not None:
        raise SaeError(
            subject, f"it is a transcoder from {named.short} to {parts.target.short}",
            "The site of a transcoder is the one that its files name: leave site (--site) out.",
        )  # fmt: skip
    if input_scale is not None:
        stated = parts.network.cfg.normalize_activations
        if stated != UNFOLDED:
            needless = f"it needs no input scale: normalize_activations is {stated!r}"
            raise SaeError(subject, needless, "Leave it out.")
        given = Settings(str(ref), "what was given", {"input_scale": input_scale})
        scaled(parts.network, given.scale("input_scale"))
    check(str(ref), parts)
    if (reads := site or parts.site) is None:
        hook = "it names no site" if parts.hook is None else f"it reads {parts.hook!r}, which is no site here"
        raise SaeError(subject, hook, "Say which site it reads: --site L8.resid_post, say.")
    network = parts.network.requires_grad_(False).eval()
    (d_in, d_sae), d_out = network.W_enc.shape, network.W_dec.shape[1]
    for kind, width in (("width", d_in), ("output width", d_out)):
        refuse_width(str(ref), width, d_model, kind)
    return Sae(
        reads, parts.sae_id, int(d_in), int(d_sae), getattr(network.cfg, "k", None), network, Path(ref),
        target=parts.target, layout=parts.layout, model=parts.model, l0=parts.l0, named=named,
        model_fingerprint=parts.model_fingerprint, mean_length=parts.mean_length,
    )  # fmt: skip


def _on_hub(ref: str | Path) -> bool:
    """Whether `ref` can only be a name on the hub: no folder, and like no path of this machine."""
    text, path = str(ref), Path(ref)
    return not (
        isinstance(ref, Path) or path.is_dir() or path.is_absolute() or text.startswith((".", "~"))
        or "/" not in text or path.parent.is_dir()
    )  # fmt: skip


Misfit = Literal["refuse", "record"]
"""What to do with an SAE that was made for another model: raise, or note it in `Sae.mismatches`."""


def load_saes(
    folder: str | Path, model: LanguageModel, device: str = "cpu", misfit: Misfit = "refuse"
) -> dict[Site, Sae]:
    """Load every SAE of a set that `training` or `saes check --out` wrote, for use on `model`.

    The folder holds card.json and one folder per SAE. They come in the order of layers, then hooks, each with
    the mismatches that the card records.

    Raises:
        SaeError: when the set is missing or empty, belongs to another model, has another width, or reads
            a layer that the model does not have.
    """
    path = Path(folder)
    card = read_card(path)
    made_for = card["model"]
    foreign = other_model(made_for.get("name"), made_for.get("fingerprint"), model)
    if foreign and misfit == "refuse":
        raise SaeError(
            f"SAE set '{path}'", foreign,
            "Use it on that model, train a set on this one, or see `iclens saes check --force`.",
        )  # fmt: skip
    recorded = card["mismatches"]
    saes: dict[Site, Sae] = {}
    for member in sorted(inner for inner in path.iterdir() if inner.is_dir() and holds_a_part(inner)):
        sae = load_sae(member, d_model=model.d_model, device=device)
        for site in (sae.site, sae.output):
            if site.layer >= model.n_blocks:
                raise SaeError(
                    f"SAE '{member}'", f"it reads {site.short}, the model has {model.n_blocks} blocks",
                    "Use a set that was made for this model, or load all of its blocks.",
                )  # fmt: skip
        if sae.site in saes:
            raise SaeError(
                f"SAE '{member}'", f"{sae.site.short} stands twice in the set",
                "Remove one of the two folders.",
            )  # fmt: skip
        noted = (*recorded.get(sae.site.short, ()), *([foreign] if foreign else ()))
        saes[sae.site] = replace(sae, mismatches=noted)
    if not saes:
        raise SaeError(f"SAE set '{path}'", "it holds no SAE", "Its SAEs stand in folders below it.")
    return dict(sorted(saes.items()))


def read_card(folder: Path) -> dict[str, Any]:
    """The card of an SAE set: model, training configuration, quality, versions, mismatches."""
    made = (
        "Make a set with `iclens saes check REF… --model MODEL --out SET`, or train one with `iclens train`."
    )
    if not folder.is_dir():
        raise SaeError(f"SAE set '{folder}'", "no such folder", made)
    if not (folder / CARD_FILE).is_file():
        raise SaeError(f"SAE set '{folder}'", f"{CARD_FILE} is missing", made)
    card = read_json(folder / CARD_FILE, "SAE set")
    values = Settings(str(folder), CARD_FILE, card)
    made_for, mismatches = values.mapping("model"), values.mapping("mismatches")
    for key in ("name", "fingerprint"):
        made_for.text(key)
    for site, texts in mismatches.values.items():
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            mismatches.refuse(site, "It must be a list of texts.")
    return card | {"model": made_for.values, "mismatches": mismatches.values}


L0_FACTOR = 3.0
"""How far the measured L0 may be from the stated one, either way."""
LENGTH_FACTOR = 3.0
"""How far the measured mean length of activations may be from the stated one, either way."""
WORST_FVU = 0.8
"""The largest fraction of variance unexplained with which an SAE still fits."""


def mismatches(
    sae: Sae, model: LanguageModel, l0: float, fvu: float, length: float = math.nan
) -> tuple[str, ...]:
    """In what an SAE does not fit a model; empty when it fits.

    Args:
        model: what it was measured on.
        l0: measured mean number of active latents per token.
        fvu: measured fraction of variance unexplained, all tokens.
        length: measured mean length of the activations that it reads; NaN leaves it unchecked.
    """
    texts = [other_model(sae.model, sae.model_fingerprint, model)]
    if sae.l0 and not 1 / L0_FACTOR <= l0 / sae.l0 <= L0_FACTOR:
        texts.append(f"L0 is {l0:.3g}, its makers state {sae.l0:.3g}")
    if not sae.l0 and not 1 <= l0 <= sae.d_in:
        texts.append(f"L0 is {l0:.3g} of {sae.d_in} dimensions")
    stated = math.nan if sae.mean_length is None else sae.mean_length  # where unknown, nothing is outside
    if length / stated > LENGTH_FACTOR or length / stated < 1 / LENGTH_FACTOR:
        texts.append(f"activations have a mean length of {length:.3g}, its files state {stated:.3g}")
    if math.isnan(fvu):
        texts.append("FVU is undefined: its site does not vary over the prompts")
    if fvu > WORST_FVU:
        texts.append(f"FVU is {fvu:.3g}, above {WORST_FVU}")
    return tuple(text for text in texts if text)


def convert(
    ref: str | Path, out: str | Path, *, site: Site | None = None, input_scale: float | None = None
) -> Path:
    """Write the SAE `ref`, loaded as `load_sae` does, as a sae_lens folder `out`, and return that.

    Raises:
        SaeError: when the SAE cannot be loaded, or `out` exists; nothing is left behind.
    """
    if Path(out).exists():
        raise SaeError(f"output '{out}'", "it exists", "Name a new folder, or remove this one.")
    return save_native(load_sae(ref, site=site, input_scale=input_scale), Path(out))


def save_native(sae: Sae, out: Path) -> Path:
    """Write a loaded SAE to `out`, which appears when it is whole, and return it."""
    described = {
        "hook_name": str(sae.site), "hook_layer": sae.site.layer, "model_name": sae.model, "l0": sae.l0,
        "model_fingerprint": sae.model_fingerprint, "mean_length": sae.mean_length,
        "hook_name_out": None if sae.target is None else str(sae.target),
        "hook_name_in_its_files": None if sae.named is None else str(sae.named),
        "converted_from": None if sae.layout == "sae_lens" else {"layout": sae.layout, "sae_id": sae.sae_id},
    }  # fmt: skip
    for key, value in described.items():
        if value is not None:
            sae.network.cfg.metadata[key] = value
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    except OSError as cause:
        raise SaeError(
            f"output '{out}'", f"cannot be written ({cause.strerror})", "Name a folder that can be made."
        ) from cause
    try:
        sae.network.save_model(partial)
        again = SaeLens().read(partial, "cpu").network.state_dict()
        for name, value in sae.network.state_dict().items():
            if name not in again or not torch.equal(value.cpu(), again[name]):
                wrong, remedy = f"{name} was not written as it is", "Name an --out on another disk."
                raise SaeError(f"SAE '{sae.folder}'", wrong, remedy)
        partial.chmod(0o755)
        partial.rename(out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out
