// The job as it goes: stages, losses, what the model believes, and the log.

import { Curves, Histogram, Line, StageIcon, Swatch } from "../charts.js";
import { isOver } from "../api.js";
import { capital, clock, count, duration, percent, roughly } from "../format.js";
import { Failure, Progress, useAnswer } from "../parts.js";
import { html, useEffect, useMemo, useRef, useState } from "../vendor.js";
import { OUTCOMES, REASONS } from "../words.js";

const RATE_WINDOW_SECONDS = 30;
const SUMMARY_EVERY_SECONDS = 3;

export function WatchTab({ job, events, losses, changed }) {
  const semievol = job.semievol;
  return html`
    ${job.error && html`<div class="error" role="alert"><p><strong>The job failed.</strong> ${job.error.message}</p><p class="small">Code <code>${job.error.code}</code>. What was done until then is kept for tracing; correct the cause and <a href="/new?from=${job.id}">start it anew</a>.</p></div>`}
    ${semievol.review.waiting && !isOver(job.status) && html`<div class="note"><p>The pseudo-labels wait for a person: <a href="/jobs/${job.id}/labels">review them</a>, then let the job go on.</p></div>`}
    ${job.status === "succeeded" && html`<div class="note good"><p>Done. <a href="/jobs/${job.id}/verdict">See the verdict and download the adapter</a>.</p></div>`}
    ${job.status === "paused" && html`<div class="note"><p>Paused. Resume goes on where it stopped; nothing is lost.</p></div>`}
    <div class="pair">
      <${Stages} job=${job} />
      <div class="stack">
        <${Beliefs} job=${job} changed=${changed} />
        <${Losses} losses=${losses} labels=${Object.fromEntries(semievol.stages.map((stage) => [stage.name, stage.label ?? stage.name]))} />
      </div>
    </div>
    <${Log} events=${events} />
    <${Settings} job=${job} />`;
}

// --- stages ----------------------------------------------------------------------------------------------------------

function Stages({ job }) {
  const semievol = job.semievol;
  const left = job.estimated_finish ? job.estimated_finish - Date.now() / 1000 : null;
  return html`<section aria-labelledby="stages">
    <div class="between"><h2 id="stages">${isOver(job.status) ? capital(job.status) : "Progress"}</h2>
      <span class="num soft">${percent(semievol.progress)}${left > 0 ? ` · about ${roughly(left)} left` : ""}</span></div>
    <${Progress} value=${semievol.progress} label="Progress of the job" />
    <ol class="stages">${semievol.stages.map((stage) => html`<${Stage} key=${`${stage.unit} ${stage.name}`} stage=${stage} />`)}</ol>
  </section>`;
}

const SAID = { ready: "waits for a worker", waiting: "waits for a person", running: "running", failed: "failed", cancelled: "cancelled", done: "done" };

function Stage({ stage }) {
  const rate = useRate(stage);
  const counted = stage.total > 1 || stage.state === "running";
  const unit = stage.unit_of_count ?? "";
  const words = [];
  if (stage.state === "done") words.push(duration(stage.seconds ?? 0), ...facts(stage));
  else {
    words.push(SAID[stage.state] ?? stage.state);
    if (counted && stage.total) words.push(`${count(stage.done)} of ${count(stage.total)} ${unit}`);
    if (rate) words.push(`${rate >= 10 ? Math.round(rate) : rate.toFixed(1)} ${unit}/s`, `${roughly((stage.total - stage.done) / rate)} left`);
  }
  return html`<li class=${["ready", "waiting"].includes(stage.state) ? "ahead" : ""}>
    <${StageIcon} state=${stage.state} />
    <div>
      <div>${stage.label ?? stage.name}</div>
      <div class="small soft num-line">${words.join(" · ")}</div>
      ${stage.state === "running" && stage.total > 0 && html`<${Progress} value=${stage.done / stage.total} label=${stage.label ?? stage.name} />`}
    </div>
  </li>`;
}

