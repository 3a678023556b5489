// Colours, which the style sheet defines for light and dark.

const VERDICTS = {
  correct: { mark: "\u2713", text: "correct" },
  wrong: { mark: "\u2717", text: "wrong" },
  unparsable: { mark: "?", text: "unparsable" },
  timeout: { mark: "!", text: "timeout" },
  error: { mark: "!", text: "error" },
  none: { mark: "\u00b7", text: "no verdict" },
};
const NUM_SERIES = 8;
const NUM_PARTS = 8;
const DASHES = [[], [7, 4], [2, 3], [10, 3, 2, 3]];

function verdictOf(call) {
  return call.verdict ?? "none";
}

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function seriesColor(place) {
  return color(`series-${place % NUM_SERIES}`);
}

/** Class of the parts that come from a call of the rollout. */
function partClass(call) {
  return `part part-${call % NUM_PARTS}`;
}
