"use strict";
// The list of prompts: search, filters, order, pages, keys.

gpo.browser = {
  pageSize: 50,
  page: 0,
  found: [],
  chosen: null,

  open() {
    const seen = new Map();
    for (const row of gpo.store.index) for (const one of row.seen) seen.set(gpo.appearanceName(one), one);
    const names = [...seen].sort(([, a], [, b]) => b[0].localeCompare(a[0]) || a[1] - b[1]);
    gpo.fill(gpo.byId("seen"), gpo.el("option", { value: "" }, "all"), ...names.map(([name]) => gpo.el("option", { value: name }, name)));
    for (const id of ["query", "seen", "order", "only-cycles", "only-cut", "in-answers"]) gpo.byId(id).addEventListener("input", () => this.search());
    gpo.byId("before").addEventListener("click", () => this.turn(-1));
    gpo.byId("after").addEventListener("click", () => this.turn(1));
    document.addEventListener("keydown", (event) => this.key(event));
    return this.search();
  },

  async search() {
    const words = gpo.byId("query").value.toLowerCase().split(/\s+/).filter(Boolean);
    const answers = gpo.byId("in-answers").checked;
    const asked = (this.asked = Symbol("search"));
    if (answers && words.length) await gpo.store.openAnswers();
    if (asked !== this.asked) return; // a later search has overtaken this one
    const seen = gpo.byId("seen").value;
    const cycles = gpo.byId("only-cycles").checked;
    const cut = gpo.byId("only-cut").checked;
    const matches = (row) => words.every((word) => row.low.includes(word) || (answers && row.lowAnswers.includes(word)))
      && (!seen || row.seen.some((one) => gpo.appearanceName(one) === seen)) && (!cycles || row.cycle) && (!cut || row.cut);
    const order = gpo.byId("order").value;
    this.found = gpo.store.index.filter(matches);
    if (order !== "n") this.found.sort((a, b) => b[order] - a[order] || a.n - b.n);
    this.page = 0;
    this.draw();
    if (!this.found.length) {
      this.chosen = null;
      gpo.showNothing();
    } else if (!this.found.includes(this.chosen)) await this.choose(this.found[0]);
  },

  pages() {
    return Math.max(1, Math.ceil(this.found.length / this.pageSize));
  },

  turn(by) {
    this.page = Math.min(this.pages() - 1, Math.max(0, this.page + by));
    this.draw();
    gpo.byId("list").querySelector("button")?.focus();
  },

  /** A page of the list, a prompt and one of its tabs, as far as they are still there. */
  async goTo(page, id, tab) {
    this.page = Math.min(this.pages() - 1, page);
    const row = this.found.find((one) => one.id === id);
    this.draw();
    if (row) await this.choose(row, false, tab);
  },

  draw() {
    const rows = this.found.slice(this.page * this.pageSize, (this.page + 1) * this.pageSize);
    gpo.fill(gpo.byId("list"), ...rows.map((row) => gpo.el("li", {}, this.item(row))));
    gpo.byId("count").textContent = `${this.found.length.toLocaleString("en")} of ${gpo.store.index.length.toLocaleString("en")} prompts`;
    gpo.byId("page").textContent = `page ${this.page + 1} of ${this.pages()}`;
    gpo.byId("before").disabled = this.page === 0;
    gpo.byId("after").disabled = this.page === this.pages() - 1;
  },

  item(row) {
    const text = row.text.length > 140 ? `${row.text.slice(0, 140)}...` : row.text;
    const facts = [row.seen.length > 1 ? `${row.seen.length} iterations` : null, `${row.tokens} tokens`, row.cycle ? "cycle" : null].filter(Boolean).join(" · ");
    return gpo.el("button", { type: "button", "aria-current": row === this.chosen ? "true" : "false", "data-prompt": row.id,
      onclick: () => this.choose(row, true) }, gpo.el("span", {}, text || "(empty)"), gpo.el("small", {}, facts));
  },

  async choose(row, read = false, tab = null) {
    this.chosen = row;
    for (const button of gpo.byId("list").querySelectorAll("button")) button.setAttribute("aria-current", String(button.dataset.prompt === row.id));
    // The appearance asked for, or the one that has a cycle to show.
    const seen = tab ?? gpo.byId("seen").value;
    const { appearances } = await gpo.store.prompt(row.n);
    if (row !== this.chosen) return; // another was chosen meanwhile
    const asked = appearances.findIndex((one) => seen && gpo.appearanceName([one.kind, one.iteration]) === seen);
    const cyclic = appearances.findIndex((one) => one.cycle);
    await gpo.showPrompt(row, asked >= 0 ? asked : Math.max(cyclic, 0));
    if (read) gpo.byId("detail").focus();
  },

  key(event) {
    const query = gpo.byId("query");
    const buttons = [...gpo.byId("list").querySelectorAll("button")];
    const at = buttons.indexOf(document.activeElement);
    const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(document.activeElement?.tagName ?? "");
    let handled = true;
    if (event.ctrlKey || event.metaKey || event.altKey) handled = false;
    else if (event.key === "/" && !typing) query.focus();
    else if (event.key === "ArrowDown" && (at >= 0 || document.activeElement === query)) buttons[Math.min(at + 1, buttons.length - 1)]?.focus();
    else if (event.key === "ArrowUp" && at >= 0) (buttons[at - 1] ?? query).focus();
    else if (event.key === "PageDown" && at >= 0) this.turn(1);
    else if (event.key === "PageUp" && at >= 0) this.turn(-1);
    else if (event.key === "Escape" && gpo.byId("detail").contains(document.activeElement)) (buttons.find((button) => button.getAttribute("aria-current") === "true") ?? query).focus();
    else handled = false;
    if (handled) event.preventDefault();
  },
};
