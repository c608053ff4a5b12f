// State, filters and small helpers. Whatever comes from records is text, and only ever set as text.
"use strict";

const report = (() => {
  const data = JSON.parse(document.getElementById("data").textContent);

  // What lines can be filtered by: its title, a line's value, and how the value is shown.
  const facets = [
    { name: "model", title: "Model", of: (line) => line.model },
    { name: "pruner", title: "Pruner", of: (line) => (line.stage === "dense" ? null : line.pruner) },
    { name: "patch", title: "Patch", of: (line) => (line.stage === "dense" ? null : line.patch) },
    { name: "n", title: "Layers removed", of: (line) => (line.stage === "dense" ? null : line.n) },
    { name: "stage", title: "Stage", of: (line) => line.stage },
    { name: "distill", title: "Distillation", of: (line) => (line.stage === "dense" ? null : line.distill) },
  ];
  const state = {
    chosen: Object.fromEntries(facets.map((facet) => [facet.name, new Set()])),
    columns: new Set(),
    sort: { by: null, down: false },
  };
  const listeners = [];

  /** An element with properties and children; strings become text. */
  function element(tag, properties = {}, ...children) {
    const made = document.createElement(tag);
    for (const [name, value] of Object.entries(properties)) {
      if (name.startsWith("aria-") || name.startsWith("data-")) made.setAttribute(name, value);
      else made[name] = value;
    }
    made.append(...children.filter((child) => child !== null));
    return made;
  }

  /** Whether a line passes all filters, but perhaps one. Dense has no pruner, so it passes what asks for one. */
  function passes(line, except = null) {
    return facets.every((facet) => {
      const chosen = state.chosen[facet.name];
      const value = facet.of(line);
      return facet.name === except || chosen.size === 0 || value === null || chosen.has(value);
    });
  }

  const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
  const visible = () => data.lines.filter((line) => passes(line));

  function changed() {
    for (const listener of listeners) listener();
  }

  const compare = (one, other) =>
    typeof one === "number" && typeof other === "number"
      ? one - other
      : String(one).localeCompare(String(other), "en", { numeric: true });

  /** Chips with the number of lines that each would leave, all other filters as they are. */
  function drawFilters(place) {
    const counts = new Map();
    for (const facet of facets) {
      const values = [...new Set(data.lines.map(facet.of))].filter((value) => value !== null).sort(compare);
      if (values.length < 2) continue;
      const chips = values.map((value) => {
        const count = element("span", { className: "count" });
        const box = element("input", { type: "checkbox" });
        box.addEventListener("change", () => {
          if (box.checked) state.chosen[facet.name].add(value);
          else state.chosen[facet.name].delete(value);
          changed();
        });
        counts.set(count, [facet, value, box]);
        return element("label", { className: "chip" }, box, element("span", {}, String(value)), count);
      });
      place.append(element("fieldset", {}, element("legend", {}, facet.title), ...chips));
    }
    if (counts.size === 0) return;
    const clear = element("button", { type: "button", className: "clear" }, "Clear filters");
    clear.addEventListener("click", () => {
      for (const chosen of Object.values(state.chosen)) chosen.clear();
      for (const [, , box] of counts.values()) box.checked = false;
      changed();
    });
    place.append(clear);
    listeners.push(() => {
      for (const [count, [facet, value]] of counts) {
        const left = data.lines.filter((line) => facet.of(line) === value && passes(line, facet.name)).length;
        count.textContent = String(left);
        count.parentElement.classList.toggle("empty", left === 0);
      }
      clear.hidden = Object.values(state.chosen).every((chosen) => chosen.size === 0);
    });
  }

  return { data, state, facets, listeners, element, counted, visible, changed, compare, drawFilters };
})();
