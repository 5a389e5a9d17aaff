"use strict";
// A live page asks its own server for news and loads itself again where there are any; place and search stay.

(async () => {
  const kept = ["query", "seen", "order"];
  const saved = JSON.parse(sessionStorage.getItem("gpo") ?? "null");
  const put = () => sessionStorage.setItem("gpo", JSON.stringify({ top: scrollY, values: kept.map((id) => gpo.byId(id).value) }));
  const current = await (await fetch("version")).text();
  if (saved) {
    while (!document.documentElement.dataset.ready) await new Promise((resolve) => setTimeout(resolve, 50));
    kept.forEach((id, place) => { gpo.byId(id).value = saved.values[place]; });
    await gpo.browser.search();
    scrollTo(0, saved.top);
  }
  for (;;) {
    await new Promise((resolve) => setTimeout(resolve, 2000));
    const answer = await fetch("version").catch(() => null);
    // The server is gone when its terminal was closed; the page stays as it was.
    if (!answer || !answer.ok) continue;
    if ((await answer.text()) !== current) { put(); location.reload(); return; }
  }
})();
