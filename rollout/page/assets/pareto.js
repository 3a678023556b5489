// Accuracy against tokens, with intervals; a point leads to its rollouts.

const BUDGETS = { b_total: "tokens of all calls", b_seq: "tokens on the longest chain" };
const RESULTS = DATA.runs.flatMap((run, place) => run.rows.map((row) => ({ ...row, run: place })));
const FINAL = RESULTS.filter((row) => row.final);
const NEAR = 28;
const MOST_NAMES = 8;
const GREY = NUM_SERIES - 1;
const NAME_HEIGHT = 14;
/** Where a name may stand, in pixels from its point, the best first; a far one gets a line to its point. */
const NAME_PLACES = [[9, -7], [-9, -7], [9, 16], [-9, 16]];
for (let far = 1; far <= 12; far += 1) {
  for (const down of [-7 - NAME_HEIGHT * far, 16 + NAME_HEIGHT * far]) NAME_PLACES.push([16, down], [-16, down]);
}

function startPareto() {
  if (!RESULTS.length) return;
  byId("pareto").hidden = false;
  const choice = select(Object.entries(BUDGETS), state.budget, (value) => {
    state.budget = value;
    drawPareto();
  });
  byId("pareto-body").append(
    element("div", { class: "controls" }, [labelled("Tokens", choice)]),
    element("p", {
      class: "quiet",
      text: "Tokens in and out per answer, log scale; bars are 95% intervals over problems. Up and left is better. Grey: the trace, and votes on traces. Rings: earlier rounds. A point, or its button below, shows its rollouts.",
    }),
    element("figure", { id: "pareto-figure" }, [element("div", { class: "chart" })]),
    element("ul", { id: "pareto-points", class: "points", "aria-label": "Points of the picture" }),
  );
  drawPareto();
}

function resultName(row) {
  const parts = [SEVERAL ? runName(row.run) : "", row.operator, row.phase, row.final ? "" : `round ${row.round}`];
  return parts.filter(Boolean).join(", ");
}

/** Operators keep their colour over phases and runs; the trace and votes on it, the reference, are grey. */
function seriesPlace(row) {
  const isReference = (name) => name === "trace" || name.startsWith("majority@");
  if (isReference(row.operator)) return GREY;
  const others = [...new Set(RESULTS.map((each) => each.operator))].filter((name) => !isReference(name));
  return others.indexOf(row.operator) % GREY;
}

function resultColor(row) {
  return seriesColor(seriesPlace(row));
}

/** Where names would cover one another, points have numbers, which the list explains. */
function pointName(row) {
  const place = FINAL.indexOf(row) + 1;
  return FINAL.length > MOST_NAMES ? String(place) : resultName(row);
}

function drawPareto() {
  const rows = [...RESULTS].sort((a, b) => a[state.budget] - b[state.budget]);
  const columns = [rows.map((row) => row[state.budget])];
  const series = [{ label: BUDGETS[state.budget] }];
  for (const [i, row] of rows.entries()) {
    columns.push(rows.map((_, j) => (i === j ? 100 * row.accuracy : null)));
    const stroke = resultColor(row);
    series.push({
      label: resultName(row), stroke, paths: () => null,
      points: { show: true, size: row.final ? 10 : 7, width: 2, stroke, fill: row.final ? stroke : color("surface") },
    });
  }
  const [lowest, highest] = [columns[0][0], columns[0][rows.length - 1]];
  const chart = drawChart(
    byId("pareto-figure").querySelector(".chart"),
    {
      height: 340,
      series,
      scales: { x: { time: false, distr: 3, range: () => [lowest / 1.6, highest * 1.6] }, y: { range: (_, low, high) => yRange(rows, low, high) } },
      axes: [
        axis({ label: BUDGETS[state.budget], splits: (_, __, low, high) => logTicks(low, high), filter: (_, ticks) => ticks, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : tick.toLocaleString("en"))) }),
        axis({ label: "solved, %", size: 50 }),
      ],
      cursor: { drag: { x: false, y: false }, points: { show: false } },
      legend: { show: false },
      hooks: { draw: [(drawn) => drawBars(drawn, rows)] },
    },
    columns,
  );
  chart.over.classList.add("clickable");
  chart.over.addEventListener("click", () => {
    const row = nearest(chart, rows);
    if (row) showResult(row);
  });
  describe(chart, `Accuracy against ${BUDGETS[state.budget]}. The list below has the points.`);
  byId("pareto-points").replaceChildren(...FINAL.map(pointButton));
}

