// What a model writes, as DOM nodes. Text only ever becomes text nodes: no HTML of a model is parsed, no address but
// http, https and mailto becomes a link, no image is fetched.
//
// CommonMark's blocks and GitHub's tables and strikethrough, without HTML, reference links and indented code (which in
// answers is more often a list's than code). A single line break is kept, as models mean it.

import { colour } from "./code.js";

const DEEPEST = 8; // lists in quotes in lists ...; what is deeper is shown as it is written
const LONGEST = 20_000; // characters of one paragraph that are looked through for marks

const FENCE = /^( {0,3})(`{3,}|~{3,})[ \t]*([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*?))?(?:[ \t]+#*)?[ \t]*$/;
const RULE = /^ {0,3}([-*_])(?:[ \t]*\1){2,}[ \t]*$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^( {0,3})([-*+]|\d{1,9}[.)])([ \t]+|$)(.*)$/;
const DELIMITER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

function element(name, parent, text) {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  parent?.append(made);
  return made;
}

// ---- blocks: {kind, lines, ...}, and `source`, by which a block that has not changed is known

/** The blocks of a text, in order. */
export function blocks(text) {
  const lines = text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n");
  const found = [];
  let i = 0;
  while (i < lines.length) {
    if (!lines[i].trim()) {
      i += 1;
      continue;
    }
    const begin = i;
    const block = fence(lines, i) ?? single(lines, i) ?? quote(lines, i) ?? list(lines, i) ?? table(lines, i) ?? paragraph(lines, i);
    i = block.end;
    block.source = block.kind + "\n" + lines.slice(begin, i).join("\n");
    found.push(block);
  }
  return found;
}

function fence(lines, i) {
  const open = FENCE.exec(lines[i]);
  if (!open) return null;
  const [, indent, marks, info] = open;
  const inside = [];
  let end = i + 1;
  let closed = false;
  for (; end < lines.length && !closed; end += 1) {
    const close = FENCE.exec(lines[end]);
    closed = Boolean(close && close[2][0] === marks[0] && close[2].length >= marks.length && !close[3].trim());
    if (!closed) inside.push(lines[end].replace(new RegExp(`^ {0,${indent.length}}`), ""));
  }
  return { kind: "code", language: info.trim().split(/\s/)[0].toLowerCase(), text: inside.join("\n"), end };
}

function single(lines, i) {
  if (RULE.test(lines[i])) return { kind: "rule", end: i + 1 };
  const heading = HEADING.exec(lines[i]);
  return heading && { kind: "heading", level: heading[1].length, text: heading[2] ?? "", end: i + 1 };
}

function quote(lines, i) {
  if (!QUOTE.test(lines[i])) return null;
  const inside = [];
  let end = i;
  for (; end < lines.length && (QUOTE.test(lines[end]) || (lines[end].trim() && !starts(lines, end))); end += 1) {
    inside.push(lines[end].replace(QUOTE, ""));
  }
  return { kind: "quote", text: inside.join("\n"), end };
}

function list(lines, i) {
  const first = ITEM.exec(lines[i]);
  if (!first) return null;
  const ordered = /\d/.test(first[2]);
  const mark = first[2].at(-1);
  const items = [];
  let loose = false;
  let end = i;
  let width = 0;
  while (end < lines.length) {
    const line = lines[end];
    const item = ITEM.exec(line);
    const indent = line.search(/\S/);
    if (!line.trim()) {
      const next = lines.slice(end + 1).findIndex((later) => later.trim());
      const after = next < 0 ? "" : lines[end + 1 + next];
      const goes = after.search(/\S/) >= width || sameList(ITEM.exec(after), ordered, mark);
      if (next < 0 || !goes) break;
      loose ||= next === 0;
      items.at(-1).push("");
    } else if (items.length && indent >= width) {
      items.at(-1).push(line.slice(width));
    } else if (sameList(item, ordered, mark) && !RULE.test(line)) {
      width = item[1].length + item[2].length + Math.min(4, item[3].length || 1);
      items.push([item[4]]);
    } else if (items.length && !item && lines[end - 1].trim() && !starts(lines, end)) {
      items.at(-1).push(line.trim()); // a paragraph's line that was not indented
    } else {
      break;
    }
    end += 1;
  }
  const texts = items.map((item) => item.join("\n"));
  return { kind: "list", ordered, start: Number.parseInt(first[2], 10), items: texts, loose, end };
}

function sameList(item, ordered, mark) {
  return Boolean(item) && /\d/.test(item[2]) === ordered && item[2].at(-1) === mark;
}

function table(lines, i) {
  if (!lines[i].includes("|") || !DELIMITER.test(lines[i + 1] ?? "") || !lines[i + 1].includes("-")) return null;
  const head = cells(lines[i]);
  const marks = cells(lines[i + 1]);
  if (head.length !== marks.length) return null;
  const sides = marks.map((mark) => (mark.endsWith(":") ? (mark.startsWith(":") ? "center" : "right") : "left"));
  const rows = [];
  let end = i + 2;
  for (; end < lines.length && lines[end].trim() && lines[end].includes("|"); end += 1) {
    const row = cells(lines[end]);
    rows.push(head.map((_, column) => row[column] ?? ""));
  }
  return { kind: "table", head, sides, rows, end };
}

function cells(line) {
  const made = line.trim().replace(/^\|/, "").replace(/(^|[^\\])\|$/, "$1").split(/(?<!\\)\|/);
  return made.map((cell) => cell.trim().replaceAll("\\|", "|"));
}

function paragraph(lines, i) {
  let end = i + 1;
  while (end < lines.length && lines[end].trim() && !starts(lines, end)) end += 1;
  return { kind: "paragraph", text: lines.slice(i, end).map((line) => line.trimStart()).join("\n"), end };
}

/** Whether a block other than a paragraph begins here. */
function starts(lines, i) {
  const line = lines[i];
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || ITEM.test(line) || Boolean(table(lines, i));
}

// ---- blocks to nodes

function render(block, depth) {
  switch (block.kind) {
    case "code":
      return code(block);
    case "rule":
      return element("hr");
    case "heading": {
      const made = element(`h${Math.min(6, block.level + 2)}`); // the page has an h1 and each message an h2
      inline(block.text, made);
      return made;
    }
    case "quote": {
      const made = element("blockquote");
      within(block.text, made, depth);
      return made;
    }
    case "list":
      return items(block, depth);
    case "table":
      return grid(block);
    default: {
      const made = element("p");
      inline(block.text.trimEnd(), made);
      return made;
    }
  }
}

function within(text, parent, depth) {
  if (depth >= DEEPEST) element("p", parent, text);
  else for (const block of blocks(text)) parent.append(render(block, depth + 1));
}

function items(block, depth) {
  const made = element(block.ordered ? "ol" : "ul");
  if (block.ordered && block.start !== 1) made.start = block.start;
  for (const text of block.items) {
    const item = element("li", made);
    const task = /^\[([ xX])\] /.exec(text);
    if (task) {
      const box = element("input", item);
      box.type = "checkbox";
      box.disabled = true;
      box.checked = task[1] !== " ";
      box.ariaLabel = box.checked ? "done" : "to do";
      item.className = "task";
    }
    within(task ? text.slice(4) : text, item, depth);
    const only = item.querySelector(":scope > p");
    if (!block.loose && only) only.replaceWith(...only.childNodes);
  }
  return made;
}

function grid(block) {
  const frame = element("div");
  frame.className = "table";
  frame.tabIndex = 0; // what scrolls must be reached by keyboard
  frame.role = "region";
  frame.ariaLabel = "Table";
  const made = element("table", frame);
  const row = (parent, name, texts) => {
    const line = element("tr", parent);
    texts.forEach((text, column) => {
      const cell = element(name, line);
      cell.className = block.sides[column];
      inline(text, cell);
    });
  };
  row(element("thead", made), "th", block.head);
  const body = element("tbody", made);
  block.rows.forEach((texts) => row(body, "td", texts));
  return frame;
}

function code(block) {
  const figure = element("figure");
  figure.className = "code";
  const caption = element("figcaption", figure);
  element("span", caption, block.language || "text");
  const copy = element("button", caption, "Copy");
  copy.type = "button";
  copy.dataset.copy = "code";
  const frame = element("pre", figure);
  frame.tabIndex = 0;
  frame.role = "region";
  frame.ariaLabel = `Code${block.language ? `, ${block.language}` : ""}`;
  colour(element("code", frame), block.text, block.language);
  return figure;
}

// ---- within a line

const PUNCTUATION = /[!-/:-@[-`{-~]/;
const MARKS = [["**", "strong"], ["__", "strong"], ["~~", "del"], ["*", "em"], ["_", "em"]];
const ADDRESS = /https?:\/\/[^\s<>"'`\])]*[^\s<>"'`\]).,;:!?]/y;
const LINK = /!?\[((?:[^\][\\]|\\.|\[[^\][]*\])*)\]\(\s*<?([^\s()<>]*(?:\([^\s()<>]*\)[^\s()<>]*)*)>?(?:\s+["'(][^\n]*?["')])?\s*\)/y;
const ANGLES = /<((?:https?:\/\/|mailto:)[^\s<>]*)>/y;

/** Appends text with its marks to `parent`. */
export function inline(text, parent, depth = 0) {
  if (text.length > LONGEST || depth > DEEPEST) {
    plain(text, parent);
    return;
  }
  const missing = new Set(); // marks known to have no partner in what follows, so that many are not looked for again
  let from = 0;
  let i = 0;
  const flush = () => {
    plain(text.slice(from, i), parent);
  };
  while (i < text.length) {
    const taken = mark(text, i, missing, depth);
    if (!taken) {
      i += 1;
      continue;
    }
    flush();
    parent.append(taken.node);
    i = from = taken.end;
  }
  flush();
}

function mark(text, i, missing, depth) {
  const c = text[i];
  if (c === "\\" && PUNCTUATION.test(text[i + 1] ?? "")) return { node: document.createTextNode(text[i + 1]), end: i + 2 };
  if (c === "`") return spanOfCode(text, i, missing);
  if (c === "[" || (c === "!" && text[i + 1] === "[")) return link(text, i, depth);
  if (c === "<") return matched(ANGLES, text, i, (found) => anchor(found[1], found[1], depth));
  if (c === "h" && !/\w/.test(text[i - 1] ?? "")) return matched(ADDRESS, text, i, (found) => anchor(found[0], found[0], depth));
  return "*_~".includes(c) ? emphasis(text, i, missing, depth) : null;
}

function matched(pattern, text, i, make) {
  pattern.lastIndex = i;
  const found = pattern.exec(text);
  const node = found && make(found);
  return node ? { node, end: i + found[0].length } : null;
}

function spanOfCode(text, i, missing) {
  const marks = /^`+/.exec(text.slice(i, i + 64))[0];
  if (missing.has(marks)) return run(text, i, marks);
  for (let at = i + marks.length; (at = text.indexOf(marks, at)) >= 0; ) {
    let end = at + marks.length;
    if (text[end] !== "`") {
      const inside = text.slice(i + marks.length, at).replaceAll("\n", " ");
      return { node: element("code", null, /^ .*[^ ].* $/.test(inside) ? inside.slice(1, -1) : inside), end };
    }
    while (text[end] === "`") end += 1;
    at = end;
  }
  missing.add(marks);
  return run(text, i, marks);
}

/** Marks that mean nothing, as they are. */
function run(text, i, marks) {
  return { node: document.createTextNode(marks), end: i + marks.length };
}

function link(text, i, depth) {
  return matched(LINK, text, i, (found) => anchor(found[2].replace(/\\([!-/:-@[-`{-~])/g, "$1"), found[1], depth));
}

/** A link, or null where the address is of no kind that is safe to follow. */
function anchor(address, text, depth) {
  let url;
  try {
    url = new URL(address);
  } catch {
    return null;
  }
  if (!["http:", "https:", "mailto:"].includes(url.protocol)) return null;
  const made = element("a");
  made.href = url.href;
  made.target = "_blank";
  made.rel = "noopener noreferrer nofollow";
  if (text === address) made.textContent = text;
  else inline(text || address, made, depth + 1);
  return made;
}

function emphasis(text, i, missing, depth) {
  for (const [marks, name] of MARKS) {
    if (!text.startsWith(marks, i) || missing.has(marks)) continue;
    const inner = i + marks.length;
    if (/\s/.test(text[inner] ?? " ")) continue;
    if (marks[0] === "_" && /\w/.test(text[i - 1] ?? "")) continue; // snake_case is a name
    const end = closing(text, inner, marks, missing);
    if (end < 0) continue;
    const made = element(name);
    inline(text.slice(inner, end), made, depth + 1);
    return { node: made, end: end + marks.length };
  }
  return null;
}

function closing(text, inner, marks, missing) {
  const c = marks[0];
  let looked = 0;
  for (let at = text.indexOf(marks, inner + 1); at >= 0 && looked < 64; at = text.indexOf(marks, at + 1), looked += 1) {
    if (/[\s\\]/.test(text[at - 1])) continue;
    if (marks.length === 1 && (text[at + 1] === c || text[at - 1] === c)) continue; // part of a longer run
    if (marks.length === 2 && text[at + 2] === c && text[at + 3] !== c) at += 1; // ***both***: the inner one closes first
    if (c === "_" && /\w/.test(text[at + marks.length] ?? "")) continue;
    return at;
  }
  if (!looked) missing.add(marks);
  return -1;
}

function plain(text, parent) {
  text.split(/ *\n/).forEach((line, number) => {
    if (number) element("br", parent);
    if (line) parent.append(line);
  });
}

// ---- growing text

/** An element that shows a text which grows: blocks that have not changed stay, so a selection in them does too. */
export class Growing {
  #shown = [];

  constructor(parent) {
    this.parent = parent;
  }

  /** Show `text`, which begins as the last one did, or does not. */
  update(text) {
    const made = blocks(text);
    let same = 0;
    while (same < made.length && this.#shown[same]?.source === made[same].source) same += 1;
    for (const { node } of this.#shown.splice(same)) node.remove();
    for (const block of made.slice(same)) {
      const node = render(block, 0);
      this.parent.append(node);
      this.#shown.push({ source: block.source, node });
    }
  }

  /** What the blocks from `first` on say, less the last one, which still grows; and how many there are. */
  complete(first, all = false) {
    const count = this.#shown.length - (all ? 0 : 1);
    const texts = this.#shown.slice(first, Math.max(first, count)).map(({ node }) => node.textContent);
    return { text: texts.join("\n"), count: Math.max(first, count) };
  }
}
