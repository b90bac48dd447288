"""Writes what every shipped llama-3-8b configuration takes into docs/plans.md, as `iclens plan` says it.

python analysis/benchmarks/shipped_plans.py
"""

from __future__ import annotations

from pathlib import Path

from iclens.training.config import load_train_config
from iclens.training.plan import CARDS, plan

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "plans.md"
BEGIN, END = "<!-- plans: begin -->\n", "<!-- plans: end -->\n"
SHIPPED = {
    "llama3_8b_resid_mlp_l10-16": "a100-40gb",
    "llama3_8b_resid_mlp_l10-12_8x": "a100-40gb",
    "llama3_8b_resid_mlp_l13-16_8x": "a100-40gb",
    "llama3_8b_resid_mlp_l10-16_8x": "a100-80gb",
    "llama3_8b_resid_l14_32x": "a100-40gb",
    "llama3_8b_mlp_transcoders_l10-16": "a100-40gb",
}
"""Configuration → the card that it is made for."""


def section(name: str, device: str) -> str:
    """One configuration's part of the page."""
    planned = plan(load_train_config(ROOT / "sae_configs" / f"{name}.yaml"), CARDS[device])
    command = f"iclens plan sae_configs/{name}.yaml --device {device}"
    return f"### `{name}`\n\n```console\n$ {command}\n{planned.as_text()}\n```\n"


def pages() -> str:
    """All of them."""
    return "\n".join(section(name, device) for name, device in SHIPPED.items())


def main() -> None:
    """Replace what stands between the marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    _, after = rest.split(END)
    PAGE.write_text(f"{before}{BEGIN}\n{pages()}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    main()
