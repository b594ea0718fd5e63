// The dashboard: asks for /metrics once a second and draws what it says; what the server does not tell is "not reported".

import { KEY, ask } from "./api.js";
import { bar, Chart } from "./charts.js";
import { $, drawIcons, duration, h, number, storage } from "./dom.js";
import { History, parse, Snapshot } from "./metrics.js";

const SECONDS = 300; // of history in the charts
const WINDOW = 60; // over which percentiles and shares are taken
const RECENT = 5; // and rates
const INTERVAL = 1000;

const history = new History(SECONDS);
const percent = (share) => (share == null ? "–" : `${number(100 * share, 2)} %`);
const gigabytes = (bytes) => (bytes == null ? "–" : `${number(bytes / 2 ** 30)} GiB`);
const rounded = (value) => number(value);
const clock = (time) => new Date(time * 1000).toLocaleTimeString();

let model = "";
let downSince = null;
let restartedAt = null;

// Each card: its title, its size, its figures, each of which is a line of its chart, and what is said below.
const latency = (title, name) => ({
  title,
  figures: [0.5, 0.95].map((q) => ({ name: `p${100 * q}`, of: () => history.percentile(q, name, WINDOW, model), show: duration })),
  none: "No requests in the last minute",
});
const rate = (name) => () => history.rate(name, RECENT, model);
const gauge = (name) => () => history.last.total(name, model);

const CARDS = [
  {
    title: "Generated",
    figures: [{ name: "tok/s", of: rate("bitnet_generation_tokens_total"), show: rounded }],
    chart: { least: 1 },
    foot: sinceStart("bitnet_generation_tokens_total"),
  },
  {
    title: "Prompts",
    figures: [{ name: "tok/s", of: rate("bitnet_prompt_tokens_total"), show: rounded }],
    chart: { least: 1 },
    foot: sinceStart("bitnet_prompt_tokens_total"),
  },
  {
    title: "Requests",
    figures: [
      { name: "running", of: gauge("bitnet_requests_running"), show: rounded },
      { name: "waiting", of: gauge("bitnet_requests_waiting"), show: rounded },
    ],
    chart: { least: 4 },
    foot: outcomes,
  },
  latency("Time to first token", "bitnet_time_to_first_token_seconds"),
  latency("Between tokens", "bitnet_inter_token_latency_seconds"),
  latency("Whole request", "bitnet_e2e_request_latency_seconds"),
  {
    title: "KV cache",
    size: "quarter",
    small: true,
    figures: [{ name: "in use", of: () => history.last.most("bitnet_kv_cache_usage_ratio", model), show: percent }],
    chart: { top: 1 },
  },
  {
    title: "Prompt tokens from the cache",
    size: "quarter",
    small: true,
    figures: [{ name: "hits in a minute", of: prefixHits, show: percent }],
    chart: { top: 1 },
    none: "No prompts in the last minute",
    foot: sinceStart("bitnet_prefix_cache_hits_total"),
  },
  {
    title: "Memory",
    size: "quarter",
    small: true,
    figures: [{ name: "in use", of: gauge("bitnet_memory_used_bytes"), show: gigabytes }],
    chart: { top: () => history.last.total("bitnet_memory_total_bytes") },
    foot: () =>
      [told(history.last.total("bitnet_memory_total_bytes"), (total) => `of ${gigabytes(total)}`), told(history.last.total("bitnet_process_resident_bytes"), (own) => `the server ${gigabytes(own)}`)].filter(Boolean).join(", "),
  },
  {
    title: "Power",
    size: "quarter",
    small: true,
    figures: [{ name: "W", of: watts, show: rounded }],
    chart: { least: 5 },
    foot: () => history.last.by("bitnet_power_watts", "domain").map(([name, value]) => `${name} ${number(value)} W`).join(" · ") || battery(),
  },
  {
    title: "Processors",
    size: "half",
    figures: [{ name: "of all cores", of: meanLoad, show: percent }],
    chart: { top: 1 },
    bars: () => history.last.by("bitnet_cpu_usage_ratio", "core").map(([core, share]) => [`Core ${core}`, share, percent(share)]),
    foot: frequencies,
  },
  {
    title: "Temperature",
    size: "half",
    figures: [{ name: "°C, the hottest", of: () => history.last.most("bitnet_temperature_celsius"), show: rounded }],
    chart: { top: 100 },
    bars: () => history.last.by("bitnet_temperature_celsius", "sensor").map(([name, degrees]) => [name, degrees / 100, `${number(degrees)} °C`]),
    foot: () => throttling(),
  },
];

