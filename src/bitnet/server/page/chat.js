// The chat page: conversations, messages and the box to write in.

import { ask, chat } from "./api.js";
import { $, drawIcons, duration, h, iconButton, number, storage } from "./dom.js";
import { render } from "./markdown.js";
import { openSettings, sampling, setUpSettings } from "./settings.js";
import * as store from "./store.js";

const MODEL = "bitnet.model";
const TRIES = 5; // while the server is busy
const SUGGESTIONS = ["Tell me a story about a brave girl.", "Write a haiku about three numbers.", "Explain why the sky is blue.", "Plan a weekend in the mountains."];

const prompt = $("#prompt");
const scroller = $("#scroller");

let conversation = store.create(store.settings().system);
let running = null; // {controller, message, element, ...} of the answer that is being written
let models = [];

// ---------------------------------------------------------------------------------------------------- conversations

function keep() {
  if (conversation.messages.length && !store.save(conversation)) toast("This browser's storage is full: export or delete something.");
  drawList();
}

function open(chosen) {
  stop();
  conversation = chosen;
  document.body.classList.remove("listing");
  drawList();
  drawMessages();
  scrollDown();
  prompt.focus();
}

const begin = () => open(store.create(store.settings().system));

function discard(chosen) {
  if (chosen.id === conversation.id) begin();
  store.remove(chosen);
  drawList();
  toast("Conversation deleted.", () => {
    store.save(chosen);
    open(chosen);
  });
}

function age(time) {
  const midnight = new Date().setHours(0, 0, 0, 0);
  return time >= midnight ? "Today" : time >= midnight - 864e5 ? "Yesterday" : time >= midnight - 6048e5 ? "Last week" : "Earlier";
}

function drawList() {
  let last = "";
  const entries = store.all().flatMap((each) => {
    const heading = age(each.updated) === last ? [] : [h("li", { class: "age" }, (last = age(each.updated)))];
    const now = each.id === conversation.id;
    const name = h("button", { type: "button", class: "name", "aria-current": now ? "page" : null, onclick: () => now || open(each) }, store.titleOf(each));
    return [...heading, h("li", { class: `entry${now ? " now" : ""}` }, name, iconButton("trash", "Delete the conversation", () => discard(each)))];
  });
  $("#conversations").replaceChildren(...entries);
  const title = $("#title");
  if (document.activeElement !== title) title.value = conversation.messages.length ? store.titleOf(conversation) : "";
  title.placeholder = store.titleOf(conversation);
  $("#export").hidden = !conversation.messages.length;
  document.title = conversation.messages.length ? `${store.titleOf(conversation)} · bitnet` : "bitnet";
}

// --------------------------------------------------------------------------------------------------------- messages

function drawMessages() {
  const { messages } = conversation;
  $("#welcome").hidden = messages.length > 0;
  $("#messages").hidden = !messages.length;
  $("#messages").replaceChildren(...messages.map(drawMessage));
}

function redraw(message, element) {
  const drawn = drawMessage(message);
  element.replaceWith(drawn);
  return drawn;
}

function drawMessage(message) {
  const element = h("li", { class: `message ${message.role}`, "aria-label": message.role === "user" ? "You" : message.model || "Model" });
  if (message.role === "user") element.append(h("div", { class: "text" }, message.content));
  else drawAnswer(message, element);
  const below = h("div", { class: "below" }, message.role === "assistant" && h("span", { class: "stats" }), acts(message, element));
  element.append(below);
  drawStats(message, element);
  return element;
}

function acts(message, element) {
  const copy = iconButton("copy", "Copy", async () => {
    await navigator.clipboard.writeText(message.content);
    copy.classList.add("done");
    said("Copied.");
    setTimeout(() => copy.classList.remove("done"), 1500);
  });
  const again = message.role === "assistant" && iconButton("again", "Answer again", () => regenerate(message));
  return h("div", { class: "acts" }, copy, again, iconButton("edit", "Edit", () => edit(message, element)), iconButton("trash", "Delete", () => removeMessage(message)));
}

function drawAnswer(message, element) {
  element.append(
    h("details", { class: "thought", hidden: true }, h("summary", {}, h("span", {})), h("div", {})),
    h("div", { class: "prose" }),
    h("div", { class: "end" }),
  );
  fillAnswer(message, element);
}

