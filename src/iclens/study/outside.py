"""What a study reads from outside its run, as hashes: the model, and its SAEs or what they are trained on.

Of what is on this machine, every file that loading may read counts; of what is named on the hub, the commit.
Names and times of files, and files that only tell of a model or of a training, do not.
"""

from __future__ import annotations

from pathlib import Path

from iclens.core import ConfigError, SaeError
from iclens.model.shape import model_folder
from iclens.study import digests
from iclens.study.bench import Hashes, locate
from iclens.study.config import StudyConfig
from iclens.training.config import load_train_config


def outside_inputs(config: StudyConfig) -> dict[str, Hashes]:
    """Hashes of what a study reads from outside its run: `model`, `SAE source` and `other SAEs`.

    Raises:
        ModelError, ConfigError, SaeError: when one of them is not there.
    """
    others: Hashes = {}
    for name in config.transforms.other_saes:
        if not locate(name).is_dir():
            raise SaeError(
                f"SAE set '{name}'",
                "no such folder",
                "Name a set in transforms.other_saes that is there, or none.",
            )
        others |= {f"{name}/{file}": found for file, found in set_files(locate(name)).items()}
    return {"model": model_files(config), "SAE source": sae_files(config), "other SAEs": others}


def model_files(config: StudyConfig) -> Hashes:
    """Hashes of the model's files; for a hub name, the name and the commit that this machine holds.

    Raises:
        ModelError: when it is neither a folder nor to be had from the hub.
    """
    name = config.model.folder
    folder = model_folder(locate(name))
    if folder is not None:
        return digests.of_files(folder, digests.MODEL_FILES, digests.NOT_READ)
    return {"hub": name, "commit": digests.of_hub(name)}


def sae_files(config: StudyConfig) -> Hashes:
    """Hashes of the training config and the local data that it names, or of the SAE set that is loaded.

    Raises:
        ConfigError, SaeError: when there is no such file or folder.
    """
    if config.saes.train is not None:
        file = locate(config.saes.train)
        if not file.is_file():
            raise ConfigError(
                f"training config '{config.saes.train}'",
                "no such file",
                "Name in saes.train a file that `iclens train` takes.",
            )
        data = load_train_config(file).data.files()
        return {"training config": digests.of_file(file)} | {str(p): digests.of_file(p) for p in data}
    folder = locate(str(config.saes.folder))
    if not folder.is_dir():
        raise SaeError(
            f"SAE set '{config.saes.folder}'",
            "no such folder",
            "Name in saes.folder a set that `iclens train` or `iclens saes check --out` made.",
        )
    return set_files(folder)


def set_files(folder: Path) -> Hashes:
    """Hashes of the files of an SAE set, but for those that only tell of its training."""
    left_out = [name for name in digests.NOT_READ if name != "card.json"]  # a set's card says for which model
    return digests.of_files(folder, besides=left_out)
