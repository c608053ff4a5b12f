// Plots that follow the filters.
"use strict";

report.drawPlots = (() => {
  const { data, element } = report;
  const colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c6d31"];
  const symbols = ["circle", "square", "triangle-up", "diamond", "cross", "x", "triangle-down", "star"];
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const plain = ["none", "scalar", "diag", "rotate", "lstsq", "mlp_lstsq"];
  const filled = ["", "-open", "-dot", "-open-dot"]; // one for each model

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
      showlegend: false, // the key above is that of all plots
      xaxis: { ...axis, title: { text: xTitle } },
      yaxis: { ...axis, title: { text: yTitle }, ...more },
    };
  }

  const name = (line) =>
    line.stage === "dense" ? "dense" : [line.pruner, patchOf(line)].filter(Boolean).join(" · ");
  const hover = (line) =>
    `${text(line.model)}, ${line.n} of ${line.numLayers} layers<br>${text(name(line))}` +
    (line.settings ? `<br>${text(line.settings)}` : "") + "<br>%{text}, %{y:.4~g}<extra></extra>";

  const colourOf = (patch) => colours[patches.indexOf(patch) % colours.length];
  const symbolOf = (pruner) => symbols[pruners.indexOf(pruner) % symbols.length];
  const dashOf = (pruner) => dashes[pruners.indexOf(pruner) % dashes.length];
  const style = (line) => {
    const fill = filled[models.indexOf(line.model) % filled.length];
    if (line.stage === "dense") return { color: colour("--ink"), symbol: `asterisk${fill || "-open"}`, dash: "dot" };
    return { color: colourOf(patchOf(line)), symbol: symbolOf(line.pruner) + fill, dash: dashOf(line.pruner) };
  };

  /** Ticks that tell whole numbers on a logarithmic axis, however much of it is seen. */
  function logarithmic(traces) {
    const values = traces.flatMap((trace) => trace.y).filter((value) => value > 0);
    if (values.length === 0) return { type: "log" };
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const steps = high / low > 100 ? [1, 3] : high / low > 3 ? [1, 2, 5] : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.log10(high) + 1; power += 1) {
      ticks.push(...steps.map((step) => Number((step * 10 ** power).toPrecision(3))));
    }
    return { type: "log", tickvals: ticks, ticktext: ticks.map((tick) => tick.toLocaleString("en")) };
  }

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
      const arm = (point, end) => (point.value.i ? Math.abs(point.value.i[end] - point.value.v) : 0);
      return {
        type: "scatter",
        mode: first.stage === "dense" ? "markers" : mode,
        x: points.map((point) => point.x),
        y: points.map((point) => point.value.v),
        customdata: points.map((point) => data.lines.indexOf(point.line)),
        text: points.map((point) => point.x.toLocaleString("en", { maximumSignificantDigits: 4 })),
        hovertemplate: points.map((point) => hover(point.line)),
        marker: { color: look.color, symbol: look.symbol, size: 8 },
        line: { color: look.color, dash: look.dash, width: 1.6 },
        cliponaxis: false,
        error_y: {
          type: "data", symmetric: false, thickness: 1, width: 0, visible: points.some((point) => point.value.i),
          array: points.map((point) => arm(point, 1)), arrayminus: points.map((point) => arm(point, 0)),
        },
      };
    });
  }

  /** Series beside each other, so that points of the same number of layers don't hide each other; dense has its own. */
  function apart(traces, most) {
    for (const isDense of [true, false]) {
      const own = traces.filter((trace) => (data.lines[trace.customdata[0]].stage === "dense") === isDense);
      const step = Math.min(most / 80, 0.6 / own.length);
      own.forEach((trace, at) => {
        const shift = (at - (own.length - 1) / 2) * step;
        trace.x = trace.x.map((x) => x + shift);
      });
    }
    return traces;
  }

  function map(lines) {
    const rows = lines.filter((line) => line.stage !== "dense");
    rows.sort((a, b) => report.compare(a.model, b.model) || report.compare(a.pruner, b.pruner) || a.n - b.n);
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

  /** What colours, shapes and fills mean, for all plots. */
  function drawKey(place) {
    const shapes = { circle: "●", square: "■", "triangle-up": "▲", diamond: "◆", cross: "✚", x: "✖", "triangle-down": "▼",
      star: "★" };
    const fills = { "": "filled", "-open": "hollow", "-dot": "dotted", "-open-dot": "hollow, dotted" };
    const item = (mark, color, words) => {
      const sign = element("span", { className: "sign", "aria-hidden": "true" }, mark);
      if (color) sign.style.color = color;
      return element("li", {}, sign, words);
    };
    const key = (title, items) =>
      items.length > 1 ? [element("div", {}, element("span", {}, title), element("ul", {}, ...items))] : [];
    place.append(element("div", { className: "key" },
      ...key("Patch", patches.map((patch) => item("●", colourOf(patch), patch))),
      ...key("Pruner", pruners.map((pruner) => item(shapes[symbolOf(pruner)], "", pruner))),
      ...key("Model", models.map((model, at) => item(fills[filled[at % filled.length]], "", model))),
      element("div", {}, element("ul", {}, item("✳", "", "dense")))));
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
    const most = Math.max(1, ...pruned.map(layers));
    const against = (lines, column) => apart(series(lines, column, layers, "lines+markers"), most);
    const integers = (made) => ({ ...made, xaxis: { ...made.xaxis, tickformat: "d", range: [-0.4, most + 0.4] } });
    drawKey(place);
    const perplexities = columnsOf("perplexity");
    if (perplexities.length) {
      card(place, "Perplexity", perplexities, (lines, column) => {
        const traces = against(lines, column);
        return { traces, layout: integers(layout("layers removed", "perplexity", logarithmic(traces))) };
      });
    }
    const kept = columnsOf("retained");
    if (kept.length) {
      card(place, "Retained performance", kept, (lines, column) => ({
        traces: against(lines, column),
        layout: integers(layout("layers removed", "retained, %")),
      }));
    }
    const pairs = perplexities.flatMap((quality) =>
      columnsOf("speed").map((speed) => ({ ...quality, speed, title: `${quality.title} / ${speed.title}` })));
    if (pairs.length) {
      card(place, "Quality against speed", pairs, (lines, pair) => {
        const traces = series(lines, pair, (line) => line.values[pair.speed.at]?.v ?? null, "markers");
        return { traces, layout: layout(pair.speed.title, "perplexity", logarithmic(traces)) };
      });
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
