// Draw everything: filters, matrix and table at once, figures once those can be seen.
"use strict";

(() => {
  const { data, counted } = report;
  const dialog = document.getElementById("details");
  document.getElementById("title").textContent = data.title;
  const models = new Set(data.lines.map((line) => line.model)).size;
  const runs = new Set(data.lines.flatMap((line) => line.runs)).size;
  const left = data.failures.length ? `, ${data.failures.length} left out` : "";
  document.getElementById("summary").textContent =
    `${counted(runs, "run")} of ${counted(models, "model")}: ${counted(data.lines.length, "line")} to compare${left}`;
  document.getElementById("close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog) dialog.close(); // beside the dialog
  });
  report.drawFilters(document.getElementById("filters"));
  report.drawMatrix(document.getElementById("matrix"));
  report.drawTable();
  report.drawTables(document.getElementById("tables"));
  report.drawLeftOut(document.getElementById("left-out"));
  report.changed();
  performance.mark("lines");
  requestAnimationFrame(() => setTimeout(() => {
    report.drawFigures(document.getElementById("figures"), document.getElementById("more-figures"));
    report.changed();
    performance.mark("all");
    document.body.dataset.ready = "all";
  }));
})();
