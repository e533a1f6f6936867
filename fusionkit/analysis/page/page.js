"use strict";
const run = JSON.parse(document.getElementById("data").textContent);
const main = document.getElementById("main");
const COLOURS = ["var(--blue)", "var(--orange)", "#009e73", "#cc79a7"];

/* Elements: text goes in as text, whatever it holds. */
function make(name, attributes = {}, ...children) {
  const node = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value === true) node.setAttribute(key, "");
    else if (value !== false && value !== null) node.setAttribute(key, value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}
function draw(name, attributes, text = "") {
  const node = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== "") node.textContent = text;
  return node;
}
function section(id, title, note) {
  document.getElementById("nav").append(make("a", { href: `#${id}` }, title));
  const node = make("section", { id, "aria-label": title }, make("h2", {}, title));
  if (note) node.append(make("p", { class: "note" }, note));
  main.append(node);
  return node;
}
const number = (n) => n.toLocaleString("en");
const percent = (x) => `${(100 * x).toFixed(x < 0.1 ? 1 : 0)} %`;
const className = (i) => (run.classes ? run.classes[i] : String(i));
function spell(outcome) {
  if (Array.isArray(outcome)) return outcome.map(className).join(", ") || "none";
  return run.task === "regression" ? Number(outcome.toPrecision(4)).toString() : className(outcome);
}
function choice(label, id, options, change) {
  const list = make("select", { id, onchange: (event) => change(event.target.value) });
  for (const [value, text] of options) list.append(make("option", { value }, text));
  return make("label", { for: id }, label, list);
}

/* A line chart: series of {label, points: [[x, y]]}. */
function lines(title, series, digits = 3) {
  const W = 320, H = 190, L = 44, R = 10, T = 24, B = 26;
  const all = series.flatMap((one) => one.points);
  const xs = all.map((p) => p[0]), ys = all.map((p) => p[1]);
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  let [y0, y1] = [Math.min(...ys), Math.max(...ys)];
  if (y0 === y1) [y0, y1] = [y0 - 0.5, y1 + 0.5];
  const x = (v) => (x1 === x0 ? (L + W - R) / 2 : L + ((v - x0) / (x1 - x0)) * (W - L - R));
  const y = (v) => H - B - ((v - y0) / (y1 - y0)) * (H - T - B);
  const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": title });
  svg.append(draw("text", { x: 0, y: 12, style: "font-weight:600;fill:var(--ink)" }, title));
  for (let i = 0; i <= 3; i++) {
    const v = y0 + (i * (y1 - y0)) / 3;
    svg.append(draw("line", { x1: L, x2: W - R, y1: y(v), y2: y(v), class: "axis" }));
    svg.append(draw("text", { x: L - 6, y: y(v) + 4, "text-anchor": "end" }, Number(v.toPrecision(digits)).toString()));
  }
  const step = Math.max(1, Math.ceil((x1 - x0) / 8));
  for (let v = x0; v <= x1; v += step) {
    svg.append(draw("text", { x: x(v), y: H - 8, "text-anchor": "middle" }, String(v)));
  }
  series.forEach((one, i) => {
    const colour = one.colour || COLOURS[i % COLOURS.length];
    const d = one.points.map((p, j) => `${j ? "L" : "M"}${x(p[0])},${y(p[1])}`).join("");
    svg.append(draw("path", { d, fill: "none", stroke: colour, "stroke-width": 2, "stroke-dasharray": one.dash || "none" }));
    for (const p of one.points) {
      const dot = draw("circle", { cx: x(p[0]), cy: y(p[1]), r: 2.4, fill: colour });
      dot.append(draw("title", {}, `${one.label}, epoch ${p[0]}: ${Number(p[1].toPrecision(4))}`));
      svg.append(dot);
    }
  });
  return svg;
}

/* A heat map of rows of shares; each cell says what it is. */
const mix = (from, to, t) => `color-mix(in oklab, ${to} ${(100 * t).toFixed(1)}%, ${from})`;
const ramp = (t) => (t < 0.5 ? mix("var(--card)", "var(--orange)", 2 * t) : mix("var(--orange)", "var(--deep)", 2 * t - 1));
function heat(rows, top, rowName, columnName, say) {
  const W = 640, L = 62, T = 6, B = 24, size = Math.min(26, Math.max(9, 300 / rows.length));
  const columns = rows[0].length, width = (W - L) / columns, H = T + rows.length * size + B;
  const svg = draw("svg", { viewBox: `0 0 ${W} ${H}`, role: "img", "aria-label": `${rowName} by ${columnName}`, class: "heat" });
  rows.forEach((row, r) => {
    if (rows.length < 26 || r % 5 === 0) {
      svg.append(draw("text", { x: L - 8, y: T + (r + 0.7) * size, "text-anchor": "end" }, say.row(r)));
    }
    row.forEach((value, c) => {
      const t = Math.min(1, value / top);
      const cell = draw("rect", { x: L + c * width, y: T + r * size, width: width - 1, height: size - 1, rx: 2, fill: ramp(t), "data-value": value });
      cell.append(draw("title", {}, `${say.row(r)}, ${say.column(c)}: ${percent(value)}`));
      svg.append(cell);
    });
  });
  const every = Math.ceil(columns / 16);
  for (let c = 0; c < columns; c += every) {
    svg.append(draw("text", { x: L + (c + 0.5) * width, y: H - 8, "text-anchor": "middle" }, String(c + 1)));
  }
  return svg;
}
function scale(top) {
  const stops = [0, 0.25, 0.5, 0.75, 1].map(ramp).join(", ");
  return make("div", { class: "legend" }, "0", make("i", { style: `background: linear-gradient(90deg, ${stops})` }), `${percent(top)} or more`);
}

