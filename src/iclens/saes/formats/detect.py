"""Which layout does a folder hold? The first whose two files are there."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from iclens.errors import SaeError
from iclens.saes.formats import dictionary_learning, llama_scope, native, sparsify
from iclens.saes.formats.parts import Parts


@dataclass(frozen=True)
class Layout:
    """A way in which SAEs are stored.

    Args:
        name: what it is called.
        files: config and weights, by which it is recognised.
        read: (folder, device, d_model) → its parts.
        origin: where SAEs in this layout come from.
        published: (an SAE on the hub, the model it was trained on) outside sae_lens' registry.
    """

    name: str
    files: tuple[str, str]
    read: Callable[[Path, str, int | None], Parts]
    origin: str
    published: tuple[tuple[str, str], ...] = ()


LAYOUTS = (
    Layout("sae_lens", (native.CONFIG, native.WEIGHTS), native.read, "what `iclens train` and SAELens write"),
    Layout(
        "sparsify", (sparsify.CONFIG, sparsify.WEIGHTS), sparsify.read,
        "EleutherAI's sparsify, one folder per hookpoint",
        (("EleutherAI/sae-llama-3-8b-32x/layers.14", "meta-llama/Meta-Llama-3-8B"),),
    ),
    Layout(
        "llama_scope", (llama_scope.CONFIG, llama_scope.WEIGHTS), llama_scope.read,
        "Llama Scope, one folder per layer",
    ),
    Layout(
        "dictionary_learning", (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
        dictionary_learning.read, "dictionary_learning, one folder per trainer",
        (
            (
                "andyrdt/saes-llama-3.1-8b-instruct/resid_post_layer_3/trainer_1",
                "meta-llama/Llama-3.1-8B-Instruct",
            ),
        ),
    ),
)  # fmt: skip


def read_folder(folder: Path, device: str, d_model: int | None = None) -> Parts:
    """Read the SAE that a folder holds, in whatever layout.

    Raises:
        SaeError: when there is no such folder, no known layout, or the SAE is damaged.
    """
    if not folder.is_dir():
        raise SaeError(f"SAE '{folder}'", "no such folder", "Give a folder, or release/sae_id of sae_lens.")
    for layout in LAYOUTS:
        if all((folder / file).is_file() for file in layout.files):
            return layout.read(folder, device, d_model)
    missing = [
        other for layout in LAYOUTS for file, other in zip(layout.files, layout.files[::-1], strict=True)
        if (folder / file).is_file()
    ]  # fmt: skip
    if missing:
        raise SaeError(
            f"SAE '{folder}'", f"{' or '.join(missing)} is missing", "Copy the whole folder again."
        )
    known = "; ".join(f"{' and '.join(layout.files)} ({layout.name})" for layout in LAYOUTS)
    raise SaeError(f"SAE '{folder}'", "no SAE in a known layout", f"It should hold {known}.")
