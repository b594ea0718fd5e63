// Small helpers that both pages share. Nothing here or elsewhere writes markup: text becomes text nodes.

const SVG = "http://www.w3.org/2000/svg";

// On a grid of 24, drawn with a line.
const ICONS = {
  menu: "M4 7h16M4 12h16M4 17h10",
  plus: "M12 5v14M5 12h14",
  close: "M6 6l12 12M18 6L6 18",
  send: "M12 19V5M6 11l6-6 6 6",
  stop: "M7 7h10v10H7z",
  copy: "M9 9h11v11H9zM5 15H4V4h11v1",
  check: "M5 12.5l4.5 4.5L19 7.5",
  edit: "M4 20l1-4L16.5 4.5l3 3L8 19zM14 7l3 3",
  again: "M20 11a8 8 0 1 0-2.3 6.6M20 4v7h-7",
  trash: "M5 7h14M10 7V4h4v3M7 7l1 13h8l1-13",
  tune: "M4 8h9M17 8h3M4 16h3M11 16h9M15 6v4M9 14v4",
  save: "M12 4v11M7 11l5 5 5-5M5 20h14",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8zM12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M19 5l-1.4 1.4M6.4 17.6L5 19",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z",
  down: "M12 5v14M6 13l6 6 6-6",
  pulse: "M3 12h4l3-8 4 16 3-8h4",
};

export const $ = (selector, root = document) => root.querySelector(selector);

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value != null) element.setAttribute(name, value);
  }
  element.append(...children.flat().filter((child) => child != null && child !== false));
  return element;
}

/** h("a", {href, onclick}, "text", node, ...) */
export const h = (tag, attributes = {}, ...children) => fill(document.createElement(tag), attributes, children);

export const svg = (tag, attributes = {}, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export const icon = (name) => svg("svg", { viewBox: "0 0 24 24", "aria-hidden": "true", class: "icon" }, svg("path", { d: ICONS[name] }));

export const iconButton = (name, label, onclick, attributes = {}) =>
  h("button", { type: "button", class: "quiet", "aria-label": label, title: label, onclick, ...attributes }, icon(name));

/** Puts the icons into the buttons of the page that name one. */
export function drawIcons() {
  for (const each of document.querySelectorAll("[data-icon]")) each.prepend(icon(each.dataset.icon));
}

/** What this browser remembers; where it may not remember anything, until the page is closed. */
const memory = new Map();
export const storage = {
  get(name) {
    try {
      return localStorage.getItem(name) ?? memory.get(name) ?? null;
    } catch {
      return memory.get(name) ?? null;
    }
  },
  /** Whether it will be remembered. */
  set(name, value) {
    memory.set(name, value);
    try {
      localStorage.setItem(name, value);
      memory.delete(name);
      return true;
    } catch {
      return false;
    }
  },
  remove(name) {
    memory.delete(name);
    try {
      localStorage.removeItem(name);
    } catch {}
  },
  names() {
    let stored = [];
    try {
      stored = Object.keys(localStorage);
    } catch {}
    return [...new Set([...stored, ...memory.keys()])];
  },
};

export function parseJson(text, otherwise = null) {
  try {
    return JSON.parse(text) ?? otherwise;
  } catch {
    return otherwise;
  }
}

/** 1234567 as "1,234,567", 12.3456 as "12.3": three digits, and all before the point. */
export function number(value, digits = 3) {
  if (value == null || !Number.isFinite(value)) return "–";
  const before = Math.max(1, Math.floor(Math.log10(Math.abs(value) || 1)) + 1);
  const after = Math.max(0, digits - before);
  return value.toLocaleString("en", { minimumFractionDigits: value % 1 ? Math.min(after, 2) : 0, maximumFractionDigits: Math.min(after, 2) });
}

/** Seconds as "84 ms", "1.25 s", "3 min". */
export function duration(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return "–";
  if (seconds < 1) return `${number(seconds * 1000)} ms`;
  if (seconds < 120) return `${number(seconds)} s`;
  if (seconds < 7200) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86400)} days`;
}
