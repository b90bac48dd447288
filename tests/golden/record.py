"""The golden record: what the small demo finds, shows and is asked by, to tell whether a change moved it.

    python tests/golden/record.py RUN_FOLDER

writes `tables.json.gz`, `pages.json` and `cli.json` next to this file from a finished run of
`tests/docs/demo.yaml`. Do so only when a number or a page is meant to change; the diff of `pages.json` and
`cli.json` then shows what is gone. Nothing of the toolkit is imported to read a run: tables go by their
file's name, in whatever folder.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
import zlib
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

HERE = Path(__file__).parent
LONG = 250
"""Rows kept of a longer table, evenly spaced; sums and counts over its columns are of all rows."""
VOLATILE = {"seconds", "key", "inputs", "outputs", "index", "manifest"}
"""JSON keys whose values are times, paths, or digests of code and files."""

# ------------------------------------------------------------------------------------------------ tables


def read_tables(run: Path) -> dict[str, pd.DataFrame]:
    """Tables of a finished run by name; also `arrays`, a row per stored array, and `json`, one per value."""
    files = sorted(path for path in run.glob("*/*") if path.is_file())
    frames = {path.stem: pd.read_parquet(path) for path in files if path.suffix == ".parquet"}
    arrays = [
        {"array": f"{path.stem}/{name}", **_summary(array)}
        for path in files
        if path.suffix == ".safetensors"
        for name, array in load_file(path).items()
    ]
    values = [
        {"value": where, "number": number, "text": text}
        for path in files
        if path.suffix == ".json" and path.name != "latents.json"
        for where, number, text in _leaves(_named(path), _json(path))
    ]
    return frames | {"arrays": pd.DataFrame(arrays), "json": pd.DataFrame(values)}


def _named(path: Path) -> str:
    return path.parent.name.split("_")[-1] if path.name == "stage.json" else path.stem


def _json(path: Path) -> Any:
    """A JSON file, or the last line of one that opens with a digest."""
    text = path.read_text(encoding="utf-8")
    return json.loads(text if text.lstrip()[0] in "[{" else text.strip().splitlines()[-1])


def _leaves(where: str, value: Any) -> Iterator[tuple[str, float, str]]:
    """Path, number (NaN where it is none) and text ("" where it is a number) of each value."""
    if isinstance(value, dict):
        for name, inner in value.items():
            if name not in VOLATILE:
                yield from _leaves(f"{where}.{name}", inner)
    elif isinstance(value, list):
        for number, inner in enumerate(value):
            yield from _leaves(f"{where}[{number}]", inner)
    elif isinstance(value, str) and re.fullmatch(r"-?0x[\da-f.]+p[+-]\d+", value):
        yield where, float.fromhex(value), ""
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield where, float(value), ""
    else:
        yield where, np.nan, str(value)


def _summary(array: np.ndarray) -> dict[str, Any]:
    flat = array.astype(np.float64).ravel()
    finite = flat[np.isfinite(flat)]
    some = flat[np.linspace(0, flat.size - 1, 4).astype(int)] if flat.size else np.full(4, np.nan)
    return {
        "dtype": str(array.dtype), "shape": str(array.shape), "n_nonfinite": int(flat.size - finite.size),
        "sum": finite.sum(), "size": np.abs(finite).sum(), **{f"entry_{n}": v for n, v in enumerate(some)},
    }  # fmt: skip


def key_of(frame: pd.DataFrame) -> list[str]:
    """The fewest discrete columns, in order, that name a row; where none do, all before the first float."""
    discrete = [str(name) for name in frame if frame[name].dtype.kind != "f"]
    for length in range(1, len(discrete) + 1):
        if not frame.duplicated(discrete[:length]).any():
            return discrete[:length]
    floats = [number for number, name in enumerate(frame) if frame[name].dtype.kind == "f"]
    return [str(name) for name in frame.columns[: floats[0] if floats else len(discrete)]]


def keyed(frame: pd.DataFrame, key: list[str]) -> pd.DataFrame:
    """The frame indexed by its key and, as rows may share one, each row's number among those."""
    number = frame.groupby(key, sort=False, dropna=False).cumcount() if len(frame) else []
    return frame.assign(**{"#": number}).set_index([*key, "#"])


