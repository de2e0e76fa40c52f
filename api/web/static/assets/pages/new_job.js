// Starting a job: files, base model, settings, and at once what the service reads in them.

import { get, post, upload } from "../api.js";
import { bytes, count, percent, roughly } from "../format.js";
import { go } from "../navigation.js";
import { Failure, Loading, Problems, Progress, Title, useAction, useAnswer, useStill } from "../parts.js";
import { html, useEffect, useMemo, useRef, useState } from "../vendor.js";

const ROLES = {
  labeled: { name: "Labeled examples", hint: "Rows with the right answer: a few dozen are enough to begin with.", needed: true },
  unlabeled: { name: "Unlabeled rows", hint: "The same kind of rows without answers; three times as many or more. Without them this is plain fine-tuning." },
  validation: { name: "Validation rows", hint: "Optional, labeled: decides which adapter is delivered. Otherwise a part of the labeled rows is held out." },
  test: { name: "Test rows", hint: "Optional, labeled: only measured, never trained on or chosen by." },
};
/** Settings that matter most, by their path in the recipe; all others are folded away. */
const FIRST = ["rounds", "generation.n", "propagation.k", "selection.theta", "evaluation.deliver", "warmup.epochs", "evolution.epochs", "evolution.learning_rate"];
const NOTHING = { files: {}, model: "", suffix: "", seed: "", review: false, settings: {} };

export function NewJobPage() {
  const [form, setForm] = useState(NOTHING);
  const put = (change) => setForm((old) => ({ ...old, ...change }));
  const models = useAnswer("/v1/models");
  const bases = models.data?.data.filter((model) => !model.id.startsWith("ft:")) ?? [];
  useEffect(() => {
    if (bases.length && !form.model) put({ model: bases[0].id });
  }, [bases.length]);
  const missing = usePrefilled(put);

  const body = useMemo(() => bodyOf(form), [form]);
  const check = useCheck(body);
  const action = useAction();
  const start = async () => {
    const job = await action.run(() => post("/v1/fine_tuning/jobs", body));
    if (job) go(`/jobs/${job.id}`);
  };
  const setFile = (role) => (file) => setForm((old) => ({ ...old, files: { ...old.files, [role]: file } }));

  return html`
    <div class="heading"><${Title}>New job<//></div>
    <${Failure} error=${missing} />
    <section aria-labelledby="files">
      <h2 id="files">1. Files</h2>
      <p class="small soft">Chat JSON lines, prompt and completion, Alpaca, CSV or Parquet with a question, options and an answer; plain, .gz or .zst.</p>
      <div class="drops">${Object.entries(ROLES).map(([role, about]) => html`<${Drop} role=${role} about=${about} file=${form.files[role]} set=${setFile(role)} />`)}</div>
    </section>
    <section aria-labelledby="model">
      <h2 id="model">2. Model and settings</h2>
      <${Failure} error=${models.error} again=${models.again} />
      <div class="fields">
        <label class="field"><span>Base model</span>
          <select value=${form.model} onChange=${(event) => put({ model: event.target.value })}>${bases.map((one) => html`<option value=${one.id}>${one.id}</option>`)}</select>
          <span class="hint">${models.data && !bases.length ? "The operator has to allow one first." : "What the adapter will be for."}</span></label>
        <label class="field"><span>Name</span><input maxlength="64" value=${form.suffix} onInput=${(event) => put({ suffix: event.target.value })} /><span class="hint">Optional; becomes part of the model's name.</span></label>
        <label class="field"><span>Seed</span><input type="number" min="0" step="1" value=${form.seed} onInput=${(event) => put({ seed: event.target.value })} /><span class="hint">Optional; the same seed gives the same result.</span></label>
      </div>
      ${form.files.unlabeled && html`<p class="check"><label><input type="checkbox" checked=${form.review} onChange=${(event) => put({ review: event.target.checked })} />Wait for my review of the pseudo-labels before training on them</label></p>`}
      <${Settings} values=${form.settings} resolved=${check.told?.recipe} set=${(settings) => put({ settings })} />
    </section>
    <section aria-labelledby="check" aria-live="polite" aria-busy=${check.busy}>
      <h2 id="check">3. Check</h2>
      ${!form.files.labeled && html`<p class="soft">Drop the labeled examples first; then this shows how everything was read.</p>`}
      <${Failure} error=${check.error} />
      ${check.busy && !check.told && html`<${Loading} />`}
      ${check.told && html`<${Checked} told=${check.told} unlabeled=${!!form.files.unlabeled} />`}
      <${Failure} error=${action.error} />
      <div class="row"><button class="first" onClick=${start} disabled=${!body || action.busy || check.busy || !check.told?.valid}>Start the job</button>
        ${check.busy && html`<span class="soft small" role="status">checking …</span>`}</div>
    </section>`;
}

