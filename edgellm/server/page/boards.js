// The boards as they stand: who holds which layers, how each is, what the plan predicted, and what changes meanwhile.

import { server } from "./api.js";
import { $, icon, make, say } from "./dom.js";

const AGAIN_MS = 2000;
const COLOURS = 6;

export class Boards {
  constructor() {
    Object.assign(this, { abort: null, told: 0, state: null, model: "" });
    $("boards").addEventListener("change", (e) => { if (e.target.id === "boards-model") this.choose(e.target.value); });
  }

  /** Watch the boards of another model. */
  choose(model) {
    this.model = model;
    this.told = 0;
    this.close();
    this.open();
  }

  /** Watch the boards until `close` is called. */
  async open() {
    if (this.abort) return;
    const abort = this.abort = new AbortController();
    if (!this.state) $("boards").replaceChildren(make("p.faint.loading", {}, "Asking the boards …"));
    while (!abort.signal.aborted) {
      let lost = "The server ended the connection.";
      try {
        for await (const event of server.boards(abort.signal, this.model)) {
          if (abort.signal.aborted) return;
          if (event.kind === "error") throw new Error(event.message);
          this.draw(event);
        }
      } catch (e) {
        if (abort.signal.aborted) return;
        if (e.status === 401) { this.close(); return; }
        lost = e.message;
      }
      this.draw(this.state, lost);
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  close() { this.abort?.abort(); this.abort = null; }

  draw(state, lost = "") {
    this.state = state;
    const fresh = make("div.boards-in", {},
      lost ? make("div.failure", {}, icon("alert"), make("p", {}, `${lost} Trying again …`)) : null, state ? view(state) : null);
    const old = $("boards").firstElementChild;
    if (old?.className === "boards-in") patch(old, fresh); else $("boards").replaceChildren(fresh);
    if (!state) return;
    drawDot(state);
    const latest = state.news.at(-1);
    if (latest && latest.time_s > this.told) {
      if (this.told) say(state.news.filter((n) => n.time_s > this.told).map((n) => n.text).join(". "));
      this.told = latest.time_s;
    }
    this.told ||= 1;
  }
}

/** Show in the list of pages whether the boards are well. */
export function drawDot(state) {
  const dot = $("boards-dot");
  const well = state.serving || state.ready;
  dot.className = `dot ${well && !state.findings.length ? "good" : well ? "warn" : "bad"}`;
  $("to-boards").setAttribute("aria-label", `Boards: ${well ? (state.findings.length ? "something to look at" : "all well") : "not all serve"}`);
}

function view(state) {
  const stages = state.boards.filter((b) => b.in_plan);
  const spare = state.boards.filter((b) => !b.in_plan);
  const down = stages.filter((b) => !b.serving && !b.ready);
  const words = down.length ? `${down.length} of ${stages.length} boards can’t serve`
    : state.serving ? (stages.length === 1 ? "One board answers" : `${stages.length} boards answer as one`) : "Ready: the next question loads the model";
  const colour = new Map(stages.map((b, i) => [b.board, i % COLOURS]));
  const free = Math.min(...stages.map((b) => b.free_slots ?? Infinity));
  return [
    make("div.headline", {}, make(`span.dot.${down.length ? "bad" : "good"}`), make("h2", {}, words)),
    models(state),
    make("p.faint", {}, `${state.model} · ${state.num_layers} layers · plan ${state.epoch}, for ${state.objective}`),
    make("dl.tiles", {},
      tile("Measured", state.tokens_per_s === null ? "–" : rate(state.tokens_per_s), "tokens/s"),
      tile("Predicted", state.predicted_tokens_per_s === null ? "–" : rate(state.predicted_tokens_per_s), "tokens/s"),
      tile("Context", state.context.toLocaleString(), "tokens"),
      tile("Free", Number.isFinite(free) ? `${free}/${state.slots}` : "–", "slots")),
    pipeline(stages, state.num_layers, colour),
    make("ul.cards", {}, stages.map((b) => card(b, colour.get(b.board), stages.length > 1))),
    spare.length ? [make("h3", {}, "Spare boards"), make("ul.cards", {}, spare.map((b) => card(b, null, false)))] : [],
    findings(state),
    news(state.news),
  ].flat();
}

/** The choice of a model, where there are several: which of them answer now, and the one whose boards are shown. */
function models(state) {
  if ((state.models ?? []).length < 2) return [];
  const options = state.models.map((name) => make("option", { value: name, selected: name === state.model ? "selected" : null },
    state.standing.includes(name) ? `${name} – answers now` : name));
  return [make("div.option.which", {}, make("label", { for: "boards-model" }, "Model"), make("select", { id: "boards-model" }, options))];
}

function tile(name, value, unit) {
  return make("div.tile", {}, make("dt", {}, name), make("dd", {}, make("b", {}, value), make("span", {}, unit)));
}

function pipeline(stages, layers, colour) {
  const bars = stages.map((b) => {
    const known = b.section;
    const bar = make(`li.stage.c${colour.get(b.board)}${b.serving || b.ready ? "" : ".down"}`, {},
      make("span.stage-name", {}, b.board), make("span.stage-layers", {}, known ? span(known) : "–"));
    bar.style.flexGrow = String(known ? Math.max(known.end - known.start, layers * 0.12) : layers * 0.12);
    return bar;
  });
  return make("ol.pipeline", { "aria-label": "Which layers each board computes, in the order of the work" }, bars);
}

function card(b, colour, several) {
  const off = b.predicted_ms_per_token && b.measured_ms_per_token
    && Math.max(b.predicted_ms_per_token, b.measured_ms_per_token) > 1.2 * Math.min(b.predicted_ms_per_token, b.measured_ms_per_token);
  const hot = b.temperature_c !== null && b.temperature_c >= 80;
  const state = b.serving ? "good" : b.ready ? "warn" : b.in_plan ? "bad" : "";
  const rows = [
    row("Layers", b.section ? `${span(b.section)}${b.path ? `, ${b.path}` : ""}` : null),
    ...(b.others ?? []).map((o) => row("Beside", `${o.model}, layers ${span(o)}${o.ram_bytes ? `, ${size(o.ram_bytes)}` : ""}`)),
    row("Loading", b.loading ? `${b.loading.model}, ${size(b.loading.read_bytes)} of ${size(b.loading.total_bytes)}` : null),
    row("Measured", b.measured_ms_per_token === null ? null : `${ms(b.measured_ms_per_token)} a token`, off ? "warn" : ""),
    row("Predicted", b.predicted_ms_per_token === null ? null : `${ms(b.predicted_ms_per_token)} a token`),
    row("Hop", several && b.hop_s !== null ? ms(b.hop_s * 1000) : null),
    row("Heat", b.temperature_c === null ? null : `${Math.round(b.temperature_c)} °C${b.throttled ? ", throttled" : ""}`, hot || b.throttled ? "bad" : ""),
    row("Power", b.undervoltage ? "too weak" : null, "bad"),
    row("Link", b.link_mbit === null ? null : `${b.link_mbit} Mb/s`, b.link_mbit < 1000 ? "warn" : ""),
    row("Disk free", b.disk_free_bytes === null ? null : size(b.disk_free_bytes)),
    row("Up", b.uptime_s === null ? null : long(b.uptime_s)),
  ];
  return make("li.card", {},
    make("div.card-head", {}, make(`span.swatch${colour === null ? "" : `.c${colour}`}`), make("h3", {}, b.board),
      make(`span.pill${state ? `.${state}` : ""}`, {}, b.serving ? "serving" : b.ready ? "ready" : b.in_plan ? "not serving" : "spare")),
    b.serving || b.ready ? null : make("p.why", {}, b.state),
    memory(b), make("dl.facts", {}, rows.flat()));
}

function memory(b) {
  const total = b.ram_total_bytes, offered = b.ram_offered_bytes, free = b.ram_free_bytes;
  if (!offered) return null;
  const whole = Math.max(total ?? 0, offered);
  const taken = free === null ? 0 : offered - free;
  const words = `${size(taken)} of ${size(offered)} offered${total ? `, ${size(total)} in all` : ""}`;
  const bar = make("div.meter", { role: "img", "aria-label": `RAM: ${words}` }, make("span.offered"), make("span.taken"));
  bar.children[0].style.width = `${100 * offered / whole}%`;
  bar.children[1].style.width = `${100 * taken / whole}%`;
  return make("div.memory", {}, make("div.memory-words", {}, make("span", {}, "RAM"), make("span", {}, `${size(taken)} of ${size(offered)}`)), bar);
}

function findings(state) {
  const found = state.findings.map((f) => make("li", {}, make("p", {}, make("b", {}, f.board), ` ${f.what}`), make("p.faint", {}, f.todo)));
  const notes = state.notes.map((text) => make("li", {}, make("p", {}, text)));
  return [make("h3", {}, "What doctor finds"), found.length + notes.length ? make("ul.findings", {}, found, notes)
    : make("p.faint.well", {}, icon("check"), "Nothing. ‘edgellm doctor’ looks closer, over SSH.")];
}

function news(told) {
  const rows = [...told].reverse().map((n) => make(`li.${n.kind}`, {},
    make("time", {}, new Date(n.time_s * 1000).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit", second: "2-digit" })), make("span", {}, n.text)));
  return [make("h3", {}, "What changed"), rows.length ? make("ol.news", {}, rows)
    : make("p.faint", {}, "Nothing yet. Boards that join or are lost show up here.")];
}

function row(name, value, kind = "") {
  return value === null ? [] : [make("dt", {}, name), make(kind ? `dd.${kind}` : "dd", {}, value)];
}

const span = ({ start, end }) => (end - start === 1 ? `${start}` : `${start}–${end - 1}`);
const rate = (value) => (value < 10 ? value.toFixed(1) : String(Math.round(value)));
const ms = (value) => `${value < 10 ? value.toFixed(value < 1 ? 2 : 1) : Math.round(value)} ms`;
const size = (bytes) => (bytes >= 1e9 ? `${(bytes / 1e9).toFixed(bytes < 1e10 ? 1 : 0)} GB` : `${Math.round(bytes / 1e6)} MB`);

function long(seconds) {
  for (const [unit, length] of [["day", 86400], ["hour", 3600], ["minute", 60]]) {
    const count = Math.floor(seconds / length);
    if (count >= 1) return `${count} ${unit}${count === 1 ? "" : "s"}`;
  }
  return "under a minute";
}

/** Make `old` like `fresh` and touch only what differs, so that whoever reads or selects there isn't disturbed. */
function patch(old, fresh) {
  for (const { name } of [...old.attributes]) if (name !== "style" && !fresh.hasAttribute(name)) old.removeAttribute(name);
  for (const { name, value } of fresh.attributes) if (name !== "style" && old.getAttribute(name) !== value) old.setAttribute(name, value);
  if (old.style.cssText !== fresh.style.cssText) old.style.cssText = fresh.style.cssText;
  const ours = [...old.childNodes], theirs = [...fresh.childNodes];
  for (const [i, child] of theirs.entries()) {
    const own = ours[i];
    if (!own) old.append(child);
    else if (own.nodeName !== child.nodeName) own.replaceWith(child);
    else if (child.nodeType === Node.TEXT_NODE) { if (own.data !== child.data) own.data = child.data; } else patch(own, child);
  }
  for (const own of ours.slice(theirs.length)) own.remove();
}
