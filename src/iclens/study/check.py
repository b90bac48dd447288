"""Do these SAEs fit this model, and how good are they on real prompts?"""

from __future__ import annotations

from pathlib import Path

from iclens.models.load import load_model
from iclens.saes.load import CARD_FILE, load_sae, load_sae_set
from iclens.saes.quality import measure_quality
from iclens.study.bench import locate
from iclens.study.config import ModelSection, PromptsSection, SaesSection, StudyConfig
from iclens.study.grid import grid_prompts
from iclens.tables.quality import QualityTable


def check_saes(folder: Path, model: str) -> QualityTable:
    """Load an SAE set (or one SAE) strictly and measure it on prompts of the task grid.

    Args:
        folder: a set with a card.json, or a single SAE.
        model: folder or hub name of the model.

    Raises:
        ModelError, SaeError: when either is missing, damaged or does not fit the other.
    """
    loaded = load_model(locate(model))
    place = locate(str(folder))
    if (place / CARD_FILE).is_file() or not place.is_dir():
        saes = load_sae_set(place, loaded)
    else:
        sae = load_sae(place, d_model=loaded.d_model)
        saes = {loaded.check_site(sae.site): sae}
    config = StudyConfig(
        study="check",
        model=ModelSection(folder=model),
        saes=SaesSection(folder=str(folder)),
        prompts=PromptsSection(task="2x+3"),
    )
    prompts = grid_prompts(
        config, loaded.tokenizer, n_prompts=config.saes.quality_prompts, seed=config.saes.quality_seed
    )
    return measure_quality(loaded, saes, prompts.tokens, pre=prompts.positions("pre"))
