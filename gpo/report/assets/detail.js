"use strict";
// One prompt: its messages, the answers of the chosen iteration side by side, table and cycle, and how the answers of
// other iterations read.

gpo.appearanceName = ([kind, iteration]) => {
  const when = iteration === 0 ? "start" : `iteration ${iteration}`;
  return kind === "rollout" ? `${when}, training` : `${when}, held out`;
};

const number = (value, unit) => (value === null || value === undefined ? null : gpo.el("span", {}, `${value.toPrecision(3)} ${unit}`));

gpo.answerCard = (answer, index, cyclic) => gpo.el("section", { class: cyclic ? "card cyclic" : "card" },
  gpo.el("h4", {}, `Answer ${gpo.letter(index)}`),
  gpo.el("p", { class: "facts" },
    gpo.el("span", { class: answer.finish === "stop" ? "" : "cut" }, answer.finish === "stop" ? "ended by itself" : `cut (${answer.finish})`),
    gpo.el("span", {}, answer.tokens === 1 ? "1 token" : `${answer.tokens} tokens`), number(answer.score, "score"), number(answer.target, "nats target"),
    answer.left_out ? gpo.el("span", { class: "cut" }, `not trained on (${answer.left_out})`) : null),
  gpo.el("p", { class: "text" }, answer.text || "(empty)"));

const pictures = (appearance) => {
  if (!appearance.table) return null;
  const own = gpo.ownTable(appearance);
  return gpo.el("div", { class: "pictures" }, gpo.heatMap(appearance),
    appearance.own_table ? gpo.heatMap({ table: own, baseline: "self" }, "Scores of these answers against each other") : null,
    own && own.length > 1 ? gpo.circle(own, appearance.cycle) : null,
    own ? null : gpo.el("p", { class: "note" }, gpo.store.story.no_own_table));
};

/** First answers of all appearances below each other: the same prompt across iterations. */
const across = (appearances) => gpo.el("section", { class: "across" },
  gpo.el("h3", {}, "The same prompt across iterations"),
  ...appearances.map((one) => gpo.el("div", { class: "row" },
    gpo.el("span", {}, gpo.appearanceName([one.kind, one.iteration])),
    gpo.el("p", { class: "text" }, one.answers[0]?.text || "(empty)"))));

gpo.showNothing = () => {
  gpo.fill(gpo.byId("detail"), gpo.el("p", { class: "note" }, "No prompt matches."));
  delete gpo.byId("detail").dataset.prompt;
};

gpo.showPrompt = async (row, wanted = 0) => {
  const target = gpo.byId("detail");
  const { messages, appearances } = await gpo.store.prompt(row.n);
  const at = Math.min(wanted, appearances.length - 1);
  const appearance = appearances[at];
  const tabs = appearances.map((one, place) => gpo.el("button", { type: "button", "aria-pressed": String(place === at), onclick: () => gpo.showPrompt(row, place).then(() => target.querySelectorAll(".tabs button")[place].focus()) }, gpo.appearanceName([one.kind, one.iteration])));
  gpo.fill(target,
    gpo.el("h3", {}, `Prompt ${row.id}`),
    ...messages.map((message) => gpo.el("div", { class: `message ${message.role}` }, gpo.el("span", {}, message.role), gpo.el("p", { class: "text" }, message.content))),
    gpo.el("div", { class: "tabs", role: "group", "aria-label": "Iterations of this prompt" }, ...tabs),
    gpo.el("p", { class: "note" }, `Sampled by the weights ${appearance.version}.`),
    gpo.el("div", { class: "cards" }, ...appearance.answers.map((answer, index) => gpo.answerCard(answer, index, (appearance.cycle ?? []).includes(index)))),
    pictures(appearance),
    appearances.length > 1 ? across(appearances) : null);
  target.dataset.prompt = row.id;
};
