// Shows a row of a chart's table beside the pointer, or by the arrow keys. Charts are complete without it.
for (const figure of document.querySelectorAll("figure.chart")) {
  const svg = figure.querySelector("svg"), table = figure.querySelector("table");
  const names = [...table.tHead.rows[0].cells].map((cell) => cell.textContent);
  const rows = [...table.tBodies[0].rows], places = rows.map((row) => Number(row.dataset.x));
  const classes = [...figure.querySelectorAll(".legend i")].map((mark) => mark.className);
  const values = document.createElement("div"), marks = document.createElementNS(svg.namespaceURI, "g");
  values.className = "values";
  let shown = -1;

  const hide = () => { marks.remove(); values.remove(); shown = -1; };

  const add = (name, attributes) => {
    const element = document.createElementNS(svg.namespaceURI, name);
    for (const key in attributes) element.setAttribute(key, attributes[key]);
    marks.append(element);
  };

  const show = (number) => {
    shown = Math.max(0, Math.min(number, rows.length - 1));
    const x = places[shown], head = document.createElement("b");
    head.textContent = rows[shown].cells[0].textContent;
    marks.replaceChildren();
    values.replaceChildren(head);
    add("path", { class: "pointer", d: `M${x} 20V192` });
    for (let i = 1; i < names.length; i++) {
      const cell = rows[shown].cells[i], line = document.createElement("div"), colour = classes[i - 1] ?? "c0";
      if (!cell.dataset.y) continue;
      const spot = document.createElement("i");
      spot.className = colour;
      line.append(spot, names.length > 2 ? `${cell.textContent}  ${names[i]}` : cell.textContent);
      values.append(line);
      add("circle", { class: colour, cx: x, cy: cell.dataset.y, r: 3.4 });
    }
    svg.append(marks);
    figure.append(values);
    const box = svg.getBoundingClientRect(), at = (x / svg.viewBox.baseVal.width) * box.width;
    const left = at + 12 + values.offsetWidth <= box.width ? at + 12 : Math.max(0, at - 12 - values.offsetWidth);
    values.style.left = `${left}px`;
    values.style.top = `${svg.getBoundingClientRect().top - figure.getBoundingClientRect().top + 0.12 * box.height}px`;
  };

  const near = (event) => {
    const box = svg.getBoundingClientRect(), x = ((event.clientX - box.left) / box.width) * svg.viewBox.baseVal.width;
    let best = 0;
    places.forEach((place, i) => { if (Math.abs(place - x) < Math.abs(places[best] - x)) best = i; });
    show(best);
  };

  svg.setAttribute("tabindex", "0");
  svg.addEventListener("pointermove", near);
  svg.addEventListener("pointerdown", near);
  svg.addEventListener("pointerleave", hide);
  svg.addEventListener("blur", hide);
  svg.addEventListener("keydown", (event) => {
    const steps = { ArrowLeft: -1, ArrowRight: 1, Home: -rows.length, End: rows.length }[event.key];
    if (event.key === "Escape") hide();
    if (steps === undefined) return;
    event.preventDefault();
    show(shown + steps);
  });
}
