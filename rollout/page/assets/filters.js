// Which rollouts are listed, and in which order.

const ORDERS = { recorded: "as recorded", longest: "longest first", shortest: "shortest first" };

function distinct(values) {
  return [...new Set(values)].sort((a, b) => String(a).localeCompare(String(b), "en", { numeric: true }));
}

function drawFilters() {
  const form = byId("filters");
  const any = (values) => [["", "all"], ...values.map((value) => [value, value])];
  const calls = ROLLOUTS.flatMap((rollout) => rollout.calls);
  const choose = (name) => (value) => setFilter({ ...state.filter, [name]: value }, true);
  const filter = state.filter;
  const runs = DATA.runs.map((run, place) => [String(place), run.name]);
  const search = element("input", {
    type: "search", id: "search", value: filter.text, placeholder: "question, answer, text, id",
    on: { input: () => setFilter({ ...state.filter, text: search.value }, true) },
  });
  form.replaceChildren(
    ...(SEVERAL ? [labelled("Run", select([["", "all"], ...runs], filter.run, choose("run")))] : []),
    labelled("Step or phase", select(any(distinct(ROLLOUTS.map((rollout) => rollout.source))), filter.source, choose("source"))),
    labelled("Operator", select(any(distinct(ROLLOUTS.map((rollout) => rollout.operator))), filter.operator, choose("operator"))),
    labelled("Role", select(any(distinct(calls.map((call) => call.role))), filter.role, choose("role"))),
    labelled("Verdict", select(any(distinct(calls.map(verdictOf))), filter.verdict, choose("verdict"))),
    labelled("Notable", select(any(Object.keys(DATA.flags)), filter.flag, choose("flag"))),
    labelled("Order", select(Object.entries(ORDERS), filter.order, choose("order"))),
    labelled("Search", search, { class: "grow" }),
    element("button", { type: "button", id: "clear", text: "Clear", on: { click: clearFilter } }),
  );
}

function clearFilter() {
  setFilter({ ...NO_FILTER });
  byId("clear").focus();
}

/** Sets the filter, lists what matches and shows the first of it; `byControl`: the controls show it already. */
function setFilter(filter, byControl = false) {
  state.filter = filter;
  if (!byControl) drawFilters();
  applyFilter();
}

function applyFilter() {
  const { order } = state.filter;
  state.matches = ROLLOUTS.map((_, i) => i).filter((i) => matchesRollout(ROLLOUTS[i]));
  const sign = { longest: -1, shortest: 1 }[order];
  if (sign) state.matches.sort((a, b) => sign * (ROLLOUTS[a].tokens - ROLLOUTS[b].tokens));
  drawList();
  showRollout(state.matches.includes(state.rollout) ? state.rollout : (state.matches[0] ?? null));
}

function matchesRollout(rollout) {
  const { run, source, operator, flag, text } = state.filter;
  if (run && rollout.run !== Number(run)) return false;
  if (source && rollout.source !== source) return false;
  if (operator && rollout.operator !== operator) return false;
  if (flag && !rollout.flags.includes(flag)) return false;
  if (isFilteringCalls() && !rollout.calls.some(matchesCall)) return false;
  return !text || haystack(rollout).includes(text.toLowerCase());
}

function isFilteringCalls() {
  return Boolean(state.filter.role || state.filter.verdict);
}

function matchesCall(call) {
  const { role, verdict } = state.filter;
  return (!role || call.role === role) && (!verdict || verdictOf(call) === verdict);
}

const haystacks = new WeakMap();

function haystack(rollout) {
  if (!haystacks.has(rollout)) {
    const texts = [rollout.problem, rollout.question, rollout.gold];
    for (const call of rollout.calls) texts.push(call.thinking, call.solution, call.answer ?? "");
    for (const prompt of rollout.prompts) texts.push(...prompt.segments.map((segment) => segment.text));
    haystacks.set(rollout, texts.join("\n").toLowerCase());
  }
  return haystacks.get(rollout);
}
