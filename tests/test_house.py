"""The house rules that no linter knows: sizes, and what may be imported at run time."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
MODULE_LINES = 400
FUNCTION_LINES = 60
MODULES = sorted(path for folder in ("src", "tests", "analysis") for path in (ROOT / folder).rglob("*.py"))
TORCH_FREE = ("errors", "names", "tables", "tasks", "growth", "transforms", "dashboards")


def long_functions(source: str) -> Iterator[str]:
    """Functions whose lines, the docstring not counted, exceed FUNCTION_LINES."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        start, stop = node.lineno, node.end_lineno or node.lineno
        lines = stop - start + 1
        if ast.get_docstring(node) is not None:
            docstring = node.body[0]
            lines -= (docstring.end_lineno or docstring.lineno) - docstring.lineno + 1
        if lines > FUNCTION_LINES:
            yield f"{node.name}, line {start}: {lines} lines"


def test_long_functions_counts_code_and_not_the_docstring() -> None:
    body = "    pass\n"
    assert not list(long_functions("def f():\n" + body * (FUNCTION_LINES - 1)))
    assert list(long_functions("def f():\n" + body * FUNCTION_LINES)) == ["f, line 1: 61 lines"]
    assert not list(
        long_functions('def f():\n    """One.\n\n    Two.\n    """\n' + body * (FUNCTION_LINES - 1))
    )


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_module_is_short(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= MODULE_LINES
    if path.is_relative_to(ROOT / "src"):
        assert not list(long_functions(source))


def test_torch_free_packages_load_no_torch() -> None:
    inside = [
        path.relative_to(ROOT / "src").with_suffix("").parts
        for path in MODULES
        if ROOT / "src" in path.parents
    ]
    modules = [".".join(parts).removesuffix(".__init__") for parts in inside if parts[1] in TORCH_FREE]
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
