// The pseudo-labels of a job: searched, filtered and sorted by the service, each row with all that led to its decision,
// and the review by a person.

import { ahead, ask, isOver, post } from "../api.js";
import { Histogram, Swatch } from "../charts.js";
import { capital, count, decimals, percent } from "../format.js";
import { Dialog, Failure, Loading, More, Sure, useAction, useAnswer, usePages, useStill } from "../parts.js";
import { html, useEffect, useLayoutEffect, useRef, useState } from "../vendor.js";
import { MEASURES, OUTCOMES, REASONS } from "../words.js";

const ORDERS = { line: "line of the file", confidence: "least sure first", "-confidence": "surest first", entropy: "lowest entropy first", "-entropy": "highest entropy first" };
const NONE = { q: "", decision: "", reason: "", outcome: "", answer: "", reviewed: "", min_entropy: "", max_entropy: "", round: "", order: "line" };
const ROWS = 25; // at first and with each "more": drawing them is most of what opening the page takes
const TO_REVIEW = { ...NONE, decision: "accept", reviewed: "false", order: "confidence" };

const pathOf = (id) => `/v1/fine_tuning/jobs/${id}/pseudo_labels`;

/** Ask for what the tab shows at first, before the job itself is known. */
export function labelsAhead(id) {
  ahead(`${pathOf(id)}/summary`);
  ahead(pathOf(id), { ...NONE, limit: ROWS });
}

export function LabelsTab({ job, changed, again }) {
  const path = pathOf(job.id);
  const reviewing = job.semievol.review.waiting && !isOver(job.status);
  const [filter, setFilter] = useState(reviewing ? TO_REVIEW : NONE);
  const [open, setOpen] = useState(null);
  const [here, setHere] = useState(0);
  const still = useStill(filter);
  const summary = useAnswer(job.method.type === "semievol" ? `${path}/summary` : null);
  const pages = usePages(path, still, { limit: ROWS });
  const known = useRef(changed);
  useEffect(() => {
    if (changed === known.current) return;
    known.current = changed;
    if (pages.items?.length === 0) pages.again(); // a list that somebody works through stays as it is
    summary.again();
  }, [changed]);
  if (job.method.type !== "semievol") return html`<section><p>Plain fine-tuning makes no pseudo-labels.</p></section>`;

  const judged = (label) => {
    pages.set((old) => ({ ...old, items: old.items.map((one) => (one.line === label.line ? label : one)) }));
    summary.again();
  };
  const sent = useRef(Promise.resolve()); // one after the other: what is decided last about a row is what stays
  const edit = (line, change) => {
    const answer = sent.current.then(() => ask("PATCH", `${path}/${line}`, { body: change })).then((label) => (judged(label), label));
    sent.current = answer.catch(() => undefined);
    return answer;
  };
  const review = reviewing ? edit : null;
  const told = summary.data;
  return html`
    <${Failure} error=${summary.error} />
    ${reviewing && html`<${Review} job=${job} summary=${told} start=${(order) => (setFilter({ ...TO_REVIEW, order }), setHere(0))} again=${again} settled=${() => sent.current} />`}
    ${told?.state === "decided" && html`<${Overview} told=${told} />`}
    <section aria-label="Rows">
      <${Filters} filter=${filter} set=${setFilter} told=${told} />
      ${!pages.items && !pages.error && html`<${Loading} />`}
      ${pages.items?.length === 0 && html`<div class="empty"><p>${told?.state === "decided" ? "No row is like that." : "There are none yet: rows come here once the answers were generated and selected."}</p></div>`}
      ${pages.items?.length > 0 && html`<${Rows} pages=${pages} open=${setOpen} here=${here} setHere=${setHere} edit=${review} />`}
      <${More} pages=${pages} />
    </section>
    ${open && html`<${Row} path=${path} line=${open} close=${() => setOpen(null)} edit=${review} step=${(by) => {
      const place = pages.items.findIndex((one) => one.line === open) + by;
      if (pages.items[place]) (setOpen(pages.items[place].line), setHere(place));
    }} />`}`;
}

