// Owns the figures of the window: each with its unit, what it means, and whether it is alarming.

import { el, say } from "./elements.js";
import { count, number, percent } from "./figures.js";

export const TILES = [
  {
    metric: "success_rate",
    name: "Success rate",
    unit: "%",
    format: percent,
    rule: "alarms below 95 %",
    formula: "Syncs that did not fail ÷ all syncs × 100. A sync is a call that carried records, by any door.",
    known: (metrics) => metrics.total_syncs > 0,
  },
  {
    metric: "conflict_rate",
    name: "Conflict rate",
    unit: "%",
    format: percent,
    rule: "warns above 5 %",
    formula: "Pushed changes that met a conflict ÷ all pushed changes × 100.",
    known: (metrics) => metrics.total_syncs > 0,
  },
  {
    metric: "avg_sync_duration_ms",
    name: "Sync duration",
    unit: "ms",
    format: (value) => number(value, value < 100 ? 1 : 0),
    rule: "warns above 500 ms",
    formula: "Time of all syncs together ÷ their number; what the server took, without the network.",
    known: (metrics) => metrics.total_syncs > 0,
  },
  {
    metric: "failed_syncs_per_minute",
    name: "Failed syncs",
    unit: "per min",
    format: (value) => number(value, 2),
    rule: "alarms above 10",
    formula: "Syncs that failed ÷ minutes of the whole window.",
    known: (metrics) => metrics.total_syncs > 0,
  },
  {
    metric: "upload_abandonment_rate",
    name: "Abandonment",
    unit: "%",
    format: percent,
    rule: "warns above 20 %",
    formula: "Uploads that were cancelled, failed or left ÷ all uploads that ended × 100; 0 when none ended.",
    known: () => true,
  },
  {
    metric: "avg_device_health_score",
    name: "Device score",
    unit: "of 100",
    format: (value) => number(value, 1),
    rule: "warns below 70",
    formula: "Mean score of the devices that synced in the window: 60 for syncs that went well, 20 for having synced lately, 20 for no conflicts.",
    known: (metrics) => metrics.active_devices > 0,
  },
];

const STATES = { ok: "OK", warning: "Warning", critical: "Critical", none: "No data yet" };

/** How a window is called. */
export function windowName(hours) {
  return hours === 1 ? "the last hour" : hours === 24 ? "the last 24 hours" : "the last 7 days";
}

/** The tiles in `place`, and the sentence on how much they stand for in `counts`. */
export class Tiles {
  #counts;
  #shown = new Map();

  constructor(place, counts) {
    this.#counts = counts;
    for (const tile of TILES) place.append(this.#tile(tile));
  }

  #tile(tile) {
    const value = el("span", { class: "value" }, "…");
    const unit = el("span", { class: "unit" }, tile.unit);
    const state = el("span", { class: "badge", "data-state": "none" }, "Loading");
    const rule = el("span", { class: "small muted" }, tile.rule);
    const source = el("p");
    const element = el("article", { class: "tile", "data-metric": tile.metric, "data-state": "none" },
      el("h3", {}, tile.name), el("p", { class: "figure" }, value, " ", unit),
      el("p", { class: "verdict" }, state, rule),
      el("details", {}, el("summary", {}, "Source", el("span", { class: "hidden" }, ` of ${tile.name}`)), source));
    this.#shown.set(tile.metric, { element, value, unit, state, rule, source });
    return element;
  }

  /** The figures of a message. */
  show({ metrics, alerts }, hours) {
    for (const tile of TILES) {
      const { element, value, unit, state, rule, source } = this.#shown.get(tile.metric);
      const known = tile.known(metrics);
      const alert = known ? alerts.find((one) => one.metric === tile.metric) : null;
      const standing = known ? alert?.severity ?? "ok" : "none";
      say(value, known ? tile.format(metrics[tile.metric]) : "–");
      unit.hidden = !known;
      say(rule, alert ? `threshold ${number(alert.threshold, 2)} ${tile.unit}` : tile.rule);
      say(state, STATES[standing] ?? standing);
      state.dataset.state = element.dataset.state = standing;
      say(source, `${tile.formula} Of ${windowName(hours)}; metrics.${tile.metric} of GET /api/v1/sync/health?hours=${hours}. It ${tile.rule}, unless this installation has set another threshold.`);
    }
    say(this.#counts, counted(metrics, hours));
  }
}

function counted({ total_syncs, active_devices, dropped_outcomes }, hours) {
  if (!total_syncs) {
    return `No syncs in ${windowName(hours)} yet. The figures appear as soon as a phone syncs.`;
  }
  const lacking = dropped_outcomes ? ` ${count(dropped_outcomes, "outcome was", "outcomes were")} dropped under pressure: the figures lack them.` : "";
  return `${count(total_syncs, "sync")} by ${count(active_devices, "device")} in ${windowName(hours)}.${lacking}`;
}
