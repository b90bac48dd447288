"""The key of a stage holds whatever the stage can run: code, data files and libraries."""

import ast
import dis
import hashlib
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import CodeType, FrameType

import grimp
import pytest

import iclens
from iclens.study import imports
from iclens.study.flow import FLOW
from iclens.study.inputs import outside_inputs
from iclens.study.pipeline import Outcome
from iclens.study.run import STAGES, RunContext, Stage, find_run, inputs_of

from .conftest import Small

EVERY = pytest.mark.parametrize("stage", FLOW, ids=lambda stage: stage.name)


def test_the_flow_is_in_order_and_reads_only_what_stands_above() -> None:
    assert tuple(stage.name for stage in FLOW) == STAGES
    outside = {"model", "SAE source", "other SAEs"}
    for i, stage in enumerate(FLOW):
        assert set(stage.reads) <= outside | set(STAGES[:i]), stage.name


@cache
def graph() -> grimp.ImportGraph:
    """Who imports whom, as import-linter sees it: written by others, from the same sources."""
    return grimp.build_graph("iclens", exclude_type_checking_imports=True, cache_dir=None)


def source(module: str) -> Path:
    folder = imports.PACKAGE.joinpath(*module.split(".")[1:])
    return folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")


@EVERY
def test_a_stage_reaches_what_an_independent_import_graph_says(stage: Stage) -> None:
    """All that a whole module imports is reached, and all that is reached is imported from there."""
    parts = imports.reached(stage.code)
    modules, whole = ({m for m, _ in parts}, {m for m, name in parts if not name})
    packages = {module for module in modules if source(module).name == "__init__.py"}
    for module in whole:
        assert graph().find_modules_directly_imported_by(module) <= modules, module
    for module in modules - packages - {"iclens.study.flow"}:
        assert graph().find_modules_that_directly_import(module) & modules, module
    assert len(modules) > 20


def codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from codes(constant)


@EVERY
def test_a_definition_reaches_what_its_bytecode_names(stage: Stage) -> None:
    parts = imports.reached(stage.code)
    checked = 0
    for module in {m for m, name in parts if name and (m, "") not in parts}:
        tree = compile(source(module).read_bytes(), module, "exec")
        tops = {c.co_name: c for c in tree.co_consts if isinstance(c, CodeType)}
        for name in {name for m, name in parts if m == module} & tops.keys():
            steps = [step for code in codes(tops[name]) for step in dis.get_instructions(code)]
            used = {step.argval for step in steps if step.opname in ("LOAD_GLOBAL", "LOAD_NAME")}
            used &= imports._definitions(module, imports.PACKAGE).keys()
            used -= imports._modules(module, imports.PACKAGE).keys()  # what stands after a dot counts
            assert {(module, n) for n in used} <= parts
            named = {step.argval for step in steps if step.opname == "IMPORT_NAME"}
            assert {n for n in named if n.startswith("iclens")} <= {m for m, _ in parts}, (module, name)
            checked += 1
    assert checked > 3


@EVERY
def test_everything_reached_is_hashed(stage: Stage) -> None:
    hashes = imports.sources(stage.code)
    for module, name in imports.reached(stage.code):
        file = source(module).relative_to(imports.PACKAGE).as_posix()
        if name and file not in hashes:
            assert len(hashes[f"{file}:{name}"]) == 16
        else:
            assert hashes[file] == hashlib.sha256(source(module).read_bytes()).hexdigest()[:16]


