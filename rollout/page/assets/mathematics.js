// Splits a text into prose and mathematics, and has KaTeX typeset the latter.

const LONGEST_FORMULA = 2000;
const MOST_FORMULAS = 300;
const KATEX = { throwOnError: true, trust: false, strict: "ignore", maxSize: 20, maxExpand: 200, output: "htmlAndMathml" };
const DELIMITERS = [
  { open: "$$", close: "$$", display: true },
  { open: "\\[", close: "\\]", display: true },
  { open: "\\(", close: "\\)", display: false },
  { open: "$", close: "$", display: false },
  { open: "\\boxed{", close: "}", display: false, whole: true },
];

/** Returns the text as a fragment in which mathematics is typeset; whatever is none stays as it is. */
function typeset(text) {
  const fragment = document.createDocumentFragment();
  let formulas = 0;
  for (const part of mathParts(text)) {
    if (part.tex === undefined || formulas >= MOST_FORMULAS || part.tex.length > LONGEST_FORMULA) {
      fragment.append(visible(part.text));
    } else {
      formulas += 1;
      fragment.append(formula(part));
    }
  }
  return fragment;
}

function formula(part) {
  const holder = element("span", { class: part.display ? "formula display" : "formula" });
  try {
    katex.render(visible(part.tex), holder, { ...KATEX, displayMode: part.display });
  } catch {
    // Not TeX, or nested too deeply: the source is shown.
    holder.className = "formula broken";
    holder.title = "KaTeX cannot typeset this.";
    holder.textContent = visible(part.text);
  }
  return holder;
}

/** Returns parts {text} and {text, tex, display}, whose texts add up to the whole. */
function mathParts(text) {
  const parts = [];
  let prose = 0;
  let at = 0;
  while (at < text.length) {
    const found = text[at] === "$" || text[at] === "\\" ? formulaAt(text, at) : null;
    if (found === null) {
      // An escaped dollar or backslash opens nothing.
      at += text[at] === "\\" ? 2 : 1;
      continue;
    }
    if (at > prose) parts.push({ text: text.slice(prose, at) });
    parts.push(found);
    at += found.text.length;
    prose = at;
  }
  if (prose < text.length) parts.push({ text: text.slice(prose) });
  return parts;
}

function formulaAt(text, at) {
  for (const { open, close, display, whole } of DELIMITERS) {
    if (!text.startsWith(open, at)) continue;
    const inside = at + open.length;
    const end = closing(text, inside, close);
    if (end < 0) continue;
    if (open === "$" && !isInline(text, inside, end)) continue;
    const all = text.slice(at, end + close.length);
    const tex = whole ? all : text.slice(inside, end);
    if (tex.trim()) return { text: all, tex, display };
  }
  return null;
}

/** Returns where a formula closes, outside of braces; -1 if it does not within the longest formula. */
function closing(text, from, close) {
  const last = Math.min(text.length, from + LONGEST_FORMULA);
  let depth = 0;
  for (let at = from; at < last; at += 1) {
    if (depth === 0 && text.startsWith(close, at)) return at;
    if (text[at] === "\\") at += 1;
    else if (text[at] === "{") depth += 1;
    else if (text[at] === "}") depth -= 1;
    if (depth < 0) return -1;
  }
  return -1;
}

/** Whether $...$ is mathematics and not two amounts of money: no space inside, no digit behind, one line. */
function isInline(text, inside, end) {
  const tex = text.slice(inside, end);
  return tex !== "" && !/^\s|\s$|\n/u.test(tex) && !/\d/u.test(text[end + 1] ?? "");
}
