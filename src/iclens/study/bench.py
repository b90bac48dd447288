"""What do the stages work with? The run's model, SAEs, prompts and tables, each loaded when first asked for.

Skipping every stage loads none of them: hashes are taken of files, not of loaded objects.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

import iclens
from iclens.activations import LatentActs
from iclens.core import ConfigError, ModelError, RunError, SaeError, Site, TaskError
from iclens.prompts.build import PromptSet
from iclens.prompts.mixture import Mixture
from iclens.stats import split_prompts
from iclens.study import digests
from iclens.study.config import StudyConfig
from iclens.study.runfolder import RunFolder
from iclens.study.store import load_arrays, load_json, load_prompts

if TYPE_CHECKING:
    from iclens.model.load import LanguageModel
    from iclens.saes.load import Sae

Progress = Callable[[dict[str, Any]], None]
Hashes = dict[str, str]

DECODER_NORMS, SAES = "decoder_norms.safetensors", "saes.json"
"""Files of the saes stage that later stages read."""
CHECKOUT = Path(iclens.__file__).resolve().parents[2]
"""Root of the checkout when the package is installed in place; otherwise it holds no checkpoints."""


def locate(path: str) -> Path:
    """A path as given, or inside the checkout when it is relative and only exists there."""
    here = Path(path)
    inside = CHECKOUT / path
    return inside if not here.is_absolute() and not here.exists() and inside.exists() else here


class Bench:
    """A run and what its stages need.

    Args:
        run: the run folder.
        folders: stage name → folder name, for every stage of the flow.
        outside: outside input → hashes of its files, as `outside.outside_inputs` gives them.
        progress: told how far a long stage is.
    """

    def __init__(
        self, run: RunFolder, folders: dict[str, str], outside: Mapping[str, Hashes], progress: Progress
    ) -> None:
        self.run, self.config, self.progress = run, run.config, progress
        self.outside, self._folders = outside, folders

    def of(self, stage: str) -> Path:
        """Folder of a finished stage.

        Raises:
            RunError: when the stage has not run.
        """
        folder = self.run.path / self._folders[stage]
        if not folder.is_dir():
            raise RunError(
                f"stage '{stage}' of {self.run.path}", "not done", f"Run `iclens study` or `iclens {stage}`."
            )
        return folder

    def there(self, stage: str) -> bool:
        """Whether a stage has left its folder."""
        return (self.run.path / self._folders[stage]).is_dir()

    def digest(self, name: str) -> str:
        """Hash of an outside input, or of a finished stage's outputs."""
        if name in self.outside:
            return digests.of_json(self.outside[name])
        record = self.run.record(self.of(name).name)
        if record is None:
            raise RunError(
                f"stage '{name}' of {self.run.path}", "damaged", "Run `iclens study` on its config."
            )
        return digests.of_json(record["outputs"])

    @cached_property
    def model(self) -> LanguageModel:
        """The model, whole.

        Raises:
            ModelError: when it cannot be loaded, or is another than the one whose hashes were taken.
        """
        import torch

        from iclens.model.load import load_model, load_tokenizer
        from iclens.prompts.render import check_tokenizer

        section = self.config.model
        check_tokenizer(load_tokenizer(locate(section.folder)))
        model = load_model(locate(section.folder), dtype=getattr(torch, section.dtype), device=section.device)
        hashed = self.outside.get("model", {}).get("commit")
        if hashed is not None and (loaded := digests.of_hub(section.folder)) != hashed:
            raise ModelError(
                f"model '{section.folder}' at commit {hashed}", f"the hub has moved on to {loaded}",
                "Run `iclens study` again: it then begins with the new commit.",
            )  # fmt: skip
        return model

    @property
    def sae_folder(self) -> Path:
        """The SAE set: trained in this run, or named by the config."""
        given = self.config.saes.folder
        return locate(given) if given is not None else self.of("saes") / "set"

    @cached_property
    def saes(self) -> dict[Site, Sae]:
        """The SAEs of the followed sites, checked against the model."""
        return load_saes(self.config, self.model, self.sae_folder)

    @cached_property
    def mixture(self) -> Mixture | None:
        """The declared mixture that the model was trained on, when its folder holds one."""
        return declared_mixture(locate(self.config.model.folder))

    def prompts(self, arm: str) -> PromptSet:
        """The prompts of an arm."""
        return load_prompts(self.of("prompts"), arm)

    def latents(self, arm: str, site: Site, role: str) -> LatentActs:
        """The active latents of an arm at a site and role."""
        return LatentActs.open(self.of("track") / latents_file(arm, site, role))

    def arrays(self, stage: str, file: str) -> dict[str, Any]:
        """The arrays of a stage's safetensors file."""
        return load_arrays(self.of(stage) / file)[0]

    @property
    def facts(self) -> dict[str, Any]:
        """`model` (fingerprint) and `saes` (site → id, d_sae, k) of the run."""
        return load_json(self.of("saes") / SAES)

    @property
    def decoder_norms(self) -> dict[Site, Any]:
        """Site → decoder norm ‖decode(e_f) − decode(0)‖ of every latent, [latent]."""
        return {Site.parse(name): norms for name, norms in self.arrays("saes", DECODER_NORMS).items()}