/** What is posted; null while something needed is missing. */
function bodyOf({ files, model, suffix, seed, review, settings }) {
  if (!files.labeled || !model) return null;
  const body = { model, training_file: files.labeled.id };
  if (files.validation) body.validation_file = files.validation.id;
  if (suffix.trim()) body.suffix = suffix.trim();
  if (seed !== "") body.seed = Number(seed);
  if (!files.unlabeled) return { ...body, method: { type: "supervised" } };
  const block = { unlabeled_file: files.unlabeled.id };
  if (files.test) block.test_file = files.test.id;
  if (review) block.review = true;
  for (const [path, value] of Object.entries(settings)) {
    const names = path.split(".");
    const inner = names.slice(0, -1).reduce((place, name) => (place[name] ??= {}), block);
    inner[names.at(-1)] = value;
  }
  return { ...body, method: { type: "semievol", semievol: block } };
}

/** What the service says of the job before it is started: {told, error, busy}. */
function useCheck(body) {
  const still = useStill(JSON.stringify(body), 400);
  const [state, setState] = useState({ told: null, error: null, of: null });
  useEffect(() => {
    if (still === "null") return setState({ told: null, error: null, of: still });
    let current = true;
    const set = (told, error) => current && setState({ told, error, of: still });
    post("/v1/fine_tuning/jobs/validate", JSON.parse(still)).then((told) => set(told, null), (error) => set(null, error));
    return () => (current = false);
  }, [still]);
  return { ...state, busy: state.of !== JSON.stringify(body) };
}

/** "Start it anew": puts in the files and settings of the job that the address names; returns why it could not. */
function usePrefilled(put) {
  const [error, setError] = useState(null);
  useEffect(() => {
    const from = new URLSearchParams(location.search).get("from");
    if (!from) return;
    const file = (id) => (id ? get(`/v1/files/${id}`).catch((problem) => (setError(problem), null)) : null);
    const fill = async (job) => {
      const { unlabeled_file, test_file, review, ...settings } = job.method.semievol ?? {};
      const [labeled, unlabeled, validation, test] = await Promise.all([job.training_file, unlabeled_file, job.validation_file, test_file].map(file));
      put({ files: { labeled, unlabeled, validation, test }, model: job.model, suffix: job.user_provided_suffix ?? "", review: !!review, settings: flat(settings) });
    };
    get(`/v1/fine_tuning/jobs/${from}`).then(fill).catch(setError);
  }, []);
  return error;
}

function flat(value, path = "") {
  if (value === null || typeof value !== "object" || Array.isArray(value)) return { [path]: value };
  return Object.assign({}, ...Object.entries(value).map(([name, inner]) => flat(inner, path ? `${path}.${name}` : name)));
}

// --- files -----------------------------------------------------------------------------------------------------------

