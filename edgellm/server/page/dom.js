// Elements from JavaScript. Text is always text: nothing here, or in any file that uses it, parses HTML.

const SVG = "http://www.w3.org/2000/svg";

const PATHS = {
  plus: "M12 5v14M5 12h14",
  search: "M11 4a7 7 0 1 0 0 14 7 7 0 0 0 0-14zM20 20l-4-4",
  menu: "M4 7h16M4 12h16M4 17h10",
  close: "M6 6l12 12M18 6L6 18",
  more: "M5 12h.01M12 12h.01M19 12h.01",
  up: "M12 19V5M6 11l6-6 6 6",
  down: "M12 5v14M6 13l6 6 6-6",
  stop: "M8 8h8v8H8z",
  copy: "M9 9h10v10H9zM5 15V5h10",
  check: "M5 12.5l4.5 4.5L19 7",
  redo: "M19 12a7 7 0 1 1-2.2-5.1M19 4v4h-4",
  edit: "M5 19h3l10-10-3-3L5 16zM14 7l3 3",
  sliders: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  boards: "M4 6h16v5H4zM4 14h16v5H4zM8 8.5h.01M8 16.5h.01",
  alert: "M12 8v5M12 16.5h.01M12 3l9.5 17h-19z",
  settings: "M12 9a3 3 0 1 0 0 6 3 3 0 0 0 0-6zM12 3v3M12 18v3M3 12h3M18 12h3M5.6 5.6l2.1 2.1M16.3 16.3l2.1 2.1M5.6 18.4l2.1-2.1M16.3 7.7l2.1-2.1",
  ghost: "M5 20V11a7 7 0 0 1 14 0v9l-2.3-1.6L14.3 20 12 18.4 9.7 20l-2.4-1.6zM9.5 11h.01M14.5 11h.01",
};

export const $ = (id) => document.getElementById(id);

/** Make an element: `make("p.note", {title: "x", onclick}, "text", child)`. */
export function make(what, options = {}, ...children) {
  const [tag, ...classes] = what.split(".");
  const element = document.createElement(tag);
  if (classes.length) element.className = classes.join(" ");
  for (const [name, value] of Object.entries(options)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat().filter((c) => c !== null && c !== undefined && c !== false));
  return element;
}

/** Make an icon, which says nothing to a screen reader. */
export function icon(name, size = 18) {
  const svg = document.createElementNS(SVG, "svg");
  const set = { viewBox: "0 0 24 24", width: size, height: size, fill: "none", stroke: "currentColor",
    "stroke-width": name === "more" ? 2.6 : 1.8, "stroke-linecap": "round", "stroke-linejoin": "round",
    "aria-hidden": "true", focusable: "false" };
  for (const [key, value] of Object.entries(set)) svg.setAttribute(key, value);
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", PATHS[name]);
  if (name === "stop") path.setAttribute("fill", "currentColor");
  svg.append(path);
  return svg;
}

/** Make a button with an icon, and a label that is shown as a tooltip and read aloud. */
export function iconButton(name, label, onclick, options = {}) {
  return make("button.icon", { type: "button", "aria-label": label, title: label, onclick, ...options }, icon(name));
}

let toastTimer = 0;

/** Show a short notice, which is read aloud too. */
export function toast(text, bad = false) {
  const element = $("toast");
  element.textContent = text;
  element.classList.toggle("bad", bad);
  element.classList.add("shown");
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { element.classList.remove("shown"); element.textContent = ""; }, bad ? 8000 : 2500);
}

let sayTimer = 0;

/** Have a screen reader say one thing; of several in a row only the last. */
export function say(text) {
  clearTimeout(sayTimer);
  sayTimer = setTimeout(() => { $("said").textContent = text; }, 150);
}

/** Copy a text, on plain HTTP too, where browsers have no clipboard for scripts. */
export async function copy(text) {
  try {
    if (navigator.clipboard && window.isSecureContext) {
      await navigator.clipboard.writeText(text);
      return true;
    }
  } catch { /* refused: the old way */ }
  const held = document.activeElement;
  const area = make("textarea.hidden", { readonly: true, "aria-hidden": "true", tabindex: "-1" });
  area.value = text;
  (document.querySelector("dialog[open]") ?? document.body).append(area);
  area.select();
  const exactly = (e) => { e.clipboardData.setData("text/plain", text); e.preventDefault(); };
  addEventListener("copy", exactly, true);
  let done = false;
  try { done = document.execCommand("copy"); } catch { /* told below */ }
  removeEventListener("copy", exactly, true);
  area.remove();
  held?.focus?.();
  return done;
}

/** Make a button that copies what `text()` gives, and shows that it did. */
export function copyButton(text, label = "Copy") {
  const button = iconButton("copy", label, async () => {
    const done = await copy(text());
    if (!done) { toast("The browser does not let this page copy. Select the text instead.", true); return; }
    button.replaceChildren(icon("check"));
    say("Copied");
    setTimeout(() => button.replaceChildren(icon("copy")), 1500);
  });
  return button;
}
