"use strict";
// The table of all latents: search, sort, page. Rows come from data/latents.js; everything is written
// with textContent, so no text from a run can become markup. Numbers follow dashboards/text.py.
(() => {
  const [SITE, LATENT, DENSITY, ROLE, SLOPE, Q, VERDICT, LABEL, CONCEPT, AUROC, BELIEF, EFFECT, CONTROL, PAGE] =
    Array(14).keys();
  const COLUMNS = [SITE, LATENT, DENSITY, ROLE, SLOPE, Q, VERDICT, LABEL, AUROC, EFFECT, CONTROL];
  const BESIDE = { [AUROC]: CONCEPT, [EFFECT]: BELIEF };
  const TEXT = new Set([SITE, ROLE, VERDICT, LABEL]);
  const SEARCHED = [SITE, LATENT, ROLE, VERDICT, LABEL, CONCEPT, BELIEF];

  const all = window.iclensLatents;
  const table = document.getElementById("table");
  const body = table.tBodies[0];
  const headings = [...table.tHead.rows[0].cells];
  const at = (id) => document.getElementById(id);
  const perPage = Number(table.dataset.rows);
  const words = all.map((row) => SEARCHED.map((column) => row[column]).join(" ").toLowerCase());
  const state = { query: "", site: "", paged: false, sort: null, down: false, page: 0 };
  let found = all;

  function number(value) {
    if (value === null) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 1e-3 || size >= 1e6) return value.toExponential(1).replace("+", "").replaceAll("-", "−");
    const digits = Math.max(0, 2 - Math.floor(Math.log10(size)));
    return value
      .toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })
      .replace("-", "−");
  }

  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function latentCell(row) {
    const cell = element("th", undefined, "n");
    cell.scope = "row";
    const inner = cell.appendChild(element(row[PAGE] ? "a" : "span", String(row[LATENT])));
    if (row[PAGE]) inner.href = `latents/${encodeURIComponent(row[SITE])}-${row[LATENT]}.html`;
    else inner.title = "no page was written for this latent";
    return cell;
  }

  function cell(row, column) {
    if (column === LATENT) return latentCell(row);
    if (TEXT.has(column)) return element("td", row[column]);
    const made = element("td", number(row[column]), "n");
    const beside = BESIDE[column];
    if (beside !== undefined && row[beside]) made.append(" ", element("small", row[beside]));
    return made;
  }

  // Undefined values stay last in both directions; equal ones keep the table's own order.
  function compare(a, b) {
    const [x, y] = [a[state.sort], b[state.sort]];
    const missing = (x === null || x === "") - (y === null || y === "");
    if (missing) return missing;
    const order = typeof x === "string" ? x.localeCompare(y, "en", { numeric: true }) : x - y;
    return state.down ? -order : order;
  }

  function select() {
    const terms = state.query.toLowerCase().split(/\s+/).filter(Boolean);
    found = all.filter(
      (row, i) =>
        (!state.site || row[SITE] === state.site) &&
        (!state.paged || row[PAGE]) &&
        terms.every((term) => words[i].includes(term)),
    );
    if (state.sort !== null) found.sort(compare);
    state.page = 0;
    draw();
  }

  function draw() {
    const start = state.page * perPage;
    const shown = found.slice(start, start + perPage);
    const rows = shown.map((row) => {
      const made = element("tr");
      made.append(...COLUMNS.map((column) => cell(row, column)));
      return made;
    });
    body.replaceChildren(...rows);
    const total = found.length.toLocaleString("en-US");
    const range = found.length ? `${start + 1}–${start + shown.length} of ${total}` : "No latent matches";
    const outOf = found.length < all.length ? ` (${all.length.toLocaleString("en-US")} in all)` : "";
    at("status").textContent = range + outOf;
    at("back").disabled = state.page === 0;
    at("forth").disabled = start + perPage >= found.length;
    headings.forEach((heading, i) => {
      const order = state.down ? "descending" : "ascending";
      heading.setAttribute("aria-sort", COLUMNS[i] === state.sort ? order : "none");
    });
  }

  // First activation sorts the way one usually wants, the second the other way, the third restores.
  function sortBy(column) {
    const first = [DENSITY, SLOPE, AUROC, EFFECT].includes(column);
    if (state.sort !== column) Object.assign(state, { sort: column, down: first });
    else if (state.down === first) state.down = !first;
    else state.sort = null;
    select();
  }

  function turn(step) {
    state.page += step;
    draw();
    table.scrollIntoView({ block: "nearest" });
  }

  headings.forEach((heading, i) => {
    const button = heading.firstElementChild;
    button.disabled = false;
    button.addEventListener("click", () => sortBy(COLUMNS[i]));
  });
  const controls = document.querySelector(".controls");
  controls.addEventListener("submit", (event) => event.preventDefault());
  controls.addEventListener("input", () => {
    Object.assign(state, { query: at("search").value, site: at("site").value, paged: at("paged").checked });
    select();
  });
  at("back").addEventListener("click", () => turn(-1));
  at("forth").addEventListener("click", () => turn(1));
  controls.hidden = false;
  document.querySelector(".pager").hidden = false;
  // A browser that restores the form on "back" restores what it selected as well.
  window.addEventListener("pageshow", () => controls.dispatchEvent(new Event("input")));
})();
