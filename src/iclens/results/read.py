"""A run as it stands in its folder: its tables by name, arrays, prompts, config, and what is wrong with them.

Nothing is refused that can still be read safely. A config that no longer validates is kept as plain values, a
table of another version has the columns that its file has, and what is missing or damaged is an error of one
line. `Results.problems` looks only whether files are there and have their columns; `changed_files` reads all.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import yaml

import iclens
from iclens.activations import LatentActs
from iclens.core import (
    BELIEFS,
    REDO_STAGE,
    ConfigError,
    IclensError,
    RunError,
    Site,
    SiteError,
    TableError,
    nearest,
)
from iclens.prompts.build import PromptSet
from iclens.schemas import TABLES
from iclens.study.config import StudyConfig, one_line, parse_study_config
from iclens.study.run import CARD, CONFIG, DONE, FOLDERS, RECORD, RunFolder
from iclens.study.store import (
    EVERY,
    check_form,
    hash_file,
    hash_json,
    load_arrays,
    load_json,
    load_prompts,
    load_rows,
)
from iclens.table import Table

_SAES = {"saes": {EVERY: {"sae_id": str, "d_sae": int}}}
_FITS = {EVERY: {"model": dict, "exact": dict}}
UNFINISHED = "unfinished"
"""How the line begins that says what was never finished, of which nobody is warned."""
_LISTED = 5
"""Files of a stage with a line each in what is wrong with it; of more, one line gives the number."""
_LONGEST = 60
"""Characters of a strange value that an error shows."""


class Results:
    """The outputs of a run. Every frame names sites in their short form, `L2.resid_post`.

    Args:
        run: its folder; a `RunFolder` also gives the config.
    """

    def __init__(self, run: RunFolder | Path) -> None:
        if isinstance(run, RunFolder):
            self.path, self._read = run.path, (run.config, run.plain, "")
        else:
            self.path, self._read = run, _read_config(run)
        self._frames: dict[tuple[str, str], pd.DataFrame] = {}
        self._tables: dict[tuple[str, str], pd.DataFrame] = {}

    @property
    def config(self) -> StudyConfig:
        """The resolved config."""
        config, _, _ = self._read
        if config is None:
            raise ConfigError(
                f"config of run '{self.path}'",
                self.problem_of_config.removeprefix(f"{CONFIG}: "),
                "`iclens.open` reads what is there: its `run.config` is the file as it stands.",
            )
        return config

    @property
    def plain(self) -> Mapping[str, Any]:
        """The resolved config as plain values; as it stands in the folder when it does not validate."""
        return self._read[1]

    @property
    def problem_of_config(self) -> str:
        """What is wrong with the config, in one line; empty when nothing is."""
        return self._read[2]

    def setting(self, key: str, kind: type, otherwise: Any) -> Any:
        """A value of the config by its dotted name, also of one that does not validate.

        Args:
            key: such as `growth.q`.
            otherwise: what stands for it where it is not there or of another type.
        """
        value: Any = self.plain
        for part in key.split("."):
            value = value.get(part) if isinstance(value, Mapping) else None
        return value if isinstance(value, kind) else otherwise

    def names(self, key: str) -> tuple[str, ...]:
        """A list of names of the config; empty where it has none."""
        return tuple(name for name in self.setting(key, list, []) if isinstance(name, str))

    @property
    def sites(self) -> tuple[Site, ...]:
        """The followed sites, in order."""
        return tuple(Site.parse(name) for name in self.facts["saes"])

    @property
    def roles(self) -> tuple[str, ...]:
        """The followed roles."""
        return self.names("track.roles")

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms, the tested one first."""
        return self.names("prompts.arms")

    @property
    def controls(self) -> tuple[str, ...]:
        """The arms that growth must be beyond."""
        return self.names("growth.controls") or self.arms[1:2]

    @property
    def beliefs(self) -> tuple[str, ...]:
        """Names along the belief axis."""
        return (*BELIEFS, *self.names("track.beliefs"))

    @property
    def patch_role(self) -> str:
        """The role of the patches that pages and selections show."""
        return next(iter(self.names("patch.roles")), "pre")

    def frame(self, name: str, site: Site | None = None) -> pd.DataFrame:
        """A table with the columns that its file has, read once and kept; changing it changes no other.

        Args:
            site: only its rows are read; all by default.
        """
        kind = TABLES[known("table", name, TABLES)]
        key, whole = (name, "" if site is None else site.short), self._frames.get((name, ""))
        if key not in self._frames:
            if whole is not None and site is not None and "site" in whole:
                frame = whole[whole["site"] == site.short].reset_index(drop=True)
            else:
                frame = _short(load_rows(self.file(kind.stage, kind.file), site).to_pandas())
            self._frames[key] = frame
        return self._frames[key].copy(deep=False)

    def table(self, name: str, site: Site | None = None) -> pd.DataFrame:
        """A table with exactly its documented columns; else as `frame`."""
        key = name, "" if site is None else site.short
        if key not in self._tables:
            frame = self.frame(name, site)
            self._tables[key] = TABLES[name]({str(column): frame[column].to_numpy() for column in frame}).df
        return self._tables[key].copy(deep=False)

    @cached_property
    def facts(self) -> dict[str, Any]:
        """`model` (fingerprint) and `saes` (site → id, d_sae, k); the run's card holds them as well."""
        try:
            return self.part("saes", "saes.json", _SAES)
        except IclensError as cause:
            try:
                card = check_form(self.card, _SAES, self.path / CARD)
            except IclensError:
                raise cause from None
            return {key: card.get(key) for key in ("model", "saes")}

    @cached_property
    def card(self) -> dict[str, Any]:
        """Versions, commit, hashes, dtype and seeds."""
        return check_form(load_json(self._there(CARD)), {}, self.path / CARD)

    @cached_property
    def bayes(self) -> dict[str, Any]:
        """Belief → fits of LO_0 + nλ for the model and the exact posterior, and their agreement."""
        return self.part("growth", "bayes.json", _FITS)

    @cached_property
    def facts_of_growth(self) -> dict[str, Any]:
        """What the growth stage says beside its tables: splits, manifest hash, calibration, accounts."""
        return self.part("growth", "growth.json", {"accounts": dict})

    @cached_property
    def decoder_norms(self) -> dict[str, Any]:
        """Site (short) → decoder norm ‖decode(e_f) − decode(0)‖ of every latent, [latent]."""
        sites = self.facts["saes"]
        arrays, _ = self._arrays("saes", "decoder_norms.safetensors", tuple(sites))
        for site, fact in sites.items():
            if arrays[site].shape != (fact["d_sae"],):
                path = self.path_of("saes", "decoder_norms.safetensors")
                raise _of_another_form(path, f"{site} has shape {arrays[site].shape}")
        return arrays

    def beliefs_of(self, arm: str) -> tuple[Any, Any, str]:
        """Log-odds of model and exact posterior [prompt example belief], and why the latter is NaN."""
        arrays, reason = self._arrays("track", f"beliefs_{arm}.safetensors", ("model", "exact"), "reason")
        return arrays["model"], arrays["exact"], reason

    def latents(self, arm: str, site: Site, role: str) -> LatentActs:
        """Active latents of an arm at a site and role."""
        return LatentActs.open(self.file("track", f"latents_{arm}_{site.short}_{role}.safetensors"))

    def prompts(self, arm: str) -> PromptSet:
        """The prompts of an arm."""
        return load_prompts(self.file("prompts"), arm)

    @property
    def grid_prompts(self) -> PromptSet:
        """The prompts of the task grid."""
        return load_prompts(self.file("identify"), "grid")

    @cached_property
    def grid(self) -> dict[str, Any]:
        """Which tasks of the grid are `discovery` and which `held_out`."""
        return self.part("identify", "grid.json", {"discovery": list, "held_out": list})

    @cached_property
    def task_means(self) -> tuple[dict[str, Any], list[str]]:
        """Mean activation [latent task] by `<site> <role>`, and the tasks' names."""
        return self._arrays("identify", "task_means.safetensors", (), "tasks")

    def part(self, stage: str, name: str, form: Any) -> Any:
        """A JSON file of a stage, when it has a form (`store.check_form`)."""
        path = self.file(stage, name)
        return check_form(load_json(path), form, path)

    def _arrays(self, stage: str, name: str, named: tuple[str, ...], key: str = "") -> tuple[Any, Any]:
        """Arrays of a file that has those named, and the value at a key of its metadata."""
        path = self.file(stage, name)
        arrays, about = load_arrays(path)
        absent = [wanted for wanted in named if wanted not in arrays]
        absent += [key] if key and key not in about else []
        if absent:
            raise _of_another_form(path, f"lacks {absent[0]}")
        try:
            return arrays, json.loads(about[key]) if key else None
        except ValueError as cause:
            raise _of_another_form(path, f"{key} is not JSON") from cause

    def path_of(self, stage: str, name: str) -> Path:
        """Where a stage's output is, or would be."""
        return self.path / FOLDERS[stage] / name

    def file(self, stage: str, name: str = "") -> Path:
        """A stage's output, or its folder."""
        return self._there(f"{FOLDERS[stage]}/{name}".rstrip("/"))

    def _there(self, name: str) -> Path:
        file = self.path / name
        if not file.exists():
            raise RunError(
                f"{name} of run '{self.path}'",
                "not there",
                "Run `iclens study` on the run's config.yaml, which makes what is missing.",
            )
        return file

    @cached_property
    def problems(self) -> tuple[str, ...]:
        """What is unfinished, of another version, missing or unreadable, a line each; values are not read."""
        lines = [_card_problem(self.path), self.problem_of_config]
        lacking = [name for name, folder in FOLDERS.items() if not (self.path / folder).is_dir()]
        if (self.path / DONE).is_file():
            lines += [f"{FOLDERS[name]}: not there" for name in lacking]
        else:
            why = f"it lacks {', '.join(lacking)}" if lacking else "a stage was being done again"
            lines.insert(0, f"{UNFINISHED}: {why}")
        for name, folder in FOLDERS.items():
            lines += [] if name in lacking else _missing(self.path, folder)
        lines += [_columns(self.path_of(kind.stage, kind.file), kind) for kind in TABLES.values()]
        return tuple(line for line in lines if line)