function facts({ facts: told }) {
  const words = [];
  if (told.accuracy) words.push(`${percent(told.accuracy.value)} right`);
  if (told.decisions) words.push(`${count(told.decisions.accept)} accepted, ${count(told.decisions.reject)} rejected`);
  if (told.rows && typeof told.rows === "object") words.push(Object.entries(told.rows).filter(([, rows]) => rows).map(([role, rows]) => `${count(rows)} ${role}`).join(", "));
  if (told.steps) words.push(count(told.steps, "step"));
  return words;
}

/** Things a second over the last half minute that this page saw; null where it does not know yet. */
function useRate({ state, done, total, name }) {
  const seen = useRef([]);
  useEffect(() => {
    seen.current = [];
  }, [name, state]);
  if (state !== "running" || !total) return null;
  const now = performance.now() / 1000;
  const marks = seen.current;
  if (!marks.length || marks.at(-1)[1] !== done) marks.push([now, done]);
  while (marks.length > 2 && now - marks[0][0] > RATE_WINDOW_SECONDS) marks.shift();
  const [[from, first], [to, last]] = [marks[0], marks.at(-1)];
  return to - from >= 1 && last > first ? (last - first) / (to - from) : null;
}

// --- what the model believes -----------------------------------------------------------------------------------------

/** How each outcome is drawn, in the order in which they are stacked. */
const LOOKS = { consistent: "semievol", justified: "tint", majority: "tint", differed: "hollow", balanced: "hollow", unparsable: "base" };

/** Outcomes and entropies of the rows so far. `changed`: counts up when there may be more. */
function Beliefs({ job, changed }) {
  const path = job.method.type === "semievol" ? `/v1/fine_tuning/jobs/${job.id}/pseudo_labels/summary` : null;
  const generating = job.semievol.stages.some((stage) => stage.unit?.endsWith("/generate") && stage.state === "running");
  const { data, again } = useAnswer(path, {}, { everySeconds: generating ? SUMMARY_EVERY_SECONDS : 0 });
  useEffect(() => {
    if (changed) again();
  }, [changed]);
  if (!path) return null;
  const title = html`<h2 id="beliefs">What the model believes</h2>`;
  if (!data || data.state === "none") return html`<section aria-labelledby="beliefs">${title}<p class="soft">Nothing yet: the model answers the unlabeled rows once it has learned from the labels.</p></section>`;
  const all = Object.values(data.outcomes).reduce((sum, rows) => sum + rows, 0);
  const place = ([name]) => (Object.keys(LOOKS).indexOf(name) + 99) % 99;
  const shown = Object.entries(data.entropy.outcomes).filter(([, counts]) => counts.some(Boolean)).sort((a, b) => place(a) - place(b));
  return html`<section aria-labelledby="beliefs">
    <div class="between">${title}<span class="small soft num">${count(data.rows)}${data.total ? ` of ${count(data.total)}` : ""} rows answered</span></div>
    <ul class="shares">${Object.entries(data.outcomes).sort((a, b) => place(a) - place(b)).map(([name, rows]) => html`<li>
      <div class="between small"><span>${capital(OUTCOMES[name] ?? REASONS[name] ?? name)}</span><span class="num">${count(rows)} · ${percent(rows / all)}</span></div>
      <${ShareBar} share=${rows / all} look=${LOOKS[name] ?? "base"} /></li>`)}</ul>
    ${shown.length > 0 && html`<h3>Entropy of the replies, in nats per token</h3>
      <div class="legend">${shown.map(([name]) => html`<span><${Swatch} look=${LOOKS[name] ?? "base"} />${OUTCOMES[name] ?? name}</span>`)}</div>
      <${Histogram} label="Answered rows by entropy of the reply" layers=${shown.map(([name, counts]) => ({ look: LOOKS[name] ?? "base", counts }))} ticks=${["0", "1", "2", "3 or more"]} />`}
    ${data.decisions.accept + data.decisions.reject > 0 && html`<h3>Decisions</h3>
      <ul class="shares">${Object.entries(data.reasons).map(([name, rows]) => html`<li>
        <div class="between small"><span>${capital(REASONS[name] ?? name)}</span><span class="num">${count(rows)}</span></div>
        <${ShareBar} share=${rows / data.rows} look=${["confident", "drawn", "kept_all", "reviewed"].includes(name) ? "semievol" : "base"} /></li>`)}</ul>
      <p class="small"><a href="/jobs/${job.id}/labels">Look into the labels</a></p>`}
  </section>`;
}

