"""What every layout is read into, and the strict readers that all of them use.

1. JSON and tensors are read whole or refused; values of a config are read by their JSON type (`Settings`). 2.
`take` compares tensors with the shapes that the config promises. 3. `build` makes the sae_lens SAE that
computes z = (x − b_dec·[apply_b_dec_to_input])·W_enc + b_enc and x̂ = a·W_dec + b_dec, with W_enc [d_in
d_sae] and W_dec [d_sae d_in]. 4. `saes.formats.check` tries the SAE that came of it.
"""

from __future__ import annotations

import hashlib
import json
import pickle
import reprlib
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch
from sae_lens import SAE
from sae_lens.registry import get_sae_class
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file
from torch import Tensor

from iclens.core import SaeError, Site, SiteError, sae_site

Tensors = dict[str, Tensor]
Shapes = dict[str, tuple[int, ...]]
NORMALISATIONS = ("none", "layer_norm", "constant_norm_rescale")
"""What an SAE may do to its input; the others of sae_lens have to be folded into the weights."""
_POINTER = b"version https://git-lfs"
"""How a file starts that Git left in place of a large one."""
_FETCH = "Fetch this file again from where the SAE is published."
_DIVERGED = "Its training diverged or the file is damaged: take an earlier checkpoint, or fetch it again."


@dataclass(frozen=True)
class Parts:
    """An SAE as its files hold it."""

    layout: str  # name of the layout it was read from
    sae_id: str  # sha256 over the files it was read from, 16 hex digits
    network: Any  # the sae_lens SAE; float32, for raw activations
    file: str  # name of the file that its weights were read from
    site: Site | None  # what it reads; None when the files do not say, or name what is no site
    hook: str | None = None  # what it reads, as its files name it; None when they do not say
    target: Site | None = None  # what it reconstructs, when that is another site (a transcoder)
    model: str | None = None  # name of the model it was trained on; None when the files do not say
    # that model's fingerprint, where `iclens` trained it; None otherwise
    model_fingerprint: str | None = None
    l0: float | None = None  # mean number of active latents that its makers state; None when they do not
    # mean length of the site's activations in its training data, by which it scales them; None when it does
    # not
    mean_length: float | None = None


# ------------------------------------------------------------------------------------------------- configs


@dataclass(frozen=True)
class Settings:
    """The values of an SAE's config, read by their JSON type: 24 is a number, "24" and true are not."""

    what: str  # the SAE as messages name it, a folder or a reference
    file: str  # the config's name
    values: Mapping[str, Any]  # key → value
    under: str = ""  # the key that they stand under, and a dot; empty at the top

    def get(self, key: str, default: Any = None) -> Any:
        """The value; `default` where it is absent or null."""
        value = self.values.get(key)
        return default if value is None else value

    def refuse(self, key: str, allowed: str, cause: Exception | None = None) -> NoReturn:
        """Raise a SaeError that names the key, its value, the file and what is allowed."""
        name, value = printable(self.under + key), self.values.get(key)
        if isinstance(value, str) and "number" in allowed:
            allowed = f"{allowed[:-1]}, without quotes."
        raise SaeError(
            f"SAE '{self.what}'", f"{name} is {reprlib.repr(value)} in {self.file}", allowed
        ) from cause

    def number(
        self, key: str, default: float | None = None, least: float = 1e-30, most: float = 1e30
    ) -> float:
        """A number from `least` to `most`."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
            self.refuse(key, f"It must be a number from {least:g} to {most:g}.")
        return float(value)

    def scale(self, key: str) -> float:
        """A mean length of activations, or the factor by which they are scaled.

        Further out lies only what memory held by chance.
        """
        return self.number(key, least=1e-6, most=1e6)

    def whole(self, key: str, default: int | None = None, most: int = 2**40) -> int:
        """A whole number from 1 to `most`."""
        value = self.get(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 1 or value % 1:
            self.refuse(key, "It must be a whole number above 0.")
        if value > most:
            self.refuse(key, f"It must be a whole number from 1 to {most}.")
        return int(value)

    def flag(self, key: str, *, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        return value if isinstance(value, bool) else self.refuse(key, "It must be true or false.")

    def text(self, key: str) -> str | None:
        """A text of one line; None where it is absent or null."""
        value = self.get(key)
        if value is not None and not (isinstance(value, str) and value.isprintable()):
            self.refuse(key, "It must be a text of one line.")
        return value

    def mapping(self, key: str) -> Settings:
        """The settings that stand under a key; none where it is absent or null."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            self.refuse(key, "It must be a mapping of keys to values.")
        return Settings(self.what, self.file, value, f"{self.under}{key}.")

    def only(self, key: str, allowed: Sequence[Any], default: Any) -> Any:
        """One of the values that can be computed here."""
        value = self.get(key, default)
        if not any(type(value) is type(option) and value == option for option in allowed):
            options = " or ".join(json.dumps(option) for option in allowed)
            self.refuse(key, f"Only {options} can be computed here.")
        return value

    def site(self, key: str) -> Site | None:
        """The site that a hook's name means; None where it is absent, or names what is no site."""
        name = self.text(key)
        try:
            return None if name is None else sae_site(name)
        except SiteError as cause:
            if "hook_z" in f"{cause}":
                self.refuse(key, cause.remedy, cause)
            return None


