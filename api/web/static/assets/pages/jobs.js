// The list of jobs.

import { isOver } from "../api.js";
import { day, percent } from "../format.js";
import { Loading, More, Progress, Status, Title, usePages, useStill } from "../parts.js";
import { html, useState } from "../vendor.js";

const EVERY_SECONDS = 4;
const STATUSES = { "": "any status", active: "not over", succeeded: "succeeded", failed: "failed", cancelled: "cancelled" };
const ACTIVE = ["validating_files", "queued", "running", "paused"];

/** What a person calls a job: the suffix that it was given, else its number. */
export const nameOf = (job) => job.user_provided_suffix || job.id;

export function JobsPage() {
  const [q, setQ] = useState("");
  const [status, setStatus] = useState("");
  const query = { q: useStill(q), status: status === "active" ? ACTIVE : status };
  const pages = usePages("/v1/fine_tuning/jobs", query, { everySeconds: EVERY_SECONDS });
  const asked = q || status;
  return html`
    <div class="heading"><${Title}>Jobs<//><a class="button first" href="/new">New job</a></div>
    <section>
      <div class="filters" role="search">
        <label class="field grow"><span>Search</span><input type="search" value=${q} onInput=${(event) => setQ(event.target.value)} placeholder="name, id, model" /></label>
        <label class="field"><span>Status</span><select value=${status} onChange=${(event) => setStatus(event.target.value)}>
          ${Object.entries(STATUSES).map(([value, words]) => html`<option value=${value}>${words}</option>`)}
        </select></label>
      </div>
      ${!pages.items && !pages.error && html`<${Loading} />`}
      ${pages.items?.length === 0 && html`<${Empty} asked=${asked} />`}
      ${pages.items?.length > 0 && html`<${Table} jobs=${pages.items} />`}
      <${More} pages=${pages} />
    </section>`;
}

function Empty({ asked }) {
  if (asked) return html`<div class="empty"><p>No job is like that.</p></div>`;
  return html`<div class="empty">
    <p><strong>No jobs yet.</strong></p>
    <p>Give a few labeled examples, many unlabeled ones and a base model, and get an adapter that does your task better.</p>
    <p><a class="button first" href="/new">Start the first one</a></p>
  </div>`;
}

function Table({ jobs }) {
  return html`<table class="cards">
    <thead><tr><th scope="col">Job</th><th scope="col">Status</th><th scope="col">Progress</th><th scope="col">Right answers</th><th scope="col">Begun</th></tr></thead>
    <tbody>${jobs.map((job) => html`<${Line} key=${job.id} job=${job} />`)}</tbody>
  </table>`;
}

function Line({ job }) {
  const semievol = job.semievol;
  const open = semievol.stages.find((stage) => stage.name === semievol.stage);
  return html`<tr>
    <th scope="row" class="main"><a href="/jobs/${job.id}">${nameOf(job)}</a><div class="small soft">${job.model}</div></th>
    <td><${Status} job=${job} /></td>
    <td class="progress-cell">${isOver(job.status)
      ? html`<span class="soft small">${job.error?.message ?? ""}</span>`
      : html`<${Progress} value=${semievol.progress} label="Progress of ${nameOf(job)}" /><span class="small soft">${percent(semievol.progress)}${open ? ` · ${open.label ?? open.name}` : ""}</span>`}</td>
    <td class="num-left" data-label=${Object.keys(semievol.metrics).some((name) => name.endsWith("-test")) ? "right" : undefined}>${accuracy(semievol.metrics)}</td>
    <td class="small soft">${day(job.created_at)}</td>
  </tr>`;
}

function accuracy(metrics) {
  const [sft, semievol] = [metrics["sft-test"], metrics["semievol-test"]];
  if (!sft && !semievol) return "";
  return html`<span class="num">${semievol ? percent(semievol.value) : percent(sft.value)}</span>${semievol && sft && html`<div class="small soft num">SFT ${percent(sft.value)}</div>`}`;
}
