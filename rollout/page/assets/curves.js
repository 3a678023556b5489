// Metrics over steps: one panel for each family of keys.

const PANELS = [
  { title: "Reward", prefixes: ["reward/"], exact: ["reward"] },
  { title: "Accuracy", prefixes: ["accuracy/", "eval/"], exact: ["draft/accuracy"] },
  { title: "Completion length, tokens", prefixes: ["completion_tokens/"] },
  { title: "Share truncated", prefixes: ["truncated/"] },
  { title: "Entropy, nats", prefixes: ["entropy/"] },
  { title: "KL(sampler, policy) per token", prefixes: ["kl/"] },
  { title: "Mismatch of trainer and sampler, KL per token", prefixes: ["mismatch_kl/"] },
  { title: "Gradient norm", exact: ["grad_norm", "critic_grad_norm"] },
  { title: "Groups without signal", prefixes: ["groups_without_signal/"] },
  { title: "Tokens per second", exact: ["tokens_per_second"] },
  { title: "Seconds by stage", prefixes: ["time/"] },
  { title: "Share of clipped tokens", prefixes: ["clip/"] },
];

const TRAINED = DATA.runs.map((run, place) => ({ run, place })).filter(({ run }) => run.curves.steps.length);

function startCurves() {
  if (!TRAINED.length) return;
  byId("curves").hidden = false;
  drawControls();
  drawCurves();
}

function drawControls() {
  const redraw = (change) => (event) => {
    change(event.target);
    drawCurves();
  };
  const smoothing = element("input", {
    type: "range", min: 0, max: 0.95, step: 0.05, value: state.smoothing, id: "smoothing",
    on: { input: redraw((input) => (state.smoothing = Number(input.value))) },
  });
  const log = element("input", { type: "checkbox", id: "log", on: { change: redraw((input) => (state.log = input.checked)) } });
  const shown = new Set(PANELS.flatMap((panel) => keysOf(panel)));
  const others = allKeys().filter((key) => !shown.has(key));
  const other = select([["", "none"], ...others.map((key) => [key, key])], "", (key) => {
    state.extra = key;
    drawCurves();
  });
  byId("curves-controls").append(
    labelled("Smoothing", smoothing),
    labelled("Log scale", log, { class: "check" }),
    labelled("Another metric", other),
  );
  if (TRAINED.some(({ run }) => run.marks.length)) {
    byId("curves-controls").append(element("p", { class: "quiet", text: "Dashed lines: alarms (red) and the steps that a rollback returned to (blue)." }));
  }
  for (const { run } of TRAINED) {
    if (run.curves.note) byId("curves-controls").append(element("p", { class: "quiet", text: `${run.name}: ${run.curves.note}` }));
  }
}

function allKeys() {
  return [...new Set(TRAINED.flatMap(({ run }) => Object.keys(run.curves.values)))].sort();
}

function keysOf(panel) {
  const { prefixes = [], exact = [] } = panel;
  return allKeys().filter((key) => exact.includes(key) || prefixes.some((prefix) => key.startsWith(prefix)));
}

function drawCurves() {
  const body = byId("curves-body");
  const panels = PANELS.map((panel) => ({ title: panel.title, keys: keysOf(panel) }));
  if (state.extra) panels.unshift({ title: state.extra, keys: [state.extra] });
  for (const panel of panels.filter(({ keys }) => keys.length)) {
    const id = `panel-${panel.title}`;
    const figure = byId(id) ?? newFigure(id, panel.title);
    if (panel.title === state.extra) body.prepend(figure);
    else if (!figure.isConnected) body.append(figure);
    drawPanel(figure, panel);
  }
  for (const figure of [...body.children]) {
    if (!panels.some((panel) => figure.id === `panel-${panel.title}`)) figure.remove();
  }
}

function newFigure(id, title) {
  return element("figure", { id }, [
    element("figcaption", { text: title }),
    element("div", { class: "chart" }),
    element("details", {}, [element("summary", { text: "Values" }), element("div")]),
  ]);
}

/** Returns {label, steps, values} of each run and key, without those that are nowhere a number. */
function linesOf(keys) {
  return TRAINED.flatMap(({ run, place }) =>
    keys.filter((key) => run.curves.values[key]?.some((value) => value !== null)).map((key) => ({
      label: SEVERAL ? `${run.name}: ${labelOf(key)}` : labelOf(key),
      key, place, steps: run.curves.steps, values: run.curves.values[key],
    })),
  );
}

