"""The page at /inspect: one HTML document with its style and script, which asks the service it came from and nobody else.

Its parts lie in the folder `page`. What the service answers is put into the page as text, never as HTML.
"""

from __future__ import annotations

from html import escape
from importlib.resources import files

from raydistill.evaluation.page import style_sheet

SECURITY_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


def inspector_page(index: str) -> str:
    """Return the page for an index by its name."""
    rules, body, script = (
        (files("raydistill.serving") / "page" / f"inspector.{kind}").read_text("utf-8") for kind in ("css", "html", "js")
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>raydistill: {escape(index)}</title>\n<style>{style_sheet()}{rules}</style>\n</head>\n<body><main>"
        f"{body.replace('{index}', f'<b>{escape(index)}</b>')}</main>\n<script>{script}</script>\n</body>\n</html>\n"
    )
