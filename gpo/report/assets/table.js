"use strict";
// The table of one prompt as a heat map, and its preferences drawn as a circle with the cycle in it.

/** Colour for a value in [-1, 1]: lost to won, with the page's own ground in the middle. */
gpo.heat = (value) => {
  const share = Math.round(75 * Math.min(1, Math.abs(value)));
  return `color-mix(in oklab, ${value < 0 ? "var(--lost)" : "var(--won)"} ${share}%, var(--ground))`;
};

/** How many of the first columns are the answers themselves; the others are answers of the baseline. */
const ownColumns = ({ table, baseline }) => (["self", "optimistic"].includes(baseline) ? table.length : 0);

/** K x K raw scores of the answers against each other; null where nothing tells them. */
gpo.ownTable = ({ table, baseline, own_table: own }) => own ?? (ownColumns({ table, baseline }) ? table.map((line) => line.slice(0, table.length)) : null);

/** K x M raw scores; `baseline` says what the columns are. */
gpo.heatMap = ({ table, baseline }, title = "Score of row against column") => {
  const own = ownColumns({ table, baseline });
  const rows = table.map((_, i) => gpo.letter(i));
  const columns = table[0].map((_, j) => (j < own ? gpo.letter(j) : `b${j - own + 1}`));
  const largest = Math.max(...table.flat().map(Math.abs), 1e-9);
  const cells = table.flatMap((line, i) => line.map((value, j) => ({ row: rows[i], column: columns[j], value })));
  const width = Math.max(220, 70 + 54 * columns.length);
  const chart = gpo.plot({
    width, least: width, height: 56 + 40 * rows.length, marginLeft: 34, marginTop: 34, marginBottom: 8,
    x: { domain: columns, axis: "top", label: "against" }, y: { domain: rows, label: null }, color: { type: "identity" },
    marks: [
      Plot.cell(cells, { x: "column", y: "row", fill: (cell) => gpo.heat(cell.value / largest), inset: 1, rx: 3 }),
      Plot.text(cells, { x: "column", y: "row", text: (cell) => cell.value.toPrecision(2), fill: "var(--ink)" }),
    ],
  });
  chart.classList.add("heat-map");
  return gpo.figure(title, `Raw scores; positive: the row's answer is preferred.${own < columns.length ? ` b1, b2, ...: the baseline, ${baseline}.` : ""}`, chart);
};

/** Answers on a circle, an arrow from each to those it beats; the strongest cycle stands out. `table`: K x K. */
gpo.circle = (table, cycle) => {
  const names = table.map((_, i) => gpo.letter(i));
  const place = (i) => ({ x: Math.sin((2 * Math.PI * i) / names.length), y: Math.cos((2 * Math.PI * i) / names.length) });
  const inCycle = new Set((cycle ?? []).map((answer, at) => `${answer} ${cycle[(at + 1) % 3]}`));
  const arrows = table.flatMap((line, i) => line.map((value, j) => ({ i, j, margin: (value - table[j][i]) / 2 })))
    .filter((arrow) => arrow.margin > 0)
    .map((arrow) => ({ x1: place(arrow.i).x, y1: place(arrow.i).y, x2: place(arrow.j).x, y2: place(arrow.j).y, cyclic: inCycle.has(`${arrow.i} ${arrow.j}`) }));
  const ends = { x1: "x1", y1: "y1", x2: "x2", y2: "y2", inset: 20, headLength: 9 };
  const nodes = names.map((name, i) => ({ name, ...place(i), cyclic: (cycle ?? []).includes(i) }));
  const chart = gpo.plot({
    width: 240, height: 240, margin: 28, axis: null, x: { domain: [-1.1, 1.1] }, y: { domain: [-1.1, 1.1] },
    marks: [
      Plot.arrow(arrows.filter((arrow) => !arrow.cyclic), { ...ends, stroke: "var(--ink-3)", strokeWidth: 1, className: "beats" }),
      Plot.arrow(arrows.filter((arrow) => arrow.cyclic), { ...ends, stroke: "var(--c2)", strokeWidth: 3, className: "cycle" }),
      Plot.dot(nodes, { x: "x", y: "y", r: 14, fill: (node) => (node.cyclic ? "var(--c2)" : "var(--ground-2)"), stroke: "var(--ink-3)" }),
      Plot.text(nodes, { x: "x", y: "y", text: "name", fill: (node) => (node.cyclic ? "var(--on-c2)" : "var(--ink)"), fontWeight: 600 }),
    ],
    color: { type: "identity" },
  });
  chart.classList.add("circle");
  const words = cycle ? `A cycle: ${[...cycle, cycle[0]].map(gpo.letter).join(" beats ")}.` : "No three of these answers beat each other in a circle.";
  return gpo.figure("Who beats whom", words, chart);
};
