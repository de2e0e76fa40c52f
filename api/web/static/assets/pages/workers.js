// Who works on what, and what waits.

import { bytes, count, roughly } from "../format.js";
import { Failure, Loading, Progress, Title, useAnswer } from "../parts.js";
import { html } from "../vendor.js";

const EVERY_SECONDS = 3;

const since = (unixSeconds) => roughly(Math.max(0, Date.now() / 1000 - unixSeconds));

export function WorkersPage({ session }) {
  const workers = useAnswer(session.key.admin ? "/v1/workers" : null, {}, { everySeconds: EVERY_SECONDS });
  const queue = useAnswer("/v1/queue", {}, { everySeconds: EVERY_SECONDS });
  return html`
    <div class="heading"><${Title}>Workers<//></div>
    ${session.key.admin && html`<section aria-label="Workers">
      <${Failure} error=${workers.error} />
      ${!workers.data && !workers.error && html`<${Loading} />`}
      ${workers.data?.data.length === 0 && html`<div class="empty"><p>No worker was seen yet. Jobs wait until one is started.</p></div>`}
      ${workers.data?.data.length > 0 && html`<table class="cards">
        <thead><tr><th scope="col">Worker</th><th scope="col">Takes</th><th scope="col">Works on</th><th scope="col">Memory</th><th scope="col">Seen</th></tr></thead>
        <tbody>${workers.data.data.map((one) => html`<tr key=${one.id}>
          <th scope="row" class="main"><code>${one.id}</code></th>
          <td>${one.kinds.join(", ")}</td>
          <td>${one.work ? html`<a href="/jobs/${one.work.job_id}">${one.work.stage ?? one.work.unit}</a> <span class="small soft">for ${since(one.work.since)}</span>${one.work.total > 0 && html`<${Progress} value=${one.work.done / one.work.total} label=${one.work.unit} />`}` : html`<span class="soft">nothing</span>`}</td>
          <td class="num-left" data-label="memory">${one.memory_bytes === null ? "–" : bytes(one.memory_bytes)}${one.gpu_memory_bytes ? html`<div class="small soft">GPU ${bytes(one.gpu_memory_bytes)}</div>` : ""}</td>
          <td><span class="badge ${one.alive ? "good" : "bad"}">${one.alive ? "alive" : `gone for ${since(one.seen_at)}`}</span></td></tr>`)}</tbody>
      </table>`}
    </section>`}
    <section aria-labelledby="queue">
      <h2 id="queue">Queue</h2>
      <${Failure} error=${queue.error} />
      ${queue.data && html`<dl class="figures">
        <div><dt>Running</dt><dd>${count(queue.data.running.cpu + queue.data.running.gpu)}</dd></div>
        <div><dt>Waiting, GPU work</dt><dd>${count(queue.data.ready.gpu)}</dd></div>
        <div><dt>Waiting, CPU work</dt><dd>${count(queue.data.ready.cpu)}</dd></div>
        <div><dt>Longest wait</dt><dd>${queue.data.oldest_ready_seconds === null ? "–" : roughly(queue.data.oldest_ready_seconds)}</dd></div>
      </dl>
      ${queue.data.units.length > 0 && html`<table class="cards queue"><thead><tr><th scope="col">Work</th><th scope="col">State</th><th scope="col">For</th><th scope="col">Worker</th></tr></thead>
        <tbody>${queue.data.units.map((one) => html`<tr><th scope="row" class="main"><a href="/jobs/${one.job_id}">${one.unit}</a><div class="small soft"><code>${one.job_id}</code></div></th><td>${one.state === "ready" ? "waiting" : one.state}</td><td class="num-left" data-label="for">${since(one.since)}</td><td><code>${one.worker ?? "–"}</code></td></tr>`)}</tbody></table>`}`}
    </section>`;
}
