// Small parts that several pages share.

import { get } from "./api.js";
import { html, useCallback, useEffect, useLayoutEffect, useRef, useState } from "./vendor.js";

// --- asking ----------------------------------------------------------------------------------------------------------

/** What the service says at this address: {data, error, again}. Asked anew when the address changes, and by `again`. */
export function useAnswer(path, query, { everySeconds = 0 } = {}) {
  const [state, setState] = useState({ data: null, error: null });
  const key = JSON.stringify([path, query]);
  const [asked, setAsked] = useState(0);
  useLayoutEffect(() => {
    // at once: an effect waits until the browser has painted, and what is painted is that one waits
    if (!path) return undefined;
    const stop = new AbortController();
    get(path, query, stop.signal)
      .then((data) => setState({ data, error: null, key }))
      .catch((error) => error.name !== "AbortError" && setState((old) => ({ ...old, error })));
    return () => stop.abort();
  }, [key, asked]);
  const again = useCallback(() => setAsked((number) => number + 1), []);
  useEffect(() => {
    if (!everySeconds) return undefined;
    const timer = setInterval(() => document.visibilityState === "visible" && again(), 1000 * everySeconds);
    return () => clearInterval(timer);
  }, [everySeconds]);
  return { ...state, fresh: state.key === key, again };
}

/** All pages of a list, one page at a time: {items, more, loading, error, next, again}. */
export function usePages(path, query, { limit = 50, everySeconds = 0 } = {}) {
  const key = JSON.stringify([path, query]);
  const [state, setState] = useState({ items: null, more: false, loading: false, error: null });
  const number = useRef(0);
  const load = useCallback(
    async (after, most = limit) => {
      const mine = ++number.current;
      setState((old) => ({ ...old, loading: true }));
      try {
        const told = await get(path, { ...query, limit: most, after });
        if (mine !== number.current) return;
        setState((old) => ({ items: after ? [...old.items, ...told.data] : told.data, more: told.has_more, loading: false, error: null }));
      } catch (error) {
        if (mine === number.current) setState((old) => ({ ...old, loading: false, error }));
      }
    },
    [key],
  );
  useLayoutEffect(() => {
    load();
    return () => number.current++;
  }, [key]);
  const shown = useRef(0);
  shown.current = state.items?.length ?? 0;
  const again = useCallback(() => load(undefined, Math.min(100, Math.max(limit, shown.current))), [key]);
  useEffect(() => {
    if (!everySeconds) return undefined;
    const timer = setInterval(() => document.visibilityState === "visible" && shown.current <= 100 && again(), 1000 * everySeconds);
    return () => clearInterval(timer);
  }, [everySeconds, key]);
  return { ...state, again, next: () => load(state.items.at(-1).id), set: setState };
}

/** A value that follows `value` once it has been still for so long. */
export function useStill(value, milliseconds = 350) {
  const [still, setStill] = useState(value);
  useEffect(() => {
    const timer = setTimeout(() => setStill(value), milliseconds);
    return () => clearTimeout(timer);
  }, [value]);
  return still;
}

/** {busy, error, run}: `run` does an action once at a time and keeps its error to be shown. */
export function useAction() {
  const [state, setState] = useState({ busy: false, error: null });
  const run = async (action) => {
    setState({ busy: true, error: null });
    try {
      const result = await action();
      setState({ busy: false, error: null });
      return result;
    } catch (error) {
      setState({ busy: false, error });
      return undefined;
    }
  };
  return { ...state, run };
}

// --- showing ---------------------------------------------------------------------------------------------------------

/** A page's heading, which takes the focus when one comes to the page, and names the window. */
export function Title({ children, name }) {
  const here = useRef();
  useEffect(() => {
    document.title = `${name ?? children} · SemiEvol`;
  }, [name, children]);
  useEffect(() => here.current.focus({ preventScroll: true }), []);
  return html`<h1 tabindex="-1" ref=${here}>${children}</h1>`;
}

export function Failure({ error, again }) {
  if (!error) return null;
  return html`<div class="error" role="alert">
    <p>${error.message}</p>
    ${again && html`<p><button onClick=${again}>Try again</button></p>`}
  </div>`;
}

export const Loading = () => html`<p class="soft" role="status">Loading …</p>`;

const LOOKS = { succeeded: "good", failed: "bad", cancelled: "", running: "live", queued: "wait", validating_files: "wait", paused: "wait" };
const SAID = { validating_files: "checking files" };

export function Status({ job }) {
  const waits = job.semievol?.review?.waiting && !["failed", "cancelled"].includes(job.status);
  if (waits && job.status === "running") return html`<span class="badge wait">waits for review</span>`;
  return html`<span class="badge ${LOOKS[job.status] ?? ""}">${SAID[job.status] ?? job.status}</span>`;
}

export const Progress = ({ value, label }) => html`<progress max="1" value=${value} aria-label=${label}></progress>`;

export function Copy({ text, label = "Copy" }) {
  const [done, setDone] = useState(false);
  const copy = async () => {
    await navigator.clipboard.writeText(text);
    setDone(true);
    setTimeout(() => setDone(false), 1500);
  };
  return html`<button onClick=${copy}><span aria-live="polite">${done ? "Copied" : label}</span></button>`;
}

/** A modal dialog that is open while it is drawn. */
export function Dialog({ label, close, children }) {
  const box = useRef();
  useLayoutEffect(() => {
    // before the next key is pressed, which is the dialog's
    const [element, before] = [box.current, document.activeElement];
    element.showModal();
    return () => {
      element.close();
      before?.focus(); // a dialog that is taken out of the page does not give the focus back by itself
    };
  }, []);
  return html`<dialog ref=${box} aria-label=${label} onCancel=${(event) => (event.preventDefault(), close())}
    onClick=${(event) => event.target === box.current && close()}>${children}</dialog>`;
}

/** A button that asks once more before it does something that cannot be undone. */
export function Sure({ children, question, yes, action, look = "" }) {
  const [asked, setAsked] = useState(false);
  return html`<button class=${look} onClick=${() => setAsked(true)}>${children}</button>
    ${asked &&
    html`<${Dialog} label=${question} close=${() => setAsked(false)}>
      <div class="inside">
        <p>${question}</p>
        <div class="row">
          <button class="first" onClick=${() => (setAsked(false), action())}>${yes}</button>
          <button onClick=${() => setAsked(false)}>Back</button>
        </div>
      </div>
    <//>`}`;
}

/** "More" under a list, and what went wrong. */
export function More({ pages }) {
  return html`<${Failure} error=${pages.error} again=${pages.again} />
    ${pages.more && html`<p><button onClick=${pages.next} disabled=${pages.loading}>Show more</button></p>`}`;
}

/** Problems of a file as the service told them. */
export function Problems({ problems, total }) {
  return html`<ul class="problems small" tabindex="0" aria-label="Problems by line">
    ${problems.map((one) => html`<li>${one.line ? html`<strong>line ${one.line.toLocaleString("en-US")}:</strong> ` : ""}${one.message}</li>`)}
    ${total > problems.length && html`<li>and ${(total - problems.length).toLocaleString("en-US")} more</li>`}
  </ul>`;
}
