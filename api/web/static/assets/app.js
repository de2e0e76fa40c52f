// The frame: who is signed in, which page is shown, and the way from one to the other.

import { get, remove, whenSignedOut } from "./api.js";
import { go } from "./navigation.js";
import { FilesPage } from "./pages/files.js";
import { JobPage } from "./pages/job.js";
import { JobsPage } from "./pages/jobs.js";
import { KeysPage } from "./pages/keys.js";
import { ModelsPage } from "./pages/models.js";
import { NewJobPage } from "./pages/new_job.js";
import { SignInPage } from "./pages/sign_in.js";
import { WorkersPage } from "./pages/workers.js";
import { Failure, Loading, Title } from "./parts.js";
import { html, render, useLayoutEffect, useState } from "./vendor.js";

const ROUTES = [
  [/^\/$/, JobsPage],
  [/^\/new$/, NewJobPage],
  [/^\/jobs\/(?<id>[^/]+)(?:\/(?<tab>labels|verdict))?$/, JobPage],
  [/^\/files$/, FilesPage],
  [/^\/models$/, ModelsPage],
  [/^\/workers$/, WorkersPage],
  [/^\/keys$/, KeysPage],
];
const PLACES = [["/", "Jobs"], ["/files", "Files"], ["/models", "Models"], ["/workers", "Workers"], ["/keys", "Keys"]];

const here = () => location.pathname + location.search;

function followLinks(event) {
  const link = event.target.closest?.("a[href]");
  const plain = event.button === 0 && !event.metaKey && !event.ctrlKey && !event.shiftKey && !event.altKey;
  if (!link || !plain || link.hash || link.target || link.hasAttribute("download") || link.origin !== location.origin) return;
  if (!ROUTES.some(([pattern]) => pattern.test(link.pathname))) return;
  event.preventDefault();
  go(link.pathname + link.search);
}

function App() {
  const [path, setPath] = useState(here());
  const [session, setSession] = useState(undefined); // undefined: not known yet; null: nobody
  const [error, setError] = useState(null);

  const whoAmI = () =>
    get("/v1/session")
      .then((told) => (setSession(told), setError(null)))
      .catch((problem) => (problem.status === 401 ? setSession(null) : setError(problem)));
  useLayoutEffect(() => {
    whenSignedOut(() => setSession(null));
    const turn = () => setPath(here());
    addEventListener("popstate", turn);
    document.addEventListener("click", followLinks);
    whoAmI();
    return () => (removeEventListener("popstate", turn), document.removeEventListener("click", followLinks));
  }, []);

  if (error) return html`<main><${Title}>SemiEvol<//><${Failure} error=${error} again=${whoAmI} /></main>`;
  if (session === null) return html`<${SignInPage} signedIn=${(told) => (setSession(told), location.pathname === "/sign-in" && go("/"))} />`;
  const where = path.split("?")[0];
  const [pattern, Page] = ROUTES.find(([one]) => one.test(where)) ?? [/(?:)/, Nothing];
  // A job looks the same to all who may see it, so it is asked for beside the session and not after it.
  if (session === undefined && Page !== JobPage) return html`<main><${Loading} /></main>`;
  const signOut = () => remove("/v1/session").finally(() => setSession(null));
  return html`
    <a class="skip" href="#main">Skip to the page</a>
    <${Top} where=${where} session=${session} signOut=${signOut} />
    <main id="main" tabindex="-1"><${Page} key=${pattern.exec(where)?.groups?.id ?? where} session=${session} ...${pattern.exec(where)?.groups} /></main>`;
}

const ICON = new URL("icon.svg", import.meta.url).pathname;

function Top({ where, session, signOut }) {
  const current = (place) => (place === where || (place === "/" && where.startsWith("/jobs/")) ? "page" : undefined);
  return html`<header class="top">
    <div>
      <a class="brand" href="/"><img src=${ICON} alt="" width="22" height="22" />SemiEvol</a>
      <nav aria-label="Main">
        <ul>
          ${PLACES.map(([place, name]) => html`<li><a href=${place} aria-current=${current(place)}>${name}</a></li>`)}
        </ul>
      </nav>
      <div class="end">
        <span class="small soft">${session && html`${session.key.name || session.project}${session.key.admin ? ", admin" : ""}`}</span>
        <button onClick=${signOut}>Sign out</button>
      </div>
    </div>
  </header>`;
}

function Nothing() {
  return html`<${Title}>There is no such page<//><p>Go to <a href="/">the jobs</a>.</p>`;
}

render(html`<${App} />`, document.getElementById("app"));
