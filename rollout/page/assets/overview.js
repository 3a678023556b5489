// What ran, the table of results, alarms and notes.

function drawOverview() {
  const body = byId("overview-body");
  body.append(factsTable());
  for (const [place, run] of DATA.runs.entries()) {
    body.append(
      ...notices("Alarms", run, run.alarms, "alarm"),
      ...notices("Warnings", run, run.warnings, "alarm"),
      ...notices("Notes", run, run.notes, "note"),
    );
    if (run.rows.length) body.append(resultsTable(run, place));
    if (run.differences.length) body.append(differencesTable(run, place));
  }
  byId("written").textContent = `Written ${DATA.written}. This file needs no network.`;
}

function titled(text, place) {
  return SEVERAL ? `${text}, ${runName(place)}` : text;
}

function factsTable() {
  const names = [...new Set(DATA.runs.flatMap((run) => Object.keys(run.facts)))];
  const rows = names.map((name) => [name, ...DATA.runs.map((run) => run.facts[name] ?? "")]);
  return table("What ran", ["", ...DATA.runs.map((run) => run.name)], rows);
}

function notices(title, run, lines, kind) {
  if (!lines.length) return [];
  return [
    element("div", { class: `notice ${kind}` }, [
      element("h3", { text: SEVERAL ? `${title}: ${run.name}` : title }),
      element("ul", {}, lines.map((text) => element("li", { text }))),
    ]),
  ];
}

/** Accuracy with its interval, in percent. */
function accuracyText(row) {
  return `${percent(row.accuracy)} [${percent(row.ci_low)}, ${percent(row.ci_high)}]`;
}

function resultsTable(run, place) {
  const final = run.rows.filter((row) => row.final);
  const phases = [...new Set(final.map((row) => row.phase))];
  if (phases.length < 2) return roundsTables(run, place);
  const operators = [...new Set(final.map((row) => row.operator))];
  const at = (operator, phase) => final.find((row) => row.operator === operator && row.phase === phase);
  const last = phases[phases.length - 1];
  const rows = operators.map((operator) => {
    const change = run.differences.find((each) => each.a === `${operator} after` && each.b === `${operator} before`);
    const cost = at(operator, last);
    return [
      operator,
      ...phases.map((phase) => (at(operator, phase) ? accuracyText(at(operator, phase)) : "-")),
      change ? intervalText(change) : "-",
      cost ? Math.round(cost.b_seq).toLocaleString("en") : "-",
      cost ? Math.round(cost.b_total).toLocaleString("en") : "-",
    ];
  });
  const headers = ["operator", ...phases.map((phase) => `${phase} %`), "change, points", "tokens in sequence", "tokens in all"];
  return table(titled("Held-out accuracy with 95% intervals, and tokens per answer", place), headers, rows);
}

/** The answers, and folded all rounds. */
function roundsTables(run, place) {
  const final = run.rows.filter((row) => row.final);
  const shown = [roundsTable(titled("Accuracy with 95% intervals, and tokens per answer", place), final)];
  if (final.length < run.rows.length) {
    const all = roundsTable(titled("All rounds", place), run.rows);
    shown.push(element("details", {}, [element("summary", { text: titled("Earlier rounds", place) }), all]));
  }
  return element("div", {}, shown);
}

function roundsTable(caption, shown) {
  const rows = shown.map((row) => [
    row.operator,
    row.final ? "answer" : `round ${row.round}`,
    accuracyText(row),
    Math.round(row.b_seq).toLocaleString("en"),
    Math.round(row.b_total).toLocaleString("en"),
    percent(row.truncated),
    percent(row.no_answer),
    `${row.problems} x ${row.samples}`,
  ]);
  const headers = [
    "operator", "round", "accuracy %", "tokens in sequence", "tokens in all", "truncated %", "no answer %", "problems x samples",
  ];
  return table(caption, headers, rows);
}

function intervalText(each) {
  const points = (share) => signed(share, percent);
  return `${points(each.difference)} [${points(each.ci_low)}, ${points(each.ci_high)}]`;
}

function differencesTable(run, place) {
  const rows = run.differences.map((each) => [`${each.a} \u2212 ${each.b}`, intervalText(each)]);
  const shown = table(titled("Paired differences, points", place), ["difference", "points with 95% interval"], rows);
  return element("details", {}, [element("summary", { text: titled(`Paired differences (${rows.length})`, place) }), shown]);
}
