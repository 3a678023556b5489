// Charts by uPlot: what all of ours have in common.

const CHART_HEIGHT = 210;
const charts = new Map();

/** Draws a uPlot chart into `holder` (again, if it has one) and keeps it as wide as its holder. */
function drawChart(holder, options, columns) {
  charts.get(holder)?.chart.destroy();
  charts.get(holder)?.watcher.disconnect();
  const width = () => Math.max(200, Math.floor(holder.clientWidth));
  const chart = new uPlot({ width: width(), height: CHART_HEIGHT, ...options }, columns, holder);
  const watcher = new ResizeObserver(() => {
    if (width() !== chart.width) chart.setSize({ width: width(), height: chart.height });
  });
  watcher.observe(holder);
  charts.set(holder, { chart, watcher });
  return chart;
}

/** An axis in the page's colours. */
function axis(options = {}) {
  return {
    stroke: color("quiet"),
    grid: { stroke: color("grid"), width: 1 },
    ticks: { stroke: color("grid"), width: 1 },
    font: "12px system-ui, sans-serif",
    labelFont: "12px system-ui, sans-serif",
    ...options,
  };
}

/** Positions 1, 2, 5, 10, ... between two values, for an axis in log scale. */
function logTicks(low, high) {
  const ticks = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) {
    for (const digit of [1, 2, 5]) ticks.push(digit * 10 ** power);
  }
  return ticks.filter((tick) => tick >= low && tick <= high);
}

/** The picture's description for a screen reader, on the part of a chart that is the picture. */
function describe(chart, text) {
  const picture = chart.root.querySelector(".u-wrap");
  picture.setAttribute("role", "img");
  picture.setAttribute("aria-label", visible(text));
}
