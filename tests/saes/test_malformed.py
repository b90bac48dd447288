"""A thousand changed SAE folders of every layout: each loads to finite numbers, or is refused in one line.

Every value of every config is replaced by values of other types and sizes, every tensor by others, and every
file by other bytes. A refusal names the folder, and the key, tensor or file that is meant.
"""

import copy
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from iclens.core import IclensError, Site
from iclens.saes.load import load_sae

from .layouts import LAYOUTS, SITE, rows, write

VALUES: tuple[Any, ...] = (
    None, "text", "24", "", "\ud800\n", True, False, -1, 0, 1.5, 3, 10**40, 1e308, float("nan"),
    float("inf"), [], [4], {}, {"k": 4},
)  # fmt: skip
"""What a key may hold instead."""
TENSORS: dict[str, Callable[[Tensor], Tensor | None]] = {
    "removed": lambda tensor: None,
    "NaN in one place": lambda tensor: tensor + torch.nan * (tensor == tensor.max()),
    "infinite": lambda tensor: torch.full(tensor.shape, -torch.inf),
    "zero": torch.zeros_like,
    "negative": lambda tensor: -tensor.abs() - 1,
    "of 1e38": lambda tensor: torch.full(tensor.shape, 1e38),
    "of 1e300 in float64": lambda tensor: torch.full(tensor.shape, 1e300, dtype=torch.float64),
    "transposed": lambda tensor: tensor.T if tensor.ndim == 2 else tensor[None],
    "empty": lambda tensor: tensor.reshape(-1)[:0],
    "one row more": lambda tensor: torch.cat([tensor, tensor[:1]]) if tensor.ndim else tensor.view(1, 1),
    "whole numbers": lambda tensor: tensor.to(torch.int64),
    "truth values": lambda tensor: tensor > 0,
    "complex": lambda tensor: tensor.to(torch.complex64),
    "bfloat16": lambda tensor: tensor.to(torch.bfloat16),
    "float8": lambda tensor: tensor.float().to(torch.float8_e4m3fn),
}  # fmt: skip
"""What a tensor may be instead."""
BYTES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "cut after eight bytes": lambda content: content[:8],
    "cut in the middle": lambda content: content[: len(content) // 2],
    "cut at the end": lambda content: content[:-1],
    "a page": lambda content: b"<html>404</html>",
    "a pointer": lambda content: b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 9\n",
    "another encoding": lambda content: b"\xff\xfe" + content,
    "zeros": lambda content: bytes(len(content)),
    "a list": lambda content: b"[1, 2]",
    "a text": lambda content: b'"text"',
    "nested": lambda content: b"[" * 100_000,
    "a key twice": lambda content: content.replace(b"{", b'{"d_in": 8, "d_in": 9,', 1),
    "a number of 5,000 digits": lambda content: content.replace(b"8", b"8" * 5_000, 1),
    "a byte-order mark": lambda content: b"\xef\xbb\xbf" + content,
}
"""What a file may hold instead."""
Change = tuple[str, Callable[[Path, str], object], tuple[str, ...]]
"""What is changed, how (folder, layout), and words of which a refusal holds one."""


def keys(config: dict[str, Any], above: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Every key of a config, nested ones too."""
    for key, value in config.items():
        yield (*above, key)
        if isinstance(value, dict):
            yield from keys(value, (*above, key))


def with_value(config: dict[str, Any], path: tuple[str, ...], value: Any) -> dict[str, Any]:
    changed = copy.deepcopy(config)
    inner = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return changed


def of_configs(layout: str) -> Iterator[Change]:
    config_name, weights_name, (config, _) = LAYOUTS[layout]
    for path in keys(config):
        for value in VALUES:
            changed = with_value(config, path, value)
            yield (
                f"{'.'.join(path)} is {value!r:.20}",
                lambda folder, layout, changed=changed: write(folder, layout, changed),
                (*path, config_name, weights_name, "site"),
            )  # fmt: skip


def of_tensors(layout: str) -> Iterator[Change]:
    _, weights_name, (_, weights) = LAYOUTS[layout]
    for name in weights:
        for what, change in TENSORS.items():
            changed = {key: change(value) if key == name else value for key, value in weights.items()}
            held = {key: value for key, value in changed.items() if value is not None}
            yield (
                f"{name} {what}", lambda folder, layout, held=held: write(folder, layout, weights=held),
                (name, weights_name, "weights"),
            )  # fmt: skip
        renamed = {f"{key}\n" if key == name else key: value for key, value in weights.items()}
        yield (
            f"{name} renamed",
            lambda folder, layout, held=renamed: write(folder, layout, weights=held),
            (name,),
        )


def of_files(layout: str) -> Iterator[Change]:
    for name in LAYOUTS[layout][:2]:
        for what, change in BYTES.items():

            def put(
                folder: Path, layout: str, name: str = name, change: Callable[[bytes], bytes] = change
            ) -> None:
                file = write(folder, layout) / name
                file.write_bytes(change(file.read_bytes()))

            yield f"{name} {what}", put, (Path(name).name,)

        def directory(folder: Path, layout: str, name: str = name) -> None:
            file = write(folder, layout) / name
            file.unlink()
            file.mkdir()

        yield f"{name} a folder", directory, (Path(name).name,)


def tried(folder: Path, words: tuple[str, ...]) -> str:
    """Load what a folder holds: "loaded" when everything is finite, else the one line of its refusal."""
    try:
        sae = load_sae(folder, site=SITE if "dictionary" in str(folder) else None)
    except IclensError as error:
        message = str(error)
        assert "\n" not in message and message.isprintable(), message
        assert str(folder) in message and any(word in message for word in words), message
        return message
    assert isinstance(sae.site, Site) and (sae.k is None or 1 <= sae.k <= sae.d_sae)
    assert sae.l0 is None or 0 < sae.l0 < 1e300
    latents = sae.encode(rows())
    held = [*sae.network.state_dict().values(), latents, sae.reconstruct(rows(), latents)]
    assert all(bool(value.isfinite().all()) for value in held) and bool((latents >= 0).all())
    return "loaded"


@pytest.mark.parametrize("changes", [of_configs, of_tensors, of_files])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_what_is_changed_loads_or_is_refused(
    tmp_path: Path, layout: str, changes: Callable[[str], Iterator[Change]]
) -> None:
    assert tried(write(tmp_path / layout / "whole" / "layers.2", layout), ()) == "loaded"
    drawn = list(changes(layout))
    if changes is of_configs:
        drawn = random.Random(layout).sample(drawn, 60)
    outcomes = []
    for number, (what, put, words) in enumerate(drawn):
        folder = tmp_path / layout / f"{number}" / "layers.2"
        put(folder, layout)
        try:
            outcomes.append(tried(folder, words))
        except BaseException as error:
            raise AssertionError(f"{layout}: {what}: {error!r}") from error
    assert any(outcome != "loaded" for outcome in outcomes)


def test_there_are_enough() -> None:
    counts = [
        min(60, len(list(of_configs(layout)))) + len(list(of_tensors(layout))) + len(list(of_files(layout)))
        for layout in LAYOUTS
    ]
    assert len(counts) == len(LAYOUTS) and sum(counts) > 1_000
