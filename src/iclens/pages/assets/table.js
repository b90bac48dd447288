"use strict";
// The table of all latents: search, filter, sort, choose columns, scroll. Rows come from data/latents.js column
// by column; only the rows in view are in the page, all written with textContent, so that no text from a run
// can become markup. What is shown is kept in the address. Numbers follow pages/text.py.
(() => {
  const HEIGHT = 34; // of a row; table.css says the same
  const BEYOND = 10; // rows drawn above and below those in view
  const TALLEST = 15e6; // pixels; browsers go no further than about 17 million
  const CHOICES = ["site", "verdict", "label", "concept", "belief"];
  const FILTERS = ["q", ...CHOICES, "effect", "q_value"];
  const WIDEST = 26; // characters of a column before its words are cut

  const at = (id) => document.getElementById(id);
  const [region, table, controls, status] = ["region", "table", "controls", "status"].map(at);
  const body = table.tBodies[0];
  const fields = controls.elements;
  const checks = [...controls.querySelectorAll("[name=column]")];
  const columns = [...table.tHead.rows[0].cells].map((heading) => ({ heading, ...heading.dataset }));
  const shownNames = () => checks.filter((check) => check.checked).map((check) => check.value);
  const usual = shownNames().join();

  let latents, words, values, n; // as rows.js reads them: words of each column, its values, how many rows
  let found; // places of the rows that match, in order
  let sort = ""; // column's name, after "-" when descending
  let current = 0; // row that Tab leads to
  let above = 0; // pixels of the rows above the view
  let ignored = []; // what a link asked for that is not there

  const word = (name, i) => latents.word(name, i);
  const sorted = () => sort.replace("-", "");
  const way = () => (sort.startsWith("-") ? "descending" : "ascending");

  // --- what is asked
  function conditions() {
    const terms = fields.q.value.toLowerCase().split(/\s+/).filter((term) => term && term !== "·");
    const all = terms.map(latents.contains);
    for (const name of CHOICES.filter((choice) => fields[choice].value)) {
      const code = words[name].indexOf(fields[name].value);
      all.push((i) => values[name][i] === code);
    }
    const [least, most] = [fields.effect.value, fields.q_value.value];
    if (least) all.push((i) => Math.abs(values.effect[i]) >= Number(least));
    if (most) all.push((i) => values.q_value[i] <= Number(most));
    if (fields.paged.checked) all.push((i) => values.page[i] === 1);
    return all;
  }

  // The filters and the order as a printed table says them.
  function inWords() {
    const set = FILTERS.filter((name) => fields[name].value);
    const said = set.map((name) => `${fields[name].labels[0].firstElementChild.textContent} ${fields[name].value}`);
    if (fields.paged.checked) said.push("with a page");
    const column = columns.find(({ name }) => name === sorted());
    if (column) said.push(`sorted by ${column.heading.textContent}, ${way()}`);
    return said;
  }

  // --- drawing
  function number(value) {
    if (isNaN(value)) return "–";
    const size = Math.abs(value);
    if (size === 0) return "0";
    if (size < 1e-3 || size >= 1e6) return value.toExponential(1).replace("+", "").replaceAll("-", "−");
    const digits = Math.max(0, 2 - Math.floor(Math.log10(size)));
    return value
      .toLocaleString("en-US", { minimumFractionDigits: digits, maximumFractionDigits: digits })
      .replace("-", "−");
  }

  const count = (value) => value.toLocaleString("en-US");
  function element(name, text, className) {
    const made = document.createElement(name);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  }

  function keyCell(i) {
    const cell = element("th");
    cell.scope = "row";
    const name = `${word("site", i)} · ${values.latent[i]}`;
    const inner = cell.appendChild(element(values.page[i] === 1 ? "a" : "span", name));
    const path = `latents/${encodeURIComponent(word("site", i))}-${values.latent[i]}.html`;
    if (values.page[i] === 1) inner.href = path;
    else inner.title = "no page was written; dashboard.latents of the config gives it one";
    return cell;
  }

  function cell(column, i) {
    if (column.kind === "key") return keyCell(i);
    if (column.kind === "word") return said(element("td"), word(column.name, i));
    const value = number(values[column.name][i]);
    if (!column.beside) return element("td", value, "n");
    const made = element("td", undefined, "pair");
    const beside = word(column.beside, i);
    made.append(element("span", value));
    if (beside) made.append(" ", said(element("small"), beside));
    return made;
  }

  function said(made, text) {
    made.textContent = text;
    if (text.length > WIDEST) made.title = text;
    return made;
  }

  const placeOf = (row) => Number(row.getAttribute("aria-rowindex")) - 2;

  function makeRow(place) {
    const row = element("tr");
    row.setAttribute("aria-rowindex", place + 2);
    row.append(...shown().map((column) => cell(column, found[place])));
    return row;
  }

  const shown = () => columns.filter((column) => !column.heading.hidden);
  const spaces = [0, 1].map(() => {
    const row = element("tr", undefined, "space");
    row.setAttribute("aria-hidden", "true");
    row.append(element("td"));
    return row;
  });

  function stretch(space, pixels) {
    space.firstChild.style.height = `${pixels}px`;
    space.hidden = pixels === 0;
  }

  // Rows scroll one to one until there are more than a browser can hold; then the scroll bar runs faster.
  function geometry() {
    const total = found.length * HEIGHT;
    const tall = Math.min(total, TALLEST);
    const view = Math.max(HEIGHT, region.clientHeight - table.tHead.offsetHeight);
    const pace = tall > view ? (total - view) / (tall - view) : 1;
    return { total, tall, view, pace, fit: Math.max(1, Math.floor(view / HEIGHT)) };
  }

  const held = () => (body.contains(document.activeElement) ? current : -1);
  // Rows that stay are left alone, and the one with the focus stays wherever the view goes.
  function draw(beyond = BEYOND) {
    const { tall, view, pace, fit } = geometry();
    above = region.scrollTop * pace;
    const first = Math.floor(above / HEIGHT);
    const lead = Math.ceil((above - region.scrollTop) / HEIGHT);
    const start = Math.max(0, Math.min(first, Math.max(first - beyond, lead)));
    const stop = Math.min(found.length, Math.ceil((above + view) / HEIGHT) + beyond);
    const wanted = Array.from({ length: Math.max(0, stop - start) }, (_, i) => start + i);
    const focused = held();
    if (focused >= 0 && focused < start) wanted.unshift(focused);
    if (focused >= stop) wanted.push(focused);
    const before = Math.max(0, region.scrollTop + start * HEIGHT - above - (wanted[0] < start ? HEIGHT : 0));
    stretch(spaces[1], tall); // or the view would be moved up while rows are taken out
    fill(new Set(wanted), wanted);
    stretch(spaces[0], before);
    stretch(spaces[1], Math.max(0, tall - before - wanted.length * HEIGHT));
    if (focused < 0 && (current < topRow() || current >= topRow() + fit)) current = topRow();
    for (const row of body.querySelectorAll("[aria-rowindex]"))
      row.cells[0].firstChild.tabIndex = placeOf(row) === current ? 0 : -1;
    later(tell);
  }

  function fill(kept, wanted) {
    for (const row of [...body.rows])
      if (!spaces.includes(row) && !kept.has(placeOf(row))) row.remove();
    let next = spaces[0].nextSibling;
    for (const place of wanted) {
      if (next !== spaces[1] && placeOf(next) === place) next = next.nextSibling;
      else spaces[1].parentNode.insertBefore(makeRow(place), next);
    }
  }

  function redraw() {
    if (held() >= 0) region.focus({ preventScroll: true });
    body.replaceChildren(...spaces);
    spaces.forEach((space, i) => stretch(space, i * geometry().tall));
    table.setAttribute("aria-rowcount", found.length + 1);
  }

  const topRow = () => Math.min(Math.ceil(above / HEIGHT - 0.05), Math.max(0, found.length - 1));

  function go(pixels) {
    const { total, view, pace } = geometry();
    region.scrollTop = Math.max(0, Math.min(pixels, total - view)) / pace;
    draw();
  }

  function select(row = 0) {
    const all = conditions();
    found = latents.order(sort).filter((i) => all.every((holds) => holds(i)));
    for (const { heading, name } of columns) heading.setAttribute("aria-sort", name === sorted() ? way() : "none");
    for (const field of FILTERS) fields[field].toggleAttribute("data-set", fields[field].value !== "");
    current = row;
    redraw();
    go(row * HEIGHT);
    tell();
  }

  // --- columns
  function arrange() {
    const names = new Set(shownNames());
    let sum = 0;
    for (const column of columns) {
      column.heading.hidden = column.kind !== "key" && !names.has(column.name);
      column.heading.style.width = `${column.width}ch`;
      if (!column.heading.hidden) sum += column.width;
    }
    table.style.minWidth = `${sum}ch`;
    for (const space of spaces) space.firstChild.colSpan = shown().length;
  }

  // Widths in digits of the table's type: letters are narrower, and no row may change them.
  function measure() {
    const letters = (length) => 0.88 * Math.min(WIDEST, length);
    const longest = (name) => letters(Math.max(0, ...words[name].map((one) => one.length)));
    const digits = `${values.latent.reduce((a, b) => Math.max(a, b), 0)}`.length;
    for (const column of columns) {
      const text = { key: () => longest("site") + 2 + digits, word: () => longest(column.name) };
      const inner = text[column.kind]?.() ?? 7.5 + (column.beside ? longest(column.beside) : 0);
      column.width = Math.max(inner, letters(column.heading.textContent.length) + 1.5) + 2.2;
    }
  }

  // --- the address
  function link() {
    const asked = new URLSearchParams();
    for (const name of FILTERS) if (fields[name].value) asked.set(name, fields[name].value);
    if (fields.paged.checked) asked.set("paged", "1");
    if (sort) asked.set("sort", sort);
    if (shownNames().join() !== usual) asked.set("columns", shownNames().join());
    if (topRow() > 0) asked.set("row", topRow() + 1);
    return asked.toString().replaceAll("%2C", ",");
  }

  const readers = {
    q: (value) => ((fields.q.value = value), true),
    paged: (value) => (fields.paged.checked = value === "1"),
    sort: (value) => columns.some(({ name }) => name === value.replace(/^-/, "")) && ((sort = value), true),
    columns: (value) => {
      const names = value.split(",").filter(Boolean);
      for (const check of checks) check.checked = names.includes(check.value);
      const strange = names.filter((name) => !checks.some((check) => check.value === name));
      ignored.push(...strange.map((name) => `columns ${name}`));
      return true;
    },
    row: (value) => /^[1-9]\d*$/.test(value),
  };
  for (const name of CHOICES)
    readers[name] = (value) => words[name].includes(value) && ((fields[name].value = value), true);
  for (const name of ["effect", "q_value"])
    readers[name] = (value) => Number(value) >= 0 && ((fields[name].value = value), fields[name].value !== "");

  const asks = () => location.hash.includes("="); // and does not lead to a place in the page, as #main does

  function follow() {
    const asked = new URLSearchParams(asks() ? location.hash.slice(1) : "");
    controls.reset();
    [sort, ignored] = ["", []];
    for (const [name, value] of asked)
      if (!Object.hasOwn(readers, name) || !readers[name](value)) ignored.push(`${name} ${value}`);
    arrange();
    const row = ignored.some((one) => one.startsWith("row ")) ? 1 : Number(asked.get("row") ?? 1);
    select(row - 1);
    if (row > Math.max(1, found.length)) ignored.push(`row ${row}`);
    tell();
  }

  function save() {
    const asked = link();
    if (asked === location.hash.slice(1)) return;
    history.replaceState(null, "", location.href.split("#")[0] + (asked ? `#${asked}` : ""));
  }

  function range(first, last) {
    const outOf = found.length < n ? ` (${count(n)} in all)` : "";
    const rows = `rows ${count(first + 1)}–${count(last)} of ${count(found.length)}`;
    return (found.length ? rows : "No latent matches") + outOf;
  }

  function tell() {
    const first = topRow();
    const last = Math.max(first + 1, Math.min(found.length, Math.floor((above + geometry().view) / HEIGHT + 0.05)));
    const left = ignored.length ? `. The link asked for what is not here: ${ignored.join(", ")}` : "";
    const text = range(first, last) + left;
    if (status.textContent !== text) status.textContent = text;
    const places = [...body.querySelectorAll("[aria-rowindex]")].map(placeOf);
    at("printed").textContent = [range(places[0], places.at(-1) + 1), ...inWords()].join("; ");
    at("back").setAttribute("aria-disabled", first === 0);
    at("forth").setAttribute("aria-disabled", last >= found.length);
    save();
  }

  function later(action) { // once the scrolling rests
    clearTimeout(later.waiting);
    later.waiting = setTimeout(action, 120);
  }

  // --- what a reader does
  function change(row = 0) {
    ignored = [];
    select(row);
  }

  // First activation sorts the way one usually wants, the second the other way, the third restores.
  function sortBy({ name, first }) {
    const [usually, otherwise] = first === "down" ? [`-${name}`, name] : [name, `-${name}`];
    sort = sort === usually ? otherwise : sort === otherwise ? "" : usually;
    change();
  }

  function turn(screens) {
    ignored = [];
    go((topRow() + screens * geometry().fit) * HEIGHT);
    tell();
  }

  // In a row the keys move from row to row; with the focus on the region around them they scroll.
  function step(event) {
    const { fit, view } = geometry();
    const steps = { ArrowDown: 1, ArrowUp: -1, PageDown: fit, PageUp: -fit, Home: -Infinity, End: Infinity };
    if (!(event.key in steps) || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
    if (event.target !== region && !body.contains(event.target)) return;
    event.preventDefault();
    if (event.target === region) return go(above + steps[event.key] * HEIGHT);
    current = Math.max(0, Math.min(current + steps[event.key], found.length - 1));
    const here = current * HEIGHT;
    if (here < above) go(here);
    else if (here + HEIGHT > above + view) go(here + HEIGHT - view);
    else draw();
    const row = [...body.rows].find((one) => placeOf(one) === current);
    row.cells[0].firstChild.focus({ preventScroll: true });
  }

  // A key that is a character may lead away only from the table itself and what belongs to it (WCAG 2.1.4).
  function seek(event) {
    if (event.key !== "/" || event.ctrlKey || event.metaKey || event.altKey) return;
    if (event.target.closest("input:not([type=checkbox]), select")) return;
    event.preventDefault();
    at("search").focus();
  }

  // What is printed are the rows in view and no others, also when the focus is on a row elsewhere.
  function print() {
    if (held() >= 0) region.focus({ preventScroll: true });
    draw(0);
    tell();
  }

  function listen() {
    for (const column of columns) {
      column.heading.firstElementChild.disabled = false;
      column.heading.firstElementChild.addEventListener("click", () => sortBy(column));
    }
    controls.addEventListener("submit", (event) => event.preventDefault());
    controls.addEventListener("input", (event) => {
      if (event.target.name !== "column") return change();
      arrange();
      change(topRow());
    });
    at("restore").addEventListener("click", () => {
      controls.reset();
      sort = "";
      arrange();
      change();
    });
    for (const [id, screens] of [["back", -1], ["forth", 1]])
      at(id).addEventListener("click", ({ target }) => target.ariaDisabled !== "true" && turn(screens));
    region.addEventListener("scroll", () => requestAnimationFrame(() => draw()));
    region.addEventListener("keydown", step);
    body.addEventListener("focusin", ({ target }) => (current = placeOf(target.closest("tr"))));
    body.addEventListener("click", save);
    window.addEventListener("resize", () => draw());
    window.addEventListener("hashchange", () => (asks() || !location.hash ? follow() : save()));
    window.addEventListener("beforeprint", print);
    window.addEventListener("afterprint", () => draw());
    for (const part of [controls, region, at("pager")]) part.addEventListener("keydown", seek);
  }

  function option(text) {
    const made = element("option", text);
    made.value = text; // the text alone would lose doubled spaces
    return made;
  }

  function start(given) {
    latents = iclens.latents(given);
    ({ words, values, n } = latents);
    for (const name of CHOICES) fields[name].append(...words[name].map(option));
    measure();
    table.tHead.rows[0].setAttribute("aria-rowindex", 1);
    region.classList.add("window");
    for (const id of ["controls", "pager"]) at(id).hidden = false;
    follow();
    listen();
  }

  iclens.need("latents").then(start).catch((problem) => {
    at("problem").textContent = `Only the first rows can be shown: ${problem.message}.`;
  });
})();
