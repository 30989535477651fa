"use strict";
// Text from runs and models reaches the page through textContent and setAttribute only, never as markup.
const DATA = JSON.parse(document.getElementById("data").textContent);
const DASHES = ["", "6 3", "2 3", "9 3 2 3", "1 5"];
const AXES = { step: "step", tokens: "tokens generated", seconds: "seconds", forward_passes: "forward passes" };
const state = { axis: "step", smooth: true, hidden: new Set() };
const tip = document.getElementById("tip");

function el(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "path", "line", "text", "circle", "rect"].includes(tag);
  const node = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else node.setAttribute(key, value);
  }
  node.append(...children);
  return node;
}
const colour = (run) => `var(--run${run % 8})`;
const named = (metric) => DATA.words[metric][0]; // a metric in words
const swatch = (run) => el("i", { class: "swatch", style: `--run: ${colour(run)}` });

// ---- numbers ----
function ticks(lo, hi, count) {
  const raw = (hi - lo) / count, power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(lo / step - 1e-9); k * step <= hi + step * 1e-6; k++) found.push(k * step);
  return { found, step };
}
function label(value, step) {
  if (Math.abs(value) < step * 1e-6) return "0";
  for (const [size, suffix] of [[1e9, "G"], [1e6, "M"], [1e4, "k"]]) {
    const unit = suffix === "k" ? 1e3 : size;
    if (Math.abs(value) >= size || step >= size) return trim((value / unit).toFixed(places(step / unit))) + suffix;
  }
  if (step < 1e-4 && Math.abs(value) < 0.01) {
    const order = (v) => Math.floor(Math.log10(Math.abs(v)) + 1e-9);
    const digits = order(value) - order(step) + places(step / 10 ** order(step));
    return value.toExponential(Math.max(0, digits)).replace(/\.0+e/, "e").replace(/-/g, "−");
  }
  return trim(value.toFixed(places(step))).replace("-", "−");
}
function places(step) {
  let count = 0;
  while (count < 8 && Math.abs(step * 10 ** count - Math.round(step * 10 ** count)) > 1e-6) count++;
  return count;
}
const trim = (text) => (text.includes(".") ? text.replace(/\.?0+$/, "") : text);
function exact(value) {
  if (value === null || value === undefined) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return (size >= 1e-3 && size < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2)).replace("-", "−");
}
function timeScale(most) { return most > 10800 ? [3600, "hours"] : most > 600 ? [60, "minutes"] : [1, "seconds"]; }

