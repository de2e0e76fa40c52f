// The files of the project.

import { remove } from "../api.js";
import { bytes, count, day } from "../format.js";
import { Failure, Loading, More, Problems, Sure, Title, useAction, usePages } from "../parts.js";
import { html } from "../vendor.js";

export function FilesPage() {
  const pages = usePages("/v1/files", {});
  const action = useAction();
  const drop = (file) => action.run(() => remove(`/v1/files/${file.id}`)).then((done) => done && pages.again());
  return html`
    <div class="heading"><${Title}>Files<//></div>
    <section>
      <${Failure} error=${action.error} />
      ${!pages.items && !pages.error && html`<${Loading} />`}
      ${pages.items?.length === 0 && html`<div class="empty"><p>No files yet. They come here when a <a href="/new">new job</a> is given them.</p></div>`}
      ${pages.items?.length > 0 && html`<table class="cards">
        <thead><tr><th scope="col">File</th><th scope="col">Content</th><th scope="col">Size</th><th scope="col">Since</th><th scope="col"><span class="unseen">What can be done</span></th></tr></thead>
        <tbody>${pages.items.map((file) => html`<tr key=${file.id}>
          <th scope="row" class="main"><a href="/v1/files/${file.id}/content" download=${file.filename}>${file.filename}</a><div class="small soft"><code>${file.id}</code></div></th>
          <td>${content(file)}</td><td class="num-left">${bytes(file.bytes)}</td><td class="small soft">${day(file.created_at)}</td>
          <td><${Sure} question="Delete ${file.filename}? Jobs that have read it keep what they need." yes="Delete" action=${() => drop(file)}>Delete<//></td></tr>`)}</tbody>
      </table>`}
      <${More} pages=${pages} />
    </section>`;
}

function content(file) {
  if (file.status === "error") {
    return html`<span class="badge bad">cannot be used</span>${file.semievol.problems.length ? html`<details class="small"><summary>${count(file.semievol.problems.length, "problem")}</summary><${Problems} problems=${file.semievol.problems} total=${file.semievol.problems.length} /></details>` : html`<div class="small">${file.status_details}</div>`}`;
  }
  if (file.purpose !== "fine-tune") return html`<span class="soft">${file.purpose === "fine-tune-results" ? "result of a job" : file.purpose}</span>`;
  return file.semievol.rows === null ? html`<span class="soft">being checked</span>` : `${count(file.semievol.rows, "row")}, ${file.semievol.kind}`;
}
