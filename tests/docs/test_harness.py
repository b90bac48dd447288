"""The harness finds what is wrong: blocks that print something else, fail, or are in no known language."""

from pathlib import Path

import pytest

from iclens.core import IclensError

from .blocks import ROOT, fenced, indented
from .running import PageRun, check_yaml, commands
from .test_code_blocks import STAND_INS

PAGE = ROOT / "docs" / "imagined.md"


def run(text: str, folder: Path) -> PageRun:
    running = PageRun(folder, str, str)
    for block in fenced(PAGE, text):
        running.run(block)
    return running


def block(language: str, text: str) -> str:
    return f"```{language}\n{text}\n```\n"


def test_blocks_are_found_with_language_line_and_whether_they_follow() -> None:
    page = f"# A\n\n{block('python', 'x = 1')}\n{block('text', '1')}\nwords\n\n  ```sh\n  ls\n  ```\n"
    found = [(b.language, b.line, b.text, b.follows) for b in fenced(PAGE, page)]
    assert found == [("python", 4, "x = 1\n", False), ("text", 8, "1\n", True), ("sh", 14, "ls\n", False)]


def test_a_fence_inside_a_longer_fence_is_text() -> None:
    (found,) = fenced(PAGE, "````text\n```sh\nls\n```\n````\n")
    assert (found.language, found.text) == ("text", "```sh\nls\n```\n")


def test_an_open_fence_is_refused() -> None:
    with pytest.raises(ValueError, match="never closed"):
        list(fenced(PAGE, "```sh\nls\n"))


def test_one_namespace_and_the_output_of_the_block_before(tmp_path: Path) -> None:
    page = block("python", "x = 6") + block("python", "print(x * 7, 'and more')")
    assert run(page + block("text", "42 and …"), tmp_path).names["x"] == 6
    with pytest.raises(AssertionError, match="the page says"):
        run(page + block("text", "41 and more"), tmp_path)


@pytest.mark.parametrize("language", ["", "bash", "pytohn"])
def test_an_unknown_language_is_refused(language: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="is not run"):
        run(block(language, "x"), tmp_path)


@pytest.mark.parametrize(
    ("language", "text"),
    [("sh", "false"), ("sh", "iclens no-such-command"), ("sh", "false | true"), ("console", "$ echo a\nb")],
)
def test_a_command_that_fails_or_prints_something_else(language: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(AssertionError):
        run(block(language, text), tmp_path)
    run(block("sh", "true") + block("console", "$ echo a\na\n$ echo b\nb"), tmp_path)


def test_a_warning_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserWarning, match="old"):
        run(block("python", "import warnings\nwarnings.warn('old')"), tmp_path)


def test_yaml_goes_through_its_loader_and_is_saved_under_its_name(tmp_path: Path) -> None:
    with pytest.raises(IclensError, match=r"unknown\. Nearest: q"):
        check_yaml("growth: {qq: 1}")
    with pytest.raises(ValueError, match="neither a study"):
        check_yaml("anything: 1")
    run(block("yaml", "# mine.yaml\ngrowth: {q: 0.1}"), tmp_path)
    assert (tmp_path / "mine.yaml").read_text() == "# mine.yaml\ngrowth: {q: 0.1}\n"


def test_continued_lines_and_comments() -> None:
    assert list(commands("# first\na \\\n    b\n\nc  # why\n")) == ["a b", "c  # why"]


def test_indented_blocks_are_seen_and_lists_are_not() -> None:
    page = "words\n\n    iclens demo\n\n- item\n\n    of the list\n\n```text\n\n    fenced\n```\n"
    assert list(indented(page)) == [(3, "iclens demo")]


def test_every_stand_in_says_why() -> None:
    assert all(one.why for where in STAND_INS.values() for one in where)
