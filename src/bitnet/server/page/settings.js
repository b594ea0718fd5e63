// Settings: the system prompt of the conversation, the sampling of all, and the key.

import { KEY } from "./api.js";
import { $, h, storage } from "./dom.js";
import { saveSettings, settings } from "./store.js";

// Name in a request: label, what it does, lowest, highest, step. An empty field leaves it to the server.
const FIELDS = {
  temperature: ["Temperature", "0 takes the likeliest", 0, 100, 0.05],
  max_completion_tokens: ["Longest answer", "tokens", 1, null, 1],
  top_p: ["Top p", "the likeliest that reach this", 0, 1, 0.01],
  top_k: ["Top k", "the k likeliest; 0 is all", 0, null, 1],
  min_p: ["Min p", "share of the likeliest", 0, 1, 0.01],
  seed: ["Seed", "same seed, same answer", 0, null, 1],
  repetition_penalty: ["Repetition", "1 is off", 0.01, 100, 0.01],
  presence_penalty: ["Presence", "0 is off", -2, 2, 0.1],
  frequency_penalty: ["Frequency", "0 is off", -2, 2, 0.1],
};

/** What a request says of sampling. */
export function sampling() {
  const chosen = settings().sampling ?? {};
  return Object.fromEntries(Object.keys(FIELDS).filter((name) => Number.isFinite(chosen[name])).map((name) => [name, chosen[name]]));
}

let context;

/** current(): the conversation. changed(), keyChanged(): to be called afterwards. */
export function setUpSettings(given) {
  context = given;
  const dialog = $("#settings");
  for (const [name, [label, hint, min, max, step]] of Object.entries(FIELDS)) {
    const input = h("input", { type: "number", name, min, max, step: step < 1 ? "any" : 1, placeholder: "Default", inputmode: "decimal", "aria-describedby": `hint-${name}` });
    input.addEventListener("input", () => {
      const all = settings();
      const rest = { ...all.sampling };
      delete rest[name];
      saveSettings({ ...all, sampling: input.value && input.validity.valid ? { ...rest, [name]: input.valueAsNumber } : rest });
    });
    $("#sampling").append(h("label", { class: "field" }, label, input, h("small", { id: `hint-${name}` }, hint)));
  }
  $("#system").addEventListener("change", ({ target }) => {
    context.current().system = target.value.trim();
    saveSettings({ ...settings(), system: target.value.trim() });
    context.changed();
  });
  $("#key").addEventListener("change", ({ target }) => {
    if (target.value) storage.set(KEY, target.value.trim());
    else storage.remove(KEY);
    context.keyChanged();
  });
  $("#reset").addEventListener("click", () => {
    saveSettings({ ...settings(), sampling: {} });
    fill();
  });
  dialog.addEventListener("click", ({ target }) => target === dialog && dialog.close());
  // Chromium closes a dialog whose form is submitted by Enter: a field that is being typed into keeps its value.
  dialog.addEventListener("close", () => document.activeElement?.blur?.());
}

function fill() {
  const chosen = settings().sampling ?? {};
  for (const input of $("#sampling").querySelectorAll("input")) input.value = chosen[input.name] ?? "";
  $("#system").value = context.current().system ?? "";
  $("#key").value = storage.get(KEY) ?? "";
}

export function openSettings(field) {
  fill();
  $("#settings").showModal();
  if (field) $(`#${field}`).focus();
}
