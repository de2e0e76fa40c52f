// What came of the job: the report as it is sent to others, the files, and the commands that use the adapter.

import { isOver } from "../api.js";
import { count, percent } from "../format.js";
import { Copy, Failure, Loading, useAnswer } from "../parts.js";
import { html, useEffect, useRef, useState } from "../vendor.js";
import { MODELS } from "../words.js";

export function VerdictTab({ job }) {
  if (!isOver(job.status)) {
    return html`<section><p>The verdict comes with the end of the job. Measured so far:</p><${SoFar} metrics=${job.semievol.metrics} /></section>`;
  }
  if (job.status !== "succeeded") return html`<section><p>The job was ${job.status}, so there is no adapter and no report.</p><${SoFar} metrics=${job.semievol.metrics} /></section>`;
  return html`<div class="pair"><${Download} job=${job} /><${Use} job=${job} /></div><${Report} job=${job} />`;
}

const MEASURED = { base: "base", "sft-test": "sft", "semievol-test": "semievol" };

function SoFar({ metrics }) {
  const lines = Object.entries(metrics).map(([stage, one]) => [MODELS[MEASURED[stage]] ?? stage, one]);
  if (!lines.length) return html`<p class="soft">Nothing yet.</p>`;
  return html`<table><thead><tr><th scope="col">Measured</th><th scope="col" class="num">Right</th><th scope="col" class="num">95 % interval</th><th scope="col" class="num">Rows</th></tr></thead>
    <tbody>${lines.map(([name, one]) => html`<tr><th scope="row">${name}</th><td class="num">${percent(one.value)}</td><td class="num">${(100 * one.low).toFixed(1)} – ${(100 * one.high).toFixed(1)}</td><td class="num">${count(one.n)}</td></tr>`)}</tbody></table>`;
}

function Download({ job }) {
  const path = `/v1/fine_tuning/jobs/${job.id}`;
  const files = [
    [`${path}/adapter`, "Adapter", "LoRA in PEFT's layout, one zip", "first"],
    [`${path}/report?format=html`, "Report", "one page to send to others"],
    [`${path}/pseudo_labels?format=parquet`, "Pseudo-labels", "every row with all that led to its decision, Parquet"],
  ];
  return html`<section aria-labelledby="download">
    <h2 id="download">Download</h2>
    <ul class="downloads">${files.map(([place, name, words, look]) => html`<li><a class="button ${look ?? ""}" href=${place} download=${name === "Report" ? `${job.id}-report.html` : ""}>${name}</a><span class="small soft">${words}</span></li>`)}</ul>
    <p class="small soft">As a model of this service: <code>${job.fine_tuned_model}</code></p>
  </section>`;
}

function Use({ job }) {
  const { data, error } = useAnswer(`/v1/fine_tuning/jobs/${job.id}/report`, { format: "json" });
  const commands = data?.commands;
  return html`<section aria-labelledby="use">
    <h2 id="use">Use it</h2>
    <${Failure} error=${error} />
    ${commands && [["Serve it with vLLM", commands.serve], ["Load it with PEFT", commands.load]].map(([name, text]) => html`<div class="between"><h3>${name}</h3><${Copy} text=${text} label="Copy ${name.split(" ").at(-1)}" /></div><pre tabindex="0" aria-label=${name}>${text}</pre>`)}
  </section>`;
}

/** The report's own page in a frame as tall as it is: the same pictures as in the file that is sent around. */
function Report({ job }) {
  const frame = useRef();
  const [height, setHeight] = useState(0);
  useEffect(() => {
    const fit = () => {
      const inside = frame.current?.contentDocument?.documentElement;
      if (inside) setHeight(Math.ceil(inside.getBoundingClientRect().height) + 8);
    };
    const watch = new ResizeObserver(fit);
    const loaded = () => {
      fit();
      const body = frame.current.contentDocument?.body;
      if (body) watch.observe(body);
    };
    const element = frame.current;
    element.addEventListener("load", loaded);
    watch.observe(element);
    return () => (watch.disconnect(), element.removeEventListener("load", loaded));
  }, []);
  return html`<div class="report">
    ${!height && html`<${Loading} />`}
    <iframe ref=${frame} title="Report" sandbox="allow-same-origin" src="/v1/fine_tuning/jobs/${job.id}/report?format=html" style=${{ height: `${height}px` }}></iframe>
  </div>`;
}
