// Base models that jobs may name, and the adapters that jobs made.

import { remove } from "../api.js";
import { day } from "../format.js";
import { Failure, Loading, Sure, Title, useAction, useAnswer } from "../parts.js";
import { html } from "../vendor.js";

export function ModelsPage() {
  const { data, error, again } = useAnswer("/v1/models");
  const action = useAction();
  const drop = (model) => action.run(() => remove(`/v1/models/${encodeURIComponent(model.id)}`)).then((done) => done && again());
  const models = data?.data ?? [];
  const adapters = models.filter((model) => model.id.startsWith("ft:"));
  return html`
    <div class="heading"><${Title}>Models<//></div>
    <${Failure} error=${error} again=${again} /><${Failure} error=${action.error} />
    ${!data && !error && html`<${Loading} />`}
    ${data && html`
      <section aria-labelledby="bases"><h2 id="bases">Base models</h2>
        <ul class="plain-list">${models.filter((model) => !model.id.startsWith("ft:")).map((model) => html`<li><code>${model.id}</code></li>`)}</ul>
        <p class="small soft">The operator's allow-list.</p></section>
      <section aria-labelledby="adapters"><h2 id="adapters">Adapters</h2>
        ${adapters.length === 0 && html`<div class="empty"><p>None yet: a <a href="/new">job</a> that succeeds leaves one.</p></div>`}
        ${adapters.length > 0 && html`<table class="cards"><thead><tr><th scope="col">Adapter</th><th scope="col">Since</th><th scope="col"><span class="unseen">What can be done</span></th></tr></thead>
          <tbody>${adapters.map((model) => html`<tr key=${model.id}><th scope="row" class="main"><code>${model.id}</code></th><td class="small soft">${day(model.created)}</td>
            <td><${Sure} question="Delete the adapter ${model.id}?" yes="Delete" action=${() => drop(model)}>Delete<//></td></tr>`)}</tbody></table>`}
      </section>`}`;
}
