// Owns the parts of the mesh, as /healthz tells them.

import { el, fill } from "./elements.js";
import { number } from "./figures.js";
import { CallError } from "./session.js";

const WORDS = { up: "up", down: "down", off: "not configured" };
const STATES = { up: "ok", down: "critical", off: "none" };

/** What /healthz says; it answers 503, with the parts, when a needed one is down. */
export async function loadMesh() {
  const answer = await fetch("/healthz", { cache: "no-store", credentials: "omit" }).catch(() => {
    throw new CallError("The server cannot be reached.");
  });
  const said = await answer.json().catch(() => ({}));
  if (!said.parts) throw new CallError(`The server answered ${answer.status}.`, { status: answer.status });
  return said.parts;
}

/** Shows the parts in `place`. */
export function showMesh(place, parts) {
  fill(place, el("ul", { class: "parts" }, parts.map(part)));
}

function part({ name, state, latency_ms, needed }) {
  const optional = needed ? null : el("span", { class: "small muted" }, " optional");
  return el("li", {}, el("span", { class: "grow" }, name, optional),
    el("span", { class: "num muted" }, state === "up" ? `${number(latency_ms, 1)} ms` : ""),
    el("span", { class: "badge", "data-state": state === "down" && !needed ? "warning" : STATES[state] ?? "none" }, WORDS[state] ?? state));
}
