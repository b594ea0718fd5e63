// Markdown to DOM nodes. The text is a model's and is not trusted: it ends in text nodes and in elements of a short
// list, never in markup, and links lead only to http, https and mailto. Images are shown as links: an image that is
// fetched tells its host what was read. The work grows in step with the text, whatever the text is.

import { h, iconButton } from "./dom.js";

const DEPTH = 8; // of quotes and lists in one another

const FENCE = /^ {0,3}(`{3,}|~{3,})[ \t]*([^`\n]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:[ \t]+(.*))?$/;
const RULE = /^ {0,3}(?:(?:\*[ \t]*){3,}|(?:-[ \t]*){3,}|(?:_[ \t]*){3,})$/;
const QUOTE = /^ {0,3}> ?/;
const ITEM = /^([ \t]*)([-*+]|\d{1,9}[.)])(?:[ \t]+(.*)|)$/;
const DIVIDER = /^ {0,3}\|?[ \t]*:?-+:?[ \t]*(?:\|[ \t]*:?-+:?[ \t]*)*\|?[ \t]*$/;

const blank = (line) => !line.trim();
const indentation = (line) => line.match(/^[ \t]*/)[0].replaceAll("\t", "    ").length;
const dedent = (line, columns) => {
  let at = 0;
  for (let seen = 0; at < line.length && seen < columns && " \t".includes(line[at]); at++) seen += line[at] === "\t" ? 4 : 1;
  return line.slice(at);
};

/** The blocks of a text, each with the lines that it is made of: {kind, lines, ...}. */
function split(lines) {
  const blocks = [];
  for (let at = 0; at < lines.length; ) {
    if (blank(lines[at])) {
      at++;
      continue;
    }
    const block = read(lines, at);
    block.lines = lines.slice(at, block.end);
    blocks.push(block);
    at = block.end;
  }
  return blocks;
}

