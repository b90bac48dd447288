"""Which part of a prompt is shown, and what is kept for other tools."""

import json

import numpy as np
from scipy.sparse import csc_array

import iclens
from iclens.model.load import TokenText
from iclens.pages.profile import MOST_TOKENS, Texts, excerpts, histogram, top_prompts, window
from iclens.study.pipeline import Outcome
from iclens.study.run import FOLDERS

LINE = ["(", "1", ",", " ", "5", ")\n"]


def test_a_window_is_whole_lines_around_the_peak() -> None:
    tokens = ["<s>", "\n", *LINE * 8]
    assert window(tokens, 2 + 6 * 5 + 3) == (2 + 6 * 2, 2 + 6 * 7)
    assert window(tokens, 0) == (0, 2 + 6)
    assert window(tokens, len(tokens) - 1) == (2 + 6 * 4, len(tokens))
    assert window(["a"] * 500, 250) == (250 - MOST_TOKENS // 2, 250 + MOST_TOKENS // 2)


def test_top_prompts_are_those_of_largest_activation_and_never_silent_ones() -> None:
    whole = np.full((4, 6 * len(LINE)), True)
    texts = Texts([[TokenText(t) for t in LINE * 6] for _ in range(4)], list("abcd"), whole)
    values = np.zeros((4, 36, 2))
    values[1, 33, 0], values[3, 4, 0] = 2.0, 5.0
    held = csc_array(values.reshape(-1, 2))
    found = top_prompts(held, 0, texts, 3)
    assert [prompt.title for prompt in found] == ["d", "b"]
    assert not found[0].before and found[0].after
    assert found[1].before and not found[1].after
    assert [value for value in found[1].values if value] == [2.0]
    (random,) = excerpts(held, 1, texts, [2])
    assert random.title == "c" and not any(random.values)


def test_a_histogram_counts_what_is_active() -> None:
    bins = histogram(csc_array(np.array([[0.0, 1.0], [0.0, 4.0], [0.0, 0.0]])), 1, bins=2)
    assert bins == ([0.0, 2.0, 4.0], [1, 1])
    assert histogram(csc_array(np.zeros((3, 1))), 0) is None


def test_the_stage_leaves_what_other_tools_read(first: Outcome) -> None:
    kept = json.loads((first.run / FOLDERS["dashboard"] / "latents.json").read_text(encoding="utf-8"))
    assert len(kept) == 6
    assert {"site", "latent", "density", "top_tokens", "bottom_tokens", "histogram", "prompts"} == set(
        kept[0]
    )
    latent = next(one for one in kept if one["prompts"])
    prompt = latent["prompts"][0]
    assert len(prompt["tokens"]) == len(prompt["values"]) > 3
    run = iclens.open(first.run)
    batch = run.features(latent["site"], [latent["latent"]]).batch
    assert batch["features"][0]["pos_str"] == [text for text, _ in latent["top_tokens"]]
