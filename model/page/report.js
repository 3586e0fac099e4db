// Shows the values of each line at the place of the pointer. Charts are complete without it.
for (const figure of document.querySelectorAll("figure.chart")) {
  const chart = JSON.parse(figure.dataset.chart), svg = figure.querySelector("svg");
  const values = document.createElement("div");
  values.className = "values";
  const pointer = document.createElementNS("http://www.w3.org/2000/svg", "line");
  pointer.setAttribute("class", "pointer");
  pointer.setAttribute("y1", 14);
  pointer.setAttribute("y2", 224);
  svg.addEventListener("pointermove", (event) => {
    const box = svg.getBoundingClientRect(), scale = chart.width / box.width;
    const inside = (event.clientX - box.left) * scale - chart.left;
    const x = chart.x0 + (inside / (chart.width - chart.left - chart.right)) * (chart.x1 - chart.x0);
    let at = null;
    const rows = [];
    for (const line of chart.lines) {
      let best = 0;
      for (let i = 1; i < line.x.length; i++) if (Math.abs(line.x[i] - x) < Math.abs(line.x[best] - x)) best = i;
      at ??= line.x[best];
      const y = line.y[best];
      rows.push((chart.lines.length > 1 ? line.name + "  " : "") + (y === null ? "–" : Number(y.toPrecision(4)).toLocaleString("en")));
    }
    values.textContent = chart.x + " " + Number(at.toPrecision(7)).toLocaleString("en") + "\n" + rows.join("\n");
    const place = chart.left + ((at - chart.x0) / (chart.x1 - chart.x0)) * (chart.width - chart.left - chart.right);
    pointer.setAttribute("x1", place);
    pointer.setAttribute("x2", place);
    svg.append(pointer);
    figure.append(values);
  });
  svg.addEventListener("pointerleave", () => { pointer.remove(); values.remove(); });
}
