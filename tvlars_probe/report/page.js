"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("specs").textContent);
  window.report = drawing(specs);
  document.getElementById("print").addEventListener("click", () => window.print());
  window.addEventListener("beforeprint", () => {
    for (const details of document.querySelectorAll("details:not(.rests)")) details.open = true;
  });
  report.draw(Object.keys(specs)).then(() => (document.documentElement.dataset.ready = "true"));
})();