def summarised(frame: pd.DataFrame, at_most: int = LONG) -> dict[str, Any]:
    """What is kept of a table: its key, some rows or all, and of each column what all rows add up to."""
    key = key_of(frame)
    rows = keyed(frame, key)
    if len(rows) > at_most:
        rows = rows.iloc[np.linspace(0, len(rows) - 1, at_most).astype(int)]
    return {
        "rows": len(frame),
        "key": key,
        "kept": [list(map(_plain, name)) for name in rows.index],
        "columns": {str(name): [_plain(v) for v in rows[name]] for name in rows},
        "totals": {str(name): totals(frame[name]) for name in frame},
    }


def totals(column: pd.Series) -> list[float]:
    """Of floats the sum, the sum of sizes and how many are NaN; of others a checksum, whatever the order."""
    if column.dtype.kind == "f":
        values = column.to_numpy()
        finite = values[np.isfinite(values)]
        return [float(finite.sum()), float(np.abs(finite).sum()), float(np.isnan(values).sum())]
    return [float(zlib.crc32("\n".join(sorted(map(str, column))).encode()))]


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


NEAR, SHARE = 1e-3, 1e-2
"""Other kernels may move a float by NEAR, plus SHARE of its size, or of its column's mean size if that is
more. Those of `make kernels` move none of 470,000 by more than 0.52 of that: the bound of a ratio of small
effects by 0.0025; effects themselves, differences of float32 log-odds of some 10 nats, by 0.0008. They change
no label, verdict, choice or NaN, and of texts only the numbers in them."""
EXACT = 1e-12
"""What a float may differ by on the machine that recorded it, times its size where that is above 1."""


def differences(kept: dict[str, Any], frame: pd.DataFrame | None, *, exact: bool) -> list[str]:
    """Where a table differs from what was kept of it: row, column, what was kept and what is now.

    Of tables with 100 rows and more, a row in a hundred may differ in a column unless `exact`: a processor
    not tried may break a tie the other way. Rows and columns that are new are no difference.
    """
    if frame is None:
        return [f"no such table any more; it had {kept['rows']} rows"]
    spared = 0 if exact else kept["rows"] // 100
    lines = [f"{kept['rows']} rows, now {len(frame)}"] if abs(len(frame) - kept["rows"]) > spared else []
    if gone := [name for name in (*kept["columns"], *kept["key"]) if name not in frame]:
        return [*lines, f"columns gone: {gone}"]
    now = keyed(frame, kept["key"])
    positions = {tuple(map(str, name)): n for n, name in enumerate(now.index)}
    rows = [(name, positions.get(tuple(map(str, name)))) for name in kept["kept"]]
    lost = [f"row {name}: not there any more" for name, n in rows if n is None]
    lines += lost if len(lost) > spared * len(rows) / max(kept["rows"], 1) else []
    for column, was in kept["columns"].items():
        values, (_, size, *_) = now[column].to_numpy(), (*kept["totals"][column], 0.0)
        near = (0.0, EXACT) if exact else (NEAR, SHARE)
        floor = 1.0 if exact else size / max(kept["rows"], 1)
        apart = [
            f"row {name}, {column}: {old!r}, now {_plain(values[n])!r}"
            for (name, n), old in zip(rows, was, strict=True)
            if n is not None and not _same(old, values[n], near, floor, exact=exact)
        ]
        lines += apart if len(apart) > spared * len(rows) / max(kept["rows"], 1) else []
    if exact:
        for column, was in kept["totals"].items():
            is_now, scale = totals(frame[column]), max(1.0, *was)
            if len(was) != len(is_now) or any(
                abs(a - b) > EXACT * scale for a, b in zip(was, is_now, strict=True)
            ):
                lines.append(f"all rows, {column}: totals {was}, now {is_now}")
    return lines


def _same(old: Any, new: Any, near: tuple[float, float], floor: float, *, exact: bool) -> bool:
    if isinstance(old, float):
        new = float(new)
        equal = old == new or (np.isnan(old) and np.isnan(new))
        return bool(equal or abs(old - new) <= near[0] + near[1] * max(abs(old), floor))
    return str(old) == str(new) or (not exact and normal(str(old)) == normal(str(new)))


# ------------------------------------------------------------------------------------------------- pages