def test_touching_a_module_or_a_definition_changes_the_code_alone(
    first: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunContext(find_run(first.run), {})
    monkeypatch.setattr(RunContext, "digest", lambda self, name: name)
    (stage,) = (stage for stage in FLOW if stage.name == "track")
    before = inputs_of(stage, run)
    for name, touched in (("_hash", source("iclens.growth")), ("_hash_lines", "joined_shards")):
        read = getattr(imports, name)
        with monkeypatch.context() as patched:
            patched.setattr(imports, name, lambda *at, r=read, t=touched: "touched" if t in at else r(*at))
            after = inputs_of(stage, run)
        assert {name for name in before if before[name] != after[name]} == {"code"}


def reached_code(stage: str) -> set[str]:
    """Files and definitions, `file:name`, that a stage can run, and the files of the latter."""
    (code,) = (known.code for known in FLOW if known.name == stage)
    hashed = set(imports.sources(code))
    return hashed | {name.split(":")[0] for name in hashed}


@pytest.mark.parametrize(
    ("stage", "touched"),
    [
        ("growth", "growth/bayes.py:Calibration"), ("track", "growth/bayes.py:calibrate"),
        ("track", "study/follow.py:joined_shards"), ("track", "study/run.py:RunContext"),
        ("patch", "study/run.py:RunContext"), ("detect", "study/store.py:save"), ("detect", "table.py:Table"),
        ("shape", "growth/shape.py:fit_shapes"), ("saes", "training/data.py"),
        ("identify", "concepts/concepts.yaml"), ("identify", "study/flow.py:identify"),
        ("dashboard", "pages/assets/site.css"), ("dashboard", "pages/templates/base.html.j2"),
    ],
)  # fmt: skip
def test_code_that_no_list_named(stage: str, touched: str) -> None:
    assert touched in reached_code(stage)


@pytest.mark.parametrize(
    ("stage", "never"),
    [
        ("track", "growth/verdict.py"), ("track", "study/follow.py:sae_set"), ("track", "study/flow.py:saes"),
        ("track", "growth/bayes.py:bayes_tests"), ("detect", "patching/dose.py"),
        ("shape", "study/growth.py:dose_tables"), ("sweep", "patching/sets.py:patch_sets"),
        ("patch", "study/concepts.py:labelled"), ("patch", "schemas.py:GrowthTable"),
        ("saes", "study/pipeline.py:bring_up_to_date"), ("saes", "study/run.py:inputs_of"),
    ],
)  # fmt: skip
def test_a_stage_is_not_done_again_for_the_code_of_another(stage: str, never: str) -> None:
    file, _, name = never.partition(":")
    assert not name or name in imports._definitions(f"iclens.{file[:-3].replace('/', '.')}", imports.PACKAGE)
    assert (imports.PACKAGE / file).is_file() and never not in reached_code(stage)


@EVERY
def test_pages_decide_no_number(stage: Stage) -> None:
    sources, libraries = imports.sources(stage.code), imports.libraries(stage.code)
    if stage.name != "dashboard":
        drawing = ("pages", "study/query", "study/results")
        assert not [file for file in sources if file.startswith(drawing)]
        assert not {"altair", "jinja2"} & libraries.keys()
    if stage.name != "saes":
        assert not [file for file in sources if file.startswith("training/steps")]


def test_a_copy_that_is_edited_has_another_hash(tmp_path: Path) -> None:
    """Imports in functions and in branches, packages and data count; imports for type checkers do not."""
    package = tmp_path / "iclens"
    files = {
        "__init__.py": "", "a/__init__.py": "", "a/one.py": LAZY, "b/__init__.py": "", "b/two.py": "X = 1",
        "b/three.py": "import scipy.stats", "b/four.py": "", "b/data/words.txt": "one", "c.py": "",
        "d.py": "", "study/__init__.py": "", "study/parts.py": PARTS,
    }  # fmt: skip
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    before = imports.sources(("iclens.a.one", ""), package)
    assert set(before) == {name for name in files if not name.startswith(("c.py", "study/"))}
    assert imports.libraries(("iclens.a.one", ""), package).keys() == {"scipy", "torch"}
    (package / "b" / "four.py").write_text("x = 1")
    clear()
    after = imports.sources(("iclens.a.one", ""), package)
    assert {name for name in before if before[name] != after[name]} == {"b/four.py"}


@pytest.mark.parametrize(
    ("old", "new", "changes"),
    [
        ("SCALE = 2", "SCALE = 3", True), ("@cache", "", True), ("return SCALE", "return 1 * SCALE", True),
        ("b.two import X", "b.two import Y", True), ("return 'other'", "return 'more'", False),
        ("import c as other", "import d as other", False),
        ("five.Y", "five.Z", True), ("five.Y", "1", True),
    ],
)  # fmt: skip
def test_of_a_study_module_only_what_is_used_counts(
    tmp_path: Path, old: str, new: str, changes: bool
) -> None:
    package = tmp_path / "iclens"
    for name in ("", "b", "study"):
        (package / name).mkdir(exist_ok=True)
        (package / name / "__init__.py").touch()
    for name in ("b/two.py", "c.py", "d.py"):
        (package / name).touch()
    (package / "b" / "five.py").write_text("Y = 1\nZ = 2")
    hashes = []
    for text in (PARTS, PARTS.replace(old, new)):
        (package / "study" / "parts.py").write_text(text)
        clear()
        hashes.append(imports.sources(("iclens.study.parts", "work"), package))
    assert {"b/two.py", "b/five.py:Y", "study/parts.py:work", "study/parts.py:SCALE"} <= hashes[0].keys()
    others = {"c.py", "b/five.py", "b/five.py:Z", "study/parts.py", "study/parts.py:other_work"}
    assert not others & hashes[0].keys()
    assert (hashes[0] != hashes[1]) == changes


def clear() -> None:
    for name in (
        "_hash",
        "_hash_lines",
        "_lines",
        "_file",
        "_uses",
        "_definitions",
        "_modules",
        "_tree",
        "reached",
    ):
        getattr(imports, name).cache_clear()


LAZY = """
from typing import TYPE_CHECKING
if TYPE_CHECKING:
    import iclens.c
else:
    import iclens.d
def work():
    try:
        from iclens.b import two
    except ImportError:
        from iclens.b.three import gone
    with open(two) as file:
        import iclens.b.four, torch.nn, os.path
"""
PARTS = """
from functools import cache
from iclens.b import five
from iclens.b.two import X
from iclens import c as other
SCALE = 2
@cache
def scaled():
    return SCALE * X * five.Y
def work():
    return SCALE + scaled()
def other_work():
    return 'other' + other.name
"""


HARMLESS = {"dataclass", "cache", "lru_cache", "contextmanager", "torch.no_grad", "stage", "triton.jit"}


def calls(tree: ast.AST) -> Iterator[str]:
    """What is called, in words, where an import is made by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            by_name = called.split(".")[-1] in ("import_module", "__import__", "spec_from_file_location")
            if by_name or called in ("exec", "eval", "globals"):
                yield ast.unparse(node)


@EVERY
def test_no_module_that_a_stage_reaches_imports_by_a_name_put_together(stage: Stage) -> None:
    for module in {module for module, _ in imports.reached(stage.code)} - {"iclens"}:
        tree = ast.parse(source(module).read_bytes())
        assert not list(calls(tree)), module
        for node in tree.body:  # each statement at the top defines a name, by which it is found
            docstring = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
            assert docstring or imports._for_type_checkers(node) or list(imports._defined(node)), module
            marks = {ast.unparse(mark).split("(")[0] for mark in getattr(node, "decorator_list", [])}
            assert marks <= HARMLESS, f"{module}: a decorator that may keep what it marks in a table"
        # `iclens` looks its public names up when they are used: none is used from within, but a module.
        public = set(iclens.__all__) - {"schemas"}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "iclens":
                assert not public & {alias.name for alias in node.names}, module
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "iclens":
                assert node.attr not in public, module


def top_name(file: str, code: CodeType) -> str:
    """The name at the top of a module below which a code object stands."""
    if not code.co_qualname.startswith("<"):  # a lambda or comprehension at the top of a module
        return code.co_qualname.split(".")[0]
    definitions = imports._definitions(f"iclens.{file[:-3].replace('/', '.')}", imports.PACKAGE)
    spans = {name: nodes[0] for name, nodes in definitions.items() if hasattr(nodes[0], "lineno")}
    line = code.co_firstlineno
    return next(name for name, node in spans.items() if node.lineno <= line <= (node.end_lineno or 0))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_stage_runs_and_reads_nothing_that_its_key_does_not_hold(
    small: Small, first: Outcome, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every function of iclens that is entered, and every stage that is read, in a real run of each stage."""
    folder = find_run(first.run)
    ran: set[CodeType] = set()
    read: set[str] = set()
    of = RunContext.of
    monkeypatch.setattr(RunContext, "of", lambda self, stage: (read.add(stage), of(self, stage))[1])

    def entered(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            ran.add(frame.f_code)

    for stage in FLOW:
        run = RunContext(folder, outside_inputs(folder.config))
        (tmp_path / stage.folder).mkdir()
        ran.clear()
        read.clear()
        sys.setprofile(entered)
        try:
            stage.write(run, "key", tmp_path / stage.folder)
        finally:
            sys.setprofile(None)
        sources, names = imports.sources(stage.code), set()
        for code in ran:
            if imports.PACKAGE in Path(code.co_filename).parents and code.co_name != "<module>":
                file = Path(code.co_filename).relative_to(imports.PACKAGE).as_posix()
                names.add(file if file in sources else f"{file}:{top_name(file, code)}")
        assert len(names) > 10, stage.name
        assert names <= sources.keys(), stage.name
        assert read <= set(stage.reads), stage.name


def test_every_library_has_a_version() -> None:
    known = importlib.metadata.packages_distributions()
    for stage in FLOW:
        for name, version in imports.libraries(stage.code).items():
            assert imports.DISTRIBUTIONS.get(name, name).replace("_", "-").lower() in {
                distribution.replace("_", "-").lower() for distribution in known[name]
            }
            assert version[0].isdigit() and "+" not in version, name
    names = {name for stage in FLOW for name in imports.libraries(stage.code)}
    assert {"torch", "transformers", "tokenizers", "sae_lens", "numpy", "scipy", "sklearn", "pandas"} <= names


@pytest.mark.parametrize("library", ["torch", "numpy", "tokenizers"])
def test_another_version_of_a_library_is_another_key(
    library: str, first: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunContext(find_run(first.run), {})
    monkeypatch.setattr(RunContext, "digest", lambda self, name: name)
    (stage,) = (stage for stage in FLOW if stage.name == "track")
    before, read = inputs_of(stage, run), imports._version
    monkeypatch.setattr(imports, "_version", lambda name: "99" if name == library else read(name))
    after = inputs_of(stage, run)
    assert {name for name in before if before[name] != after[name]} == {"libraries"}


def test_a_run_that_is_up_to_date_loads_no_torch(small: Small, first: Outcome) -> None:
    config = small.folder / "again.yaml"
    config.write_text(small.text, encoding="utf-8")
    code = (
        "import sys; from pathlib import Path\n"
        "from iclens.study.config import load_study_config\n"
        "from iclens.study.pipeline import run_study\n"
        f"config, runs = Path({str(config)!r}), Path({str(small.runs)!r})\n"
        "done = run_study(load_study_config(config), runs, lambda event: None)\n"
        "assert {event.state for event in done.events} == {'up to date'}, done.events\n"
        "assert not {'torch', 'transformers', 'sae_lens', 'altair'} & sys.modules.keys()"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
