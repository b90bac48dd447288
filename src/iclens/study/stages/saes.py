"""The SAEs: trained on the model, or loaded; and how good they are on prompts that they were not trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from iclens.errors import ConfigError
from iclens.models.load import as_numpy
from iclens.saes.quality import measure_quality
from iclens.study.bench import Bench, load_saes, locate
from iclens.study.grid import grid_prompts
from iclens.study.store import save_arrays, save_json
from iclens.training.config import load_train_config
from iclens.training.train import train_saes

DECODER_NORMS, QUALITY, SAES = "decoder_norms.safetensors", "quality.parquet", "saes.json"


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write `set/` when the SAEs are trained here; `saes.json`, `quality.parquet`, `decoder_norms.safetensors`."""
    section = bench.config.saes
    if section.train is not None:
        config = load_train_config(locate(section.train))
        if (trained_on := locate(str(config.model))).resolve() != locate(bench.config.model.folder).resolve():
            raise ConfigError(
                f"training config '{section.train}'",
                f"its model is '{trained_on}'",
                "Name the study's model.",
            )
        source = train_saes(config, folder / "set", bench.progress)
    else:
        source = locate(str(section.folder))
    saes = load_saes(bench.config, bench.model, source)
    prompts = grid_prompts(
        bench.config, bench.model.tokenizer, n_prompts=section.quality_prompts, seed=section.quality_seed
    )
    quality = measure_quality(bench.model, saes, prompts.tokens, pre=prompts.positions("pre"))
    quality.save(folder / QUALITY)
    norms = {site.short: as_numpy(sae.W_dec.norm(dim=1)) for site, sae in saes.items()}
    save_arrays(folder / DECODER_NORMS, norms)
    facts = {site.short: {"sae_id": sae.sae_id, "d_sae": sae.d_sae, "k": sae.k} for site, sae in saes.items()}
    save_json(folder / SAES, {"model": bench.model.fingerprint, "saes": facts})
    return {
        "sites": list(facts),
        "FVU": {
            site: round(float(value), 4) for site, value in zip(quality["site"], quality["fvu"], strict=True)
        },
        "CE recovered": {
            site: round(float(value), 4)
            for site, value in zip(quality["site"], quality["ce_recovered"], strict=True)
        },
    }
