"""Pages in a headless Chromium: what its console says, and what a script finds in them."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Sequence
from html import escape, unescape
from pathlib import Path
from typing import Any

BROWSER = next((found for name in ("chromium", "google-chrome", "chromium-browser") if (found := shutil.which(name))), None)
ABSENT = "no Chromium on this machine (Debian: apt-get install chromium)"
PHONE = 360  # CSS pixels
QUIET = ["--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]


def look_at(pages: Sequence[Path], script: str, folder: Path) -> tuple[list[Any], list[str]]:
    """Open pages side by side, each as wide as a phone: what `script`, the body of a function of the frame's (document,
    window), returned for each, and the console's lines, of all of them.
    """
    assert BROWSER is not None
    frames = "".join(f"<iframe src='{escape(page.as_uri())}' width={PHONE} height=800></iframe>" for page in pages)
    outer = folder / "outer.html"
    outer.write_text(
        f"<!doctype html><meta charset='utf-8'>{frames}<pre></pre><script>addEventListener('load', () => {{"
        f"const look = (document, window) => {{ {script} }};"
        "const found = [...document.querySelectorAll('iframe')].map((frame) => look(frame.contentDocument, frame.contentWindow));"
        "document.querySelector('pre').textContent = JSON.stringify(found); });</script>"
    )
    command = [BROWSER, "--headless", "--no-sandbox", *QUIET, f"--user-data-dir={folder / 'profile'}", "--allow-file-access-from-files"]
    command += ["--enable-logging=stderr", "--log-level=0", "--virtual-time-budget=3000", "--dump-dom", outer.as_uri()]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    found = re.search(r"<pre>(.*)</pre>", result.stdout, re.DOTALL)
    assert found is not None, result.stderr
    assert found[1], result.stderr
    return json.loads(unescape(found[1])), [line for line in result.stderr.splitlines() if "CONSOLE" in line]
