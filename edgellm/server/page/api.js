// The server, as this page asks it.

export class ApiError extends Error {
  constructor(message, status) { super(message); this.status = status; }
}

let signedOut = () => {};

/** Have `action` called when the server wants an API key. */
export function onSignedOut(action) { signedOut = action; }

async function refusal(response) {
  let message = `The server answered ${response.status}.`;
  try { message = (await response.json()).error?.message ?? message; } catch { /* not JSON */ }
  if (response.status === 401) signedOut();
  return new ApiError(message, response.status);
}

async function send(method, path, content, signal) {
  const body = content === undefined ? undefined : JSON.stringify(content);
  const headers = body === undefined ? {} : { "Content-Type": "application/json" };
  try {
    return await fetch(path, { method, headers, body, signal, credentials: "same-origin" });
  } catch (e) {
    if (e.name === "AbortError") throw e;
    throw new ApiError("The server can't be reached.", 0);
  }
}

/** Ask for JSON. Throws ApiError. */
export async function ask(method, path, content) {
  const response = await send(method, path, content);
  if (!response.ok) throw await refusal(response);
  return response.status === 204 ? null : response.json();
}

/** Yield the server's events, each a JSON object. Throws ApiError, or AbortError once `signal` says stop. */
export async function* events(method, path, content, signal) {
  const response = await send(method, path, content, signal);
  if (!response.ok) throw await refusal(response);
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { value, done } = await reader.read().catch((e) => {
        if (e.name === "AbortError") throw e;
        throw new ApiError("The connection to the server was lost.", 0);
      });
      if (done) return;
      rest += value;
      let end;
      while ((end = rest.indexOf("\n\n")) >= 0) {
        for (const line of rest.slice(0, end).split("\n")) {
          if (line.startsWith("data: ")) yield JSON.parse(line.slice(6));
        }
        rest = rest.slice(end + 2);
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

const BASE = "/page/api";
const each = (id) => `${BASE}/conversations/${encodeURIComponent(id)}`;

export const server = {
  session: () => ask("GET", `${BASE}/session`),
  signIn: (key) => ask("POST", "/page/sign-in", { key }),
  signOut: () => ask("DELETE", "/page/sign-in"),
  conversations: (search = "") => ask("GET", `${BASE}/conversations?search=${encodeURIComponent(search)}`),
  create: (model, settings) => ask("POST", `${BASE}/conversations`, { model, settings }),
  conversation: (id) => ask("GET", each(id)),
  rename: (id, title) => ask("PATCH", each(id), { title }),
  configure: (id, settings) => ask("PATCH", each(id), { settings }),
  remove: (id) => ask("DELETE", each(id)),
  removeAll: () => ask("DELETE", `${BASE}/conversations`),
  exportOf: (id, format) => `${each(id)}/export?format=${format}`,
  exportAll: `${BASE}/export`,
  answer: (question, signal) => events("POST", `${BASE}/answer`, question, signal),
  boardsOnce: () => ask("GET", `${BASE}/boards`),
  boards: (signal, model) => events("GET", `${BASE}/boards/live${model ? `?model=${encodeURIComponent(model)}` : ""}`, undefined, signal),
};
