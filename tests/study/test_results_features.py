"""Latents as feature JSON: SAEDashboard's fields from the pages' records, and what the study found."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

import iclens
from iclens.core import RunError, RunWarning, SiteError, TableError
from iclens.results.read import Results
from iclens.study.run import FOLDERS, find_run

PAGE = {
    "site": "L2.resid_post", "latent": 5, "density": 0.25,
    "top_tokens": [["</script>", 1.5], [" 7", 1.0]], "bottom_tokens": [["é", -2.0]],
    "histogram": {"edges": [0.0, 1.0, 3.0], "counts": [4, 1]},
    "prompts": [{"title": "task 2x", "tokens": ["(", "1"], "values": [0.0, 2.5]}],
}  # fmt: skip
FEATURE = {
    "feature_index": 5,
    "neg_str": ["é"], "neg_values": [-2.0], "pos_str": ["</script>", " 7"], "pos_values": [1.5, 1.0],
    "frac_nonzero": 0.25,
    "freq_hist_data_bar_values": [0.5, 2.0], "freq_hist_data_bar_heights": [4, 1],
    "activations": [
        {"bin_min": -1, "bin_max": 2.5, "bin_contains": -1, "tokens": ["(", "1"], "values": [0.0, 2.5]}
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def seen(first, tmp_path_factory) -> iclens.Run:
    """The first run with a record of one latent's page."""
    path = Path(shutil.copytree(first.run, tmp_path_factory.mktemp("seen") / first.run.name))
    (path / FOLDERS["dashboard"] / "latents.json").write_text(json.dumps([PAGE]), encoding="utf-8")
    return iclens.open(path)


@pytest.fixture(scope="module")
def unseen(first, tmp_path_factory) -> iclens.Run:
    """The first run without such records."""
    path = Path(shutil.copytree(first.run, tmp_path_factory.mktemp("unseen") / first.run.name))
    (path / FOLDERS["dashboard"] / "latents.json").unlink(missing_ok=True)
    return iclens.Run(Results(find_run(path)))


def test_a_page_becomes_a_record_of_the_dashboard(seen: iclens.Run, tmp_path: Path) -> None:
    features = seen.features("L2.resid_post")
    assert features.latents == (5,)
    batch = json.loads(features.save(tmp_path / "f.json").read_text(encoding="utf-8"))
    assert batch["features"] == [FEATURE]
    assert (batch["model_id"], batch["layer"]) == ("icl-tiny", 2)
    assert batch["sae_set"].startswith("resid_post-")
    assert features.quick_list == [{"modelId": "icl-tiny", "layer": f"2-{batch['sae_set']}", "index": "5"}]


def test_a_folder_takes_what_the_study_found_as_well(seen: iclens.Run, tmp_path: Path) -> None:
    out = seen.features("L2.resid_post", [5, 3]).save(tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["batch-0.json", "found.json", "quick_list.json"]
    found = json.loads((out / "found.json").read_text(encoding="utf-8"))
    assert [record["latent"] for record in found] == [5, 3]
    rows = seen.growth.query("site == 'L2.resid_post' and latent == 5")
    assert [row["verdict"] for row in found[0]["growth"]] == rows["verdict"].tolist()
    assert {row["concept"] for row in found[0]["transforms"]} == set(seen.transforms["concept"])
    frame = seen.features("L2.resid_post", [5, 3]).df
    assert frame["page"].tolist() == [True, False]


def test_without_pages_the_rest_is_there_and_a_line_says_what_is_not(unseen, tmp_path: Path) -> None:
    features = unseen.features("L2.resid_post", [1])
    with pytest.raises(RunError, match=r"latents.json is not there. Run `iclens dashboard RUN`"):
        features.save(tmp_path / "f.json")
    with pytest.warns(RunWarning, match="there is no batch"):
        out = features.save(tmp_path / "out")
    assert sorted(path.name for path in out.iterdir()) == ["found.json", "quick_list.json"]
    listed = unseen.growth.query("site == 'L2.resid_post' and shortlisted")["latent"]
    assert set(unseen.features("L2.resid_post").latents) == set(listed)


@pytest.mark.parametrize(
    ("ask", "kind", "words"),
    [
        (lambda run, at: run.features("L9.mlp_out"), SiteError, "Nearest: L1.mlp_out"),
        (lambda run, at: run.features("L2.resid_post", [192]), SiteError, "latents 0 to 191"),
        (lambda run, at: run.features("L2.resid_post", [3]).batch, RunError, "none of them has a page"),
        (lambda run, at: run.features("L2.resid_post").save(at / "a.csv"), TableError, "ends in .json"),
    ],
)
def test_what_cannot_be_is_one_line(seen: iclens.Run, tmp_path: Path, ask, kind, words: str) -> None:
    with pytest.raises(kind) as caught:
        ask(seen, tmp_path)
    assert words in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("held", "words"),
    [
        ("[1, 2]", "of another form at 0"),
        ("{}", "of another form"),
        (
            '[{"site": "L2.resid_post", "latent": 5, "density": null}]',
            "latent 5 of L2.resid_post is of another",
        ),
        (
            '[{"site": "L2.resid_post", "latent": 5, "density": 1, "prompts": [{}]}]',
            "latent 5 of L2.resid_post",
        ),
    ],
)
def test_damaged_pages_are_one_line_and_leave_the_rest(first, tmp_path: Path, held: str, words: str) -> None:
    path = Path(shutil.copytree(first.run, tmp_path / first.run.name))
    (path / FOLDERS["dashboard"] / "latents.json").write_text(held, encoding="utf-8")
    features = iclens.open(path).features("L2.resid_post", [5])
    with pytest.raises(TableError, match=words):
        features.batch  # noqa: B018
    with pytest.warns(RunWarning, match=r"unreadable.*there is no batch"):
        out = features.save(tmp_path / "out")
    assert sorted(file.name for file in out.iterdir()) == ["found.json", "quick_list.json"]
    assert len(features.found[0]["growth"]) == 2


def test_latents_are_one_or_several_integers(seen: iclens.Run) -> None:
    assert seen.features("L2.resid_post", 5).latents == (5,)
    assert seen.features("L2.resid_post", np.array([5, 3, 5])).latents == (5, 3)
    for value in ([5.5], True, "5"):
        with pytest.raises(SiteError, match="not whole numbers"):
            seen.features("L2.resid_post", value)


def test_it_is_shown(seen: iclens.Run) -> None:
    features = seen.features("L2.resid_post", [5, 3])
    assert "2 latents, 1 with tokens and logits" in repr(features)
    assert "<table" in features._repr_html_()
