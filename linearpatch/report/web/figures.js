// The figures of the report, the first on top of the page. Those with a line for each recipe follow the filters, and name what is pointed at.
"use strict";

report.drawFigures = (place, others) => {
  const { data, element } = report;
  const figures = JSON.parse(document.getElementById("images").textContent);
  const follow = []; // what shows a recipe, with the lines that it stands for

  /** A drawing with parts that can be found again; its texts are outlines, so nothing in it is read as markup. */
  function drawing({ svg, model, recipes, caption }) {
    const root = document.importNode(new DOMParser().parseFromString(svg, "image/svg+xml").documentElement, true);
    root.setAttribute("role", "img");
    root.setAttribute("aria-label", caption);
    recipes.forEach((name, at) => {
      const lines = data.lines.filter((line) => line.model === model && line.name === name);
      for (const part of root.querySelectorAll(`[id^="recipe-${at}-"]`)) {
        const title = document.createElementNS("http://www.w3.org/2000/svg", "title");
        title.textContent = name;
        part.prepend(title);
        follow.push([part, lines]);
      }
    });
    return root;
  }

  for (const one of figures) {
    const picture = one.svg ? drawing(one)
      : element("img", { alt: one.caption, src: `data:image/png;base64,${one.png}`, width: one.width,
        height: one.height });
    picture.style.width = `${one.width}px`;
    picture.style.minWidth = `${0.7 * one.width}px`; // small screens scroll rather than shrink texts further
    const caption = element("figcaption", { className: "hint" }, one.caption);
    const figure = element("figure", { id: `figure-${one.name}` },
      element("div", { className: "scroll" }, picture), caption);
    (one === figures[0] ? place : others).append(figure);
  }
  others.hidden = figures.length < 2;
  report.listeners.push(() => {
    const seen = new Set(report.visible());
    for (const [part, lines] of follow) part.style.opacity = lines.some((line) => seen.has(line)) ? "" : "0.06";
  });
};
