#!/usr/bin/env bash
# What huggingface_hub raises when a connection breaks is neither an OSError nor an error of httpx.
#
# huggingface_hub 1 moved from requests, whose errors are OSErrors, to httpx, whose errors are not. Version 2.4 uses
# httpx2, a package beside httpx with class names of its own: `except (OSError, httpx.HTTPError)`, right for 1.x,
# catches nothing here, though both packages are often installed together. What to catch is
# `huggingface_hub.errors.HTTPError`, whichever package that is. Answers with a status (404, 500) are OSErrors.
#
# huggingface_hub 2.4.0 (httpx2 2.16.2), httpx 0.28.1. Seen on 2026-11-30, a server on this machine that closes each connection:
#   httpx2.RemoteProtocolError: OSError False, httpx.HTTPError False, huggingface_hub.errors.HTTPError True
# Exit code 0: still so. 1: it has changed.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet huggingface_hub==2.4.0 httpx2==2.16.2 httpx==0.28.1
cd "$work"
HF_HOME="$work/cache" "$work/venv/bin/python" - <<'PYTHON'
import http.server
import os
import sys
import threading


class Closes(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.connection.close()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Closes)
threading.Thread(target=server.serve_forever, daemon=True).start()
os.environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_address[1]}"
import httpx
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError

raised = None
try:
    HfApi().dataset_info("some/corpus")
except Exception as error:
    raised = error
kind = type(raised)
print(
    f"{kind.__module__}.{kind.__name__}: OSError {isinstance(raised, OSError)}, "
    f"httpx.HTTPError {isinstance(raised, httpx.HTTPError)}, "
    f"huggingface_hub.errors.HTTPError {isinstance(raised, HTTPError)}"
)
as_seen = not isinstance(raised, (OSError, httpx.HTTPError)) and isinstance(raised, HTTPError)
sys.exit(0 if as_seen else 1)
PYTHON
