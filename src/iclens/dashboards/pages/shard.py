"""How do rows reach a page's script? As an assignment in `data/*.js`, because a page from disk cannot fetch."""

from __future__ import annotations

import json
from typing import Any


def shard(name: str, value: Any) -> str:
    """The script `data/<name>.js`, which gives `value` to whoever asked `iclens.need(name)` for it.

    `<`, `>`, `&` and the two line separators are written as escapes, so that text stays inert wherever it is
    put.

    Args:
        name: of the shard, with forward slashes.
        value: plain lists, dictionaries, strings and finite numbers; None where undefined.

    Raises:
        ValueError: for a number that is not finite.
    """
    content = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        content = content.replace(character, f"\\u{ord(character):04x}")
    return f'"use strict";\niclens.give({json.dumps(name)}, {content});\n'
