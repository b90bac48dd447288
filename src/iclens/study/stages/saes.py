"""The SAEs: trained on the model, or loaded; and how good they are on prompts of the task grid."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from iclens.core import ConfigError, RunError, Site
from iclens.model.load import load_model, other_model
from iclens.saes.encode import decoder_lengths
from iclens.saes.quality import measure_quality
from iclens.study import digests, imports
from iclens.study.bench import DECODER_NORMS, SAES, Bench, load_saes, locate
from iclens.study.grid import grid_prompts
from iclens.study.runfolder import TRAINED
from iclens.study.store import save_arrays, save_json
from iclens.training.config import TrainConfig, load_train_config
from iclens.training.train import train_saes

QUALITY, BEGUN_BY = "quality.parquet", f"{TRAINED}.code"
"""The table of the stage; and the hash of the code that began a training, beside its checkpoints."""


def work(bench: Bench, folder: Path) -> dict[str, Any]:
    """Write `set/` (SAEs trained here), `saes.json`, `quality.parquet` and `decoder_norms.safetensors`."""
    section = bench.config.saes
    prompts = grid_prompts(
        bench.config, bench.model.tokenizer, n_prompts=section.quality_prompts, seed=section.quality_seed
    )
    if section.train is not None:
        config = _on_studied_model(load_train_config(locate(section.train)), bench)
        source = _trained(config, bench, folder / "set")
    else:
        source = locate(str(section.folder))
    saes = load_saes(bench.config, bench.model, source)
    quality = measure_quality(bench.model, saes, prompts.tokens, pre=prompts.positions("pre"))
    quality.save(folder / QUALITY)
    norms = {site.short: decoder_lengths(sae) for site, sae in saes.items()}
    save_arrays(folder / DECODER_NORMS, norms)
    facts = {site.short: {"sae_id": sae.sae_id, "d_sae": sae.d_sae, "k": sae.k} for site, sae in saes.items()}
    save_json(folder / SAES, {"model": bench.model.fingerprint, "saes": facts})
    figures = {
        title: {
            Site.parse(str(site)).short: round(float(value), 4)
            for site, value in zip(quality["site"], quality[column], strict=True)
        }
        for title, column in (("FVU", "fvu"), ("CE recovered", "ce_recovered"))
    }
    return {"sites": list(facts)} | figures


def _trained(config: TrainConfig, bench: Bench, out: Path) -> Path:
    """Train the set, beside the stages so that its checkpoints outlive this one, and move it to `out`.

    Raises:
        RunError: when checkpoints are there that other code or libraries began: the set would be of both.
    """
    beside, begun_by = bench.run.path / TRAINED, bench.run.path / BEGUN_BY
    checkpoints = beside.with_name(f"{TRAINED}.checkpoints")
    code = digests.of_json([imports.sources(__name__), imports.libraries(__name__)])
    if checkpoints.is_dir() and begun_by.is_file() and begun_by.read_text(encoding="utf-8") != code:
        raise RunError(
            f"going on with the training in '{checkpoints}'", "it was begun by other code or libraries",
            "Remove that folder to train anew, or go on with the iclens and libraries that began it.",
        )  # fmt: skip
    shutil.rmtree(beside, ignore_errors=True)
    bench.run.write_text(BEGUN_BY, code)
    trained = train_saes(config, beside, bench.progress, resume="newest").rename(out)
    begun_by.unlink()
    return trained


def _on_studied_model(config: TrainConfig, bench: Bench) -> TrainConfig:
    """The training config on the study's folder of its model, refused when it names another model.

    A copy of the model elsewhere may have another mixture or tokenizer, which no stage's key would see.
    """
    named, studied = locate(config.model.name), locate(bench.config.model.folder)
    if named.resolve() != studied.resolve():
        trained_on = load_model(named)
        other = other_model(trained_on.name, trained_on.fingerprint, bench.model)
        if other:
            raise ConfigError(
                f"training config '{bench.config.saes.train}'",
                other,
                "Name one model as model.name there and as model.folder in the study.",
            )
    return config.model_copy(update={"model": config.model.model_copy(update={"name": str(studied)})})
