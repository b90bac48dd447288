"""docs/reference, written from docstrings and the command line's own help; and the tables of docs/schemas.md.

python docs/make_reference.py
"""

from __future__ import annotations

import logging
import re
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click
import griffe
import typer.main

import iclens
from iclens.cli import app
from iclens.schemas import TABLES
from iclens.study.run import FOLDERS

ROOT = Path(__file__).resolve().parents[1]
OUT = ROOT / "docs" / "reference"
SCHEMAS = ROOT / "docs" / "schemas.md"
WIDTH = 100
PAGES: dict[str, tuple[str, Sequence[str]]] = {
    "query": (
        "What `iclens.open` returns, and what can be asked of it. How to use it: [query.md](../query.md).",
        ["results.run", "results.answer", "results.select", "results.features", "core"],
    ),
    "config": (
        "Sections of a study's YAML and of a training configuration. Defaults: [schemas.md](../schemas.md).",
        ["study.config", "training.config"],
    ),
    "study": ("Running a study from Python.", ["study.pipeline", "study.check_saes", "seed_post.verdicts"]),
    "tasks": (
        "Tasks, prompts and what an ideal learner believes.",
        ["prompts.tasks", "prompts.arms", "prompts.build", "prompts.render", "prompts.mixture",
         "prompts.beliefs"],
    ),
    "models": ("Loading and running a model.", ["model.load", "model.gguf", "model.architectures",
         "model.run", "model.tail", "builtin.model", "builtin.evaluate"]),
    "saes": (
        "Loading, judging and converting SAEs.",
        ["saes.load", "saes.encode", "saes.quality"],
    ),
    "tracking": ("Latents and beliefs over the examples.", ["tracking"]),
    "growth": (
        "Which latents grow, and how. The tests in words: [growth.md](../growth.md).",
        ["growth.detect", "growth.bayes", "growth.shape", "stats"],
    ),
    "transforms": (
        "Which latents answer to which concept. In words: [transforms.md](../transforms.md).",
        ["concepts.language", "concepts.labels", "concepts.probes", "concepts.contributions"],
    ),
    "patching": (
        "Residuals, heads and latents from run A into run B. In words: [patching.md](../patching.md).",
        ["patching.runs", "patching.sweep", "patching.receiver", "patching.latents", "patching.sets",
         "patching.specificity", "patching.heads", "patching.redundancy"],
    ),
    "training": ("Training SAEs, and planning it.", ["training.loop", "training.plan"]),
    "pages": (
        "Pages as data: sections over the tables of a run. In words: [pages.md](../pages.md).",
        ["pages.section", "pages.draw", "pages.site"],
    ),
}  # fmt: skip
"""Page → what it is about, and the modules whose public names it holds."""
WHOLE = ("query", "config", "pages")
"""Pages of whole modules; others hold the names of `iclens`, and the classes that these speak of."""
OF_TABLES = ("table", "schemas", "activations")


def pages() -> dict[str, str]:
    """File name → text of every page."""
    logging.getLogger("griffe").setLevel(logging.ERROR)
    package = griffe.load("iclens", search_paths=[str(ROOT / "src")], docstring_parser="google")
    public = _public(package)
    found = {f"{name}.md": _page(package, name, *what, public) for name, what in PAGES.items()}
    found["tables.md"] = _tables(package)
    found["cli.md"] = _commands()
    about = {name: what for name, (what, _) in PAGES.items()}
    about |= {
        "tables": "Names and meanings of the tables.",
        "cli": "Every command with its arguments and options.",
    }
    lines = [f"- [{name}]({name}.md): {what.replace('](../', '](../')}" for name, what in about.items()]
    found["README.md"] = _text(
        [
            "# Reference",
            "Written by `python docs/make_reference.py` from docstrings; a test compares.",
            "\n".join(lines),
        ]
    )
    return found


def _text(parts: Sequence[str]) -> str:
    return "\n\n".join(part.strip("\n") for part in parts if part.strip()) + "\n"


def _page(package: Any, name: str, about: str, modules: Sequence[str], public: set[str]) -> str:
    parts = [f"# {name.capitalize()}", about]
    for path in modules:
        module = package[path]
        members = [one for one in _own(module) if name in WHOLE or one.path in public]
        if members:
            parts += [f"## `iclens.{path}`", _prose(module.docstring)]
        for member in members:
            parts.extend(_function(member, 3) if member.is_function else _class(member))
    return _text(parts)