/** Brings an answer's element up to date; while it is written, once a frame. */
function fillAnswer(message, element) {
  const writing = running?.message === message;
  const thought = $(".thought", element);
  thought.hidden = !message.reasoning;
  if (message.reasoning) {
    $("span", thought).textContent = writing && !message.content ? "Thinking …" : `Thought for ${duration(message.thinking)}`;
    if ($("div", thought).textContent !== message.reasoning) $("div", thought).textContent = message.reasoning;
  }
  render($(".prose", element), message.content);
  element.setAttribute("aria-busy", String(writing));
  $(".end", element).replaceChildren(...ending(message, writing));
}

function ending(message, writing) {
  if (writing && running.wait) return [h("div", { class: "failure wait" }, h("p", {}, running.wait))];
  if (writing) return message.content || message.reasoning ? [] : [h("span", { class: "waiting", role: "img", "aria-label": "The answer is being prepared" }, h("i"), h("i"), h("i"))];
  if (message.error) {
    const mend = mends(message)[message.error.kind] ?? ["Try again", () => regenerate(message)];
    return [h("div", { class: "failure", role: "alert" }, h("p", {}, message.error.message), h("button", { type: "button", class: "plain", onclick: mend[1] }, mend[0]))];
  }
  if (message.ended === "stopped") return [h("p", { class: "note" }, "Stopped.")];
  if (message.ended === "length") return [h("p", { class: "note" }, "The limit of tokens was reached.")];
  return [];
}

const mends = (message) => ({
  key: ["Enter the key", () => openSettings("key")],
  long: ["Edit the message", () => editQuestion(message)],
});

function drawStats(message, element) {
  const stats = $(".stats", element);
  if (!stats) return;
  const { tokens, rate, first, prompt, cached } = message.stats ?? {};
  const parts = [
    rate && `${number(rate)} tok/s`,
    tokens != null && `${number(tokens, 9)} tokens`,
    first != null && `first after ${duration(first)}`,
    prompt != null && `prompt ${number(prompt, 9)}${cached ? `, ${number(cached, 9)} cached` : ""}`,
    contextOf(message),
  ];
  stats.textContent = parts.filter(Boolean).map((part) => part.replaceAll(" ", "\u00a0")).join(" · ");
  stats.title = message.model ?? "";
}

function contextOf({ stats, model }) {
  const length = models.find(({ id }) => id === model)?.max_model_len;
  const used = stats?.prompt != null && stats.prompt + stats.tokens;
  return length && used ? `${Math.round((100 * used) / length)} % of the context` : null;
}

// ---------------------------------------------------------------------------------------- changing what has been said

/** Change the messages, and offer to take it back. */
function change(text, mutate) {
  stop();
  const { id } = conversation;
  const before = [...conversation.messages];
  mutate(conversation.messages);
  keep();
  drawMessages();
  const gone = before.filter((each) => !conversation.messages.includes(each)).length;
  if (gone && text)
    toast(text, () => {
      stop();
      if (conversation.id !== id) open(store.all().find((each) => each.id === id) ?? conversation);
      conversation.messages = before;
      keep();
      drawMessages();
    });
}

function removeMessage(message) {
  change("Message deleted.", (messages) => {
    const at = messages.indexOf(message);
    // An answer without its question would break the turns that templates expect.
    const count = message.role === "user" && messages[at + 1]?.role === "assistant" ? 2 : 1;
    messages.splice(at, count);
  });
  if (!conversation.messages.length) store.remove(conversation), drawList();
}

function regenerate(message) {
  const at = conversation.messages.indexOf(message);
  change(message.content ? "Answering again." : "", (messages) => messages.splice(at));
  answer();
}

function edit(message, element) {
  if (running?.message === message) stop();
  const mine = message.role === "user";
  const box = h("textarea", { "aria-label": mine ? "Your message" : "The answer" });
  box.value = message.content;
  const done = () => {
    if (!box.value.trim()) return;
    if (!mine) {
      message.content = box.value;
      keep();
      redraw(message, element);
      return;
    }
    const at = conversation.messages.indexOf(message);
    change("Sent anew; what followed is gone.", (messages) => messages.splice(at, Infinity, { ...message, content: box.value }));
    answer();
  };
  const cancel = () => redraw(message, element);
  box.addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.stopPropagation(), cancel();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing && mine) event.preventDefault(), done();
  });
  const bar = h("div", { class: "bar" }, h("button", { type: "button", class: "plain", onclick: cancel }, "Cancel"), h("button", { type: "button", class: "plain strong", onclick: done }, mine ? "Send" : "Save"));
  element.replaceChildren(h("div", { class: "editor" }, box, bar));
  box.focus();
}

function editQuestion(message) {
  const at = conversation.messages.findLastIndex(({ role }, i) => role === "user" && i < conversation.messages.indexOf(message));
  if (at >= 0) edit(conversation.messages[at], $("#messages").children[at]);
}

