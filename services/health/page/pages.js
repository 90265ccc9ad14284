// Owns going through the pages of a list that only ever names the next one.

import { el, say } from "./elements.js";
import { number } from "./figures.js";

/** Where somebody stands in a list; `turned` is called when that has changed. */
export class Pages {
  #tokens = [""];
  #next = "";
  #back = el("button", { type: "button", click: () => this.#turn(-1) }, "Previous");
  #on = el("button", { type: "button", click: () => this.#turn(1) }, "Next");
  #where = el("span", { class: "muted" });
  element;

  constructor(name, size, turned) {
    this.size = size;
    this.turned = turned;
    this.element = el("nav", { class: "pages", "aria-label": `Pages of ${name}` }, this.#back, this.#where, this.#on);
  }

  /** The token of the page that is shown. */
  get token() {
    return this.#tokens.at(-1);
  }

  /** The list has become another one. */
  restart() {
    this.#tokens = [""];
  }

  /** What the page that is shown was answered. */
  show(shown, total, next) {
    const before = (this.#tokens.length - 1) * this.size;
    this.#next = next;
    this.#back.disabled = this.#tokens.length === 1;
    this.#on.disabled = !next;
    this.element.hidden = this.#back.disabled && this.#on.disabled;
    say(this.#where, `${number(before + 1)}–${number(before + shown)} of ${number(Math.max(total, before + shown))}`);
  }

  #turn(by) {
    if (by > 0 && this.#next) this.#tokens.push(this.#next);
    if (by < 0 && this.#tokens.length > 1) this.#tokens.pop();
    this.turned();
  }
}
