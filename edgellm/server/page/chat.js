// The conversation as it is shown: messages, the box to write in, and what an answer is at.

import { $, copyButton, icon, iconButton, make, say, toast } from "./dom.js";
import { render } from "./markdown.js";
import { told } from "./talk.js";

const SUGGESTIONS = ["Why is the sky blue?", "Write a haiku about a small computer", "Explain photosynthesis to a child",
  "Plan a simple dinner for four"];
const FINE = matchMedia("(pointer: fine)");
const DRAW_MS = 80; // between two drawings of an answer that is being written

export class Chat {
  /** `start(text)` asks the first question of a new conversation. */
  constructor({ ask, sub, models }) {
    this.ask = ask; this.sub = sub; this.models = models;
    this.talk = null;
    this.rows = [];
    this.following = true;
    this.drawn = 0;
    $("send").append(icon("up"));
    $("to-end").append(icon("down"));
    $("composer").addEventListener("submit", (e) => { e.preventDefault(); this.submit(); });
    $("text").addEventListener("keydown", (e) => this.key(e));
    $("text").addEventListener("input", () => this.grow());
    $("scroll").addEventListener("scroll", () => this.scrolled());
    $("to-end").addEventListener("click", () => { this.following = true; this.follow(true); });
    new ResizeObserver(() => this.follow()).observe($("messages"));
  }

  show(talk) {
    if (this.talk) this.talk.onchange = () => {};
    this.talk = talk;
    this.rows = [];
    this.following = true;
    talk.onchange = (what) => this.changed(what);
    $("messages").replaceChildren();
    this.changed("messages");
    if (FINE.matches) $("text").focus({ preventScroll: true });
  }

  focus() { $("text").focus(); }

  changed(what) {
    if (what === "piece") { this.drawSoon(); return; }
    if (what === "messages") this.drawAll();
    this.drawState();
    this.sub(this.talk, what);
  }

  // What is written

  submit() {
    if (this.talk.running && !$("text").value.trim()) { this.talk.stop(); return; }
    const text = $("text").value.trim();
    if (!text || this.talk.running) return;
    $("text").value = "";
    this.grow();
    this.following = true;
    this.run(() => this.ask(this.talk, this.talk.messages.length, text));
  }

  key(e) {
    if (e.key === "Enter" && !e.shiftKey && !e.isComposing && (FINE.matches || e.ctrlKey || e.metaKey)) {
      e.preventDefault();
      if (!this.talk.running) this.submit();
    } else if (e.key === "ArrowUp" && !$("text").value && !this.talk.running) {
      const last = this.talk.messages.findLastIndex((m) => m.role === "user");
      if (last >= 0) { e.preventDefault(); this.edit(last); }
    }
  }

  grow() {
    const area = $("text");
    area.style.height = "auto";
    area.style.height = `${Math.min(area.scrollHeight, innerHeight * 0.4)}px`;
    this.drawSend();
  }

  async run(action) {
    say("Waiting for the answer");
    const talk = this.talk;
    const answer = await action();
    if (talk !== this.talk) return;
    if (talk.error) {
      const last = talk.messages.at(-1);
      if (talk.error.status === 400 && last?.role === "user" && !$("text").value) { $("text").value = last.content; this.grow(); }
      return;
    }
    if (answer) say(answer.finish === "cancelled" ? "Stopped" : `Answer: ${this.spoken(answer)}`);
  }