function ShareBar({ share, look }) {
  return html`<svg class="chart" height="8" aria-hidden="true"><rect class="fill-track" width="100%" height="8" rx="2" /><rect class="fill-${look}" width="${(100 * share).toFixed(2)}%" height="8" rx="2" /></svg>`;
}

// --- losses and log --------------------------------------------------------------------------------------------------

function Losses({ losses, labels }) {
  const names = Object.keys(losses);
  if (!names.length) return null;
  const top = Math.max(...names.flatMap((name) => losses[name].points.map(([, loss]) => loss)));
  const steps = Math.max(...names.map((name) => losses[name].total ?? 0));
  const look = (name, place) => (name === "warm-up" ? "warm" : place > 1 ? "dashed" : "");
  return html`<section aria-labelledby="losses">
    <h2 id="losses">Training loss</h2>
    <div class="legend">${names.map((name, place) => html`<span><${Line} look=${look(name, place)} />${labels[name] ?? name}, last ${losses[name].points.at(-1)[1].toFixed(3)}</span>`)}</div>
    <${Curves} label="Training loss by step" x=${[0, steps]} y=${[0, top]} xTicks=${["step 0", count(steps)]} yTicks=${[top.toFixed(2), (top / 2).toFixed(2), "0"]}
      curves=${names.map((name, place) => ({ look: look(name, place), points: losses[name].points }))} />
    <p class="small soft">In nats per token of the replies.</p>
  </section>`;
}

function Log({ events }) {
  const box = useRef();
  const [pinned, setPinned] = useState(true);
  useEffect(() => {
    if (pinned && box.current) box.current.scrollTop = box.current.scrollHeight;
  }, [events.length]);
  const watch = ({ target }) => setPinned(target.scrollHeight - target.scrollTop - target.clientHeight < 24);
  return html`<section aria-labelledby="log">
    <h2 id="log">Log</h2>
    <div class="log" role="log" ref=${box} onScroll=${watch} tabindex="0" aria-labelledby="log">
      <ul>${events.map((event) => html`<li key=${event.id} class=${{ warn: "warn", error: "error-line" }[event.level] ?? ""}><time class="soft num">${clock(event.created_at)}</time><span>${event.message}</span></li>`)}</ul>
    </div>
  </section>`;
}

function Settings({ job }) {
  const lines = useMemo(() => flat(job.semievol.recipe), [job.semievol.recipe]);
  return html`<section>
    <details><summary>All settings, files and numbers of this job</summary>
      <dl class="facts small">
        <dt>Job</dt><dd><code>${job.id}</code></dd>
        <dt>Seed</dt><dd>${job.seed}</dd>
        <dt>Labeled file</dt><dd><code>${job.training_file}</code></dd>
        ${job.semievol.unlabeled_file && html`<dt>Unlabeled file</dt><dd><code>${job.semievol.unlabeled_file}</code></dd>`}
        ${job.validation_file && html`<dt>Validation file</dt><dd><code>${job.validation_file}</code></dd>`}
        ${job.semievol.test_file && html`<dt>Test file</dt><dd><code>${job.semievol.test_file}</code></dd>`}
        ${lines.map(([name, value]) => html`<dt><code>${name}</code></dt><dd><code>${value}</code></dd>`)}
      </dl>
    </details>
  </section>`;
}

function flat(value, path = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return [[path, JSON.stringify(value)]];
  return Object.entries(value).flatMap(([name, inner]) => flat(inner, path ? `${path}.${name}` : name));
}
