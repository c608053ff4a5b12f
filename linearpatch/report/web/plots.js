// Plots that follow the filters: quality against layers removed and against cost. A recipe has one look in both.
"use strict";

report.drawPlots = (() => {
  const { data, element } = report;
  const colours = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7f7f7f", "#8c6d31"];
  const symbols = ["circle", "square", "triangle-up", "diamond", "cross", "x", "triangle-left", "star"];
  const dashes = ["solid", "dash", "dot", "dashdot", "longdash", "longdashdot"];
  const mostNamed = 24; // of the key

  const isDense = (line) => line.stage === "dense";
  const models = [...new Set(data.lines.map((line) => line.model))];
  const recipeOf = (line) => (models.length > 1 ? `${line.model}: ${line.name}` : line.name);
  const recipes = [...new Set(data.lines.filter((line) => !isDense(line)).map(recipeOf))];
  const columnsOf = (kind) => data.columns.map((column, at) => ({ ...column, at })).filter((c) => c.kind === kind);

  // plotly reads a few tags and entities in texts; names of models and runs are no markup.
  const text = (value) => String(value).replace(/&/g, "&amp;").replace(/</g, "&lt;").replace(/>/g, "&gt;");
  const cut = (value, most) => (value.length > most ? `${value.slice(0, most - 1)}…` : value);
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

  function look(recipe) {
    const at = recipes.indexOf(recipe);
    const turn = Math.floor(at / colours.length);
    return {
      color: colours[at % colours.length],
      symbol: symbols[(at + turn) % symbols.length] + (at < 64 ? "" : "-open"),
      dash: dashes[(at + turn) % dashes.length],
    };
  }

  function layout(xaxis, yaxis) {
    const axis = { gridcolor: colour("--grid"), linecolor: colour("--line"), zeroline: false, automargin: true };
    return {
      margin: { l: 56, r: 12, t: 8, b: 44 },
      font: { family: "system-ui, sans-serif", size: 12, color: colour("--ink") },
      paper_bgcolor: "rgba(0,0,0,0)",
      plot_bgcolor: "rgba(0,0,0,0)",
      hovermode: "closest",
      showlegend: false, // the key above is that of all plots
      xaxis: { ...axis, ...xaxis },
      yaxis: { ...axis, ...yaxis },
    };
  }

  /** Ticks that tell whole numbers on a logarithmic axis, however little it spans. */
  function logarithmic(values) {
    const known = values.filter((value) => value > 0);
    if (known.length === 0) return { type: "log" };
    const [low, high] = [Math.min(...known), Math.max(...known)];
    if (high / low < 1.6) return { type: "log", nticks: 6, tickformat: "~g" };
    const steps = high / low > 100 ? [1, 3] : high / low > 5 ? [1, 2, 5] : [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 7, 8, 9];
    const ticks = [];
    for (let power = Math.floor(Math.log10(low)) - 1; power <= Math.log10(high) + 1; power += 1) {
      ticks.push(...steps.map((step) => Number((step * 10 ** power).toPrecision(3))));
    }
    return { type: "log", tickvals: ticks, ticktext: ticks.map((tick) => tick.toLocaleString("en")) };
  }

  const scale = (column, values) => (column.kind === "perplexity" ? logarithmic(values) : {});
  const hover = (line) => `${text(line.model)}, ${line.n} of ${line.numLayers} layers<br>${text(line.name)}<br>`;

  /** What a plot shows of some lines: where each is, and its bars. */
  function points(lines, column, xOf) {
    return lines.flatMap((line) => {
      const [value, x] = [line.values[column.at], xOf(line)];
      return value && x !== null && x !== undefined ? [{ line, value, x, y: value.v, recipe: recipeOf(line) }] : [];
    });
  }

  const bars = (own) => ({
    type: "data", symmetric: false, thickness: 1, width: 0, visible: own.some((point) => point.value.i),
    array: own.map(({ value }) => (value.i ? value.i[1] - value.v : 0)),
    arrayminus: own.map(({ value }) => (value.i ? value.v - value.i[0] : 0)),
  });

  function trace(own, mode, more = {}) {
    const { color, symbol, dash } = isDense(own[0].line)
      ? { color: colour("--ink"), symbol: "x", dash: "dash" } : look(own[0].recipe);
    return {
      type: "scatter", mode, x: own.map(({ x }) => x), y: own.map(({ y }) => y),
      customdata: own.map(({ line }) => data.lines.indexOf(line)),
      hovertemplate: own.map(({ line }) => `${hover(line)}%{x:.5~g}, %{y:.5~g}<extra></extra>`),
      marker: { color, symbol, size: 8 }, line: { color, dash, width: 1.6 }, cliponaxis: false, ...more,
    };
  }

  /** Apart by recipe and by how they were measured. */
  function grouped(found) {
    const groups = new Map();
    for (const point of found) {
      const key = JSON.stringify([point.line.model, point.recipe, point.value.p]);
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(point);
    }
    return [...groups.values()].map((own) => own.sort((a, b) => a.x - b.x));
  }

  /** Quality against layers: a line for each recipe, shifted a little so that points don't hide each other. */
  function againstLayers(lines, column, body) {
    const found = points(lines, column, (line) => line.n);
    const pruned = found.filter(({ line }) => !isDense(line));
    const dense = found.filter(({ line }) => isDense(line));
    const sizes = [...new Set(pruned.map(({ x }) => x))];
    const values = found.map(({ y }) => y);
    if (sizes.length === 1) return dots(pruned, dense, column, body);
    body.style.height = "";
    const [low, high] = [Math.min(...sizes) - 0.5, Math.max(...sizes) + 0.5];
    const groups = grouped(pruned);
    const step = Math.min((high - low) / 100, 0.5 / groups.length);
    const traces = groups.map((own, at) =>
      trace(own.map((point) => ({ ...point, x: point.x + (at - (groups.length - 1) / 2) * step })), "lines+markers", {
        error_y: bars(own), text: own.map(({ x }) => String(x)),
        hovertemplate: own.map(({ line }) => `${hover(line)}%{y:.5~g}<extra></extra>`),
      }));
    for (const point of dense) traces.push(trace([{ ...point, x: low }, { ...point, x: high }], "lines", { text: ["0", "0"] }));
    const ticks = sizes.length <= 16 ? { tickvals: sizes } : { tickformat: "d" };
    return {
      traces,
      made: layout(
        { title: { text: "layers removed" }, range: [low, high], ...ticks },
        { title: { text: text(column.title) }, ...scale(column, values) },
      ),
    };
  }

  /** Of a single size: recipes below each other, the best on top, the dense model as a line. */
  function dots(pruned, dense, column, body) {
    const sign = column.kind === "perplexity" ? 1 : -1;
    const ordered = [...pruned].sort((a, b) => sign * (a.y - b.y));
    const room = body.clientWidth < 500 ? 26 : 48;
    body.style.height = `${Math.max(180, 90 + 22 * ordered.length)}px`;
    const traces = ordered.map((point, at) => ({
      ...trace([point], "markers", { error_x: bars([point]) }), x: [point.y], y: [at], text: [String(point.line.n)],
      hovertemplate: `${hover(point.line)}%{x:.5~g}<extra></extra>`,
    }));
    for (const point of dense) {
      const ends = [-0.6, ordered.length - 0.4];
      traces.push({ ...trace([point, point], "lines"), x: [point.y, point.y], y: ends, text: ["0", "0"],
        hovertemplate: `${hover(point.line)}%{x:.5~g}<extra></extra>` });
    }
    const names = ordered.map(({ recipe }) => text(cut(recipe, room)));
    return {
      traces,
      made: layout(
        { title: { text: text(column.title) }, ...scale(column, [...pruned, ...dense].map(({ y }) => y)) },
        { tickvals: ordered.map((_, at) => at), ticktext: names, range: [ordered.length - 0.4, -0.6], showgrid: false },
      ),
    };
  }

  /** Quality against a cost, with the front of those that nothing beats in both. */
  function againstCost(lines, { quality, cost }) {
    const found = points(lines, quality, (line) => line.values[cost.at]?.v);
    const traces = grouped(found).map((own) => trace(own, "markers"));
    const sign = quality.kind === "perplexity" ? 1 : -1;
    const front = [];
    for (const point of [...found].sort((a, b) => a.x - b.x || sign * (a.y - b.y))) {
      if (!front.length || sign * point.y < sign * front.at(-1).y) front.push(point);
    }
    traces.unshift({
      type: "scatter", mode: "lines", x: front.map(({ x }) => x), y: front.map(({ y }) => y), hoverinfo: "skip",
      line: { color: colour("--quiet"), width: 1, shape: "hv" },
    });
    return {
      traces,
      made: layout(
        { title: { text: text(cost.title) } },
        { title: { text: text(quality.title) }, ...scale(quality, found.map(({ y }) => y)) },
      ),
    };
  }

  /** What colours, shapes and dashes mean, for the plots; of very many recipes the pointer tells. */
  function drawKey(place) {
    const list = element("ul", { className: "key", "aria-label": "Recipes" });
    place.append(list);
    report.listeners.push(() => {
      const seen = [...new Set(report.visible().filter((line) => !isDense(line)).map(recipeOf))];
      const marks = ["●", "■", "▲", "◆", "✚", "✖", "◀", "★"];
      const items = seen.slice(0, mostNamed).map((recipe) => {
        const { color, symbol } = look(recipe);
        const sign = element("span", { className: "sign", "aria-hidden": "true" },
          marks[symbols.indexOf(symbol.replace("-open", ""))]);
        sign.style.color = color;
        return element("li", {}, sign, recipe);
      });
      if (seen.length > mostNamed) items.push(element("li", {}, `… and ${seen.length - mostNamed} more: point at them`));
      list.replaceChildren(...items, element("li", {}, element("span", { className: "sign" }, "┄"), "dense"));
    });
  }

  /** A card with a plot, and a choice where several columns could be shown. */
  function card(place, title, choices, draw) {
    if (!choices.length) return;
    const pick = element("select", { "aria-label": `What to show: ${title}` },
      ...choices.map((column, at) => element("option", { value: String(at) }, column.title)));
    pick.hidden = choices.length < 2;
    const body = element("div", { className: "plot" });
    place.append(element("figure", {}, element("figcaption", {}, element("h2", {}, title), pick), body));
    const redraw = () => {
      const { traces, made } = draw(report.visible(), choices[Number(pick.value)] ?? choices[0], body);
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
    const qualities = [...columnsOf("perplexity"), ...columnsOf("retained")];
    const distinct = (cost) => new Set(data.lines.map((line) => line.values[cost.at]?.v)).size > 1;
    const pairs = columnsOf("cost").filter(distinct).flatMap((cost) =>
      qualities.map((quality) => ({ quality, cost, title: `${quality.title} / ${cost.title}` })));
    drawKey(place);
    card(place, "Quality and layers removed", qualities, againstLayers);
    card(place, "Quality and cost", pairs, againstCost);
  };
})();
