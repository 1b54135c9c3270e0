// Small questions to a person: a menu, a confirmation, a line of text. The browser keeps the focus inside, and gives it
// back.

import { $, make } from "./dom.js";

/** Return whether a person agreed. */
export function confirmed(title, text, action) {
  return asked(title, [make("p", {}, text)], action, true).then((form) => form !== null);
}

/** Return the line that a person wrote; null if none. */
export async function prompted(title, label, value) {
  const input = make("input", { id: "prompted", maxlength: "120", autocomplete: "off" });
  input.value = value;
  const form = await asked(title, [make("label", { for: "prompted" }, label), input], "Save", false);
  return form === null ? null : input.value.trim();
}

function asked(title, content, action, bad) {
  const dialog = $("confirm");
  return new Promise((resolve) => {
    let agreed = null;
    const form = make("form", { method: "dialog", onsubmit: () => { agreed = form; } }, make("h2", { id: "confirm-title" }, title), content,
      make("div.row", {}, make("button.quiet", { type: "button", onclick: () => dialog.close() }, "Cancel"),
        make(bad ? "button.danger" : "button.primary", { type: "submit" }, action)));
    dialog.replaceChildren(form);
    dialog.onclose = () => resolve(agreed);
    dialog.onclick = (e) => { if (e.target === dialog) dialog.close(); };
    dialog.showModal();
    (form.querySelector("input") ?? form.querySelector("button")).focus();
    form.querySelector("input")?.select();
  });
}

/** Return what a person chose of `entries`, [name, label, bad?] each, in a menu at a button; null if nothing. */
export function choose(button, entries) {
  const menu = $("menu");
  return new Promise((resolve) => {
    const end = (name) => {
      menu.hidden = true;
      button.setAttribute("aria-expanded", "false");
      removeEventListener("pointerdown", outside, true);
      button.focus();
      resolve(name);
    };
    const outside = (e) => { if (!menu.contains(e.target)) end(null); };
    const items = entries.map(([name, label, bad]) => make(bad ? "button.bad" : "button",
      { type: "button", role: "menuitem", onclick: () => end(name) }, label));
    menu.replaceChildren(...items);
    menu.onkeydown = (e) => {
      const at = items.indexOf(document.activeElement);
      if (e.key === "Escape" || e.key === "Tab") { e.preventDefault(); e.stopPropagation(); end(null); }
      if (e.key === "ArrowDown") { e.preventDefault(); items[(at + 1) % items.length].focus(); }
      if (e.key === "ArrowUp") { e.preventDefault(); items.at(at - 1).focus(); }
    };
    menu.hidden = false;
    const at = button.getBoundingClientRect();
    const { offsetWidth: width, offsetHeight: height } = menu;
    menu.style.left = `${Math.max(8, Math.min(at.right - width, innerWidth - width - 8))}px`;
    menu.style.top = `${at.bottom + height + 12 > innerHeight ? at.top - height - 4 : at.bottom + 4}px`;
    button.setAttribute("aria-expanded", "true");
    addEventListener("pointerdown", outside, true);
    items[0].focus();
  });
}
