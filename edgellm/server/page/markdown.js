// A small Markdown renderer: text → a tree → elements. It makes elements one by one and sets their text, so whatever an
// answer holds, HTML in it stays text. Links lead only to http, https and mailto; pictures are never loaded.

import { copyButton, make } from "./dom.js";

const FENCE = /^( {0,3})(`{3,}|~{3,})\s*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})\s+(.*?)\s*#*\s*$/;
const RULE = /^ {0,3}(?:(?:-\s*){3,}|(?:\*\s*){3,}|(?:_\s*){3,})$/;
const ITEM = /^( {0,9})([-*+]|\d{1,9}[.)])(\s+)(.*)$/;
const QUOTE = /^ {0,3}> ?(.*)$/;
const DIVIDER = /^\s*\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const DEPTH = 12;

/** Return elements for a text of Markdown. */
export function render(text) {
  const part = document.createDocumentFragment();
  for (const block of blocks(text.replace(/\r\n?/g, "\n").split("\n"), 0)) part.append(block);
  return part;
}

function blocks(lines, depth) {
  const found = [];
  let at = 0;
  while (at < lines.length) {
    const line = lines[at];
    let match;
    if (!line.trim()) { at += 1; continue; }
    if ((match = FENCE.exec(line))) {
      const end = closing(lines, at + 1, match[2]);
      const own = lines.slice(at + 1, end).map((l) => l.replace(new RegExp(`^ {0,${match[1].length}}`), ""));
      found.push(code(own.join("\n"), match[3].trim().split(/\s+/)[0]));
      at = end + 1;
    } else if ((match = HEADING.exec(line))) {
      found.push(make(`h${Math.min(6, match[1].length + 2)}`, {}, inline(match[2])));
      at += 1;
    } else if (RULE.test(line)) {
      found.push(make("hr"));
      at += 1;
    } else if (QUOTE.test(line) && depth < DEPTH) {
      const own = [];
      while (at < lines.length && (QUOTE.test(lines[at]) || (lines[at].trim() && !starts(lines[at])))) {
        own.push(QUOTE.exec(lines[at])?.[1] ?? lines[at]);
        at += 1;
      }
      found.push(make("blockquote", {}, blocks(own, depth + 1)));
    } else if (ITEM.test(line) && depth < DEPTH) {
      const [element, next] = list(lines, at, depth);
      found.push(element);
      at = next;
    } else if (line.includes("|") && at + 1 < lines.length && lines[at + 1].includes("-") && DIVIDER.test(lines[at + 1])) {
      const [element, next] = table(lines, at);
      found.push(element);
      at = next;
    } else {
      const own = [line];
      at += 1;
      while (at < lines.length && lines[at].trim() && !starts(lines[at])) { own.push(lines[at]); at += 1; }
      found.push(make("p", {}, inline(own.map((l) => l.trimStart()).join("\n"))));
    }
  }
  return found;
}

function starts(line) {
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line);
}

/** Return where a fence ends; while it is still being written, at the end of the text. */
function closing(lines, from, fence) {
  for (let i = from; i < lines.length; i += 1) {
    const line = lines[i].trim();
    if (line.length >= fence.length && line === fence[0].repeat(line.length)) return i;
  }
  return lines.length;
}

function list(lines, from, depth) {
  const first = ITEM.exec(lines[from]);
  const ordered = /\d/.test(first[2]);
  const base = first[1].length;
  const items = [];
  let at = from, loose = false;
  while (at < lines.length) {
    const match = ITEM.exec(lines[at]);
    if (!match || match[1].length > base + 1 || match[1].length < base || /\d/.test(match[2]) !== ordered) break;
    if (RULE.test(lines[at])) break;
    const indent = match[1].length + match[2].length + Math.min(match[3].length, 4);
    const own = [match[4]];
    at += 1;
    while (at < lines.length) {
      const line = lines[at];
      if (!line.trim()) {
        const next = lines[at + 1] ?? "";
        if (next.trim() && lead(next) < Math.min(indent, base + 2) && !ITEM.test(next)) break;
        if (!next.trim()) break;
        if (ITEM.test(next) && lead(next) <= base + 1) { loose = true; at += 1; break; }
        if (lead(next) < base + 2) break;
        own.push("");
        at += 1;
        continue;
      }
      if (ITEM.test(line) && lead(line) < base + 2) break;
      if (lead(line) < base + 2 && starts(line)) break;
      own.push(line.slice(Math.min(lead(line), indent)));
      at += 1;
    }
    items.push(own);
  }
  const element = make(ordered ? "ol" : "ul");
  if (ordered && Number.parseInt(first[2], 10) !== 1) element.start = Number.parseInt(first[2], 10);
  for (const own of items) {
    const item = make("li", {}, blocks(own, depth + 1));
    const only = item.firstElementChild;
    if (!loose && only?.tagName === "P") only.replaceWith(...only.childNodes);
    element.append(item);
  }
  return [element, at];
}

const lead = (line) => line.length - line.trimStart().length;

function table(lines, from) {
  const aligned = cells(lines[from + 1]).map((c) => (c.endsWith(":") ? (c.startsWith(":") ? "middle" : "end") : ""));
  const row = (line, tag) => make("tr", {}, cells(line).slice(0, aligned.length).map(
    (cell, i) => make(aligned[i] ? `${tag}.${aligned[i]}` : tag, {}, inline(cell))));
  const body = [];
  let at = from + 2;
  while (at < lines.length && lines[at].includes("|")) { body.push(row(lines[at], "td")); at += 1; }
  const element = make("table", {}, make("thead", {}, row(lines[from], "th")), make("tbody", {}, body));
  return [make("div.table", { tabindex: "0", role: "group", "aria-label": "Table" }, element), at];
}

function cells(line) {
  const inner = line.trim().replace(/^\|/, "").replace(/(?<!\\)\|$/, "");
  return inner.split(/(?<!\\)\|/).map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function code(text, language) {
  const shown = /^[\w+#.-]{1,20}$/.test(language) ? language : "";
  const head = make("div.code-head", {}, make("span", {}, shown || "text"), copyButton(() => text, "Copy code"));
  const body = make("pre", { tabindex: "0", role: "group", "aria-label": shown ? `Code, ${shown}` : "Code" });
  body.append(make("code", {}, text));
  return make("div.code", {}, head, body);
}

// Spans. Each kind is found by where it begins; what doesn't end is text.

function inline(text, depth = 0) {
  const found = [];
  let plain = "", at = 0;
  const add = (element, next) => { if (plain) found.push(plain); plain = ""; found.push(element); at = next; };
  while (at < text.length) {
    const c = text[at];
    let match;
    if (c === "\\" && /[!-/:-@[-`{-~]/.test(text[at + 1] ?? "")) { plain += text[at + 1]; at += 2; continue; }
    if (c === "\n") { add(make("br"), at + 1); continue; }
    if (c === "`") {
      const ticks = run(text, at, "`");
      const end = endOfCode(text, at + ticks, ticks);
      if (end >= 0) {
        add(make("code", {}, text.slice(at + ticks, end).replace(/^ (.*\S.*) $/s, "$1")), end + ticks);
      } else { plain += "`".repeat(ticks); at += ticks; }
      continue;
    }
    if (depth < DEPTH) {
      if ((c === "*" || c === "_" || c === "~") && (match = emphasis(text, at))) {
        const [tag, from, to, next] = match;
        add(make(tag, {}, inline(text.slice(from, to), depth + 1)), next);
        continue;
      }
      if ((c === "[" || (c === "!" && text[at + 1] === "[")) && (match = link(text, at + (c === "!" ? 1 : 0)))) {
        add(anchor(match.target, inline(match.label || match.target, depth + 1)), match.next);
        continue;
      }
    }
    if (c === "h" && !/\w/.test(text[at - 1] ?? "") && (match = /^https?:\/\/[^\s<>"'`]+/.exec(text.slice(at, at + 2048)))) {
      const target = match[0].replace(/[.,;:!?)\]*_~]+$/, "");
      add(anchor(target, [target]), at + target.length);
      continue;
    }
    plain += c;
    at += 1;
  }
  if (plain) found.push(plain);
  return found;
}

