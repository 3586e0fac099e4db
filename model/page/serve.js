// Sends a picture that was chosen, dropped or pasted, and shows the answer. What comes from elsewhere is set as text alone.
const of = (id) => document.getElementById(id);
let most = Infinity, last = null, asked = null;

const add = (parent, name, text = "", attributes = {}) => {
  const element = document.createElement(name);
  element.textContent = text;
  for (const key in attributes) element.setAttribute(key, attributes[key]);
  parent.append(element);
  return element;
};

// A box's background, filled from the left; as model/page draws it.
const bar = (parent, percent) => {
  const space = "http://www.w3.org/2000/svg", svg = document.createElementNS(space, "svg"), filled = document.createElementNS(space, "rect");
  for (const [key, value] of [["class", "bar"], ["viewBox", "0 0 100 1"], ["preserveAspectRatio", "none"], ["aria-hidden", "true"]]) svg.setAttribute(key, value);
  filled.setAttribute("width", percent.toFixed(2));
  filled.setAttribute("height", "1");
  svg.append(filled);
  parent.append(svg);
};

const say = (text, fault = "") => { of("said").textContent = text; of("fault").textContent = fault; };

// Of a class's synonyms the first, and the others small.
const addName = (parent, words) => {
  const [first, ...others] = words.split(", "), name = add(parent, "span", first);
  if (others.length) add(name, "small", ` ${others.join(", ")}`);
};

const show = (answer) => {
  of("picture").src = answer.picture;
  of("best").replaceChildren();
  for (const { name, probability } of answer.best) {
    const row = add(of("best"), "li"), percent = 100 * probability;
    bar(row, percent);
    addName(row, name);
    add(row, "b", `${percent.toFixed(1)} %`);
  }
  of("neighbours").replaceChildren();
  for (const { name, distance, picture } of answer.neighbours) {
    const item = add(of("neighbours"), "li");
    if (picture) add(item, "img", "", { alt: "", src: picture });
    add(item, "span", name.split(", ")[0]);
    add(item, "small", `distance ${distance.toPrecision(3)}`);
  }
  of("maps").replaceChildren();
  answer.maps.forEach((sheet, column) => {
    const figure = add(of("maps"), "figure");
    const whose = answer.maps.length > 1 ? `column ${column}` : "all maps";
    add(figure, "figcaption", whose);
    add(figure, "img", "", { alt: `responses of ${whose}`, src: sheet });
  });
  of("answer").hidden = false;
  const [{ name, probability }] = answer.best;
  say(`Most likely ${name.split(", ")[0]}, ${(100 * probability).toFixed(1)} %.`);
};

const ask = async (file) => {
  asked?.abort();
  const mine = (asked = new AbortController());
  last = file;
  const views = document.querySelector("input[name=views]:checked").value;
  say("Looking …");
  document.body.classList.add("waits");
  try {
    if (file.size > most) throw new Error(`the file has more than ${most / 1e6} MB, the most that is taken; send a smaller picture`);
    const reply = await fetch(`answer?views=${views}`, { method: "POST", body: file, signal: mine.signal });
    const answer = await reply.json().catch(() => ({ error: `the server answers ${reply.status} ${reply.statusText}` }));
    if (!reply.ok) throw new Error(answer.error);
    if (mine === asked) show(answer);
  } catch (error) {
    if (mine !== asked) return;
    of("answer").hidden = true;
    say("", error instanceof TypeError ? "it could not be sent; is it a file that can be read, and is the server still running?" : error.message);
  } finally {
    if (mine === asked) document.body.classList.remove("waits");
  }
};

const first = (files) => { if (files?.length) ask(files[0]); };

of("file").addEventListener("change", (event) => { first(event.target.files); });
of("file").addEventListener("click", (event) => { event.target.value = ""; }); // the same file may be chosen again
document.addEventListener("paste", (event) => first(event.clipboardData.files));
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault(); // or the browser would leave this page for the picture
    of("drop").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") first(event.dataTransfer.files);
  });
}
for (const choice of document.querySelectorAll("input[name=views]")) choice.addEventListener("change", () => { if (last) ask(last); });

const begin = async () => {
  const about = await (await fetch("about")).json();
  most = about.most_bytes;
  of("about").textContent = `${about.net} · step ${about.step.toLocaleString("en")} · ${about.classes.toLocaleString("en")} classes`;
  of("kernels").src = about.kernels;
  of("halves").hidden = about.columns < 2;
  for (const place of document.querySelectorAll(".first")) place.textContent = about.layer;
  of("activation").textContent = about.activation;
  of("whence").textContent = about.neighbours;
};
begin().catch(() => say("", "the server does not answer; is it still running?"));
