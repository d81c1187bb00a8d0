// Follows a page, and selects all items of a list. Without it everything works by reloading.
"use strict";
(() => {
  const every = document.getElementById("every");
  if (every) {
    const boxes = document.querySelectorAll('input[type="checkbox"][name="id"]');
    every.parentElement.hidden = false;
    every.addEventListener("change", () => boxes.forEach((box) => { box.checked = every.checked; }));
  }

  const address = document.body.dataset.follow;
  if (!address || !window.EventSource) return;
  const state = document.getElementById("following");
  const say = (text) => {
    if (state.textContent !== text) state.textContent = text;
    state.hidden = false;
  };

  const take = (text) => {
    const page = new DOMParser().parseFromString(text, "text/html");
    for (const fresh of page.querySelectorAll("[data-live]")) {
      const name = CSS.escape(fresh.dataset.live);
      const old = document.querySelector(`[data-live="${name}"]`);
      // What somebody is about to press stays as it is until he has gone on.
      if (!old || old.outerHTML === fresh.outerHTML || old.contains(document.activeElement)) continue;
      old.replaceWith(document.importNode(fresh, true));
    }
  };

  let source = null;
  const open = () => {
    source = new EventSource(address);
    source.addEventListener("message", (event) => { take(event.data); say("live"); });
    source.addEventListener("error", () => {
      say(source.readyState === EventSource.CLOSED ? "stands still: reload" : "connecting");
    });
  };
  const close = () => { if (source) source.close(); source = null; };
  // A page that nobody sees asks for nothing.
  document.addEventListener("visibilitychange", () => {
    if (document.hidden) close(); else if (!source) open();
  });
  window.addEventListener("pagehide", close);
  window.addEventListener("pageshow", (event) => { if (event.persisted && !source) open(); });
  open();
})();