// --- over the rows ---------------------------------------------------------------------------------------------------

function Overview({ told }) {
  const { accept, reject } = told.decisions;
  const sides = (side) => Object.values(told.certainty?.outcomes ?? {}).map((one) => one[side]);
  const summed = (lists) => lists.reduce((sum, list) => sum.map((number, bin) => number + list[bin]), Array(20).fill(0));
  return html`<section aria-labelledby="overview" class="pair">
    <div>
      <h2 id="overview">${count(told.rows, "row")}${told.round > 1 ? `, round ${told.round}` : ""}</h2>
      <dl class="figures">
        <div><dt>Accepted</dt><dd>${count(accept)}</dd></div>
        <div><dt>Rejected</dt><dd>${count(reject)}</dd></div>
        ${told.review.rows > 0 && html`<div><dt>Reviewed</dt><dd>${count(told.review.rows)}</dd></div>`}
        ${told.review.precision && html`<div><dt>Right, estimated</dt><dd>${percent(told.review.precision.value)}</dd></div>`}
      </dl>
    </div>
    ${told.certainty && html`<div>
      <div class="legend"><span><${Swatch} look="semievol" />accepted</span><span><${Swatch} look="hollow" />rejected</span></div>
      <${Histogram} height=${56} label="Rows by ${MEASURES[told.certainty.measure]}" ticks=${["0 %", capital(MEASURES[told.certainty.measure]), "100 %"]}
        layers=${[{ look: "semievol", counts: summed(sides("accept")) }, { look: "hollow", counts: summed(sides("reject")) }]} />
    </div>`}
  </section>`;
}

function Filters({ filter, set, told }) {
  const put = (name) => (event) => set({ ...filter, [name]: event.target.value });
  const choice = (name, words, values) => html`<label class="field"><span>${words}</span>
    <select value=${filter[name]} onChange=${put(name)}>${Object.entries({ "": "any", ...values }).map(([value, said]) => html`<option value=${value}>${said}</option>`)}</select></label>`;
  const listed = (counts, words) => Object.fromEntries(Object.entries(counts ?? {}).map(([name, rows]) => [name, `${words?.[name] ?? name} (${count(rows)})`]));
  const narrowed = Object.keys(NONE).some((name) => filter[name] !== NONE[name]);
  return html`<div class="filters many" role="search">
    <label class="field grow"><span>Search the questions</span><input type="search" value=${filter.q} onInput=${put("q")} /></label>
    ${choice("decision", "Decision", { accept: "accepted", reject: "rejected" })}
    ${choice("reason", "Reason", listed(told?.reasons, REASONS))}
    ${choice("outcome", "Agreement", listed(told?.outcomes, OUTCOMES))}
    ${Object.keys(told?.answers ?? {}).length > 1 && choice("answer", "Answer", listed(told.answers))}
    ${choice("reviewed", "Reviewed", { true: "yes", false: "no" })}
    <label class="field"><span>Entropy from</span><input type="number" step="0.1" value=${filter.min_entropy} onInput=${put("min_entropy")} /></label>
    <label class="field"><span>Entropy to</span><input type="number" step="0.1" value=${filter.max_entropy} onInput=${put("max_entropy")} /></label>
    <label class="field"><span>Order</span><select value=${filter.order} onChange=${put("order")}>${Object.entries(ORDERS).map(([value, words]) => html`<option value=${value}>${words}</option>`)}</select></label>
    ${narrowed && html`<button onClick=${() => set(NONE)}>Clear</button>`}
  </div>`;
}

// --- the rows --------------------------------------------------------------------------------------------------------

export const Decision = ({ label }) => html`<span class="badge ${label.decision === "accept" ? "good" : ""}">${label.decision === "accept" ? "accepted" : "rejected"}</span>`;

