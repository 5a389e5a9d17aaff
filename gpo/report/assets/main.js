"use strict";
// The page from top to bottom: what is quick to read first, then charts, then samples.

const tiles = (story) => {
  const last = story.evaluations.at(-1);
  const tile = (value, name, note) => gpo.el("div", { class: "tile" }, gpo.el("b", {}, value), gpo.el("span", {}, name), note ? gpo.el("small", {}, note) : null);
  const done = story.evaluations.length;
  const found = [tile(story.run.status ?? "unknown", "status", `${done} of ${story.run.iterations ?? "?"} iterations`)];
  if (last) {
    for (const [judge, verdict] of Object.entries(last.judges)) {
      const [low, high] = verdict.vs_start.ci95;
      found.push(tile(gpo.percent(verdict.vs_start.win_rate), `win rate by ${judge}`, `95 %: ${gpo.percent(low)} to ${gpo.percent(high)}`));
    }
    found.push(tile(last.length_tokens.toFixed(1), "tokens an answer", `${gpo.percent(last.ended_share, 0)} end by themselves`));
    found.push(tile(last.kl_nats_per_answer.toFixed(2), "nats KL from the start", "an answer"));
  }
  const seconds = story.stages.reduce((sum, stage) => sum + stage.seconds, 0);
  if (seconds) found.push(tile(gpo.duration(seconds), "in stages"));
  return found;
};

const signs = (story) => {
  if (!story.signs.length) return [gpo.el("p", { class: "note" }, "Nothing to watch yet.")];
  const rows = story.signs.map((sign) => gpo.el("tr", { class: sign.beyond ? "beyond" : "" },
    gpo.el("td", {}, sign.beyond ? "look" : "fine"), gpo.el("td", {}, `iteration ${sign.iteration}: ${sign.name}`), gpo.el("td", {}, sign.value), gpo.el("td", {}, sign.limit)));
  const head = ["", "sign", "found", "without remark"].map((name) => gpo.el("th", { scope: "col" }, name));
  return [gpo.el("table", {}, gpo.el("thead", {}, gpo.el("tr", {}, ...head)), gpo.el("tbody", {}, ...rows)),
    gpo.el("p", { class: "note" }, "A sign beyond its limit is a reason to read samples, not a verdict.")];
};

const overview = (story) => {
  const { charts } = gpo;
  const evaluated = story.evaluations;
  const sampled = story.rollouts.iterations;
  const none = (what) => gpo.el("p", { class: "note" }, `No ${what} yet.`);
  gpo.fill(gpo.byId("tiles"), ...tiles(story));
  gpo.fill(gpo.byId("progress"), ...(evaluated.length ? [
    charts.winRate(story),
    charts.line(evaluated, "Length", "Tokens a held-out answer, mean.", (row) => row.length_tokens, (value) => value.toFixed(1)),
    charts.line(evaluated, "KL from the start", "Nats an answer, on the policy's own held-out answers.", (row) => row.kl_nats_per_answer, (value) => value.toFixed(2)),
    charts.line(evaluated, "Cycles", "Share of decided triples of held-out answers that are cycles; coin tosses give 25 %.", (row) => row.cyclic_share, (value) => gpo.percent(value), { tickFormat: "%" }),
  ].filter(Boolean) : [none("iteration is evaluated")]),
    ...[charts.line(sampled, "Length and score", "Correlation within a prompt, training answers: near +1, the judge pays for length.", (row) => row.length_score_correlation, (value) => value.toFixed(2), { domain: [-1, 1] })].filter(Boolean));
  gpo.fill(gpo.byId("tournament"), ...(story.tournaments.length ? story.tournaments.map(charts.tournament) : [none("checkpoints to compare")]));
  gpo.fill(gpo.byId("signs"), ...signs(story));
  gpo.fill(gpo.byId("training"), ...(sampled.length ? [
    charts.distribution(story, "score", "Scores", "Mean score of an answer against its baseline; orange: the mean.", "score"),
    charts.distribution(story, "target", "Targets", "Wanted log-ratio of policy and reference, of all sampled answers but those left out; orange: the mean.", "nats"),
    charts.steps(story)].filter(Boolean) : [none("rollouts")]));
  gpo.byId("trained-part").textContent = sampled.length ? story.run.trained_part : "";
  gpo.fill(gpo.byId("time"), ...(story.stages.length ? [charts.timeline(story)] : [none("stage is finished")]));
  gpo.byId("rule").textContent = story.rule;
  gpo.byId("config").textContent = story.run.config;
  gpo.byId("versions").textContent = Object.entries(story.run.versions ?? {}).map(([name, version]) => `${name} ${version}`).join("\n");
  const started = story.run.started ? new Date(1000 * story.run.started).toISOString().slice(0, 16).replace("T", " ") : "?";
  gpo.byId("facts").textContent = `started ${started} UTC, seed ${story.run.seed ?? "?"}, trained on ${story.run.trained_on ?? "?"}`;
};

gpo.byId("theme").addEventListener("click", () => {
  const dark = getComputedStyle(document.documentElement).getPropertyValue("--dark").trim() === "1";
  document.documentElement.dataset.theme = dark ? "light" : "dark";
});

(async () => {
  await gpo.store.open();
  overview(gpo.store.story);
  await gpo.store.openIndex();
  await gpo.browser.open();
  document.documentElement.dataset.ready = String(Math.round(performance.now()));
})();
