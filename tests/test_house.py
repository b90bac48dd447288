"""The house rules that no linter knows: sizes, and what may be imported at run time."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import iclens

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


def test_docs_and_analyses_import_public_names_alone() -> None:
    texts = [ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "howto").glob("*.md")]
    texts += [*(ROOT / "analysis").glob("*.py"), *(ROOT / "analysis").glob("*.ipynb")]
    texts += (ROOT / "checkpoints").glob("*/README.md")
    deep = re.compile(r"(from|import) iclens\.")
    assert not [path.name for path in texts if deep.search(path.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("name", iclens.__all__)
def test_public_name_is_there_and_says_what_it_is(name: str) -> None:
    value = getattr(iclens, name)
    assert name in dir(iclens)
    assert value.__doc__ if callable(value) else value


def test_torch_free_packages_load_no_torch() -> None:
    inside = [
        path.relative_to(ROOT / "src").with_suffix("").parts
        for path in MODULES
        if ROOT / "src" in path.parents
    ]
    modules = [".".join(parts).removesuffix(".__init__") for parts in inside if parts[1] in TORCH_FREE]
    modules += [f"iclens.pages.{name}" for name in ("draw", "section", "growth", "text")]
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
