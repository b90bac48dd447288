"use strict";
// Rows come from data/*.js on demand: a page opened from disk cannot fetch, but it can add a script.
//   iclens.need("latents").then((rows) => …)   asks for data/latents.js, once
//   iclens.give("latents", […])                 is what that file says
window.iclens = (() => {
  const folder = new URL("../data/", document.currentScript.src);
  const asked = new Map();
  function need(name) {
    if (!asked.has(name)) {
      const entry = {};
      entry.promise = new Promise((resolve, reject) => Object.assign(entry, { resolve, reject }));
      asked.set(name, entry);
      const script = document.createElement("script");
      script.src = new URL(`${name}.js`, folder);
      const failed = () => entry.reject(new Error(`data/${name}.js is missing or damaged; write the pages again`));
      script.addEventListener("error", failed);
      script.addEventListener("load", failed); // too late when it gave what was asked
      document.head.append(script);
    }
    return asked.get(name).promise;
  }
  const give = (name, value) => asked.get(name)?.resolve(value);
  return { need, give };
})();
