"""The shipped llama-3-8b configurations validate, fit the card they are made for, and the page says so."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from iclens.training.config import load_train_config
from iclens.training.plan import CARDS, plan

ROOT = Path(__file__).resolve().parents[3]


def _script() -> ModuleType:
    path = ROOT / "analysis" / "benchmarks" / "shipped_plans.py"
    spec = importlib.util.spec_from_file_location("shipped_plans", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SCRIPT = _script()
SHIPPED: dict[str, str] = SCRIPT.SHIPPED


def test_every_configuration_for_llama_is_listed() -> None:
    found = {path.stem for path in (ROOT / "sae_configs").glob("llama3_8b_*.yaml")}
    assert found == set(SHIPPED)
    assert sum(device == "a100-40gb" for device in SHIPPED.values()) >= 5


@pytest.mark.parametrize("name", SHIPPED)
def test_it_fits_its_card(name: str) -> None:
    config = load_train_config(ROOT / "sae_configs" / f"{name}.yaml")
    found = plan(config, CARDS[SHIPPED[name]])
    assert found.fits and found.peak < 0.95 * found.device.memory
    assert found.seconds < 24 * 3600
    assert config.data.excluded_positions == () and config.data.prompts


def test_they_cover_what_is_wanted() -> None:
    layers: dict[int, set[int]] = {}
    for name in SHIPPED:
        for spec in load_train_config(ROOT / "sae_configs" / f"{name}.yaml").saes.members:
            times = spec.d_sae // 4096
            if spec.target is None:
                layers.setdefault(times, set()).add(spec.site.layer)
            else:
                assert (spec.site.hook, spec.target.hook) == ("mlp_in", "mlp_out")
    assert layers == {4: set(range(10, 17)), 8: set(range(10, 17)), 32: {14}}


def test_the_page_says_what_the_command_says() -> None:
    page = SCRIPT.PAGE.read_text(encoding="utf-8")
    shown = page.split(SCRIPT.BEGIN)[1].split(SCRIPT.END)[0]
    assert shown.strip() == SCRIPT.pages().strip(), "run analysis/benchmarks/shipped_plans.py"
