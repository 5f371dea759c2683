"""Style sheet of the page: one column on a phone, light or dark as the reader prefers."""

CSS = """
:root{color-scheme:light dark;--bg:#fff;--fg:#1b1f24;--soft:#59636e;--line:#d5dae0;--card:#f5f7f9;
--warn:#fff4d6;--c0:#1f6fd0;--c1:#c45d00;--c2:#1d8a52;--c3:#9440ad}
@media(prefers-color-scheme:dark){:root{--bg:#14171b;--fg:#e6e9ed;--soft:#9aa5b1;--line:#363d46;
--card:#1d2228;--warn:#3d3213;--c0:#6cabff;--c1:#ff9d4d;--c2:#5fd193;--c3:#d68cf0}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--fg);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,sans-serif}
main{max-width:1120px;margin:0 auto;padding:16px}
h1{font-size:1.6rem;line-height:1.2;margin:.4em 0 0;overflow-wrap:anywhere}
h2{font-size:1.25rem;margin:2em 0 .3em;border-bottom:1px solid var(--line);padding-bottom:.2em}
h3{font-size:1rem;margin:0;overflow-wrap:anywhere}
h4{font-size:.9rem;margin:.9em 0 .2em}
p{margin:.5em 0}
img{max-width:100%;height:auto}
.sub{color:var(--soft);font-size:.9rem;margin:.2em 0 .8em}
.lead{max-width:75ch}
.cards{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,200px),1fr));gap:10px}
.card{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px 12px}
.card h3{font-weight:600;font-size:.9rem;color:var(--soft)}
.card .value{font-size:1.25rem;font-weight:600;margin:.1em 0;font-variant-numeric:tabular-nums}
.card .change{font-size:.9rem;font-weight:400;color:var(--soft);white-space:nowrap}
.card p{font-size:.85rem}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,310px),1fr));gap:18px}
.chart{margin:0;min-width:0}
.chart p{font-size:.82rem;color:var(--soft);margin:.1em 0}
.chart>svg{width:100%;height:auto;display:block}
.legend{font-size:.8rem;min-height:1.3em;display:flex;flex-wrap:wrap;gap:0 12px}
.key{white-space:nowrap}.key svg{margin-right:4px}
svg path{fill:none;stroke:currentColor;stroke-width:2}
svg text{fill:var(--soft);font-size:11px}
svg .grid{stroke:var(--line);stroke-width:1}
svg .reference{stroke:var(--soft);stroke-width:1;stroke-dasharray:4 4}
.line{stroke-linejoin:round}
.line.c0,.c0 path{stroke:var(--c0)}.line.c1,.c1 path{stroke:var(--c1)}
.line.c2,.c2 path{stroke:var(--c2)}.line.c3,.c3 path{stroke:var(--c3)}
.legendbox{background:var(--card);border:1px solid var(--line);border-radius:8px;
padding:4px 14px 10px;font-size:.88rem;margin-bottom:1em}
dl{margin:0}dt{font-weight:600;margin-top:.5em}dd{margin:0}
.scale{display:block;width:min(100%,280px);margin:.2em 0}
.bar{display:block;height:12px;border-radius:3px;border:1px solid var(--line)}
.ends{display:flex;justify-content:space-between;font-size:.8rem}
article{margin:1.6em 0 2.2em}
.scroll,.strips{overflow-x:auto}
.strips{padding-bottom:8px}
.stick{position:sticky;left:0;width:max-content;max-width:100%}
.who{display:block;font-size:.8rem;color:var(--soft);line-height:1.35}
.row{width:max-content;margin-bottom:4px}
.strips img{display:block;max-width:none;height:auto;image-rendering:pixelated}
table{border-collapse:collapse;font-size:.88rem;margin:.4em 0;font-variant-numeric:tabular-nums}
th,td{padding:3px 10px 3px 0;text-align:right;border-bottom:1px solid var(--line)}
tbody th{text-align:left;font-weight:400;white-space:nowrap}
thead th{font-weight:600;color:var(--soft)}
.warn{background:var(--warn);border-radius:8px;padding:8px 14px;margin:.8em 0}
.warn ul{margin:.2em 0;padding-left:1.2em}
code,pre{font-family:ui-monospace,Menlo,Consolas,monospace;font-size:.85em;overflow-wrap:anywhere}
pre{background:var(--card);border:1px solid var(--line);border-radius:8px;padding:10px;
overflow-x:auto}
summary{cursor:pointer;padding:6px 0}
"""
