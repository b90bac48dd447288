"""Errors a user can act on: what was asked, what was found, what to do.

Everything raised on purpose by `iclens` is an `IclensError`. The command line prints its one line
and exits with `exit_code`; anything else is a bug and keeps its traceback.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class IclensError(Exception):
    """A problem in what was asked or supplied, in one line.

    Args:
        asked: what the user wanted, in their words (a key, a path, a spec).
        found: what is there instead.
        remedy: what to do about it.
    """

    exit_code = 2

    def __init__(self, asked: str, found: str, remedy: str) -> None:
        self.asked, self.found, self.remedy = asked, found, remedy
        super().__init__(f"{asked}: {found}. {remedy}")

    def also(self, remedy: str) -> None:
        """Add a sentence to the remedy."""
        self.remedy = f"{self.remedy} {remedy}"
        self.args = (f"{self.asked}: {self.found}. {self.remedy}",)


class ConfigError(IclensError):
    """A configuration file that does not validate."""


class TaskError(IclensError):
    """A task spec that names no task, or a task undefined on the given x."""


class TokenizerError(IclensError):
    """A tokenizer that does not give every example its six tokens."""


class ModelError(IclensError):
    """A model folder that is missing, damaged or not the model that was asked for."""


class SaeError(IclensError):
    """An SAE that is missing, damaged or does not fit the model it is used on."""


class SiteError(IclensError):
    """A site, role, label or latent that does not exist."""


class TableError(IclensError):
    """A table whose axes or columns do not agree."""


class EditError(IclensError):
    """An intervention that cannot be applied, or that did not fire."""


class RunError(IclensError):
    """A run folder that is missing, incomplete or of another study."""


class StoppedError(IclensError):
    """Work that was ended before its time: by a signal, or because another process of it is gone.

    Args:
        asked, found, remedy: as for every IclensError.
        exit_code: 128 plus the number of the signal; 1 for a lost process.
    """

    def __init__(self, asked: str, found: str, remedy: str, exit_code: int = 1) -> None:
        super().__init__(asked, found, remedy)
        self.exit_code = exit_code


class WontFitError(IclensError):
    """The plan does not fit the named device."""

    exit_code = 3


class RunWarning(UserWarning):
    """A run of another version, or one that is damaged, of which only a part can be shown."""


REDO_STAGE = "Run `iclens study` on the run's config.yaml, which redoes a stage whose files are damaged."
"""What to do about a damaged file of a run."""


def nearest(word: str, options: Iterable[str], n: int = 3) -> str:
    """The `n` closest options to `word`, as text for a remedy."""
    known = list(options)
    close = difflib.get_close_matches(word, known, n=n, cutoff=0.4) or known[:n]
    return "Nearest: " + ", ".join(close) if close else "Nothing is available"
