// Plots that follow the filters.
"use strict";

report.drawPlots = (() => {
  const { data, element } = report;
  const colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c6d31"];
  const symbols = ["circle", "square", "triangle-up", "diamond", "cross", "x", "triangle-down", "star"];
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const plain = ["none", "scalar", "diag", "rotate", "lstsq", "mlp_lstsq"];
  const many = 14; // series that a legend can name

  const patchOf = (line) => line.patch + (line.distill && line.distill !== "none" ? ` + ${line.distill}` : "");
  const distinct = (values) => [...new Set(values)];
  const rank = (name) => (plain.includes(name) ? plain.indexOf(name) : plain.length);
  const pruned = data.lines.filter((line) => line.stage !== "dense");
  const patches = distinct(pruned.map(patchOf)).sort((a, b) => rank(a) - rank(b) || a.localeCompare(b));
  const pruners = distinct(pruned.map((line) => line.pruner)).sort();
  const models = distinct(data.lines.map((line) => line.model));
  const columnsOf = (kind) => data.columns.map((column, at) => ({ ...column, at })).filter((c) => c.kind === kind);

  // plotly reads a few tags and entities in texts; names of models and runs are no markup.
  const text = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function layout(xTitle, yTitle, more = {}) {
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zeroline: false, automargin: true };
    return {
      margin: { l: 56, r: 12, t: 8, b: 44 },
      font: { family: "system-ui, sans-serif", size: 12, color: colour("--ink") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hovermode: "closest",
      legend: { orientation: "h", y: -0.22, font: { size: 11 } },
      xaxis: { ...axis, title: { text: xTitle } },
      yaxis: { ...axis, title: { text: yTitle }, ...more },
    };
  }

  const name = (line) =>
    line.stage === "dense" ? "dense" : [line.pruner, patchOf(line)].filter(Boolean).join(" · ");
  const hover = (line) =>
    `${text(line.model)}, ${line.n} of ${line.numLayers} layers<br>${text(name(line))}` +
    (line.settings ? `<br>${text(line.settings)}` : "") + "<br>%{x}, %{y:.4~g}<extra></extra>";

  const style = (line) => {
    if (line.stage === "dense") return { color: colour("--ink"), symbol: "x", dash: "dot" };
    const at = patches.indexOf(patchOf(line));
    const pruner = pruners.indexOf(line.pruner);
    const color = colours[at % colours.length];
    return { color, symbol: symbols[pruner % symbols.length], dash: dashes[pruner % dashes.length] };
  };

  /** One series for each model, pruner, patch, setting and way of measuring. */
  function series(lines, column, xOf, mode) {
    const groups = new Map();
    for (const line of lines) {
      const value = line.values[column.at];
      const x = xOf(line);
      if (!value || x === null) continue;
      const key = JSON.stringify([line.model, name(line), line.settings, value.p]);
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push({ line, value, x });
    }
    return [...groups.values()].map((points) => {
      points.sort((a, b) => a.x - b.x);
      const first = points[0].line;
      const look = style(first);
      const title = [models.length > 1 ? first.model : "", name(first), first.settings].filter(Boolean).join(" · ");
      const arm = (point, end) => (point.value.i ? Math.abs(point.value.i[end] - point.value.v) : 0);
      return {
        type: "scatter",
        mode: first.stage === "dense" ? "markers" : mode,
        name: text(title),
        x: points.map((point) => point.x),
        y: points.map((point) => point.value.v),
        customdata: points.map((point) => data.lines.indexOf(point.line)),
        hovertemplate: points.map((point) => hover(point.line)),
        marker: { color: look.color, symbol: look.symbol, size: 8 },
        line: { color: look.color, dash: look.dash, width: 1.6 },
        error_y: {
          type: "data", symmetric: false, thickness: 1, width: 0, visible: points.some((point) => point.value.i),
          array: points.map((point) => arm(point, 1)), arrayminus: points.map((point) => arm(point, 0)),
        },
      };
    });
  }

  function map(lines) {
    const rows = lines.filter((line) => line.stage !== "dense");
    const found = new Map();
    for (const line of rows) {
      const label = [models.length > 1 ? line.model : "", line.pruner, line.n].filter((part) => part !== "").join(" ");
      if (!found.has(label)) found.set(label, { sets: new Map(), layers: line.numLayers });
      for (const set of line.removed) found.get(label).sets.set(set.join(), set);
    }
    const width = Math.max(0, ...[...found.values()].map((row) => row.layers));
    const z = [...found.values()].map(({ sets, layers }) =>
      Array.from({ length: width }, (_, layer) =>
        layer >= layers ? null : [...sets.values()].filter((set) => set.includes(layer)).length / sets.size));
    return {
      traces: [{
        type: "heatmap", z, y: [...found.keys()].map(text), x: Array.from({ length: width }, (_, layer) => layer),
        xgap: 1, ygap: 2, showscale: false, zmin: 0, zmax: 1,
        colorscale: [[0, colour("--faint")], [1, "#0072b2"]],
        hovertemplate: "%{y}: layer %{x}, removed in %{z:.0%} of the choices<extra></extra>",
      }],
      rows: found.size,
    };
  }

  /** A card with a plot, and a choice where several columns could be shown. */
  function card(place, title, choices, draw) {
    const pick = element("select", { "aria-label": `What to show: ${title}` },
      ...choices.map((column, at) => element("option", { value: String(at) }, column.title)));
    pick.hidden = choices.length < 2;
    const body = element("div", { className: "plot" });
    place.append(element("figure", {}, element("figcaption", {}, element("h2", {}, title), pick), body));
    const redraw = () => {
      const { traces, layout: made } = draw(report.visible(), choices[Number(pick.value)] ?? choices[0], body);
      made.showlegend = traces.length > 1 && traces.length <= many;
      window.Plotly.react(body, traces, made, { displaylogo: false, responsive: true, displayModeBar: false });
      if (!body.dataset.ready) {
        body.dataset.ready = "yes";
        body.on("plotly_click", (event) => {
          const at = event.points[0]?.customdata;
          if (at !== undefined) report.showDetails(data.lines[at]);
        });
      }
    };
    pick.addEventListener("change", redraw);
    report.listeners.push(redraw);
    window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", redraw);
  }

  return (place) => {
    const layers = (line) => line.n;
    const whole = { tickformat: "d" };
    const integers = (made) => ({ ...made, xaxis: { ...made.xaxis, ...whole, rangemode: "tozero" } });
    const perplexities = columnsOf("perplexity");
    if (perplexities.length) {
      card(place, "Perplexity", perplexities, (lines, column) => ({
        traces: series(lines, column, layers, "lines+markers"),
        layout: integers(layout("layers removed", "perplexity", { type: "log", dtick: "D1" })),
      }));
    }
    const kept = columnsOf("retained");
    if (kept.length) {
      card(place, "Retained performance", kept, (lines, column) => ({
        traces: series(lines, column, layers, "lines+markers"),
        layout: integers(layout("layers removed", "retained, %")),
      }));
    }
    const pairs = perplexities.flatMap((quality) =>
      columnsOf("speed").map((speed) => ({ ...quality, speed, title: `${quality.title} / ${speed.title}` })));
    if (pairs.length) {
      card(place, "Quality against speed", pairs, (lines, pair) => ({
        traces: series(lines, pair, (line) => line.values[pair.speed.at]?.v ?? null, "markers"),
        layout: layout(pair.speed.title, "perplexity", { type: "log", dtick: "D1" }),
      }));
    }
    if (pruned.length) {
      card(place, "Removed layers", [], (lines, _, body) => {
        const { traces, rows } = map(lines);
        body.style.height = `${Math.min(640, Math.max(200, 80 + 20 * rows))}px`;
        const made = layout("layer", "", { autorange: "reversed", showgrid: false, type: "category", title: "" });
        return { traces, layout: { ...made, xaxis: { ...made.xaxis, showgrid: false } } };
      });
    }
  };
})();
