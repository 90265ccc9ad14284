// Owns the list of devices, the history of one, and the versions in the field.

import { el, fill, say } from "./elements.js";
import { ago, brief, count, fixed, moment, number } from "./figures.js";
import { Pages } from "./pages.js";
import { Panel } from "./panel.js";
import { Plots } from "./plots.js";

const SIZE = 20;
const EVERY = 10_000;
const HISTORY_HOURS = 168;
const ORDERS = [["score", "Lowest score"], ["last_sync_at", "Last sync"], ["device_id", "Name"]];

/** The devices of the tenant, in `section`. */
export class Devices {
  #session;
  #version = "";
  #open = "";
  #history = null;
  #order = el("select", { id: "order", change: () => this.#restart() }, ORDERS.map(([value, name]) => el("option", { value }, name)));
  #filter = el("button", { type: "button", class: "quiet", hidden: true, click: () => this.#only("") });
  #body = el("tbody");
  #table;
  #none = el("p", { class: "muted", hidden: true });
  #versions = el("ul", { class: "versions" });
  #field = el("div", { class: "field", hidden: true }, el("h3", {}, "Versions in the field"), this.#versions);
  #pages = new Pages("devices", SIZE, () => this.panel.refresh());
  panel;

  constructor(section, session) {
    this.#session = session;
    const head = ["Device", "Score, of 100", "Syncs", "Failed", "Conflicts", "Last sync", "Version"];
    const wide = ["", "", "wide num", "num", "wide num", "", "wide"];
    this.#table = el("table", { class: "list" }, el("caption", { class: "hidden" }, "Devices of the tenant"),
      el("thead", {}, el("tr", {}, head.map((name, index) => el("th", { scope: "col", class: wide[index] || null }, name)))), this.#body);
    fill(section.querySelector(".content"),
      el("p", { class: "controls" }, el("label", { for: "order" }, "Order"), this.#order, this.#filter),
      this.#none, this.#table, this.#pages.element, this.#field);
    this.panel = new Panel(section, { every: EVERY, load: () => this.#load(), show: (found) => this.#show(found) });
  }

  #load() {
    const query = new URLSearchParams({ order_by: this.#order.value, page_size: SIZE });
    if (this.#pages.token) query.set("page_token", this.#pages.token);
    if (this.#version) query.set("app_version", this.#version);
    return this.#session.json(`/api/v1/sync/devices?${query}`);
  }

  #show({ devices, total, next_page_token, app_versions }) {
    if (!devices.length && this.#pages.token) return this.#restart();
    const focused = document.activeElement?.closest?.("[data-key]")?.dataset.key;
    this.#table.hidden = !devices.length;
    this.#none.hidden = devices.length > 0;
    say(this.#none, this.#version ? "No device has this version." : "No device has synced yet.");
    fill(this.#body, devices.flatMap((device) => this.#rows(device)));
    if (focused) this.#body.querySelector(`[data-key="${CSS.escape(focused)}"] button`)?.focus();
    this.#pages.show(devices.length, total, next_page_token);
    this.#field.hidden = !app_versions.length;
    const most = Math.max(1, ...app_versions.map((one) => one.devices));
    fill(this.#versions, app_versions.map((one) => this.#versionRow(one, most)));
    this.#filter.hidden = !this.#version;
    say(this.#filter, `Version ${this.#version}: show all`);
  }

  #rows(device) {
    const key = `${device.user_id}/${device.device_id}`;
    const open = key === this.#open;
    const last = device.last_sync_at ? Date.parse(device.last_sync_at) : null;
    const row = el("tr", { "data-key": key },
      el("th", { scope: "row" }, el("button", {
        type: "button", class: "row", "aria-expanded": String(open), click: () => this.#toggle(key),
      }, el("span", { class: "name" }, device.device_id), el("span", { class: "small muted", title: device.user_id }, `of ${brief(device.user_id)}`))),
      el("td", {}, score(device.health_score)),
      el("td", { class: "wide num" }, number(device.total_syncs)),
      el("td", { class: "num" }, number(device.failed_syncs_count)),
      el("td", { class: "wide num" }, number(device.conflicts_encountered)),
      el("td", { title: last ? moment(last) : null }, last ? ago(last) : "never"),
      el("td", { class: "wide" }, [device.platform, device.app_version].filter(Boolean).join(" ") || "–"));
    return open ? [row, this.#detail(key, device)] : [row];
  }

  #detail(key, device) {
    if (this.#history?.key !== key) this.#history = new History(key, device, this.#session);
    this.#history.show(device);
    return el("tr", { class: "detail" }, el("td", { colspan: "7" }, this.#history.element));
  }

  #toggle(key) {
    this.#open = this.#open === key ? "" : key;
    this.#history = null;
    this.panel.refresh();
  }

  #versionRow({ platform, app_version, devices }, most) {
    const name = [platform, app_version].filter(Boolean).join(" ") || "not told";
    const share = el("meter", { min: "0", max: String(most), value: String(devices), "aria-hidden": "true" });
    const label = app_version ? el("button", { type: "button", class: "link", click: () => this.#only(app_version) }, name) : name;
    return el("li", {}, el("span", { class: "name" }, label), share, el("span", { class: "num" }, count(devices, "device")));
  }

  #only(version) {
    this.#version = version;
    this.#restart();
  }

  #restart() {
    this.#pages.restart();
    this.panel.refresh();
  }
}

/** What is known of one device, and its syncs of the last week. */
class History {
  #facts = el("dl", { class: "facts" });
  #state = el("p", { class: "muted", role: "status" }, "Loading…");
  #plots = el("div");
  element = el("div", { class: "history" }, this.#facts, this.#state, this.#plots);

  constructor(key, device, session) {
    this.key = key;
    this.#load(device, session);
  }

  show(device) {
    const skew = device.clock_skew_ms;
    const facts = [
      ["User", device.user_id],
      ["Syncs", `${number(device.total_syncs)}, ${number(device.failed_syncs_count)} failed`],
      ["Conflicts", number(device.conflicts_encountered)],
      ["Sync duration", `${number(device.avg_sync_duration_ms, 1)} ms on average`],
      ["Last sync", device.last_sync_at ? moment(Date.parse(device.last_sync_at)) : "never"],
      ["App", [device.platform, device.app_version].filter(Boolean).join(" ") || "not told"],
      ["System", device.os_version || "not told"],
      ["Network", device.network_type || "not told"],
      ["Clock", skew == null ? "not told" : `${number(Math.abs(skew))} ms ${skew < 0 ? "behind" : "ahead"}`],
    ];
    fill(this.#facts, facts.map(([name, text]) => el("div", {}, el("dt", {}, name), el("dd", {}, text))));
  }

  async #load(device, session) {
    const query = new URLSearchParams({ user_id: device.user_id, device_id: device.device_id, hours: HISTORY_HOURS, step: "hour" });
    try {
      const found = await session.json(`/api/v1/sync/health/points?${query}`);
      new Plots(this.#plots, false).show(found, HISTORY_HOURS);
      say(this.#state, "");
    } catch (error) {
      say(this.#state, error.message);
    }
  }
}

function score(value) {
  const state = value < 70 ? "warning" : "ok";
  return el("span", { class: "score", "data-state": state },
    el("span", { class: "num" }, fixed(value, 1)), el("meter", { min: "0", max: "100", low: "70", optimum: "100", value: String(value), "aria-hidden": "true" }));
}
