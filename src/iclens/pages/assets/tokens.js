"use strict";
// The active tokens of a prompt are one tab stop; the arrow keys, Home and End move between them.
(() => {
  for (const prompt of document.querySelectorAll(".tokens")) {
    const active = [...prompt.querySelectorAll("b")];
    active.forEach((token, i) => { token.tabIndex = i ? -1 : 0; });
    prompt.addEventListener("keydown", (event) => {
      const here = active.indexOf(document.activeElement);
      const last = active.length - 1;
      const to = { ArrowRight: here + 1, ArrowLeft: here - 1, Home: 0, End: last }[event.key];
      if (here < 0 || to === undefined) return;
      event.preventDefault();
      const next = active[Math.min(Math.max(to, 0), last)];
      active[here].tabIndex = -1;
      next.tabIndex = 0;
      next.focus();
    });
  }
})();
