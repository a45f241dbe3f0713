"""How the report looks: light, dark, and on paper."""

from __future__ import annotations

from mlxfleet.bench.report.frame import COLOURS

LIGHT = ("#1f6feb", "#d4520b", "#0a8f6c", "#a626a4", "#9a7500", "#c4314b", "#5b6770", "#0b8fa8")
DARK = ("#6cb0ff", "#ff9a56", "#3fd6a4", "#e28bea", "#e0bd4a", "#ff7f92", "#a3afb9", "#4fd0e6")

RULES = """
* { box-sizing: border-box }
html { -webkit-text-size-adjust: 100% }
body { margin: 0; background: var(--page); color: var(--text);
  font: 15px/1.55 system-ui, -apple-system, "Segoe UI", sans-serif }
main { max-width: 1180px; margin: 0 auto; padding: 28px 20px 60px }
h1 { font-size: 25px; line-height: 1.25; margin: 0 0 2px; letter-spacing: -.01em }
h2 { font-size: 18px; margin: 40px 0 10px; padding-top: 14px; border-top: 1px solid var(--rule) }
h3 { font-size: 15px; margin: 22px 0 8px }
p { max-width: 78ch; margin: 8px 0 }
.under { color: var(--faint); margin: 0 0 18px }
.caution { border-left: 4px solid var(--warn); background: var(--warn-back); padding: 10px 14px;
  border-radius: 0 6px 6px 0; margin: 14px 0 }
.caution ul { margin: 4px 0 0; padding-left: 18px }
.verdict { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 14px 18px; margin: 14px 0 }
.verdict p { margin: 4px 0 }
.verdict .word { font-size: 19px; font-weight: 600 }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(132px, 1fr)); gap: 10px;
  margin: 14px 0 }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 10px 14px }
.tile b { display: block; font-size: 21px; font-variant-numeric: tabular-nums; line-height: 1.25 }
.tile span { color: var(--faint); font-size: 13px }
.pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 360px), 1fr));
  gap: 14px }
.pictures.large { grid-template-columns: repeat(auto-fit, minmax(min(100%, 480px), 1fr)) }
figure { margin: 0; background: var(--card); border: 1px solid var(--rule); border-radius: 8px;
  padding: 12px 14px 10px; min-width: 0 }
figure.wide { grid-column: 1 / -1; margin: 14px 0 }
figcaption { color: var(--faint); font-size: 13px; line-height: 1.4; margin-top: 6px }
svg { display: block; width: 100%; height: auto; overflow: visible }
svg text { fill: var(--text); font-size: 12px; font-family: inherit }
svg .tick { fill: var(--faint); font-size: 11px; font-variant-numeric: tabular-nums }
svg .axis-label { fill: var(--faint); font-size: 12px }
svg .row { font-variant-numeric: tabular-nums; font-size: 13px }
.grid { stroke: var(--rule); stroke-width: 1 }
.axis { stroke: var(--faint); stroke-width: 1 }
.guide { stroke: var(--faint); stroke-width: 1; stroke-dasharray: 2 4 }
.one { stroke: var(--text); stroke-width: 1.2 }
.line { fill: none; stroke: currentColor; stroke-width: 2; stroke-linejoin: round }
.thin { stroke-width: 1.4 }
.dashed { stroke-dasharray: 6 4 }
.fill { fill: currentColor; fill-opacity: .16 }
.mark { fill: currentColor; stroke: var(--card); stroke-width: 1 }
.mark.hollow { fill: var(--card); stroke: currentColor; stroke-width: 1.6 }
.mark.faint { fill-opacity: .55; stroke: none }
.interval { stroke: currentColor; stroke-width: 5; stroke-opacity: .45; stroke-linecap: round }
.middle { stroke: currentColor; stroke-width: 2.5 }
.cross { stroke: var(--faint); stroke-width: 1.5 }
.band0 { fill: transparent }
.band1 { fill: var(--text); fill-opacity: .035 }
.thrown { fill: var(--warn); fill-opacity: .14 }
.scroll { overflow-x: auto; margin: 12px 0 }
table { border-collapse: collapse; font-size: 13.5px; font-variant-numeric: tabular-nums;
  width: 100% }
caption { text-align: left; color: var(--faint); padding: 0 0 6px; font-size: 13px }
th { text-align: left; font-weight: 600; border-bottom: 1px solid var(--faint); vertical-align:
  bottom }
th, td { padding: 5px 10px 5px 0 }
td { border-bottom: 1px solid var(--rule); white-space: nowrap }
.number { text-align: right; padding-left: 10px }
td:last-child, th:last-child { padding-right: 2px }
dl { display: grid; grid-template-columns: minmax(110px, max-content) 1fr; gap: 5px 18px;
  font-size: 13.5px; margin: 10px 0 }
dt { color: var(--faint) }
dd { margin: 0; overflow-wrap: anywhere; white-space: pre-line; min-width: 0 }
@media print {
  main { max-width: none; padding: 0 }
  h2, h3 { break-after: avoid }
  figure, .verdict, .tiles, tr { break-inside: avoid }
  .pictures { grid-template-columns: 1fr 1fr }
  body { font-size: 11px }
  table { font-size: 9.5px }
  td { white-space: normal }
}
"""


def variables(page: str, card: str, text: str, faint: str, rule: str, warn: str, back: str) -> str:
    """The colours of everything but series."""
    return (
        f"--page:{page};--card:{card};--text:{text};--faint:{faint};--rule:{rule};"
        f"--warn:{warn};--warn-back:{back};"
    )


def series(colours: tuple[str, ...]) -> str:
    """The colours of series, as text colours, which lines and marks take on."""
    return "".join(f".s{number}{{color:{colours[number]}}}" for number in range(COLOURS))


def style() -> str:
    """The whole style sheet; paper is always light."""
    light = variables("#f7f8fa", "#fff", "#1c2127", "#646d78", "#e3e6ea", "#c77700", "#fff5e0")
    dark = variables("#14171b", "#1b1f25", "#e4e8ed", "#97a1ad", "#2c323a", "#f0a33a", "#2d2415")
    return (
        f":root{{color-scheme:light dark;{light}}}{series(LIGHT)}"
        f"@media screen and (prefers-color-scheme:dark){{:root{{{dark}}}{series(DARK)}}}"
        f"{RULES}"
    )
