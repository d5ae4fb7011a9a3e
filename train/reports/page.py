"""What the pages of this room share: one style, tables, pictures inside the page. No page needs a network."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Sequence
from html import escape

STYLE = """
  body { font: 15px/1.5 system-ui, sans-serif; color: #1c2430; max-width: 62rem; margin: 2rem auto; padding: 0 1rem }
  h1 { font-size: 1.5rem; margin-bottom: .2rem } h2 { font-size: 1.1rem; margin: 2.2rem 0 .4rem }
  p { margin: .3rem 0 } .quiet { color: #5b6675 } img { max-width: 100%; height: auto }
  table { border-collapse: collapse; margin: .8rem 0; font-variant-numeric: tabular-nums }
  th, td { text-align: right; padding: .25rem .8rem; border-bottom: 1px solid #dde2e8; white-space: nowrap }
  th { font-weight: 600; color: #5b6675 } th:first-child, td:first-child { text-align: left }
  .warning { background: #fdf1dc; border-left: 4px solid #c77700; padding: .5rem .9rem; margin: .8rem 0 }
  .row { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start } .scroll { overflow-x: auto }
  .tiles { display: grid; grid-template-columns: repeat(auto-fill, minmax(17rem, 1fr)); gap: .5rem }
  pre { overflow-x: auto; font-size: 13px; line-height: 1.2 }
"""


def page(title: str, body: str) -> str:
    """A whole HTML document; ``body`` is HTML, ``title`` is text."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{STYLE}</style>\n<h1>{escape(title)}</h1>\n{body}\n</html>\n"
    )


def table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """An HTML table of texts, which are escaped."""
    lines = "\n".join("<tr>" + "".join(f"<td>{escape(cell)}" for cell in row) + "</tr>" for row in rows)
    head = "".join(f"<th>{escape(cell)}" for cell in heads)
    return f'<div class="scroll"><table>\n<tr>{head}</tr>\n{lines}\n</table></div>'


def picture(content: bytes, words: str, kind: str = "svg+xml") -> str:
    """A picture file inside the page; ``words`` say what it shows to who cannot see it."""
    return f'<img alt="{escape(words)}" src="data:image/{kind};base64,{b64encode(content).decode()}">'
