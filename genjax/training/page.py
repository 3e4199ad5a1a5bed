"""The look of pages such as `report.html`: a style sheet and a short script, both inline."""

from __future__ import annotations

import html

STYLE = """
:root{color-scheme:light dark;--page:#f6f7f9;--card:#fff;--ink:#1b2330;--soft:#657083;
--rule:#e6e9ee;--line:#2f6fde;--mean:#1d56b8;--bad:#d0342c;--good:#17803d;--tint:#eaf1fd}
@media (prefers-color-scheme:dark){:root{--page:#0f1318;--card:#181d25;--ink:#e4e8ee;
--soft:#93a0b2;--rule:#2a313c;--line:#6ea5ff;--mean:#8db9ff;--bad:#ff7b72;--good:#5fd38a;
--tint:#1e2b42}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans",sans-serif}
main{max-width:1180px;margin:0 auto;padding:28px 20px 60px}
h1{font-size:27px;line-height:1.2;margin:0;letter-spacing:-.01em}
h1 span{color:var(--soft);font-weight:400}
h2{font-size:17px;margin:34px 0 12px}
h3{font-size:14px;font-weight:600;margin:0;overflow-wrap:break-word;max-width:100%}
code,.mono{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;
font-size:.88em}
.soft{color:var(--soft)}
.head{display:flex;flex-wrap:wrap;gap:6px 14px;align-items:baseline}
.pill{font-size:13px;font-weight:600;border-radius:99px;padding:2px 11px;background:var(--tint);
color:var(--mean)}
.pill.done{background:color-mix(in srgb,var(--good) 14%,transparent);color:var(--good)}
.bar{height:5px;border-radius:3px;background:var(--rule);margin:14px 0 8px;overflow:hidden}
.bar i{display:block;height:100%;background:var(--line);border-radius:3px}
.done+.bar i,.bar.done i{background:var(--good)}
.tiles{display:grid;grid-template-columns:repeat(auto-fill,minmax(150px,1fr));gap:12px;
margin-top:20px}
.card{background:var(--card);border:1px solid var(--rule);border-radius:10px;padding:13px 16px}
.warning{border-color:#c77700;border-left-width:5px;margin:10px 0}
.tile b{display:block;font-size:22px;line-height:1.25;font-weight:600;
font-variant-numeric:tabular-nums}
.tile span{font-size:13px;color:var(--soft);overflow-wrap:break-word}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(100%,440px),1fr));gap:14px}
.plot{position:relative;padding:12px 12px 6px}
.plot header{display:flex;flex-wrap:wrap;justify-content:space-between;gap:0 12px;
align-items:baseline;padding:0 4px 4px}
.plot header span{color:var(--soft);font-size:13px;white-space:nowrap;
font-variant-numeric:tabular-nums}
.plot header b{color:var(--ink);font-weight:600}
.chart{display:block;width:100%;height:auto;touch-action:pan-y}
.chart path{fill:none;stroke-linejoin:round}
.rule{stroke:var(--rule)}.axis{stroke:var(--soft);opacity:.6}
.tick{fill:var(--soft);font-size:11.5px}.bad{fill:var(--bad);font-size:14px}
.raw{stroke:var(--line);stroke-width:1.7}.raw.faint{stroke-width:1;opacity:.38}
.mean{stroke:var(--mean);stroke-width:2}.dot{fill:var(--line)}
.curve{stroke-width:1.9}path.dashed{stroke-dasharray:5 3}
.hue0{--hue:#3b82d6}.hue1{--hue:#d9730d}.hue2{--hue:#2a9d63}.hue3{--hue:#c8459b}
.hue4{--hue:#8a6fd8}.hue5{--hue:#b58a00}.hue6{--hue:#12a0b0}.hue7{--hue:#d14343}
.hue8{--hue:#7a8699}.hue9{--hue:#8f6a4e}
path.curve{stroke:var(--hue)}circle.spot{fill:var(--hue)}
.lost{stroke:var(--bad);stroke-width:1.5}
.here{fill:var(--card);stroke:var(--mean);stroke-width:2}
.tip{position:absolute;pointer-events:none;background:var(--ink);color:var(--card);
border-radius:6px;padding:2px 8px;font-size:12.5px;white-space:nowrap;
transform:translate(-50%,-140%);font-variant-numeric:tabular-nums}
.view{margin:0;text-align:center}
.view img{display:block;margin:0 auto;width:min(100%,640px);max-height:78vh;object-fit:contain;
border-radius:4px}
.view pre{text-align:left;white-space:pre-wrap;overflow:auto;max-height:78vh;margin:0;
font:13px/1.45 ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace}
.crisp{image-rendering:pixelated}
.view p{margin:9px 0 0;font-variant-numeric:tabular-nums}
.strip{display:flex;flex-wrap:wrap;justify-content:center;gap:4px;margin-top:12px}
.strip button{all:unset;cursor:pointer;border-radius:6px;padding:3px;border:2px solid transparent;
font-size:12px;color:var(--soft);text-align:center;font-variant-numeric:tabular-nums}
.strip img{display:block;width:76px;height:76px;object-fit:contain;border-radius:3px}
.strip button:hover,.strip button:focus-visible{border-color:var(--rule);color:var(--ink)}
.strip button.on{border-color:var(--line);color:var(--ink)}
.scroll{overflow-x:auto;padding:4px 0}
table{border-collapse:collapse;width:100%;font-size:14px}
th,td{text-align:left;padding:6px 16px;border-bottom:1px solid var(--rule);vertical-align:top}
tr:last-child td{border-bottom:0}
th{font-size:12.5px;color:var(--soft);font-weight:600}
.num{text-align:right;font-variant-numeric:tabular-nums;white-space:nowrap}
.best{color:var(--good);font-weight:600}
td.any{overflow-wrap:anywhere;min-width:9em}
td.name{white-space:nowrap}
details{margin-top:14px}
summary{cursor:pointer;font-size:17px;font-weight:700;padding:2px 0 10px}
.digest{overflow-wrap:anywhere}
@media (max-width:520px){.tick{font-size:15px}th,td{padding:6px 9px}}
@media print{.strip{display:none}.card{break-inside:avoid}}
"""

