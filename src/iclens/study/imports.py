"""Import closure: the code and the libraries that a module can run, read from source without importing any.

1. The syntax tree of a module gives its imports, those inside functions too; what stands under
   `TYPE_CHECKING` never runs and is left out.
2. Followed from module to module they give the closure. With a module come the packages around it, and with a
   package its data files (YAML, templates, styles, arrays), wherever they lie under it.
3. What the closure imports from outside are its libraries, each with its version.

A module whose name is put together at run time cannot be seen here; tests hold that no stage runs one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from sys import stdlib_module_names

import iclens
from iclens.study import digests

PACKAGE = Path(iclens.__file__).parent
DISTRIBUTIONS = {"sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}
"""Import name → distribution, where they differ by more than `-` and `_`."""
CARRIERS = {"huggingface_hub", "pyarrow", "pydantic", "safetensors", "wandb", "yaml"}
"""Libraries that fetch, store or check what others compute; a new version of one changes no number."""
BEHIND = {"transformers": "tokenizers"}
"""Library → another that works behind it and is imported nowhere: which tokens a text has."""


def sources(module: str, package: Path = PACKAGE) -> dict[str, str]:
    """Path inside the package → sha256 of every source and data file that a module can reach.

    Args:
        module: dotted name, `iclens.…`.
        package: folder of the package `iclens`.
    """
    modules = reached(module, package)
    files = [file for name in modules if (file := _file(name, package)) is not None]
    folders = {file.parent for file in files}
    files += [data for folder in sorted(folders) for data in _data(folder)]
    return {file.relative_to(package).as_posix(): _hash(file) for file in sorted(files)}


def libraries(module: str, package: Path = PACKAGE) -> dict[str, str]:
    """Import name → version of what a module, and all that it can reach, imports from outside.

    Left out are `CARRIERS`, and the local part of a version (`+cpu`): machines have their own torch.
    """
    tops = {name.split(".")[0] for each in reached(module, package) for name in _imports(each, package)}
    tops |= {other for name, other in BEHIND.items() if name in tops}
    outside = sorted(tops - stdlib_module_names - CARRIERS - {"iclens"})
    return {name: _version(DISTRIBUTIONS.get(name, name)) for name in outside}


@cache
def reached(module: str, package: Path = PACKAGE) -> frozenset[str]:
    """The modules of `iclens` that a module imports, directly or not, with itself."""
    known: set[str] = set()
    todo = [module]
    while todo:
        current = todo.pop()
        if current not in known and _file(current, package) is not None:
            known.add(current)
            todo += [current.rpartition(".")[0], *_imports(current, package)]
    return frozenset(known)


@cache
def _imports(module: str, package: Path) -> tuple[str, ...]:
    """What a module imports, as dotted names; of `from a import b`, both `a` and `a.b`."""
    file = _file(module, package)
    if file is None:
        return ()
    found = []
    for node in _run(ast.parse(file.read_bytes())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            found += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(dict.fromkeys(found))


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, without the branches that only a type checker takes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue  # no import stands in an expression
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            child = ast.Module(child.orelse, [])
        yield child
        yield from _run(child)


def _file(module: str, package: Path) -> Path | None:
    """The source of a module of `iclens`; None for any other name."""
    top, *rest = module.split(".")
    if top != "iclens":
        return None
    place = package.joinpath(*rest)
    for file in (place / "__init__.py", place.with_suffix(".py")):
        if file.is_file():
            return file
    return None


def _data(folder: Path) -> Iterator[Path]:
    """Files of a package that are no source, and those of its folders that are no packages."""
    for path in folder.iterdir():
        if path.is_dir() and path.name != "__pycache__" and not (path / "__init__.py").is_file():
            yield from _data(path)
        elif path.is_file() and path.suffix not in (".py", ".pyc") and path.name != "py.typed":
            yield path


def _version(distribution: str) -> str:
    try:
        return version(distribution).split("+")[0]
    except PackageNotFoundError:  # an optional one
        return "not installed"


_hash = cache(digests.of_file)
