"""Names that others chose are shown whole, and command no terminal."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from audiovq.text import one_line, printable, shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Łódź 東京 a b", "Łódź 東京 a b"),
        ("\x1b]0;owned\x07", r"\x1b]0;owned\x07"),
        ("a\nb\r\t\x7f\x9b", r"a\nb\r\t\x7f\x9b"),
        ("\u2028\u202e\u2066\udcff", r"\u2028\u202e\u2066\udcff"),
    ],
)
def test_what_a_reader_does_not_see_is_written_out(text, expected):
    assert printable(text) == expected


@given(st.text(st.characters()))
def test_all_of_it_can_be_printed_and_twice_is_once(text):
    assert printable(text).isprintable()
    assert printable(printable(text)) == printable(text)


@given(st.recursive(st.integers() | st.text(), st.lists))
def test_a_shown_value_fits_a_line(value):
    assert len(shown(value)) < 1000
    assert len(shown([[value] * 1000] * 1000)) < 30000


def test_integers_that_python_does_not_write_out():
    assert shown(1 << 20000) == "int with too many digits"


def test_a_message_of_endless_length_loses_its_middle():
    line = one_line("begin " + "\x1b" * 10**5 + " end")
    assert line.startswith("begin ")
    assert line.endswith(" end")
    assert "\x1b" not in line
    assert len(line) < 1010
    assert one_line("short\n") == "short\\n"
