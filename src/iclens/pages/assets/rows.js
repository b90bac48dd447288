"use strict";
// The rows behind the table of all latents: what data/latents.js gives, what order they have, which a search finds.
window.iclens.latents = ({ rows: n, words, values: written }) => {
  const SEARCHED = ["site", "role", "verdict", "label", "concept", "belief", "follows"];

  const values = {};
  for (const [name, joined] of Object.entries(written)) {
    const parts = n ? joined.split(" ") : [];
    const numbers = Float64Array.from(parts, (part) => (part === "" ? NaN : Number(part)));
    if (numbers.length !== n) throw new Error("data/latents.js is damaged; write the pages again");
    values[name] = numbers;
  }
  const keys = { ...values, latent: values.site.map((site, i) => site * 2 ** 32 + values.latent[i]) };
  const word = (name, i) => words[name][values[name][i]] ?? "";

  // Places of the rows by a column, named after "-" when descending. Undefined values stay last in both
  // directions; equal ones keep the table's own order.
  const orders = new Map();
  function order(sort) {
    if (!orders.has(sort)) {
      const key = keys[sort.replace("-", "")];
      const sign = sort.startsWith("-") ? -1 : 1;
      const places = Uint32Array.from({ length: n }, (_, i) => i);
      if (key) places.sort((a, b) => isNaN(key[a]) - isNaN(key[b]) || sign * (key[a] - key[b]) || a - b);
      orders.set(sort, places);
    }
    return orders.get(sort);
  }

  // A word of a search is looked up among the words of each column, once, and not row by row. A latent is also
  // found as pages, links and hooks name it: L2.mlp_out-42, L2.mlp_out/42, blocks.2.hook_mlp_out.
  function contains(term) {
    const flags = SEARCHED.map((name) => [values[name], words[name].map((one) => one.toLowerCase().includes(term))]);
    const digits = /^\d+$/.test(term);
    const [, place, id] = /^(.+?)[-/·](\d+)$/.exec(term) ?? [undefined, term];
    const sites = words.site.map((one) => {
      const name = one.toLowerCase();
      return [name, name.replace(/^l(\d+)\./, "blocks.$1.hook_")].includes(place);
    });
    return (i) =>
      flags.some(([codes, has]) => has[codes[i]]) ||
      (digits && String(values.latent[i]).includes(term)) ||
      (sites[values.site[i]] && (id === undefined || String(values.latent[i]) === id));
  }

  return { n, words, values, word, order, contains };
};