function Rows({ pages, open, here, setHere, edit }) {
  const body = useRef();
  const at = Math.min(here, pages.items.length - 1);
  const keys = useKeys(pages, at, setHere, open, edit, body);
  return html`
    ${edit && html`<p class="small soft keys"><kbd>j</kbd> <kbd>k</kbd> next, previous · <kbd>a</kbd> accept · <kbd>r</kbd> reject · <kbd>c</kbd> correct · <kbd>Enter</kbd> open</p>`}
    <${Failure} error=${keys.error} />
    <div class="label-rows" ref=${body}>
      <table class="cards">
        <thead><tr><th scope="col">Line</th><th scope="col">Question</th><th scope="col">Answer</th><th scope="col">Decision</th><th scope="col" class="num">Confidence</th><th scope="col" class="num">Entropy</th></tr></thead>
        <tbody>${pages.items.map((label, place) => html`<tr key=${label.line} class=${edit && place === at ? "here" : ""} aria-current=${edit && place === at ? "true" : undefined}>
          <td class="num-left small soft" data-label="line">${count(label.line)}</td>
          <td class="main"><button class="linklike" onClick=${() => (setHere(place), open(label.line))}><span class="clamp">${label.question}</span></button></td>
          <td><span class="clamp">${label.answer ?? html`<span class="soft">none</span>`}</span>${label.review?.answer && html`<div class="small soft">corrected</div>`}</td>
          <td><${Decision} label=${label} /><div class="small soft">${label.review ? "by a person" : (REASONS[label.reason] ?? label.reason)}</div></td>
          <td class="num" data-label="confidence">${label.probability !== null ? percent(label.probability) : decimals(label.confidence)}</td>
          <td class="num" data-label="entropy">${decimals(label.entropy)}</td>
        </tr>`)}</tbody>
      </table>
    </div>
    ${keys.correcting && html`<${Correct} label=${keys.correcting} edit=${edit} close=${keys.corrected} />`}`;
}

/** The keyboard of the review: {error, correcting, corrected}. Keys of fields and dialogs are theirs. */
function useKeys(pages, at, setHere, open, edit, body) {
  const [error, setError] = useState(null);
  const [correcting, setCorrecting] = useState(null);
  useLayoutEffect(() => {
    // as soon as another row is marked, the next key is about that one
    if (!edit) return undefined;
    const move = (by) => {
      const next = Math.max(0, Math.min(pages.items.length - 1, at + by));
      setHere(next);
      body.current?.querySelectorAll("tbody tr")[next]?.scrollIntoView({ block: "nearest" });
      if (next >= pages.items.length - 3 && pages.more && !pages.loading) pages.next();
    };
    const decide = (decision) => {
      setError(null);
      edit(pages.items[at].line, { decision }).catch((problem) => (setError(problem), setHere(at)));
      move(1);
    };
    const does = { j: () => move(1), k: () => move(-1), a: () => decide("accept"), r: () => decide("reject"), c: () => setCorrecting(pages.items[at]), Enter: () => open(pages.items[at].line) };
    const press = (event) => {
      const busy = event.target.closest?.("input, select, textarea, dialog, a") || (event.key === "Enter" && event.target.closest?.("button, summary"));
      if (busy || event.ctrlKey || event.metaKey || event.altKey || !does[event.key]) return;
      event.preventDefault();
      does[event.key]();
    };
    addEventListener("keydown", press);
    return () => removeEventListener("keydown", press);
  });
  return { error, correcting, corrected: (label) => (setCorrecting(null), label && setHere(Math.min(pages.items.length - 1, at + 1))) };
}

