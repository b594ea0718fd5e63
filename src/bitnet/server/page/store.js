// Conversations, one entry each in this browser's storage, so that two windows do not overwrite one another.

import { parseJson, storage } from "./dom.js";

const PREFIX = "bitnet.conversation.";
const SETTINGS = "bitnet.settings";

const id = () => `${Date.now().toString(36)}-${Math.random().toString(36).slice(2, 8)}`;

const sound = (found) => Boolean(found && typeof found === "object" && Array.isArray(found.messages) && found.messages.every((each) => each && typeof each.content === "string"));

export const create = (system = "") => ({ id: id(), title: "", system, created: Date.now(), updated: Date.now(), messages: [] });

/** Latest first. What cannot be read is left where it is, and out of the list. */
export function all() {
  return storage
    .names()
    .filter((name) => name.startsWith(PREFIX))
    .map((name) => parseJson(storage.get(name)))
    .filter(sound)
    .sort((a, b) => b.updated - a.updated);
}

/** Whether it will be remembered: the storage may be full. */
export function save(conversation) {
  conversation.updated = Date.now();
  return storage.set(PREFIX + conversation.id, JSON.stringify(conversation));
}

export const remove = ({ id }) => storage.remove(PREFIX + id);

export const isConversation = (name) => !name || name.startsWith(PREFIX);

const shortened = (text) => (text.length > 80 ? `${text.slice(0, 79)}…` : text);

export const titleOf = ({ title, messages }) => title || shortened(messages.find(({ role }) => role === "user")?.content.trim().split("\n")[0] ?? "") || "New conversation";

export const settings = () => parseJson(storage.get(SETTINGS), {});
export const saveSettings = (changed) => storage.set(SETTINGS, JSON.stringify(changed));

export const asJson = (conversation) => JSON.stringify(conversation, null, 2);

export function asMarkdown(conversation) {
  const parts = [`# ${titleOf(conversation)}`];
  if (conversation.system) parts.push(`**System**\n\n${conversation.system}`);
  for (const { role, content, model } of conversation.messages) parts.push(`## ${role === "user" ? "You" : model || "Model"}\n\n${content}`);
  return `${parts.join("\n\n")}\n`;
}