def _public(package: Any) -> set[str]:
    """Paths of the names of `iclens`, and of the classes that their signatures, fields and methods name."""
    every = [one for _, modules in PAGES.values() for m in modules for one in _own(package[m])]
    by_path, classes = {one.path: one for one in every}, {one.name: one.path for one in every if one.is_class}
    public, left = (
        set[str](),
        [path for name in iclens.__all__ if (path := package[name].canonical_path) in by_path],
    )
    while left:
        one = by_path[path := left.pop()]
        if path in public:
            continue
        public.add(path)
        inside = one.members.values() if one.is_class else [one]
        texts = [_signature(f) if f.is_function else str(f.annotation) for f in inside if not f.is_alias]
        words = set(re.findall(r"\w+", " ".join(texts)))
        left += [classes[word] for word in words & classes.keys()]
    return public


def _own(module: Any) -> Iterator[Any]:
    """Public functions and classes of a module, those of its `__all__` if it has one, in its order."""
    for name, member in module.members.items():
        if module.exports is not None and name not in module.exports:
            continue
        if not name.startswith("_") and not member.is_alias and (member.is_function or member.is_class):
            yield member


def _function(function: Any, depth: int) -> Iterator[str]:
    yield f"{'#' * depth} `{function.name}`"
    yield f"```text\n{_signature(function)}\n```"
    yield _sections(function.docstring)


def _class(kind: Any) -> Iterator[str]:
    bases = f"({', '.join(str(base) for base in kind.bases)})" if kind.bases else ""
    yield f"### `{kind.name}`"
    yield f"```text\nclass {kind.name}{bases}\n```"
    yield _sections(kind.docstring)
    members = [m for name, m in kind.members.items() if not name.startswith("_") and not m.is_alias]
    fields = [m for m in members if m.is_attribute and m.annotation is not None]
    documented = {p.name for s in _parsed(kind.docstring) if s.kind.value == "parameters" for p in s.value}
    rows = [
        f"- `{m.name}: {m.annotation}{'' if m.value is None else f' = {_short(m.value)}'}`"
        + (f": {meaning}" if (meaning := _line(m.docstring) or _beside(m)) else "")
        for m in fields
        if m.name not in documented and "property" not in m.labels
    ]
    rows += [f"- `{m.name}`: {_line(m.docstring)}" for m in members if "property" in m.labels]
    yield "\n".join(rows)
    for method in members:
        if method.is_function and method.docstring is not None and not method.decorators:
            yield from _function(method, 4)


def _beside(field: Any) -> str:
    """The comment of a field: what stands behind it, or the lines right above."""
    lines = field.filepath.read_text(encoding="utf-8").splitlines()
    _, mark, behind = lines[field.lineno - 1].partition("  # ")
    if mark:
        return behind
    above = []
    for line in reversed(lines[: field.lineno - 1]):
        if not line.strip().startswith("# "):
            break
        above.insert(0, line.strip()[2:])
    return " ".join(above)


