"""Converting: what SAELens opens afterwards computes the same, and a failure leaves nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from sae_lens import SAE, JumpReLUTranscoder, JumpReLUTranscoderConfig, __version__
from sae_lens.saes.sae import SAEMetadata
from safetensors.torch import load_file

from iclens.core import SaeError, Site
from iclens.saes.load import convert, load_sae

from .layouts import native, write

FIXTURES = Path(__file__).parent / "fixtures"
SITE = Site(2, "resid_post")


@pytest.mark.parametrize(
    "name",
    ["sparsify/layers.2"]
    + [
        f"dictionary_learning/{name}"
        for name in ("standard", "new", "topk", "batchtopk", "jumprelu", "gated")
    ],
)
def test_sae_lens_opens_what_was_converted(tmp_path: Path, name: str) -> None:
    folder = convert(FIXTURES / name, tmp_path / "out", site=SITE)
    theirs: Any = SAE.load_from_disk(folder)
    expected = load_file(FIXTURES / name / "expected.safetensors")
    with torch.no_grad():
        acts = theirs.encode(expected["x"])
        assert torch.equal(acts > 0, expected["acts"] > 0)
        near = 1e-5 * float(expected["acts"].abs().max())
        torch.testing.assert_close(acts, expected["acts"], rtol=0, atol=near)
        x_hat = expected["x_hat"]
        torch.testing.assert_close(theirs(expected["x"]), x_hat, rtol=0, atol=1e-5 * float(x_hat.abs().max()))
    original, again = load_sae(FIXTURES / name, site=SITE), load_sae(folder)
    assert (again.site, again.model, again.l0, again.layout) == (
        SITE,
        original.model,
        original.l0,
        "sae_lens",
    )
    assert theirs.cfg.metadata.converted_from == {"layout": original.layout, "sae_id": original.sae_id}
    found = again.encode(expected["x"])
    torch.testing.assert_close(found, original.encode(expected["x"]), rtol=0, atol=near)


def test_a_failure_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(SaeError, match="it exists"):
        convert(FIXTURES / "sparsify" / "layers.2", tmp_path / "there")
    with pytest.raises(SaeError, match="no such folder"):
        convert(tmp_path / "nowhere", tmp_path / "out")
    with pytest.raises(SaeError, match="names no site"):
        convert(FIXTURES / "dictionary_learning" / "new", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(SaeError, match="cannot be written"):
        convert(FIXTURES / "sparsify" / "layers.2", tmp_path / "file" / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"there", "file"}


def test_a_site_that_is_asked_for_counts_and_what_the_files_name_is_kept(tmp_path: Path) -> None:
    folder = convert(FIXTURES / "sparsify/layers.2", tmp_path / "out", site=Site(5, "mlp_out"))
    metadata: Any = SAE.load_from_disk(folder).cfg.metadata
    assert (metadata.hook_name, metadata.hook_layer) == ("blocks.5.hook_mlp_out", 5)
    assert metadata.hook_name_in_its_files == "blocks.2.hook_resid_post"
    assert load_sae(folder).site == Site(5, "mlp_out")


def test_a_transcoder_keeps_where_it_reads_and_writes(tmp_path: Path) -> None:
    metadata = SAEMetadata(hook_name="blocks.2.mlp.hook_in", hook_name_out="blocks.2.hook_mlp_out")
    network = JumpReLUTranscoder(
        JumpReLUTranscoderConfig(d_in=8, d_out=8, d_sae=24, apply_b_dec_to_input=False, metadata=metadata)
    )
    with torch.no_grad():
        network.b_dec.fill_(3.0)
    network.save_model(tmp_path / "transcoder")
    sae = load_sae(convert(tmp_path / "transcoder", tmp_path / "out"))
    with pytest.raises(SaeError, match="it is a transcoder from"):
        load_sae(tmp_path / "transcoder", site=Site(5, "mlp_in"))
    assert (sae.site, sae.target, sae.output) == (Site(2, "mlp_in"), Site(2, "mlp_out"), Site(2, "mlp_out"))
    x = torch.randn(5, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(sae.encode(x), network.encode(x))


def test_a_half_written_folder_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save: Callable[..., Any] = SAE.save_model

    def spoilt(self: Any, path: Path) -> Any:
        self.b_dec.data.add_(1.0)
        written = save(self, path)
        self.b_dec.data.sub_(1.0)
        return written

    monkeypatch.setattr(SAE, "save_model", spoilt)
    with pytest.raises(SaeError, match="b_dec was not written as it is"):
        convert(FIXTURES / "sparsify" / "layers.2", tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_metadata_of_any_kind_are_kept_or_left_out(tmp_path: Path) -> None:
    config, weights = native("standard")
    strange = {
        "get": 1,
        "to_dict": "x",
        "self": 2,
        "": 3,
        "loss": float("nan"),
        "context_size": 64,
        "__class__": "x",
    }
    config["metadata"] |= strange | {"sae_lens_version": "5.0.0", "model_from_pretrained_kwargs": {"a": 1}}
    folder = convert(write(tmp_path / "sae", "sae_lens standard", config, weights), tmp_path / "out")
    theirs: Any = load_sae(folder).network
    assert theirs.cfg.metadata.context_size == 64 and theirs.cfg.metadata.hook_name == str(SITE)
    assert json.loads((folder / "cfg.json").read_text())["metadata"]["sae_lens_version"] == __version__
