// Owns one plot: bars or lines over time, its axes, and a cursor that follows the pointer and the arrow keys.

import { el, fill, say, svg } from "./elements.js";
import { DAY, HOUR, MINUTE, date, number, timeOfDay } from "./figures.js";

const HEIGHT = 150;
const LEFT = 44;
const RIGHT = 10;
const TOP = 8;
const BOTTOM = 22;
const TICK_WIDTH = 64;
const SHORT_SPANS = [10 * MINUTE, 15 * MINUTE, 30 * MINUTE, 2 * HOUR, 4 * HOUR, 6 * HOUR, 12 * HOUR];
const LONG_SPANS = [DAY, 2 * DAY, 4 * DAY];

/**
 * A plot of `series`, each {name, kind: "bar" or "line", value: point => number or null, mark: its colour's name}; `top` is the
 * least upper end of the axis, `read` the words for one point. `moved` is told where its cursor was put.
 */
export class Plot {
  #series;
  #top;
  #read;
  #moved;
  #buckets = [];
  #step = MINUTE;
  #cursor = null;
  #title = el("h3");
  #reading = el("p", { class: "reading" });
  #drawing = svg("svg", { "aria-hidden": "true", height: HEIGHT });
  #handle;
  element;

  constructor({ series, top, read, moved }) {
    this.#series = series;
    this.#top = top;
    this.#read = read;
    this.#moved = moved;
    this.#handle = el("div", {
      class: "plot", role: "slider", tabindex: "0", "aria-valuemin": "0",
      pointermove: (event) => this.#point(event), pointerdown: (event) => this.#point(event),
      pointerleave: () => this.#moved(null), keydown: (event) => this.#key(event), blur: () => this.#moved(null),
    }, this.#drawing);
    const named = series.length > 1 ? series : [];
    const legend = el("p", { class: "legend small" }, named.map(({ name, mark }) => el("span", { "data-mark": mark }, name)));
    this.element = el("figure", {}, el("figcaption", {}, this.#title, legend), this.#reading, this.#handle);
    new ResizeObserver(() => this.#draw()).observe(this.#handle);
  }

  /** Shows `buckets`, each {time, point or null}, `step` milliseconds wide. */
  show(title, buckets, step) {
    this.#buckets = buckets;
    this.#step = step;
    if (this.#cursor >= buckets.length) this.#cursor = null; // a window with fewer of them
    say(this.#title, title);
    this.#handle.setAttribute("aria-label", `${title}: read it by time with the arrow keys`);
    this.#handle.setAttribute("aria-valuemax", String(Math.max(0, buckets.length - 1)));
    this.#draw();
  }

  /** Puts the cursor on a bucket, or nowhere (null). */
  point(index) {
    this.#cursor = index;
    this.#draw();
  }

  #draw() {
    const width = this.#handle.clientWidth;
    const { length } = this.#buckets;
    if (!width || !length) return;
    const inner = { left: LEFT, right: width - RIGHT, top: TOP, bottom: HEIGHT - BOTTOM };
    const values = this.#series.flatMap(({ value }) => this.#buckets.map(({ point }) => (point ? value(point) ?? 0 : 0)));
    const ticks = niceTicks(Math.max(this.#top, ...values), this.#top === 100);
    const highest = ticks.at(-1);
    const x = (index) => inner.left + ((index + 0.5) * (inner.right - inner.left)) / length;
    const y = (value) => inner.bottom - (value / highest) * (inner.bottom - inner.top);
    this.#drawing.setAttribute("width", String(width));
    this.#drawing.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    fill(this.#drawing,
      ticks.map((tick) => [
        svg("line", { class: "grid", x1: inner.left, x2: inner.right, y1: y(tick), y2: y(tick) }),
        svg("text", { x: inner.left - 6, y: y(tick) + 4, "text-anchor": "end" }, number(tick, tick < 1 ? 2 : 1)),
      ]).flat(),
      this.#timeTicks(inner),
      this.#series.flatMap((one) => (one.kind === "bar" ? this.#bars(one, x, y, inner) : this.#lines(one, x, y))),
      this.#cursor === null ? null : svg("line", { class: "cursor", x1: x(this.#cursor), x2: x(this.#cursor), y1: inner.top, y2: inner.bottom }));
    this.#tell();
  }

  #tell() {
    const last = this.#buckets.findLastIndex(({ point }) => point);
    const index = this.#cursor ?? (last < 0 ? this.#buckets.length - 1 : last);
    const { time, point } = this.#buckets[index];
    const when = this.#step < DAY && this.#buckets.length * this.#step <= 2 * HOUR ? timeOfDay(time) : `${date(time)}, ${timeOfDay(time)}`;
    const text = `${when}: ${point ? this.#read(point) : "nothing happened"}`;
    say(this.#reading, text);
    this.#handle.setAttribute("aria-valuenow", String(index));
    this.#handle.setAttribute("aria-valuetext", text);
  }

  #bars({ value, mark }, x, y, inner) {
    const width = Math.max(1, ((inner.right - inner.left) / this.#buckets.length) * 0.7);
    return this.#buckets.map(({ point }, index) => {
      const height = point ? inner.bottom - y(value(point)) : 0;
      return height > 0 ? svg("rect", { class: "mark", "data-mark": mark, x: x(index) - width / 2, y: inner.bottom - Math.max(1, height), width, height: Math.max(1, height) }) : null;
    });
  }

  /** Lines through neighbours; a point without any is a dot. */
  #lines({ value, mark }, x, y) {
    const runs = [[]];
    this.#buckets.forEach(({ point }, index) => {
      const known = point ? value(point) : null;
      if (known === null) runs.push([]);
      else runs.at(-1).push([x(index), y(known)]);
    });
    return runs.filter((run) => run.length).flatMap((run) => [
      run.length > 1 ? svg("polyline", { class: "line", "data-mark": mark, points: run.map((one) => one.map((part) => part.toFixed(1)).join(",")).join(" ") }) : null,
      ...(run.length > 1 && this.#buckets.length > 40 ? [] : run.map(([cx, cy]) => svg("circle", { class: "mark", "data-mark": mark, cx, cy, r: 2.5 }))),
    ]);
  }

  #timeTicks(inner) {
    const start = this.#buckets[0].time;
    const end = this.#buckets.at(-1).time + this.#step;
    const fitting = Math.max(2, Math.floor((inner.right - inner.left) / TICK_WIDTH));
    const spans = end - start > 2 * DAY ? LONG_SPANS : SHORT_SPANS;
    const span = spans.find((one) => (end - start) / one <= fitting) ?? spans.at(-1);
    const midnight = new Date(start);
    midnight.setHours(0, 0, 0, 0);
    const found = [];
    for (let time = midnight.getTime(); time < end; time += span) {
      if (time < start) continue;
      const at = inner.left + ((time - start) / (end - start)) * (inner.right - inner.left);
      const text = span < DAY ? timeOfDay(time) : date(time).replace(",", "");
      const anchor = at > inner.right - 20 ? "end" : at < inner.left + 16 ? "start" : "middle";
      found.push(svg("line", { class: "tick", x1: at, x2: at, y1: inner.bottom, y2: inner.bottom + 4 }), svg("text", { x: at, y: HEIGHT - 6, "text-anchor": anchor }, text));
    }
    return found;
  }

  #point(event) {
    const box = this.#handle.getBoundingClientRect();
    const share = (event.clientX - box.left - LEFT) / Math.max(1, box.width - LEFT - RIGHT);
    this.#moved(this.#within(Math.floor(share * this.#buckets.length)));
  }

  #key(event) {
    const last = this.#buckets.length - 1;
    const here = this.#cursor ?? last;
    const places = {
      ArrowLeft: here - 1, ArrowDown: here - 1, ArrowRight: here + (this.#cursor === null ? 0 : 1),
      ArrowUp: here + (this.#cursor === null ? 0 : 1), PageUp: here + 10, PageDown: here - 10, Home: 0, End: last, Escape: null,
    };
    if (!(event.key in places)) return;
    event.preventDefault();
    this.#moved(places[event.key] === null ? null : this.#within(places[event.key]));
  }

  #within(index) {
    return Math.min(Math.max(index, 0), this.#buckets.length - 1);
  }
}

/** A few round numbers from 0 on, the last of which is not below `highest`. */
export function niceTicks(highest, percent = false) {
  if (percent) return [0, 25, 50, 75, 100];
  const rough = highest / 3;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough);
  const ticks = [0];
  while (ticks.at(-1) < highest) ticks.push(ticks.length * step);
  return ticks;
}