function run(text, at, c) {
  let count = 0;
  while (text[at + count] === c) count += 1;
  return count;
}

function endOfCode(text, from, ticks) {
  for (let i = text.indexOf("`", from); i >= 0; i = text.indexOf("`", i)) {
    const count = run(text, i, "`");
    if (count === ticks) return i;
    i += count;
  }
  return -1;
}

const LONGEST_SPAN = 4000;

/** Return [tag, from, to, next] of emphasis that begins at `at`. */
function emphasis(text, at) {
  const c = text[at];
  const count = Math.min(run(text, at, c), c === "~" ? 2 : 3);
  if (c === "~" && count < 2) return null;
  if (/\s/.test(text[at + count] ?? " ")) return null;
  if (c === "_" && /\w/.test(text[at - 1] ?? "")) return null;
  const mark = c.repeat(count);
  for (let end = text.indexOf(mark, at + count + 1); end >= 0 && end - at < LONGEST_SPAN; end = text.indexOf(mark, end + 1)) {
    if (/\s/.test(text[end - 1]) || text[end - 1] === "\\") continue;
    if (c === "_" && /\w/.test(text[end + count] ?? "")) continue;
    if (count < 3 && text[end + count] === c && text[end - 1] !== c) { end += 1; continue; }
    if (count === 3) return ["strong", at + 2, end + 1, end + 3];
    return [c === "~" ? "del" : count === 2 ? "strong" : "em", at + count, end, end + count];
  }
  return null;
}

/** Return a link that begins with "[" at `at`. */
function link(text, at) {
  let deep = 0;
  for (let end = at; end < text.length && end - at < LONGEST_SPAN; end += 1) {
    if (text[end] === "\\") { end += 1; continue; }
    if (text[end] === "[") deep += 1;
    if (text[end] !== "]" || (deep -= 1) > 0) continue;
    const match = /^\(\s*<?([^\s<>()]*(?:\([^\s<>()]*\)[^\s<>()]*)*)>?(?:\s+["'(][^\n]*?["')])?\s*\)/.exec(
      text.slice(end + 1, end + 1 + 4096));
    if (!match) return null;
    return { label: text.slice(at + 1, end), target: match[1], next: end + 1 + match[0].length };
  }
  return null;
}

function anchor(target, children) {
  let url = null;
  try { url = new URL(target); } catch { /* not absolute: text */ }
  if (!url || !["http:", "https:", "mailto:"].includes(url.protocol)) return make("span", { title: target }, children);
  return make("a", { href: url.href, rel: "noopener noreferrer", target: "_blank" }, children);
}
