"""The look of the report: one style sheet for light, dark, phone and paper, and the skeleton of the page.

Nothing here knows what is reported. Colours are variables with a value for each scheme; text on its background keeps a
contrast of at least 4.5 to 1. A `theme-light` or `theme-dark` class on <html> overrides the reader's own setting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from html import escape

_LIGHT = """--paper:#f7f8fa;--card:#fff;--ink:#16202c;--soft:#566273;--line:#dde2e9;--grid:#e8ecf1;--mark:#e9f1fe;
--good:#0a6b45;--bad:#a83232;--c0:#1259c9;--c1:#0b7a5c;--c2:#ad4f00;--c3:#7a45b8;--c4:#5b6675;--c5:#a82a6a;
--heat:18,89,201;color-scheme:light"""
_DARK = """--paper:#0f141b;--card:#171e27;--ink:#e8edf4;--soft:#a2aebd;--line:#2c3744;--grid:#253040;--mark:#1b2c47;
--good:#5ed3a2;--bad:#ff9a94;--c0:#7ab0ff;--c1:#4fd0a6;--c2:#ffb066;--c3:#c4a1f7;--c4:#a9b4c3;--c5:#f58cc0;
--heat:122,176,255;color-scheme:dark"""

_RULES = """
*{box-sizing:border-box}
html{-webkit-text-size-adjust:100%}
body{margin:0;background:var(--paper);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;
font-variant-numeric:tabular-nums}
main{max-width:1240px;margin:0 auto;padding:28px 20px 56px}
h1{font-size:28px;line-height:1.2;margin:0 0 2px;letter-spacing:-.01em;overflow-wrap:anywhere}
h2{font-size:19px;margin:40px 0 4px}
h3{font-size:15px;margin:0}
p{margin:4px 0 12px;max-width:80ch}
.soft,figcaption{color:var(--soft)}
.lead{color:var(--soft);margin-bottom:18px}
dl.facts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,240px),1fr));gap:10px 24px;
margin:18px 0 0;padding:14px 0;border:solid var(--line);border-width:1px 0}
dl.facts dt{font-size:12.5px;color:var(--soft)}
dl.facts dd{margin:0;overflow-wrap:anywhere}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,205px),1fr));gap:12px;margin:20px 0 0}
.card{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px 13px}
.card .what{font-size:13px;color:var(--soft)}
.card .number{font-size:27px;font-weight:650;line-height:1.25;letter-spacing:-.01em}
.card .how{font-size:13px;color:var(--soft)}
.grid{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:16px;margin:12px 0 0}
.grid.small{grid-template-columns:repeat(auto-fit,minmax(min(100%,310px),1fr))}
figure{margin:0;background:var(--card);border:1px solid var(--line);border-radius:10px;padding:14px 16px 12px;min-width:0}
figcaption{font-size:13px;line-height:1.4;margin:1px 0 10px}
.scroll{overflow-x:auto;background:var(--card);border:1px solid var(--line);border-radius:10px;margin:10px 0 0}
figure .scroll{border:0;margin:0;border-radius:0}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{padding:7px 9px;text-align:right;vertical-align:baseline;border-top:1px solid var(--grid);white-space:nowrap}
thead th{border-top:0;color:var(--soft);font-weight:500;font-size:13px;vertical-align:bottom;white-space:normal}
th:first-child{text-align:left;position:sticky;left:0;background:var(--card);z-index:1;white-space:normal;min-width:118px;overflow-wrap:anywhere}
tbody th{font-weight:500}
tr.student th,tr.student td{background:var(--mark)}
tr.student th{font-weight:650}
tr.group th{color:var(--soft);font-size:12.5px;padding-bottom:3px;font-weight:500;white-space:nowrap}
tr.group span{position:sticky;left:9px}
td small{display:block;color:var(--soft);font-size:11.5px;line-height:1.3}
td.best{font-weight:700}td.best small{font-weight:400}
td.left,th.left{text-align:left}
.good{color:var(--good)}.bad{color:var(--bad)}
svg{display:block;width:100%;height:auto;max-width:560px;margin:0 auto}
svg text{font:12.5px system-ui,-apple-system,"Segoe UI",Roboto,"Liberation Sans",sans-serif;fill:var(--ink)}
svg .tick,svg .axis{fill:var(--soft)}svg .small{fill:var(--soft);font-size:10.5px}
svg .name,svg .value{font-weight:500}svg .name{paint-order:stroke;stroke:var(--card);stroke-width:3px;stroke-linejoin:round}
svg .grid{stroke:var(--grid)}svg .base{stroke:var(--soft);stroke-width:1}
svg path{fill:none}
svg .line{stroke-width:2.2;stroke-linejoin:round;stroke-linecap:round}
svg .d1{stroke-dasharray:7 4}svg .d2{stroke-dasharray:2 4}svg .d3{stroke-dasharray:9 3 2 3}
svg .leader{stroke:var(--soft);stroke-width:.7}
svg .front{fill:none;stroke:var(--soft);stroke-width:1.3;stroke-dasharray:5 4}
svg .whisker{stroke-width:1.4;opacity:.55}
svg .band{opacity:.13;stroke:none}
svg .faint{opacity:.45}
.legend{display:flex;flex-wrap:wrap;gap:2px 16px;list-style:none;margin:8px 0 0;padding:0;font-size:13px;color:var(--soft)}
.legend i{display:inline-block;width:10px;height:10px;border-radius:50%;margin-right:6px}
details{margin-top:8px;font-size:13.5px}summary{cursor:pointer;color:var(--soft)}
.turns{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,430px),1fr));gap:16px;align-items:start;margin-top:12px}
.turn{background:var(--card);border:1px solid var(--line);border-radius:10px;padding:12px 16px;margin:10px 0 0;
overflow-wrap:anywhere}
.turn p{margin:3px 0}.turn .before{color:var(--soft);font-size:13.5px}
.turn .numbers{font-size:13px;color:var(--soft);margin-top:7px}
.turn .label{font-size:12px;color:var(--soft);margin-right:6px}
code{font:12.5px ui-monospace,SFMono-Regular,Menlo,Consolas,"Liberation Mono",monospace;overflow-wrap:anywhere}
footer{margin-top:44px;padding-top:12px;border-top:1px solid var(--line);color:var(--soft);font-size:13px}
@media(max-width:560px){main{padding:18px 12px 40px}h1{font-size:23px}
.cards{grid-template-columns:1fr 1fr;gap:9px}.card .number{font-size:22px}
svg text{font-size:13.5px}svg .small{font-size:11.5px}
th,td{padding:6px 9px}figure{padding:12px 10px 10px}.card{padding:10px 13px}}
@media print{body{background:#fff}figure,.card,.turn{break-inside:avoid}}
"""


def _coloured(slots: int) -> str:
    rules = []
    for slot in range(slots):
        colour = f"var(--c{slot})"
        rules.append(
            f"svg .c{slot}.line,svg .c{slot}.whisker{{stroke:{colour}}}"
            f"svg text.c{slot},svg .c{slot}.marker,svg .c{slot}.band,svg .c{slot}.bar{{fill:{colour}}}"
            f".legend .c{slot}{{background:{colour}}}"
        )
    return "".join(rules)


def style_sheet(colours: int = 6) -> str:
    """Return the whole style sheet for charts with this many colour slots (at most 6)."""
    return (
        f":root{{{_LIGHT}}}@media(prefers-color-scheme:dark){{:root:not(.theme-light){{{_DARK}}}}}:root.theme-dark{{{_DARK}}}"
        f"{_RULES}{_coloured(colours)}"
    )


def page(title: str, body: str) -> str:
    """Return a complete HTML document; `title` is escaped, `body` is HTML."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{style_sheet()}</style>\n</head>\n<body><main>\n{body}\n</main></body>\n</html>\n"
    )


def section(title: str, *blocks: str, text: str = "") -> str:
    """Return a headed section; `title` and `text` are escaped, blocks are HTML and empty ones are left out."""
    shown = "\n".join(block for block in blocks if block)
    if not shown:
        return ""
    explanation = f'<p class="soft">{escape(text)}</p>' if text else ""
    return f"<section><h2>{escape(title)}</h2>{explanation}\n{shown}</section>"


def figure(title: str, caption: str, content: str, after: str = "") -> str:
    """Return a titled figure around HTML content; `title` and `caption` are escaped."""
    return f"<figure><h3>{escape(title)}</h3><figcaption>{escape(caption)}</figcaption>{content}{after}</figure>"


def grid(blocks: Sequence[str], small: bool = False) -> str:
    """Return blocks side by side where there is room, three abreast when small; nothing for none."""
    return f'<div class="grid{" small" if small else ""}">{"".join(blocks)}</div>' if blocks else ""


def legend(entries: Iterable[tuple[int, str]]) -> str:
    """Return a legend of (colour slot, name)."""
    items = "".join(f'<li><i class="c{colour}"></i>{escape(name)}</li>' for colour, name in entries)
    return f'<ul class="legend">{items}</ul>'


def facts(entries: Sequence[tuple[str, str]]) -> str:
    """Return a list of named facts, escaped; empty values are left out."""
    items = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(value)}</dd></div>" for name, value in entries if value)
    return f'<dl class="facts">{items}</dl>'


