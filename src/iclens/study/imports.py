"""Import closure: the code and the libraries that a stage can run, read from source without importing any.

1. The syntax tree of a definition (a function, a class, a constant) says which others of its module it names,
   and what it imports, inside functions too; what stands under `TYPE_CHECKING` never runs and is left out.
2. Followed from definition to definition they give the closure: a module holds much that a stage never runs.
   With a module come the packages around it, and with a package its data files (YAML, templates, styles,
   arrays), wherever they lie under it. A module that is imported as such counts with all that it defines.
3. What the closure imports from outside are its libraries, each with its version.

A name put together at run time cannot be seen here, nor a statement that defines nothing; tests hold that no
stage needs one.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from sys import stdlib_module_names
from typing import TypeGuard

import iclens
from iclens.study.store import hash_file, hash_json

PACKAGE = Path(iclens.__file__).parent
DISTRIBUTIONS = {"sklearn": "scikit-learn", "vl_convert": "vl-convert-python"}
"""Import name → distribution, where they differ by more than `-` and `_`."""
CARRIERS = {"huggingface_hub", "pyarrow", "pydantic", "safetensors", "wandb", "yaml"}
"""Libraries that fetch, store or check what others compute; a new version of one changes no number."""
BEHIND = {"transformers": "tokenizers"}
"""Library → another that works behind it and is imported nowhere: which tokens a text has."""

Part = tuple[str, str]
"""A module and a name that it defines at its top; an empty name is the whole module, as of every package."""


def sources(start: Part, package: Path = PACKAGE) -> dict[str, str]:
    """Path inside the package → sha256 of every source and data file that is reached from `start`.

    Of a module of which only some definitions are reached, `path:name` → sha256 of the lines of each.
    """
    parts = reached(start, package)
    whole = {module for module, name in parts if not name}
    files = {file for module in whole if (file := _file(module, package)) is not None}
    files |= {data for folder in {file.parent for file in files} for data in _data(folder)}
    hashes = {file.relative_to(package).as_posix(): _hash(file) for file in files}
    for module, name in parts:
        if module not in whole and (file := _file(module, package)) is not None:
            hashes[f"{file.relative_to(package).as_posix()}:{name}"] = _hash_lines(module, name, package)
    return dict(sorted(hashes.items()))


def libraries(start: Part, package: Path = PACKAGE) -> dict[str, str]:
    """Import name → version of what `start`, and all that it reaches, imports from outside.

    Left out are `CARRIERS`, and the local part of a version (`+cpu`): machines have their own torch.
    """
    tops = {used.split(".")[0] for part in reached(start, package) for used, _ in _uses(part, package)}
    tops |= {other for name, other in BEHIND.items() if name in tops}
    outside = sorted(tops - stdlib_module_names - CARRIERS - {"iclens"})
    return {name: _version(DISTRIBUTIONS.get(name, name)) for name in outside}


@cache
def reached(start: Part, package: Path = PACKAGE) -> frozenset[Part]:
    """The parts of `iclens` that a part uses, directly or not, with itself and the packages around it."""
    known: set[Part] = set()
    todo = [start]
    while todo:
        module, name = todo.pop()
        file = _file(module, package)
        if file is None:
            continue
        whole = file.name == "__init__.py" or name not in _definitions(module, package)
        part = (module, "" if whole else name)
        if part not in known:
            known.add(part)
            todo += [(module.rpartition(".")[0], ""), *_uses(part, package)]
    return frozenset(known)


@cache
def _uses(part: Part, package: Path) -> tuple[Part, ...]:
    """What a part imports, from wherever, and for a definition the others of its module that it names."""
    module, name = part
    tree = _tree(module, package)
    if tree is None:
        return ()
    if not name:
        return tuple(dict.fromkeys(_imported(tree)))
    definitions, modules = _definitions(module, package), _modules(module, package)
    uses: list[Part] = []
    for node in definitions[name]:
        uses += _imported(ast.Module([node], []))
        below = list(ast.walk(node))
        parts = [inner for inner in below if isinstance(inner, ast.Attribute) and _root(inner) in modules]
        uses += [(modules[_root(inner)], inner.attr) for inner in parts]
        apart = {id(inner.value) for inner in parts}  # `module.name` is that name, not all of the module
        names = {inner.id for inner in below if isinstance(inner, ast.Name) and id(inner) not in apart}
        uses += [(module, other) for other in sorted(names & definitions.keys())]
    return tuple(dict.fromkeys(uses))


def _root(node: ast.Attribute) -> str:
    return node.value.id if isinstance(node.value, ast.Name) else ""


@cache
def _modules(module: str, package: Path) -> dict[str, str]:
    """Name at the top of a module → the module of `iclens` that it was imported as."""
    named = {}
    for name, (node, *_) in _definitions(module, package).items():
        if isinstance(node, ast.ImportFrom):
            target = f"{node.module}.{node.names[0].name}"
            if _file(target, package) is not None:
                named[name] = target
    return named


def _imported(tree: ast.Module) -> Iterator[Part]:
    """The imports below a node; of `from a import b`, `a` or its part `b`, and `a.b`."""
    for node in _run(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module is not None:
            for alias in node.names:
                yield node.module, alias.name
                yield f"{node.module}.{alias.name}", ""


@cache
def _definitions(module: str, package: Path) -> dict[str, list[ast.stmt]]:
    """Name → the statements at the top of a module that define it; of an import, the part that does."""
    tree, definitions = _tree(module, package), {}
    for node in [] if tree is None else tree.body:
        for statement in node.orelse if _for_type_checkers(node) else [node]:
            for name, definition in _defined(statement):
                definitions.setdefault(name, []).append(definition)
    return definitions


def _defined(node: ast.stmt) -> Iterator[tuple[str, ast.stmt]]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        yield node.name, node
    elif isinstance(node, ast.Import):
        yield from ((alias.asname or alias.name.split(".")[0], ast.Import([alias])) for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        for alias in node.names:
            yield alias.asname or alias.name, ast.ImportFrom(node.module, [alias], node.level)
    else:
        names = (inner for inner in ast.walk(node) if isinstance(inner, ast.Name))
        yield from ((inner.id, node) for inner in names if isinstance(inner.ctx, ast.Store))


def _run(node: ast.AST) -> Iterator[ast.AST]:
    """Every node below, without the branches that only a type checker takes."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue  # no import stands in an expression
        if isinstance(child, ast.If) and _for_type_checkers(child):
            child = ast.Module(child.orelse, [])
        yield child
        yield from _run(child)


def _for_type_checkers(node: ast.AST) -> TypeGuard[ast.If]:
    return isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"


@cache
def _tree(module: str, package: Path) -> ast.Module | None:
    return None if _file(module, package) is None else ast.parse("\n".join(_lines(module, package)))


@cache
def _lines(module: str, package: Path) -> list[str]:
    file = _file(module, package)
    return [] if file is None else file.read_text(encoding="utf-8").split("\n")


@cache
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


@cache
def _hash_lines(module: str, name: str, package: Path) -> str:
    """Hash of a definition's lines, decorators and comments included."""
    lines, texts = _lines(module, package), []
    for node in _definitions(module, package)[name]:
        if isinstance(node, ast.Import | ast.ImportFrom):
            texts.append([ast.unparse(node)])
            continue
        decorators = getattr(node, "decorator_list", [])
        first = min(inner.lineno for inner in (node, *decorators))
        texts.append(lines[first - 1 : node.end_lineno])
    return hash_json(texts)


_hash = cache(hash_file)