document.getElementById("name").textContent = run.name;
document.getElementById("folder").textContent = run.folder;

function overview() {
  const node = section("overview", "Results", `On the ${run.split === "val" ? "validation" : run.split} split, by the weights of epoch ${run.best_epoch}.`);
  const rows = [{ ...run, label: run.name }, ...run.baselines, ...(run.other ? [run.other] : [])];
  const titles = run.metrics.map((metric) => metric.title);
  const head = make("tr", {}, ...["run", ...titles, "trained", "of all", "time"].map((t) => make("th", { scope: "col" }, t)));
  const body = rows.map((row, i) =>
    make("tr", { class: i ? "" : "main" }, make("td", {}, row.label),
      ...titles.map((title) => make("td", {}, (row.metrics.find((m) => m.title === title) || { text: "-" }).text)),
      make("td", {}, number(row.trained)), make("td", {}, `${((100 * row.trained) / row.total).toFixed(2)} %`),
      make("td", {}, `${Math.round(row.seconds)} s`)));
  node.append(make("div", { class: "wide" }, make("table", {}, make("thead", {}, head), make("tbody", {}, ...body))));
  node.append(make("details", {}, make("summary", {}, "Its config"), make("pre", {}, run.config)));
}

function curves() {
  const node = section("curves", "Learning curves", run.other ? "Dashed: the other run." : "");
  const grid = make("div", { class: "grid" });
  const hidden = ["val/routing_entropy", "val/effective_experts", "val/importance_cv2"];
  const loss = ["train/loss", "val/loss"].filter((name) => run.curves[name]);
  const charts = [[`loss: ${loss.map((n) => n.split("/")[0]).join(", ")}`, loss]];
  for (const name of Object.keys(run.curves)) {
    if (!loss.includes(name) && !hidden.includes(name)) charts.push([name.split("/")[1].replaceAll("_", " "), [name]]);
  }
  for (const [title, names] of charts) {
    const series = names.map((name, i) => ({ label: name, points: run.curves[name], colour: COLOURS[i] }));
    if (run.other) names.forEach((name, i) => {
      if (run.other.curves[name]) series.push({ label: `other ${name}`, points: run.other.curves[name], colour: COLOURS[i], dash: "4 3" });
    });
    if (series.length) grid.append(lines(title, series));
  }
  if (loss.length > 1) {
    node.append(make("p", { class: "small" }, ...loss.flatMap((name, i) => [make("span", { class: "key", style: `background:${COLOURS[i]}` }), `${name}  `])));
  }
  node.append(grid);
}