function read(lines, at) {
  const line = lines[at];
  let found;
  if ((found = FENCE.exec(line))) return fence(lines, at, found);
  if ((found = HEADING.exec(line))) return { kind: "heading", level: found[1].length, text: (found[2] ?? "").replace(/[ \t]#+[ \t]*$/, ""), end: at + 1 };
  if (RULE.test(line)) return { kind: "rule", end: at + 1 };
  if (QUOTE.test(line)) return { kind: "quote", end: run(lines, at, (each) => QUOTE.test(each)) };
  if (ITEM.test(line)) return { kind: "list", end: endOfList(lines, at) };
  if (isTable(lines, at)) return { kind: "table", end: run(lines, at + 1, (each) => each.includes("|") && !blank(each)) };
  return { kind: "paragraph", end: run(lines, at, (each, i) => !blank(each) && !interrupts(lines, i)) };
}

/** The line after the first at which `goes` does not hold any more; the first line is taken in any case. */
function run(lines, at, goes) {
  let end = at + 1;
  while (end < lines.length && goes(lines[end], end)) end++;
  return end;
}

function interrupts(lines, at) {
  const line = lines[at];
  const item = ITEM.exec(line);
  if (item && item[3] && indentation(line) < 4 && (!/\d/.test(item[2]) || parseInt(item[2]) === 1)) return true;
  return FENCE.test(line) || HEADING.test(line) || RULE.test(line) || QUOTE.test(line) || isTable(lines, at);
}

function fence(lines, at, [, marks, info]) {
  const close = new RegExp(`^ {0,3}${marks[0]}{${marks.length},}[ \t]*$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) end++;
  const inner = indentation(lines[at]);
  return { kind: "code", language: info.trim().split(/\s+/)[0], text: lines.slice(at + 1, end).map((each) => dedent(each, inner)).join("\n"), end: Math.min(end + 1, lines.length) };
}

const cells = (line) => {
  const row = line.trim().replace(/^\|/, "").replace(/\|$/, "");
  const found = [""];
  for (const part of row.match(/\\[^]|`+[^`]*`+|[|]|[^\\|`]+|[\\`]/g) ?? []) {
    if (part === "|") found.push("");
    else found[found.length - 1] += part === "\\|" ? "|" : part;
  }
  return found.map((each) => each.trim());
};

const isTable = (lines, at) =>
  lines[at].includes("|") && at + 1 < lines.length && DIVIDER.test(lines[at + 1]) && lines[at + 1].includes("-") && cells(lines[at]).length === cells(lines[at + 1]).length;

function endOfList(lines, at) {
  const outer = indentation(lines[at]);
  const ordered = /\d/.test(ITEM.exec(lines[at])[2]);
  let end = at + 1;
  for (; end < lines.length; end++) {
    const line = lines[end];
    if (blank(line)) continue;
    if (indentation(line) > outer + 1) continue;
    const item = ITEM.exec(line);
    if (item && !RULE.test(line) && /\d/.test(item[2]) === ordered) continue;
    if (blank(lines[end - 1]) || interrupts(lines, end)) break; // and else the paragraph of the item goes on
  }
  while (blank(lines[end - 1])) end--;
  return end;
}

/** [{lines}], each item's own lines without its mark. */
function items(lines) {
  const outer = indentation(lines[0]);
  const found = [];
  let inner = 0;
  let fenced = false;
  for (const line of lines) {
    const item = ITEM.exec(line);
    if (item && !fenced && indentation(line) <= outer + 1) {
      inner = indentation(line) + item[2].length + 1;
      found.push([item[3] ?? ""]);
      fenced = FENCE.test(item[3] ?? "");
    } else {
      const own = dedent(line, inner);
      if (FENCE.test(own)) fenced = !fenced;
      found.at(-1).push(own);
    }
  }
  return found;
}

function draw(block, depth) {
  switch (block.kind) {
    case "code": return codeBlock(block.language, block.text);
    case "heading": return h(`h${Math.min(6, block.level + 1)}`, {}, inline(block.text)); // h1 is the page's
    case "rule": return h("hr");
    case "quote": return h("blockquote", {}, drawAll(block.lines.map((line) => line.replace(QUOTE, "")), depth + 1));
    case "list": return list(block.lines, depth);
    case "table": return table(block.lines);
    default: return h("p", {}, inline(block.lines.map((line) => line.trimStart()).join("\n")));
  }
}

const drawAll = (lines, depth) => (depth > DEPTH ? [h("p", {}, lines.join("\n"))] : split(lines).map((block) => draw(block, depth)));

function list(lines, depth) {
  const mark = ITEM.exec(lines[0])[2];
  const loose = lines.some((line, at) => blank(line) && at + 1 < lines.length && indentation(lines[at + 1]) <= indentation(lines[0]) + 3);
  const drawn = items(lines).map((own) => {
    const task = /^\[([ xX])\][ \t]+/.exec(own[0]);
    if (task) own[0] = own[0].slice(task[0].length);
    const box = task && h("input", { type: "checkbox", disabled: true, checked: task[1] !== " ", "aria-label": task[1] === " " ? "open" : "done" });
    const children = drawAll(own, depth + 1).flatMap((node) => (!loose && node.tagName === "P" ? [...node.childNodes] : [node]));
    return h("li", { class: task ? "task" : null }, box, children);
  });
  return /\d/.test(mark) ? h("ol", { start: parseInt(mark) === 1 ? null : parseInt(mark) }, drawn) : h("ul", {}, drawn);
}

function table([head, divider, ...rows]) {
  const sides = cells(divider).map((each) => (each.endsWith(":") ? (each.startsWith(":") ? "center" : "right") : null));
  const row = (line, tag) => h("tr", {}, sides.map((side, i) => h(tag, { class: side, scope: tag === "th" ? "col" : null }, inline(cells(line)[i] ?? ""))));
  return h("div", { class: "table", tabindex: "0", role: "region", "aria-label": "Table" }, h("table", {}, h("thead", {}, row(head, "th")), h("tbody", {}, rows.map((line) => row(line, "td")))));
}

function codeBlock(language, text) {
  const copy = iconButton("copy", "Copy the code", async () => {
    await navigator.clipboard.writeText(text);
    copy.classList.add("done");
    copy.setAttribute("aria-label", "Copied");
    setTimeout(() => (copy.classList.remove("done"), copy.setAttribute("aria-label", "Copy the code")), 1500);
  });
  return h("figure", { class: "code" }, h("figcaption", {}, h("span", {}, language || "text"), copy), h("pre", { tabindex: "0" }, h("code", {}, highlight(text, language.toLowerCase()))));
}

const HASH = /^(py|python|sh|bash|zsh|shell|console|yaml|yml|toml|rb|ruby|r|make|makefile|dockerfile|perl|ini)$/;
const SLASH = /^(js|javascript|ts|typescript|jsx|tsx|c|h|cpp|c\+\+|cc|cs|csharp|java|kotlin|swift|go|rust|rs|php|scala|dart|css|cuda)$/;
const DASH = /^(sql|lua|haskell|hs|ada)$/;
const WORDS = new Set(
  ("and as async await break case catch class const continue def default del do elif else enum except export extends false False finally fn for from func function go if impl implements import in interface is lambda let loop match mod mut new nil None not null or pass private protected pub public raise return self static struct super switch template then this throw trait True true try type typedef typename union use using var virtual void while with yield where int float double char bool str string long unsigned auto " +
   "SELECT FROM WHERE INSERT INTO VALUES UPDATE SET DELETE CREATE TABLE JOIN LEFT RIGHT INNER ON GROUP BY ORDER LIMIT AND OR NOT NULL AS select from where insert into values update set delete create table join group by order limit").split(" "),
);

/** Comments, strings, numbers and the words that most languages share: enough to rest the eye. */
function highlight(text, language) {
  const comment = HASH.test(language) ? "#[^\\n]*" : SLASH.test(language) ? "//[^\\n]*|/\\*[^]*?(?:\\*/|$)" : DASH.test(language) ? "--[^\\n]*" : null;
  if (!comment && !/^(json|jsonc)$/.test(language)) return [text];
  const token = new RegExp(`(${comment ?? "(?!)"})|("(?:[^"\\\\\\n]|\\\\.)*"?|'(?:[^'\\\\\\n]|\\\\.)*'?|\`[^\`]*\`?)|\\b(\\d[\\w.]*)|\\b([A-Za-z_]\\w*)`, "g");
  const nodes = [];
  let at = 0;
  for (const found of text.matchAll(token)) {
    const kind = found[1] ? "comment" : found[2] ? "string" : found[3] ? "number" : WORDS.has(found[4]) ? "word" : null;
    if (!kind) continue;
    if (found.index > at) nodes.push(text.slice(at, found.index));
    nodes.push(h("span", { class: `tok-${kind}` }, found[0]));
    at = found.index + found[0].length;
  }
  nodes.push(text.slice(at));
  return nodes;
}

// One of: escape, code, <address>, image or link, bare address, emphasis, line break, or plain text.
const PIECE = new RegExp(
  [
    /\\([!-/:-@[-`{-~])/, // 1
    /(`+)/, // 2
    /<((?:https?:\/\/|mailto:)[^\s<>]{1,2000})>/, // 3
    /!?\[((?:[^[\]\\]|\\.|\[[^[\]]{0,200}\]){0,500})\]\([ \t]*<?([^\s<>()]{0,2000}(?:\([^\s()]{0,200}\)[^\s<>()]{0,2000}){0,4})>?(?:[ \t]+["'][^"'\n]{0,500}["'])?[ \t]*\)/, // 4, 5
    /(https?:\/\/[^\s<>"'`\\]{1,2000})/, // 6
    /(\*{1,3}|_{1,3}|~~)/, // 7
    /( {2,}\n|\n)/, // 8
    /[^\\`<![*_~h\n ]+|[^]/,
  ].map((each) => each.source).join("|"),
  "gy",
);

const OPEN = 20; // marks of emphasis that wait for their end

/** The nodes of a text within a block. */
export function inline(text) {
  const stack = [{ mark: "", nodes: [] }];
  const put = (...nodes) => stack.at(-1).nodes.push(...nodes);
  const letGo = () => {
    const { mark, nodes } = stack.pop();
    put(mark, ...nodes); // it had no end, and was no mark
  };
  const piece = new RegExp(PIECE); // one of its own: a link's text is read within
  for (let found; (found = piece.exec(text)); ) {
    const [all, escaped, ticks, address, label, target, bare, mark, end] = found;
    if (escaped) put(escaped);
    else if (ticks) piece.lastIndex = codeSpan(text, found.index, ticks, put);
    else if (address) put(link(address, [address.replace(/^mailto:/, "")]));
    else if (target != null) put(safe(target) ? link(target, stack.length < OPEN ? inline(label || target) : [label]) : all);
    else if (bare && !/\w/.test(text[found.index - 1] ?? "")) {
      const trimmed = trim(bare);
      put(link(trimmed, [trimmed]));
      piece.lastIndex = found.index + trimmed.length;
    } else if (mark) emphasis(text, found.index, mark, stack, put, letGo);
    else if (end) put(...(end.length > 1 || text[found.index - 1] === "\\" ? [h("br")] : ["\n"]));
    else put(all);
  }
  while (stack.length > 1) letGo();
  return joined(stack[0].nodes);
}

/** Neighbouring texts as one. */
function joined(nodes) {
  const found = [];
  let text = [];
  for (const node of nodes) {
    if (typeof node === "string") text.push(node);
    else {
      if (text.length) found.push(text.join(""));
      text = [];
      found.push(node);
    }
  }
  if (text.length) found.push(text.join(""));
  return found;
}

function codeSpan(text, at, ticks, put) {
  const start = at + ticks.length;
  for (let end = text.indexOf(ticks, start); end >= 0; ) {
    let after = end;
    while (text[after] === "`") after++;
    if (after - end === ticks.length) {
      const inside = text.slice(start, end).replaceAll("\n", " ");
      put(h("code", {}, /^ .*[^ ].* $/.test(inside) ? inside.slice(1, -1) : inside));
      return after;
    }
    end = text.indexOf(ticks, after);
  }
  put(ticks);
  return start;
}

const TAGS = { "*": "em", _: "em", "**": "strong", __: "strong", "~~": "del" };

function emphasis(text, at, marks, stack, put, letGo) {
  const before = text[at - 1] ?? " ";
  const after = text[at + marks.length] ?? " ";
  const inWord = marks[0] === "_" && /\w/.test(before) && /\w/.test(after);
  const opens = /\S/.test(after) && !inWord && (marks[0] !== "_" || !/\w/.test(before));
  const closes = /\S/.test(before) && !inWord && (marks[0] !== "_" || !/\w/.test(after));
  for (let left = marks; left; ) {
    const open = (fits) => stack.findLastIndex(({ mark, nodes }) => mark && nodes.length && fits(mark));
    const exact = closes ? open((mark) => mark === left) : -1;
    const depth = closes && exact < 0 ? open((mark) => left.startsWith(mark)) : exact;
    if (depth > 0) {
      while (stack.length > depth + 1) letGo();
      const { mark, nodes } = stack.pop();
      put(h(TAGS[mark], {}, joined(nodes)));
      left = left.slice(mark.length);
    } else {
      const mark = left.length > 1 ? left.slice(0, 2) : left;
      if (opens && stack.length < OPEN) stack.push({ mark, nodes: [] });
      else put(mark);
      left = left.slice(mark.length);
    }
  }
}

/** Without what belongs to the sentence: "(see https://a.b/c)." */
function trim(address) {
  let found = address.replace(/[.,;:!?*_~\]|]+$/, "");
  while (found.endsWith(")") && found.split(")").length > found.split("(").length) found = found.slice(0, -1).replace(/[.,;:!?*_~]+$/, "");
  return found;
}

const safe = (target) => /^(?:https?:\/\/|mailto:)/i.test(target);

/** The host is shown beside a text that does not tell where it leads. */
function link(target, label) {
  const host = /^https?:/i.test(target) && URL.canParse(target) ? new URL(target).host : null;
  const told = label.every((each) => typeof each === "string") && target.startsWith(label.join(""));
  return h("a", { href: target, title: target, target: "_blank", rel: "noopener noreferrer nofollow" }, label, host && !told && h("span", { class: "host" }, host));
}

/** Shows `text` in `container`. Of a text that grows only the blocks that changed are drawn anew. */
export function render(container, text) {
  const blocks = split(text.replace(/\r\n?/g, "\n").split("\n"));
  const sources = blocks.map((block) => block.lines.join("\n"));
  const before = container.sources ?? [];
  let same = 0;
  while (same < before.length && before[same] === sources[same]) same++;
  while (container.childNodes.length > same) container.lastChild.remove();
  container.append(...blocks.slice(same).map((block) => draw(block, 0)));
  container.sources = sources;
}