function yRange(rows) {
  const low = Math.min(...rows.map((row) => 100 * row.ci_low));
  const high = Math.max(...rows.map((row) => 100 * row.ci_high));
  return [Math.max(-4, low - 5), Math.min(104, high + 7)];
}

function drawBars(chart, rows) {
  const context = chart.ctx;
  const scale = devicePixelRatio;
  context.save();
  context.font = `${12 * scale}px system-ui, sans-serif`;
  for (const row of rows) {
    const x = chart.valToPos(row[state.budget], "x", true);
    context.strokeStyle = resultColor(row);
    context.lineWidth = 1.5 * scale;
    context.beginPath();
    context.moveTo(x, chart.valToPos(100 * row.ci_low, "y", true));
    context.lineTo(x, chart.valToPos(100 * row.ci_high, "y", true));
    context.stroke();
  }
  for (const name of namePlaces(chart, rows, context, scale)) drawName(context, name, scale);
  context.restore();
}

/** Returns {text, x, y, dx, dy, box} of each name, in pixels of the canvas: none covers another, nor a point. */
function namePlaces(chart, rows, context, scale) {
  const points = rows.map((row) => ({
    row, x: chart.valToPos(row[state.budget], "x", true), y: chart.valToPos(100 * row.accuracy, "y", true),
  }));
  const taken = points.map(({ x, y }) => ({ left: x - 5 * scale, right: x + 5 * scale, top: y - 5 * scale, bottom: y + 5 * scale }));
  return points.filter(({ row }) => row.final).map(({ row, x, y }) => {
    const text = visible(pointName(row));
    const width = context.measureText(text).width;
    const names = NAME_PLACES.map(([dx, dy]) => {
      const left = x + dx * scale - (dx < 0 ? width : 0);
      const bottom = y + (dy + 3) * scale;
      return { text, x, y, dx, dy, box: { left, right: left + width, top: bottom - NAME_HEIGHT * scale, bottom } };
    });
    const chosen = names.find(({ box }) => isWithin(box, chart.bbox) && !taken.some((other) => overlap(box, other))) ?? names[0];
    taken.push(chosen.box);
    return chosen;
  });
}

function drawName(context, { text, x, y, dx, dy, box }, scale) {
  const side = dx < 0 ? box.right : box.left;
  if (Math.abs(dx) > 9) {
    context.strokeStyle = color("quiet");
    context.lineWidth = 0.75 * scale;
    context.beginPath();
    context.moveTo(x, y);
    context.lineTo(side - Math.sign(dx) * 2 * scale, (box.top + box.bottom) / 2);
    context.stroke();
  }
  context.fillStyle = color("text");
  context.textAlign = dx < 0 ? "right" : "left";
  context.fillText(text, side, y + dy * scale);
}

function overlap(one, other) {
  const gap = 3 * devicePixelRatio; // between two names of one line
  return one.left < other.right + gap && other.left < one.right + gap && one.top < other.bottom && other.top < one.bottom;
}

function isWithin(box, outer) {
  return box.left >= outer.left && box.right <= outer.left + outer.width && box.top >= outer.top && box.bottom <= outer.top + outer.height;
}

function nearest(chart, rows) {
  const { left, top } = chart.cursor;
  const away = (row) =>
    Math.hypot(chart.valToPos(row[state.budget], "x") - left, chart.valToPos(100 * row.accuracy, "y") - top);
  const best = rows.reduce((a, b) => (away(b) < away(a) ? b : a));
  return away(best) < NEAR ? best : null;
}

function pointButton(row) {
  const number = FINAL.length > MOST_NAMES ? `${pointName(row)}. ` : "";
  const text = `${number}${resultName(row)}: ${accuracyText(row)}%, ${Math.round(row[state.budget]).toLocaleString("en")} tokens`;
  return element("li", {}, [
    element("button", { type: "button", on: { click: () => showResult(row) } }, [
      element("span", { class: "dot", "data-series": seriesPlace(row) }),
      element("span", { text }),
    ]),
  ]);
}

function showResult(row) {
  const source = row.phase ? `evaluation ${row.phase}` : "evaluation";
  setFilter({ ...NO_FILTER, run: SEVERAL ? String(row.run) : "", source, operator: operatorOf(row) });
  byId("rollouts").scrollIntoView();
  byId("rollouts-title").focus();
}

/** A vote that matches an operator's cost, majority@12, is taken from the rollouts of the trace. */
function operatorOf(row) {
  return row.operator.startsWith("majority@") ? "trace" : row.operator;
}
