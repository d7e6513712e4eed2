"use strict";
const { rounds, shapes, changes, kept } = JSON.parse(document.getElementById("data").textContent);
const at = id => document.getElementById(id);
const slider = at("round"), play = at("play"), shape = at("shape");
const kindOf = ([, , , before, after]) => after > before ? "grew" : after < before ? "shrank" : "same";
const count = n => n.toLocaleString("en");
const brief = v => v === null ? "–" : Math.abs(v) >= 1e4 ? count(Math.round(v)) : String(Number(v.toPrecision(4)));

/** A child of `parent`; text goes in as text, so nothing in the data can become markup. */
function add(parent, tag, attributes = {}, text = "") {
  const node = document.createElementNS(parent.namespaceURI, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  if (text !== "") node.textContent = text;
  return parent.appendChild(node);
}

/** Where the slider shows a round; of a very long run it shows some rounds only, so then the next one that it does. */
function positionOf(round) {
  const found = rounds.findIndex(r => r.round >= round);
  return found < 0 ? rounds.length - 1 : found;
}
const changesAt = rounds.map(() => []);
if (rounds.length) for (const change of changes) changesAt[positionOf(change[0])].push(change);

// The shape ----------------------------------------------------------------------------------------------------------
/** Layers of a shape by a key that stays with the layer while others come and go. */
function layersOf(index) {
  const seen = new Map();
  return shapes[index].map(([name, kind, units]) => {
    const times = seen.get(name) || 0;
    seen.set(name, times + 1);
    return { key: name + "\u0000" + times, name, kind, units };
  });
}
const unitsOf = index => new Map(layersOf(index).map(l => [l.key, l.units]));
const largest = shapes.reduce((most, s) => s.reduce((m, l) => Math.max(m, l[2]), most), 1);
const bars = new Map();

function newBar(layer) {
  const bar = add(shape, "div", { role: "listitem" });
  add(bar, "span", { class: "name" }, layer.name);
  add(bar, "span", { class: "units" });
  const track = add(bar, "span", { class: "track" });
  for (const part of ["fill", "step", "goal"]) add(track, "span", { class: part });
  return bar;
}

function drawShape(now, before) {
  const layers = layersOf(rounds[now].shape), last = unitsOf(rounds[positionOf(kept)].shape);
  const previous = before === null ? null : unitsOf(rounds[before].shape), part = units => 100 * units / largest + "%";
  for (const [key, bar] of bars) if (!layers.some(l => l.key === key)) { bar.remove(); bars.delete(key); }
  layers.forEach((layer, i) => {
    const bar = bars.get(layer.key) || newBar(layer), [, units, track] = bar.children, [fill, step, goal] = track.children;
    bars.set(layer.key, bar);
    if (shape.children[i] !== bar) shape.insertBefore(bar, shape.children[i]);
    const was = previous ? previous.get(layer.key) ?? 0 : layer.units, low = Math.min(was, layer.units), high = Math.max(was, layer.units);
    bar.className = "bar " + layer.kind.replace(/\W/g, "");
    bar.dataset.units = layer.units;
    bar.title = `${layer.name}: ${layer.kind}, ${layer.units} units`;
    fill.style.width = part(layer.units);
    step.className = "step " + (layer.units > was ? "grew" : layer.units < was ? "shrank" : "");
    step.style.left = part(low); step.style.width = part(high - low);
    goal.hidden = !last.has(layer.key);
    goal.style.left = part(last.get(layer.key) ?? 0);
    units.textContent = count(layer.units);
  });
}

function drawWhy(now) {
  const list = at("why");
  list.replaceChildren();
  for (const change of changesAt[now].slice(0, 6)) {
    const [, , where, before, after, reason] = change, item = add(list, "li", { class: kindOf(change) });
    add(item, "b", {}, `${where} ${before} → ${after}`);
    item.append(` ${reason}`);
  }
  if (changesAt[now].length > 6) add(list, "li", { class: "none" }, `and ${changesAt[now].length - 6} more`);
  if (!changesAt[now].length) add(list, "li", { class: "none" }, now === 0 ? "The network that everything starts from." : "Nothing changed in this round.");
}

function drawReadout(now) {
  const r = rounds[now], list = at("readout");
  list.replaceChildren();
  const entries = {
    [`round ${r.round} of ${rounds[rounds.length - 1].round}`]: `epoch ${r.epoch.toFixed(1)}`, phase: r.phase,
    [`validation ${list.dataset.metric}`]: r.score, "validation loss": r.loss, "parameters in training": count(r.parameters), time: r.time,
  };
  for (const [name, value] of Object.entries(entries)) {
    const entry = add(list, "div");
    add(entry, "dt", {}, name);
    add(entry, "dd", {}, value);
  }
  slider.setAttribute("aria-valuetext", Object.entries(entries).map(([name, value]) => `${name} ${value}`).join(", "));
}

// The learned depths: their values beside the others of a round, so that a chart finds them ---------------------------
const stages = [...new Set(rounds.flatMap(r => r.depths.map(([name]) => name)))], gates = new Map();
for (const r of rounds)
  for (const [name, w, open] of r.depths) {
    r["w " + name] = w;
    open.forEach((gate, i) => {
      const key = `gate ${name} ${i}`;
      r[key] = gate;
      gates.set(key, { key, name: `gate ${i + 1} of ${name}`, colour: colourOf(name) });
    });
  }
function colourOf(stage) { return "stage" + stages.indexOf(stage) % 5; }

// The curves ---------------------------------------------------------------------------------------------------------
/** Round numbers between low and high: 1, 2, 5 times a power of ten. */
function ticks(low, high, wanted, log) {
  const found = [], first = Math.floor(Math.log10(high - low || 1)) - 2;
  if (log) {
    for (let power = Math.floor(Math.log10(low)); power <= Math.log10(high); power++)
      for (const digit of [1, 2, 5]) found.push(Number(`${digit}e${power}`));
    const inside = found.filter(v => v >= low && v <= high);
    if (inside.length > wanted + 2) return inside.filter(v => String(v.toExponential()).startsWith("1"));
    if (inside.length >= 3) return inside;
  }
  for (let power = first; ; power++)
    for (const digit of [1, 2, 5]) {
      const step = Number(`${digit}e${power}`);
      if ((high - low) / step <= wanted)
        return Array.from({ length: Math.floor(high / step) - Math.ceil(low / step) + 1 },
          (_, i) => Number(((Math.ceil(low / step) + i) * step).toPrecision(12)));
    }
}

/** A chart with one or more series over epochs; returns how to redraw it and how to move its markers. */
function chart(id, height, series, log) {
  const svg = at(id), left = 52, right = 12, top = 22, bottom = height - 26;
  const epochs = rounds.map(r => r.epoch), start = Math.min(...epochs), end = Math.max(...epochs);
  const fits = v => v != null && (!log || v > 0), f = log ? Math.log : v => v;
  const values = series.flatMap(s => rounds.map(r => r[s.key])).filter(fits);
  let low = log ? Math.min(...values) : 0, high = Math.max(...values), lines = [], x, y;
  if (!values.length) [low, high] = [log ? 0.1 : 0, 1];
  else if (log) { const room = Math.max((high / low) ** 0.06, 1.05); low /= room; high *= room; }
  else high = high * 1.06 || 1;

  function draw() {
    const width = Math.max(240, svg.clientWidth);
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.style.height = height + "px";
    svg.replaceChildren();
    x = e => left + (width - left - right) * (end > start ? (e - start) / (end - start) : 0.5);
    y = v => bottom - (bottom - top) * (f(v) - f(low)) / (f(high) - f(low));
    const anneal = rounds.findIndex(r => r.anneal);
    if (anneal >= 0) {
      const from = x(rounds[Math.max(0, anneal - 1)].epoch);
      add(svg, "rect", { class: "anneal", x: from, y: top, width: Math.max(0, x(end) - from), height: bottom - top });
    }
    for (const v of ticks(low, high, height / 45, log)) {
      add(svg, "line", { class: "grid", x1: left, x2: width - right, y1: y(v), y2: y(v) });
      add(svg, "text", { x: left - 9, y: y(v) + 4, "text-anchor": "end" }, Math.abs(v) >= 1e6 ? `${v / 1e6}M` : Math.abs(v) >= 1e4 ? `${v / 1e3}k` : brief(v));
    }
    for (const e of end > start ? ticks(start, end, width / 90, false) : [start])
      add(svg, "text", { x: x(e), y: bottom + 19, "text-anchor": "middle" }, brief(e));
    add(svg, "text", { x: 0, y: bottom + 19 }, "epoch");
    for (const s of series) drawCurve(s);
    for (const change of changes) drawMark(change);
    lines = ["cross", "now"].map(kind => ({
      line: add(svg, "line", { class: kind, y1: top, y2: bottom }),
      dots: series.map(s => add(svg, "circle", { class: "dot", r: 5, fill: `var(--${s.colour})` })),
    }));
    lines[0].line.setAttribute("visibility", "hidden");
    lines[0].dots.forEach(dot => dot.setAttribute("visibility", "hidden"));
  }

  function drawCurve(s) {
    let path = "", pen = "M";
    for (const r of rounds) {
      if (!fits(r[s.key])) { pen = "M"; continue; }
      // a point between two gaps is a line of no length, which round caps show as a dot
      path += `${pen}${x(r.epoch).toFixed(1)} ${y(r[s.key]).toFixed(1)}` + (pen === "M" ? "l0 0" : "");
      pen = "L";
    }
    add(svg, "path", { class: "curve", d: path, stroke: `var(--${s.colour})` });
  }

  function drawMark(change) {
    const kind = kindOf(change), centre = x(change[1]), d = { grew: "l4 7h-8z", shrank: "m-4 0h8l-4 7z", same: "l4 4l-4 4l-4 -4z" }[kind];
    if (!Number.isFinite(centre)) return;
    const offset = kind === "shrank" ? top - 20 : top - 10;
    const mark = add(svg, "path", { class: `mark ${kind}`, d: `M${centre.toFixed(1)} ${offset}${d}` });
    add(mark, "title", {}, `${change[2]} ${change[3]} → ${change[4]}: ${change[5]}`);
  }

  function move(which, index) {
    const { line, dots } = lines[which], r = rounds[index], show = index === null ? "hidden" : "visible";
    line.setAttribute("visibility", show);
    if (r) for (const end of ["x1", "x2"]) line.setAttribute(end, x(r.epoch));
    dots.forEach((dot, i) => {
      const v = r ? r[series[i].key] : null;
      dot.setAttribute("visibility", fits(v) ? show : "hidden");
      if (fits(v)) { dot.setAttribute("cx", x(r.epoch)); dot.setAttribute("cy", y(v)); }
    });
  }

  function nearest(event) {
    const place = event.clientX - svg.getBoundingClientRect().left;
    return rounds.reduce((best, r, i) => Math.abs(x(r.epoch) - place) < Math.abs(x(rounds[best].epoch) - place) ? i : best, 0);
  }
  svg.setAttribute("aria-label", series.map(s => {
    const own = rounds.map(r => r[s.key]).filter(v => v != null);
    return own.length ? `${s.name} over epochs, from ${brief(own[0])} to ${brief(own[own.length - 1])}` : `${s.name}: no values`;
  }).join("; "));
  svg.addEventListener("pointermove", event => point(nearest(event)));
  svg.addEventListener("pointerleave", () => point(null));
  svg.addEventListener("click", event => { stop(); show(nearest(event)); });
  return { draw, move };
}

/** The read-out over the curves: of the round under the pointer, else of the slider's. */
function drawHover(index) {
  const r = rounds[index], line = at("hover");
  line.replaceChildren();
  const say = (colour, name, value) => {
    const entry = add(line, "span");
    if (colour) add(entry, "span", { class: "key line", style: `background: var(--${colour})` });
    entry.append(name + " ");
    add(entry, "b", {}, value);
  };
  say("", "epoch", r.epoch.toFixed(1));
  say("train", "training loss", brief(r.train));
  say("valid", "validation loss", brief(r.valid));
  say("linear", "parameters in training", count(r.parameters));
  for (const [name, w] of r.depths) say(colourOf(name), `${name} w`, w === null ? "–" : w.toFixed(2));
}

// One state: the round that is shown -----------------------------------------------------------------------------------
let charts = [], timer = null;
function point(index) {
  for (const c of charts) c.move(0, index);
  drawHover(index === null ? Number(slider.value) : index);
}
function show(now) {
  slider.value = now;
  drawShape(now, now > 0 ? now - 1 : null);
  drawReadout(now);
  drawWhy(now);
  drawHover(now);
  for (const c of charts) c.move(1, now);
  for (const row of document.querySelectorAll("#changes tbody tr")) row.classList.toggle("current", positionOf(Number(row.dataset.round)) === now);
}
function icon(playing) {
  shape.classList.toggle("playing", playing);
  play.setAttribute("aria-label", playing ? "Pause" : "Play");
  play.querySelector("path").setAttribute("d", playing ? "M3 2h3.6v12H3zM9.4 2H13v12H9.4z" : "M4 1.6v12.8L14.4 8z");
}
function stop() {
  clearInterval(timer);
  timer = null;
  icon(false);
}
function start() {
  if (Number(slider.value) >= rounds.length - 1) show(0);
  icon(true);
  timer = setInterval(() => {
    show(Math.min(Number(slider.value) + 1, rounds.length - 1));
    if (Number(slider.value) >= rounds.length - 1) stop();
  }, Math.min(500, Math.max(40, 12000 / rounds.length)));
}

function prepare() {
  const end = rounds.length - 1, most = Math.max(...shapes.map(s => s.length)), anneal = rounds.findIndex(r => r.anneal);
  slider.max = end;
  slider.disabled = play.disabled = end === 0;
  const [row, type] = most <= 14 ? ["2.1rem", ".9rem"] : most <= 30 ? ["1.45rem", ".82rem"] : ["1.05rem", ".72rem"];
  const longest = Math.max(...shapes.flatMap(s => s.map(l => l[0].length)));
  shape.style.setProperty("--row", row);
  shape.style.setProperty("--type", type);
  shape.style.setProperty("--name", Math.min(longest * 0.58 + 0.4, 14) + "em");
  shape.style.setProperty("--digits", count(largest).length + "ch");
  shape.style.minHeight = `calc(${most} * ${row})`; // layers come and go, the page below stays where it is
  if (anneal >= 0 && end) {
    const from = 100 * Math.max(0, anneal - 1) / end + "%";
    slider.style.setProperty("--track", `linear-gradient(90deg, color-mix(in srgb, var(--accent) 45%, var(--line)) ${from}, var(--line) ${from})`);
  }
  changesAt.forEach((list, i) => {
    if (list.length && end) add(at("ticks"), "i", { class: kindOf(list[0]), style: `left: ${100 * i / end}%` });
  });
  const legend = at("legend"), kinds = [...new Set(shapes.flatMap(s => s.map(l => l[1])))];
  for (const [name, words] of [...kinds.map(k => [k.replace(/\W/g, ""), k]), ["grew", "grew in this round"], ["shrank", "shrank"], ["goal", "final size"]]) {
    const entry = add(legend, "span");
    add(entry, "span", { class: "key " + name });
    entry.append(words);
  }
  charts = [
    chart("loss", 260, [{ key: "train", name: "training loss", colour: "train" }, { key: "valid", name: "validation loss", colour: "valid" }], true),
    chart("size", 170, [{ key: "parameters", name: "parameters", colour: "linear" }], false),
  ];
  at("depths").hidden = !stages.length;
  if (stages.length)
    charts.push(
      chart("depth", 170, stages.map(name => ({ key: "w " + name, name: `learned depth of ${name}`, colour: colourOf(name) })), false),
      chart("gates", 170, [...gates.values()], false),
    );
  const redraw = () => { for (const c of charts) { c.draw(); c.move(1, Number(slider.value)); } };
  redraw();
  let width = at("loss").clientWidth;
  addEventListener("resize", () => { if (at("loss").clientWidth !== width) { width = at("loss").clientWidth; redraw(); } });
  slider.addEventListener("input", () => { stop(); show(Number(slider.value)); });
  play.addEventListener("click", () => timer === null ? start() : stop());
  for (const button of document.querySelectorAll("#changes button[data-round]"))
    button.addEventListener("click", () => {
      stop();
      show(positionOf(Number(button.dataset.round)));
      at("growth").scrollIntoView({ behavior: matchMedia("(prefers-reduced-motion: reduce)").matches ? "auto" : "smooth" });
    });
  icon(false);
  show(positionOf(kept));
}

for (const [id, full] of [["growth", rounds.length], ["curves", rounds.length], ["result", document.querySelector("#result tbody tr")],
  ["changes", changes.length], ["notes", document.querySelector("#notes li")]]) at(id).hidden = !full;
if (rounds.length) prepare();
