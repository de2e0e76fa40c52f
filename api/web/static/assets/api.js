// The one way to the service: the public API, asked as any client would, with the session's cookie.

const POLL_FILE_MS = 400;
const RETRY_STREAM_MS = 1500;
const AHEAD_MS = 3000; // an answer that nobody came for by then is old

/** An answer other than success; `message` says what is wrong and what would be right. */
export class ApiError extends Error {
  constructor(status, { message, code, param }) {
    super(message);
    Object.assign(this, { status, code, param });
  }
}

const UNREACHABLE = { message: "The service cannot be reached. It may be restarting; this page tries again.", code: "unreachable" };

let onSignedOut = () => {};

/** Call `then` whenever the service no longer knows who asks. */
export const whenSignedOut = (then) => (onSignedOut = then);

/** `/path?a=1&b=2` without what is null, undefined or empty; lists repeat their name. */
export function address(path, query = {}) {
  const pairs = Object.entries(query).flatMap(([name, value]) => [value].flat().map((one) => [name, one]));
  const text = new URLSearchParams(pairs.filter(([, value]) => value !== null && value !== undefined && value !== "")).toString();
  return text ? `${path}?${text}` : path;
}

/** The JSON that the service answers. Throws ApiError. */
export async function ask(method, path, { query, body, signal } = {}) {
  const options = { method, signal, headers: {} };
  if (body !== undefined) {
    options.body = JSON.stringify(body);
    options.headers["Content-Type"] = "application/json";
  }
  let answer;
  try {
    answer = await fetch(address(path, query), options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(0, UNREACHABLE);
  }
  const told = answer.headers.get("content-type")?.includes("json") ? await answer.json() : null;
  if (answer.ok) return told;
  if (answer.status === 401 && path !== "/v1/session") onSignedOut();
  throw new ApiError(answer.status, told?.error ?? { message: `The service answered ${answer.status}.`, code: null });
}

const early = new Map(); // by address: answers that were asked for ahead

/** Ask for what a page will need while it still waits for something else; the next `get` of it takes this answer. */
export function ahead(path, query) {
  const where = address(path, query);
  const answer = ask("GET", where);
  answer.catch(() => undefined); // whoever gets it is told
  early.set(where, answer);
  setTimeout(() => early.delete(where), AHEAD_MS);
}

export function get(path, query, signal) {
  const answer = early.get(address(path, query));
  early.delete(address(path, query));
  return answer ?? ask("GET", path, { query, signal });
}

export const post = (path, body) => ask("POST", path, { body });
export const remove = (path) => ask("DELETE", path);

/** Upload a file; `onPart` is called with the share that is sent, 0 to 1. Resolves once it was checked. */
export async function upload(file, onPart) {
  const form = new FormData();
  form.append("purpose", "fine-tune");
  form.append("file", file);
  let told = await new Promise((resolve, reject) => {
    const request = new XMLHttpRequest(); // fetch cannot tell how much was sent
    request.open("POST", "/v1/files");
    request.responseType = "json";
    request.upload.onprogress = (event) => event.lengthComputable && onPart(event.loaded / event.total);
    request.onerror = () => reject(new ApiError(0, UNREACHABLE));
    request.onload = () =>
      request.status < 300
        ? resolve(request.response)
        : reject(new ApiError(request.status, request.response?.error ?? { message: `The service answered ${request.status}.` }));
    request.send(form);
  });
  while (told.status === "uploaded") {
    await new Promise((resolve) => setTimeout(resolve, POLL_FILE_MS));
    told = await get(`/v1/files/${told.id}`);
  }
  return told;
}

/**
 * Follow a job's event stream until the job is over. `told(kind, data)` gets each event once, in order, however often
 * the connection is lost; `connected(yes)` tells of the connection. Returns what ends it.
 */
export function follow(jobId, told, connected) {
  let source, timer, ended = false;
  const seen = new Set();

  function open() {
    source = new EventSource(address(`/v1/fine_tuning/jobs/${jobId}/events`, { stream: true }));
    source.onopen = () => connected(true);
    for (const kind of ["message", "metrics", "progress"]) source.addEventListener(kind, (event) => hear(kind, event));
    source.onerror = lost;
  }

  function hear(kind, event) {
    const data = JSON.parse(event.data);
    if (data.id) {
      if (seen.has(data.id)) return;
      seen.add(data.id);
    }
    told(kind, data);
  }

  // The browser comes back by itself with Last-Event-ID, but not after an answer such as 503, and it does not know that
  // the stream of a finished job has simply ended.
  async function lost() {
    const closed = source.readyState === EventSource.CLOSED;
    if (closed) connected(false);
    try {
      const job = await get(`/v1/fine_tuning/jobs/${jobId}`);
      if (isOver(job.status)) {
        end();
        told("over", job);
        return;
      }
    } catch (error) {
      connected(false);
      if (error.status === 401 || error.status === 404) return end();
    }
    if (closed && !ended) timer = setTimeout(open, RETRY_STREAM_MS);
  }

  function end() {
    ended = true;
    clearTimeout(timer);
    source.close();
  }

  open();
  return end;
}

/** Whether a job has come to its end. */
export const isOver = (status) => ["succeeded", "failed", "cancelled"].includes(status);