function sinceStart(name) {
  return () => told(history.last.total(name, model), (tokens) => `${number(tokens, 12)} tokens since the start`);
}

function told(value, text) {
  return value == null ? "" : text(value);
}

function prefixHits() {
  const queries = history.growth("bitnet_prefix_cache_queries_total", WINDOW, model);
  return queries > 0 ? history.growth("bitnet_prefix_cache_hits_total", WINDOW, model) / queries : null;
}

/** Of all packages, or else of what else there is; a package holds its parts, and they are not counted twice. */
function watts() {
  const found = history.last.by("bitnet_power_watts", "domain");
  const packages = found.filter(([name]) => /^package-\d+$/.test(name));
  const whole = packages.length ? packages : found.slice(0, 1);
  return whole.length ? whole.reduce((sum, [, value]) => sum + value, 0) : null;
}

function meanLoad() {
  const found = history.last.by("bitnet_cpu_usage_ratio", "core");
  return found.length ? found.reduce((sum, [, share]) => sum + share, 0) / found.length : null;
}

function frequencies() {
  const hertz = history.last.by("bitnet_cpu_frequency_hertz", "core").map(([, value]) => value / 1e9);
  const limit = history.last.total("bitnet_cpu_limit_cores");
  const range = hertz.length && [Math.min(...hertz), Math.max(...hertz)].map((each) => number(each));
  return [range && (range[0] === range[1] ? `${range[0]} GHz` : `${range[0]} to ${range[1]} GHz`), limit && `${number(limit)} cores granted`].filter(Boolean).join(" · ");
}

const throttling = () => {
  const why = history.last.by("bitnet_throttled", "reason").filter(([, holds]) => holds).map(([name]) => name);
  return why.length ? `Slowed down: ${why.join(", ")}` : "";
};

const battery = () => history.last.by("bitnet_battery_charge_ratio", "battery").map(([name, share]) => `${name} at ${percent(share)}`).join(" · ");

function outcomes() {
  const counts = new Map();
  for (const { labels, value } of history.last.each("bitnet_requests_total", model)) counts.set(labels.outcome, (counts.get(labels.outcome) ?? 0) + value);
  const told = [...counts].filter(([, count]) => count).sort((a, b) => b[1] - a[1]);
  return told.length ? `Ended so far: ${told.map(([name, count]) => `${number(count, 12)} ${name}`).join(" · ")}` : "";
}

function build(card) {
  card.chart = new Chart(card.figures.map(({ name }) => name), { seconds: SECONDS, show: card.figures[0].show, height: card.small ? 72 : 120, label: card.title, ...card.chart });
  card.fixed = card.chart.top;
  card.heads = h("div", { class: "heads" });
  card.bottom = h("p", { class: "foot" });
  card.empty = h("p", { class: "none" });
  card.rows = card.bars && h("div", { class: "bars" });
  return h("section", { class: `card ${card.size ?? ""}${card.small ? " small" : ""}`, "aria-label": card.title }, h("h2", {}, card.title), card.heads, card.empty, card.chart.element, card.rows, card.bottom);
}

function update(card, time) {
  const values = card.figures.map(({ of }) => of());
  card.chart.add(time, values);
  if (typeof card.fixed === "function") card.chart.top = card.fixed();
  card.chart.marks = history.restarts;
  const known = card.chart.points.some(({ values: each }) => each.some((value) => value != null));
  const several = card.figures.length > 1;
  card.heads.hidden = card.chart.element.hidden = !known;
  card.heads.replaceChildren(...card.figures.map(({ name, show }, i) => h("div", { class: `head${several ? " keyed" : ""}` }, h("b", {}, show(values[i])), h("span", {}, name))));
  card.empty.hidden = known;
  card.empty.textContent = card.none ?? (history.snapshots.length < 2 ? "…" : "Not reported");
  if (known) card.chart.draw();
  const rows = card.bars?.() ?? [];
  card.rows?.replaceChildren(...(rows.length > 1 ? rows.map((row) => bar(...row)) : []));
  card.rows?.classList.toggle("many", rows.length > 8);
  card.rows?.classList.toggle("named", rows.some(([name]) => name.length > 8));
  card.bottom.textContent = card.foot?.() ?? "";
}

