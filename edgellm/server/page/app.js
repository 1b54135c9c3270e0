// The page: who asks, which conversation is open, and the way between them.

import { onSignedOut, server } from "./api.js";
import { Boards, drawDot } from "./boards.js";
import { Chat } from "./chat.js";
import { confirmed } from "./dialogs.js";
import { $, iconButton, make, say, toast } from "./dom.js";
import { chooseOptions, drawChip, showSettings } from "./options.js";
import { Side } from "./side.js";
import { Talk } from "./talk.js";

const KEEP = "edgellm.keep"; // what this browser remembers: whether new conversations are kept, and their options
const OPTIONS = "edgellm.options";

let session = { models: [], history: false, key: "", signed_in: false, version: "" };
let chat, side, boards;
let talk = new Talk();
const running = new Map(); // conversations that are being answered, by id, also while another one is shown

// Browsers may refuse to remember anything.
const remembered = (name) => { try { return JSON.parse(localStorage.getItem(name)); } catch { return null; } };
const remember = (name, value) => { try { localStorage.setItem(name, JSON.stringify(value)); } catch { /* not kept */ } };
const keeping = () => session.history && remembered(KEEP) !== false;

async function begin() {
  onSignedOut(showSignIn);
  $("sign-in-form").addEventListener("submit", signIn);
  try {
    session = await server.session();
  } catch (e) {
    if (e.status !== 401) { document.body.append(make("p.broken", { role: "alert" }, `${e.message} Reload the page to try again.`)); }
    return;
  }
  start();
}

function start() {
  $("sign-in").hidden = true;
  $("app").hidden = false;
  if (chat) { refresh(); return; }
  chat = new Chat({ ask, sub: changed, models: () => session.models });
  side = new Side({
    deleted: (id) => { if (talk.id === id) location.hash = "#/"; },
    renamed: (id, title) => { if (talk.id === id) { talk.title = title; drawBar(); } },
  });
  boards = new Boards();
  $("new").onclick = () => newChat();
  $("choose").onclick = () => chooseOptions(talk.settings, session.models, configured);
  $("open-options").onclick = settings;
  addEventListener("hashchange", route);
  addEventListener("keydown", shortcut);
  matchMedia("(max-width: 820px)").addEventListener("change", () => side.open(false));
  refresh();
}

function refresh() {
  $("kept").hidden = !session.history;
  if (session.history) side.load();
  server.boardsOnce().then(drawDot).catch(() => { $("boards-dot").className = "dot bad"; });
  route();
}

// Where we are

async function route() {
  document.body.classList.remove("side-open");
  $("main").inert = false;
  const here = decodeURIComponent(location.hash);
  const onBoards = here === "#/boards";
  $("boards").hidden = !onBoards;
  $("chat").hidden = onBoards;
  if (onBoards) $("to-boards").setAttribute("aria-current", "page"); else $("to-boards").removeAttribute("aria-current");
  if (onBoards) { side.mark(null); drawBar(); boards.open(); $("main").focus({ preventScroll: true }); return; }
  boards.close();
  const id = /^#\/c\/([\w-]+)$/.exec(here)?.[1] ?? null;
  if (id === null) { show(fresh()); return; }
  if (talk.id === id) { show(talk); return; }
  if (running.has(id)) { show(running.get(id)); return; }
  try {
    const found = await server.conversation(id);
    if (decodeURIComponent(location.hash) === here) show(new Talk(found));
  } catch (e) {
    if (e.status === 401) return;
    toast(e.message, true);
    location.replace("#/");
  }
}

function fresh() {
  return new Talk({ temporary: !keeping(), settings: remembered(OPTIONS) ?? {} });
}

function show(next) {
  talk = next;
  side.mark(talk.id);
  chat.show(talk);
  drawChip(talk.settings, session.models);
  drawBar();
}