# Shows the number under the pointer, and the sample grid of the chosen step.
SCRIPT = """
for (const svg of document.querySelectorAll('svg[data-points]')) {
  const points = JSON.parse(svg.dataset.points);
  const ring = document.createElementNS(svg.namespaceURI, 'circle');
  ring.setAttribute('class', 'here'); ring.setAttribute('r', 4);
  const tip = document.createElement('div'); tip.className = 'tip';
  const hide = () => { ring.remove(); tip.remove(); };
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), scale = box.width / svg.viewBox.baseVal.width;
    const x = (event.clientX - box.left) / scale;
    const y = (event.clientY - box.top) / scale;
    const far = p => Math.hypot(p[0] - x, p[4] ? p[1] - y : 0);
    let best = points[0];
    for (const p of points) if (far(p) < far(best)) best = p;
    ring.setAttribute('cx', best[0]); ring.setAttribute('cy', best[1]); svg.append(ring);
    tip.textContent = (best[4] || 'step ' + best[2].toLocaleString('en')) + ': ' + best[3];
    svg.parentNode.append(tip);
    const half = tip.offsetWidth / 2, wide = svg.parentNode.clientWidth;
    const card = svg.parentNode.getBoundingClientRect();
    const left = box.left - card.left + best[0] * scale;
    tip.style.left = Math.min(Math.max(left, half + 2), wide - half - 2) + 'px';
    tip.style.top = box.top - card.top + best[1] * scale + 'px';
  });
  svg.addEventListener('pointerleave', hide);
}
for (const viewer of document.querySelectorAll('.viewer')) {
  const figures = [...viewer.querySelectorAll('figure')];
  const buttons = [...viewer.querySelectorAll('button')];
  const show = index => figures.forEach((figure, i) => {
    figure.hidden = i !== index; buttons[i].classList.toggle('on', i === index); });
  buttons.forEach((button, index) => {
    button.addEventListener('click', () => show(index));
    button.addEventListener('keydown', event => {
      const next = buttons[index + {ArrowLeft: -1, ArrowRight: 1}[event.key]];
      if (next) { next.focus(); next.click(); }
    });
  });
}
"""


def document(title: str, body: str) -> str:
    """Returns a whole, self-contained page.

    Args:
      title: plain text.
      body: HTML.
    """
    return (
        '<!DOCTYPE html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )
