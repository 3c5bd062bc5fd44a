"use strict";
// Text of data sets and models only ever becomes text nodes: `make` has no way to take HTML.
const data = JSON.parse(document.getElementById("data").textContent);
for (const { items } of Object.values(data.questions)) {
  for (const item of items) item.answers = item.answers.map((i) => (i === null ? null : item.replies[i]));
}
const byId = (id) => document.getElementById(id);
const letterAt = (i) => String.fromCharCode(65 + i);
const MOST_SIDE_BY_SIDE = 6;
const [NAMES, COLUMN] = [9, [6, 12]]; // rem, of columns from and to: a matrix of few is not drawn over the whole page
const MOST_WITH_NUMBERS = 12; // columns of a matrix; with more, colours alone can be seen
const LEVEL = 0.05;
const OVER = "All";

const VIRIDIS = [[68, 1, 84], [71, 45, 123], [59, 82, 139], [44, 114, 142], [33, 145, 140],
  [40, 174, 128], [94, 201, 98], [173, 220, 48], [253, 231, 37]];
const RED_BLUE = [[178, 24, 43], [214, 96, 77], [244, 165, 130], [253, 219, 199], [247, 247, 247],
  [209, 229, 240], [146, 197, 222], [67, 147, 195], [33, 102, 172]];

const percent = (share) => 100 * share;
// Fewer clusters have no interval of an accuracy, or no test of a difference.
const tells = (clusters, of = "interval") => clusters >= data.fewest[of];
const METRICS = {
  accuracy: { ...data.metrics.accuracy, colours: VIRIDIS, value: (c) => percent(c.accuracy),
    ends: (c) => (tells(c.clusters) ? [percent(c.ci_low), percent(c.ci_high)] : null) },
  above_prior: { ...data.metrics.above_prior, colours: RED_BLUE, signed: true,
    value: (c) => ((c.above_prior ?? null) === null ? null : percent(c.above_prior)),
    ends: (c) => (tells(c.clusters) ? [percent(c.ci_low - c.prior), percent(c.ci_high - c.prior)] : null),
    clear: (c) => c.ci_low > Math.max(c.prior, c.guessing ?? 0) || c.ci_high < c.prior,
    rule: "the 95 % interval includes 0, or guessing between the options" },
  difference: { name: "Difference", colours: RED_BLUE, signed: true,
    value: (c) => changeOf(c)?.[0] ?? null, ends: (c) => spread(changeOf(c)),
    clear: (c) => changeOf(c)[3] < LEVEL, rule: "paired test, Holm over the places, 5 % level" },
  blank_image: { ...data.metrics.blank_image, colours: VIRIDIS,
    value: (c) => ((c.blank_image ?? null) === null ? null : percent(c.blank_image)) },
};
const FIRST_METRIC = Object.keys(METRICS)[0];
const chosen = { view: "run", run: data.shown, arm: 0, metric: FIRST_METRIC, against: null, cell: null, filter: "all" };
// What the matrix shows: one run on every cell, or an arm's models, each trained on a part.
const VIEWS = { run: "One run", "8x5": "Each cell's own model", "8x8": "Across modalities",
  "5x5": "Across tasks", "40x40": "Across cells" };
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
// 1,920, as on the terminal.
const count = (number) => number.toLocaleString("en-US");
// As tables and pictures: a half goes to the even digit, where toFixed rounds it up.
function rounded(value, digits = 1) {
  const [known, scale] = [Number(value.toFixed(9)), 10 ** digits];
  const half = Math.abs(known * scale) % 1 === 0.5;
  return (half ? 2 * Math.round(known * scale / 2) / scale : known).toFixed(digits);
}
const sign = (value, signed, digits = 1) =>
  ((signed && value >= 0 ? "+" : "") + rounded(value, digits)).replace("-", "−");
// Of [value, questions] pairs: over questions or over cells, as the whole report.
const mean = (pairs) => {
  const known = pairs.filter(([value]) => value !== null).map(([value, n]) => [value, data.average === "cells" ? 1 : n]);
  const weight = known.reduce((sum, [, n]) => sum + n, 0);
  return weight ? known.reduce((sum, [value, n]) => sum + value * n, 0) / weight : null;
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
  return 1.05 / light > light / 0.05 ? "#fff" : "#000"; // the higher contrast, 4.5 at least on any colour
}

function choice(parent, entries, current, select) {
  const focused = parent.contains(document.activeElement) ? document.activeElement.value : null;
  parent.replaceChildren(...entries.map(([key, label, disabled]) => make("button",
    { type: "button", value: key, disabled: Boolean(disabled), "aria-pressed": String(key === String(current)),
      onclick: () => select(key) }, ...label)));
  if (focused !== null) [...parent.children].find((button) => button.value === focused)?.focus();
}

// Cells whose modality or task is not said belong to a run, not to the tables of the paper.
const known = (names) => names.filter(([key]) => key !== "unknown");
const tableOf = (view, arm) => data.arms[arm]?.tables[view];
const armOf = (run) => data.arms.findIndex((arm) => arm.runs.some(([i]) => i === run));
const partOf = (run) => data.arms[armOf(run)].runs.find(([i]) => i === run)[1];

// The arms that the shown one can be taken from, and the chosen one of them.
function others() {
  if (chosen.view === "run") return ["base"];
  const arms = new Set(Object.values(tableOf(chosen.view, chosen.arm)).flatMap((c) => Object.keys(c.against)));
  return [...arms].sort((a, b) => a - b);
}
const against = () => (others().includes(chosen.against) ? chosen.against : others()[0]);
const spread = ([, low, high, , , clusters]) => (tells(clusters, "difference") ? [low, high] : null);
const between = (ends, signed) => (ends ? ends.map((v) => sign(v, signed, 0)).join(" to ") : "–");
const changeOf = (cell) => cell.against?.[against()];

function drawControls() {
  const views = Object.entries(VIEWS).filter(([key]) => key === "run" || data.arms.some((_, i) => tableOf(key, i)));
  byId("view-choice").hidden = views.length < 2;
  choice(byId("view-choice"), views.map(([key, name]) => [key, [name]]), chosen.view, (key) => {
    chosen.view = key;
    draw();
  });
  const one = chosen.view === "run";
  byId("run-choice").hidden = !one || data.grouped;
  byId("arm-choice").hidden = one && !data.grouped;
  byId("part-choice").hidden = !one || !data.grouped;
  if (one && data.grouped) chooseRun();
  else if (one) {
    choice(byId("run-choice"), data.runs.map((r, i) => [String(i), [swatch(r), r.label]]), chosen.run,
      (key) => { chosen.run = Number(key); draw(); });
  } else {
    const crossed = data.arms.map((arm, i) => [String(i), [arm.label], !tableOf(chosen.view, i)])
      .filter(([i]) => Object.keys(data.arms[i].tables).length);
    choice(byId("arm-choice"), crossed, chosen.arm, (key) => { chosen.arm = Number(key); draw(); });
  }
  const shown = Object.values(one ? data.runs[chosen.run].cells : tableOf(chosen.view, chosen.arm));
  choice(byId("metric-choice"), Object.entries(METRICS).map(([key, metric]) =>
    [key, [metric.name], !shown.some((cell) => metric.value(cell) !== null)]),
  chosen.metric, (key) => { chosen.metric = key; draw(); });
  byId("against-choice").hidden = chosen.metric !== "difference";
  choice(byId("against-choice"), others().map((key) => [key, [`minus ${data.arms[key]?.label ?? key}`]]), against(),
    (key) => { chosen.against = key; draw(); });
}

// Of many runs one is found by its method, then by what it was trained on.
function chooseRun() {
  const arm = armOf(chosen.run);
  const part = partOf(chosen.run);
  choice(byId("arm-choice"), data.arms.map((a, i) => [String(i), [a.label]]), arm, (key) => {
    const runs = data.arms[key].runs;
    [chosen.run] = runs.find(([, other]) => other === part) ?? runs[0];
    draw();
  });
  const parent = byId("part-choice");
  const focused = parent.contains(document.activeElement);
  const list = make("select", { onchange: (event) => { chosen.run = Number(event.target.value); draw(); } },
    ...data.arms[arm].runs.map(([i, name]) => make("option", { value: String(i) }, name)));
  list.value = String(chosen.run);
  parent.replaceChildren(make("label", {}, "trained on ", list));
  if (focused) list.focus();
}

// The rows and columns in which any run or method has a cell: those alone are shown, the same ones for all of them.
function withCells(rows, columns, has) {
  return { rows: rows.filter(([row]) => columns.some(([column]) => has(row, column))),
    columns: columns.filter(([column]) => rows.some(([row]) => has(row, column))),
    left: [rows, columns].map((names, i) => names.filter(([a]) =>
      !(i ? rows : columns).some(([b]) => (i ? has(b, a) : has(a, b)))).map(([, name]) => name)) };
}

// Rows and columns of the view, each a key with a name, and the cell where they meet.
function grid() {
  if (chosen.view === "run") {
    const run = data.runs[chosen.run];
    const used = withCells(data.modalities, data.tasks, (m, t) => data.runs.some((r) => r.cells[`${m}/${t}`]));
    return { ...used, means: true, changes: (key) => run.means[key],
      cells: data.runs.flatMap((r) => Object.values(r.cells)), visible: Object.values(run.cells),
      at: (m, t) => ({ cell: run.cells[`${m}/${t}`], run: chosen.run, test: `${m}/${t}`,
        marked: run.restricted && run.cells[`${m}/${t}`]?.in_domain }) };
  }
  const own = chosen.view === "8x5";
  const [modalities, tasks] = [known(data.modalities), known(data.tasks)];
  const every = modalities.flatMap(([m, name]) => tasks.map(([t, task]) => [`${m}/${t}`, `${name}, ${task}`]));
  const axis = { "8x8": modalities, "5x5": tasks, "40x40": every }[chosen.view];
  const table = tableOf(chosen.view, chosen.arm);
  const placeOf = (row, column) => (own ? `${row}/${column}|${row}/${column}` : `${row}|${column}`);
  const at = (row, column) => {
    const place = placeOf(row, column);
    const test = own ? `${row}/${column}` : column;
    return { cell: table[place], run: table[place]?.run, test: test.includes("/") ? test : null,
      marked: !own && row === column };
  };
  const used = withCells(own ? modalities : axis, own ? tasks : axis,
    (row, column) => data.arms.some((_, i) => tableOf(chosen.view, i)?.[placeOf(row, column)]));
  return { ...used, means: own, at,
    changes: (key) => data.arms[chosen.arm].means[key]?.[against()],
    dense: used.columns.length > MOST_WITH_NUMBERS, crossed: !own, visible: Object.values(table),
    cells: data.arms.flatMap((_, i) => Object.values(tableOf(chosen.view, i) ?? {})) };
}

function drawMatrix() {
  const metric = METRICS[chosen.metric];
  const shown = grid();
  const value = (row, column) => {
    const { cell } = shown.at(row, column);
    if (!cell) return [null, 0];
    return [metric.value(cell), chosen.metric === "difference" ? changeOf(cell)?.[4] : cell.n];
  };
  // One scale for all runs and methods, so that switching between them compares colours too.
  const limit = Math.max(10, ...shown.cells.map(metric.value).filter((v) => v !== null).map(Math.abs));
  const beside = (...cells) => (shown.means ? [make("td"), ...cells] : []);
  const averaged = (values, key) => meanCell(mean(values), chosen.metric === "difference" && shown.changes(key), metric, limit);
  const head = make("tr", {}, make("td", { className: "corner" }, shown.crossed ? "trained on ↓ tested on →" : ""),
    ...shown.columns.map(([, name]) => make("th", { scope: "col" }, make("span", {}, name))),
    ...beside(make("th", { scope: "col" }, OVER)));
  // In a table of cells a line stands between modalities.
  const begins = (names, i) => shown.dense && i > 0 && names[i][0].split("/")[0] !== names[i - 1][0].split("/")[0];
  const rows = shown.rows.map(([row, name], i) => make("tr", { className: begins(shown.rows, i) ? "begins" : "" }, make("th", { scope: "row" }, name),
    ...shown.columns.map(([column, other]) => drawCell(shown, row, column, `${name}, ${other}`, metric, limit)),
    ...beside(averaged(shown.columns.map(([column]) => value(row, column)), `${row}/all`))));
  if (shown.means) {
    const columns = shown.columns.map(([column]) => [shown.rows.map(([row]) => value(row, column)), `all/${column}`]);
    rows.push(make("tr", { className: "gap" }, make("td")), make("tr", {}, make("th", { scope: "row" }, OVER),
      ...columns.map(([values, key]) => averaged(values, key)),
      ...beside(averaged(columns.flatMap(([values]) => values), "all/all"))));
  }
  const group = make("colgroup", {}, make("col", { className: "names" }), ...shown.columns.map(() => make("col")),
    ...(shown.means ? [make("col", { className: "gap" }), make("col")] : []));
  for (const line of [head, ...rows]) {
    shown.columns.forEach((_, i) => line.children[i + 1]?.classList.toggle("begins", begins(shown.columns, i)));
  }
  byId("matrix").replaceChildren(make("table", { className: shown.dense ? "matrix dense" : "matrix" }, group,
    make("thead", {}, head), make("tbody", {}, ...rows)));
  const widths = COLUMN.map((width) => `${NAMES + width * (shown.columns.length + 1)}rem`);
  if (!shown.dense) byId("matrix").firstChild.style.cssText = `min-width: min(640px, ${widths[0]}); max-width: ${widths[1]}`;
  drawScale(shown, metric, limit);
}

function drawCell(shown, row, column, name, metric, limit) {
  const { cell, run, test, marked } = shown.at(row, column);
  const value = cell ? metric.value(cell) : null;
  if (value === null) {
    const why = cell ? "no value" : shown.crossed ? "not trained or not tested" : "no test questions";
    return make("td", { className: "empty", title: why }, make("span", { "aria-label": why }, shown.dense ? "" : "–"));
  }
  const rgb = colour(value, metric, limit);
  const ends = metric.ends ? between(metric.ends(cell), metric.signed) : "";
  const clear = !metric.clear || metric.clear(cell);
  const star = metric.clear && clear ? "*" : "";
  const description = `${name}: ${sign(value, metric.signed)}${star}, ${count(cell.n)} ${cell.n === 1 ? "question" : "questions"}`;
  const text = shown.dense ? [star && "•"] : [make("b", {}, sign(value, metric.signed) + star), make("i", {}, ends || `n ${count(cell.n)}`)];
  // A place where several cells meet has no questions of its own to open.
  const inside = test === null ? make("span", { className: "mean", title: numbers(cell), "aria-label": description }, ...text)
    : make("button", { type: "button", title: shown.dense ? `${description}; ${numbers(cell)}` : numbers(cell),
      "aria-controls": "questions", "aria-expanded": String(chosen.cell === test && chosen.run === run), "data-cell": test,
      "aria-label": `${description}. Show them`, onclick: () => open(test, run) }, ...text);
  const td = make("td", { className: marked ? "trained" : "" }, inside);
  paint(td, rgb, !clear && !shown.dense);
  return td;
}

// Pale is what may be chance: mostly the page's own colour, in its dark scheme too.
function paint(td, rgb, pale) {
  td.style.cssText = pale ? `background: color-mix(in srgb, rgb(${rgb}) 30%, var(--card)); color: var(--ink)`
    : `background: rgb(${rgb}); color: ${ink(rgb)}`;
}

function meanCell(value, change, metric, limit) {
  if (value === null) return make("td", { className: "empty" }, "–");
  const clear = change && change[3] < LEVEL;
  const ends = change ? between(spread(change), true) : "";
  const td = make("td", {}, make("span", { className: "mean" },
    make("b", {}, sign(value, metric.signed) + (clear ? "*" : "")), ends ? make("i", {}, ends) : null));
  paint(td, colour(value, metric, limit), change && !clear);
  return td;
}

// What hatching means, where a cell is hatched.
function hatched(shown, metric) {
  const empty = ([row], [column]) => {
    const { cell } = shown.at(row, column);
    return !cell || metric.value(cell) === null;
  };
  if (!shown.rows.some((row) => shown.columns.some((column) => empty(row, column)))) return "";
  return `Hatched: ${shown.crossed ? "not trained or not tested" : "no test questions"}. `;
}

// Which rows and columns are not shown, where there are any.
function leftOut(shown) {
  const names = shown.left.map((list, i) => list.length > 4 ? `${list.length} ${i ? "columns" : "rows"}` : list.join(", "));
  const why = shown.crossed ? [" (not trained on)", " (not tested)"] : ["", ""];
  const listed = names.map((text, i) => text && text + why[i]).filter(Boolean).join("; ");
  return listed && `Left out${shown.crossed ? "" : ", without test questions"}: ${listed}. `;
}

// Why a place has a dash for its interval, where one has.
const few = (shown, metric) => (shown.visible.some((c) => metric.value(c) !== null && !metric.ends(c))
  ? `, a dash of too few clusters (${data.fewest[metric === METRICS.difference ? "difference" : "interval"]} are the least)` : "");

function drawScale(shown, metric, limit) {
  const bar = make("span", { className: "scale", "aria-hidden": "true" });
  bar.style.background = `linear-gradient(90deg, ${metric.colours.map((rgb) => `rgb(${rgb})`).join(", ")})`;
  const [low, high] = metric.signed ? [sign(-limit, true, 0), sign(limit, true, 0)] : ["0", "100"];
  const notes = [metric.signed ? "percent points" : "%",
    metric.ends ? `; below each number its 95 % interval${few(shown, metric)}. ` : ". ",
    shown.means ? `All: the mean over ${data.average}. ` : "", hatched(shown, metric), leftOut(shown),
    !metric.clear ? "" : `${shown.dense ? "Dot" : "*"}: more than chance; ${shown.dense ? "without" : "pale"}: may be chance `
      + `(${metric.rule}${shown.visible.some((c) => metric.value(c) !== null && metric.clear(c)) ? "" : "; here every place"}). `,
    shown.crossed ? "Dashed outline: trained and tested on the same. "
      : chosen.view === "run" && data.runs[chosen.run].restricted ? "Dashed outline: trained on. " : "",
    "8x8 5x5".includes(chosen.view) ? "Each number is over all questions of the column." : "Choose a cell to read its questions."];
  byId("matrix-note").replaceChildren(low, bar, high, " ", ...notes);
}

// What a paired test shows with 80 % power, before Holm's adjustment.
const able = ([smallest, needed]) => (smallest === null ? "this test can show no difference with so few clusters"
  : `this test can show ${smallest.toFixed(1)} points or more; for ${data.wanted} points it needs ${count(needed)} questions`);

function numbers(cell) {
  const interval = tells(cell.clusters) ? `${rounded(percent(cell.ci_low))}, ${rounded(percent(cell.ci_high))}` : "–";
  const parts = [`accuracy ${rounded(percent(cell.accuracy))} % [${interval}] of ${count(cell.n)} in ${count(cell.clusters)} clusters`];
  if (cell.models > 1) parts.push(`mean of ${cell.models} models`);
  for (const [key, { label }] of Object.entries(data.metrics).filter(([, metric]) => metric.beside)) {
    if ((cell[key] ?? null) !== null) parts.push(`${label} ${rounded(percent(cell[key]))} %`);
  }
  for (const [key, [middle, low, high, p, n, clusters, ...power]] of Object.entries(cell.against ?? {})) {
    const other = data.arms[key]?.label ?? key;
    const paired = n === cell.n ? "" : ` of ${count(n)} in ${count(clusters)} clusters`;
    const test = tells(clusters, "difference");
    parts.push(`vs ${other} ${sign(middle, true)} [${test ? `${sign(low, true)}, ${sign(high, true)}` : "–"}]${paired}, `
      + `${test ? `p ${p < 0.001 ? "< 0.001" : p.toFixed(3)} (Holm), ` : ""}${able(power)}`);
  }
  if (cell.power) parts.push(`a paired test ${able(cell.power)} (assumed)`);
  if (cell.counts?.gained !== undefined) parts.push(`${count(cell.counts.gained)} gained, ${count(cell.counts.lost)} lost`);
  return parts.join(" · ");
}