function routing() {
  const r = run.routing;
  const node = section("experts", "Experts over training", "");
  if (!r) {
    node.append(make("p", { class: "note" }, "This run mixes no prompt experts, so there is no routing to show."));
    return;
  }
  node.append(make("p", { class: "note" }, `Importance of each of ${r.experts} experts: its mean routing score over the validation split, epoch by epoch. All alike would be ${percent(1 / r.experts)} each; a few bright columns are a routing that has collapsed.`));
  const top = Math.min(1, 4 / r.experts);
  const place = make("div", {});
  const shown = make("output", { for: "layer" });
  const slider = make("input", { type: "range", id: "layer", min: 0, max: r.layers.length, value: 0, oninput: update });
  function update() {
    const at = Number(slider.value);
    const rows = r.importance.map((layers) => at === 0
      ? layers[0].map((_, e) => layers.reduce((sum, row) => sum + row[e], 0) / layers.length) : layers[at - 1]);
    shown.textContent = at === 0 ? "mean over layers" : `layer ${r.layers[at - 1] + 1}`;
    place.replaceChildren(heat(rows, top, "epoch", "expert", { row: (i) => `epoch ${r.epochs[i]}`, column: (c) => `expert ${c + 1}` }));
  }
  node.append(make("div", { class: "controls" }, make("label", { for: "layer" }, "Layer", slider, shown), scale(top)), place);
  update();
  const series = (key) => {
    const mean = r.epochs.map((epoch, i) => [epoch, r[key][i].reduce((a, b) => a + b, 0) / r.layers.length]);
    const single = r.layers.map((layer, l) => ({ label: `layer ${layer + 1}`, points: r.epochs.map((epoch, i) => [epoch, r[key][i][l]]), colour: "color-mix(in srgb, var(--soft) 35%, transparent)" }));
    const found = [...single, { label: "mean", points: mean, colour: "var(--blue)" }];
    if (run.other && run.other.routing) {
      const o = run.other.routing;
      found.push({ label: "other run, mean", dash: "4 3", colour: "var(--orange)", points: o.epochs.map((epoch, i) => [epoch, o[key][i].reduce((a, b) => a + b, 0) / o.layers.length]) });
    }
    return found;
  };
  const more = section("entropy", "Routing entropy", `How undecided the router is about a sample: 0 bits if one expert takes all, ${Math.log2(r.experts).toFixed(1)} if all ${r.experts} share alike. Effective experts: how many the whole split uses. Grey: single layers; blue: their mean.`);
  more.append(make("div", { class: "grid" }, lines("entropy, bits", series("entropy")), lines("effective experts", series("effective_experts")), lines("squared variation of importance", series("cv2"))));
}

function media(fields, small) {
  const found = [];
  for (const [name, value] of Object.entries(fields || {})) {
    if (value.image) found.push(make("img", { src: value.image, alt: name, class: value.image.startsWith("data:image/png") ? "tiny" : "", loading: "lazy" }));
    else if (value.sound && !small) found.push(make("audio", { controls: true, preload: "none", src: value.sound, "aria-label": name }));
    else if (value.text && !small) found.push(make("p", {}, value.text));
  }
  return found;
}

function cards() {
  if (!run.experts) return;
  const node = section("cards", "What each expert serves", "Words that its samples have more often than others, the samples that it has the largest weight in, and the classes: its mean weight over the samples of each.");
  const place = make("div", { class: "grid" });
  const layers = run.routing ? run.routing.layers : run.experts.map((_, i) => i);
  function update(at) {
    place.replaceChildren(...run.experts[at].map((card, e) => {
      const most = Math.max(...card.words.map((w) => w[1]), 1e-9);
      const cloud = make("p", { class: "cloud" }, ...card.words.map(([word, part]) =>
        make("span", { style: `font-size:${0.8 + 1.1 * Math.sqrt(part / most)}rem`, title: `${part.toFixed(4)} bits` }, `${word} `)));
      const fields = card.samples.map((i) => run.samples[i].fields);
      const images = fields.flatMap((one) => media(one, true));
      const sounds = fields.slice(0, 3).flatMap((one) => Object.values(one || {}).filter((v) => v.sound))
        .map((v) => make("audio", { controls: true, preload: "none", src: v.sound }));
      const widest = Math.max(...card.classes.map((c) => c[1]), 1e-9);
      const bars = card.classes.slice(0, 5).map(([c, share]) =>
        make("div", { class: "bar" }, make("span", { title: className(c) }, className(c)), make("i", { style: `width:${(100 * share) / widest}%` }), make("b", {}, percent(share))));
      return make("article", { class: "card" }, make("h3", {}, `Expert ${e + 1}`),
        make("p", { class: "small" }, `mean weight ${percent(card.weight)}, first choice of ${percent(card.first)}`),
        card.words.length ? cloud : null, images.length ? make("div", { class: "thumbs" }, ...images) : null, ...sounds, ...bars);
    }));
  }
  node.append(make("div", { class: "controls" }, choice("Layer", "card-layer", layers.map((layer, i) => [i, `layer ${layer + 1}`]), (value) => update(Number(value)))), place);
  const last = layers.length - 1;
  node.querySelector("select").value = last;
  update(last);
}

