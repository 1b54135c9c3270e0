// Two sheets: how this conversation is answered, and what is kept.

import { server } from "./api.js";
import { confirmed } from "./dialogs.js";
import { $, icon, iconButton, make, toast } from "./dom.js";
import { download } from "./side.js";

const NUMBERS = [
  ["temperature", "Temperature", "How freely words are chosen. 0 is always the likeliest.", { min: 0, max: 2, step: 0.05 }],
  ["top_p", "Top p", "Only the likeliest words that together have this probability.", { min: 0.01, max: 1, step: 0.01 }],
  ["top_k", "Top k", "Only so many of the likeliest words. 0 is all.", { min: 0, max: 1000, step: 1 }],
  ["min_p", "Min p", "Only words that are at least this likely, beside the likeliest.", { min: 0, max: 1, step: 0.01 }],
  ["repeat_penalty", "Repeat penalty", "Above 1, words that are there already are less likely.", { min: 0.5, max: 2, step: 0.05 }],
  ["max_tokens", "Longest answer", "In tokens. Empty: as long as fits.", { min: 1, max: 131072, step: 1 }],
  ["seed", "Seed", "The same seed gives the same answer.", { min: 0, max: 2147483647, step: 1 }],
];

function sheet(title, content) {
  const dialog = $("options");
  dialog.replaceChildren(make("div.sheet-head", {}, make("h2", { id: "options-title" }, title),
    iconButton("close", "Close", () => dialog.close())), content);
  dialog.onclick = (e) => { if (e.target === dialog) dialog.close(); };
  dialog.onclose = null;
  dialog.showModal();
  return dialog;
}

/** Let a person choose how a conversation is answered; `changed(settings)` is called at the end. */
export function chooseOptions(settings, models, changed) {
  const form = make("form.options", { onsubmit: (e) => { e.preventDefault(); $("options").close(); } });
  const model = make("select", { id: "o-model" }, models.map((m) => make("option", { value: m.name }, m.name)));
  model.value = settings.model ?? models[0]?.name ?? "";
  const system = make("textarea", { id: "o-system", rows: "5", maxlength: "20000", placeholder: "You are a helpful assistant." });
  system.value = settings.system ?? "";
  const inputs = NUMBERS.map(([name, label, hint, range]) => {
    const input = make("input", { id: `o-${name}`, type: "number", inputmode: "decimal", placeholder: "model’s own", "aria-describedby": `h-${name}`, ...range });
    input.min = range.min; input.max = range.max; input.step = range.step;
    input.value = settings[name] ?? "";
    return [name, input, make("div.option", {}, make("label", { for: `o-${name}` }, label), input, make("p.hint", { id: `h-${name}` }, hint))];
  });
  const think = make("select", { id: "o-think" }, [["", "model’s own"], ["true", "Yes"], ["false", "No"]].map(
    ([value, label]) => make("option", { value }, label)));
  think.value = settings.think === undefined ? "" : String(settings.think);
  const clear = () => {
    system.value = ""; think.value = "";
    for (const [, input] of inputs) input.value = "";
  };
  form.append(
    models.length > 1 ? make("div.option.all", {}, make("label", { for: "o-model" }, "Model"), model) : "",
    make("div.option.all", {}, make("label", { for: "o-system" }, "System prompt"), system),
    make("div.grid", {}, inputs.map(([, , row]) => row),
      make("div.option", {}, make("label", { for: "o-think" }, "Reason first"), think,
        make("p.hint", {}, "Where the model knows how to."))),
    make("div.row.foot", {}, make("button.quiet", { type: "button", onclick: clear }, "Reset"), make("button.primary", { type: "submit" }, "Done")));
  sheet("This conversation", form).onclose = () => {
    const chosen = {};
    if (models.length > 1 && model.value !== models[0]?.name) chosen.model = model.value;
    if (system.value.trim()) chosen.system = system.value.trim();
    for (const [name, input] of inputs) if (input.value !== "" && input.validity.valid) chosen[name] = Number(input.value);
    if (think.value) chosen.think = think.value === "true";
    changed(chosen);
  };
}

/** Show what is kept, and who is signed in. */
export function showSettings(session, keeping, actions) {
  const keep = make("input", { type: "checkbox", id: "o-keep", role: "switch", onchange: () => actions.keep(keep.checked) });
  keep.checked = keeping;
  const remove = async () => {
    if (!await confirmed("Delete all conversations?", "They are gone for good.", "Delete all")) return;
    try {
      const { deleted } = await server.removeAll();
      toast(`${deleted} deleted`);
      actions.deleted();
    } catch (e) { toast(e.message, true); }
  };
  const history = session.history ? [
    make("div.switch", {}, make("div", {}, make("label", { for: "o-keep" }, "Keep new conversations"),
      make("p.hint", {}, "On the server, for this key only. Off: new ones are gone when you leave them.")), keep),
    make("div.row.start", {}, make("button.quiet", { type: "button", onclick: () => download(server.exportAll) }, "Export all"),
      make("button.quiet.bad", { type: "button", onclick: remove }, "Delete all")),
  ] : [make("p.hint", {}, "This server keeps no conversations. They are gone when you leave them.")];
  const model = session.models[0];
  sheet("Settings", make("div.options", {}, make("h3", {}, "Conversations"), history,
    make("h3", {}, "Server"),
    make("dl.facts", {}, fact("edgellm", session.version), model ? fact("Model", model.name) : "",
      model ? fact("Context", `${model.context.toLocaleString()} tokens`) : "", session.signed_in ? fact("Signed in as", session.key) : ""),
    session.signed_in ? make("div.row.start", {}, make("button.quiet", { type: "button", onclick: actions.signOut }, "Sign out")) : "",
    make("h3", {}, "Keys"),
    make("dl.facts", {}, fact("Send", make("kbd", {}, "Enter")), fact("New line", make("kbd", {}, "Shift + Enter")),
      fact("Stop", make("kbd", {}, "Esc")), fact("Edit the last question", make("kbd", {}, "↑")),
      fact("Search", make("kbd", {}, "Ctrl + K")), fact("New chat", make("kbd", {}, "Ctrl + Shift + O")))));
}

function fact(name, value) { return [make("dt", {}, name), make("dd", {}, value)]; }

/** Fill the button that opens the options with what is chosen. */
export function drawChip(settings, models) {
  const names = [settings.model ?? models[0]?.name ?? "Options"];
  if (settings.system) names.push("system prompt");
  if (settings.temperature !== undefined) names.push(`temperature ${settings.temperature}`);
  const text = names.join(" · ");
  $("choose").replaceChildren(icon("sliders", 16), make("span", {}, text));
  $("choose").setAttribute("aria-label", `Options of this conversation: ${text}`);
}
