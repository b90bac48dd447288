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
        read: (folder, device) → its parts.
        example: a published set in this layout, or where it comes from.
    """

    name: str
    files: tuple[str, str]
    read: Callable[[Path, str], Parts]
    example: str


LAYOUTS = (
    Layout("sae_lens", (native.CONFIG, native.WEIGHTS), native.read, "what `iclens train` and SAELens write"),
    Layout("sparsify", (sparsify.CONFIG, sparsify.WEIGHTS), sparsify.read, "EleutherAI/sae-llama-3-8b-32x"),
    Layout(
        "llama_scope", (llama_scope.CONFIG, llama_scope.WEIGHTS), llama_scope.read,
        "fnlp/Llama3_1-8B-Base-LXR-8x, one folder per layer",
    ),
    Layout(
        "dictionary_learning", (dictionary_learning.CONFIG, dictionary_learning.WEIGHTS),
        dictionary_learning.read, "andyrdt/saes-llama-3.1-8b-instruct, one folder per trainer",
    ),
)  # fmt: skip


def read_folder(folder: Path, device: str) -> Parts:
    """Read the SAE that a folder holds, in whatever layout.

    Raises:
        SaeError: when there is no such folder, no known layout, or the SAE is damaged.
    """
    if not folder.is_dir():
        raise SaeError(f"SAE '{folder}'", "no such folder", "Give a folder, or release/sae_id of sae_lens.")
    for layout in LAYOUTS:
        if all((folder / file).is_file() for file in layout.files):
            return layout.read(folder, device)
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