def named_site(name: str) -> Site | None:
    """The site that a name means in any spelling; None when it names no site of an SAE."""
    try:
        return sae_site(name)
    except SiteError:
        return None


def first_line(cause: BaseException) -> str:
    """The first line of an error's text; its kind where it has none."""
    return (str(cause).strip().splitlines() or [type(cause).__name__])[0]


def printable(name: str) -> str:
    """A key's or tensor's name as it can stand in one line."""
    return name if name.isprintable() else ascii(name)


def read_json(file: Path, what: str = "SAE") -> dict[str, Any]:
    """The mapping that a JSON file holds."""

    def refusal(found: str, remedy: str) -> SaeError:
        return SaeError(f"{what} '{file.parent}'", f"{file.name} {found}", remedy)

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        values: dict[str, Any] = {}
        for key, value in items:
            if key in values:
                twice = f"{key!r} stands twice in {file.name}"
                raise SaeError(f"{what} '{file.parent}'", twice, "Keep one of them.")
            values[key] = value
        return values

    try:
        values = json.loads(file.read_text(encoding="utf-8-sig"), object_pairs_hook=pairs)
    except FileNotFoundError as cause:
        raise refusal("is missing", _FETCH) from cause
    except OSError as cause:
        raise refusal(f"cannot be read ({cause.strerror})", _FETCH) from cause
    except UnicodeDecodeError as cause:
        raise refusal("is not UTF-8 text", "Save it as UTF-8.") from cause
    except (ValueError, RecursionError) as cause:
        line = "too deeply nested" if isinstance(cause, RecursionError) else first_line(cause)
        raise refusal(f"is not JSON ({line})", "It must hold one mapping.") from cause
    if not isinstance(values, dict):
        raise refusal("is not a mapping of keys to values", "It must hold one.")
    return values


def settings(file: Path) -> Settings:
    """The settings of a config file, as `read_json` reads it."""
    return Settings(str(file.parent), file.name, read_json(file))


# ------------------------------------------------------------------------------------------------- tensors


def fingerprint(files: Sequence[Path]) -> str:
    """sha256 over the contents of `files` in order, 16 hex digits."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 22):
                digest.update(chunk)
    return digest.hexdigest()[:16]


def read_tensors(folder: Path, name: str, under: str | None = None) -> Tensors:
    """Every tensor of the file `name` in a folder, without prefixes that wrappers put before their names.

    Safetensors, or, where the name ends on .pt, a mapping of torch.save, which stands under the key `under`
    where one is given; it is unpickled without running what it asks for.
    """
    what = f"SAE '{folder}'"
    try:
        with (folder / name).open("rb") as stream:
            start = stream.read(len(_POINTER))
        if start == _POINTER:
            remedy = "Run `git lfs pull` in its repository."
            raise SaeError(what, f"{name} is a Git LFS pointer, not the weights", remedy)
        stored = _unpickled(folder / name) if name.endswith(".pt") else load_file(folder / name)
    except SaeError:
        raise
    except pickle.UnpicklingError as cause:
        raise SaeError(
            what, f"{name} is damaged or holds more than tensors, and is not unpickled",
            "Where you trust it, load it in Python and save its state_dict() of tensors with torch.save.",
        ) from cause  # fmt: skip
    except Exception as cause:  # a broken pickle can make torch.load raise anything
        raise SaeError(what, f"{name} cannot be read ({first_line(cause)})", _FETCH) from cause
    if under is not None and name.endswith(".pt"):
        stored = stored.get(under) if isinstance(stored, dict) else None
    if not isinstance(stored, dict) or not all(isinstance(value, Tensor) for value in stored.values()):
        where = f"{name} under {under!r}" if under else name
        raise SaeError(
            what, f"{where} is not a mapping of names to tensors",
            "Save the SAE's state_dict() there with torch.save.",
        )  # fmt: skip
    names = [str(key) for key in stored]
    for prefix in ("_orig_mod.", "module."):  # of torch.compile and DDP
        if names and all(key.startswith(prefix) for key in names):
            names = [key.removeprefix(prefix) for key in names]
    return dict(zip(names, stored.values(), strict=True))


def _unpickled(file: Path) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # about the pickle's version
        return torch.load(file, map_location="cpu", weights_only=True)


def refuse_width(what: str, width: Any, d_model: int | None, kind: str = "width") -> None:
    """Raise a SaeError when an SAE is of another width than the model's `d_model`; None asks for none."""
    if d_model is not None and width != d_model:
        raise SaeError(
            f"SAE '{what}'", f"its {kind} is {width}, the model's is {d_model}",
            "Use one made for this model.",
        )  # fmt: skip


