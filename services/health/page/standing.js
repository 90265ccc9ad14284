// Owns what is said of the live stream: that it is there, or since when it is not and when it is tried again.

import { say } from "./elements.js";
import { timeOfDay } from "./figures.js";

const LIVE = { live: "Live", connecting: "Connecting", retrying: "Reconnecting", stale: "Not live" };

const byId = (id) => document.getElementById(id);

/** Whether what is shown is live, and since when it is not. */
export class Standing {
  #lastNews = 0;
  #lost = false;
  #timer = 0;

  constructor(watch) {
    byId("retry").addEventListener("click", () => watch.now());
  }

  /** Shows a state of the stream; true when it is live again after it was not. */
  show({ state, retryAt, problem }) {
    clearInterval(this.#timer);
    byId("live").dataset.state = state;
    say(byId("live-text"), LIVE[state]);
    if (state === "live") {
      const back = this.#lost;
      this.#lost = false;
      this.#lastNews = Date.now();
      byId("stale").hidden = true;
      document.body.classList.remove("stale");
      return back;
    }
    if (state === "stale") {
      this.#lost = true;
      byId("stale").hidden = false;
      document.body.classList.toggle("stale", this.#lastNews > 0);
      const tell = () => {
        const left = Math.max(0, Math.ceil((retryAt - Date.now()) / 1000));
        const since = this.#lastNews ? `Not live: these figures are from ${timeOfDay(this.#lastNews, true)}.` : "Not live yet.";
        say(byId("stale-text"), `${since} ${problem} Trying again in ${left} s.`);
      };
      tell();
      this.#timer = setInterval(tell, 1000);
    }
    return false;
  }
}
