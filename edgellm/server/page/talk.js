// One conversation: its messages, and the answer that is being written.

import { server } from "./api.js";

/** A conversation; without an id it is not kept on the server. `onchange(what)` is called with "messages" when they
 * became others, "piece" when the last one grew, "state" when something else changed. */
export class Talk {
  constructor({ id = null, title = "", messages = [], settings = {}, temporary = false, model = "" } = {}) {
    Object.assign(this, { id, title, messages: [...messages], settings: { ...settings }, temporary, model });
    this.abort = null; // of the answer that is being written
    this.state = null; // what it is at: {kind, …} of the last event that isn't text
    this.error = null;
    this.onchange = () => {};
  }

  get running() { return this.abort !== null; }

  /** Ask: a new question after the first `keep` messages, or with null the question that is the last of them. */
  async ask(keep, text) {
    if (this.running) await this.stop();
    this.abort = new AbortController();
    this.error = null;
    this.state = { kind: "sent" };
    const before = this.messages.slice(0, keep);
    if (text !== null) before.push({ role: "user", content: text });
    this.messages = before;
    const answer = { role: "assistant", content: "", reasoning: "", finish: "", timings: {}, began: performance.now() };
    this.onchange("messages");
    let ended;
    this.ended = new Promise((resolve) => { ended = resolve; });
    const { model: _, ...chosen } = this.settings;
    const question = { model: this.settings.model ?? "", settings: chosen };
    if (this.id) Object.assign(question, { conversation: this.id, keep, text });
    else question.messages = before.map(({ role, content }) => ({ role, content }));
    try {
      for await (const event of server.answer(question, this.abort.signal)) this.take(event, answer);
      if (!answer.finish) throw new Error("The answer broke off: the server ended it early.");
    } catch (e) {
      if (e.name !== "AbortError") this.error = { message: e.message, status: e.status ?? 0 };
      if (!answer.finish && this.messages.includes(answer)) answer.finish = "cancelled";
    } finally {
      this.abort = null;
      this.state = null;
      ended();
      this.onchange("messages");
    }
    return answer;
  }

  take(event, answer) {
    switch (event.kind) {
      case "kept": this.title = event.title; this.onchange("title"); return;
      case "error": throw Object.assign(new Error(event.message), { status: event.status });
      case "accepted": answer.model = event.model; break;
      case "text": case "reasoning": {
        const first = !this.messages.includes(answer);
        if (first) this.messages.push(answer);
        answer[event.kind === "text" ? "content" : "reasoning"] += event.text;
        answer.pieces = (answer.pieces ?? 0) + 1;
        answer.first ??= performance.now();
        this.state = { kind: "writing" };
        this.onchange(first ? "messages" : "piece");
        return;
      }
      case "ended":
        answer.finish = event.reason;
        answer.timings = event.timings;
        if (!this.messages.includes(answer)) this.messages.push(answer);
        break;
    }
    this.state = event;
    this.onchange("state");
  }

  /** End the answer, and return once it has. */
  async stop() {
    this.abort?.abort();
    await this.ended;
  }
}

/** Return how an answer was computed, in a few words. */
export function told(message) {
  const t = message.timings ?? {};
  const parts = [];
  if (t.tokens_per_s) parts.push(`${t.tokens_per_s < 10 ? t.tokens_per_s.toFixed(1) : Math.round(t.tokens_per_s)} tokens/s`);
  if (t.tokens) parts.push(`${t.tokens} ${t.tokens === 1 ? "token" : "tokens"}`);
  if (t.first_token_s) parts.push(`first after ${t.first_token_s.toFixed(1)} s`);
  if (t.cached_tokens) parts.push(`${t.cached_tokens} of ${t.prompt_tokens} prompt tokens reused`);
  if (message.finish === "cancelled") parts.push("stopped");
  if (message.finish === "length") parts.push("cut at its longest length");
  return parts;
}