function browser() {
  const PAGE = 24;
  const node = section("samples", "Samples", `${number(run.samples.length)} of the ${run.split === "val" ? "validation" : run.split} split. ${run.experts ? "Click one to see which experts it takes in each layer." : ""}`);
  const wanted = { class: "", outcome: "", expert: "", other: "", text: "" };
  const list = make("div", { class: "samples" }), count = make("output", { id: "count" }), route = make("div", { id: "route", "aria-live": "polite" });
  let at = 0;
  const includes = (target, c) => (Array.isArray(target) ? target.includes(c) : target === c);
  const best = (sample) => { const row = sample.route[sample.route.length - 1]; return row.indexOf(Math.max(...row)); };
  function matches(sample) {
    if (wanted.class !== "" && !includes(sample.target, Number(wanted.class))) return false;
    if (wanted.outcome !== "" && String(sample.right) !== wanted.outcome) return false;
    if (wanted.expert !== "" && best(sample) !== Number(wanted.expert)) return false;
    if (wanted.other !== "" && `${sample.right},${sample.other.right}` !== wanted.other) return false;
    const said = `${sample.id} ${Object.values(sample.fields || {}).map((v) => v.text || "").join(" ")}`;
    return said.toLowerCase().includes(wanted.text);
  }
  function show(sample, button) {
    list.querySelectorAll("[aria-pressed=true]").forEach((one) => one.setAttribute("aria-pressed", "false"));
    button.setAttribute("aria-pressed", "true");
    if (!sample.route) return;
    const layers = run.routing ? run.routing.layers : sample.route.map((_, i) => i);
    const rows = sample.route.map((row) => row.map((v) => v / 100));
    route.replaceChildren(make("h3", {}, `Route of ${sample.id || sample.index} through the layers`),
      heat(rows, 1, "layer", "expert", { row: (i) => `layer ${layers[i] + 1}`, column: (c) => `expert ${c + 1}` }));
  }
  function card(sample) {
    const top = sample.top ? sample.top.map(([c, p]) => `${className(c)} ${percent(p)}`).join(", ") : "";
    const mark = sample.right === null ? "" : sample.right ? "right" : "wrong";
    const pick = () => show(sample, button);  // no button: it may hold a player, which takes clicks of its own
    const key = (event) => { if (event.target === button && (event.key === "Enter" || event.key === " ")) { event.preventDefault(); pick(); } };
    const button = make("div", { role: "button", tabindex: 0, class: "sample", "aria-pressed": "false", onclick: pick, onkeydown: key },
      ...media(sample.fields, false),
      make("p", { class: "small" }, sample.id || `number ${sample.index}`, ` · true: ${spell(sample.target)}`),
      make("p", { class: mark }, `${mark ? `${mark}: ` : "predicted: "}${spell(sample.predicted)}`),
      top ? make("p", { class: "small" }, top) : null,
      sample.other ? make("p", { class: "small" }, `other run: ${spell(sample.other.predicted)}`) : null);
    return button;
  }
  function update() {
    const found = run.samples.filter(matches), pages = Math.max(1, Math.ceil(found.length / PAGE));
    at = Math.min(at, pages - 1);
    list.replaceChildren(...found.slice(at * PAGE, (at + 1) * PAGE).map(card));
    route.replaceChildren();
    count.textContent = `${found.length} samples, page ${at + 1} of ${pages}`;
    back.disabled = at === 0;
    on.disabled = at >= pages - 1;
  }
  const set = (key) => (value) => { wanted[key] = value; at = 0; update(); };
  const back = make("button", { type: "button", id: "back", onclick: () => { at--; update(); } }, "Back");
  const on = make("button", { type: "button", id: "on", onclick: () => { at++; update(); } }, "Next");
  const controls = make("div", { class: "controls" });
  if (run.classes) controls.append(choice("Class", "by-class", [["", "all"], ...run.classes.map((c, i) => [i, c])], set("class")));
  if (run.task !== "regression") controls.append(choice("Prediction", "by-outcome", [["", "all"], ["true", "right"], ["false", "wrong"]], set("outcome")));
  if (run.experts) controls.append(choice("First expert, last layer", "by-expert", [["", "any"], ...run.experts[0].map((_, e) => [e, `expert ${e + 1}`])], set("expert")));
  if (run.other && run.task !== "regression") controls.append(choice("Both runs", "by-other", [["", "all"], ["true,true", "both right"], ["true,false", "only this one right"], ["false,true", "only the other right"], ["false,false", "both wrong"]], set("other")));
  controls.append(make("label", { for: "by-text" }, "Text", make("input", { type: "search", id: "by-text", oninput: (event) => set("text")(event.target.value.toLowerCase()) })));
  node.append(controls, make("div", { class: "controls" }, back, on, count), list, route);
  update();
}

function comparison() {
  if (!run.other || run.task === "regression") return;
  const node = section("comparison", "Two runs", `This run against ${run.other.label}, on the ${number(run.samples.length)} samples below.`);
  const tally = (ours, theirs) => run.samples.filter((s) => s.right === ours && s.other.right === theirs).length;
  const rows = [["both right", tally(true, true)], ["only this one right", tally(true, false)], ["only the other right", tally(false, true)], ["both wrong", tally(false, false)]];
  node.append(make("table", { id: "agreement" }, make("tbody", {}, ...rows.map(([name, n]) => make("tr", {}, make("td", {}, name), make("td", {}, number(n)), make("td", {}, percent(n / run.samples.length)))))));
}

overview();
curves();
routing();
cards();
comparison();
browser();
