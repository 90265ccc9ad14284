// Owns the live stream: server-sent events read with the token, and what happens while there are none.

// The server says something every 15 seconds at least.
const SILENCE = 40_000;
const FIRST_PAUSE = 1_000;
const LONGEST_PAUSE = 30_000;

/** The figures as they change. Tells "news" (detail: a message) and "state" (detail: state, retryAt, problem). */
export class Watch extends EventTarget {
  #session;
  #hours = 1;
  #run = null;
  #pause = FIRST_PAUSE;
  #waiting = null;

  constructor(session) {
    super();
    this.#session = session;
    addEventListener("online", () => this.now());
    document.addEventListener("visibilitychange", () => document.hidden || this.now());
  }

  /** Watches the figures of the last so many hours, from now on. */
  start(hours) {
    this.stop();
    this.#hours = hours;
    this.#pause = FIRST_PAUSE;
    this.#run = new AbortController();
    this.#go(this.#run);
  }

  stop() {
    this.#run?.abort();
    this.#waiting?.();
  }

  /** Ends the pause before the next try. */
  now() {
    this.#waiting?.();
  }

  async #go(run) {
    this.#tell("connecting");
    while (!run.signal.aborted) {
      let problem = "The stream has ended.";
      try {
        await this.#read(run);
      } catch (error) {
        if (error.status) problem = error.message;
        if (error.retryAfter) this.#pause = Math.max(this.#pause, error.retryAfter * 1000);
      }
      if (run.signal.aborted) return;
      const pause = this.#pause * (0.8 + 0.4 * Math.random());
      this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE);
      this.#tell("stale", { retryAt: Date.now() + pause, problem });
      await this.#wait(pause);
      if (!run.signal.aborted) this.#tell("retrying", { problem });
    }
  }

  async #read(run) {
    const own = new AbortController();
    const end = () => own.abort();
    run.signal.addEventListener("abort", end);
    let timer = setTimeout(end, SILENCE);
    try {
      const path = `/api/v1/sync/health/watch?hours=${this.#hours}`;
      const answer = await this.#session.call(path, { signal: own.signal, accept: "text/event-stream" });
      for await (const message of events(answer.body)) {
        clearTimeout(timer);
        timer = setTimeout(end, SILENCE);
        if (run.signal.aborted) return;
        this.#pause = FIRST_PAUSE;
        this.#tell("live");
        this.dispatchEvent(new CustomEvent("news", { detail: message }));
      }
    } finally {
      clearTimeout(timer);
      run.signal.removeEventListener("abort", end);
      own.abort();
    }
  }

  #wait(pause) {
    return new Promise((resolve) => {
      const timer = setTimeout(resolve, pause);
      this.#waiting = () => (clearTimeout(timer), resolve());
    });
  }

  #tell(state, detail = {}) {
    this.dispatchEvent(new CustomEvent("state", { detail: { state, ...detail } }));
  }
}

/** The messages of a stream of server-sent events. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split(/\r?\n\r?\n/);
    rest = parts.pop();
    for (const part of parts) {
      const data = part.split(/\r?\n/).filter((line) => line.startsWith("data:")).map((line) => line.slice(5));
      if (data.length) yield JSON.parse(data.join("\n"));
    }
  }
}
