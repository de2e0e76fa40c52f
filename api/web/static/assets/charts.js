// The report's pictures, drawn from the same figures while they still change. Marks as in semievol/templates/charts.html.

import { count } from "./format.js";
import { html } from "./vendor.js";

const SWATCHES = { base: "fill-base", semievol: "fill-semievol", hollow: "fill-hollow", tint: "fill-tint" };

export const Swatch = ({ look }) => html`<svg viewBox="0 0 24 12" aria-hidden="true"><rect class=${SWATCHES[look]} x="5" y="1" width="14" height="10" /></svg>`;

export const Line = ({ look }) => html`<svg viewBox="0 0 24 12" aria-hidden="true"><line class="curve ${look}" x1="1" x2="23" y1="6" y2="6" /></svg>`;

export const Bar = ({ share, look = "semievol" }) => html`<svg class="chart" height="8" aria-hidden="true">
  <rect class="fill-track" width="100%" height="8" rx="2" /><rect class=${SWATCHES[look]} width="${(100 * share).toFixed(2)}%" height="8" rx="2" /></svg>`;

/** Stacked bars. `layers`: [{look, counts}], the lowest first; `ticks`: words under the axis. */
export function Histogram({ label, layers, ticks, height = 72 }) {
  const bins = layers[0].counts.length;
  const sums = Array.from({ length: bins }, (_, bin) => layers.reduce((sum, layer) => sum + layer.counts[bin], 0));
  const tallest = Math.max(...sums, 1);
  const total = sums.reduce((sum, one) => sum + one, 0);
  const bars = [];
  for (let bin = 0; bin < bins; bin++) {
    let below = 0;
    for (const { look, counts } of layers) {
      const tall = counts[bin] ? Math.max(1, ((height - 2) * counts[bin]) / tallest) : 0;
      if (tall) bars.push(html`<rect class=${SWATCHES[look]} x="${(100 * bin) / bins}%" width="${86 / bins}%" y=${height - below - tall} height=${Math.max(1, tall - (look === "hollow" ? 1 : 0))} />`);
      below += tall;
    }
  }
  return html`<svg class="chart" height=${height} role="img" aria-label="${label}: ${count(total, "row")}, at most ${count(tallest)} in a bar">
      ${bars}<line class="grid-line" x1="0" x2="100%" y1=${height} y2=${height} />
    </svg>
    <div class="ticks" aria-hidden="true">${ticks.map((tick) => html`<span>${tick}</span>`)}</div>`;
}

/** Curves over one pair of axes. `curves`: [{look, points: [[x, y], …]}] in their own units; `y`: [bottom, top]. */
export function Curves({ label, curves, x, y, xTicks, yTicks }) {
  const at = ([px, py]) => `${((100 * (px - x[0])) / (x[1] - x[0] || 1)).toFixed(2)},${(100 - (100 * (py - y[0])) / (y[1] - y[0] || 1)).toFixed(2)}`;
  return html`<div class="plot small soft num">
    <div class="y" aria-hidden="true">${yTicks.map((tick) => html`<span>${tick}</span>`)}</div>
    <svg class="chart" viewBox="0 0 100 100" preserveAspectRatio="none" role="img" aria-label=${label}>
      ${[0, 50, 100].map((line) => html`<line class="grid-line" x1="0" x2="100" y1=${line} y2=${line} />`)}
      ${curves.map(({ look, points }) => html`<polyline class="curve ${look}" points=${points.map(at).join(" ")} />`)}
    </svg>
    <div class="x" aria-hidden="true">${xTicks.map((tick) => html`<span>${tick}</span>`)}</div>
  </div>`;
}

const ICONS = {
  done: html`<circle cx="12" cy="12" r="10" class="fill-semievol" /><path d="M7.5 12.5l3 3 6-6.5" fill="none" stroke="var(--card)" stroke-width="2.2" stroke-linecap="round" stroke-linejoin="round" />`,
  running: html`<circle cx="12" cy="12" r="9" fill="none" stroke="var(--semievol)" stroke-width="2.5" /><circle cx="12" cy="12" r="4.5" class="fill-semievol" />`,
  failed: html`<circle cx="12" cy="12" r="10" fill="var(--bad)" /><path d="M8.5 8.5l7 7m0-7l-7 7" stroke="var(--card)" stroke-width="2.2" stroke-linecap="round" />`,
  other: html`<circle cx="12" cy="12" r="9" fill="var(--card)" stroke="var(--edge)" stroke-width="2" />`,
};

/** How a stage stands, as a picture; words stand beside it. */
export const StageIcon = ({ state }) => html`<svg viewBox="0 0 24 24" aria-hidden="true">${ICONS[state] ?? ICONS.other}</svg>`;
