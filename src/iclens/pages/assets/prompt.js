"use strict";
// A prompt's page: another site's latents in the grid, and the text coloured by one of them.
// The grid is what the text is coloured from, so that the site that was written with the page needs no rows.
(() => {
  const grid = document.getElementById("grid");
  const select = document.getElementById("site");
  if (!grid || !select) return;
  const rows = [...grid.querySelectorAll("tr[data-at]")];
  const tokens = new Map();
  for (const run of document.querySelectorAll(".run")) {
    [...run.querySelectorAll("b")].forEach((token, pos) => tokens.set(run.dataset.run + pos, token));
  }
  const status = document.getElementById("coloured");
  const caption = document.getElementById("caption");
  const [whys, heads] = grid.tHead.rows;
  let site = caption.textContent;
  let asked = site; // last

  const element = (name, attributes, ...inside) => {
    const made = document.createElement(name);
    for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
    made.append(...inside);
    return made;
  };
  const buttons = () => [...heads.querySelectorAll("button")];

  function colour(column) {
    const all = buttons();
    all.forEach((button, i) => button.setAttribute("aria-pressed", i === column));
    for (const row of rows) {
      [...row.cells].forEach((cell, i) => cell.classList.toggle("on", i === column + 1));
      const cell = row.cells[column + 1];
      const token = tokens.get(row.dataset.at);
      token.className = [...cell.classList].filter((name) => /^a\d$/.test(name)).join(" ");
      if (cell.textContent) token.title = cell.textContent;
      else token.removeAttribute("title");
    }
    status.textContent = `${site} · ${all[column].textContent}, largest ${all[column].dataset.peak}`;
  }

  function draw(held) {
    site = caption.textContent = select.value = held.site;
    while (whys.cells.length > 1) whys.cells[1].remove();
    for (let i = 0; i < held.latents.length; ) {
      const { why } = held.latents[i];
      const start = i;
      while (held.latents[i]?.why === why) i += 1;
      whys.append(element("th", { scope: "colgroup", colspan: i - start }, why));
    }
    heads.replaceChildren(...held.latents.map(({ latent, page, peak }) => {
      const button = element("button", { type: "button", "data-peak": peak }, `${latent}`);
      const head = element("th", { scope: "col", class: "n" }, button);
      if (page) head.append(" ", element("a", { href: page, "aria-label": `page of latent ${latent}` }, "page"));
      return head;
    }));
    for (const wide of grid.querySelectorAll(".group th")) wide.colSpan = held.latents.length + 1;
    for (const row of rows) while (row.cells.length > 1) row.cells[1].remove();
    for (const { levels, values } of held.latents) {
      const cells = new Map();
      for (const run of Object.keys(levels)) {
        let next = 0;
        [...levels[run]].forEach((level, pos) => cells.set(run + pos, level === "0" ? ["", ""] : [`a${level}`, values[run][next++]]));
      }
      for (const row of rows) {
        const [level, value] = cells.get(row.dataset.at);
        row.append(element("td", level ? { class: level } : {}, value));
      }
    }
  }

  // Only another site's rows come from the shard; of two that are asked for, the later one is shown.
  async function show(wanted, latent) {
    asked = wanted;
    if (wanted !== site) {
      const held = await iclens.need(select.dataset.rows).catch((error) => { status.textContent = error.message; });
      if (asked !== wanted) return;
      const found = held?.find((one) => one.site === wanted);
      if (!found) {
        if (held) status.textContent = `${status.textContent}; ${wanted} is not shown with this prompt`;
        select.value = site;
        return;
      }
      draw(found);
    }
    select.value = site;
    const column = latent === undefined ? 0 : buttons().findIndex((button) => button.textContent === latent);
    colour(Math.max(column, 0));
    if (column < 0) status.textContent += `; ${latent} is not shown with this prompt`;
  }

  function follow() {
    const linked = /^#latent=([\w.-]+)\/(\d+)$/.exec(location.hash);
    if (linked) show(linked[1], linked[2]);
  }

  function name() {
    const pressed = buttons().find((button) => button.getAttribute("aria-pressed") === "true");
    history.replaceState(null, "", `#latent=${site}/${pressed.textContent}`);
  }

  heads.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    colour(buttons().indexOf(button));
    name();
  });
  select.addEventListener("change", () => show(select.value).then(name));
  window.addEventListener("hashchange", follow);
  for (const button of buttons()) button.disabled = false;
  colour(0);
  select.form.hidden = false;
  select.form.addEventListener("submit", (event) => event.preventDefault());
  follow();
})();
