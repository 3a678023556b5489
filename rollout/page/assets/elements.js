// Building blocks of the document. Text enters it as text nodes only, never as HTML.

const HIDDEN = /[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f-\u009f\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff]/gu;

/** Text with its invisible and direction-changing characters written out, e.g. [U+202E]. */
function visible(text) {
  return text.replace(HIDDEN, (mark) => `[U+${mark.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}]`);
}

/**
 * Returns an element. `options`: class, text, on (listeners by event); all others are attributes, of which
 * those that are false, null or undefined are left out.
 */
function element(tag, options = {}, children = []) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (name === "text") made.textContent = visible(String(value));
    else if (name === "on") for (const [event, listen] of Object.entries(value)) made.addEventListener(event, listen);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, String(value));
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

/** A table with headers. `rows`: arrays of text or nodes; the first cell of each is its header. */
function table(caption, headers, rows) {
  const cell = (tag, content, options = {}) =>
    content instanceof Node ? element(tag, options, [content]) : element(tag, { ...options, text: content ?? "" });
  return scrollable(
    caption,
    element("table", {}, [
      element("caption", { text: caption }),
      element("thead", {}, [element("tr", {}, headers.map((text) => cell("th", text, { scope: "col" })))]),
      element(
        "tbody",
        {},
        rows.map((row) =>
          element("tr", {}, row.map((content, i) => (i ? cell("td", content) : cell("th", content, { scope: "row" })))),
        ),
      ),
    ]),
  );
}

/** A box that scrolls sideways, reachable by keyboard. */
function scrollable(label, child) {
  return element("div", { class: "scroll", tabindex: 0, role: "region", "aria-label": label }, [child]);
}

/** A labelled control. */
function labelled(text, control, options = {}) {
  return element("label", options, [element("span", { text }), control]);
}

/** A select of [value, text] pairs. */
function select(pairs, value, change) {
  const made = element("select", { on: { change: () => change(made.value) } });
  for (const [key, text] of pairs) made.append(element("option", { value: key, text }));
  made.value = value;
  return made;
}

function percent(value, digits = 1) {
  return value === null || value === undefined ? "-" : (100 * value).toFixed(digits);
}

/** A number in few characters. */
function short(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "-";
  if (value !== 0 && (Math.abs(value) < 1e-3 || Math.abs(value) >= 1e6)) return value.toExponential(1);
  return String(Number(value.toPrecision(4)));
}

function signed(value, write = short) {
  return value === null || value === undefined ? "-" : (value < 0 ? "\u2212" : "+") + write(Math.abs(value));
}

function byId(id) {
  return document.getElementById(id);
}