/** Requests in the engine, as /slots tells them; servers that do not are asked no more. */
const flight = { card: h("section", { class: "card all", "aria-label": "Requests in flight" }), asked: true };

async function updateFlight() {
  if (!flight.asked) return;
  let slots;
  try {
    slots = (await (await ask("/slots")).json()).filter((slot) => !model || !slot.model || slot.model === model);
  } catch (error) {
    flight.asked = error.kind !== "refused";
    return;
  }
  const rows = slots.slice(0, 50).map((slot) => {
    const { n_prompt_tokens: prompt, n_prompt_tokens_processed: read = prompt, n_prompt_tokens_cache: cached, n_decoded: written } = slot;
    const working = slot.is_processing !== false;
    const doing = !working ? "waiting" : read < prompt ? "reading" : "writing";
    return h("tr", {}, [slot.id_task ?? slot.id, slot.model ?? "", doing, `${number(read, 9)} of ${number(prompt, 9)}`, cached ? number(cached, 9) : "–", number(written, 9)].map((each) => h("td", {}, String(each))));
  });
  const head = h("tr", {}, ["Request", "Model", "Doing", "Prompt", "From the cache", "Written"].map((name) => h("th", { scope: "col" }, name)));
  flight.card.replaceChildren(h("h2", {}, `In flight: ${slots.length}`), rows.length ? h("div", { class: "scroll" }, h("table", {}, h("thead", {}, head), h("tbody", {}, rows))) : h("p", { class: "none" }, "Nothing at this moment"));
  if (!flight.card.isConnected) $("#figures").append(flight.card);
}

function say(state, text) {
  const element = $("#state");
  element.dataset.state = state;
  if (element.textContent !== text) element.textContent = text;
  $("#figures").classList.toggle("stale", state === "down");
}

function live() {
  const { last } = history;
  const start = last.total("bitnet_start_time_seconds");
  const facts = [last.label("bitnet_info", "version"), last.label("bitnet_info", "isa"), start && `up ${duration(Math.max(0, last.time - start))}`];
  $("#server").textContent = facts.filter(Boolean).join(" · ");
  const recent = restartedAt && last.time - restartedAt < 60;
  say(recent ? "new" : "live", recent ? `The server was started anew at ${clock(restartedAt)}.` : "Live, every second.");
  const names = [...new Set(["bitnet_requests_running", "bitnet_generation_tokens_total"].flatMap((name) => last.each(name).map(({ labels }) => labels.model)))].filter(Boolean).sort();
  $("#models").hidden = names.length < 2;
  const select = $("#model");
  if (select.options.length !== names.length + 1) {
    select.replaceChildren(h("option", { value: "" }, "All models"), ...names.map((name) => h("option", { value: name }, name)));
    select.value = model = names.includes(model) ? model : "";
  }
}

async function tick() {
  try {
    const text = await (await ask("/metrics", { signal: AbortSignal.timeout(5000) })).text();
    const snapshot = new Snapshot(parse(text), Date.now() / 1000);
    if (!snapshot.series.size) throw new Error("What answers is no server of ours.");
    if (history.add(snapshot)) restartedAt = snapshot.total("bitnet_start_time_seconds") ?? snapshot.time;
    downSince = null;
    $("#unlock").hidden = true;
    live();
    for (const card of CARDS) update(card, snapshot.time);
    await updateFlight();
  } catch (error) {
    if (error.kind === "key") {
      $("#unlock").hidden = false;
      say("wait", "Closed.");
    } else {
      downSince ??= Date.now() / 1000;
      say("down", `The server has not answered since ${clock(downSince)}. Asking again every second.`);
    }
  }
  setTimeout(tick, INTERVAL);
}

drawIcons();
$("#figures").append(...CARDS.map(build));
$("#model").addEventListener("change", ({ target }) => {
  model = target.value;
  for (const { chart } of CARDS) chart.points = []; // they were of other models
});
$("#unlock").addEventListener("submit", (event) => {
  event.preventDefault();
  storage.set(KEY, $("#key").value.trim());
  $("#unlock").hidden = true;
});
tick();
