// Owns a section whose content is asked for: that it is loading, that it failed, and how often it is asked for at most.

import { el, fill } from "./elements.js";
import { timeOfDay } from "./figures.js";

/** A section; `load` gets what `show` is then given, not more often than every so many milliseconds. */
export class Panel {
  #section;
  #state;
  #load;
  #show;
  #every;
  #timer = 0;
  #asked = -Infinity;
  #shownAt = 0;
  #run = 0;

  constructor(section, { load, show, every }) {
    this.#section = section;
    this.#state = section.querySelector(".state");
    this.#load = load;
    this.#show = show;
    this.#every = every;
    document.addEventListener("visibilitychange", () => document.hidden || !this.#shownAt || this.hint());
  }

  /** Something has changed: asks as soon as it is time, once, and not for a page that nobody sees. */
  hint() {
    if (this.#timer || document.hidden) return;
    const wait = Math.max(0, this.#asked + this.#every - Date.now());
    this.#timer = setTimeout(() => this.refresh(), wait);
  }

  /** Asks now. An answer that was overtaken by a later question is not shown. */
  async refresh() {
    clearTimeout(this.#timer);
    this.#timer = 0;
    this.#asked = Date.now();
    const run = ++this.#run;
    this.#section.setAttribute("aria-busy", "true");
    if (!this.#shownAt) fill(this.#state, "Loading…");
    try {
      const found = await this.#load();
      if (run !== this.#run) return;
      this.#show(found);
      this.#shownAt = Date.now();
      fill(this.#state);
      this.#section.classList.remove("old");
    } catch (error) {
      if (run === this.#run) this.#fail(error);
    }
    if (run === this.#run) this.#section.removeAttribute("aria-busy");
  }

  #fail(error) {
    if (!(error.status >= 0)) console.error(error);
    const text = this.#shownAt ? `As of ${timeOfDay(this.#shownAt, true)}. ${error.message}` : error.message;
    this.#section.classList.toggle("old", this.#shownAt > 0);
    fill(this.#state, el("span", { class: "problem" }, `${text} `),
      el("button", { type: "button", class: "quiet", click: () => this.refresh() }, "Try again"));
  }
}
