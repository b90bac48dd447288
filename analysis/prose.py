"""Prose that every Python installation has, as text to train SAEs on: the help pages of Python itself.

python analysis/prose.py FILE.jsonl
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from pydoc_data.topics import topics


def write_prose(path: Path) -> int:
    """Write every help page as one line, `{"text": …}`; the number of characters."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pages = [topics[name] for name in sorted(topics)]
    path.write_text("".join(json.dumps({"text": page}) + "\n" for page in pages), encoding="utf-8")
    return sum(map(len, pages))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        raise SystemExit("usage: python analysis/prose.py FILE.jsonl")
    print(f"{write_prose(Path(sys.argv[1])):,} characters in {sys.argv[1]}")
