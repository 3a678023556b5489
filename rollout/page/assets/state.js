// The data of the page, and what the reader has chosen.

const DATA = JSON.parse(byId("data").textContent);

/** All rollouts of all runs, each with the place of its run. */
const ROLLOUTS = DATA.runs.flatMap((run, place) => run.rollouts.map((rollout) => ({ ...rollout, run: place })));

const NO_FILTER = {
  run: "", source: "", operator: "", role: "", verdict: "", flag: "", order: "recorded", text: "",
};

const state = {
  smoothing: 0.6,
  log: false,
  extra: "",
  budget: "b_total",
  filter: { ...NO_FILTER },
  matches: [],
  listed: 0,
  rollout: null,
  call: null,
};

const SEVERAL = DATA.runs.length > 1;

function runName(place) {
  return DATA.runs[place].name;
}