function labelOf(key) {
  return key.replace(/^(reward|accuracy|completion_tokens|truncated|entropy|kl|mismatch_kl|groups_without_signal|time|clip)\//u, "");
}

function drawPanel(figure, panel) {
  const lines = linesOf(panel.keys);
  figure.hidden = !lines.length;
  if (figure.hidden) return;
  const isLog = state.log && lines.some((line) => line.values.some((value) => value > 0));
  const steps = [...new Set(lines.flatMap((line) => line.steps))].sort((a, b) => a - b);
  const place = new Map(steps.map((step, i) => [step, i]));
  const columns = [steps];
  const series = [{ label: "step" }];
  const faint = [];
  for (const [i, line] of lines.entries()) {
    const raw = new Array(steps.length).fill(null);
    line.steps.forEach((step, at) => (raw[place.get(step)] = isLog && line.values[at] <= 0 ? null : line.values[at]));
    const look = {
      stroke: seriesColor(SEVERAL && panel.keys.length === 1 ? line.place : panel.keys.indexOf(line.key)),
      dash: SEVERAL && panel.keys.length > 1 ? DASHES[line.place % DASHES.length] : [],
      spanGaps: true,
      value: (_, value) => short(value),
    };
    if (state.smoothing > 0) {
      columns.push(raw);
      faint.push(series.length);
      series.push({ ...look, label: line.label, width: 1, alpha: 0.28, points: { show: false } });
    }
    columns.push(smoothed(raw, state.smoothing));
    series.push({ ...look, label: line.label, width: 2, points: { size: 5, show: sparse(raw) } });
    lines[i].color = look.stroke;
  }
  const chart = drawChart(
    figure.querySelector(".chart"),
    {
      series,
      scales: { x: { time: false }, y: isLog ? { distr: 3 } : { range: (_, low, high) => yLimits(low, high) } },
      axes: [axis({ size: 34 }), axis({ size: 58, values: (_, ticks) => ticks.map((tick) => (tick === null ? "" : short(tick))) })],
      cursor: { sync: { key: "steps" }, drag: { x: true, y: false } },
      legend: { live: true, markers: { dash: (drawn, i) => (drawn.series[i].dash?.length ? "dashed" : "solid") } },
      hooks: { draw: [drawMarks], setSeries: [(drawn, i, { show }) => showFaint(drawn, i, show, faint)] },
    },
    columns,
  );
  const rows = chart.root.querySelectorAll(".u-legend .u-series");
  faint.forEach((at) => (rows[at].hidden = true));
  describe(chart, `${panel.title} by step. ${lines.map(summaryText).join(" ")}`);
  figure.querySelector("details > div").replaceChildren(valuesTable(panel.title, lines));
}

/** The unsmoothed line comes and goes with the smoothed one, which stands behind it. */
function showFaint(chart, place, show, faint) {
  if (show !== undefined && show !== null && faint.includes(place - 1)) chart.setSeries(place - 1, { show }, false);
}

function yLimits(low, high) {
  if (low === null) return [0, 1];
  return low === high ? [low - Math.abs(low) / 10, high + (Math.abs(high) / 10 || 1)] : uPlot.rangeNum(low, high, 0.1, true);
}

function sparse(values) {
  return values.filter((value) => value !== null).length <= Math.max(3, values.length / 3);
}

/** Exponential moving average, corrected for its start; gaps stay gaps. */
function smoothed(values, weight) {
  if (!weight || sparse(values)) return values;
  let mean = 0;
  let mass = 0;
  return values.map((value) => {
    if (value === null) return null;
    mean = weight * mean + (1 - weight) * value;
    mass = weight * mass + (1 - weight);
    return mean / mass;
  });
}

function drawMarks(chart) {
  const context = chart.ctx;
  context.save();
  context.setLineDash([4 * devicePixelRatio, 4 * devicePixelRatio]);
  context.lineWidth = devicePixelRatio;
  for (const { run } of TRAINED) {
    for (const mark of run.marks) {
      const x = chart.valToPos(mark.step, "x", true);
      if (x < chart.bbox.left || x > chart.bbox.left + chart.bbox.width) continue;
      context.strokeStyle = color(mark.kind === "rollback" ? "series-0" : "wrong");
      context.beginPath();
      context.moveTo(x, chart.bbox.top);
      context.lineTo(x, chart.bbox.top + chart.bbox.height);
      context.stroke();
    }
  }
  context.restore();
}

function known(line) {
  return line.values.map((value, i) => [line.steps[i], value]).filter(([, value]) => value !== null);
}

function summaryText(line) {
  const points = known(line);
  const [first, last] = [points[0], points[points.length - 1]];
  return `${line.label}: ${short(first[1])} at step ${first[0]}, ${short(last[1])} at step ${last[0]}.`;
}

function valuesTable(title, lines) {
  const rows = lines.map((line) => {
    const values = known(line).map(([, value]) => value);
    const low = values.reduce((a, b) => Math.min(a, b));
    const high = values.reduce((a, b) => Math.max(a, b));
    return [line.label, short(values[0]), short(values[values.length - 1]), short(low), short(high)];
  });
  return table(title, ["", "first", "last", "lowest", "highest"], rows);
}