HEADINGS = {"h1", "h2", "h3"}
ENDS = {
    "th": {"th", "td"},
    "td": {"th", "td"},
    "tr": {"th", "td", "tr"},
    "dt": {"dt", "dd"},
    "dd": {"dt", "dd"},
}
"""Which elements end where another begins, as HTML leaves their end tags out."""
VOID = {"meta", "link", "br", "img", "input", "hr", "col", "source", "wbr"}
LONGEST = 300
"""Characters of the longest text that can be a name."""
NUMBER = re.compile(r"[−-]?\d+(?:[.,]\d+)*(?:e[−+-]?\d+)?")
ALONE = re.compile(rf"(?<![\w.]){NUMBER.pattern}(?!\w)")
"""A number that is no part of a name or digest."""


class Page(HTMLParser):
    """Headings of a page, and below each what its tables, figures and folds are called.

    `named` is heading → texts of `th`, `caption`, `summary`, `dt`, bold openings of `figcaption` and the
    labels of figures; `texts` is heading → the text of every element, so that another markup still counts.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.heading = ""
        self.named: dict[str, set[str]] = {}
        self.texts: dict[str, set[str]] = {}
        self.rows: dict[str, int] = {}
        self.numbers: list[str] = []
        self._open: list[tuple[str, list[str]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        if tag in VOID:
            return
        while self._open and self._open[-1][0] in ENDS.get(tag, ()):
            self._close()
        if tag == "tr":
            self.rows[self.heading] = self.rows.get(self.heading, 0) + 1
        if (label := given.get("aria-label")) and tag != "nav":
            self._name(label.split(":")[0], kept=tag in {"svg", "figure"})
        self._open.append((tag, []))

    def handle_data(self, data: str) -> None:
        inside = [tag for tag, _ in self._open]
        if "script" in inside or "style" in inside:
            return
        for _, words in self._open:
            words.append(f" {data} " if self._open[-1][0] == "small" else data)
        self.numbers += ALONE.findall(data)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._close() != tag:
            pass

    def _close(self) -> str:
        """End the innermost element, and keep what it is called."""
        tag, words = self._open.pop()
        text = "".join(words)
        if tag in HEADINGS:
            self.heading = normal(text)
            self.named.setdefault(self.heading, set())
        elif len(text) <= LONGEST:
            bold = tag == "b" and "figcaption" in {name for name, _ in self._open}
            self._name(text, kept=bold or tag in {"th", "caption", "summary", "dt"})
        return tag

    def _name(self, text: str, *, kept: bool) -> None:
        if re.search(r"[^\W\d_]", text := normal(text)):
            self.texts.setdefault(self.heading, set()).add(squeezed(text))
            if kept:
                self.named.setdefault(self.heading, set()).add(text)


def normal(text: str) -> str:
    """A text with each number as #, since latents and values may differ from machine to machine."""
    return NUMBER.sub("#", " ".join(text.split()))


def squeezed(text: str) -> str:
    """A text without spaces, which markup may add or take."""
    return "".join(text.split())


def read_pages(run: Path) -> dict[str, list[Page]]:
    """Page, or kind of page (`latents/*`), → the pages."""
    (index,) = run.glob("*/site/index.html")
    found: dict[str, list[Page]] = {}
    for path in sorted(index.parent.rglob("*.html")):
        name = path.relative_to(index.parent)
        kind = f"{name.parent}/*" if len(name.parts) > 1 else str(name)
        found.setdefault(kind, []).append(Page(path.read_text(encoding="utf-8")))
    return found


def inventory(pages: list[Page]) -> dict[str, Any]:
    """What pages of one kind show: heading → names below it; how many rows and numbers."""
    named: dict[str, set[str]] = {}
    for page in pages:
        for heading, names in page.named.items():
            named.setdefault(heading, set()).update(names)
    return {
        "shown": {heading: sorted(names) for heading, names in named.items()},
        "pages": len(pages),
        "rows": {heading: sum(page.rows.get(heading, 0) for page in pages) for heading in named},
        "numbers": sum(len(page.numbers) for page in pages),
    }


