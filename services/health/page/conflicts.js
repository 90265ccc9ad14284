// Owns the inbox of conflicts that were left to people.

import { Decision } from "./decision.js";
import { el, fill, say } from "./elements.js";
import { ago, brief, moment, number } from "./figures.js";
import { Pages } from "./pages.js";
import { Panel } from "./panel.js";

const SIZE = 20;
const EVERY = 5_000;

/** The conflicts of the tenant that wait, in `section`. */
export class Conflicts {
  #session;
  #decision;
  #none = el("p", { class: "muted", hidden: true }, "Nothing waits for a decision.");
  #body = el("tbody");
  #said = el("p", { class: "said", role: "status" });
  #table = el("table", { class: "list", hidden: true }, el("caption", { class: "hidden" }, "Conflicts that wait for a decision"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Record"), el("th", { scope: "col", class: "wide" }, "User"),
      el("th", { scope: "col", class: "wide num" }, "Versions"), el("th", { scope: "col" }, "Since"), el("th", { scope: "col" }, el("span", { class: "hidden" }, "Decide")))),
    this.#body);
  #pages = new Pages("conflicts", SIZE, () => this.panel.refresh());
  panel;

  constructor(section, dialog, session) {
    this.#session = session;
    this.#decision = new Decision(dialog, session, (text) => this.#decided(text));
    fill(section.querySelector(".content"), this.#said, this.#none, this.#table, this.#pages.element);
    this.panel = new Panel(section, { every: EVERY, load: () => this.#load(), show: (found) => this.#show(found) });
  }

  #load() {
    const query = new URLSearchParams({ resolution_result: "manual_required", page_size: SIZE });
    if (this.#pages.token) query.set("page_token", this.#pages.token);
    return this.#session.json(`/api/v1/sync/conflicts?${query}`);
  }

  #show({ conflicts, total, next_page_token }) {
    if (!conflicts.length && this.#pages.token) {
      this.#pages.restart();
      return this.panel.refresh();
    }
    const focused = document.activeElement?.closest?.("[data-key]")?.dataset.key;
    this.#table.hidden = !conflicts.length;
    this.#none.hidden = conflicts.length > 0;
    fill(this.#body, conflicts.map((one) => this.#row(one)));
    if (focused) this.#body.querySelector(`[data-key="${CSS.escape(focused)}"] button`)?.focus();
    this.#pages.show(conflicts.length, total, next_page_token);
  }

  #row(conflict) {
    const since = Date.parse(conflict.created_at);
    return el("tr", { "data-key": conflict.id },
      el("th", { scope: "row" }, el("span", { class: "name" }, conflict.mobile_id), el("span", { class: "small muted" }, conflict.domain)),
      el("td", { class: "wide", title: conflict.user_id }, brief(conflict.user_id)),
      el("td", { class: "wide num" }, `${number(conflict.server_version)} met ${number(conflict.client_version)}`),
      el("td", { title: moment(since) }, ago(since)),
      el("td", { class: "act" }, el("button", { type: "button", click: () => this.#decision.open(conflict) }, "Decide", el("span", { class: "hidden" }, ` on ${conflict.mobile_id}`))));
  }

  async #decided(text) {
    say(this.#said, text);
    await this.panel.refresh();
    (this.#body.querySelector("button") ?? document.getElementById("main")).focus({ preventScroll: true });
  }
}
