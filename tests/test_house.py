"""The house rules that no linter knows: sizes, and what may be imported at run time."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULE_LINES = 900
CATALOGUES = {"src/iclens/schemas.py": 1250}
"""Modules that hold declarations alone, and how long they may be."""
MODULES = sorted(path for folder in ("src", "tests", "analysis") for path in (ROOT / folder).rglob("*.py"))
TORCH_FREE = ("core", "table", "stats", "schemas", "activations", "prompts", "growth")
TORCH_FREE_CONCEPTS = ("auroc", "confidence", "labels", "language", "probes", "tuning")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_one_idea_long(path: Path) -> None:
    most = CATALOGUES.get(path.relative_to(ROOT).as_posix(), MODULE_LINES)
    assert len(path.read_text(encoding="utf-8").splitlines()) <= most


def test_torch_free_packages_load_no_torch() -> None:
    inside = [
        path.relative_to(ROOT / "src").with_suffix("").parts
        for path in MODULES
        if ROOT / "src" in path.parents
    ]
    modules = [".".join(parts).removesuffix(".__init__") for parts in inside if parts[1] in TORCH_FREE]
    modules += [f"iclens.pages.{name}" for name in ("draw", "section", "growth", "words")]
    modules += [f"iclens.concepts.{name}" for name in TORCH_FREE_CONCEPTS]
    code = f"""
import importlib, sys
for module in {modules!r}:
    importlib.import_module(module)
print(*{{"torch", "transformers", "transformer_lens", "sae_lens"}} & set(sys.modules))
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert run.stdout.strip() == ""