// ---- curves ----
function pointsOf(table, metric) {
  const xs = table[state.axis] || [], ys = table[metric] || [], found = [];
  ys.forEach((y, i) => { if (y !== null && xs[i] !== null && xs[i] !== undefined) found.push([xs[i], y]); });
  return found.sort((a, b) => a[0] - b[0]);
}
function smoothed(points) {
  // centred mean over about 5 % of the curve, narrower towards both ends: no lag, and the ends stay where they are
  const half = Math.max(1, Math.round(points.length / 40));
  return points.map(([x], i) => {
    const reach = Math.min(half, i, points.length - 1 - i);
    let sum = 0;
    for (let k = i - reach; k <= i + reach; k++) sum += points[k][1];
    return [x, sum / (2 * reach + 1)];
  });
}
function linesOf(chart) {
  const lines = [];
  DATA.runs.forEach((run, index) => {
    if (state.hidden.has(index)) return;
    chart.metrics.forEach((metric, dash) => {
      const points = pointsOf(run.train, metric), marks = pointsOf(run.eval, metric);
      if (points.length || marks.length) lines.push({ run: index, metric, dash: DASHES[dash % DASHES.length], points, marks });
    });
  });
  return lines;
}
function draw(box, chart) {
  const lines = linesOf(chart), width = Math.max(240, box.clientWidth), height = 190;
  box.replaceChildren();
  const missing = DATA.runs.filter((run, i) => !state.hidden.has(i) && !lines.some((l) => l.run === i));
  const why = (run) => (chart.metrics.some((m) => (run.train[m] || []).some((y) => y !== null)) ? `no ${AXES[state.axis]} recorded` : "not logged");
  if (!lines.length) {
    box.append(el("p", { class: "absent" }, missing.length ? `Nothing to draw: ${[...new Set(missing.map(why))].join(", ")}.` : "All runs are hidden."));
    return;
  }
  const all = lines.flatMap((l) => [...l.points, ...l.marks]);
  const [unit, unitName] = state.axis === "seconds" ? timeScale(Math.max(...all.map((p) => p[0]))) : [1, AXES[state.axis]];
  let x0 = Infinity, x1 = -Infinity, y0 = Infinity, y1 = -Infinity;
  for (const [x, y] of all) { x0 = Math.min(x0, x / unit); x1 = Math.max(x1, x / unit); y0 = Math.min(y0, y); y1 = Math.max(y1, y); }
  if (x0 === x1) { x0 -= 0.5; x1 += 0.5; } else if (x0 > 0 && x0 < 0.2 * x1) x0 = 0;
  if (y0 >= 0 && (y0 < 0.5 * y1 || y0 === y1)) y0 = 0; // from 0, unless that would flatten the curve
  if (y1 - y0 <= 1e-9 * Math.abs(y1) || y0 === y1) { const pad = Math.abs(y1) * 0.1 || 1; y1 += pad; if (y0 !== 0) y0 -= pad; }
  const yTicks = ticks(y0, y1, 5), yNames = yTicks.found.map((v) => label(v, yTicks.step));
  const left = 12 + 6.4 * Math.max(...yNames.map((n) => n.length)), right = 14, top = 8, bottom = 34;
  const pad = (y1 - y0) * 0.05;
  const X = (x) => left + ((x / unit - x0) / (x1 - x0)) * (width - left - right);
  const Y = (y) => top + ((y1 + pad - y) / (y1 - y0 + 2 * pad)) * (height - top - bottom);
  const svg = el("svg", { viewBox: `0 0 ${width} ${height}`, height, role: "img", "aria-label": `${chart.title} over ${unitName}` });
  yTicks.found.forEach((v, i) => svg.append(
    el("line", { class: "grid", x1: left, x2: width - right, y1: Y(v), y2: Y(v) }),
    el("text", { x: left - 6, y: Y(v) + 4, "text-anchor": "end" }, yNames[i])));
  const xTicks = ticks(x0, x1, Math.max(2, Math.floor((width - left) / 75)));
  xTicks.found.filter((v) => lines.some((l) => l.points.length + l.marks.length > 1) || Number.isInteger(v)).forEach((v) => svg.append(
    el("text", { x: X(v * unit), y: height - bottom + 16, "text-anchor": "middle" }, label(v, xTicks.step))));
  svg.append(el("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }),
    el("text", { x: width - right, y: height - 3, "text-anchor": "end" }, unitName));
  const path = (points) => "M" + points.map(([x, y]) => `${X(x).toFixed(1)},${Y(y).toFixed(1)}`).join("L");
  for (const line of lines) {
    const style = `stroke: ${colour(line.run)}; stroke-dasharray: ${line.dash || "none"}`;
    const smooth = state.smooth && line.points.length > 7;
    line.shown = smooth ? smoothed(line.points) : line.points;
    if (smooth) svg.append(el("path", { class: "raw", d: path(line.points), style: `stroke: ${colour(line.run)}` }));
    if (line.points.length > 1) svg.append(el("path", { class: "line", d: path(line.shown), style }));
    const dots = line.points.length === 1 ? [...line.points, ...line.marks] : line.marks;
    for (const [x, y] of dots) svg.append(el("circle", { cx: X(x), cy: Y(y), r: 3.2, style: `fill: ${colour(line.run)}` }));
  }
  hover(svg, chart, lines, X, Y, { left, right, top, width, height, bottom, unit, unitName });
  box.append(svg);
  if (missing.length) box.append(el("p", { class: "absent" }, missing.map((run) => `${run.name}: ${why(run)}`).join("; ")));
}
function nearest(points, x) {
  let lo = 0, hi = points.length - 1;
  while (hi - lo > 1) { const mid = (lo + hi) >> 1; if (points[mid][0] < x) lo = mid; else hi = mid; }
  return !points.length ? -1 : Math.abs(points[lo][0] - x) <= Math.abs(points[hi][0] - x) ? lo : hi;
}
function hover(svg, chart, lines, X, Y, box) {
  const cursor = el("line", { class: "cursor", y1: box.top, y2: box.height - box.bottom, visibility: "hidden" });
  const dots = el("g");
  svg.append(cursor, dots);
  svg.addEventListener("pointermove", (event) => {
    const frame = svg.getBoundingClientRect(), px = ((event.clientX - frame.left) * box.width) / frame.width;
    const candidates = lines.filter((l) => l.points.length).map((l) => ({ l, xs: l.points.map((p) => p[0]) }));
    if (!candidates.length) return;
    let best = null;
    for (const { l } of candidates) for (const p of l.points) if (best === null || Math.abs(X(p[0]) - px) < Math.abs(X(best) - px)) best = p[0];
    cursor.setAttribute("x1", X(best)); cursor.setAttribute("x2", X(best)); cursor.setAttribute("visibility", "visible");
    dots.replaceChildren();
    const rows = [el("div", {}, `${box.unitName} ${exact(best / box.unit)}`)];
    for (const { l } of candidates) {
      const i = nearest(l.points, best), [x, y] = l.points[i];
      if (Math.abs(X(x) - X(best)) > 12) continue;
      dots.append(el("circle", { cx: X(x), cy: Y(l.shown[i][1]), r: 3, style: `fill: ${colour(l.run)}` }));
      const name = [DATA.runs.length > 1 ? DATA.runs[l.run].name : "", chart.metrics.length > 1 || DATA.runs.length === 1 ? named(l.metric) : ""];
      rows.push(el("div", { class: "row" }, swatch(l.run), name.filter(Boolean).join(" · "), el("b", {}, exact(y))));
    }
    showTip(event, rows);
  });
  svg.addEventListener("pointerleave", () => { cursor.setAttribute("visibility", "hidden"); dots.replaceChildren(); tip.hidden = true; });
}
function showTip(event, children) {
  tip.replaceChildren(...children);
  tip.hidden = false;
  const frame = tip.getBoundingClientRect();
  const x = event.clientX + 14 + frame.width > innerWidth ? event.clientX - 14 - frame.width : event.clientX + 14;
  tip.style.left = `${Math.max(4, x)}px`;
  tip.style.top = `${Math.min(event.clientY + 14, innerHeight - frame.height - 4)}px`;
}
function chartBox(chart) {
  const box = el("div", { class: "plot" });
  const title = el("h4", {}, chart.title, " ", el("small", {}, chart.unit));
  const card = el("figure", { class: "chart", style: "margin: 0" }, title);
  if (chart.note) card.append(el("p", { class: "note" }, chart.note));
  if (chart.metrics.length > 1) card.append(el("div", { class: "keys" }, ...chart.metrics.map((metric, i) => el("span", {},
    el("svg", { width: 26, height: 8, style: "width: 26px" }, el("line", { x1: 0, x2: 26, y1: 4, y2: 4, style: `stroke: var(--quiet); stroke-width: 2; stroke-dasharray: ${DASHES[i % DASHES.length] || "none"}` })), named(metric)))));
  card.append(box);
  drawn.push({ box, chart });
  watcher.observe(box);
  return card;
}
const drawn = [];
const redraw = (only) => drawn.filter((d) => d.box.isConnected && (!only || only.has(d.box))).forEach((d) => draw(d.box, d.chart));
const widths = new WeakMap();
const watcher = new ResizeObserver((entries) => {
  const changed = entries.filter((e) => widths.get(e.target) !== e.target.clientWidth).map((e) => e.target);
  changed.forEach((box) => widths.set(box, box.clientWidth));
  // in the next frame: drawing changes heights, which the observer would report again within this one
  if (changed.length) requestAnimationFrame(() => redraw(new Set(changed)));
});
function curves() {
  const place = document.getElementById("sections");
  if (!Object.keys(DATA.words).length) {
    place.append(el("p", { class: "quiet" }, "No training metrics were logged yet (metrics.jsonl is missing or empty)."));
    document.getElementById("curve-controls").hidden = document.getElementById("others").hidden = true;
    document.getElementById("curve-controls").style.display = "none";
    return;
  }
  for (const section of DATA.sections) {
    place.append(el("h3", {}, section.title), el("div", { class: "charts" }, ...section.charts.map(chartBox)));
  }
  if (DATA.runs.some((r) => r.thinned)) place.append(el("p", { class: "absent" }, "Long runs are drawn with every k-th logged step."));
  document.querySelectorAll("#axis input").forEach((input) => {
    input.disabled = !DATA.runs.some((r) => (r.train[input.value] || []).some((x) => x !== null));
    if (input.disabled) input.parentElement.title = "not recorded by these runs";
    input.addEventListener("change", () => { state.axis = input.value; redraw(); });
  });
  document.getElementById("smooth").addEventListener("change", (event) => { state.smooth = event.target.checked; redraw(); });
  if (DATA.runs.length > 1) DATA.runs.forEach((run, i) => document.getElementById("legend").append(el("button", { type: "button", "aria-pressed": "true", onclick: (event) => {
    if (!state.hidden.delete(i)) state.hidden.add(i);
    event.currentTarget.setAttribute("aria-pressed", String(!state.hidden.has(i)));
    redraw();
  } }, swatch(i), run.name)));
  const select = document.getElementById("metric"), other = document.getElementById("other-chart");
  select.append(...Object.keys(DATA.words).map((name) => el("option", { value: name }, named(name))));
  const show = () => other.replaceChildren(chartBox({ title: named(select.value), unit: DATA.words[select.value][1], note: `in metrics.jsonl: ${select.value}`, metrics: [select.value] }));
  select.addEventListener("change", show);
  show();
}

// ---- completions ----
const EDGES = ["think", "close", "close", "answer", "tool"];
const PHASE_NAMES = { open: "opening tag", close: "closing tag" };
function visible(token) {
  if (token === "") return [el("i", {}, "∅")];
  const parts = [];
  for (const piece of token.split(/(\r\n|\n|\r|\t)/)) {
    if (piece === "\t") parts.push(el("i", {}, "⇥"), "\t");
    else if (/^[\r\n]+$/.test(piece)) parts.push(el("i", {}, "↵"), "\n");
    else if (piece) parts.push(piece);
  }
  return parts;
}
function tokensOf(completion) {
  const blocks = [];
  let at = 0;
  for (const [phase, length] of completion.phases) {
    const name = DATA.phases[phase] || "no phase recorded", block = el("div", { class: "tokens" });
    let sum = 0, known = 0;
    for (let i = at; i < at + length; i++) {
      const entropy = completion.entropies[i], share = entropy === null ? 0 : Math.min(1, entropy / DATA.heat_end) * 85;
      if (entropy !== null) { sum += entropy; known++; }
      block.append(el("span", { "data-i": i, "data-phase": name, style: `--t: ${share.toFixed(1)}%`, ...(entropy === null ? { class: "none" } : {}) }, ...visible(completion.tokens[i])));
    }
    const mean = known ? `, mean ${exact(sum / known)} nats` : "";
    blocks.push(el("div", { class: "phase", style: `--edge: var(--${EDGES[phase] || "close"})` },
      el("small", {}, PHASE_NAMES[name] || name, el("em", {}, ` · ${length} token${length > 1 ? "s" : ""}${mean}`)), block));
    at += length;
  }
  return blocks;
}
function strip(completion) {
  const n = completion.tokens.length, svg = el("svg", { class: "strip", style: `max-width: ${n * 14}px`, viewBox: `0 0 ${n} 44`, preserveAspectRatio: "none", role: "img", "aria-label": "entropy by position" });
  let at = 0;
  for (const [phase, length] of completion.phases) {
    svg.append(el("rect", { x: at, y: 41, width: length, height: 3, style: `fill: var(--${EDGES[phase] || "close"})` }));
    for (let i = at; i < at + length; i++) {
      const tall = Math.min(1, (completion.entropies[i] || 0) / DATA.heat_end) * 38;
      if (tall > 0.2) svg.append(el("rect", { x: i + 0.08, y: 40 - tall, width: 0.84, height: tall, style: "fill: var(--heat)" }));
    }
    at += length;
  }
  return svg;
}
function viewer() {
  const place = document.getElementById("viewer-body");
  const having = DATA.runs.map((run, i) => i).filter((i) => DATA.runs[i].completions.length);
  if (!having.length) { place.append(el("p", { class: "quiet" }, "No completions were recorded (completions.jsonl is missing or empty).")); return; }
  const runs = el("select", { id: "pick-run" }, ...having.map((i) => el("option", { value: i }, DATA.runs[i].name)));
  const steps = el("select", { id: "pick-step" }), which = el("span", { id: "which" });
  const back = el("button", { type: "button", "aria-label": "previous completion" }, "‹ previous"), next = el("button", { type: "button", "aria-label": "next completion" }, "next ›");
  const body = el("div", { id: "completion" });
  let mine = [], at = 0;
  const current = () => DATA.runs[Number(runs.value)];
  function show() {
    const c = mine[at], rewards = Object.entries(c.rewards);
    which.textContent = `${at + 1} of ${mine.length}`;
    back.disabled = at === 0; next.disabled = at === mine.length - 1;
    const chip = (name, value) => el("span", {}, `${name} `, el("b", {}, typeof value === "string" ? value : value === null ? "n/a" : exact(value)));
    body.replaceChildren(
      el("div", { class: "prompt" }, c.prompt || "(no prompt recorded)"),
      el("div", { class: "chips" }, chip("reward", c.reward), chip("advantage", c.advantage), ...rewards.map(([k, v]) => chip(k, v)),
        chip("length", `${c.tokens.length} tokens`), chip("group", c.group), ...(c.truncated ? [chip("truncated", "yes")] : [])),
      strip(c), ...tokensOf(c));
  }
  function pickStep() { mine = current().completions.filter((c) => String(c.step) === steps.value); at = 0; show(); }
  function pickRun() {
    const known = [...new Set(current().completions.map((c) => String(c.step)))];
    steps.replaceChildren(...known.map((s) => el("option", { value: s }, s)));
    steps.value = known[known.length - 1];
    pickStep();
  }
  runs.addEventListener("change", pickRun);
  steps.addEventListener("change", pickStep);
  back.addEventListener("click", () => { at--; show(); });
  next.addEventListener("click", () => { at++; show(); });
  body.addEventListener("pointermove", (event) => {
    const span = event.target.closest && event.target.closest(".tokens span");
    if (!span) { tip.hidden = true; return; }
    const i = Number(span.dataset.i), entropy = mine[at].entropies[i];
    showTip(event, [`${JSON.stringify(mine[at].tokens[i])}\n${entropy === null ? "no entropy recorded" : `entropy ${entropy} nats`}\n${span.dataset.phase} · token ${i + 1} of ${mine[at].tokens.length}`]);
  });
  body.addEventListener("pointerleave", () => { tip.hidden = true; });
  const without = DATA.runs.filter((run) => !run.completions.length).map((run) => `${run.name}: no completions recorded`);
  const cut = DATA.runs.filter((run) => run.completions_left_out).map((run) => `${run.name}: ${run.completions_left_out} completions left out to keep the page small`);
  place.append(el("div", { class: "panel" },
    el("div", { class: "pick" }, el("label", {}, "run ", runs), el("label", {}, "step ", steps), el("span", {}, back, " ", next, " "), which,
      el("span", { class: "heat" }, "entropy 0", el("i"), `≥ ${DATA.heat_end} nats`)),
    body, ...[...without, ...cut].map((text) => el("p", { class: "absent" }, text))));
  pickRun();
}
curves();
viewer();
// Drawn at once rather than when the observer first reports: a page that is printed or saved may never get that frame.
drawn.forEach((d) => widths.set(d.box, d.box.clientWidth));
redraw();