function Drop({ role, about, file, set }) {
  const [over, setOver] = useState(false);
  const [sent, setSent] = useState(null);
  const action = useAction();
  const input = useRef();
  const take = async (given) => {
    if (!given) return;
    setSent(0);
    set(null);
    const told = await action.run(() => upload(given, setSent));
    setSent(null);
    if (told) set(told);
    if (input.current) input.current.value = "";
  };
  const drop = (event) => {
    event.preventDefault();
    setOver(false);
    take(event.dataTransfer.files[0]);
  };
  const bad = file?.status === "error";
  return html`<div class="drop ${over ? "over" : ""} ${file ? "full" : ""}" onDragOver=${(event) => (event.preventDefault(), setOver(true))} onDragLeave=${() => setOver(false)} onDrop=${drop}>
    <label for="file-${role}"><strong>${about.name}</strong></label>
    ${file && html`<div class="between small"><span>${file.filename}<br /><span class="soft">${bytes(file.bytes)}${file.semievol.rows !== null ? `, ${count(file.semievol.rows, "row")}, ${file.semievol.kind}` : ""}</span></span>
      <button class="plain" onClick=${() => set(null)} aria-label="Take ${about.name} out">Remove</button></div>`}
    ${bad && html`<div class="error small" role="alert"><p>${file.semievol.problems.length ? "This file cannot be used:" : file.status_details}</p><${Problems} problems=${file.semievol.problems} total=${file.semievol.problems.length} /></div>`}
    ${sent !== null && html`<${Progress} value=${sent} label="Uploading" /><span class="small soft" role="status">${sent < 1 ? `uploading, ${percent(sent)}` : "checking …"}</span>`}
    <${Failure} error=${action.error} />
    <input type="file" id="file-${role}" ref=${input} onChange=${(event) => take(event.target.files[0])} aria-describedby="hint-${role}" />
    ${!file && html`<${Known} role=${role} set=${set} />`}
    <span class="small soft" id="hint-${role}">${about.hint}</span>
  </div>`;
}

/** Files that were uploaded before. */
function Known({ role, set }) {
  const { data } = useAnswer("/v1/files", { purpose: "fine-tune", limit: 100 });
  const kind = role === "unlabeled" ? "unlabeled" : "labeled";
  const files = data?.data.filter((file) => file.status === "processed" && file.semievol.kind === kind) ?? [];
  if (!files.length) return null;
  return html`<label class="small known">or <select aria-label="${ROLES[role].name}: a file uploaded before" onChange=${(event) => set(files.find((file) => file.id === event.target.value))}>
    <option value="">one uploaded before</option>${files.map((file) => html`<option value=${file.id}>${file.filename}, ${count(file.semievol.rows, "row")}</option>`)}</select></label>`;
}

// --- settings --------------------------------------------------------------------------------------------------------

function Settings({ values, resolved, set }) {
  const { data } = useAnswer("/v1/recipe");
  const settings = useMemo(() => (data ? listed(data.schema) : []), [data]);
  if (!settings.length) return null;
  const put = (path) => (value) => {
    const { [path]: _, ...rest } = values;
    set(value === undefined ? rest : { ...rest, [path]: value });
  };
  const field = (one) => html`<${Setting} key=${one.path} setting=${one} value=${values[one.path]} resolved=${at(resolved, one.path)} set=${put(one.path)} />`;
  const rest = settings.filter((one) => !FIRST.includes(one.path));
  const groups = [...new Set(rest.map((one) => one.path.split(".").slice(0, -1).join(".")))];
  return html`
    <h3>Settings</h3>
    <div class="fields">${FIRST.map((path) => settings.find((one) => one.path === path)).filter(Boolean).map(field)}</div>
    <details class="rest"><summary>All other settings</summary>
      ${groups.map((group) => html`<fieldset><legend>${group || "general"}</legend><div class="fields">${rest.filter((one) => one.path.split(".").slice(0, -1).join(".") === group).map(field)}</div></fieldset>`)}
    </details>`;
}