  spoken(answer) {
    const text = answer.content.replace(/```[\s\S]*?(```|$)/g, " (code) ").replace(/[*_#`>|]/g, " ").replace(/\s+/g, " ").trim();
    return text.length > 700 ? `${text.slice(0, 700)} … the rest is on the page` : text;
  }

  // Messages

  drawAll() {
    const { talk } = this;
    const box = $("messages");
    if (!talk.messages.length && !talk.error) {
      this.rows = [];
      box.replaceChildren(this.welcome());
      return;
    }
    if (!this.rows.length) box.replaceChildren();
    const kept = [];
    for (const [i, message] of talk.messages.entries()) {
      const last = i === talk.messages.length - 1;
      const key = `${message.finish}|${last}|${talk.running}`;
      let row = this.rows[i];
      if (!row || row.message !== message || row.key !== key) {
        const fresh = this.row(message, i, last, row?.message === message ? row.open : undefined);
        fresh.key = key;
        if (row) row.element.replaceWith(fresh.element); else box.append(fresh.element);
        row = fresh;
      }
      kept.push(row);
    }
    for (const row of this.rows.slice(kept.length)) row.element.remove();
    this.rows = kept;
    this.errorBox?.remove();
    if (talk.error) box.append(this.errorBox = this.error(talk.error));
    this.follow();
  }

  drawSoon() {
    if (this.timer) return;
    const wait = Math.max(0, DRAW_MS - (performance.now() - this.drawn));
    this.timer = setTimeout(() => requestAnimationFrame(() => {
      this.timer = 0;
      this.drawn = performance.now();
      const row = this.rows.at(-1);
      if (row?.fill && row.message === this.talk.messages.at(-1)) row.fill();
      this.drawState();
      this.follow();
    }), wait);
  }

  row(message, i, last, open) {
    const row = { message, open };
    const mine = message.role === "user";
    const body = make("div.body");
    const actions = make("div.actions");
    row.element = make(`article.message.${mine ? "mine" : "theirs"}`, { "aria-label": mine ? "You" : "Answer" }, body, actions);
    if (mine) {
      body.append(make("p.plain", {}, message.content));
      actions.append(copyButton(() => message.content, "Copy message"),
        iconButton("edit", "Edit message", () => this.edit(i)));
      return row;
    }
    const busy = last && this.talk.running;
    const think = make("details.think", { ontoggle: () => { row.open = think.open; } },
      make("summary", {}, "Reasoning"), make("div.plain"));
    const text = make("div.text");
    const growing = growingText(text);
    body.append(think, text);
    row.fill = () => {
      think.hidden = !message.reasoning;
      if (message.reasoning) think.lastChild.textContent = message.reasoning;
      think.open = row.open ?? (busy && !message.content);
      if (message.finish) text.replaceChildren(render(message.content));
      else growing(message.content);
      row.element.classList.toggle("writing", busy);
    };
    row.fill();
    if (message.finish && !message.content && !message.reasoning) text.append(make("p.faint", {}, "The answer is empty."));
    if (!busy) {
      actions.append(copyButton(() => message.content, "Copy answer"),
        iconButton("redo", "Answer again", () => this.again(i)),
        make("span.stats", {}, told(message).join(" · ")));
    }
    return row;
  }

  again(i) {
    this.following = true;
    this.run(() => this.ask(this.talk, i, null));
  }

  edit(i) {
    const { talk } = this;
    if (talk.running) { toast("Stop the answer first."); return; }
    const row = this.rows[i];
    const area = make("textarea", { "aria-label": "Edit your message", rows: "3" });
    area.value = row.message.content;
    const done = () => { row.key = ""; this.drawAll(); this.rows[i]?.element.querySelector("button:last-of-type")?.focus(); };
    const form = make("form.edit", {
      onsubmit: (e) => {
        e.preventDefault();
        const text = area.value.trim();
        if (!text) return;
        row.key = "";
        this.following = true;
        this.run(() => this.ask(talk, i, text));
        $("text").focus();
      },
      onkeydown: (e) => {
        if (e.key === "Escape") { e.stopPropagation(); done(); }
        if (e.key === "Enter" && !e.shiftKey && !e.isComposing && FINE.matches) { e.preventDefault(); form.requestSubmit(); }
      },
    }, area, make("div.edit-row", {},
      make("span.faint", {}, talk.messages.length > i + 1 ? "What follows is replaced." : ""),
      make("button.quiet", { type: "button", onclick: done }, "Cancel"), make("button.primary", { type: "submit" }, "Ask")));
    row.element.replaceChildren(form);
    area.style.height = `${Math.min(area.scrollHeight + 2, innerHeight * 0.5)}px`;
    area.focus();
    area.setSelectionRange(area.value.length, area.value.length);
  }

  error({ message }) {
    const { talk } = this;
    const last = talk.messages.at(-1);
    const again = last?.role === "user"
      ? make("button.quiet", { type: "button", onclick: () => this.again(talk.messages.length) }, "Try again") : null;
    return make("div.failure", { role: "alert" }, icon("alert"), make("p", {}, message), again);
  }

  welcome() {
    const models = this.models();
    const name = models[0]?.name ?? "";
    return make("div.welcome", {},
      make("h2", {}, this.talk.temporary ? "A temporary conversation" : "What would you like to know?"),
      make("p.faint", {}, this.talk.temporary ? "It is not kept, and is gone when you leave it."
        : name ? `${name} answers, on your own boards.` : ""),
      make("div.suggestions", {}, SUGGESTIONS.map((text) => make("button", {
        type: "button", onclick: () => { $("text").value = text; this.submit(); } }, text))));
  }

  // What it is at

  drawState() {
    const { talk } = this;
    const { state } = talk;
    const waiting = talk.running && state && state.kind !== "writing";
    $("progress").hidden = !waiting;
    if (waiting) {
      const share = state.kind === "progress" && state.total ? state.done / state.total : null;
      $("progress").classList.toggle("unknown", share === null);
      $("progress-done").style.width = share === null ? "" : `${Math.max(2, 100 * share)}%`;
      const words = state.kind === "queued"
        ? `${state.position === 1 ? "Next in line" : `${state.position - 1} before you`}${state.eta_s ? `, about ${Math.round(state.eta_s)} s` : ""}`
        : share === null ? "Waiting for the boards" : `Reading your prompt: ${state.done} of ${state.total} tokens`;
      $("progress-text").textContent = words;
      if (state.kind === "queued") say(words);
    }
    const live = talk.running ? talk.messages.at(-1) : null;
    let note = "";
    if (live?.role === "assistant" && live.pieces > 4) {
      const rate = (live.pieces - 1) / ((performance.now() - live.first) / 1000);
      note = `${rate < 10 ? rate.toFixed(1) : Math.round(rate)} tokens/s`;
    }
    $("field-note").textContent = note;
    this.drawSend();
  }

  drawSend() {
    const stop = this.talk?.running ?? false;
    const button = $("send");
    if (button.dataset.stop !== String(stop)) {
      button.dataset.stop = String(stop);
      button.replaceChildren(icon(stop ? "stop" : "up", stop ? 20 : 18));
      button.setAttribute("aria-label", stop ? "Stop" : "Send");
      button.title = stop ? "Stop (Esc)" : "Send";
      button.type = stop ? "button" : "submit";
      button.onclick = stop ? () => { this.talk.stop(); if (FINE.matches) this.focus(); } : null;
    }
    button.classList.toggle("ready", stop || $("text").value.trim() !== "");
  }

  // Scrolling: it follows what is written, unless somebody scrolled up.

  scrolled() {
    const box = $("scroll");
    this.following = box.scrollHeight - box.scrollTop - box.clientHeight < 60;
    $("to-end").hidden = this.following;
  }

  follow(smooth = false) {
    if (!this.following) return;
    $("to-end").hidden = true;
    $("scroll").scrollTo({ top: $("scroll").scrollHeight, behavior: smooth ? "smooth" : "instant" });
  }
}

/** Return a function that shows a text that only grows. What ended with an empty line is not drawn again, so it can be
 * selected and copied while the rest is still being written. */
function growingText(element) {
  let settled = 0;
  const tail = make("div.tail");
  element.append(tail);
  return (text) => {
    const end = settledEnd(text, settled);
    if (end > settled) {
      tail.before(render(text.slice(settled, end)));
      settled = end;
    }
    tail.replaceChildren(render(text.slice(settled)));
  };
}

function settledEnd(text, from) {
  let end = from, fence = "", at = from;
  const lines = text.slice(from).split("\n");
  for (const [i, line] of lines.entries()) {
    const mark = /^ {0,3}(`{3,}|~{3,})/.exec(line)?.[1] ?? "";
    if (fence) { if (mark.startsWith(fence) && line.trim() === mark) fence = ""; } else if (mark) fence = mark;
    at += line.length + 1;
    const next = lines[i + 1];
    if (!fence && !line.trim() && next !== undefined && next.length > 4 && /^[^\s\-*+\d>|]/.test(next)) end = at;
  }
  return end;
}
