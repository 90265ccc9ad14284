// Owns the dialog in which a conflict is decided: both sides, and what is made of them.

import { el, fill, say } from "./elements.js";
import { moment } from "./figures.js";

const ONE_LINE = 60;
const WINNERS = { server: "the server's version stands", client: "the phone's version stands", merged: "the merge stands" };

/** Decides conflicts in `dialog`; `decided` is told in words what came of it. */
export class Decision {
  #dialog;
  #session;
  #decided;
  #problem = el("p", { id: "decision-problem", class: "problem", role: "alert" });

  constructor(dialog, session, decided) {
    this.#dialog = dialog;
    this.#session = session;
    this.#decided = decided;
  }

  /** Asks for both sides and shows them. */
  async open(conflict) {
    say(this.#problem, "");
    const close = el("button", { type: "button", click: () => this.#dialog.close() }, "Close");
    const place = el("div", {}, el("p", { class: "muted" }, "Loading…"));
    fill(this.#dialog, el("h2", { id: "decision-title" }, conflict.mobile_id, " ", el("span", { class: "muted" }, conflict.domain)),
      place, this.#problem, el("p", { class: "actions end" }, close));
    this.#dialog.showModal();
    try {
      this.#show(place, await this.#session.json(`/api/v1/sync/conflicts/${encodeURIComponent(conflict.id)}`));
    } catch (error) {
      if (!place.isConnected) return; // another conflict is shown by now
      fill(place);
      say(this.#problem, error.message);
    }
  }

  #show(place, { conflict, server_data, client_data, server_time, client_time, record }) {
    // What stands counts, and not what stood when they met: a decision is written on top of it.
    const now = record ? (record.deleted ? null : record.data) : server_data || null;
    const server = parsed(now);
    const client = parsed(client_data || null);
    const moved = record && record.version !== conflict.server_version;
    const merge = el("textarea", { id: "merge", rows: "8", spellcheck: "false", "aria-describedby": this.#problem.id });
    merge.value = JSON.stringify({ ...server, ...client }, null, 2);
    const act = (resolution, name, kind) => el("button", {
      type: "button", class: kind, click: () => this.#resolve(place, conflict, resolution, merge),
    }, name);
    fill(place,
      el("p", { class: "muted" }, `Of user ${conflict.user_id}. They met on ${moment(Date.parse(conflict.created_at))}.`),
      moved ? el("p", { class: "notice" }, `The record has moved on since: it is at version ${record.version} now, and a decision is written on top of that.`) : null,
      el("div", { class: "scroll" }, el("table", { class: "sides" },
        el("caption", { class: "hidden" }, "Both sides, field by field"),
        el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Field"),
          el("th", { scope: "col" }, `Server, version ${record?.version ?? conflict.server_version}`, el("span", { class: "small muted" }, moment(Date.parse(moved ? record.update_time : server_time)))),
          el("th", { scope: "col" }, `Phone, from version ${conflict.client_version}`, el("span", { class: "small muted" }, moment(Date.parse(client_time)))))),
        el("tbody", {}, sides(server, client)))),
      el("p", { class: "actions" }, act("accept_server", "Accept server"), act("accept_client", "Accept client")),
      el("details", { class: "merge" }, el("summary", {}, "Merge by hand"),
        el("label", { for: "merge" }, "What the record is to hold, as JSON"), merge,
        el("p", { class: "actions" }, act("merge", "Store the merge", "primary"))));
    place.querySelector("button").focus();
  }

  async #resolve(place, conflict, resolution, merge) {
    say(this.#problem, "");
    const body = { resolution };
    if (resolution === "merge") {
      body.client_data = parsed(merge.value);
      if (!body.client_data) {
        say(this.#problem, "The merge is no JSON object.");
        return merge.focus();
      }
    }
    const buttons = [...place.querySelectorAll("button")];
    for (const button of buttons) button.disabled = true;
    try {
      const path = `/api/v1/sync/conflicts/${encodeURIComponent(conflict.id)}/resolve`;
      const { winning_version, version } = await this.#session.json(path, { method: "POST", body });
      this.#end(place, `${conflict.mobile_id}: ${WINNERS[winning_version] ?? winning_version}, at version ${version}.`);
    } catch (error) {
      if (error.status === 409) return this.#end(place, `${conflict.mobile_id}: somebody else has decided it.`);
      if (error.status === 404) return this.#end(place, `${conflict.mobile_id}: there is no such conflict any more.`);
      if (!place.isConnected) return;
      const fields = error.details?.map((one) => one.field).filter(Boolean).join(", ");
      say(this.#problem, fields ? `${error.message} (${fields})` : error.message);
      for (const button of buttons) button.disabled = false;
    }
  }

  #end(place, text) {
    // Unless another conflict has been opened meanwhile.
    if (place.isConnected) this.#dialog.close();
    this.#decided(text);
  }
}

function sides(server, client) {
  if (!server && !client) return el("tr", {}, el("td", { colspan: "3" }, "Both sides have deleted it."));
  const names = [...new Set([...Object.keys(server ?? {}), ...Object.keys(client ?? {})])];
  const rows = names.map((name) => side(name, server, client));
  return rows.length ? rows : el("tr", {}, el("td", { colspan: "3" }, "Both sides are empty."));
}

function side(name, server, client) {
  const texts = [server, client].map((data) => (data === null ? "deleted" : name in data ? shown(data[name]) : "–"));
  const differs = texts[0] !== texts[1];
  return el("tr", { class: differs ? "differs" : null },
    el("th", { scope: "row" }, name, differs ? el("span", { class: "hidden" }, " (differs)") : null),
    texts.map((text) => el("td", {}, text)));
}

function shown(value) {
  if (typeof value === "string") return value;
  const text = JSON.stringify(value);
  return text.length > ONE_LINE ? JSON.stringify(value, null, 1) : text;
}

/** The object that a text spells; null: none. */
function parsed(text) {
  try {
    const value = JSON.parse(text ?? "null");
    return value && typeof value === "object" && !Array.isArray(value) ? value : null;
  } catch {
    return null;
  }
}