/** Every setting of the recipe's JSON schema: [{path, description, type, choices, default}]. The operator's are left out. */
function listed(schema) {
  const find = (one) => (one.$ref ? { ...schema.$defs[one.$ref.split("/").at(-1)], ...one } : one);
  const walk = (node, path) =>
    Object.entries(node.properties).flatMap(([name, given]) => {
      const place = path ? `${path}.${name}` : name;
      if (place === "model") return [];
      const one = find(given);
      if (one.properties) return walk(one, place);
      const forms = (one.anyOf ?? one.oneOf ?? [one]).map(find);
      const type = forms.map((form) => form.type).find((name) => name && name !== "null");
      const choices = forms.flatMap((form) => form.enum ?? (form.const !== undefined ? [form.const] : []));
      return [{ path: place, description: one.description ?? "", type, choices: type === "boolean" ? [true, false] : choices, default: one.default }];
    });
  return walk(schema, "");
}

const at = (value, path) => path.split(".").reduce((inner, name) => inner?.[name], value);
const said = (value) => (value === null || value === undefined ? "none" : typeof value === "object" ? JSON.stringify(value) : String(value));

function Setting({ setting, value, resolved, set }) {
  const { path, description, type, choices } = setting;
  const standard = said(value === undefined && resolved !== undefined ? resolved : setting.default);
  const read = (text) => {
    if (text === "") return set(undefined);
    if (choices.length) return set(choices.find((choice) => String(choice) === text));
    if (type === "number" || type === "integer") return set(Number(text));
    if (type === "string") return set(text);
    try {
      return set(JSON.parse(text));
    } catch {
      return set(text); // the service says what would be right
    }
  };
  const given = value === undefined ? "" : said(value);
  return html`<label class="field"><span>${path}</span>
    ${choices.length
      ? html`<select value=${given} onChange=${(event) => read(event.target.value)}><option value="">${standard} (default)</option>${choices.map((choice) => html`<option value=${String(choice)}>${String(choice)}</option>`)}</select>`
      : html`<input type=${type === "number" || type === "integer" ? "number" : "text"} step="any" value=${given} placeholder=${standard} onChange=${(event) => read(event.target.value)} />`}
    <span class="hint">${description}</span></label>`;
}

// --- the check -------------------------------------------------------------------------------------------------------

function Checked({ told, unlabeled }) {
  return html`
    ${told.errors.length > 0 && html`<div class="error" role="alert"><p><strong>This cannot start yet.</strong></p><ul class="problems" tabindex="0" aria-label="What is wrong">${told.errors.map((one) => html`<li class="text">${one.message}</li>`)}</ul></div>`}
    ${told.valid && html`<div class="row"><span class="badge good">ready</span><span>${unlabeled ? "SemiEvol: learn from the labels, then from the unlabeled rows that the model is sure of." : "Plain fine-tuning on the labeled rows; add unlabeled rows to learn from them too."}</span></div>`}
    <div class="pair checked">
      <div>
        ${told.answers && html`<h3>Answers</h3><p>${kind(told.answers)}</p>${Object.keys(told.answers.mix).length > 0 && html`<${Mix} mix=${told.answers.mix} />`}`}
        ${told.token_lengths && html`<h3>Lengths in tokens</h3><${Lengths} lengths=${told.token_lengths} />`}
        ${told.estimate && html`<${Expected} estimate=${told.estimate} />`}
        ${told.overlaps && html`<${Overlaps} overlaps=${told.overlaps} />`}
        ${told.notes.map((note) => html`<p class="small soft">${note}</p>`)}
      </div>
      <div>${told.loss_mask?.length > 0 && html`<h3>What is learned from the first rows</h3>
        <div class="legend"><span class="tokens-key trained">counted by the loss</span><span class="tokens-key">only read</span></div>
        ${told.loss_mask.map((row) => html`<${Masked} row=${row} />`)}`}</div>
    </div>`;
}

function kind({ kind, options }) {
  if (kind === "choice") return options ? `Each reply is one of ${count(options.length)} classes.` : "Each reply is the letter of one of the row's options.";
  return { number: "Replies are read as numbers.", text: "Replies are free text, compared without case, punctuation and articles.", exact: "Replies are compared as they are written." }[kind] ?? kind;
}

