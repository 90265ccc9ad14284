// Owns the form by which an administrator signs in, at the door and again later.

import { el, say } from "./elements.js";

/** The form; `done` is called once `session` is an administrator's. */
export function signInForm(session, done) {
  const id = `f${Math.random().toString(36).slice(2, 8)}`;
  const email = el("input", {
    id: `${id}-email`, type: "email", name: "email", autocomplete: "username", required: true, value: session.email,
  });
  const password = el("input", {
    id: `${id}-password`, type: "password", name: "password", autocomplete: "current-password", required: true,
  });
  const code = el("input", {
    id: `${id}-code`, type: "text", name: "code", autocomplete: "one-time-code", autocapitalize: "off", spellcheck: "false",
  });
  const codeRow = el("div", { hidden: true }, el("label", { for: code.id }, "Code of the second factor"), code,
    el("p", { class: "small muted" }, "Six digits from the app, or a recovery code."));
  const problem = el("p", { id: `${id}-problem`, class: "problem", role: "alert" });
  const button = el("button", { type: "submit", class: "primary" }, "Sign in");

  async function submit(event) {
    event.preventDefault();
    say(problem, "");
    button.disabled = true;
    try {
      await session.signIn(email.value.trim(), password.value, code.value.trim());
      if (!session.administrator) {
        const who = session.email;
        await session.signOut();
        return refuse(`${who} is no administrator. Sign in with an account that is, or have this one made one.`, email);
      }
      password.value = code.value = "";
      codeRow.hidden = true;
      done();
    } catch (error) {
      explain(error);
    } finally {
      button.disabled = false;
    }
  }

  function explain(error) {
    if (error.because?.("SECOND_FACTOR_REQUIRED")) {
      codeRow.hidden = false;
      code.required = true;
      return refuse("This account has a second factor: enter its code, too.", code);
    }
    if (error.because?.("SECOND_FACTOR_INVALID")) return refuse("This code is not right, or was used before.", code);
    if (error.status === 429) return refuse(`Too many tries. Try again in ${error.retryAfter || 60} s.`, password);
    if (error.status === 401) return refuse("The e-mail address or the password is not right.", password);
    return refuse(error.message, email);
  }

  function refuse(text, field) {
    say(problem, text);
    field.setAttribute("aria-describedby", problem.id);
    field.focus();
    field.select();
  }

  return el("form", { submit, class: "form" },
    el("label", { for: email.id }, "E-mail"), email,
    el("label", { for: password.id }, "Password"), password,
    codeRow, problem, button);
}