function open(key, run) {
  chosen.cell = key;
  chosen.run = run;
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
  byId("questions-numbers").textContent = cell ? `${run.label}: ${numbers(cell)}` : `${run.label}: not tested`;
  choice(byId("filter-choice"), Object.entries(FILTERS).map(([key, name]) => {
    const held = items.filter((item) => passes(item, key)).length;
    const whole = cell && cell.counts[key] !== undefined ? ` of ${count(cell.counts[key])}` : "";
    return [key, [`${name} (${held}${whole})`], key === "changed" && run.base === null];
  }), chosen.filter, (key) => { chosen.filter = key; drawQuestions(); });
  const shown = items.filter((item) => passes(item, chosen.filter));
  const extent = items.length < total
    ? `This page holds ${items.length} of the cell's ${count(total)} questions, taken in turn from those that runs `
      + "answer differently, that could not be parsed, that are wrong and that are right; read shares off the "
      + "matrix, not off this choice. In brackets: held on this page, of all in the cell."
    : `All ${count(total)} questions of the cell.`;
  byId("questions-note").textContent = `${shown.length} shown. ${extent}`;
  byId("question-list").replaceChildren(...shown.map(drawQuestion));
}

function sideBySide() {
  if (data.runs.length <= MOST_SIDE_BY_SIDE) return data.runs.map((_, i) => i);
  // The start model, and of each method the run that was trained on the same.
  const part = partOf(chosen.run);
  const same = data.arms.map((arm) => arm.runs.find(([, other]) => other === part)?.[0]);
  const runs = new Set([data.runs[chosen.run].base, ...same, chosen.run]);
  return [...runs].filter((i) => i !== null && i !== undefined).sort((a, b) => a - b);
}

function drawQuestion(item) {
  const shown = sideBySide().filter((i) => item.answers[i]);
  const image = item.image === null
    ? make("div", { className: "no-image" }, "image file not found")
    : make("img", { src: data.images[item.image], alt: "the image of the question" });
  const chips = (letter) => make("span", { className: "chips" }, ...shown
    .filter((i) => item.answers[i].answer === letter)
    .map((i) => make("span", {}, swatch(data.runs[i]), data.runs[i].label)));
  const options = item.options.map((text, i) => {
    const gold = letterAt(i) === item.gold;
    return make("li", { className: gold ? "gold" : "" }, make("span", {}, `${letterAt(i)}) ${text}`),
      gold ? make("span", { className: "mark" }, "✓ right answer") : null, chips(letterAt(i)));
  });
  if (!options.length) options.push(make("li", { className: "gold" }, make("span", {}, item.gold),
    make("span", { className: "mark" }, "✓ reference answer")));
  return make("section", { className: "question", "data-sample": item.id },
    make("div", { className: "stem" }, image, make("div", {}, make("h3", {}, item.question),
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
  if (chosen.view !== "run" && !tableOf(chosen.view, chosen.arm)) {
    chosen.arm = data.arms.findIndex((_, i) => tableOf(chosen.view, i));
  }
  const cells = Object.values(chosen.view === "run" ? data.runs[chosen.run].cells : tableOf(chosen.view, chosen.arm));
  if (!cells.some((cell) => METRICS[chosen.metric].value(cell) !== null)) chosen.metric = FIRST_METRIC;
  const focused = document.activeElement?.dataset?.cell;
  drawControls();
  drawMatrix();
  drawQuestions();
  if (focused) document.querySelector(`[data-cell="${focused}"]`)?.focus();
}

if (data.grouped) {
  chosen.view = Object.keys(VIEWS).find((view) => data.arms.some((_, i) => tableOf(view, i))) ?? "run";
}
if (data.runs.length) draw();
else byId("matrix-section").hidden = true;
if (!document.querySelector(".curve")) byId("curves").hidden = true;
