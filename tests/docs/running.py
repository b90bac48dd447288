"""How is a block run? Python in one namespace per page, commands in its folder, YAML through its loader."""

from __future__ import annotations

import contextlib
import glob
import io
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from iclens.cli import main
from iclens.study.config import StudyConfig, demo_config, parse_study_config
from iclens.study.grid import check_concepts
from iclens.training.config import parse_train_config

from .blocks import Block

_SHELL = re.compile(r"[|<>;&$`]")
"""What only a shell understands."""
_OURS = re.compile(r"(\w+=\S+ )*iclens ")
_SAVED = re.compile(r"^# (\S+\.yaml)\b")
"""First line of a YAML block that is saved under this name for the commands below it."""
Rewrite = Callable[[str], str]


class PageRun:
    """One page, block by block, in a folder of its own.

    Args:
        folder: where its commands run; the current folder while they do.
        command: rewrites what cannot run here as it stands, in commands and Python.
        file: the same in YAML that is saved.
    """

    def __init__(self, folder: Path, command: Rewrite, file: Rewrite) -> None:
        self.folder, self._command, self._file = folder, command, file
        self.names: dict[str, Any] = {"__name__": "__main__"}
        self.printed: str | None = None

    def run(self, block: Block) -> None:
        """Run a block, or hold text that follows one against what that one printed."""
        if block.language == "text":
            if block.follows and self.printed is not None:
                self._compare(block, block.text, self.printed)
            self.printed = None
            return
        handlers = {"python": self._python, "sh": self._sh, "console": self._console, "yaml": self._yaml}
        assert block.language in handlers, (
            f"{block}: language {block.language!r} is not run. Known: {list(handlers)}"
        )
        self.printed = handlers[block.language](block)

    def _python(self, block: Block) -> str:
        # Blank lines in front, so that a traceback names the page's own line.
        code = "\n" * (block.line - 1) + self._command(block.text)
        with contextlib.redirect_stdout(io.StringIO()) as said:
            exec(compile(code, str(block.page), "exec"), self.names)  # noqa: S102
        return said.getvalue()

    def _sh(self, block: Block) -> str:
        return "".join(self._shell(block, command) for command in commands(block.text))

    def _console(self, block: Block) -> str:
        """Commands after `$ `, each with what it prints below it."""
        for part in re.split(r"^\$ ", block.text, flags=re.MULTILINE)[1:]:
            command, _, expected = part.partition("\n")
            self._compare(block, expected, self._shell(block, command))
        return ""

    def _shell(self, block: Block, asked: str) -> str:
        printed = ""
        for command in self._command(asked).splitlines():
            code, out, err = in_process(command) if is_ours(command) else in_shell(command, self.folder)
            assert code == 0, f"{block}: `{asked}`, run as `{command}`, ends with {code}:\n{out}{err}"
            printed += out
        return printed

    def _yaml(self, block: Block) -> str:
        check_yaml(block.text)
        if named := _SAVED.match(block.text):
            (self.folder / named[1]).write_text(self._file(block.text), encoding="utf-8")
        return ""

    @staticmethod
    def _compare(block: Block, expected: str, printed: str) -> None:
        """Equal but for spaces at the ends of lines; `…` stands for any text."""
        want, got = (
            ["".join(line.rstrip() + "\n") for line in t.strip().splitlines()] for t in (expected, printed)
        )
        pattern = "".join(map(re.escape, want)).replace(re.escape("…"), ".*")
        assert re.fullmatch(pattern, "".join(got), flags=re.DOTALL), (
            f"{block}: the page says\n{''.join(want)}\nbut it prints\n{''.join(got)}"
        )


def commands(text: str) -> Iterator[str]:
    """The commands of a block, continued lines joined, without comments on lines of their own."""
    for line in re.sub(r"\\\n\s*", "", text).splitlines():
        if line.strip() and not line.lstrip().startswith("#"):
            yield line.strip()


def is_ours(command: str) -> bool:
    """Whether it is a plain `iclens …`, perhaps after variables, which needs no process of its own."""
    return bool(_OURS.match(command)) and not _SHELL.search(command.split(" #")[0])


def in_process(command: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of an `iclens` command, run in this process."""
    code: object = 0
    with (
        pytest.MonkeyPatch.context() as patched,
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        words = shlex.split(command, comments=True)
        while "=" in words[0]:
            patched.setenv(*words.pop(0).split("=", 1))
        expanded = [sorted(glob.glob(word)) or [word] if "*" in word else [word] for word in words]
        patched.setattr(sys, "argv", [word for found in expanded for word in found])
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    return int(str(code or 0)), out.getvalue(), err.getvalue()


def in_shell(command: str, folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of any other command, with this environment's programs first."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ran = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command], cwd=folder, env=os.environ | {"PATH": path},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return ran.returncode, ran.stdout, ran.stderr


def check_yaml(text: str) -> None:
    """Load a block through the strict loader that it belongs to.

    Raises:
        IclensError: as the loader does.
        ValueError: when it belongs to none.
    """
    declared = yaml.safe_load(text)
    if "study" in declared:
        check_concepts(parse_study_config(text, "the page"))
    elif "training" in declared:
        parse_train_config(declared)
    elif set(declared) <= set(StudyConfig.model_fields):
        whole = demo_config().model_dump(mode="json")
        for section, keys in declared.items():
            whole[section] |= keys
        check_concepts(parse_study_config(yaml.safe_dump(whole), "the page"))
    else:
        raise ValueError(f"neither a study, a training nor sections of a study: {list(declared)}")
