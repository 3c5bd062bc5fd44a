"use strict";
// Text of data sets and models only ever becomes text nodes: `make` has no way to take HTML.
const data = JSON.parse(document.getElementById("data").textContent);
const chosen = { run: data.shown, metric: "accuracy", cell: null, filter: "all" };
const byId = (id) => document.getElementById(id);
const LETTERS = "ABCDEFGH";
const MOST_SIDE_BY_SIDE = 6;

const VIRIDIS = [[68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140],
  [40, 174, 128], [94, 201, 98], [173, 220, 48], [253, 231, 37]];
const RED_BLUE = [[178, 24, 43], [214, 96, 77], [244, 165, 130], [253, 219, 199], [247, 247, 247],
  [209, 229, 240], [146, 197, 222], [67, 147, 195], [33, 102, 172]];

const percent = (share) => 100 * share;
const METRICS = {
  accuracy: { name: "Accuracy", colours: VIRIDIS, value: (c) => percent(c.accuracy),
    ends: (c) => [percent(c.ci_low), percent(c.ci_high)] },
  above_prior: { name: "Above prior", colours: RED_BLUE, signed: true,
    value: (c) => (c.above_prior === null ? null : percent(c.above_prior)),
    ends: (c) => [percent(c.ci_low - c.prior), percent(c.ci_high - c.prior)] },
  difference: { name: "Difference to base", colours: RED_BLUE, signed: true,
    value: (c) => (c.difference ? c.difference[0] : null), ends: (c) => (c.difference[1] < c.difference[2] ? c.difference.slice(1) : []), // no spread to draw from
    star: (c) => c.p < 0.05 },
  blank_image: { name: "Blank image", colours: VIRIDIS,
    value: (c) => (c.blank_image === null ? null : percent(c.blank_image)) },
};
const FILTERS = { all: "All", wrong: "Wrong", changed: "Changed by training", unparsed: "Unparsed" };

function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in element && !name.startsWith("aria-")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

const swatch = (run) => make("span", { className: `swatch s${run.colour}` });
const sign = (value, signed, digits = 1) =>
  ((signed && value >= 0 ? "+" : "") + value.toFixed(digits)).replace("-", "−");
const mean = (values) => {
  const known = values.filter((value) => value !== null);
  return known.length ? known.reduce((a, b) => a + b, 0) / known.length : null;
};

function colour(value, metric, limit) {
  const share = metric.signed ? (value + limit) / (2 * limit) : value / 100;
  const place = Math.min(Math.max(share, 0), 1) * (metric.colours.length - 1);
  const low = Math.min(Math.floor(place), metric.colours.length - 2);
  return metric.colours[low].map((c, i) => Math.round(c + (place - low) * (metric.colours[low + 1][i] - c)));
}

function ink(rgb) {
  const linear = rgb.map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  const light = 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2] + 0.05;
  return 1.05 / light > light / 0.057 ? "#fff" : "#10151c"; // the higher contrast
}

function choice(parent, entries, current, select) {
  const focused = parent.contains(document.activeElement) ? document.activeElement.value : null;
  parent.replaceChildren(...entries.map(([key, label, disabled]) => make("button",
    { type: "button", value: key, disabled: Boolean(disabled), "aria-pressed": String(key === String(current)),
      onclick: () => select(key) }, ...label)));
  if (focused !== null) [...parent.children].find((button) => button.value === focused)?.focus();
}

function drawControls() {
  const run = data.runs[chosen.run];
  choice(byId("run-choice"), data.runs.map((r, i) => [String(i), [swatch(r), r.label]]), chosen.run,
    (key) => { chosen.run = Number(key); draw(); });
  choice(byId("metric-choice"), Object.entries(METRICS).map(([key, metric]) => {
    const none = !Object.values(run.cells).some((cell) => metric.value(cell) !== null);
    return [key, [metric.name], none];
  }), chosen.metric, (key) => { chosen.metric = key; draw(); });
}