function Correct({ label, edit, close }) {
  const action = useAction();
  const submit = async (event) => {
    event.preventDefault();
    const answer = new FormData(event.target).get("answer");
    const told = await action.run(() => edit(label.line, { answer }));
    if (told) close(told);
  };
  return html`<${Dialog} label="Correct the answer of line ${label.line}" close=${() => close()}>
    <form onSubmit=${submit}>
      <div class="text">${label.question}</div>
      <label class="field"><span>The right answer</span><input name="answer" defaultValue=${label.answer ?? ""} required autofocus /></label>
      <${Failure} error=${action.error} />
      <div class="row"><button class="first" disabled=${action.busy}>Save</button><button type="button" onClick=${() => close()}>Back</button></div>
    </form>
  <//>`;
}

// --- one row ---------------------------------------------------------------------------------------------------------

function Row({ path, line, close, edit, step }) {
  const { data, error, fresh } = useAnswer(`${path}/${line}`);
  const [label, setLabel] = useState(null);
  const action = useAction();
  const [correcting, setCorrecting] = useState(false);
  useEffect(() => setLabel(data), [data]);
  const decide = (change) => action.run(() => edit(line, change)).then((told) => told && setLabel({ ...label, ...told }));
  return html`<${Dialog} label="Line ${line}" close=${close}>
    <div class="inside">
      <div class="between"><h2>Line ${count(line)}</h2><div class="row"><button onClick=${() => step(-1)}>Previous</button><button onClick=${() => step(1)}>Next</button><button onClick=${close}>Close</button></div></div>
      <${Failure} error=${error} />
      ${(!label || !fresh) && !error && html`<${Loading} />`}
      ${label && fresh && html`
        <div class="row"><${Decision} label=${label} /><span>${capital(REASONS[label.reason] ?? label.reason)}; ${OUTCOMES[label.outcome] ?? REASONS[label.outcome] ?? label.outcome}.</span></div>
        ${edit && html`<div class="row">
          <button onClick=${() => decide({ decision: "accept" })} disabled=${action.busy || label.answer === null}>Accept</button>
          <button onClick=${() => decide({ decision: "reject" })} disabled=${action.busy}>Reject</button>
          <button onClick=${() => setCorrecting(true)} disabled=${action.busy}>Correct</button></div>`}
        <${Failure} error=${action.error} />
        <dl class="facts small">
          <dt>Answer</dt><dd><strong class="text">${label.answer ?? "none that can be read"}</strong></dd>
          ${label.vote_share !== null && html`<dt>Votes</dt><dd>${percent(label.vote_share)} of the collaborators</dd>`}
          ${label.probability !== null && html`<dt>Probability</dt><dd>${percent(label.probability)}</dd>`}
          <dt>Entropy</dt><dd>${decimals(label.entropy)} nats per token</dd>
          ${label.answer_entropy !== null && html`<dt>Over the answers</dt><dd>${decimals(label.answer_entropy)} nats</dd>`}
          ${label.review && html`<dt>Reviewed</dt><dd>${label.review.answer ? "corrected" : label.review.decision} by key <code>${label.review.by}</code></dd>`}
        </dl>
        <${Prompt} messages=${label.messages} options=${label.options} />
        <${Trials} label=${label} />`}
      ${correcting && html`<${Correct} label=${label} edit=${edit} close=${(told) => (setCorrecting(false), told && setLabel({ ...label, ...told }))} />`}
    </div>
  <//>`;
}

function Prompt({ messages, options }) {
  return html`<div>
    <h3>Prompt</h3>
    ${messages.map((turn) => html`<div class="small soft">${turn.role}</div><div class="text said" tabindex="0" role="region" aria-label=${turn.role}>${turn.content}</div>`)}
    ${options && html`<p class="small soft">Options: ${options.join(" · ")}</p>`}
  </div>`;
}

