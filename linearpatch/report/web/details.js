// What is behind a line: its runs with command and configuration. And the tables of the report, and what was left out.
"use strict";

(() => {
  const { data, element } = report;
  let runs = null; // read when first asked for

  function facts(pairs) {
    const items = pairs.filter(([, value]) => value !== "" && value !== null && value !== undefined);
    return element("dl", {}, ...items.flatMap(([name, value]) => [
      element("dt", {}, name), element("dd", {}, String(value)),
    ]));
  }

  function content(title, value, open = false) {
    const text = typeof value === "string" ? value : JSON.stringify(value, null, 2);
    return element("details", { open }, element("summary", {}, title), element("pre", {}, text));
  }

  function run(record) {
    const packages = Object.entries(record.environment?.packages ?? {}).map(([name, version]) => `${name} ${version}`);
    const seconds = Object.values(record.timings_s ?? {}).reduce((sum, value) => sum + value, 0);
    const peak = Math.max(0, ...Object.values(record.peak_memory_bytes ?? {}));
    return element("article", {},
      element("h3", {}, record.run_id),
      facts([
        ["folder", record.folder], ["seed", record.seed], ["remark", record.remark],
        ["removed layers", (record.pruning?.removed_layers ?? []).join(", ")],
        ["time", seconds ? `${seconds.toFixed(1)} s` : ""],
        ["peak memory", peak ? `${(peak / 2 ** 20).toFixed(0)} MiB` : ""],
        ["measured with", packages.join(", ")],
      ]),
      content("Command", record.command || "not recorded", true),
      content("Configuration", record.config),
      content("Everything else in the record", Object.fromEntries(
        Object.entries(record).filter(([name]) => !["config", "command", "folder", "run_id"].includes(name)))),
    );
  }

  report.showDetails = (line) => {
    runs ??= JSON.parse(document.getElementById("runs").textContent);
    const dialog = document.getElementById("details");
    const what = [line.model, `${line.n} of ${line.numLayers} layers removed`, line.name];
    document.getElementById("details-title").textContent = what.filter(Boolean).join(", ");
    const measured = Object.entries(line.values).map(([at, value]) => {
      const column = data.columns[Number(at)];
      const error = value.s ?? value.e;
      const spread = error === undefined ? "" : ` ± ${error.toFixed(column.digits)}`;
      const bare = value.v.toFixed(column.digits);
      return element("tr", {},
        element("th", { scope: "row" }, column.title), element("td", { className: "number" }, bare + spread),
        element("td", {}, data.protocols[value.p]));
    });
    document.getElementById("details-body").replaceChildren(
      element("details", {}, element("summary", {}, report.counted(measured.length, "number")),
        element("div", { className: "scroll" }, element("table", {}, element("tbody", {}, ...measured)))),
      ...line.runs.map((at) => run(runs[at])),
    );
    dialog.showModal();
    dialog.scrollTop = 0;
  };

  function table(one) {
    const cell = (value, at) => {
      const long = typeof value === "string" && value.length > 36;
      const td = element("td", { className: one.numbers[at] ? "number" : long ? "wide" : "" });
      if (typeof value === "string") td.append(value);
      else {
        td.append(value.b ? element("strong", {}, value.t) : value.t);
        if (value.m) td.append(element("sup", {}, value.m));
      }
      return td;
    };
    const heads = one.heads.map((title, at) =>
      element("th", { scope: "col", className: one.numbers[at] ? "number" : "" }, title));
    const bodies = one.groups.map((lines) =>
      element("tbody", {}, ...lines.map((line) => element("tr", {}, ...line.map(cell)))));
    return element("div", {},
      element("div", { className: "scroll", tabIndex: 0 },
        element("table", {}, element("thead", {}, element("tr", {}, ...heads)), ...bodies)),
      element("ul", { className: "notes" }, ...one.notes.map((note) => element("li", {}, note))));
  }

  report.drawTables = (place) => {
    for (const one of data.tables) {
      const box = element("details", { id: `table-${one.name}` }, element("summary", {}, one.title));
      box.addEventListener("toggle", () => {
        if (box.open && box.children.length === 1) box.append(table(one)); // drawn when first opened
      });
      place.append(box);
    }
  };

  report.drawLeftOut = (place) => {
    const nothing = data.failures.length === 0 && data.remarks.length === 0;
    place.hidden = nothing;
    document.getElementById("left-out-link").hidden = nothing;
    if (data.failures.length) {
      const rows = data.failures.map((failure) => element("tr", {},
        element("td", {}, failure.run_id), element("td", {}, failure.status), element("td", {}, failure.reason),
        element("td", {}, failure.folder)));
      const heads = ["run", "status", "reason", "folder"].map((title) => element("th", { scope: "col" }, title));
      place.append(element("div", { className: "scroll" },
        element("table", { id: "failures" }, element("thead", {}, element("tr", {}, ...heads)),
          element("tbody", {}, ...rows))));
    }
    place.append(element("ul", { className: "notes" }, ...data.remarks.map((remark) => element("li", {}, remark))));
  };
})();