def card(what: str, number: str, how: str) -> str:
    """Return one headline number with what it is and how it stands; all escaped."""
    return (
        f'<div class="card"><div class="what">{escape(what)}</div><div class="number">{escape(number)}</div>'
        f'<div class="how">{escape(how)}</div></div>'
    )


def cell(text: str, small: str = "", style: str = "") -> str:
    """Return a table cell, escaped, with an optional second line and class."""
    second = f"<small>{escape(small)}</small>" if small else ""
    return f'<td class="{style}">{escape(text)}{second}</td>' if style else f"<td>{escape(text)}{second}</td>"


def table(head: Sequence[str], rows: Iterable[str]) -> str:
    """Return a table that scrolls sideways where it must; `head` is escaped, rows are <tr> elements."""
    columns = "".join(f'<th scope="col">{_breakable(name)}</th>' for name in head)
    return f'<div class="scroll"><table><thead><tr>{columns}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def row(name: str, cells: Iterable[str], style: str = "") -> str:
    """Return a table row headed by an escaped name."""
    attribute = f' class="{style}"' if style else ""
    return f'<tr{attribute}><th scope="row">{_breakable(name)}</th>{"".join(cells)}</tr>'


def group_row(name: str, columns: int) -> str:
    """Return a table row that heads the rows below it; `name` is escaped."""
    return f'<tr class="group"><th scope="colgroup" colspan="{columns}"><span>{escape(name)}</span></th></tr>'


def _breakable(name: str) -> str:
    """Return an escaped name such as sonnet_targeted-v2 that may break after its separators."""
    return re.sub(r"(?<=[_.-])(?=\w)", "<wbr>", escape(name))