def declared_mixture(folder: Path) -> Mixture | None:
    """The mixture that a model folder declares, if any.

    Raises:
        ConfigError: when it is not YAML or no mixture.
    """
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


def latents_file(arm: str, site: Site, role: str) -> str:
    """Name of the file that holds an arm's latents at a site and role."""
    return f"latents_{arm}_{site.short}_{role}.safetensors"


def beliefs_file(arm: str) -> str:
    """Name of the file that holds an arm's beliefs."""
    return f"beliefs_{arm}.safetensors"


def load_saes(config: StudyConfig, model: LanguageModel, folder: Path) -> dict[Site, Sae]:
    """The SAEs of `folder` at the sites that the config follows.

    Raises:
        SaeError: when one is missing, damaged or does not fit the model.
    """
    from iclens.saes.load import load_sae_set

    found = load_sae_set(folder, model)
    wanted = config.track.sites
    for key, sites in (("track.sites", wanted), ("patch.sites", config.patch.sites)):
        held = found if key == "track.sites" or wanted is None else {Site.parse(site) for site in wanted}
        missing = [site for site in sites or () if Site.parse(site) not in held]
        if missing:
            have = ", ".join(site.short for site in held)
            raise SaeError(f"SAE at {missing[0]}", f"{have} are there", f"Change {key}.")
    if wanted is None:
        return found
    return {Site.parse(site): found[Site.parse(site)] for site in wanted}


def load_saes_of(bench: Bench, name: str) -> dict[Site, Sae]:
    """The SAEs of another set at the followed sites, as many as it has.

    Raises:
        SaeError: when it has none of them, or one is damaged or does not fit the model.
    """
    from iclens.saes.load import load_sae_set

    found = {site: sae for site, sae in load_sae_set(locate(name), bench.model).items() if site in bench.saes}
    if not found:
        have = ", ".join(site.short for site in bench.saes)
        raise SaeError(
            f"transforms.other_saes: '{name}'", f"it has no SAE at {have}", "Name a set of these sites."
        )
    return found


def check_task(config: StudyConfig) -> None:
    """Refuse a task without an answer on its inputs, or too few prompts, before anything is loaded.

    Raises:
        TaskError: naming the task and the input.
        TableError: saying how many prompts are needed.
    """
    section = config.prompts
    if len(section.inputs) < section.n_examples:
        raise TaskError(
            f"{section.n_examples} distinct inputs",
            f"'{section.task}' has {len(section.inputs)}",
            "Ask for fewer.",
        )
    for key in ("sweep", "patch", "transforms"):
        shown = getattr(config, key).donor_examples
        if shown + 2 > len(section.inputs):
            raise TaskError(
                f"{key}.donor_examples: {shown} and two queries",
                f"'{section.task}' has {len(section.inputs)} inputs",
                "Ask for fewer.",
            )
    for x in section.inputs:
        section.rule.outcomes(x)
    split_prompts(section.n_prompts, section.n_examples, seed=config.growth.split_seed)