def missing(kept: dict[str, Any], pages: list[Page]) -> list[str]:
    """What pages of one kind showed and do not show any more: headings, and names below each."""
    texts: dict[str, set[str]] = {}
    for page in pages:
        for heading in page.named:
            texts.setdefault(squeezed(heading), set())
        for heading, below in page.texts.items():
            texts.setdefault(squeezed(heading), set()).update(below)
    lines = [f"heading {heading!r}" for heading in kept["shown"] if squeezed(heading) not in texts]
    return lines + [
        f"under {heading!r}: {name!r}"
        for heading, names in kept["shown"].items()
        if squeezed(heading) in texts
        for name in names
        if squeezed(name) not in texts[squeezed(heading)]
    ]


# --------------------------------------------------------------------------------------------------- cli


def read_help() -> dict[str, Any]:
    """Command → its help, and its options: whether each is required, its default and its help."""
    import typer

    from iclens.cli import app

    return dict(_commands("iclens", typer.main.get_command(app)))


def _commands(name: str, command: Any) -> Iterator[tuple[str, Any]]:
    options = {
        " ".join(one.opts): [bool(one.required), str(one.default), one.help or ""]
        for one in command.params
        if "--help" not in one.opts
    }
    yield name, {"help": command.help or "", "options": options}
    for inner, one in getattr(command, "commands", {}).items():
        yield from _commands(f"{name} {inner}", one)


def key_paths(value: Any, where: str = "") -> set[str]:
    """Every key of a JSON value as a dotted path; `[]` is any item of a list."""
    if isinstance(value, dict):
        return {
            path
            for name, inner in value.items()
            for path in {f"{where}.{name}", *key_paths(inner, f"{where}.{name}")}
        }
    if isinstance(value, list):
        return {path for inner in value for path in key_paths(inner, f"{where}[]")}
    return set()


def json_commands(run: Path, scratch: Path) -> dict[str, list[str]]:
    """Command → the words that run it; those that need a run folder get a copy, which they may write into."""
    study = ["study", "tests/docs/demo.yaml", "--runs", str(run.parents[1])]
    saes = "checkpoints/icl-tiny-saes/L2.mlp_out"
    return {
        "study": study,
        **{
            stage: [stage, str(run)]
            for stage in ("track", "growth", "transforms", "sweep", "patch", "dashboard")
        },
        "dashboard --as-is": ["dashboard", "--as-is", str(run)],
        "plan": ["plan", "sae_configs/icl_tiny.yaml", "--device", "cpu"],
        "saes list": ["saes", "list"],
        "saes check": ["saes", "check", saes],
        "saes convert": ["saes", "convert", saes, "--out", str(scratch / "converted")],
        "replicate seed-post": ["replicate", "seed-post", "--parts", "recorded"],
    }


# ------------------------------------------------------------------------------------------------ record


def golden(name: str) -> Any:
    """What is kept in a file of this folder."""
    data = (HERE / name).read_bytes()
    return json.loads(gzip.decompress(data) if name.endswith(".gz") else data)


def main() -> None:
    """Write the golden record of a run."""
    run = newest(Path(sys.argv[1]))
    tables = {name: summarised(frame) for name, frame in sorted(read_tables(run).items())}
    packed = gzip.compress(json.dumps(tables, separators=(",", ":")).encode(), mtime=0)
    (HERE / "tables.json.gz").write_bytes(packed)
    _write("pages.json", {name: inventory(pages) for name, pages in sorted(read_pages(run).items())})
    _write("cli.json", {"help": read_help(), "json": _json_keys(run)})


def newest(folder: Path) -> Path:
    """The run in a folder of runs, of a study or of one run."""
    return sorted(path.parent for path in folder.rglob("DONE"))[-1]


def _json_keys(run: Path) -> dict[str, list[str]]:
    import shutil
    import subprocess
    import tempfile

    from iclens.cli import main as command_line

    with tempfile.TemporaryDirectory() as scratch:
        copied = Path(shutil.copytree(run.parents[1], Path(scratch) / "runs")) / run.parent.name / run.name
        keys = {}
        for name, words in json_commands(copied, Path(scratch)).items():
            code = f"from {command_line.__module__} import main; main()"
            ran = subprocess.run(
                [sys.executable, "-c", code, *words, "--json"], capture_output=True, text=True
            )
            keys[name] = sorted(key_paths(json.loads(ran.stdout)))
        return keys


def _write(name: str, value: Any) -> None:
    (HERE / name).write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
