"use strict";
// The charts of the overview, each a function from the story to a figure. Colours are CSS variables, so that light and
// dark need no second drawing; one for each of a run's seven stages.

gpo.series = ["var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)", "var(--c5)", "var(--c6)", "var(--c7)"];

/** `least`: narrower than that it would not be readable, so there its figure scrolls sideways. */
gpo.plot = ({ width = 560, least = 0, ...options }) => Plot.plot({
  width: Math.max(least, Math.min(width, document.body.clientWidth - 40)), height: 260, marginLeft: 52, marginBottom: 36, marginTop: 18,
  style: { background: "transparent", color: "var(--ink-2)", fontFamily: "inherit", fontSize: "12px", overflow: "visible", maxWidth: least ? "none" : "100%" },
  ...options,
});

const iterations = (rows) => ({ label: "iteration", ticks: rows.map((row) => row.iteration), tickFormat: "d", inset: 24 });

gpo.charts = {
  winRate(story) {
    const rows = story.evaluations.flatMap((evaluation) => Object.entries(evaluation.judges).map(([judge, verdict]) => ({
      judge, iteration: evaluation.iteration, rate: verdict.vs_start.win_rate,
      low: verdict.vs_start.ci95[0], high: verdict.vs_start.ci95[1], prompts: verdict.vs_start.n_prompts,
    })));
    const judges = [...new Set(rows.map((row) => row.judge))];
    const shift = (row) => 7 * (judges.indexOf(row.judge) - (judges.length - 1) / 2);
    const marks = judges.flatMap((judge) => {
      const own = rows.filter((row) => row.judge === judge);
      const options = { x: "iteration", stroke: "judge", dx: shift(own[0]) };
      return [
        Plot.ruleX(own, { ...options, y1: "low", y2: "high", strokeWidth: 2, strokeOpacity: 0.55 }),
        Plot.lineY(own, { ...options, y: "rate", strokeWidth: 2 }),
        Plot.dot(own, { x: "iteration", y: "rate", fill: "judge", r: 4, dx: shift(own[0]), tip: true,
          title: (row) => `${judge}, iteration ${row.iteration}\n${gpo.percent(row.rate)} [${gpo.percent(row.low)}, ${gpo.percent(row.high)}]\n${row.prompts} prompts` }),
      ];
    });
    const chart = gpo.plot({
      x: iterations(story.evaluations), y: { label: "win rate", tickFormat: "%", grid: true, nice: true },
      color: { domain: judges, range: gpo.series, legend: true },
      marks: [Plot.ruleY([0.5], { stroke: "var(--ink-3)", strokeDasharray: "4 3" }), ...marks],
    });
    const table = gpo.numbers([["iteration", "judge", "win rate", "95 % interval", "prompts"], ...rows.map((row) => [
      row.iteration, row.judge, gpo.percent(row.rate), `${gpo.percent(row.low)} to ${gpo.percent(row.high)}`, row.prompts])]);
    return gpo.figure("Win rate against the start", "Held-out prompts; bars are 95 % bootstrap intervals over prompts; dashed: no better than the start.", chart, table);
  },

  line(rows, title, note, pick, format, options = {}) {
    const points = rows.map((row) => ({ iteration: row.iteration, value: pick(row) })).filter((row) => row.value !== null && row.value !== undefined);
    if (!points.length) return null;
    const chart = gpo.plot({
      height: 200, x: iterations(points), y: { label: null, grid: true, nice: true, zero: true, ...options },
      marks: [
        Plot.ruleY([0], { stroke: "var(--ink-3)" }),
        Plot.lineY(points, { x: "iteration", y: "value", stroke: "var(--c1)", strokeWidth: 2 }),
        Plot.dot(points, { x: "iteration", y: "value", fill: "var(--c1)", r: 4, tip: true, title: (row) => `iteration ${row.iteration}: ${format(row.value)}` }),
        Plot.text(points, { x: "iteration", y: "value", text: (row) => format(row.value), dy: -12, fill: "var(--ink)" }),
      ],
    });
    return gpo.figure(title, note, chart);
  },

  distribution(story, name, title, note, unit) {
    const { edges, iterations: rows } = story.rollouts;
    const bins = rows.flatMap((row) => row[name].counts.map((count, place) => ({
      iteration: row.iteration, x1: edges[name][place], x2: edges[name][place + 1], share: count / row[name].values })));
    const chart = gpo.plot({
      height: 46 + 84 * rows.length, marginRight: 86,
      x: { label: unit }, y: { label: null, ticks: 2, tickFormat: "%", grid: true },
      fy: { label: null, tickFormat: (number) => `iteration ${number}` },
      marks: [
        Plot.rectY(bins, { x1: "x1", x2: "x2", y: "share", fy: "iteration", fill: "var(--c1)", insetLeft: 0.5, insetRight: 0.5 }),
        Plot.ruleX(rows, { x: (row) => row[name].mean, fy: "iteration", stroke: "var(--c2)", strokeWidth: 2 }),
        Plot.ruleY([0], { stroke: "var(--ink-3)" }),
      ],
    });
    const table = gpo.numbers([["iteration", "mean", "deviation", "5 %", "median", "95 %"], ...rows.map((row) => [
      row.iteration, ...["mean", "deviation", "p5", "median", "p95"].map((key) => row[name][key].toPrecision(3))])]);
    return gpo.figure(title, note, chart, table);
  },

  tournament({ judge, names, rate }) {
    const cells = rate.flatMap((line, i) => line.map((value, j) => ({ row: names[i], column: names[j], value }))).filter((cell) => cell.value !== null);
    const chart = gpo.plot({
      least: 100 + 72 * names.length, height: 70 + 42 * names.length, marginLeft: 90, marginTop: 40,
      x: { domain: names, axis: "top", label: "against" }, y: { domain: names, label: null }, color: { type: "identity" },
      marks: [
        Plot.cell(cells, { x: "column", y: "row", fill: (cell) => gpo.heat(2 * cell.value - 1), inset: 1, rx: 3, tip: true,
          title: (cell) => `${cell.row} wins ${gpo.percent(cell.value)} against ${cell.column}` }),
        Plot.text(cells, { x: "column", y: "row", text: (cell) => gpo.percent(cell.value, 0), fill: "var(--ink)" }),
      ],
    });
    return gpo.figure(`Win rate of row against column, by ${judge}`, "Held-out prompts, every checkpoint against every other.", chart);
  },

  steps(story) {
    if (!story.steps.length) return null;
    const starts = story.steps.filter((step, place, all) => place && step.iteration !== all[place - 1].iteration);
    const chart = gpo.plot({
      height: 220, x: { label: "step" }, y: { label: null, grid: true, type: story.steps.every((step) => step.loss > 0) ? "log" : "linear" },
      marks: [
        Plot.ruleX(starts, { x: "total", stroke: "var(--ink-3)", strokeDasharray: "3 3" }),
        Plot.text(starts, { x: "total", frameAnchor: "top", text: (step) => `iteration ${step.iteration}`, dx: 4, textAnchor: "start", fill: "var(--ink-2)" }),
        Plot.lineY(story.steps, { x: "total", y: "loss", stroke: "var(--c1)", strokeWidth: 1.5, tip: true }),
      ],
    });
    return gpo.figure("Training loss", "Mean squared distance of log-ratio and target, in nats squared.", chart);
  },

  timeline(story) {
    const rows = story.stages.map((stage) => ({ ...stage, end: stage.begin + stage.seconds, row: stage.iteration === 0 ? "start" : `iteration ${stage.iteration}` }));
    const names = [...new Set(rows.map((row) => row.row))];
    const total = Math.max(...rows.map((row) => row.end), 1);
    const scale = total < 180 ? [1, "seconds"] : total < 10800 ? [60, "minutes"] : [3600, "hours"];
    const chart = gpo.plot({
      width: 1140, height: 70 + 30 * names.length, marginLeft: 90, x: { label: `${scale[1]} since the start`, grid: true }, y: { domain: names, label: null },
      color: { domain: [...new Set(rows.map((row) => row.stage))], range: gpo.series, legend: true },
      marks: [Plot.barX(rows, { x1: (row) => row.begin / scale[0], x2: (row) => row.end / scale[0], y: "row", fill: "stage", fillOpacity: (row) => (row.open ? 0.45 : 1), insetLeft: 0.5, insetRight: 0.5, rx: 2, tip: true,
        title: (row) => `${row.row}, ${row.stage}: ${gpo.duration(row.seconds)}${row.open ? ", still at work" : ""}` })],
    });
    const table = gpo.numbers([["iteration", "stage", "seconds"], ...rows.map((row) => [row.iteration, row.stage, row.seconds.toFixed(1)])]);
    return gpo.figure("Stages", "Each bar is a stage; gaps are starts, stops and what lies between.", chart, table);
  },
};
