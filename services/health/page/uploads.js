// Owns the list of uploads that are on their way.

import { el, fill } from "./elements.js";
import { ago, brief, moment, number, size } from "./figures.js";
import { Pages } from "./pages.js";
import { Panel } from "./panel.js";

const SIZE = 20;
const EVERY = 3_000;
// Chunks are no outcome that the stream would tell of.
const WHILE_SOME = 5_000;

/** The uploads of the tenant that are on their way, in `section`. */
export class Uploads {
  #session;
  #none = el("p", { class: "muted", hidden: true }, "No upload is on its way.");
  #body = el("tbody");
  #table = el("table", { class: "list", hidden: true }, el("caption", { class: "hidden" }, "Uploads on their way"),
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "File"), el("th", { scope: "col" }, "Progress"),
      el("th", { scope: "col", class: "num" }, "Size"), el("th", { scope: "col", class: "wide" }, "Started"), el("th", { scope: "col", class: "wide" }, "Expires"))),
    this.#body);
  #pages = new Pages("uploads", SIZE, () => this.panel.refresh());
  panel;

  constructor(section, session) {
    this.#session = session;
    fill(section.querySelector(".content"), this.#none, this.#table, this.#pages.element);
    this.panel = new Panel(section, { every: EVERY, load: () => this.#load(), show: (found) => this.#show(found) });
    setInterval(() => this.#table.hidden || this.panel.hint(), WHILE_SOME);
  }

  #load() {
    const query = new URLSearchParams({ page_size: SIZE });
    if (this.#pages.token) query.set("page_token", this.#pages.token);
    return this.#session.json(`/api/v1/uploads/active?${query}`);
  }

  #show({ uploads, total, next_page_token }) {
    if (!uploads.length && this.#pages.token) {
      this.#pages.restart();
      return this.panel.refresh();
    }
    this.#table.hidden = !uploads.length;
    this.#none.hidden = uploads.length > 0;
    fill(this.#body, uploads.map(row));
    this.#pages.show(uploads.length, total, next_page_token);
  }
}

function row(upload) {
  const started = Date.parse(upload.created_at);
  const told = upload.status === "assembling" ? "being checked" : `${number(upload.progress_pct, 1)} %`;
  return el("tr", {},
    el("th", { scope: "row" }, el("span", { class: "name" }, upload.filename), el("span", { class: "small muted", title: upload.user_id }, `of ${brief(upload.user_id)}`)),
    el("td", {}, el("span", { class: "score" }, el("span", { class: "num" }, told),
      el("progress", { max: "100", value: String(upload.progress_pct), "aria-label": `Progress of ${upload.filename}` })),
      el("span", { class: "small muted wide" }, `${number(upload.stored_chunks)} of ${number(upload.total_chunks)} chunks`)),
    el("td", { class: "num" }, size(upload.total_size)),
    el("td", { class: "wide", title: moment(started) }, ago(started)),
    el("td", { class: "wide" }, moment(Date.parse(upload.expires_at))));
}
