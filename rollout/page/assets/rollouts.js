// The list of rollouts, the one that is shown, and the keys that move among them.

const LISTED = 60;
/** Share of the questions that must have a start in common, and its least length, for the list to leave it out. */
const MOST_QUESTIONS = 0.8;
const LEAST_SHARED = 20;

function startRollouts() {
  if (!ROLLOUTS.length) return;
  byId("rollouts").hidden = false;
  byId("rollouts-title").tabIndex = -1;
  byId("rollouts-about").append(sampleNote(), keysNote());
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  document.addEventListener("keydown", onKey);
  new ResizeObserver(redrawIfNarrower).observe(byId("shown"));
  setFilter({ ...NO_FILTER });
}

/** What of the recorded rollouts the page holds. */
function sampleNote() {
  const sources = DATA.runs.flatMap((run) => run.sources.map((source) => ({ run, ...source })));
  const [shown, all] = ["shown", "rollouts"].map((key) => sources.reduce((sum, source) => sum + source[key], 0));
  const text =
    shown === all
      ? `All ${all} rollouts that were read are here.`
      : `A sample: ${shown} of ${all} rollouts that were read. Rare ones (see Notable) are chosen first, so shares within the sample are not those of the run; the table counts all that were read.`;
  const flags = Object.keys(DATA.flags);
  const rows = sources.map((source) => [
    SEVERAL ? `${source.run.name}: ${source.source}` : source.source,
    source.rollouts, source.shown, ...flags.map((flag) => source.flags[flag] ?? 0), source.note,
  ]);
  const terms = flags.flatMap((flag) => [element("dt", { text: flag }), element("dd", { text: DATA.flags[flag] })]);
  return element("div", {}, [
    element("p", { text }),
    element("details", {}, [
      element("summary", { text: "Counts of all rollouts that were read" }),
      table("Rollouts by step or phase", ["", "read", "shown", ...flags, "note"], rows),
      element("dl", { class: "facts" }, terms),
    ]),
  ]);
}

function keysNote() {
  const keys = [
    ["j, k", "next, previous rollout"], ["/", "search"], ["Tab", "from node to node"],
    ["arrow keys on a node", "to the nearest node in that direction"], ["Enter", "shows the node's call"],
  ];
  return element("details", {}, [
    element("summary", { text: "Keys" }),
    element("dl", { class: "facts" }, keys.flatMap(([key, text]) => [element("dt", { text: key }), element("dd", { text })])),
  ]);
}

function drawList() {
  byId("matches").textContent = `${state.matches.length} of ${ROLLOUTS.length} rollouts match.`;
  state.listed = Math.min(LISTED, state.matches.length);
  const list = element("ol", { "aria-label": "Rollouts that match" });
  byId("list").replaceChildren(list);
  listMore(list, 0);
}

function listMore(list, from) {
  for (const place of state.matches.slice(from, state.listed)) list.append(element("li", {}, [listButton(place)]));
  byId("more")?.remove();
  if (state.listed === state.matches.length) return;
  const more = () => {
    const next = state.listed;
    state.listed = Math.min(next + LISTED, state.matches.length);
    listMore(list, next);
    list.children[next].firstChild.focus();
  };
  const left = state.matches.length - state.listed;
  byId("list").append(element("button", { type: "button", id: "more", text: `Show more (${left})`, on: { click: more } }));
}

function listButton(place) {
  const rollout = ROLLOUTS[place];
  const drafts = rollout.drafts ? `, drafts ${rollout.drafts_right}/${rollout.drafts}` : "";
  const all = rollout.right === rollout.answers ? "correct" : rollout.right ? "some" : "wrong";
  const mark = { correct: "\u2713", some: "\u25d0", wrong: "\u2717" }[all];
  const head = `${SEVERAL ? `${runName(rollout.run)}, ` : ""}${rollout.source}, ${rollout.operator}`;
  return element(
    "button",
    { type: "button", class: "item", "data-rollout": place, on: { click: () => showRollout(place) } },
    [
      element("span", { class: `badge ${all}`, text: `${mark} ${rollout.right}/${rollout.answers} right${drafts}` }),
      element("span", { class: "quiet", text: head }),
      element("span", { class: "question", text: questionStart(rollout.question) }),
      rollout.flags.length ? element("span", { class: "quiet", text: rollout.flags.join(", ") }) : null,
    ],
  );
}

const INSTRUCTION = sharedStart([...new Set(ROLLOUTS.map((rollout) => oneLine(rollout.question)))]);

function oneLine(text) {
  return text.trim().replace(/\s+/gu, " ");
}

/** The words that most questions begin with, such as an instruction; empty if these are few. */
function sharedStart(questions) {
  const sorted = questions.sort();
  const others = Math.ceil(MOST_QUESTIONS * sorted.length) - 1;
  let longest = "";
  for (let i = 0; others > 0 && i + others < sorted.length; i += 1) {
    const [first, last] = [sorted[i], sorted[i + others]];
    let same = 0;
    while (same < first.length && first[same] === last[same]) same += 1;
    if (same > longest.length) longest = first.slice(0, same);
  }
  const words = longest.slice(0, longest.lastIndexOf(" ") + 1);
  return words.length < LEAST_SHARED ? "" : words;
}

