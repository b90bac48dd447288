"""Texts that a vocabulary, a task or a config may hold and that must never become more than text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass, replace
from typing import Any

LONG = 10_000
"""Characters of the longest texts."""
HOSTILE = {
    # markup
    "script": "<script>window.ran = 1</script>",
    "script end": "</script><img src=x onerror=alert(1)>",
    "script upper": "<SCRIPT SRC=//example.org/x.js></SCRIPT>",
    "image": "<img src=x onerror='window.ran = 1'>",
    "svg": "<svg/onload=alert(1)>",
    "svg script": "</text></svg><script>alert(1)</script>",
    "svg end": "</svg></figure></main><h1>",
    "iframe": "<iframe srcdoc='<script>parent.ran = 1</script>'></iframe>",
    "object": "<object data='data:text/html,<script>alert(1)</script>'></object>",
    "style": "<style>* { display: none !important }</style>",
    "style attribute": '<p style="position: fixed; inset: 0">',
    "link": '<a href="javascript:alert(1)">here</a>',
    "meta": '<meta http-equiv="refresh" content="0; url=https://example.org/">',
    "base": "<base href='https://example.org/'>",
    "form": "<form action='https://example.org/'><button>send</button></form>",
    "title end": "</title><script>alert(1)</script>",
    "textarea end": "</textarea></noscript></template><b>",
    "comment": "<!-- --><script>alert(1)</script><!--",
    "comment open": "<!--",
    "cdata": "]]><![CDATA[<b>",
    "instruction": "<?xml version='1.0'?><!DOCTYPE html [<!ENTITY x SYSTEM 'file:///etc/passwd'>]>&x;",
    "details": "<details open ontoggle=alert(1)>",
    "table end": "</td></tr></table><b>",
    "unclosed tag": "<b <i",
    "custom": "<x-y onclick=alert(1) tabindex=1>",
    # attributes
    "double quote": '" onfocus="alert(1)" autofocus="',
    "single quote": "' onmouseover='alert(1)",
    "unquoted": " onfocus=alert(1) tabindex=1 ",
    "backtick": "`onclick=alert(1)`",
    "slash": "/onclick=alert(1)/",
    "scheme": "javascript:alert(1)",
    "data address": "data:text/html;base64,PHNjcmlwdD5hbGVydCgxKTwvc2NyaXB0Pg==",
    "newline in attribute": 'x"\nonclick="alert(1)',
    # references and templates
    "entity": "&lt;script&gt;alert(1)&lt;/script&gt;",
    "entity number": "&#60;script&#62;&#x3c;b&#x3e;",
    "entity without end": "&amp &lt &copy",
    "jinja": "{{ 7 * 7 }}{% for x in () %}{# gone #}",
    "jinja attack": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "angular": "{{constructor.constructor('alert(1)')()}}",
    "template literal": "${alert(1)}",
    "format": "%s %(name)s {0} {name!r} %n%n",
    # scripts and JSON
    "string end": '";alert(1);//',
    "single string end": "';alert(1);//",
    "escaped quote": '\\";alert(1);//',
    "array end": '"]);alert(1);([["',
    "escape": "\\u003cscript\\u003ealert(1)\\u003c/script\\u003e",
    "backslash": "\\",
    "prototype": "__proto__",
    "constructor": "constructor",
    "separators": "a\u2028b\u2029c",
    # direction and what cannot be seen
    "right to left override": "\u202e7x+3 fdp.exe",
    "embedding": "\u202a\u202b\u202dabc",
    "isolates": "\u2066\u2067\u2068abc",
    "marks": "a\u200eb\u200fc\u061cd",
    "hebrew": "שלום 12",
    "arabic": "مرحبا 2x+3 (7)",
    "zero width": "a\u200bb\u2060c\ufeffd",
    "joiners": "a\u200cb\u200dc",
    "soft hyphen": "soft\u00adhyphen",
    "tag characters": "x\U000e0069\U000e0067y",
    "blank letters": "\u3164\u115f\uffa0",
    "variation": "\ufe0f\U000e0100",
    "white space": " \t\n\u00a0\u2003 ",
    "carriage return": "a\rb\r\nc",
    # bytes and code points
    "nul": "a\x00b",
    "controls": "\x01\x07\x08\x1b[31mred\x7f\x85",
    "lone high": "a\ud800b",
    "lone low": "\udc80\udcff",
    "lone byte": b"\xff\xfe caf\xe9".decode("utf-8", "surrogateescape"),
    "replacement": "\ufffd\ufffd",
    "no character": "\ufffe\uffff\ufdd0\U0001ffff",
    "private": "\ue000\U000f0000",
    "byte-level BPE": "Ġthe Ċ Ã©",
    # size and shape
    "long": "x" * LONG,
    "long words": "word " * (LONG // 5),
    "long markup": "<b>" * (LONG // 3),
    "digits": "9" * LONG,
    "stacked marks": "Z" + "\u0301" * 200,
    "wide": "﷽𒐫" * 40,
    "family": "👨‍👩‍👧‍👦🏴󠁧󠁢󠁥󠁮󠁧󠁿",
    "chinese": "大語言模型" * 20,
    "superscript digit": "²",
    "path": "../../../etc/passwd",
    "windows path": "..\\..\\con",
    "infinity": "NaN",
}
"""Name → text."""
KEPT = {"site", "rung", "page", "where", "kind", "scale", "mark", "role"}
"""Fields that name files, rungs of a fixed ladder, or a way of drawing."""


def filled(record: Any, text: Callable[[str], str], kept: frozenset[str] = frozenset()) -> Any:
    """A record with every text in it, however deep, replaced; empty ones and those of `KEPT` fields stay.

    Args:
        record: a frozen dataclass, a sequence or mapping of records, or a text.
        text: what a text becomes.
        kept: texts that stay besides, for they are names that the code knows.
    """
    if isinstance(record, str):
        return record if record in kept or not record else text(record)
    if isinstance(record, Mapping):
        return {key: filled(value, text, kept) for key, value in record.items()}
    if isinstance(record, list | tuple):
        return type(record)(filled(part, text, kept) for part in record)
    if is_dataclass(record) and not isinstance(record, type):
        changes = {
            field.name: filled(getattr(record, field.name), text, kept)
            for field in fields(record)
            if field.name not in KEPT
        }
        return replace(record, **changes)
    return record
