"""Which layout does a folder hold, and what is it when it holds none?

1. A layout is recognised by its config and weights together. 2. Where one of the two is missing, the other
says which layout it is of, and what has to be there, or how to write what stands there under another name.
3. A folder above SAEs names them, one inside an SAE names that; a language model's folder is called one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from safetensors import SafetensorError, safe_open

from iclens.core import SaeError
from iclens.saes.formats import dictionary_learning, llama_scope, llamascopium, native, sparsify
from iclens.saes.formats.parts import Parts, read_json, shown

_DEPTH = 3
"""How far below a folder its SAEs are looked for: owner, release, SAE."""
_FOLDERS = 2_000
"""Folders that are looked into at most."""
_NAMED = 6
"""SAEs or files that are named at most."""
_LOADED = {
    ".safetensors": "safetensors.torch.load_file({!r})",
    **{suffix: "torch.load({!r}, weights_only=True)" for suffix in (".pt", ".pth", ".bin", ".ckpt")},
}
"""How tensors are loaded from a file, by its suffix."""
_IN_REGISTRY = {
    "params.npz": (
        "parameters of Gemma Scope", "gemma-scope-2b-pt-res-canonical/layer_0/width_16k/canonical",
    ),
    "final_sparse_autoencoder*.pt": (
        "a pickle of the first SAELens", "gpt2-small-res-jb/blocks.0.hook_resid_pre",
    ),
}  # fmt: skip
"""Files that are read by SAELens' registry alone → what they are, and one SAE there."""


@dataclass(frozen=True)
class Layout:
    """A way in which SAEs are stored.

    Args:
        name: what it is called.
        config: its config.
        weights: where its weights may stand, one of these.
        read: (folder, device, d_model) → its parts.
        origin: where SAEs in this layout come from.
        keys: keys of its config, one of which no other layout's config of that name has.
        tensor: a tensor that no other layout's weights of that name have.
        published: (an SAE on the hub, the model it was trained on) outside sae_lens' registry.
    """

    name: str
    config: str
    weights: tuple[str, ...]
    read: Callable[[Path, str, int | None], Parts]
    origin: str
    keys: tuple[str, ...]
    tensor: str
    published: tuple[tuple[str, str], ...] = ()

    @property
    def files(self) -> tuple[str, str]:
        """Its config and its weights, as they are usually named."""
        return self.config, self.weights[0]

    def stored(self, folder: Path) -> Path | None:
        """The weights of this layout that a folder holds."""
        return next((folder / name for name in self.weights if (folder / name).is_file()), None)

    def held(self, folder: Path) -> bool:
        """Whether a folder holds both of its files; config.json is other programs' name too, and is read."""
        if not (folder / self.config).is_file() or self.stored(folder) is None:
            return False
        return self.config != "config.json" or self.described(folder)

    def described(self, folder: Path) -> bool:
        """Whether a folder's config is this layout's, among those that share its name."""
        if not (folder / self.config).is_file():
            return False
        values = read_json(folder / self.config)
        return any(key in values for key in self.keys)


LAYOUTS = (
    Layout(
        "sae_lens", native.CONFIG, (native.WEIGHTS,), native.read, "what `iclens train` and SAELens write",
        ("d_sae", "architecture", "metadata"), "W_enc",
    ),
    Layout(
        "sparsify", sparsify.CONFIG, (sparsify.WEIGHTS,), sparsify.read,
        "EleutherAI's sparsify, one folder per hookpoint",
        ("num_latents", "expansion_factor", "normalize_decoder", "k"), "encoder.weight",
        (("EleutherAI/sae-llama-3-8b-32x/layers.14", "meta-llama/Meta-Llama-3-8B"),),
    ),
    Layout(
        "llama_scope", llama_scope.CONFIG, (llama_scope.WEIGHTS,), llama_scope.read,
        "Llama Scope, one folder per layer", ("d_model", "hook_point_in"), "encoder.weight",
    ),
    Layout(
        "dictionary_learning", dictionary_learning.CONFIG, (dictionary_learning.WEIGHTS,),
        dictionary_learning.read, "dictionary_learning, one folder per trainer",
        ("trainer", "dict_class"), "",
        (
            (
                "andyrdt/saes-llama-3.1-8b-instruct/resid_post_layer_3/trainer_1",
                "meta-llama/Llama-3.1-8B-Instruct",
            ),
        ),
    ),
    Layout(
        "llamascopium", llamascopium.CONFIG, llamascopium.WEIGHTS, llamascopium.read,
        "OpenMOSS' llamascopium 2, one folder per SAE", ("sae_type", "hook_point_in"), "W_E",
    ),
)  # fmt: skip


