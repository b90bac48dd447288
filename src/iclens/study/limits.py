"""What a study asks of its model, held against the model's config.json before a weight is read.

No prompt is longer than the model's positions, no site or layer lies beyond its blocks; the same for the
training of the study's SAEs.
"""

from __future__ import annotations

from iclens.core import Site, SiteError, examples_within, prompt_length
from iclens.model.shape import read_shape, refuse_longer
from iclens.study.bench import locate
from iclens.study.config import StudyConfig
from iclens.training.config import load_train_config
from iclens.training.limits import check_limits

DONORS = ("sweep", "patch", "transforms")
"""Sections whose donors see `donor_examples` and a query."""


def check_model(config: StudyConfig) -> None:
    """Refuse what the studied model has no place for, from its config.json alone.

    Raises:
        ModelError: when that cannot be read, or a prompt is longer than the model's positions.
        SiteError: for a site or layer in a block that the model does not have.
    """
    name = config.model.folder
    shape = read_shape(locate(name))
    donors = {f"{key}.donor_examples": getattr(config, key).donor_examples + 1 for key in DONORS}
    counts = {"prompts.n_examples": config.prompts.n_examples, "grid.n_examples": config.grid.n_examples}
    most = examples_within(shape.n_positions)
    for key, examples in (counts | donors).items():
        shown = examples - (key not in counts)
        refuse_longer(
            prompt_length(examples), shape.n_positions, f"'{name}'", f"key '{key}': {shown}",
            f"Give at most {most - (key not in counts)}.",
        )  # fmt: skip
    sites = [(key, site) for key in ("track", "patch") for site in getattr(config, key).sites or ()]
    asked = [(f"{key}.sites", site, Site.parse(site).layer, shape.n_blocks - 1) for key, site in sites]
    asked += [("sweep.layers", f"{layer}", layer, shape.n_blocks) for layer in config.sweep.layers or ()]
    asked += [
        ("transforms.layers", f"{layer}", layer, shape.n_blocks - 1)
        for layer in config.transforms.layers or ()
    ]
    for key, text, layer, last in asked:
        if not 0 <= layer <= last:
            raise SiteError(f"key '{key}': {text}", f"'{name}' has 0 to {last}", "Choose one of these.")
    if config.saes.train is not None and locate(config.saes.train).is_file():
        declared = load_train_config(locate(config.saes.train))
        check_limits(declared, read_shape(locate(declared.model.name)))
