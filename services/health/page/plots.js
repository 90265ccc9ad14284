// Owns the figures over time: points of the past, those of this minute, plots of them and the same as a table.

import { el, fill } from "./elements.js";
import { DAY, HOUR, MINUTE, count, date, number, percent, timeOfDay } from "./figures.js";
import { Plot } from "./plot.js";

const STEPS = { minute: MINUTE, hour: HOUR, day: DAY };
const COLUMNS = [
  ["Syncs", (point) => number(point.syncs)],
  ["Failed", (point) => number(point.failed_syncs)],
  ["Success %", (point) => (point.syncs ? percent(success(point)) : "–")],
  ["Changes", (point) => number(point.items)],
  ["Conflicts", (point) => number(point.conflicts)],
  ["Conflict %", (point) => (point.items ? percent(conflicts(point)) : "–")],
  ["Duration ms", (point) => (point.syncs ? number(point.avg_sync_duration_ms, 1) : "–")],
];

const success = ({ syncs, failed_syncs }) => (syncs ? (100 * (syncs - failed_syncs)) / syncs : null);
const conflicts = (point) => (point.items ? (100 * point.conflicts) / point.items : null);
const duration = (point) => (point.syncs ? point.avg_sync_duration_ms : null);

const SYNCS = {
  series: [
    { name: "Syncs", kind: "bar", value: (point) => point.syncs, mark: "one" },
    { name: "Failed", kind: "bar", value: (point) => point.failed_syncs, mark: "bad" },
  ],
  top: 4,
  read: (point) => `${count(point.syncs, "sync")}, ${number(point.failed_syncs)} failed`,
};
const RATES = {
  series: [
    { name: "Success", kind: "line", value: success, mark: "good" },
    { name: "Conflicts", kind: "line", value: conflicts, mark: "two" },
  ],
  top: 100,
  read: (point) => [
    point.syncs ? `${percent(success(point))} % succeeded` : "no syncs",
    point.items ? `${percent(conflicts(point))} % in conflict` : "no changes",
  ].join(", "),
};
const DURATIONS = {
  series: [{ name: "Duration", kind: "line", value: duration, mark: "one" }],
  top: 20,
  read: (point) => (point.syncs ? `${number(point.avg_sync_duration_ms, 1)} ms a sync` : "no syncs"),
};

/** Plots in `place`; with `whole` all three, else only that of the syncs. */
export class Plots {
  #points = new Map();
  #buckets = [];
  #step = "minute";
  #hours = 1;
  #empty = el("p", { class: "muted" }, "Nothing happened in this window yet.");
  #figures = el("div", { class: "figures" });
  #table = el("table", { class: "numbers" });
  #details = el("details", { toggle: () => this.#tabulate() }, el("summary", {}, "The same as a table"), el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": "Figures over time" }, this.#table));
  #plots;

  constructor(place, whole = true) {
    const moved = (index) => this.#plots.forEach(({ plot }) => plot.point(index));
    const wanted = [
      { name: "Syncs", unit: () => ` per ${this.#step}`, kind: SYNCS },
      { name: "Success and conflicts", unit: () => ", %", kind: RATES },
      { name: "Sync duration", unit: () => ", ms", kind: DURATIONS },
    ];
    this.#plots = wanted.slice(0, whole ? 3 : 1).map((one) => ({ ...one, plot: new Plot({ ...one.kind, moved }) }));
    fill(this.#figures, this.#plots.map(({ plot }) => plot.element));
    fill(place, this.#empty, this.#figures, this.#details);
  }

  /** What /api/v1/sync/health/points answered for the last so many hours. */
  show({ step, points }, hours) {
    this.#points = new Map();
    this.#step = STEPS[step] ? step : "minute";
    this.#hours = hours;
    this.#take(points);
    this.#draw();
  }

  /** Adds the points of this minute and the one before; false where the plot does not show minutes. */
  add(points) {
    if (this.#step !== "minute") return false;
    this.#take(points);
    this.#draw();
    return true;
  }

  #take(points) {
    for (const point of points) this.#points.set(Date.parse(point.time), point);
  }

  #draw() {
    const step = STEPS[this.#step];
    const last = Math.max(Math.floor(Date.now() / step) * step, ...this.#points.keys());
    const first = last - this.#hours * HOUR + step;
    for (const time of this.#points.keys()) if (time < first) this.#points.delete(time);
    this.#buckets = [];
    for (let time = first; time <= last; time += step) this.#buckets.push({ time, point: this.#points.get(time) ?? null });
    this.#empty.hidden = this.#points.size > 0;
    this.#figures.hidden = this.#details.hidden = this.#points.size === 0;
    for (const { name, unit, plot } of this.#plots) plot.show(`${name}${unit()}`, this.#buckets, step);
    this.#tabulate();
  }

  #tabulate() {
    if (!this.#details.open) return;
    const rows = this.#buckets.filter(({ point }) => point).reverse();
    fill(this.#table, el("caption", { class: "hidden" }, `Figures per ${this.#step}, latest first`),
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Time"), COLUMNS.map(([name]) => el("th", { scope: "col", class: "num" }, name)))),
      el("tbody", {}, rows.map(({ time, point }) => el("tr", {}, el("th", { scope: "row" }, `${date(time)}, ${timeOfDay(time)}`), COLUMNS.map(([, text]) => el("td", { class: "num" }, text(point)))))));
  }
}