/** The start of a question as the list shows it: on one line, without what most questions begin with. */
function questionStart(question) {
  const line = oneLine(question);
  const isCut = INSTRUCTION && line.startsWith(INSTRUCTION) && line.length > INSTRUCTION.length;
  return isCut ? `\u2026 ${line.slice(INSTRUCTION.length)}` : line;
}

function showRollout(place) {
  state.rollout = place;
  for (const item of document.querySelectorAll(".item")) {
    if (Number(item.dataset.rollout) === place) item.setAttribute("aria-current", "true");
    else item.removeAttribute("aria-current");
  }
  const shown = byId("shown");
  if (place === null) {
    shown.replaceChildren(element("p", { text: "No rollout matches. Clear the filters to see all." }));
    return;
  }
  const rollout = ROLLOUTS[place];
  shown.replaceChildren(
    element("h3", { text: `${rollout.problem}: ${rollout.operator}, ${rollout.source}` }),
    element("div", { class: "model question" }, [typeset(rollout.question)]),
    element("p", { class: "quiet", text: `Gold answer ${rollout.gold}. ${rollout.tokens.toLocaleString("en")} tokens in and out of ${rollout.calls.length} calls. Larger nodes wrote more tokens; ${VERDICTS.correct.mark} right, ${VERDICTS.wrong.mark} wrong; r reward, a advantage.` }),
    scrollable("Graph", drawGraph(rollout, shown.clientWidth)),
    element("div", { id: "call" }),
  );
  drawnWidth = shown.clientWidth;
  const first = isFilteringCalls() ? rollout.calls.findIndex(matchesCall) : -1;
  showCall(first >= 0 ? first : (rollout.chosen[0] ?? 0), false);
}

let drawnWidth = 0;

function redrawIfNarrower() {
  const width = byId("shown").clientWidth;
  if (state.rollout !== null && width < NARROW !== drawnWidth < NARROW) showRollout(state.rollout);
}

/** Shows a call, or with `promptFirst` the workspace that it reads. */
function showCall(place, promptFirst) {
  const rollout = ROLLOUTS[state.rollout];
  state.call = place;
  byId("call").replaceChildren(...drawCall(rollout, place, promptFirst));
  byId("announced").textContent = `Shown: ${byId("call-title").textContent}`;
  const prompt = rollout.calls[place].prompt;
  for (const node of document.querySelectorAll(".node")) {
    const isShown = promptFirst ? node.id.startsWith(`node-${WORKSPACE}-${prompt}-`) : node.dataset.call === String(place);
    if (isShown) node.setAttribute("aria-current", "true");
    else node.removeAttribute("aria-current");
    if (isShown) scrollGraphTo(node);
  }
}

/** Scrolls the graph's box, and not the page, until a node is in it. */
function scrollGraphTo(node) {
  const box = node.closest(".scroll");
  const [outer, inner] = [box.getBoundingClientRect(), node.getBoundingClientRect()];
  box.scrollLeft += Math.max(0, inner.right + 8 - outer.right) + Math.min(0, inner.left - 8 - outer.left);
  box.scrollTop += Math.max(0, inner.bottom + 8 - outer.bottom) + Math.min(0, inner.top - 8 - outer.top);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  if (event.target.closest("input, select, textarea")) return;
  const moves = { j: 1, k: -1 };
  if (event.key in moves) moveInList(moves[event.key]);
  else if (event.key === "/") byId("search").focus();
  else if (event.key.startsWith("Arrow") && event.target.classList.contains("node")) moveInGraph(event.target, event.key);
  else return;
  event.preventDefault();
}

function moveInList(by) {
  const at = state.matches.indexOf(state.rollout) + by;
  if (at < 0 || at >= state.matches.length) return;
  if (at >= state.listed) byId("more").click();
  showRollout(state.matches[at]);
  document.querySelector(".item[aria-current]").scrollIntoView({ block: "nearest" });
}

/** Focuses the nearest node in the direction of an arrow key. */
function moveInGraph(from, key) {
  const [dx, dy] = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[key];
  const center = (node) => [node.offsetLeft + node.offsetWidth / 2, node.offsetTop + node.offsetHeight / 2];
  const [x, y] = center(from);
  let best = null;
  for (const node of document.querySelectorAll(".node")) {
    const [ahead, aside] = [(center(node)[0] - x) * dx + (center(node)[1] - y) * dy, Math.abs((center(node)[0] - x) * dy) + Math.abs((center(node)[1] - y) * dx)];
    const cost = ahead + 2 * aside;
    if (node !== from && ahead > 4 && (best === null || cost < best.cost)) best = { node, cost };
  }
  best?.node.focus();
}
