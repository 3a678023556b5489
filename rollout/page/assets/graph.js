// The graph of a rollout: calls and the workspaces between them, laid out by dagre from left to right.

const SIZES = { wide: { width: [92, 136], height: [42, 66] }, narrow: { width: [86, 104], height: [42, 58] } };
const NARROW = 560;
const WORKSPACE = "workspace";

/** Returns nodes {id, call | prompt, ...} and edges [from, to]; attempts with one prompt share a workspace. */
function graphOf(rollout) {
  const nodes = [];
  const edges = [];
  const workspaces = new Map();
  rollout.calls.forEach((call, place) => {
    const id = `call-${place}`;
    nodes.push({ id, call: place });
    if (!call.reads_workspace && !call.is_fallback) {
      for (const parent of call.parents) edges.push([`call-${parent}`, id]);
      return;
    }
    const key = `${WORKSPACE}-${call.prompt}-${call.round}-${call.parents.join(".")}`;
    if (!workspaces.has(key)) {
      workspaces.set(key, { id: key, prompt: call.prompt, reader: place, isFallback: call.is_fallback });
      nodes.push(workspaces.get(key));
      for (const parent of call.parents) edges.push([`call-${parent}`, key]);
    }
    edges.push([key, id]);
  });
  return { nodes, edges };
}

function drawGraph(rollout, width) {
  const { nodes, edges } = graphOf(rollout);
  const graph = new dagre.graphlib.Graph();
  graph.setGraph({ rankdir: "LR", nodesep: 8, ranksep: width < NARROW ? 18 : 44, marginx: 6, marginy: 6 });
  graph.setDefaultEdgeLabel(() => ({}));
  const most = Math.max(1, ...rollout.calls.map((call) => call.completion_tokens));
  const sizes = width < NARROW ? SIZES.narrow : SIZES.wide;
  for (const node of nodes) graph.setNode(node.id, sizeOf(node, rollout, most, sizes));
  for (const [from, to] of edges) graph.setEdge(from, to);
  dagre.layout(graph);
  const { width: total, height } = graph.graph();
  if (isUpsideDown(graph, nodes)) mirror(graph, height);
  const plane = element("div", { class: "plane" });
  plane.style.width = `${total}px`;
  plane.style.height = `${height}px`;
  plane.append(edgesPicture(graph, total, height));
  for (const node of nodes) plane.append(nodeButton(node, rollout, graph.node(node.id)));
  return element("div", { class: "graph", role: "group", "aria-label": "Graph of the rollout's calls" }, [plane]);
}

function sizeOf(node, rollout, most, sizes) {
  const tokens = node.call === undefined ? 0 : rollout.calls[node.call].completion_tokens;
  const share = Math.sqrt(tokens / most);
  const between = ([low, high]) => Math.round(low + share * (high - low));
  return { width: between(sizes.width), height: between(sizes.height) };
}

/** Whether later calls of a column mostly stand above earlier ones. */
function isUpsideDown(graph, nodes) {
  const places = nodes.map((node) => graph.node(node.id));
  const pairs = places.slice(1).map((place, i) => [places[i], place]).filter(([a, b]) => Math.abs(a.x - b.x) < 40);
  return pairs.filter(([a, b]) => b.y < a.y).length > pairs.length / 2;
}

function mirror(graph, height) {
  for (const id of graph.nodes()) graph.node(id).y = height - graph.node(id).y;
  for (const edge of graph.edges()) for (const point of graph.edge(edge).points) point.y = height - point.y;
}

const SVG = "http://www.w3.org/2000/svg";

function edgesPicture(graph, width, height) {
  const picture = document.createElementNS(SVG, "svg");
  picture.setAttribute("width", width);
  picture.setAttribute("height", height);
  picture.setAttribute("aria-hidden", "true");
  for (const edge of graph.edges()) {
    const points = graph.edge(edge).points.map(({ x, y }) => `${x.toFixed(1)},${y.toFixed(1)}`);
    const line = document.createElementNS(SVG, "polyline");
    line.setAttribute("points", points.join(" "));
    picture.append(line);
  }
  return picture;
}

function nodeButton(node, rollout, { x, y, width, height }) {
  const look = node.call === undefined ? workspaceLook(node) : callLook(node.call, rollout);
  const place = node.call ?? node.reader;
  const button = element(
    "button",
    {
      type: "button", class: `node ${look.kind}`, id: `node-${node.id}`, "aria-label": look.label,
      "data-call": node.call, on: { click: () => showCall(place, node.call === undefined) },
    },
    look.lines.map((text, i) => element("span", { class: i ? "small" : "first", text })),
  );
  Object.assign(button.style, { left: `${x - width / 2}px`, top: `${y - height / 2}px`, width: `${width}px`, height: `${height}px` });
  return button;
}

function workspaceLook(node) {
  const text = node.isFallback ? "no usable draft: the plain problem" : "workspace";
  return { kind: node.isFallback ? "workspace fallback" : "workspace", lines: node.isFallback ? ["workspace", "empty"] : ["workspace"], label: text };
}

function callLook(place, rollout) {
  const call = rollout.calls[place];
  const verdict = VERDICTS[verdictOf(call)];
  const credit = call.credit;
  const isAnswer = rollout.chosen.length === 1 && rollout.chosen[0] === place;
  const notes = [`${call.completion_tokens} tok`, call.finish === "length" ? "cut" : "", isAnswer ? "answer" : ""];
  const lines = [`${verdict.mark} #${place} ${call.role}`, notes.filter(Boolean).join(", ")];
  if (credit) lines.push(`r ${short(credit.reward)}${credit.advantage === null ? "" : `, a ${signed(credit.advantage)}`}`);
  const spoken = [
    `call ${place}, ${call.role}, ${verdict.text}`, `${call.completion_tokens} tokens`, isAnswer ? "the rollout's answer" : "",
    credit ? `reward ${short(credit.reward)}` : "", credit && credit.advantage !== null ? `advantage ${signed(credit.advantage)}` : "",
    matchesCall(call) && isFilteringCalls() ? "matches the filter" : "",
  ];
  const hit = isFilteringCalls() && matchesCall(call) ? " hit" : "";
  return { kind: `${verdictOf(call)}${hit}${isAnswer ? " answer" : ""}`, lines, label: spoken.filter(Boolean).join(", ") };
}