def read_folder(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read the SAE that a folder holds, in whatever layout.

    Raises:
        SaeError: when there is no such folder, no SAE of a known layout in it, or the SAE is damaged.
    """
    if folder.is_file():
        raise SaeError(f"SAE '{folder}'", "a file", f"Give its folder, '{folder.parent}'.")
    if not folder.is_dir():
        raise SaeError(
            f"SAE '{folder}'", "no such folder",
            "Give a folder, release/sae_id of sae_lens, or owner/repository/folder on the hub.",
        )  # fmt: skip
    for layout in LAYOUTS:
        if layout.held(folder):
            return layout.read(folder, device, d_model)
    _refuse_other(folder)


def members(folder: Path) -> list[Path]:
    """The SAEs of known layouts that stand below a folder, by name."""
    looked = zip(range(_FOLDERS), _below(folder, _DEPTH), strict=False)
    return sorted(path for _, path in looked if any(layout.held(path) for layout in LAYOUTS))


def parts_of_one(folder: Path) -> bool:
    """Whether a folder holds a file by which some layout is recognised."""
    return any((folder / layout.config).is_file() or layout.stored(folder) is not None for layout in LAYOUTS)


def _below(folder: Path, depth: int) -> Iterator[Path]:
    """Folders below, the nearest first; hidden ones left out, and what cannot be listed."""
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")
    except OSError:
        return
    yield from inner
    if depth > 1:
        for path in inner:
            yield from _below(path, depth - 1)


def _refuse_other(folder: Path) -> NoReturn:
    """Say what a folder is that holds no whole SAE."""
    asked = f"SAE '{folder}'"
    config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
    is_model = bool(config.get("model_type") or config.get("architectures"))
    if inner := members(folder):
        names = ", ".join(str(path.relative_to(folder)) for path in inner[:_NAMED])
        more = f" and {len(inner) - _NAMED} more" if len(inner) > _NAMED else ""
        count = "1 SAE" if len(inner) == 1 else f"{len(inner)} SAEs"
        kind = "a language model, not an SAE," if is_model else "no SAE"
        raise SaeError(asked, f"it is {kind} but holds {count}: {names}{more}", f"Name one: '{inner[0]}'.")
    if is_model:
        raise SaeError(
            asked, "it is a language model, not an SAE",
            "Name the SAE here, and the model as the model (--model, or model.folder of a study).",
        )  # fmt: skip
    files = sorted(path.name for path in folder.iterdir() if path.suffix in _LOADED and path.is_file())
    _refuse_half(folder, files)
    for pattern, (kind, example) in _IN_REGISTRY.items():
        if file := next(folder.glob(pattern), None):
            raise SaeError(
                asked, f"{shown(file.name)} is {kind}, which SAELens' registry reads, by a name",
                f"Name it as release/sae_id, such as {example}: `iclens saes list` names the releases.",
            )  # fmt: skip
    known = "; ".join(f"{' and '.join(layout.files)} ({layout.name})" for layout in LAYOUTS)
    strange = "no SAE in a known layout"
    if config:
        strange += f": config.json has the keys {', '.join(map(shown, sorted(config)[:_NAMED]))}"
    if files:
        strange += f"; it holds {', '.join(map(shown, files[:_NAMED]))}"
    raise SaeError(asked, strange, f"It should hold {known}.")


def _refuse_half(folder: Path, files: list[str]) -> None:
    """Raise a SaeError where a folder is a part of an SAE: its config, its weights, or a folder inside it.

    Args:
        folder: holds no whole SAE.
        files: those of the folder that may hold tensors.
    """
    asked, above = f"SAE '{folder}'", folder.resolve().parent
    for layout in LAYOUTS:
        weights = layout.stored(above)
        if weights is not None and weights.parent == folder.resolve() and layout.held(above):
            raise SaeError(
                asked, f"it holds the weights of an SAE, whose {layout.config} stands above ({layout.name})",
                f"Name the folder above: '{above}'.",
            )  # fmt: skip
        weights = layout.stored(folder)
        if weights is None and layout.described(folder):
            missing = f"{' or '.join(layout.weights)} is missing beside {layout.config} ({layout.name})"
            if not files:
                raise SaeError(asked, missing, "Fetch the weights from where the SAE is published.")
            raise SaeError(
                asked, f"{missing}, where {', '.join(map(shown, files[:_NAMED]))} stands",
                f"If {shown(files[0])} holds its weights, {_written_as(files[0], layout.weights[0])}.",
            )  # fmt: skip
        if weights is not None and layout.tensor in ("", *_names(weights)):
            raise SaeError(
                asked, f"{layout.config} is missing beside {weights.relative_to(folder)} ({layout.name})",
                f"Fetch {layout.config} from where the SAE is published.",
            )  # fmt: skip


def _written_as(file: str, target: str) -> str:
    """What writes a file's tensors under the name that a layout has for them."""
    suffix = Path(file).suffix
    if suffix == Path(target).suffix:
        return f"move it to {target}"
    tensors = _LOADED[suffix].format(file)
    if target.endswith(".safetensors"):
        return f"write them in Python by safetensors.torch.save_file({tensors}, {target!r})"
    return f"write them in Python by torch.save({tensors}, {target!r})"


def _names(weights: Path) -> tuple[str, ...]:
    """The tensors of a safetensors file; none when it cannot be read."""
    try:
        with safe_open(weights, "pt") as file:
            return tuple(file.keys())
    except (SafetensorError, OSError):
        return ()