def having(frame: pd.DataFrame, table: str, *columns: str) -> pd.DataFrame:
    """The frame, when it has some columns."""
    for name in columns:
        if name not in frame:
            raise TableError(
                f"table {table}",
                f"lacks {name}",
                "Run `iclens study` on the run's config.yaml again with this version of iclens.",
            )
    return frame


def _of_another_form(path: Path, found: str) -> TableError:
    return TableError(f"{path}", f"unreadable: {found}", REDO_STAGE)


def _short(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with its sites in their short form."""
    if "site" in frame:
        names = {name: Site.parse(str(name)).short for name in frame["site"].unique()}
        frame["site"] = frame["site"].map(names).astype(str)
    return frame


# ------------------------------------------------------------------------------------ what is wrong with it


def _read_config(path: Path) -> tuple[StudyConfig | None, Mapping[str, Any], str]:
    """The config of a run if it validates, its plain values, and in one line what is wrong with it."""
    try:
        text = (path / CONFIG).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as cause:
        why = "not there" if isinstance(cause, FileNotFoundError) else f"unreadable ({one_line(cause)})"
        return None, {}, f"{CONFIG}: {why}"
    try:
        config = parse_study_config(text, CONFIG)
    except IclensError as cause:
        return None, _mapping(text), one_line(cause).rstrip(".")
    return config, config.model_dump(mode="json"), ""


def _mapping(text: str) -> dict[str, Any]:
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError:
        return {}
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def _card_problem(path: Path) -> str:
    try:
        version = json.loads((path / CARD).read_text(encoding="utf-8"))["iclens"]["version"]
    except FileNotFoundError:
        return f"{CARD}: not there"
    except (OSError, ValueError, LookupError, TypeError) as cause:
        return f"{CARD}: unreadable ({one_line(cause)})"
    written = f"written by iclens {version}, this is {iclens.__version__}"
    return "" if version == iclens.__version__ else written


def _outputs(folder: Path) -> dict[str, str]:
    """File → hash, as a stage's record says; empty when there is none."""
    try:
        outputs = json.loads((folder / RECORD).read_text(encoding="utf-8"))["outputs"]
    except (OSError, ValueError, LookupError, TypeError):
        return {}
    return outputs if isinstance(outputs, dict) else {}


def _missing(path: Path, folder: str) -> list[str]:
    outputs = _outputs(path / folder)
    if not outputs:
        return [f"{folder}/{RECORD}: not there or unreadable"]
    gone = [name for name in outputs if not (path / folder / name).is_file()]
    if len(gone) > _LISTED:
        return [f"{folder}: {len(gone)} of {len(outputs)} files are not there, such as {gone[0]}"]
    return [f"{folder}/{name}: not there" for name in gone]


def _columns(file: Path, kind: type[Table]) -> str:
    """What columns a table's file lacks or has more; nothing when it is not there, which its record says."""
    name = f"{file.parent.name}/{file.name}"
    try:
        columns = set(pq.read_schema(file, memory_map=True).names)
    except FileNotFoundError:
        return ""
    except (OSError, ValueError) as cause:
        return f"{name}: unreadable ({one_line(cause)})"
    lacks, more = [c for c in kind.COLUMNS if c not in columns], sorted(columns - kind.COLUMNS.keys())
    parts = [f"lacks {', '.join(lacks)}"] if lacks else []
    parts += [f"also has {', '.join(more)}"] if more else []
    return f"{name}: {' and '.join(parts)}" if parts else ""


def changed_files(path: Path) -> Iterator[str]:
    """Files that are not what their stage's record says it wrote, or that it did not write; reads all files.

    A file that was rewritten together with its record is not seen.
    """
    for folder in FOLDERS.values():
        outputs = _outputs(path / folder)
        for name, digest in outputs.items():
            file = path / folder / name
            if file.is_file() and hash_file(file) != digest:
                yield f"{folder}/{name}: not what its stage wrote"
        files = (file for file in (path / folder).rglob("*") if file.is_file())
        names = sorted(file.relative_to(path / folder).as_posix() for file in files)
        strange = [name for name in names if outputs and name != RECORD and name not in outputs]
        if len(strange) > _LISTED:
            yield f"{folder}: its stage did not write {len(strange)} of its files, such as {strange[0]}"
        else:
            yield from (f"{folder}/{name}: its stage did not write it" for name in strange)


def renamed_config(results: Results) -> Iterator[str]:
    """A line when a config validates but is not the one whose hash ends the folder's name."""
    named = re.search(r"-([0-9a-f]{8})$", results.path.name)
    if named is None or results.problem_of_config:
        return
    forms: list[Any] = [results.plain]
    try:  # as it stands as well: an older iclens had fewer keys
        forms.append(yaml.safe_load((results.path / CONFIG).read_text(encoding="utf-8")))
        hashes = [hash_json(form)[:8] for form in forms]
    except (OSError, ValueError, TypeError, yaml.YAMLError) as cause:
        yield f"{CONFIG}: unreadable ({one_line(cause)})"
        return
    if named[1] not in hashes:
        yield f"{CONFIG}: its hash is {hashes[0]}, the folder is named {named[1]}"


# ------------------------------------------------------------------------------------------- what is asked


def known(what: str, name: str, options: Iterable[str]) -> str:
    """`name` when it is among `options`."""
    choices = tuple(options)
    if name not in choices:
        raise SiteError(f"{what} '{name}'", "not in this run", nearest(str(name), choices) + ".")
    return name


def latent_ids(value: Any) -> tuple[int, ...]:
    """Latent ids as plain integers.

    Args:
        value: one integer, or a sequence or array of them.
    """
    listed = [value]
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        listed = [value.item()] if isinstance(value, np.ndarray) and value.ndim == 0 else list(value)
    if not all(map(_whole, listed)):
        raise SiteError(f"latents {_shown(value)}", "not whole numbers", "Give an id, or a list of ids.")
    return tuple(map(int, listed))


def example_slice(value: Any) -> slice:
    """Examples as a slice of plain integers."""
    ends = (value.start, value.stop, value.step) if isinstance(value, slice) else (value,)
    if not isinstance(value, slice) or not all(end is None or _whole(end) for end in ends):
        raise SiteError(
            f"examples {_shown(value)}", "not a slice of integers", "Give a slice such as slice(4, 12)."
        )
    return slice(*(None if end is None else int(end) for end in ends))


def n_rows(value: Any) -> int:
    """A number of rows."""
    if not _whole(value) or value < 1:
        raise SiteError(
            f"the first {_shown(value)} rows",
            "not a positive integer",
            "Give a whole number of 1 or more, such as 20.",
        )
    return int(value)


def _whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _shown(value: Any) -> str:
    text = one_line(repr(value))
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
