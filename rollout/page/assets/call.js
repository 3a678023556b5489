// One call: its facts, prompt, thinking and solution.

const LABELS = {
  ok: "", unclosed: "the thinking was never closed", malformed: "the text after the thinking holds a mark of thinking",
  truncated: "cut at the token limit", empty: "nothing follows the thinking", no_answer: "the solution has no boxed answer",
};

function drawCall(rollout, place, promptFirst) {
  const call = rollout.calls[place];
  const prompt = rollout.prompts[call.prompt];
  const parts = [
    element("h4", { id: "call-title", tabindex: -1, text: promptFirst ? `Workspace that call #${place} reads` : `Call #${place}: ${call.role}, round ${call.round}` }),
  ];
  if (promptFirst) {
    const drafts = prompt.segments.filter((segment) => segment.call !== null);
    parts.push(element("p", { text: call.is_fallback ? "No draft was usable, so the plain problem was sampled again." : `${drafts.length} recognised parts from other calls.` }));
    return [...parts, promptBox(rollout, prompt, true)];
  }
  parts.push(callFacts(rollout, call), promptBox(rollout, prompt, false));
  if (call.thinking) parts.push(textBox("Thinking", call.thinking, call.thinking_left_out, false));
  parts.push(solutionBox(call));
  return parts;
}

function callFacts(rollout, call) {
  const verdict = VERDICTS[verdictOf(call)];
  const facts = [
    ["verdict", `${verdict.mark} ${verdict.text}${call.reason ? ` (${call.reason})` : ""}`],
    ["answer", call.verdict === null ? null : (call.answer ?? "none")],
    ["gold answer", rollout.gold],
    ["found by", call.found_by || null],
    ["tokens", `${call.prompt_tokens} in, ${call.completion_tokens} out, ended by ${call.finish}`],
    ["defect", LABELS[call.label] ?? call.label],
    ["reads", call.parents.length ? call.parents.map((parent) => `#${parent}`).join(", ") : null],
    ["policy version", call.versions.length ? [...new Set(call.versions)].join(", ") : null],
    ...creditFacts(call.credit),
  ];
  const known = facts.filter(([, value]) => value);
  return element("dl", { class: "facts" }, known.flatMap(([name, value]) => [element("dt", { text: name }), element("dd", { text: value })]));
}

function creditFacts(credit) {
  if (!credit) return [];
  const parts = Object.entries(credit.parts).map(([name, value]) => `${name} ${short(value)}`);
  return [
    ["reward", `${short(credit.reward)}${parts.length ? ` (${parts.join(", ")})` : ""}`],
    ["advantage", credit.advantage === null ? `none: ${credit.dropped ?? "no token to train"}` : `${signed(credit.advantage)} in a group of ${credit.group_size}`],
    ["part of the loss", credit.loss === null ? null : `${signed(credit.loss)} over ${credit.trained_tokens} tokens`],
  ];
}

function promptBox(rollout, prompt, open) {
  if (!prompt.segments.length) return element("p", { class: "quiet", text: "The text of the prompt was not recorded." });
  const calls = [...new Set(prompt.segments.map((segment) => segment.call).filter((call) => call !== null))];
  const body = element(
    "div",
    { class: "model" },
    prompt.segments.map((segment) =>
      segment.call === null ? document.createTextNode(visible(segment.text)) : partMark(segment),
    ),
  );
  const legend = calls.map((call) => element("li", {}, [partButton(rollout, call)]));
  const isCut = prompt.left_out > 0;
  return element("details", { open: open || calls.length > 0 }, [
    element("summary", { text: calls.length ? `Prompt, with parts of ${calls.length} other calls` : "Prompt" }),
    isCut ? element("p", { class: "quiet", text: `${prompt.left_out} characters at the start are left out.` }) : null,
    legend.length ? element("ul", { class: "legend", "aria-label": "Calls whose text is in the prompt" }, legend) : null,
    body,
  ]);
}

function partMark(segment) {
  return element("mark", { class: partClass(segment.call), title: `from call #${segment.call}` }, [
    element("span", { class: "from", text: `#${segment.call}` }),
    document.createTextNode(visible(segment.text)),
  ]);
}

function partButton(rollout, place) {
  const call = rollout.calls[place];
  const text = `${VERDICTS[verdictOf(call)].mark} #${place} ${call.role}${call.answer ? `: ${call.answer.slice(0, 40)}` : ""}`;
  return element("button", { type: "button", class: partClass(place), text, on: { click: () => showCall(place, false) } });
}

function textBox(title, text, leftOut, open) {
  return element("details", { open }, [
    element("summary", { text: `${title} (${text.length + leftOut} characters)` }),
    leftOut ? element("p", { class: "quiet", text: `${leftOut} characters at the start are left out.` }) : null,
    element("div", { class: "model", text }),
  ]);
}

function solutionBox(call) {
  const body = element("div", { class: "model solution" });
  const fill = (typesetting) => (typesetting ? body.replaceChildren(typeset(call.solution)) : body.replaceChildren(visible(call.solution)));
  const toggle = element("input", { type: "checkbox", on: { change: () => fill(toggle.checked) } });
  toggle.checked = true;
  fill(true);
  return element("section", { "aria-label": "Solution" }, [
    element("div", { class: "controls" }, [element("h5", { text: "Solution" }), labelled("Typeset mathematics", toggle, { class: "check" })]),
    call.solution_left_out ? element("p", { class: "quiet", text: `${call.solution_left_out} characters at the start are left out.` }) : null,
    call.solution ? body : element("p", { class: "quiet", text: "There is no solution after the thinking." }),
  ]);
}