async function newChat(temporary = !keeping()) {
  if (talk.temporary && !talk.id && talk.messages.length
    && !await confirmed("Leave this conversation?", "It isn’t kept, so it will be gone.", "Leave")) return;
  if (talk.running && !talk.id) talk.stop();
  history.replaceState(null, "", "#/");
  await route();
  talk.temporary = temporary;
  show(talk);
  chat.focus();
}

function drawBar() {
  const onBoards = !$("boards").hidden;
  const title = onBoards ? "Boards" : talk.title || (talk.temporary && talk.messages.length ? "Temporary chat" : "New chat");
  $("title").textContent = title;
  document.title = `${title} · edgellm`;
  const actions = [];
  if (!onBoards && !talk.id && session.history && !talk.messages.length) {
    actions.push(iconButton("ghost", talk.temporary ? "Keep this conversation" : "Don’t keep this conversation", () => {
      talk.temporary = !talk.temporary;
      show(talk);
      say(talk.temporary ? "This conversation is not kept" : "This conversation is kept");
      $("bar-actions").querySelector("button").focus();
    }, { "aria-pressed": String(talk.temporary) }));
  }
  if (!onBoards && talk.id) {
    actions.push(iconButton("more", "More about this conversation", (e) => side.menu(talk, e.currentTarget), { "aria-haspopup": "menu" }));
  }
  $("bar-actions").replaceChildren(...actions);
}

// Asking

async function ask(asked, keep, text) {
  if (!asked.id && !asked.temporary) {
    try {
      asked.id = (await server.create("", asked.settings)).id;
    } catch (e) {
      asked.error = { message: e.message, status: e.status };
      asked.onchange("messages");
      $("text").value = text;
      return null;
    }
    if (asked === talk) history.replaceState(null, "", `#/c/${asked.id}`);
  }
  if (asked.id) running.set(asked.id, asked);
  try {
    return await asked.ask(keep, text);
  } finally {
    running.delete(asked.id);
    if (asked.id) side.load();
  }
}

function changed(asked, what) {
  if (asked !== talk) return;
  if (what === "title") { drawBar(); side.mark(talk.id); side.current = talk.id; side.load(); }
  if (what === "messages") drawBar();
}

async function configured(chosen) {
  talk.settings = chosen;
  remember(OPTIONS, chosen);
  drawChip(chosen, session.models);
  try { if (talk.id) await server.configure(talk.id, chosen); } catch (e) { toast(e.message, true); }
}

function settings() {
  showSettings(session, keeping(), {
    keep: (yes) => { remember(KEEP, yes); if (!talk.id && !talk.messages.length) { talk.temporary = !yes; show(talk); } },
    deleted: () => { side.load(); if (talk.id) location.hash = "#/"; },
    signOut: async () => { await server.signOut().catch(() => {}); location.replace("/"); location.reload(); },
  });
}

function shortcut(e) {
  if ((e.ctrlKey || e.metaKey) && !e.shiftKey && e.key.toLowerCase() === "k" && session.history) {
    e.preventDefault();
    if (matchMedia("(max-width: 820px)").matches) side.open(true);
    $("search").focus();
  } else if ((e.ctrlKey || e.metaKey) && e.shiftKey && e.key.toLowerCase() === "o") {
    e.preventDefault();
    newChat();
  } else if (e.key === "Escape" && !document.querySelector("dialog[open]") && $("menu").hidden) {
    if (document.body.classList.contains("side-open")) side.open(false);
    else if (talk.running && !$("chat").hidden) talk.stop();
  }
}

// Signing in

function showSignIn() {
  boards?.close();
  for (const dialog of document.querySelectorAll("dialog[open]")) dialog.close();
  $("app").hidden = true;
  $("sign-in").hidden = false;
  document.title = "Sign in · edgellm";
  $("key").focus();
}

async function signIn(e) {
  e.preventDefault();
  $("sign-in-error").textContent = "";
  try {
    await server.signIn($("key").value.trim());
    session = await server.session();
    $("key").value = "";
    start();
  } catch (error) {
    $("sign-in-error").textContent = error.message;
    $("key").select();
  }
}

begin();