function drawMatrix() {
  const run = data.runs[chosen.run];
  const metric = METRICS[chosen.metric];
  const value = (m, t) => {
    const cell = run.cells[`${m}/${t}`];
    return cell ? metric.value(cell) : null;
  };
  // One scale for all runs, so that switching between them compares colours too.
  const all = data.runs.flatMap((r) => Object.values(r.cells).map(metric.value)).filter((v) => v !== null);
  const limit = Math.max(10, ...all.map(Math.abs));
  const tasks = data.tasks.map(([key]) => key);
  const head = make("tr", {}, make("td"), ...data.tasks.map(([, name]) => make("th", { scope: "col" }, name)),
    make("td"), make("th", { scope: "col" }, "Mean"));
  const rows = data.modalities.map(([m, name]) => make("tr", {}, make("th", { scope: "row" }, name),
    ...data.tasks.map(([t, task]) => drawCell(run, `${m}/${t}`, `${name}, ${task}`, metric, limit)),
    make("td"), meanCell(mean(tasks.map((t) => value(m, t))), metric, limit)));
  const columns = tasks.map((t) => mean(data.modalities.map(([m]) => value(m, t))));
  const whole = mean(data.modalities.flatMap(([m]) => tasks.map((t) => value(m, t))));
  const foot = make("tr", {}, make("th", { scope: "row" }, "Mean"),
    ...columns.map((v) => meanCell(v, metric, limit)), make("td"), meanCell(whole, metric, limit));
  const widths = make("colgroup", {}, make("col", { className: "names" }), ...tasks.map(() => make("col")),
    make("col", { className: "gap" }), make("col"));
  byId("matrix").replaceChildren(make("table", { className: "matrix" }, widths, make("thead", {}, head),
    make("tbody", {}, ...rows, make("tr", { className: "gap" }, make("td")), foot)));
  drawScale(run, metric, limit);
}

function drawCell(run, key, name, metric, limit) {
  const cell = run.cells[key];
  const value = cell ? metric.value(cell) : null;
  if (value === null) {
    const why = cell ? "no value" : "no test questions";
    return make("td", { className: "empty", title: why }, make("span", { "aria-label": why }, "–"));
  }
  const rgb = colour(value, metric, limit);
  const ends = metric.ends ? metric.ends(cell).map((v) => sign(v, metric.signed, 0)).join(" to ") : "";
  const star = metric.star && metric.star(cell) ? "*" : "";
  const button = make("button", { type: "button", title: figures(cell), "aria-controls": "questions",
    "aria-expanded": String(chosen.cell === key), "data-cell": key,
    "aria-label": `${name}: ${sign(value, metric.signed)}${star}, ${cell.n} questions. Show them`,
    onclick: () => open(key) },
    make("b", {}, sign(value, metric.signed) + star), make("i", {}, ends || `n ${cell.n}`));
  const td = make("td", { className: run.restricted && cell.in_domain ? "trained" : "" }, button);
  td.style.cssText = `background: rgb(${rgb}); color: ${ink(rgb)}`;
  return td;
}

function meanCell(value, metric, limit) {
  if (value === null) return make("td", { className: "empty" }, "–");
  const rgb = colour(value, metric, limit);
  const td = make("td", {}, make("span", { className: "mean" }, make("b", {}, sign(value, metric.signed))));
  td.style.cssText = `background: rgb(${rgb}); color: ${ink(rgb)}`;
  return td;
}

function drawScale(run, metric, limit) {
  const bar = make("span", { className: "scale", "aria-hidden": "true" });
  bar.style.background = `linear-gradient(90deg, ${metric.colours.map((rgb) => `rgb(${rgb})`).join(", ")})`;
  const [low, high] = metric.signed ? [sign(-limit, true, 0), sign(limit, true, 0)] : ["0", "100"];
  const said = [metric.signed ? "percent points" : "%",
    metric.ends ? "; below each figure its 95 % interval. " : ". ",
    "Means are over cells. Hatched: no test questions. ",
    metric.star ? "* differs from base at the 5 % level (exact McNemar test, Holm over the cells). " : "",
    run.restricted ? "Dashed outline: trained on. " : "", "Choose a cell to read its questions."];
  byId("matrix-note").replaceChildren(low, bar, high, " ", ...said);
}

function figures(cell) {
  const said = [`accuracy ${percent(cell.accuracy).toFixed(1)} % `
    + `[${percent(cell.ci_low).toFixed(1)}, ${percent(cell.ci_high).toFixed(1)}] of ${cell.n}`];
  if (cell.prior !== null) said.push(`prior ${percent(cell.prior).toFixed(1)} %`);
  if (cell.blank_image !== null) said.push(`blank image ${percent(cell.blank_image).toFixed(1)} %`);
  said.push(`parsed ${percent(cell.parsed).toFixed(1)} %`);
  if (cell.difference) {
    const [middle, low, high] = cell.difference.map((v) => sign(v, true));
    said.push(`vs base ${middle} [${low}, ${high}], p ${cell.p < 0.001 ? "< 0.001" : cell.p.toFixed(3)} (Holm)`);
    said.push(`${cell.counts.gained} gained, ${cell.counts.lost} lost`);
  }
  return said.join(" · ");
}

function open(key) {
  chosen.cell = key;
  chosen.filter = "all";
  draw();
  byId("questions").focus({ preventScroll: true });
  byId("questions").scrollIntoView({ block: "start" });
}

