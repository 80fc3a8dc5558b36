"""The look of the report: one style sheet, light and dark, no resource from outside the file."""

from __future__ import annotations

from typing import Final

STYLE: Final = """
:root {
  color-scheme: light dark;
  --sans: system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", "Noto Sans", "DejaVu Sans", sans-serif;
  --mono: ui-monospace, "SF Mono", "Cascadia Mono", Menlo, Consolas, "DejaVu Sans Mono", monospace;
  --page: #f4f5f7; --surface: #ffffff; --ink: #14171c; --muted: #59616e; --line: #dfe3e8; --faint: #eef1f4;
  --series-0: #2166c1; --series-1: #c8500a; --series-2: #0b7d57; --series-3: #8a45a3;
  --bad: #bd2130; --bad-soft: #fdeaec; --warn: #8a5a00; --warn-soft: #fdf1d8; --good: #0b7d57; --good-soft: #e2f4ec;
  --insert: #6b3fa0; --insert-soft: #f0e8fa;
  --shadow: 0 1px 2px rgb(20 23 28 / .06), 0 4px 16px rgb(20 23 28 / .04);
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0f1216; --surface: #181c22; --ink: #e8ebf0; --muted: #9aa4b2; --line: #2c333d; --faint: #222831;
    --series-0: #6ba6f2; --series-1: #f0924f; --series-2: #4fc398; --series-3: #c490d8;
    --bad: #ff7b86; --bad-soft: #3d1f24; --warn: #f0c060; --warn-soft: #3a2f16; --good: #4fc398; --good-soft: #17332a;
    --insert: #c3a2f0; --insert-soft: #2e2440;
    --shadow: none;
  }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 3.5rem; -webkit-text-size-adjust: 100%; }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.5 var(--sans); }
main, .bar > div { max-width: 1240px; margin: 0 auto; padding: 0 20px; }
a { color: var(--series-0); }
code { font: .92em var(--mono); background: var(--faint); border-radius: 4px; padding: .1em .35em;
  overflow-wrap: anywhere; }
svg { display: block; width: 100%; height: auto; overflow: visible; stroke-linejoin: round; }
.bar { position: sticky; top: 0; z-index: 2; background: var(--surface); border-bottom: 1px solid var(--line); }
.bar > div { display: flex; gap: 4px 20px; align-items: center; min-height: 46px; overflow-x: auto;
  white-space: nowrap; }
.bar b { letter-spacing: -.01em; margin-right: 8px; }
.bar a { color: var(--muted); text-decoration: none; font-size: 14px; }
.bar a:hover, .bar a:focus { color: var(--ink); text-decoration: underline; }

header { padding: 34px 0 20px; }
h1 { margin: 0 0 6px; font-size: 32px; line-height: 1.15; letter-spacing: -.02em; overflow-wrap: anywhere; }
h2 { margin: 44px 0 14px; font-size: 21px; letter-spacing: -.01em; }
h3 { margin: 0 0 2px; font-size: 15px; font-weight: 600; }
h2 small, h3 small { font-weight: 400; font-size: 14px; color: var(--muted); letter-spacing: 0; margin-left: 6px; }
p { margin: 0 0 10px; max-width: 78ch; }
.facts { color: var(--muted); display: flex; flex-wrap: wrap; gap: 4px 18px; align-items: center; }
.facts span { min-width: 0; overflow-wrap: anywhere; }
.facts b { color: var(--ink); font-weight: 600; }
.chip { display: inline-block; border-radius: 99px; padding: 2px 11px; font-size: 13px; font-weight: 600;
  background: var(--faint); color: var(--muted); white-space: nowrap; }
.chip.good { background: var(--good-soft); color: var(--good); }
.chip.warn { background: var(--warn-soft); color: var(--warn); }
.chip.bad { background: var(--bad-soft); color: var(--bad); }
.muted { color: var(--muted); }
.num { font-variant-numeric: tabular-nums; white-space: nowrap; }

.card { background: var(--surface); border: 1px solid var(--line); border-radius: 12px; padding: 16px 18px;
  min-width: 0;
  box-shadow: var(--shadow); }
.grid { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); }
.stack { display: grid; gap: 14px; grid-template-columns: minmax(0, 1fr); }
.facts.under { margin: 14px 2px; max-width: none; }
.kpis { display: grid; gap: 14px; grid-template-columns: repeat(auto-fit, minmax(min(100%, 215px), 1fr)); }
.kpi .label { color: var(--muted); font-size: 14px; display: flex; justify-content: space-between; gap: 8px; }
.kpi .value { font-size: 42px; line-height: 1.15; font-weight: 650; letter-spacing: -.03em; white-space: nowrap;
  margin: 4px 0 8px;
  font-variant-numeric: tabular-nums; }
.kpi.none { background: none; border-style: dashed; box-shadow: none; }
.kpi .value i { font-style: normal; font-size: .55em; font-weight: 500; color: var(--muted); letter-spacing: 0;
  margin-left: .15em; }
.kpi .note { font-size: 13px; color: var(--muted); margin-top: 8px; }
.track { position: relative; height: 8px; border-radius: 4px; background: var(--faint); }
.track .range, .track .dot, .track .fill { position: absolute; top: 0; bottom: 0; border-radius: 4px; }
.track .range { background: var(--series-0); opacity: .38; min-width: 2px; }
.track .fill { left: 0; background: var(--series-0); opacity: .2; }
.track .dot { width: 4px; margin-left: -2px; top: -3px; bottom: -3px; background: var(--series-0);
  border-radius: 2px; }
.track .whole { position: absolute; top: -7px; bottom: -7px; width: 0; border-left: 1px dashed var(--muted); }
.callout { border-left: 4px solid var(--warn); background: var(--warn-soft); border-radius: 6px;
  padding: 10px 14px; margin: 14px 0; }
.empty { border: 1px dashed var(--line); border-radius: 12px; padding: 22px; color: var(--muted);
  text-align: center; }
.empty p { margin: 0 auto; }

.under { margin-top: 14px; }
.verdict { margin: 0; max-width: none; } .verdict .chip { margin-right: 8px; }
.card.edge { border-left: 4px solid var(--line); }
.card.edge.bad { border-left-color: var(--bad); } .card.edge.warn { border-left-color: var(--warn); }
.number { display: inline-grid; place-items: center; width: 24px; height: 24px; border-radius: 99px; font-size: 13px;
  font-weight: 700; background: var(--muted); color: var(--surface); }
.number.bad { background: var(--bad); } .number.warn { background: var(--series-1); }
h3.cause { font-size: 19px; letter-spacing: -.01em; margin: 10px 0 8px; }
h4 { margin: 12px 0 2px; font-size: 13px; color: var(--muted); font-weight: 500; }
.finding { display: grid; grid-template-columns: max-content minmax(0, 1fr); gap: 5px 16px; margin: 0 0 12px; }
.finding dt { color: var(--muted); font-size: 14px; }
.finding dd { margin: 0; max-width: 90ch; overflow-wrap: anywhere; }

.legend { display: flex; flex-wrap: wrap; gap: 0 14px; font-size: 13px; color: var(--muted); margin: 0 0 6px;
  min-height: 20px; }
.legend b { color: var(--ink); font-weight: 600; font-variant-numeric: tabular-nums; }
.swatch { display: inline-block; width: 12px; height: 3px; border-radius: 2px; margin-right: 6px;
  vertical-align: middle; }
.swatch.dash { background: repeating-linear-gradient(90deg, var(--muted) 0 4px, transparent 4px 6px); }

.forest { columns: 2 460px; column-gap: 44px; }
.forest .row { display: grid; break-inside: avoid; grid-template-columns: minmax(70px, 150px) 1fr 62px 96px; gap: 12px;
  align-items: center; padding: 4px 0;
  font-size: 14px; }
.forest .name { overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
.forest .num { text-align: right; } .forest .num.muted { font-size: 13px; }

.split { display: grid; gap: 14px; grid-template-columns: minmax(0, 1.35fr) minmax(0, 1fr); align-items: start; }
.wide { overflow-x: auto; } .wide svg { min-width: 640px; }
table { border-collapse: collapse; width: 100%; font-size: 14px; }
th { text-align: left; color: var(--muted); font-weight: 500; font-size: 13px; }
th, td { padding: 6px 14px 6px 0; border-bottom: 1px solid var(--line); vertical-align: top; }
tr:last-child td { border-bottom: 0; }
td.r, th.r { text-align: right; }
td.meter { width: 38%; vertical-align: middle; }
.scroll { overflow-x: auto; }

.trial { padding: 14px 0; border-top: 1px solid var(--line); }
.trial:first-child { border-top: 0; padding-top: 0; } .trial:last-child { padding-bottom: 0; }
.trial .head { display: flex; flex-wrap: wrap; gap: 2px 14px; align-items: baseline; margin-bottom: 6px; }
.trial .head b { font-size: 17px; font-variant-numeric: tabular-nums; }
.trial .id { font: 13px var(--mono); color: var(--muted); overflow-wrap: anywhere; }
.diff { display: flex; flex-wrap: wrap; gap: 3px; margin: 6px 0; font: 13px/1.35 var(--mono); }
.diff span { display: inline-grid; text-align: center; border-radius: 5px; padding: 1px 5px; min-width: 1.6em; }
.diff.words { font: 15px/1.4 var(--sans); gap: 3px 4px; } .diff.words span { padding: 1px 7px; }
.diff span > * { font-style: normal; font-weight: inherit; }
.diff .ok { color: var(--muted); } .diff .ok i { visibility: hidden; height: 0; line-height: 0; }
.diff .s { background: var(--warn-soft); color: var(--warn); }
.diff .d { background: var(--bad-soft); color: var(--bad); }
.diff .i { background: var(--insert-soft); color: var(--insert); }
.diff .s b, .diff .d b { font-weight: 400; } .diff .s i, .diff .i i { font-weight: 700; }
.diff.flat { margin: 0; } .diff.flat span { display: inline-block; min-width: 6.2em; }
.key { display: flex; flex-wrap: wrap; gap: 4px 14px; font-size: 13px; color: var(--muted); align-items: center; }
.key .diff { margin: 0; }

summary { cursor: pointer; font-weight: 600; }
details[open] summary { margin-bottom: 10px; }
.settings { columns: 2 380px; column-gap: 40px; font-size: 13px; }
.settings div { display: flex; justify-content: space-between; gap: 16px; padding: 3px 0;
  border-bottom: 1px solid var(--faint);
  break-inside: avoid; }
.settings span { color: var(--muted); overflow-wrap: anywhere; }
.settings b { font: 12.5px var(--mono); text-align: right; overflow-wrap: anywhere; }
footer { color: var(--muted); font-size: 13px; padding: 40px 0 50px; }
@media (max-width: 800px) {
  .split { grid-template-columns: minmax(0, 1fr); }
  h1 { font-size: 26px; } .kpi .value { font-size: 36px; } header { padding-top: 22px; }
  .forest .row { grid-template-columns: minmax(60px, 100px) 1fr 58px; gap: 8px; }
.forest .row > :last-child { display: none; }
  .card { padding: 14px; }
}
@media print { .bar { display: none; } body { background: none; } .card { break-inside: avoid; box-shadow: none; } }
"""
