// One job: its heading and what can be done to it, over the three tabs. The state is followed live by all of them.

import { follow, get, isOver, post } from "../api.js";
import { day } from "../format.js";
import { Failure, Loading, Status, Sure, Title, useAction } from "../parts.js";
import { html, useLayoutEffect, useRef, useState } from "../vendor.js";
import { nameOf } from "./jobs.js";
import { LabelsTab, labelsAhead } from "./labels.js";
import { VerdictTab } from "./verdict.js";
import { WatchTab } from "./watch.js";

const TABS = [["", "Watch"], ["labels", "Pseudo-labels"], ["verdict", "Verdict"]];

export function JobPage({ id, tab = "" }) {
  const live = useJob(id);
  useLayoutEffect(() => {
    if (tab === "labels") labelsAhead(id); // the tab opens with the job: neither waits for the other
  }, [id]);
  if (!live.job) return live.error ? html`<${Title}>Job<//><${Failure} error=${live.error} />` : html`<${Loading} />`;
  const { job } = live;
  const place = (name) => `/jobs/${id}${name && `/${name}`}`;
  return html`
    <div class="heading">
      <div>
        <${Title}>${nameOf(job)}<//>
        <div class="row small soft"><${Status} job=${job} /><span>${job.model}</span><span>begun ${day(job.created_at)}</span>${!live.connected && !isOver(job.status) && html`<span role="status">connection lost, trying again …</span>`}</div>
      </div>
      <${Actions} job=${job} set=${live.set} />
    </div>
    <nav class="tabs" aria-label="Job">
      ${TABS.map(([name, words]) => html`<a href=${place(name)} aria-current=${name === tab ? "page" : undefined}>${words}</a>`)}
    </nav>
    ${tab === "labels" ? html`<${LabelsTab} job=${job} changed=${live.changed} again=${live.again} />` : tab === "verdict" ? html`<${VerdictTab} job=${job} />` : html`<${WatchTab} ...${live} />`}`;
}

/** {job, events, losses, connected, error, changed, set, again}: the job as it is now, kept up to date by its stream. */
function useJob(id) {
  const [job, set] = useState(null);
  const [error, setError] = useState(null);
  const [connected, setConnected] = useState(true);
  const [log, setLog] = useState({ events: [], losses: {} });
  const asking = useRef(null);
  const again = () => get(`/v1/fine_tuning/jobs/${id}`).then((told) => (set(told), setError(null)), setError);

  useLayoutEffect(() => {
    setLog({ events: [], losses: {} });
    again();
    let waiting = []; // events come in bursts: one drawing for all of them
    const hear = (kind, data) => {
      if (kind === "progress") return set((old) => old && { ...old, semievol: data, estimated_finish: data.estimated_finish });
      if (kind === "over") return set(data);
      waiting.push(data);
      if (waiting.length === 1) {
        requestAnimationFrame(() => {
          const heard = waiting;
          waiting = [];
          setLog((old) => taken(old, heard));
        });
      }
      // The stream tells how far the job is, not its status: what the log says may have changed it.
      clearTimeout(asking.current);
      asking.current = setTimeout(again, 150);
      return undefined;
    };
    const end = follow(id, hear, setConnected);
    return () => (end(), clearTimeout(asking.current));
  }, [id]);
  return { job, ...log, connected, error, set, again, changed: log.events.length };
}

function taken(log, heard) {
  const losses = { ...log.losses };
  for (const { type, data } of heard) {
    if (type === "metrics" && data) {
      const known = losses[data.stage];
      losses[data.stage] = { total: data.total_steps, points: [...(known?.points ?? []), [data.step, data.train_loss]] };
    }
  }
  return { losses, events: [...log.events, ...heard.filter((event) => event.type !== "metrics")] };
}

function Actions({ job, set }) {
  const action = useAction();
  const move = (verb) => action.run(() => post(`/v1/fine_tuning/jobs/${job.id}/${verb}`)).then((told) => told && set(told));
  return html`<div class="row actions">
    ${job.status === "paused" && html`<button class="first" disabled=${action.busy} onClick=${() => move("resume")}>Resume</button>`}
    ${!isOver(job.status) && job.status !== "paused" && html`<button disabled=${action.busy} onClick=${() => move("pause")}>Pause</button>`}
    ${!isOver(job.status) && html`<${Sure} look="bad" question="Cancel this job? What it has done so far is not delivered, and it cannot be gone on with." yes="Cancel the job" action=${() => move("cancel")}>Cancel<//>`}
    <${Failure} error=${action.error} />
  </div>`;
}
