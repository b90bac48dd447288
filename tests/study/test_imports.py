"""The key of a stage holds whatever the stage can run: modules, packages, data files and libraries."""

import ast
import importlib.metadata
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from importlib import import_module
from pathlib import Path
from types import CodeType, FrameType

import grimp
import pytest

from iclens.study import imports
from iclens.study.bench import Bench
from iclens.study.flow import FLOW, FOLDERS, Stage, inputs_of
from iclens.study.outside import outside_inputs
from iclens.study.pipeline import Outcome
from iclens.study.runfolder import find_run

from .conftest import Small

STAGES = pytest.mark.parametrize("stage", FLOW, ids=lambda stage: stage.name)


@cache
def graph() -> grimp.ImportGraph:
    """Who imports whom, as import-linter sees it: written by others, from the same sources."""
    return grimp.build_graph("iclens", exclude_type_checking_imports=True, cache_dir=None)


def with_packages(modules: set[str]) -> set[str]:
    """Modules and the packages around them, which run before them."""
    parts = [module.split(".") for module in modules]
    return {".".join(part[:n]) for part in parts for n in range(1, len(part) + 1)}


@STAGES
def test_a_stage_reaches_what_an_independent_import_graph_says(stage: Stage) -> None:
    expected = {stage.module} | graph().find_upstream_modules(stage.module)
    assert imports.reached(stage.module) == with_packages(expected)
    assert len(expected) > 40


@STAGES
def test_touching_any_module_that_a_stage_can_reach_changes_its_key(
    stage: Stage, first: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(find_run(first.run), FOLDERS, {}, print)
    monkeypatch.setattr(Bench, "digest", lambda self, name: name)
    before, read = inputs_of(stage, bench), imports._hash
    modules = {stage.module} | graph().find_upstream_modules(stage.module)
    modules |= {"iclens.study.stages", "iclens.growth", "iclens"}  # packages
    for module in sorted(modules):
        place = imports.PACKAGE.joinpath(*module.split(".")[1:])
        source = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        monkeypatch.setattr(imports, "_hash", lambda path, s=source: "touched" if path == s else read(path))
        after = inputs_of(stage, bench)
        assert {name for name in before if before[name] != after[name]} == {"code"}, module


@pytest.mark.parametrize(
    ("stage", "touched"),
    [
        ("growth", "growth/bayes.py"), ("track", "growth/bayes.py"), ("track", "study/shards.py"),
        ("track", "study/bench.py"), ("patch", "study/bench.py"), ("shape", "growth/shape.py"),
        ("saes", "training/data/buffer.py"), ("identify", "concepts/concepts.yaml"),
        ("dashboard", "dashboards/assets/site.css"), ("dashboard", "dashboards/templates/base.html.j2"),
    ],
)  # fmt: skip
def test_code_that_no_list_named(stage: str, touched: str) -> None:
    (module,) = (known.module for known in FLOW if known.name == stage)
    assert touched in imports.sources(module)


@STAGES
def test_pages_decide_no_number(stage: Stage) -> None:
    if stage.name != "dashboard":
        drawing = ("dashboards", "study/pages", "study/query")
        assert not [file for file in imports.sources(stage.module) if file.startswith(drawing)]
        assert not {"altair", "jinja2"} & imports.libraries(stage.module).keys()
    if stage.name != "saes":
        assert not [file for file in imports.sources(stage.module) if file.startswith("training/steps")]


def test_a_copy_that_is_edited_has_another_hash(tmp_path: Path) -> None:
    """Imports in functions and in branches, packages and data count; imports for type checkers do not."""
    package = tmp_path / "iclens"
    files = {
        "__init__.py": "", "a/__init__.py": "", "a/one.py": LAZY, "b/__init__.py": "", "b/two.py": "X = 1",
        "b/three.py": "import scipy.stats", "b/four.py": "", "b/data/words.txt": "one", "c.py": "",
        "d.py": "",
    }  # fmt: skip
    for name, text in files.items():
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text(text)
    before = imports.sources("iclens.a.one", package)
    assert set(before) == files.keys() - {"c.py"}
    assert imports.libraries("iclens.a.one", package).keys() == {"scipy", "torch"}
    (package / "b" / "four.py").write_text("x = 1")
    imports._hash.cache_clear()
    after = imports.sources("iclens.a.one", package)
    assert {name for name in before if before[name] != after[name]} == {"b/four.py"}


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


def calls(tree: ast.AST) -> Iterator[str]:
    """What is called, in words, where an import is made by name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            by_name = called.split(".")[-1] in ("import_module", "__import__", "spec_from_file_location")
            if by_name or called in ("exec", "eval"):
                yield ast.unparse(node)


@STAGES
def test_no_module_that_a_stage_reaches_imports_by_a_name_put_together(stage: Stage) -> None:
    for module in imports.reached(stage.module) - {"iclens"}:
        source = imports._file(module, imports.PACKAGE)
        assert source is not None
        tree = ast.parse(source.read_bytes())
        assert not list(calls(tree)), module
        # `iclens` itself looks public names up when they are used: none is used from within.
        public = {"open", "Run", "Selection", "Site", "parse_task", "IclensError", "RunWarning"}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module == "iclens":
                assert not public & {alias.name for alias in node.names}, module
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "iclens":
                assert node.attr not in public, module


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_a_stage_runs_lies_in_its_closure(small: Small, first: Outcome, tmp_path: Path) -> None:
    """Every function of iclens that is entered while a stage works, in a real run."""
    run = find_run(first.run)
    ran: set[CodeType] = set()

    def entered(frame: FrameType, event: str, _: object) -> None:
        if event == "call":
            ran.add(frame.f_code)

    for stage in FLOW:
        bench = Bench(run, FOLDERS, outside_inputs(run.config), lambda found: None)
        work, folder = import_module(stage.module).work, tmp_path / stage.folder
        folder.mkdir()
        ran.clear()
        sys.setprofile(entered)
        try:
            work(bench, folder)
        finally:
            sys.setprofile(None)
        files = {Path(code.co_filename) for code in ran}
        own = {
            file.relative_to(imports.PACKAGE).as_posix() for file in files if imports.PACKAGE in file.parents
        }
        assert len(own) > 10, stage.name
        assert own <= imports.sources(stage.module).keys(), stage.name


def test_every_library_has_a_version() -> None:
    known = importlib.metadata.packages_distributions()
    for stage in FLOW:
        for name, version in imports.libraries(stage.module).items():
            assert imports.DISTRIBUTIONS.get(name, name).replace("_", "-").lower() in {
                distribution.replace("_", "-").lower() for distribution in known[name]
            }
            assert version[0].isdigit() and "+" not in version, name
    names = {name for stage in FLOW for name in imports.libraries(stage.module)}
    assert {"torch", "transformers", "tokenizers", "sae_lens", "numpy", "scipy", "sklearn", "pandas"} <= names


@pytest.mark.parametrize("library", ["torch", "numpy", "tokenizers"])
def test_another_version_of_a_library_is_another_key(
    library: str, first: Outcome, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = Bench(find_run(first.run), FOLDERS, {}, print)
    monkeypatch.setattr(Bench, "digest", lambda self, name: name)
    (stage,) = (stage for stage in FLOW if stage.name == "track")
    before, read = inputs_of(stage, bench), imports._version
    monkeypatch.setattr(imports, "_version", lambda name: "99" if name == library else read(name))
    after = inputs_of(stage, bench)
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
