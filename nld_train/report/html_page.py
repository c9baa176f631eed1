"""An HTML file that needs no other file and no network."""

from collections.abc import Sequence
from html import escape

from nld_train.report import chart

STYLE = """
  :root { color-scheme: light dark; --page: #ffffff; --ink: #1f2328; --muted: #59636e; --grid: #e4e8ec;
    --panel: #f6f8fa; --ar: #2f6fd0; --diffusion: #c4620a; --plain: #4a5560; --level: #2a8f60;
    --quadratic: #8a4fbf }
  @media (prefers-color-scheme: dark) { :root { --page: #0d1117; --ink: #e6edf3; --muted: #9aa4af; --grid: #222a33;
    --panel: #161b22; --ar: #5c9bf5; --diffusion: #f0953f; --plain: #aab4be; --level: #46b583;
    --quadratic: #b58ae0 } }
  body { margin: 0 auto; padding: 32px 24px 48px; max-width: 1080px; background: var(--page); color: var(--ink);
    font: 15px/1.5 system-ui, sans-serif }
  h1 { font-size: 24px; margin: 0 0 12px } h2 { font-size: 17px; margin: 36px 0 8px }
  p, ul { max-width: 75ch; margin: 8px 0 } ul { padding-left: 20px }
  .note { color: var(--muted); font-size: 13px }
  .small { display: grid; grid-template-columns: repeat(auto-fit, minmax(280px, 1fr)); gap: 20px; margin-top: 16px }
  .pair { display: grid; grid-template-columns: repeat(auto-fill, minmax(440px, 1fr)); gap: 20px; margin-top: 16px }
  .wide { overflow-x: auto }
  table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; white-space: nowrap }
  th, td { padding: 6px 10px; text-align: right; border-bottom: 1px solid var(--grid) }
  th { font-weight: 600; color: var(--muted); vertical-align: bottom }
  th.group { text-align: center } th:first-child, td:first-child { text-align: left; padding-left: 0 }
  img { max-width: 100%; height: auto; border: 1px solid var(--grid); border-radius: 6px }
  pre { background: var(--panel); padding: 12px 14px; border-radius: 6px; overflow-x: auto; font-size: 13px;
    white-space: pre-wrap }
  summary { cursor: pointer; margin: 6px 0 }
"""


def html_page(title: str, style: str, body: Sequence[str]) -> str:
    """The whole file. style: CSS beside that of pages and charts; body: HTML of its parts, one after the other."""
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{escape(title)}</title>'
    start = f'<!doctype html>\n<html lang="en"><head>{head}<style>{STYLE}{chart.STYLE}{style}</style></head><body>'
    return "\n".join([start, *body, "</body></html>\n"])
