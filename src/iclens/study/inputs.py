"""What a study reads from outside its run, its model and SAEs: found, held against the config, and hashed.

Nothing here loads a weight. Of what is on this machine, every file that loading may read counts; of what is
named on the hub, the commit. Names and times of files, and files that only tell of a model or of a training,
do not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

import iclens
from iclens.core import (
    ConfigError,
    ModelError,
    SaeError,
    Site,
    SiteError,
    TaskError,
    examples_within,
    prompt_length,
)
from iclens.model.shape import model_folder, read_shape, refuse_longer
from iclens.prompts.mixture import Mixture
from iclens.prompts.pairs import FILE
from iclens.prompts.tasks import expand
from iclens.study.config import StudyConfig
from iclens.study.store import hash_file, hash_files
from iclens.training.config import load_train_config
from iclens.training.plan import check_limits

Hashes = dict[str, str]

CHECKOUT = Path(iclens.__file__).resolve().parents[2]
"""Root of the checkout when the package is installed in place; otherwise it holds no checkpoints."""
MODEL_FILES = ("*.json", "*.txt", "*.model", "*.tiktoken", "*.jinja", "*.safetensors", "mixture.yaml")
"""The files of a model folder that loading may read: config, weights and their index, any tokenizer."""
NOT_READ = (
    "README.md", "card.json", "generation_config.json", "report.html", "metrics.jsonl", "pace.jsonl",
    "converted.json",
)  # fmt: skip
"""Files beside a model or an SAE that tell of it and are not read when it is loaded."""
DONORS = ("sweep", "patch", "transforms")
"""Sections whose donors see `donor_examples` and a query."""


def locate(path: str) -> Path:
    """A path as given, or inside the checkout when it is relative and only exists there."""
    here = Path(path)
    inside = CHECKOUT / path
    return inside if not here.is_absolute() and not here.exists() and inside.exists() else here


def declared_mixture(folder: Path) -> Mixture | None:
    """The mixture that a model folder declares, if any."""
    file = folder / "mixture.yaml"
    if not file.is_file():
        return None
    try:
        return Mixture.from_dict(yaml.safe_load(file.read_text(encoding="utf-8")))
    except yaml.YAMLError as cause:
        line = " ".join(str(cause).split())
        raise ConfigError(
            f"{file}", f"not YAML ({line})", "Write a mixture in YAML, or remove the file: it is optional."
        ) from cause


def check_task(config: StudyConfig) -> None:
    """Refuse a task without an answer on its inputs, or too few inputs or prompts."""
    section, n_inputs = config.prompts, len(config.prompts.inputs)
    if n_inputs < section.n_examples:
        raise TaskError(
            f"{section.n_examples} distinct inputs", f"'{section.task}' has {n_inputs}", "Ask for fewer."
        )
    for key in DONORS:
        examples = getattr(config, key).donor_examples
        if examples + 2 > n_inputs:
            raise TaskError(
                f"{key}.donor_examples: {examples} and two queries",
                f"'{section.task}' has {n_inputs} inputs", "Ask for fewer.",
            )  # fmt: skip
    for x in section.inputs:
        section.rule.outcomes(x)
    _ = config.splits


def check_model(config: StudyConfig) -> None:
    """Refuse what the studied model has no place for, from its config.json alone.

    No prompt is longer than the model's positions, no site or layer lies beyond its blocks; the same for the
    training of the study's SAEs.
    """
    name = config.model.folder
    shape = read_shape(locate(name))
    counts = [(f"{key}.n_examples", getattr(config, key).n_examples, 0) for key in ("prompts", "grid")]
    counts += [(f"{key}.donor_examples", getattr(config, key).donor_examples, 1) for key in DONORS]
    most = examples_within(shape.n_positions)
    for key, examples, queries in counts:
        refuse_longer(
            prompt_length(examples + queries), shape.n_positions, f"'{name}'", f"key '{key}': {examples}",
            f"Give at most {most - queries}.",
        )  # fmt: skip
    last = shape.n_blocks - 1
    sites = [(key, site) for key in ("track", "patch") for site in getattr(config, key).sites or ()]
    layers = [(f"{key}.sites", site, Site.parse(site).layer, last) for key, site in sites]
    layers += [("sweep.layers", f"{layer}", layer, last + 1) for layer in config.sweep.layers or ()]
    layers += [("transforms.layers", f"{layer}", layer, last) for layer in config.transforms.layers or ()]
    for key, text, layer, largest in layers:
        if not 0 <= layer <= largest:
            raise SiteError(f"key '{key}': {text}", f"'{name}' has 0 to {largest}", "Choose one of these.")
    if config.saes.train is not None and locate(config.saes.train).is_file():
        training = load_train_config(locate(config.saes.train))
        check_limits(training, read_shape(locate(training.model.name)))


def outside_inputs(config: StudyConfig) -> dict[str, Hashes]:
    """Hashes of what a study reads from outside its run: `model`, `SAE source` and `other SAEs`."""
    others: Hashes = {}
    for name in config.transforms.other_saes:
        folder = _sae_set(name, "Name a set in transforms.other_saes that is there, or none.")
        others |= {f"{name}/{file}": digest for file, digest in set_files(folder).items()}
    return {"model": model_files(config), "SAE source": sae_files(config), "other SAEs": others}


def pair_files(settings: Any) -> Hashes:
    """Path → hash of every file of pairs that a task's spec names, anywhere in plain settings."""
    if isinstance(settings, str):
        specs = expand(settings) if FILE.search(settings) else ()
        paths = [match[1] for spec in specs if (match := FILE.search(spec))]
        return {path: hash_file(Path(path)) for path in paths}
    parts = settings.values() if isinstance(settings, dict) else settings
    found: Hashes = {}
    for part in parts if isinstance(settings, dict | list) else ():
        found |= pair_files(part)
    return found


