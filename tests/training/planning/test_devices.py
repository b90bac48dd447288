"""Devices: named ones, the present one, and the memory a process has had."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from iclens.core import ConfigError
from iclens.training.plan import CARDS, NAMES, cpu, find_device, peak_memory, present_device


def test_named_devices_have_the_data_sheets_figures() -> None:
    assert NAMES == ("a100-40gb", "a100-80gb", "h100-80gb", "h200", "cpu")
    card = CARDS["a100-40gb"]
    assert (card.memory, card.bf16_flops, card.fp32_flops, card.bandwidth) == (
        40e9,
        312e12,
        19.5e12,
        1.555e12,
    )
    assert CARDS["h200"].memory == 141e9 and CARDS["h200"].bandwidth == 4.8e12
    assert card.matrix_rate("bfloat16") == 0.65 * 312e12 and card.matrix_rate("float32") == 0.65 * 19.5e12


def test_a_device_is_found_by_name_or_by_what_the_configuration_wants(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert find_device("h200", "cpu") is CARDS["h200"]
    assert find_device("cpu", "cuda").name == find_device(None, "cpu").name == "cpu"
    with pytest.raises(ConfigError, match=r"device 'a100': unknown\. Nearest: a100-"):
        find_device("a100")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="no accelerator is here"):
        find_device(None, "cuda")


@pytest.mark.parametrize(
    ("reported", "name"),
    [
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA A100 80GB PCIe", "a100-80gb"),
        ("NVIDIA H100 80GB HBM3", "h100-80gb"),
        ("NVIDIA H200", "h200"),
    ],
)
def test_a_card_is_recognised_and_keeps_the_memory_it_reports(
    reported: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name=reported, total_memory=7)
    )
    found = present_device()
    assert (found.name, found.memory, found.bandwidth) == (name, 7, CARDS[name].bandwidth)


def test_an_unknown_card_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "get_device_properties", lambda _: SimpleNamespace(name="Radeon", total_memory=7)
    )
    with pytest.raises(ConfigError, match="'Radeon': its rates are not known"):
        present_device()


def test_the_cpu_counts_the_threads_that_torch_would_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    one = cpu()
    assert one.fp32_flops == 96e9 and one.reserve == 0 and 1e8 < one.memory < 1e14


def test_peak_memory_rises_by_what_is_taken_and_stays() -> None:
    before = peak_memory()
    held = np.ones(max(before, 10**8) // 8 * 2)
    taken = peak_memory()
    assert taken >= held.nbytes and taken >= before
    del held
    assert peak_memory() == pytest.approx(taken, rel=0.01)
