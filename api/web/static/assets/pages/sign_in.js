// Signing in with an API key. The key itself is not kept: the service answers with a session's cookie.

import { post } from "../api.js";
import { Failure, Title, useAction } from "../parts.js";
import { html } from "../vendor.js";

export function SignInPage({ signedIn }) {
  const action = useAction();
  const submit = async (event) => {
    event.preventDefault();
    const key = new FormData(event.target).get("key").trim();
    const told = await action.run(() => post("/v1/session", { api_key: key }));
    if (told) signedIn(told);
  };
  return html`<main class="sign-in">
    <section>
      <form onSubmit=${submit} class="stack">
        <${Title} name="Sign in">SemiEvol<//>
        <p>From a few labeled and many unlabeled examples to a better model.</p>
        <div class="field">
          <label for="key">API key</label>
          <input id="key" name="key" type="password" autocomplete="current-password" spellcheck="false" required autofocus aria-describedby="key-hint" />
          <span class="hint" id="key-hint">The first start of the service printed one, and wrote it to <code>admin.key</code> in its data folder. An admin can make more.</span>
        </div>
        <${Failure} error=${action.error} />
        <div><button class="first" disabled=${action.busy}>Sign in</button></div>
      </form>
    </section>
  </main>`;
}