// ---------------------------------------------------------------------------------------------------------- answers

function send() {
  const content = prompt.value.trim();
  if (!content || running) return;
  conversation.messages.push({ role: "user", content });
  prompt.value = "";
  sendable();
  $("#welcome").hidden = true;
  $("#messages").hidden = false;
  $("#messages").append(drawMessage(conversation.messages.at(-1)));
  answer();
}

function request() {
  const said = conversation.messages.slice(0, -1).filter(({ content, error }) => content || !error);
  const messages = said.filter(({ content }) => content).map(({ role, content }) => ({ role, content }));
  if (conversation.system) messages.unshift({ role: "system", content: conversation.system });
  return { model: $("#model").value || undefined, messages, ...sampling() };
}

async function answer() {
  const message = { role: "assistant", content: "", reasoning: "", model: $("#model").value || null };
  const mine = conversation;
  mine.messages.push(message);
  const job = (running = { controller: new AbortController(), message, start: performance.now(), conversation: mine });
  job.element = drawMessage(message);
  $("#messages").append(job.element);
  keep();
  busy();
  scrollDown();
  said("Answering.");
  try {
    for (let tries = 1; ; tries++) {
      try {
        await write(job);
        break;
      } catch (error) {
        if (error.kind !== "busy" || tries === TRIES || message.content) throw error;
        await patience(job, error, tries);
      }
    }
  } catch (error) {
    if (error.name === "AbortError") message.ended = "stopped";
    else message.error = { kind: error.kind ?? "broken", message: error.message };
  }
  finish(job);
}

/** Reads one stream into the message. */
async function write({ message, controller, ...job }) {
  const start = performance.now();
  const seconds = () => (performance.now() - start) / 1000;
  let chunks = 0;
  let first = null;
  for await (const { choices, usage, timings } of chat(request(), controller.signal)) {
    const { delta, finish_reason: reason } = choices?.[0] ?? {};
    const thought = delta?.reasoning_content ?? delta?.reasoning;
    if (thought || delta?.content) {
      first ??= seconds();
      chunks++;
      if (thought) message.reasoning += thought;
      if (message.reasoning && !message.content) message.thinking = seconds() - first;
      message.content += delta.content ?? "";
      message.stats = { first, tokens: chunks, rate: chunks > 1 ? (chunks - 1) / (seconds() - first) : null };
      refresh();
    }
    if (reason) message.ended = reason;
    if (usage || timings) message.stats = summed(message.stats ?? {}, usage, timings);
  }
}

function summed({ first, tokens, rate }, usage, timings) {
  return {
    first,
    tokens: usage?.completion_tokens ?? timings?.predicted_n ?? tokens,
    rate: timings?.predicted_per_second ?? rate,
    prompt: usage?.prompt_tokens ?? (timings && timings.prompt_n + (timings.cache_n ?? 0)),
    cached: usage?.prompt_tokens_details?.cached_tokens ?? timings?.cache_n,
  };
}

/** Waits as long as the server asks, or ever longer, and says so. */
async function patience(job, error, tries) {
  const until = performance.now() + 1000 * (error.retryAfter ?? 2 ** tries);
  for (let left; (left = Math.ceil((until - performance.now()) / 1000)) > 0; ) {
    job.wait = `${error.message} Trying again in ${left} s.`;
    refresh();
    await new Promise((resolve, reject) => {
      const timer = setTimeout(resolve, 250);
      job.controller.signal.addEventListener("abort", () => (clearTimeout(timer), reject(new DOMException("", "AbortError"))), { once: true });
    });
  }
  job.wait = null;
  refresh();
}

let frame = 0;
let saved = 0;

/** Draws what has come, once a frame. */
function refresh() {
  frame ||= requestAnimationFrame(() => {
    frame = 0;
    if (!running) return;
    const follow = atBottom();
    fillAnswer(running.message, running.element);
    drawStats(running.message, running.element);
    if (follow) scrollDown();
    if (performance.now() - saved > 1000) {
      saved = performance.now();
      store.save(running.conversation);
    }
  });
}

function finish(job) {
  const follow = atBottom();
  if (running === job) running = null;
  busy();
  store.save(job.conversation);
  if (job.element.isConnected) redraw(job.message, job.element);
  drawList();
  if (follow) scrollDown();
  if (job.message.error) return;
  said(job.message.ended === "stopped" ? "Stopped." : "The answer is complete.");
  $("#banner").hidden = true;
}

