"use strict";
// A live page asks its own server for news and loads itself again where there are any. The reader's place is kept over
// that: what is searched, chosen, read, opened and focused, and the theme. Nothing is loaded while somebody acts.

gpo.place = {
  values: ["query", "seen", "order"],
  checks: ["in-answers", "only-cycles", "only-cut"],

  /** What opens and closes, by a name that stays: the figure it belongs to and its own words. */
  opened: () => [...document.querySelectorAll("details")].map((one) => [
    `${one.closest("figure")?.querySelector("strong")?.textContent ?? ""} ${one.querySelector("summary").textContent}`, one]),

  /** How to find the focused element again. */
  focus() {
    const one = document.activeElement;
    if (!one || one === document.body) return null;
    if (one.id) return { id: one.id, caret: one.id === "query" ? [one.selectionStart, one.selectionEnd] : null };
    if (one.dataset.prompt) return { prompt: one.dataset.prompt };
    if (one.closest(".tabs")) return { tab: one.textContent };
    return { opener: this.opened().find(([, details]) => details.contains(one))?.[0] };
  },

  save() {
    sessionStorage.setItem("gpo-place", JSON.stringify({
      values: this.values.map((id) => gpo.byId(id).value), checks: this.checks.map((id) => gpo.byId(id).checked),
      page: gpo.browser.page, chosen: gpo.browser.chosen?.id,
      tab: document.querySelector(".tabs button[aria-pressed=true]")?.textContent,
      open: this.opened().filter(([, one]) => one.open).map(([name]) => name),
      theme: document.documentElement.dataset.theme, focus: this.focus(), top: scrollY, listTop: gpo.byId("list").scrollTop,
    }));
  },

  async restore(saved) {
    this.values.forEach((id, at) => {
      const known = gpo.byId(id).options;
      if (!known || [...known].some((option) => option.value === saved.values[at])) gpo.byId(id).value = saved.values[at];
    });
    this.checks.forEach((id, at) => { gpo.byId(id).checked = saved.checks[at]; });
    await gpo.browser.search();
    await gpo.browser.goTo(saved.page, saved.chosen, saved.tab);
    for (const [name, one] of this.opened()) one.open = saved.open.includes(name);
    this.refocus(saved.focus ?? {});
    gpo.byId("list").scrollTop = saved.listTop;
    scrollTo(0, saved.top);
  },

  refocus({ id, caret, prompt, tab, opener }) {
    const one = id ? gpo.byId(id)
      : prompt ? [...document.querySelectorAll("#list button")].find((button) => button.dataset.prompt === prompt)
        : tab ? [...document.querySelectorAll(".tabs button")].find((button) => button.textContent === tab)
          : this.opened().find(([name]) => name === opener)?.[1].querySelector("summary");
    one?.focus({ preventScroll: true });
    if (caret) one.setSelectionRange(...caret);
  },
};

(async () => {
  history.scrollRestoration = "manual";
  const quiet = 4000;
  let acted = -quiet;
  for (const kind of ["keydown", "input", "pointerdown", "pointermove", "scroll"]) addEventListener(kind, () => { acted = performance.now(); }, { capture: true, passive: true });
  const pause = (milliseconds) => new Promise((resolve) => setTimeout(resolve, milliseconds));
  const saved = JSON.parse(sessionStorage.getItem("gpo-place") ?? "null");
  if (saved?.theme) document.documentElement.dataset.theme = saved.theme;
  while (!document.documentElement.dataset.ready) await pause(50);
  if (saved) await gpo.place.restore(saved);
  addEventListener("pagehide", () => gpo.place.save());
  document.documentElement.dataset.live = "true";
  for (;;) {
    await pause(2000);
    const answer = await fetch("version").catch(() => null);
    // The server is gone when its terminal was closed; the page stays as it was.
    if (!answer || !answer.ok || (await answer.text()) === document.documentElement.dataset.version) continue;
    while (performance.now() - acted < quiet) await pause(200);
    location.reload();
    return;
  }
})();
