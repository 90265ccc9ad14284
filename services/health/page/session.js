// Owns the sign-in: its tokens, which only this tab keeps, and every call that is made with them.

const KEY = "satchel.tokens";
// A server that is away keeps nobody at a desk that was left.
const GOODBYE = 5_000;

/** A call that did not succeed, in words for people. */
export class CallError extends Error {
  constructor(message, { status = 0, code = "", details = [], retryAfter = 0 } = {}) {
    super(message);
    this.status = status;
    this.code = code;
    this.details = details;
    this.retryAfter = retryAfter;
  }

  /** Whether the answer gives this reason. */
  because(reason) {
    return this.details.some((one) => one.reason === reason);
  }
}

/** The sign-in of this tab. Tells "ended" when it has to be renewed by a person. */
export class Session extends EventTarget {
  #tokens = JSON.parse(sessionStorage.getItem(KEY) ?? "null");
  #refreshing = null;
  #renewed = null;

  get signedIn() {
    return this.#tokens !== null;
  }

  get email() {
    return this.#tokens?.email ?? "";
  }

  get userId() {
    return this.#claims().sub ?? "";
  }

  get tenant() {
    return this.#claims().tenant_id ?? 0;
  }

  get administrator() {
    return this.#claims().role === "admin";
  }

  /** Signs in; with the code of a second factor where the account has one. Throws CallError. */
  async signIn(email, password, code) {
    const body = { email, password, device_name: "Operator's page", ...(code ? { code } : {}) };
    const answer = await send("/v1/auth/signin", { method: "POST", body });
    const { user, access_token, refresh_token } = await answer.json();
    this.#keep({ access_token, refresh_token, email: user.email });
    this.#renewed?.resolve();
    this.#renewed = null;
  }

  /** Ends the sign-in here, whatever comes of it on the server. */
  async signOut() {
    const token = this.#tokens?.access_token;
    this.#keep(null);
    const signal = AbortSignal.timeout(GOODBYE);
    if (token) await send("/v1/auth/signout", { method: "POST", body: {}, token, signal }).catch(() => {});
  }

  /** The answer of a call as JSON. Throws CallError. */
  async json(path, options) {
    return (await this.call(path, options)).json();
  }

  /** The answer of a call: the access token is refreshed when it is refused, and asked for when that fails, too. */
  async call(path, options = {}) {
    for (let tries = 0; ; tries++) {
      const token = this.#tokens?.access_token;
      try {
        return await send(path, { ...options, token });
      } catch (error) {
        if (error.status !== 401 || tries === 2) throw error;
        await (token === this.#tokens?.access_token ? this.#refresh() : null);
      }
    }
  }

  #refresh() {
    return (this.#refreshing ??= this.#exchange().finally(() => (this.#refreshing = null)));
  }

  async #exchange() {
    const before = this.#tokens;
    try {
      const body = { refresh_token: before?.refresh_token ?? "" };
      const answer = await send("/v1/auth/refresh", { method: "POST", body });
      const { access_token, refresh_token } = await answer.json();
      // Who has signed out meanwhile stays so.
      if (this.#tokens === before) this.#keep({ ...before, access_token, refresh_token });
    } catch (error) {
      if (error.status !== 401 && error.status !== 400) throw error;
      await this.#ended();
    }
  }

  /** Waits until a person has signed in again. */
  #ended() {
    this.#renewed ??= withResolvers();
    this.dispatchEvent(new Event("ended"));
    return this.#renewed.promise;
  }

  #keep(tokens) {
    this.#tokens = tokens;
    if (tokens) sessionStorage.setItem(KEY, JSON.stringify(tokens));
    else sessionStorage.removeItem(KEY);
  }

  // Read to know what to show, not to trust: the server judges every call by itself.
  #claims() {
    try {
      const part = this.#tokens.access_token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/");
      return JSON.parse(new TextDecoder().decode(Uint8Array.from(atob(part), (one) => one.charCodeAt(0))));
    } catch {
      return {};
    }
  }
}

/** A call. Throws CallError for any answer but a successful one; an abort stays an abort. */
export async function send(path, { method = "GET", body, token, signal, accept } = {}) {
  const headers = {};
  if (token) headers.authorization = `Bearer ${token}`;
  if (body !== undefined) headers["content-type"] = "application/json";
  if (accept) headers.accept = accept;
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers,
      body: body === undefined ? undefined : JSON.stringify(body),
      signal,
      cache: "no-store",
      credentials: "omit",
    });
  } catch (error) {
    if (signal?.aborted) throw error;
    throw new CallError("The server cannot be reached.");
  }
  if (answer.ok) return answer;
  throw await refusal(answer);
}

async function refusal(answer) {
  const retryAfter = Number(answer.headers.get("retry-after") ?? 0);
  const said = await answer.json().catch(() => ({}));
  const error = said.error ?? {};
  const message = error.message || `The server answered ${answer.status}.`;
  return new CallError(message, { status: answer.status, code: error.code, details: error.details ?? [], retryAfter });
}

function withResolvers() {
  const made = {};
  made.promise = new Promise((resolve, reject) => Object.assign(made, { resolve, reject }));
  return made;
}