def model_files(config: StudyConfig) -> Hashes:
    """Hashes of the model's files; for a hub name, the name and the commit that this machine holds."""
    name = config.model.folder
    folder = model_folder(locate(name))
    if folder is not None:
        return hash_files(folder, MODEL_FILES, NOT_READ)
    return {"hub": name, "commit": hub_commit(name)}


def sae_files(config: StudyConfig) -> Hashes:
    """Hashes of the training config and the local data that it names, or of the SAE set that is loaded."""
    if config.saes.train is None:
        remedy = "Name in saes.folder a set that `iclens train` or `iclens saes check --out` made."
        return set_files(_sae_set(str(config.saes.folder), remedy))
    file = locate(config.saes.train)
    if not file.is_file():
        raise ConfigError(
            f"training config '{config.saes.train}'", "no such file",
            "Name in saes.train a file that `iclens train` takes.",
        )  # fmt: skip
    data = load_train_config(file).data.files()
    return {"training config": hash_file(file)} | {str(path): hash_file(path) for path in data}


def set_files(folder: Path) -> Hashes:
    """Hashes of the files of an SAE set, but for those that only tell of its training."""
    left_out = [name for name in NOT_READ if name != "card.json"]  # a set's card says for which model
    return hash_files(folder, besides=left_out)


def _sae_set(name: str, remedy: str) -> Path:
    folder = locate(name)
    if not folder.is_dir():
        raise SaeError(f"SAE set '{name}'", "no such folder", remedy)
    return folder


def hub_commit(name: str) -> str:
    """The commit of a model on the hub that this machine's cache holds, and fetches when it holds none."""
    from huggingface_hub import hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HTTPError

    try:
        cached = try_to_load_from_cache(name, "config.json")
        file = cached if isinstance(cached, str) else hf_hub_download(name, "config.json")
    except (HTTPError, OSError, ValueError) as cause:
        line = (str(cause).strip().splitlines() or [type(cause).__name__])[0]
        raise ModelError(
            f"model '{name}'", f"no such folder, and the hub does not give it ({line})",
            "Give a Hugging Face folder, or a hub name and a network that reaches the hub.",
        ) from cause  # fmt: skip
    return Path(file).parent.name