function stop() {
  if (!running) return;
  running.message.ended = "stopped";
  running.controller.abort();
  finish(running);
}

// ------------------------------------------------------------------------------------------------- the page around it

function busy() {
  $("#send").hidden = Boolean(running);
  $("#stop").hidden = !running;
}

const sendable = () => ($("#send").disabled = !prompt.value.trim());
const atBottom = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 80;
const scrollDown = () => (scroller.scrollTop = scroller.scrollHeight);
const said = (text) => ($("#said").textContent = text);

let toastTimer;
function toast(text, undo) {
  const element = $("#toast");
  const close = () => (element.hidden = true);
  element.replaceChildren(text, ...(undo ? [h("button", { type: "button", onclick: () => (close(), undo()) }, "Undo")] : []));
  element.hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(close, 8000);
}

/** Fills the list of models; while the server does not answer, says so and asks again. */
async function loadModels() {
  const banner = $("#banner");
  let again = 3000;
  try {
    models = (await (await ask("/v1/models")).json()).data ?? [];
    const select = $("#model");
    const chosen = select.value || storage.get(MODEL);
    select.replaceChildren(...models.map(({ id }) => h("option", { value: id }, id)));
    if (models.some(({ id }) => id === chosen)) select.value = chosen;
    banner.hidden = true;
    again = models.some(({ id, max_model_len: known }) => id === select.value && known) ? 0 : 5000;
    conversation.messages.forEach((message, at) => message !== running?.message && drawStats(message, $("#messages").children[at]));
  } catch (error) {
    banner.replaceChildren(error.kind === "key" ? "This server wants a key. " : `${error.message} Asking again …`, error.kind === "key" ? h("button", { type: "button", class: "plain", onclick: () => openSettings("key") }, "Enter the key") : "");
    banner.hidden = false;
    if (error.kind === "key") again = 0;
  }
  clearTimeout(loadModels.timer);
  if (again) loadModels.timer = setTimeout(loadModels, again);
}

function exportAs(format) {
  const text = format === "md" ? store.asMarkdown(conversation) : store.asJson(conversation);
  const url = URL.createObjectURL(new Blob([text], { type: format === "md" ? "text/markdown" : "application/json" }));
  const name = store.titleOf(conversation).replace(/[^\p{L}\p{N}]+/gu, "-").slice(0, 60).replace(/^-|-$/g, "") || "conversation";
  h("a", { href: url, download: `${name}.${format}` }).click();
  setTimeout(() => URL.revokeObjectURL(url), 10000);
  $("#export").open = false;
}

drawIcons();
setUpSettings({ current: () => conversation, changed: keep, keyChanged: loadModels });
$("#composer").addEventListener("submit", (event) => (event.preventDefault(), send()));
prompt.addEventListener("input", sendable);
prompt.addEventListener("keydown", (event) => {
  if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  send();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || $("#settings").open) return;
  if ($("#export").open) $("#export").open = false;
  else if (document.body.classList.contains("listing")) document.body.classList.remove("listing");
  else stop();
});
addEventListener("click", (event) => {
  if (!$("#export").contains(event.target)) $("#export").open = false;
  if (document.body.classList.contains("listing") && !$("#sidebar").contains(event.target) && !$("#open-sidebar").contains(event.target)) document.body.classList.remove("listing");
});
$("#stop").addEventListener("click", () => (stop(), prompt.focus()));
$("#new").addEventListener("click", begin);
$("#open-sidebar").addEventListener("click", () => (document.body.classList.add("listing"), $("#close-sidebar").focus()));
$("#close-sidebar").addEventListener("click", () => (document.body.classList.remove("listing"), $("#open-sidebar").focus()));
$("#open-settings").addEventListener("click", () => openSettings());
$("#model").addEventListener("change", (event) => storage.set(MODEL, event.target.value));
$("#title").addEventListener("input", (event) => (conversation.title = event.target.value.trim()));
$("#title").addEventListener("change", keep);
for (const each of document.querySelectorAll("[data-format]")) each.addEventListener("click", () => exportAs(each.dataset.format));
$("#suggestions").append(...SUGGESTIONS.map((text) => h("button", { type: "button", onclick: () => ((prompt.value = text), send()) }, text)));
$("#latest").addEventListener("click", scrollDown);
scroller.addEventListener("scroll", () => ($("#latest").hidden = atBottom()), { passive: true });
addEventListener("storage", ({ key }) => store.isConversation(key) && drawList());
addEventListener("pagehide", () => running && store.save(running.conversation));
sendable();
drawList();
drawMessages();
loadModels();