def take(
    what: str, file: str, tensors: Mapping[str, Tensor], shapes: Mapping[str, Sequence[int]], remedy: str = ""
) -> Tensors:
    """The tensors as float32, each of the promised shape and finite, none missing and none left over.

    `remedy` says what to do when they are others; by default, it names those that are expected.
    """
    subject = f"weights of SAE '{what}'"
    missing = [f"{name} {list(shapes[name])} is missing" for name in shapes if name not in tensors]
    strange = [
        f"{printable(name)} {list(tensor.shape)} is not known"
        for name, tensor in tensors.items() if name not in shapes
    ]  # fmt: skip
    if missing or strange:
        wrong = "; ".join([*missing, *strange][:6])
        raise SaeError(subject, f"{wrong} in {file}", remedy or f"It must hold {', '.join(shapes)}.")
    taken = {}
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tuple(tensor.shape) != tuple(shape):
            raise SaeError(
                subject, f"{name} is {list(tensor.shape)} in {file}, the config promises {list(shape)}",
                "Config and weights belong to different SAEs, or one of them was changed.",
            )  # fmt: skip
        if not tensor.is_floating_point() or tensor.layout is not torch.strided:
            kind = tensor.dtype if tensor.layout is torch.strided else tensor.layout
            raise SaeError(
                subject, f"{name} is {kind} in {file}", "It must hold dense floating-point numbers."
            )
        taken[name] = tensor.float()
        refuse_not_finite(subject, file, name, taken[name])
    return taken


def refuse_not_finite(asked: str, file: str, name: str, tensor: Tensor, remedy: str = _DIVERGED) -> None:
    """Raise a SaeError when a tensor holds NaN or an infinity, with how many and where the first stands."""
    if not (finite := tensor.isfinite()).all():
        n_wrong, first = int((~finite).sum()), (~finite).nonzero()[0].tolist()
        wrong = f"{name} is not finite in {file}: {n_wrong} of {tensor.numel()}, at {first} first"
        raise SaeError(asked, wrong, remedy)


def refuse_unlearnt(what: str, file: str, threshold: float, k: float) -> None:
    """Raise a SaeError when BatchTopK training set no threshold: about half of all latents would fire."""
    if threshold <= 0:
        raise SaeError(
            f"weights of SAE '{what}'",
            f"threshold is {threshold:g} in {file}: BatchTopK training (k {k:g}) ended before it learnt one",
            "Use a later checkpoint of the same training.",
        )


def unit_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows [latent d_in] made of length 1, and the lengths they had [latent]; a row of zeros stays zero."""
    lengths = rows.norm(dim=1)
    return rows / lengths.clamp_min(torch.finfo(rows.dtype).tiny)[:, None], lengths


def build(
    architecture: str, weights: Mapping[str, Tensor], *, site: Site | None, model: str | None,
    subtract_b_dec: bool = True, device: str = "cpu", metadata: Mapping[str, Any] | None = None,
    **options: Any,
) -> SAE[Any]:  # fmt: skip
    """The sae_lens SAE of an architecture with these weights, W_enc [d_in d_sae] and W_dec [d_sae d_in].

    `site` and `model` go into its metadata; `options` are further fields of the config, such as k.
    """
    network_class, config_class = get_sae_class(architecture)
    d_in, d_sae = weights["W_enc"].shape
    described: dict[str, Any] = dict(metadata or {})
    if site is not None:
        described |= {"hook_name": str(site), "hook_layer": site.layer}
    if model is not None:
        described["model_name"] = model
    kept = SAEMetadata()
    for key, value in described.items():
        if not hasattr(SAEMetadata, key):
            kept[key] = value
    config: Any = config_class(
        d_in=d_in, d_sae=d_sae, device="meta", apply_b_dec_to_input=subtract_b_dec, **options
    )
    network: Any = network_class(config)
    config.metadata = kept
    values = {name: torch.nn.Parameter(value.contiguous().to(device)) for name, value in weights.items()}
    network.load_state_dict(values, assign=True)
    config.device = device
    return network.to(device=device)
