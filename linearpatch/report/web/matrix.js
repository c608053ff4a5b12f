// Any two recipes compared: rows minus columns, of two sizes to choose.
"use strict";

report.drawMatrix = (() => {
  const { data, element } = report;
  const most = 12; // columns

  /** The difference of two lines: [value, low, high, adjusted p, basis, reason], whichever way it was computed. */
  function between(differences, row, column) {
    const found = differences.pairs.get(`${row},${column}`);
    if (found) return found;
    const other = differences.pairs.get(`${column},${row}`);
    if (!other) return null;
    const [value, low, high, ...rest] = other;
    const turned = (number) => {
      if (number === null) return null;
      return differences.unit === "%" ? (-100 * number) / (100 + number) : -number;
    };
    return [turned(value), turned(high), turned(low), ...rest];
  }

  const signed = (value) => (value > 0 ? "+" : value < 0 ? "−" : "") + Math.abs(value).toFixed(1);

  function cell(found, lowerIsBetter) {
    const td = element("td", { className: "number" });
    if (!found) return td;
    const [value, low, high, adjusted, basis, reason] = found;
    td.title = [basis && `paired over ${basis}`, adjusted !== null && `p (Holm) ${adjusted.toPrecision(2)}`, reason]
      .filter(Boolean).join("; ");
    if (value === null) td.append(element("span", { className: "quiet" }, reason));
    else if (low === 0 && high === 0) td.append(element("span", { className: "quiet" }, "identical"));
    else {
      const telling = adjusted !== null && adjusted < data.level;
      td.className += telling ? ((value < 0) === lowerIsBetter ? " better" : " worse") : " quiet";
      td.append(telling ? element("strong", {}, signed(value)) : signed(value));
      const interval = low === null || high === null ? "no interval" : `[${signed(low)}, ${signed(high)}]`;
      td.append(element("span", { className: "interval" }, interval));
    }
    return td;
  }

  return (place) => {
    place.hidden = data.differences.length === 0;
    if (place.hidden) return;
    for (const one of data.differences) {
      one.pairs = new Map(one.pairs.map(([row, column, ...rest]) =>
        [`${row},${column}`, [...rest.slice(0, 4), data.words[rest[4]], data.words[rest[5]]]]));
    }
    const choose = (label, options) => {
      const pick = element("select", { "aria-label": label },
        ...options.map(([value, title]) => element("option", { value: String(value) }, title)));
      pick.addEventListener("change", () => redraw());
      return pick;
    };
    const metric = choose("Metric", data.differences.map((one, at) => [at, one.title]));
    const all = [...new Set(data.lines.map((line) => line.n))].sort((a, b) => a - b);
    const named = all.map((size) => [size, size === 0 ? "dense" : report.counted(size, "layer")]);
    const [rows, columns] = [choose("Size of the rows", named), choose("Size of the columns", named)];
    const counts = (size) => data.lines.filter((line) => line.n === size).length;
    const largest = all.filter((size) => size > 0).sort((a, b) => counts(b) - counts(a))[0] ?? 0;
    rows.value = String(largest);
    columns.value = String(counts(largest) > 1 ? largest : all[0]); // a single recipe is compared with dense
    const table = element("table", {});
    const notes = element("p", { className: "hint" });
    place.append(element("div", { className: "bar" }, metric, rows, element("span", {}, "minus"), columns),
      element("div", { className: "scroll", tabIndex: 0 }, table), notes);

    const redraw = () => {
      const differences = data.differences[Number(metric.value)];
      const at = data.columns.findIndex((column) => column.key === differences.metric);
      const sign = differences.lowerIsBetter ? 1 : -1;
      const seen = new Set(report.visible());
      const members = (size) => {
        const own = data.lines
          .map((line, index) => ({ line, index, value: line.values[at]?.v, protocol: line.values[at]?.p }))
          .filter(({ line, value }) =>
            line.model === differences.model && line.n === Number(size) && value !== undefined && seen.has(line));
        const alike = new Map(); // how many were measured in the same way: they stand together
        for (const { protocol } of own) alike.set(protocol, (alike.get(protocol) ?? 0) + 1);
        return own.sort((a, b) =>
          alike.get(b.protocol) - alike.get(a.protocol) || a.protocol - b.protocol || sign * (a.value - b.value));
      };
      const [left, top] = [members(rows.value), members(columns.value)];
      const shown = top.slice(0, most);
      const same = rows.value === columns.value;
      const head = shown.map(({ line }, number) => element("th", { scope: "col", className: "number", title: line.name },
        same ? `${number + 1}` : line.name));
      table.replaceChildren(
        element("thead", {}, element("tr", {}, element("th", { scope: "col" }, "recipe"), ...head)),
        element("tbody", {}, ...left.map(({ line, index }, number) => element("tr", {},
          element("th", { scope: "row" }, same ? `${number + 1}  ${line.name}` : line.name),
          ...shown.map((other) => {
            const found = index === other.index ? null : between(differences, index, other.index);
            return cell(found, differences.lowerIsBetter);
          })))));
      notes.textContent = `Row minus column in ${differences.unit}, the best first; below it the 95 % interval of that one `
        + `comparison. Bold: p < ${data.level} by Holm's method over all comparisons of these two sizes (paired t-test). `
        + "Point at a number to see what it is paired over."
        + (left.length && top.length ? "" : " Nothing of these sizes passes the filters.")
        + (same && top.length === 1 ? " There is one recipe of this size: choose another size to compare it with." : "")
        + (differences.acrossSizes ? "" : " Of so many recipes, those of different sizes aren't compared.")
        + (top.length > shown.length ? ` Columns: the best ${shown.length} of ${top.length}.` : "");
    };
    report.listeners.push(redraw);
  };
})();
