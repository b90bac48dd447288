"""docs/schemas.md and docs/errors.md say what the code says."""

import iclens.core
from iclens.core import IclensError
from iclens.study.config import StudyConfig
from iclens.study.inputs import CHECKOUT
from iclens.study.run import FOLDERS

SCHEMAS = (CHECKOUT / "docs" / "schemas.md").read_text(encoding="utf-8")
ERRORS = (CHECKOUT / "docs" / "errors.md").read_text(encoding="utf-8")


def test_stages_and_config_sections_are_documented() -> None:
    assert all(f"`{folder}`" in SCHEMAS for folder in FOLDERS.values())
    assert all(f"\n{section}:" in SCHEMAS for section in StudyConfig.model_fields)


def test_every_error_is_documented() -> None:
    kinds = [kind for kind in vars(iclens.core).values() if isinstance(kind, type)]
    assert all(f"`{kind.__name__}`" in ERRORS for kind in kinds if issubclass(kind, IclensError))
