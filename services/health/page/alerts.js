// Owns the list of alerts.

import { el, fill } from "./elements.js";
import { number, timeOfDay } from "./figures.js";
import { TILES } from "./tiles.js";

/** Shows the alerts of a message in `place`. */
export function showAlerts(place, alerts) {
  if (!alerts.length) {
    fill(place, el("p", { class: "muted" }, "No alerts: every figure is within its threshold."));
    return;
  }
  fill(place, el("ul", { class: "alerts" }, alerts.map(alert)));
}

function alert({ severity, metric, current_value, threshold, message, timestamp }) {
  const tile = TILES.find((one) => one.metric === metric);
  const unit = tile?.unit ?? "";
  return el("li", {},
    el("span", { class: "badge", "data-state": severity }, severity === "critical" ? "Critical" : "Warning"),
    el("span", { class: "grow" }, el("strong", {}, tile?.name ?? metric), " ", message,
      el("span", { class: "small muted" }, ` ${number(current_value, 2)} ${unit}, threshold ${number(threshold, 2)} ${unit}, judged at ${timeOfDay(new Date(timestamp), true)}`)));
}
