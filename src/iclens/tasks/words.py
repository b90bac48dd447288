"""Vocabulary of the non-numeric tasks: letters and pairs of opposites."""

from __future__ import annotations

import string

LETTERS = tuple(string.ascii_lowercase)

OPPOSITE_PAIRS = (
    ("hot", "cold"),
    ("up", "down"),
    ("left", "right"),
    ("old", "new"),
    ("fast", "slow"),
    ("tall", "short"),
    ("day", "night"),
    ("open", "closed"),
    ("hard", "soft"),
    ("light", "dark"),
    ("rich", "poor"),
    ("wet", "dry"),
    ("full", "empty"),
    ("high", "low"),
    ("near", "far"),
    ("good", "bad"),
    ("early", "late"),
    ("push", "pull"),
    ("win", "lose"),
    ("buy", "sell"),
)

OPPOSITE = {a: b for a, b in OPPOSITE_PAIRS} | {b: a for a, b in OPPOSITE_PAIRS}
WORDS = tuple(OPPOSITE)
LABEL_WORDS = ("even", "odd", "small", "big")
VOCABULARIES = (LETTERS, WORDS, LABEL_WORDS)
"""Words that belong together: all of one are spelled alike (`rendering.spelling`)."""
