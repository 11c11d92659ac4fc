"use strict";
// Sorting, filtering, copying, an open panel's keys, tooltips and plotly. Without this script everything can be read.

const number = (text) => (Number.isNaN(parseFloat(text)) ? null : parseFloat(text));

function sort(table, head) {
  const body = table.tBodies[0], numeric = head.classList.contains("n");
  const down = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const value = ({ cells: { [head.cellIndex]: cell } }) => cell.dataset.order ?? cell.textContent;
  const keyed = [...body.rows].map((row) => [numeric ? number(value(row)) : value(row), row]);
  keyed.sort(([a], [b]) => {
    if (a === null || b === null) return (a === null) - (b === null); // what has no value stays last
    return down * (numeric ? a - b : a.localeCompare(b, "en", { numeric: true }));
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down < 0 ? "descending" : "ascending");
  body.append(...keyed.map(([, row]) => row));
}

function filter(table, text, count) {
  const heads = [...table.tHead.rows[0].cells].map((head) => head.textContent.toLowerCase());
  const terms = text.toLowerCase().split(/\s+/).map((word) => {
    const [, key, value] = /^(\w+):(.+)$/.exec(word) ?? [], at = heads.indexOf(key);
    return at < 0 ? ([name]) => name.includes(word) : (cells) => cells[at] === value;
  });
  const rows = [...table.tBodies[0].rows];
  for (const row of rows) {
    const held = [...row.cells].map((cell) => cell.textContent.trim().toLowerCase());
    row.hidden = !terms.every((fits) => fits(held));
  }
  count.textContent = `${rows.filter((row) => !row.hidden).length} of ${rows.length}`;
}

function enliven(table) {
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.append(...head.childNodes);
    button.addEventListener("click", () => sort(table, head));
    head.append(button);
  }
  const [bar, field, count] = ["p", "input", "output"].map((name) => document.createElement(name));
  Object.assign(field, { type: "search", placeholder: table.dataset.filter, ariaLabel: "filter rows" });
  field.addEventListener("input", () => filter(table, field.value, count));
  bar.className = "bar";
  bar.append(field, " ", count);
  table.parentElement.before(bar);
  filter(table, "", count);
}

let loaded; // plotly, unpacked when it is first needed
async function load() {
  const bytes = Uint8Array.from(atob(document.getElementById("plotly").textContent), (c) => c.charCodeAt(0));
  const unpacked = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  const script = document.createElement("script");
  script.textContent = await new Response(unpacked).text();
  document.head.append(script);
}

async function draw(plot, { span: [low, high], density, fit, bulk, permuted, randomized }) {
  const hue = (name) => getComputedStyle(plot).getPropertyValue(`--${name}`), ink = hue("ink"), other = hue("permuted");
  const edges = [...density, 0].map((_, i) => low * (high / low) ** (i / density.length));
  const held = density.concat(randomized).filter((d) => d > 0), least = Math.min(...held) / 1.8;
  const curve = (name, points, line) => ({
    name, x: points.map(([x]) => x), y: points.map(([, y]) => Math.max(y, least / 9)), mode: "lines", line,
  });
  const upright = (x, dash, color = ink) =>
    ({ type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { dash, width: 1, color } });
  const axis = (text) => ({ type: "log", title: { text }, gridcolor: hue("line"), exponentformat: "power" });
  const steps = (of) => (of.length ? edges.map((x, i) => [x, of[Math.min(i, of.length - 1)]]) : []);
  const traces = [
    curve("density", steps(density), { shape: "hv", color: hue("accent") }),
    curve("fitted power law", fit ?? [], { color: ink }),
    curve("random matrix", bulk.filter(([, y]) => y > least), { dash: "dash", width: 1, color: ink }),
    curve("entries permuted", steps(randomized), { shape: "hv", width: 1, color: other }),
  ];
  const layout = {
    xaxis: axis("eigenvalue"), yaxis: { ...axis("density"), range: [least, 1.8 * Math.max(...held)].map(Math.log10) },
    height: 340, margin: { l: 60, r: 10, t: 10, b: 45 }, showlegend: false,
    shapes: [...(fit ? [upright(fit[0][0], "dot")] : []), ...(permuted ? [upright(permuted, "dashdot", other)] : [])],
    paper_bgcolor: "transparent", plot_bgcolor: "transparent", font: { color: ink },
  };
  await (loaded ??= load());
  plot.replaceChildren();
  await Plotly.newPlot(plot, traces, layout, { responsive: true, displayModeBar: false });
}

const meanings = new Map(
  [...document.querySelectorAll("#glossary dt")].map((dt) => [dt.textContent, dt.nextElementSibling.textContent]),
);
const curves = JSON.parse(document.getElementById("curves")?.textContent ?? "[]");
function open() {
  const panel = document.querySelector(".module:target");
  panel?.focus({ preventScroll: true });
  for (const dt of panel?.querySelectorAll("dt") ?? []) dt.title = meanings.get(dt.textContent) ?? "";
  const plot = panel?.querySelector(".plot:has(> .esd)"), data = curves[panel?.id.slice(1)];
  if (plot && data && "DecompressionStream" in window) draw(plot, data);
}

document.querySelectorAll("table.sortable").forEach(enliven);
addEventListener("hashchange", open);
addEventListener("keydown", ({ key }) => key === "Escape" && (location.hash = "-"));
const copy = document.createElement("button"), text = document.getElementById("source");
copy.textContent = "copy";
copy.addEventListener("click", () => {
  getSelection().selectAllChildren(text);
  if (document.execCommand("copy")) copy.textContent = "copied";
});
text.before(copy);
addEventListener("load", open);
