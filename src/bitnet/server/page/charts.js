// Lines over time, drawn as SVG. A chart keeps what it was given and draws what of it is young enough.

import { h, svg } from "./dom.js";

const WIDTH = 600;
const SHORTEST = 60; // seconds

/** 1, 2 or 5 times a power of ten, the next above `value`. */
function ceiling(value) {
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 2, 5, 10].map((step) => step * power).find((top) => top >= value * 0.9999);
}

export class Chart {
  points = []; // {time, values: [one for each line, or null]}
  marks = []; // times of restarts

  /** lines: names. show: a value as text. top: of the axis, where it is fixed; least: what it is at least. */
  constructor(lines, { seconds, show, height = 120, top = null, least = 0, label }) {
    Object.assign(this, { lines, seconds, show, height, top, least, label });
    this.svg = svg("svg", { viewBox: `0 0 ${WIDTH} ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
    this.axis = h("div", { class: "axis", "aria-hidden": "true" });
    this.tip = h("div", { class: "tip", hidden: true });
    this.element = h("div", { class: "chart", role: "img", "aria-label": label }, this.svg, this.axis, this.tip);
    this.element.addEventListener("pointermove", ({ clientX }) => this.point(clientX));
    this.element.addEventListener("pointerleave", () => ((this.at = null), this.draw()));
  }

  add(time, values) {
    this.now = time;
    this.points.push({ time, values });
    this.points = this.points.filter((each) => time - each.time <= this.seconds);
  }

  /** Seconds that are shown: what there is, within bounds. */
  get span() {
    return Math.min(this.seconds, Math.max(SHORTEST, this.now - (this.points[0]?.time ?? this.now)));
  }

  x = (time) => WIDTH * (1 - (this.now - time) / this.span);

  draw() {
    if (this.now == null) return;
    const { height, points } = this;
    const highest = Math.max(this.least, ...points.flatMap(({ values }) => values.filter(Number.isFinite)));
    const top = this.top ?? (highest > 0 ? ceiling(highest) : 1);
    const y = (value) => (height - 1) * (1 - Math.min(value / top, 1)) + 0.5;
    const nodes = [0, 0.5, 1].map((part) => svg("line", { x1: 0, x2: WIDTH, y1: y(part * top), y2: y(part * top), class: "grid" }));
    nodes.push(...this.marks.filter((time) => this.now - time < this.span).map((time) => svg("line", { x1: this.x(time), x2: this.x(time), y1: 0, y2: height, class: "mark" })));
    this.lines.forEach((_, line) => {
      for (const run of runs(points, line)) {
        const path = run.map(({ time, values }) => `${this.x(time).toFixed(1)},${y(values[line]).toFixed(1)}`).join("L");
        if (!line) nodes.push(svg("path", { d: `M${this.x(run[0].time).toFixed(1)},${height}L${path}L${this.x(run.at(-1).time).toFixed(1)},${height}Z`, class: "area" }));
        // A moment that stands alone is drawn as a dot.
        nodes.push(svg("path", { d: `M${path}${run.length === 1 ? "h0.1" : ""}`, class: `line line-${line}` }));
      }
    });
    this.svg.replaceChildren(...nodes);
    this.axis.replaceChildren(h("span", {}, this.show(top)), h("span", {}, this.show(0)));
    this.describe();
  }

  describe() {
    const last = this.points.at(-1)?.values ?? [];
    this.element.setAttribute("aria-label", `${this.label}: ${this.lines.map((name, i) => `${name} ${last[i] == null ? "none" : this.show(last[i])}`).join(", ")}`);
    const found = this.at == null ? null : this.points.findLast(({ time }) => time <= this.at);
    this.tip.hidden = !found;
    if (!found) return;
    const x = this.x(found.time);
    this.svg.append(svg("line", { x1: x, x2: x, y1: 0, y2: this.height, class: "cursor" }));
    const ago = Math.round(this.now - found.time);
    this.tip.replaceChildren(...this.lines.map((name, i) => h("span", {}, `${name} ${found.values[i] == null ? "–" : this.show(found.values[i])}`)), h("time", {}, ago ? `${ago} s ago` : "now"));
    this.tip.classList.toggle("left", x > WIDTH / 2);
  }

  point(clientX) {
    const { left, width } = this.svg.getBoundingClientRect();
    this.at = this.now - this.span * (1 - (clientX - left) / width) + 0.5;
    this.draw();
  }
}

/** The stretches of points in which a line has values, and between which not much time was missed. */
function runs(points, line) {
  const found = [];
  let last = null;
  for (const point of points) {
    if (Number.isFinite(point.values[line])) {
      if (last == null || point.time - last > 5) found.push([]);
      found.at(-1).push(point);
      last = point.time;
    } else last = null;
  }
  return found;
}

/** A row with a name, a bar and a value. share: between 0 and 1. */
export function bar(name, share, text) {
  const fill = h("i");
  fill.style.setProperty("width", `${100 * Math.min(1, Math.max(0, share))}%`);
  return h("div", { class: "bar-row" }, h("span", {}, name), h("span", { class: "track" }, fill), h("span", { class: "value" }, text));
}