function passes(item, filter) {
  const run = data.runs[chosen.run];
  const answer = item.answers[chosen.run];
  if (filter === "all") return true;
  if (!answer) return false;
  if (filter === "wrong") return !answer.correct;
  if (filter === "unparsed") return answer.status !== "parsed";
  const base = run.base === null ? null : item.answers[run.base];
  return Boolean(base) && base.correct !== answer.correct;
}

function drawQuestions() {
  const section = byId("questions");
  section.hidden = chosen.cell === null;
  if (section.hidden) return;
  const run = data.runs[chosen.run];
  const cell = run.cells[chosen.cell];
  const { items, total } = data.questions[chosen.cell];
  const [m, t] = chosen.cell.split("/");
  byId("questions-heading").textContent = `${new Map(data.modalities).get(m)} · ${new Map(data.tasks).get(t)}`;
  byId("questions-figures").textContent = cell ? `${run.label}: ${figures(cell)}` : `${run.label}: not tested`;
  choice(byId("filter-choice"), Object.entries(FILTERS).map(([key, name]) => {
    const here = items.filter((item) => passes(item, key)).length;
    const whole = cell && cell.counts[key] !== undefined ? ` of ${cell.counts[key]}` : "";
    return [key, [`${name} (${here}${whole})`], key === "changed" && run.base === null];
  }), chosen.filter, (key) => { chosen.filter = key; drawQuestions(); });
  const shown = items.filter((item) => passes(item, chosen.filter));
  const some = items.length < total
    ? `This page holds ${items.length} of the cell's ${total} questions, taken in turn from those that runs `
      + "answer differently, that could not be parsed, that are wrong and that are right; read shares off the "
      + "matrix, not off this choice. In brackets: held here, of all in the cell."
    : `All ${total} questions of the cell.`;
  byId("questions-note").textContent = `${shown.length} shown. ${some}`;
  byId("question-list").replaceChildren(...shown.map(drawQuestion));
}

function sideBySide() {
  if (data.runs.length <= MOST_SIDE_BY_SIDE) return data.runs.map((_, i) => i);
  const base = data.runs[chosen.run].base;
  return base === null ? [chosen.run] : [base, chosen.run];
}

function drawQuestion(item) {
  const shown = sideBySide().filter((i) => item.answers[i]);
  const image = item.image === null
    ? make("div", { className: "no-image" }, "image file not found")
    : make("img", { src: data.images[item.image], alt: "the image asked about" });
  const chips = (letter) => make("span", { className: "chips" }, ...shown
    .filter((i) => item.answers[i].answer === letter)
    .map((i) => make("span", {}, swatch(data.runs[i]), data.runs[i].label)));
  const options = item.options.map((text, i) => {
    const gold = LETTERS[i] === item.gold;
    return make("li", { className: gold ? "gold" : "" }, make("span", {}, `${LETTERS[i]}) ${text}`),
      gold ? make("span", { className: "mark" }, "✓ right answer") : null, chips(LETTERS[i]));
  });
  if (!options.length) options.push(make("li", { className: "gold" }, make("span", {}, item.gold),
    make("span", { className: "mark" }, "✓ reference answer")));
  return make("section", { className: "question", "data-sample": item.id },
    make("div", { className: "asked" }, image, make("div", {}, make("h3", {}, item.question),
      make("ul", { className: "options" }, ...options),
      make("p", { className: "sample" }, `${item.id} · ${item.source}`))),
    make("div", { className: "answers" }, ...shown.map((i) => drawAnswer(data.runs[i], item.answers[i]))));
}

function drawAnswer(run, answer) {
  const unread = answer.status !== "parsed";
  const verdict = unread ? ["unread", `unparsed: ${answer.status}`]
    : answer.correct ? ["right", `✓ ${answer.answer}`] : ["wrong", `✗ ${answer.answer}`];
  return make("article", { className: `s${run.colour}` },
    make("h4", {}, make("span", {}, run.label), make("span", { className: `verdict ${verdict[0]}` }, verdict[1])),
    answer.reasoning ? make("p", {}, answer.reasoning) : make("p", { className: "none" }, "no reasoning"),
    make("details", { open: unread }, make("summary", {}, `Completion, ${answer.tokens} tokens`),
      make("pre", {}, answer.completion)));
}

function draw() {
  const cells = Object.values(data.runs[chosen.run].cells);
  if (!cells.some((cell) => METRICS[chosen.metric].value(cell) !== null)) chosen.metric = "accuracy";
  const focused = document.activeElement?.dataset?.cell;
  drawControls();
  drawMatrix();
  drawQuestions();
  if (focused) document.querySelector(`[data-cell="${focused}"]`)?.focus();
}

if (data.runs.length) draw();
else byId("matrix-section").hidden = true;
if (!document.querySelector(".curve")) byId("curves").hidden = true;
