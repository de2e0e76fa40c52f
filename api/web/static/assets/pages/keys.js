// Keys and quotas: what the project may use, and, for an admin, who has keys to it.

import { post, remove } from "../api.js";
import { bytes, count, day } from "../format.js";
import { Bar } from "../charts.js";
import { Copy, Failure, Loading, Sure, Title, useAction, useAnswer } from "../parts.js";
import { html, useState } from "../vendor.js";

export function KeysPage({ session }) {
  return html`<div class="heading"><${Title}>Keys and quotas<//></div>
    <${Usage} />
    ${session.key.admin ? html`<${Keys} own=${session.key.id} />` : html`<section><p class="soft">Keys are made and revoked by an admin.</p></section>`}`;
}

function Usage() {
  const { data, error } = useAnswer("/v1/usage");
  const line = (name, { used, limit }, write) => html`<div class="quota"><div class="between"><span>${name}</span><span class="num">${write(used)}${limit === null ? "" : ` of ${write(limit)}`}</span></div>
    ${limit === null ? html`<span class="small soft">no limit</span>` : html`<${Bar} share=${Math.min(1, used / Math.max(1, limit))} />`}</div>`;
  return html`<section aria-labelledby="usage"><h2 id="usage">Project ${data?.project ?? ""}</h2>
    <${Failure} error=${error} />${!data && !error && html`<${Loading} />`}
    ${data && html`<div class="fields">${line("Jobs at once", data.active_jobs, count)}${line("Stored bytes", data.bytes, bytes)}
      <div class="quota"><div class="between"><span>Requests a minute</span><span class="num">${data.requests_per_minute ? `at most ${count(data.requests_per_minute)}` : "no limit"}</span></div></div></div>`}
  </section>`;
}

function Keys({ own }) {
  const { data, error, again } = useAnswer("/v1/api_keys", { limit: 100 });
  const action = useAction();
  const [made, setMade] = useState(null);
  const make = async (event) => {
    event.preventDefault();
    const form = event.target;
    const given = new FormData(form);
    const body = { name: given.get("name"), admin: given.get("admin") === "on" };
    if (given.get("project")) body.project = given.get("project");
    const told = await action.run(() => post("/v1/api_keys", body));
    if (told) (setMade(told), form.reset(), again());
  };
  const revoke = (key) => action.run(() => remove(`/v1/api_keys/${key.id}`)).then((done) => done && again());
  return html`<section aria-labelledby="keys"><h2 id="keys">Keys</h2>
    <form onSubmit=${make} class="filters">
      <label class="field grow"><span>Name of a new key</span><input name="name" required maxlength="100" /></label>
      <label class="field"><span>Project (yours if empty)</span><input name="project" pattern="[A-Za-z0-9_.\\-]{1,64}" /></label>
      <label class="tick"><input type="checkbox" name="admin" />admin</label>
      <button class="first" disabled=${action.busy}>Make a key</button>
    </form>
    <${Failure} error=${action.error} /><${Failure} error=${error} />
    ${made && html`<div class="note" role="status"><p>The key <strong>${made.name}</strong>, shown this once:</p><pre tabindex="0" aria-label="The new key">${made.key}</pre><${Copy} text=${made.key} label="Copy the key" /></div>`}
    ${data && html`<table class="cards"><thead><tr><th scope="col">Key</th><th scope="col">Project</th><th scope="col">Last used</th><th scope="col">State</th><th scope="col"><span class="unseen">What can be done</span></th></tr></thead>
      <tbody>${data.data.map((key) => html`<tr key=${key.id}>
        <th scope="row" class="main">${key.name}${key.admin ? html` <span class="badge">admin</span>` : ""}<div class="small soft"><code>${key.id}</code></div></th>
        <td data-label="project">${key.project}</td><td class="small soft" data-label="last used">${key.last_used_at ? day(key.last_used_at) : "never"}</td>
        <td>${key.revoked_at ? html`<span class="badge">revoked</span>` : html`<span class="badge good">valid</span>`}${key.id === own ? html`<div class="small soft">this session</div>` : ""}</td>
        <td>${!key.revoked_at && html`<${Sure} look="bad" question="Revoke the key ${key.name}? Whoever uses it is out at once." yes="Revoke" action=${() => revoke(key)}>Revoke<//>`}</td></tr>`)}</tbody></table>`}
  </section>`;
}
