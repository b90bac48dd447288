"""Is every unfit character spelt out, everything else left alone, and nothing copied in vain?"""

import json
from dataclasses import dataclass
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iclens.dashboards.inert import inert
from iclens.dashboards.records.latent import LatentRow, PromptView, TokenView

from .hostile import HOSTILE


@dataclass(frozen=True)
class Held:
    name: str
    parts: tuple[object, ...] = ()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x00b", "a\\u{0}b"),
        ("\u202e7x", "\\u{202e}7x"),
        ("caf\udce9", "caf\\u{dce9}"),
        ("a\u200bb\ufeff", "a\\u{200b}b\\u{feff}"),
        ("a\r\nb\tc", "a\\u{d}\nb\tc"),
        ("\uffff\U000e0041", "\\u{ffff}\\u{e0041}"),
        ("a\u200cb\u200dc é שלום 👩‍👧 <b>&", "a\u200cb\u200dc é שלום 👩‍👧 <b>&"),
    ],
)
def test_unfit_characters_are_spelt_out_and_no_others(text: str, shown: str) -> None:
    assert inert(text) == shown


def test_records_are_reached_however_deep_and_keep_their_types() -> None:
    held = Held("\x00", ([{"k\x01": Held("\x02", (1, 2.5, None, True))}],))
    assert inert(held) == Held("\\u{0}", ([{"k\\u{1}": Held("\\u{2}", (1, 2.5, None, True))}],))


def test_a_record_without_them_is_the_same_record() -> None:
    prompt = PromptView("one", [TokenView("a", 1.0), TokenView("b")])
    row = LatentRow("L1.mlp_out", 3, 0.1)
    kept = [prompt, row, {"a": (row,)}]
    assert inert(kept) is kept and inert(prompt) is prompt
    assert inert([prompt, TokenView("\x00")])[0] is prompt, "only what holds one is made anew"


@given(st.text(st.characters(exclude_categories=()), max_size=40))
def test_any_text_becomes_one_that_every_format_holds(text: str) -> None:
    shown = inert(text)
    assert inert(shown) == shown
    assert json.loads(json.dumps(shown, ensure_ascii=False).encode()) == shown
    escaped = shown.replace("&", "&amp;").replace("<", "&lt;")
    assert ElementTree.fromstring(f"<text>{escaped}</text>").text in (shown, shown or None)


def test_every_hostile_text_is_one_of_its_own_and_can_be_written() -> None:
    assert len(HOSTILE) >= 60 and len(set(HOSTILE.values())) == len(HOSTILE)
    assert all(inert(text).encode() for text in HOSTILE.values())
    assert sum(inert(text) != text for text in HOSTILE.values()) >= 15
