"""Assembles the page: data, scripts, styles, libraries and fonts in one HTML file.

What a model wrote is in the page only as JSON in which every ``<`` is escaped; the scripts put it into the
document as text. A Content-Security-Policy allows no network, no script and style but those whose hashes it
names, and no HTML made from a string (Trusted Types).
"""

import base64
import hashlib
import os
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path

import msgspec

from rollout.page.flags import FLAGS
from rollout.page.view import Page, RunView

_LIBRARIES = ("uPlot.iife.min.js", "katex.min.js", "dagre.min.js")
_LICENCES = ("uPlot", "katex", "dagre")
SCRIPTS = (
    "elements",
    "state",
    "mathematics",
    "colors",
    "overview",
    "charts",
    "curves",
    "pareto",
    "graph",
    "call",
    "filters",
    "rollouts",
    "start",
)
"""Our scripts, in the order of their uses; they share one scope."""


def write_page(path: Path, runs: Sequence[RunView]) -> Path:
    """Writes the page of one or several runs; returns ``path``.

    Raises:
        OSError: If the file cannot be written.
    """
    names = ", ".join(run.name for run in runs)
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    page = Page(title=names, written=written, runs=tuple(runs), flags=FLAGS)
    aside = path.with_name(f"{path.name}.tmp")
    aside.write_text(render(page), encoding="utf-8")
    os.replace(aside, path)  # a reader never sees half a page
    return path


def render(page: Page) -> str:
    """Returns the HTML of a page."""
    style = "\n".join([_asset("vendor/uPlot.min.css"), _katex_style(), _asset("assets/style.css")])
    scripts = [*(_asset(f"vendor/{name}") for name in _LIBRARIES), _own_script()]
    policy = "; ".join(
        [
            "default-src 'none'",
            f"script-src {' '.join(map(_hash, scripts))}",
            f"style-src {_hash(style)}",
            "font-src data:",
            "base-uri 'none'",
            "form-action 'none'",
            "require-trusted-types-for 'script'",
            "trusted-types 'none'",
        ]
    )
    slots = {
        "title": escape(page.title),
        "policy": escape(policy),
        "style": f"<style>{style}</style>",
        "data": f'<script type="application/json" id="data">{_json(page)}</script>',
        "scripts": "\n".join(f"<script>{script}</script>" for script in scripts),
        "licences": escape("\n\n".join(_asset(f"vendor/{name}.LICENSE") for name in _LICENCES)),
    }
    # One pass, so that a slot's own text is never searched for slots.
    return re.sub(r"\{\{(\w+)\}\}", lambda match: slots[match[1]], _asset("assets/page.html"))


def _json(page: Page) -> str:
    """Returns JSON that cannot end its element, nor be read as HTML."""
    text = msgspec.json.encode(page).decode()
    escapes = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
    return re.sub("[<>&\u2028\u2029]", lambda match: escapes[match[0]], text)


def _own_script() -> str:
    parts = [f"// {name}.js\n{_asset(f'assets/{name}.js')}" for name in SCRIPTS]
    return '"use strict";\n(() => {\n' + "\n".join(parts) + "})();\n"


def _katex_style() -> str:
    """Returns KaTeX's style with its fonts inlined; faces whose font is not in the package are dropped."""

    def inlined(face: re.Match[str]) -> str:
        name = re.search(r"url\(fonts/([\w-]+\.woff2)\)", face[0])
        font = files("rollout.page") / "vendor" / name[1] if name else None
        if font is None or not font.is_file():
            return ""
        data = base64.b64encode(font.read_bytes()).decode()
        source = f'src:url(data:font/woff2;base64,{data}) format("woff2")'
        return re.sub(r"src:[^}]*", lambda _: source, face[0])

    return re.sub(r"@font-face\{[^}]*\}", inlined, _asset("vendor/katex.min.css"))


def _asset(name: str) -> str:
    return (files("rollout.page") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return f"'sha256-{digest}'"