function Mix({ mix }) {
  const most = Math.max(...Object.values(mix));
  return html`<ul class="shares">${Object.entries(mix).slice(0, 12).map(([answer, rows]) => html`<li><div class="between small"><span>${answer}</span><span class="num">${count(rows)}</span></div>
    <svg class="chart" height="6" aria-hidden="true"><rect class="fill-track" width="100%" height="6" rx="2" /><rect class="fill-base" width="${((100 * rows) / most).toFixed(1)}%" height="6" rx="2" /></svg></li>`)}
    ${Object.keys(mix).length > 12 && html`<li class="small soft">and ${Object.keys(mix).length - 12} more</li>`}</ul>`;
}

function Lengths({ lengths }) {
  return html`<div class="scroll" tabindex="0" role="region" aria-label="Lengths in tokens"><table class="small"><thead><tr><th scope="col">File</th><th scope="col" class="num">Half</th><th scope="col" class="num">90 %</th><th scope="col" class="num">99 %</th><th scope="col" class="num">Longest</th></tr></thead>
    <tbody>${Object.entries(lengths).map(([role, one]) => html`<tr><th scope="row">${role}</th><td class="num">${count(one.p50)}</td><td class="num">${count(one.p90)}</td><td class="num">${count(one.p99)}</td><td class="num">${count(one.max)}</td></tr>`)}</tbody></table></div>`;
}

/** What the job would take, in the words of the command line (semievol/wording.py). */
function Expected({ estimate: { seconds, tokens, gpu_memory_bytes, gpu_memory_share, learned_from } }) {
  const total = tokens.trained + tokens.prompts + tokens.replies;
  const parts = [seconds !== null && `about ${roughly(seconds)} of work`, count(total, "token"), gpu_memory_bytes !== null && `${bytes(gpu_memory_bytes)} of GPU memory`].filter(Boolean);
  const why = seconds === null ? "The time is not known: no job of this base model has finished here, and its size is not at hand." : learned_from ? `The time was learned from ${count(learned_from, "finished job")} of this base model.` : "The time is a guess from the model's size: no job of this base model has finished here.";
  return html`<h3>What it takes</h3><p>Expected: ${parts.slice(0, -1).join(", ")}${parts.length > 1 && " and "}${parts.at(-1)}.</p>
    <p class="small soft">${why} Waiting for a worker comes on top.${gpu_memory_share !== null && ` vLLM takes ${Math.round(100 * gpu_memory_share)} % of the GPU's memory whatever it needs.`}</p>`;
}

function Overlaps({ overlaps }) {
  const lines = ({ lines }) => `line${lines.length > 1 ? "s" : ""} ${lines.slice(0, 5).join(", ")}${lines.length > 5 ? ", …" : ""}`;
  const said = [
    ...overlaps.left_out.map((one) => `${count(one.rows, "row")} of ${one.role} also in ${one.also_in}, left out (${lines(one)})`),
    ...overlaps.repeated.map((one) => `${count(one.rows, "row")} of ${one.role} ${one.also_in ? `also in ${one.also_in}` : "there more than once"} (${lines(one)})`),
    ...(overlaps.contradicting ? [`${count(overlaps.contradicting.rows, "row")} of ${overlaps.contradicting.role} ask the same and differ in the answer (${lines(overlaps.contradicting)})`] : []),
  ];
  return html`<h3>Duplicates</h3>${said.length ? html`<ul class="problems small" tabindex="0" aria-label="Duplicates">${said.map((one) => html`<li>${one}</li>`)}</ul>` : html`<p class="small soft">None found.</p>`}`;
}

function Masked({ row }) {
  return html`<div class="tokens" tabindex="0" aria-label="A row in tokens">${row.map((turn) => html`<span class="role">${turn.role}: </span>${(turn.tokens ?? [turn.text]).map((piece) => html`<span class="token ${turn.trained ? "trained" : ""}">${piece}</span>`)}${"\n"}`)}</div>`;
}
