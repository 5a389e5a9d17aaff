"use strict";
// Everything that is shown enters the page here, and always as text: no string is ever read as markup.
const gpo = {};

/** An element with attributes and children; children are elements or text. */
gpo.el = (name, attributes = {}, ...children) => {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else element.setAttribute(key, value === true ? "" : String(value));
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
};

gpo.byId = (id) => document.getElementById(id);

/** Replace what an element holds. */
gpo.fill = (target, ...children) => target.replaceChildren(...children.filter((child) => child !== null));

/** A chart with its title, a sentence on how to read it, and its numbers as a table for those who want them. */
gpo.figure = (title, note, chart, table = null) => {
  chart.setAttribute("role", "img");
  chart.setAttribute("aria-label", `${title}. ${note}`);
  return gpo.el("figure", {}, gpo.el("figcaption", {}, gpo.el("strong", {}, title), gpo.el("span", {}, note)), chart, table);
};

/** Rows of cells as a table; the first row is the header. */
gpo.table = (rows) => {
  const [header, ...body] = rows;
  return gpo.el("table", {},
    gpo.el("thead", {}, gpo.el("tr", {}, ...header.map((cell) => gpo.el("th", { scope: "col" }, String(cell))))),
    gpo.el("tbody", {}, ...body.map((row) => gpo.el("tr", {}, ...row.map((cell) => gpo.el("td", {}, String(cell)))))));
};

/** A table that opens when asked. */
gpo.numbers = (rows) => gpo.el("details", { class: "numbers" }, gpo.el("summary", {}, "as numbers"), gpo.table(rows));

gpo.percent = (value, digits = 1) => `${(100 * value).toFixed(digits)} %`;

gpo.duration = (seconds) => {
  if (seconds < 90) return `${Math.round(seconds)} s`;
  if (seconds < 5400) return `${(seconds / 60).toFixed(1)} min`;
  return `${(seconds / 3600).toFixed(1)} h`;
};

/** The letter of an answer: A, B, ... Z, then A1, B1, ... */
gpo.letter = (index) => String.fromCharCode(65 + (index % 26)) + (index < 26 ? "" : Math.floor(index / 26));
