import math

import pytest

from iclens.pages.text import interval, number, percent, spelt_out, three_digits, visible


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0"),
        (-0.0, "0"),
        (0.5, "0.500"),
        (-3.14159, "−3.14"),
        (9.999, "10.0"),
        (123.6, "124"),
        (4096.0, "4,100"),
        (0.001, "0.00100"),
        (0.00099951, "0.00100"),
        (0.000123, "1.2e−4"),
        (3.2e-12, "3.2e−12"),
        (1_250_000.0, "1.2e6"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (math.nan, "–"),
        (None, "–"),
    ],
)
def test_number(value: float | None, written: str) -> None:
    assert number(value) == written


def test_what_the_table_script_gets_is_written_the_same() -> None:
    for value in (0.123456, 4095.7, 1.2345e-7, -0.00099951, 2.5, 999.6):
        rounded = three_digits(value)
        assert rounded is not None
        assert number(rounded) == number(value)
    assert three_digits(math.nan) is None
    assert three_digits(math.inf) is None


def test_interval_and_percent() -> None:
    assert interval(0.1, 0.25) == "[0.100, 0.250]"
    assert interval(math.nan, 0.25) == ""
    assert percent(0.0123) == "1.2 %"
    assert percent(1.0) == "100 %"
    assert percent(0.0) == "0 %"
    assert percent(math.nan) == "–"


@pytest.mark.parametrize(
    ("token", "shown"),
    [
        (" 59", "␣59"),
        (")\n", ")↵"),
        ("\t", "⇥"),
        ("", "∅"),
        ("\u202e7", "\\u{202e}7"),
        ("\u200b", "\\u{200b}"),
        ("\x00", "\\u{0}"),
        ("\u00a0", "\\u{a0}"),
        ("é漢", "é漢"),
        ("<b>", "<b>"),
    ],
)
def test_visible(token: str, shown: str) -> None:
    assert visible(token) == shown


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("plain é漢 😀\n\t", "plain é漢 😀\n\t"),
        ("a\u200cb\u200dc", "a\u200cb\u200dc"),
        ("\u202e7\u2066", "\\u{202e}7\\u{2066}"),
        ("a\x00b\r\x85", "a\\u{0}b\\u{d}\\u{85}"),
        ("a\ud800b\ufffe\ufeff", "a\\u{d800}b\\u{fffe}\\u{feff}"),
        ("\u2028\u200b\xad", "\\u{2028}\\u{200b}\\u{ad}"),
    ],
)
def test_what_no_page_can_hold_is_spelt_out_and_nothing_else(written: str, kept: str) -> None:
    assert spelt_out(written) == kept
