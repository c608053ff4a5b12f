// The comparison: a table to sort, with columns to choose.
"use strict";

report.drawTable = (() => {
  const { data, state, element, compare } = report;
  const filled = (values) => values.some((value) => value !== "" && value !== null);

  const single = data.lines.every((line) => line.seeds.length < 2);

  // Columns of words, before those of numbers; `hidden` ones can be chosen.
  const words = [
    { key: "model", title: "model", of: (line) => line.model },
    { key: "n", title: "layers", of: (line) => line.n, text: (line) => `${line.n}/${line.numLayers}`,
      number: true },
    { key: "pruner", title: "pruner", of: (line) => line.pruner },
    { key: "patch", title: "patch", of: (line) => line.patch },
    { key: "distill", title: "distill", of: (line) => (line.distill === "none" ? "" : line.distill) },
    { key: "settings", title: "settings", of: (line) => line.settings, wide: true },
    { key: "stage", title: "stage", of: (line) => line.stage, hidden: true },
    { key: "seeds", title: "seeds", of: (line) => line.seeds.length, number: true, digits: 0, hidden: single },
    { key: "removed", title: "removed layers", of: (line) => ranges(line.removed), hidden: true, wide: true },
  ].filter((column) => filled(data.lines.map(column.of)));
  const numbers = data.columns.map((column, at) => ({
    ...column,
    number: true,
    hidden: !column.shown,
    of: (line) => line.values[at]?.v ?? null,
    full: (line) => line.values[at],
  }));
  const columns = [...words, ...numbers];

  /** Layers of each seed as ranges. */
  function ranges(sets) {
    const texts = sets.map((layers) => {
      const found = [];
      for (const layer of layers) {
        const last = found.at(-1);
        if (last && last[1] === layer - 1) last[1] = layer;
        else found.push([layer, layer]);
      }
      return found.map(([low, high]) => (low === high ? `${low}` : `${low}-${high}`)).join(", ");
    });
    return [...new Set(texts)].join("; ");
  }

  const shown = (value, digits) =>
    value.toLocaleString("en", { minimumFractionDigits: digits, maximumFractionDigits: digits });

  function cell(column, line) {
    const value = column.of(line);
    const td = element("td", { className: column.number ? "number" : column.wide ? "wide" : "" });
    if (value === null || value === "") return td;
    td.append(column.text ? column.text(line) : column.number ? shown(value, column.digits) : String(value));
    const full = column.full?.(line);
    if (!full) return td;
    td.title = data.protocols[full.p];
    const error = full.s ?? full.e;
    if (error !== undefined) td.append(element("span", { className: "spread" }, ` ± ${shown(error, column.digits)}`));
    if (full.m) td.append(element("sup", {}, full.m));
    return td;
  }

  /** Lines in order: empty cells last, whichever way. */
  function sorted(lines) {
    const column = columns.find((one) => one.key === state.sort.by);
    if (!column) return lines;
    const sign = state.sort.down ? -1 : 1;
    const isEmpty = (value) => value === null || value === "";
    return [...lines].sort((one, other) => {
      const [a, b] = [column.of(one), column.of(other)];
      if (isEmpty(a) || isEmpty(b)) return Number(isEmpty(a)) - Number(isEmpty(b));
      return sign * compare(a, b);
    });
  }

  function head(column, redraw) {
    const active = state.sort.by === column.key;
    const button = element("button", { type: "button" }, column.title, element("span", { className: "arrow" }));
    button.dataset.key = column.key;
    button.addEventListener("click", () => {
      state.sort = { by: column.key, down: active && !state.sort.down };
      redraw();
      document.querySelector(`#lines th button[data-key="${CSS.escape(column.key)}"]`)?.focus();
    });
    const sort = active ? (state.sort.down ? "descending" : "ascending") : "none";
    return element("th", { scope: "col", className: column.number ? "number" : "", "aria-sort": sort }, button);
  }

  function drawChoices(place, redraw) {
    for (const column of columns) {
      const box = element("input", { type: "checkbox", checked: !column.hidden });
      if (box.checked) state.columns.add(column.key);
      box.addEventListener("change", () => {
        if (box.checked) state.columns.add(column.key);
        else state.columns.delete(column.key);
        redraw();
      });
      place.append(element("label", {}, box, column.title));
    }
  }

  return () => {
    const table = document.getElementById("lines");
    const redraw = () => {
      const chosen = columns.filter((column) => state.columns.has(column.key));
      const lines = sorted(report.visible());
      table.tHead.replaceChildren(
        element("tr", {}, ...chosen.map((column) => head(column, redraw)), element("th", { scope: "col" }, "runs")),
      );
      const rows = lines.map((line) => {
        const open = element("button", { type: "button", className: "open" }, String(line.runs.length));
        open.setAttribute("aria-label", `Details of ${line.model}, ${line.name}`);
        const row = element("tr", {}, ...chosen.map((column) => cell(column, line)), element("td", {}, open));
        row.className = line.stage === "dense" ? "dense" : "";
        row.addEventListener("click", () => report.showDetails(line));
        return row;
      });
      table.tBodies[0].replaceChildren(...rows);
      document.getElementById("count").textContent = `${lines.length} of ${data.lines.length} lines`;
    };
    drawChoices(document.querySelector("#columns .choices"), redraw);
    report.listeners.push(redraw);
  };
})();
