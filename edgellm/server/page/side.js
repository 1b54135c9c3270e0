// The list of kept conversations: search, open, rename, export, delete.

import { server } from "./api.js";
import { choose, confirmed, prompted } from "./dialogs.js";
import { $, icon, make, say, toast } from "./dom.js";

const DAY_S = 86400;

export class Side {
  constructor({ deleted, renamed }) {
    this.deleted = deleted; this.renamed = renamed;
    this.current = null;
    this.asked = 0;
    $("new").append(icon("plus"), "New chat");
    $("to-boards").append(icon("boards"), "Boards", make("span.dot", { id: "boards-dot" }));
    $("open-options").append(icon("settings"), "Settings");
    $("open-side").append(icon("menu", 20));
    $("close-side").append(icon("close", 20));
    $("open-side").onclick = () => this.open(true);
    $("close-side").onclick = () => this.open(false);
    $("shade").onclick = () => this.open(false);
    $("search").addEventListener("input", () => { clearTimeout(this.timer); this.timer = setTimeout(() => this.load(true), 180); });
    $("search").addEventListener("keydown", (e) => {
      if (e.key === "Escape" && $("search").value) { e.stopPropagation(); $("search").value = ""; this.load(); }
      if (e.key === "ArrowDown") { e.preventDefault(); $("list").querySelector("a")?.focus(); }
    });
    $("list").addEventListener("keydown", (e) => this.step(e));
  }

  open(yes) {
    document.body.classList.toggle("side-open", yes);
    $("main").inert = yes;
    if (yes) $("close-side").focus(); else if (document.activeElement === document.body || $("side").contains(document.activeElement)) $("open-side").focus();
  }

  step(e) {
    if (e.key !== "ArrowDown" && e.key !== "ArrowUp") return;
    const links = [...$("list").querySelectorAll("a")];
    const at = links.indexOf(e.target.closest(".talk")?.querySelector("a"));
    if (at < 0) return;
    e.preventDefault();
    if (e.key === "ArrowUp" && at === 0) $("search").focus();
    else links[at + (e.key === "ArrowDown" ? 1 : -1)]?.focus();
  }

  async load(tell = false) {
    const asked = (this.asked += 1);
    const words = $("search").value.trim();
    let found;
    try { found = (await server.conversations(words)).conversations; } catch (e) {
      if (e.status !== 401) toast(e.message, true);
      return;
    }
    if (asked !== this.asked) return; // a later one is on its way
    this.draw(found, words);
    $("search-note").textContent = words && !found.length ? "Nothing found" : "";
    if (tell && words) say(`${found.length} found`);
  }

  draw(found, words) {
    const groups = new Map();
    for (const talk of found) {
      const name = words ? "Found" : age(talk.changed_s);
      if (!groups.has(name)) groups.set(name, []);
      groups.get(name).push(talk);
    }
    const held = document.activeElement?.closest?.(".talk")?.dataset.id;
    const kind = held && document.activeElement.tagName;
    $("list").replaceChildren(...[...groups].map(([name, talks]) => make("section", { "aria-label": name },
      make("h2", {}, name), make("ul", {}, talks.map((talk) => this.item(talk, words))))));
    if (held) $("list").querySelector(`[data-id="${CSS.escape(held)}"] ${kind}`)?.focus();
    this.mark(this.current);
  }

  item(talk, words) {
    const title = talk.title || "New chat";
    const link = make("a", { href: `#/c/${encodeURIComponent(talk.id)}`, title }, make("span.name", {}, title),
      words && talk.excerpt ? make("span.excerpt", {}, marked(talk.excerpt, words)) : null);
    const more = make("button.icon", { type: "button", "aria-label": `More about ${title}`, "aria-haspopup": "menu",
      onclick: (e) => this.menu(talk, e.currentTarget) }, icon("more"));
    return make("li.talk", { "data-id": talk.id }, link, more);
  }

  mark(id) {
    this.current = id;
    for (const item of $("list").querySelectorAll(".talk")) {
      const here = item.dataset.id === id;
      item.classList.toggle("here", here);
      if (here) item.firstChild.setAttribute("aria-current", "page"); else item.firstChild.removeAttribute("aria-current");
    }
  }

  async menu(talk, button) {
    const what = await choose(button, [["rename", "Rename"], ["markdown", "Export as Markdown"], ["json", "Export as JSON"],
      ["delete", "Delete", true]]);
    if (what === "rename") await this.rename(talk);
    else if (what === "delete") await this.remove(talk);
    else if (what) download(server.exportOf(talk.id, what));
  }

  async rename(talk) {
    const title = await prompted("Rename", "Title", talk.title);
    if (!title) return;
    await attempt(async () => { const now = await server.rename(talk.id, title); this.renamed(now.id, now.title); await this.load(); });
  }

  async remove(talk) {
    if (!await confirmed("Delete this conversation?", `“${talk.title || "New chat"}” is gone for good.`, "Delete")) return;
    await attempt(async () => { await server.remove(talk.id); this.deleted(talk.id); await this.load(); say("Deleted"); });
  }
}

async function attempt(action) {
  try { await action(); } catch (e) { toast(e.message, true); }
}

export function download(path) {
  const link = make("a", { href: path, download: "" });
  document.body.append(link);
  link.click();
  link.remove();
}

function age(seconds) {
  const midnight = new Date().setHours(0, 0, 0, 0) / 1000;
  if (seconds >= midnight) return "Today";
  if (seconds >= midnight - DAY_S) return "Yesterday";
  if (seconds >= midnight - 6 * DAY_S) return "This week";
  if (seconds >= midnight - 30 * DAY_S) return "This month";
  return new Date(seconds * 1000).toLocaleDateString(undefined, { month: "long", year: "numeric" });
}

/** Return a text with the words that were searched for marked in it. */
function marked(text, words) {
  const found = words.match(/[\p{L}\p{N}_]+/gu) ?? [];
  if (!found.length) return [text];
  const pieces = text.split(new RegExp(`(${found.map((w) => w.replace(/[^\p{L}\p{N}]/gu, "\\$&")).join("|")})`, "iu"));
  return pieces.map((piece, i) => (i % 2 ? make("mark", {}, piece) : piece));
}
