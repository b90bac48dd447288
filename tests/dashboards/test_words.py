"""Every word of the page of words is one of the vocabulary."""

import re
from pathlib import Path

from iclens.dashboards.pages.words import WORDS

VOCABULARY = Path(__file__).resolve().parents[2] / "docs" / "vocabulary.md"


def test_every_word_stands_in_the_vocabulary() -> None:
    known = VOCABULARY.read_text(encoding="utf-8").lower()
    terms = [part for terms in WORDS.values() for term, _ in terms for part in re.split(r", ", term)]
    assert len(terms) > 30
    assert [term for term in terms if term.lower() not in known] == []