def _short(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= 60 else f"{text[:57]}…"


def _line(docstring: Any) -> str:
    return " ".join(docstring.value.split("\n\n")[0].split()) if docstring else ""


def _signature(function: Any) -> str:
    """`name(a: int, *, b: str = 'x') -> int`, over several lines where it is long."""
    parts, starred = [], False
    for parameter in function.parameters:
        if parameter.name in ("self", "cls"):
            continue
        kind = parameter.kind.value
        starred |= kind == "variadic positional"
        if kind == "keyword-only" and not starred:
            parts.append("*")
            starred = True
        stars = {"variadic positional": "*", "variadic keyword": "**"}.get(kind, "")
        text = f"{stars}{parameter.name}" + (f": {parameter.annotation}" if parameter.annotation else "")
        parts.append(text + (f" = {parameter.default}" if parameter.default and not stars else ""))
    end = f" -> {function.returns}" if function.returns else ""
    line = f"{function.name}({', '.join(parts)}){end}"
    if len(line) <= WIDTH:
        return line
    return f"{function.name}(\n" + "".join(f"    {part},\n" for part in parts) + f"){end}"


def _parsed(docstring: Any) -> list[Any]:
    if docstring is None:
        return []
    return docstring.parse("google", returns_multiple_items=False, returns_named_value=False)


def _prose(docstring: Any) -> str:
    return "" if docstring is None else _fenced(docstring.value)


def _fenced(text: str) -> str:
    """Prose with its indented parts as text blocks."""
    parts = []
    for part in text.split("\n\n"):
        indented = all(line.startswith("    ") for line in part.splitlines())
        parts.append(f"```text\n{textwrap.dedent(part)}\n```" if indented else part)
    return "\n\n".join(parts)


def _sections(docstring: Any) -> str:
    parts = []
    for section in _parsed(docstring):
        kind = section.kind.value
        if kind == "text":
            parts.append(_fenced(section.value))
        elif kind in ("parameters", "attributes"):
            parts.append("\n".join(f"- `{one.name}`: {_flat(one.description)}" for one in section.value))
        elif kind in ("returns", "yields"):
            parts.append("\n".join(f"{kind.capitalize()}: {_flat(one.description)}" for one in section.value))
        elif kind == "raises":
            parts.append(
                "\n".join(f"- raises `{one.annotation}` {_flat(one.description)}" for one in section.value)
            )
        elif kind == "admonition":
            parts.append(f"{section.title}: {_flat(section.value.description)}")
        else:
            raise ValueError(f"a docstring section '{kind}' that no page knows how to show")
    return "\n\n".join(parts)


def _flat(text: str) -> str:
    return " ".join(text.split())


def _tables(package: Any) -> str:
    """Every table class with what it is; columns are in schemas.md."""
    rows = ["| class | module | is |", "|---|---|---|"]
    for module in map(package.__getitem__, OF_TABLES):
        name = module.path.removeprefix("iclens.")
        for kind in _own(module):
            if kind.is_class:
                meaning = _line(kind.docstring).replace("|", "\\|")
                rows.append(f"| `{kind.name}` | `{name}` | {meaning} |")
    return _text(["# Tables", "Columns with type and meaning: [schemas.md](../schemas.md).", "\n".join(rows)])


def schemas() -> str:
    """docs/schemas.md with its tables as their classes declare them, between their heading and the config."""
    head, _, rest = SCHEMAS.read_text(encoding="utf-8").partition("\n### `")
    tail = rest[rest.index("\n## A study config") :]
    parts = []
    for name, kind in TABLES.items():
        rows = "\n".join(
            f"| `{column}` | {declared.kind} | {declared.meaning.replace('|', chr(92) + '|')} |"
            for column, declared in kind.COLUMNS.items()
        )
        about = "\n\n".join(_flat(part) for part in (kind.__doc__ or "").split("\n\n"))
        key = ", ".join(f"`{column}`" for column in kind.KEY)
        title = f"### `{name}`: `{FOLDERS[kind.stage]}/{kind.file}`"
        head_row = "| column | type | meaning |\n|---|---|---|"
        parts.append(f"{title}\n\n{about} Key: {key}.\n\n{head_row}\n{rows}\n")
    return head + "\n" + "\n".join(parts) + tail


def _commands() -> str:
    command = typer.main.get_command(app)
    return _text(["# Commands", *_command("iclens", command)])


def _command(name: str, command: Any) -> Iterator[str]:
    """A command's help, its parameters, and its subcommands."""
    yield f"## `{name}`"
    yield command.help or ""
    if isinstance(command, click.Group) or hasattr(command, "commands"):
        for inner, found in sorted(command.commands.items()):
            yield from _command(f"{name} {inner}", found)
        return
    arguments = [p.name.upper() for p in command.params if p.param_type_name == "argument"]
    yield f"```text\n{' '.join([name, *arguments, '[OPTIONS]'])}\n```"
    yield "\n".join(_parameter(one) for one in command.params if one.name != "help")


def _parameter(one: Any) -> str:
    default = (
        "" if one.default is None or one.default is False or one.required else f" Default: `{one.default}`."
    )
    named = (
        one.name.upper() if one.param_type_name == "argument" else ", ".join((*one.opts, *one.secondary_opts))
    )
    return f"- `{named}`: {one.help or ''}{default}"


def main() -> None:
    """Write every page and the tables of schemas.md; pages that are no more are removed."""
    SCHEMAS.write_text(schemas(), encoding="utf-8")
    OUT.mkdir(exist_ok=True)
    made = pages()
    for old in OUT.glob("*.md"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        (OUT / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