function Trials({ label }) {
  const examples = new Map(label.trials.flatMap((trial) => trial.worked_examples).map((one) => [one.id, one]));
  return html`
    <div>
      <h3>${count(label.trials.length, "collaborator")}</h3>
      ${label.trials.some((trial) => !trial.options) && html`<div class="legend"><span class="token sure-0">${"p < 10 %"}</span><span class="token sure-1">below 50 %</span><span class="token sure-2">below 90 %</span><span class="token sure-3">90 % or more</span></div>`}
      <div class="stack">${label.trials.map((trial) => html`<${Trial} trial=${trial} name="Collaborator ${trial.collaborator + 1}" />`)}
      ${label.justification && html`<${Trial} trial=${label.justification} name="Self-justification" />`}</div>
    </div>
    ${examples.size > 0 && html`<div>
      <h3>Worked examples in the prompt</h3>
      <ul class="problems small" tabindex="0" aria-label="Worked examples">${[...examples.values()].sort((a, b) => b.similarity - a.similarity).map((one) => html`<li>
        <div class="between"><span class="text">${one.question}</span><span class="num soft">similarity ${decimals(one.similarity)}</span></div>
        <strong class="text">${one.answer}</strong></li>`)}</ul>
    </div>`}`;
}

function Trial({ trial, name }) {
  return html`<div class="trial">
    <div class="between small"><span>${name}: <strong>${trial.answer ?? "nothing that can be read"}</strong></span><span class="soft num">entropy ${decimals(trial.entropy)}</span></div>
    ${trial.options
      ? html`<ul class="options small">${trial.options.map(({ option, logprob }) => html`<li><span>${option}</span><span class="num soft">${percent(Math.exp(logprob))}</span>
          <svg class="chart" height="6" aria-hidden="true"><rect class="fill-track" width="100%" height="6" rx="2" /><rect class="fill-semievol" width="${(100 * Math.exp(logprob)).toFixed(2)}%" height="6" rx="2" /></svg></li>`)}</ul>`
      : html`<div class="tokens" tabindex="0" aria-label="Reply">${trial.tokens.map(({ text, logprob }) => html`<span class="token ${sureness(logprob)}" title="p = ${percent(Math.exp(logprob))}">${text}</span>`)}</div>`}
  </div>`;
}

function sureness(logprob) {
  const p = Math.exp(logprob);
  return p < 0.1 ? "sure-0" : p < 0.5 ? "sure-1" : p < 0.9 ? "sure-2" : "sure-3";
}

// --- the review ------------------------------------------------------------------------------------------------------

function Review({ job, summary, start, again, settled }) {
  const action = useAction();
  const told = summary?.review;
  const go = () => action.run(() => settled().then(() => post(`/v1/fine_tuning/jobs/${job.id}/review/complete`))).then((done) => done && again());
  return html`<section aria-labelledby="review">
    <div class="heading"><h2 id="review">The job waits for your review</h2>
      <div class="row"><button onClick=${() => start("confidence")}>Least sure first</button><button onClick=${() => start("line")}>As in the file</button>
      <${Sure} look="first" question="Let the job go on? It trains on the rows that are accepted now; after that they cannot be changed." yes="Go on with the job" action=${go}>Go on with the job<//></div></div>
    ${told && html`<dl class="figures">
      <div><dt>Would be trained on</dt><dd>${count(summary.decisions.accept)}</dd></div>
      <div><dt>Reviewed so far</dt><dd>${count(told.rows)}</dd></div>
      <div><dt>Right among them, estimated</dt><dd>${told.precision ? percent(told.precision.value) : "–"}</dd></div>
      ${told.precision && html`<div><dt>95 % interval</dt><dd>${(100 * told.precision.low).toFixed(1)} – ${(100 * told.precision.high).toFixed(1)}</dd></div>`}
    </dl>`}
    <p class="small soft after">Each row that you judge sharpens the estimate: what you find among rows of equal certainty counts by how many such rows there are, and where you have not looked the model is believed. The least sure rows first finds mistakes soonest; rows as in the file give the fairest estimate.</p>
    <${Failure} error=${action.error} />
  </section>`;
}
