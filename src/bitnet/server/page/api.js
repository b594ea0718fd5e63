// The server: requests with the key, errors as people can read them, and streams of events.

import { parseJson, storage } from "./dom.js";

export const KEY = "bitnet.key";

/** kind: "gone", "key", "busy", "long" (the context is full), "broken" or "refused". retryAfter: seconds, where the server says so. */
export class ServerError extends Error {
  constructor(kind, message, retryAfter = null) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

export async function ask(path, { body, signal } = {}) {
  const key = storage.get(KEY);
  const headers = { ...(key && { Authorization: `Bearer ${key}` }), ...(body && { "Content-Type": "application/json" }) };
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, body: body && JSON.stringify(body), signal, cache: "no-store" });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ServerError("gone", "The server does not answer.");
  }
  if (!answer.ok) throw await refusal(answer);
  return answer;
}

async function refusal(answer) {
  const { message: said, type } = parseJson(await answer.text().catch(() => ""))?.error ?? {};
  const after = parseFloat(answer.headers.get("Retry-After"));
  if (answer.status === 401 || answer.status === 403) return new ServerError("key", said || "The server wants a key.");
  if (answer.status === 429 || answer.status === 503)
    return new ServerError("busy", said || (answer.status === 429 ? "The server is busy." : "The server is not ready."), after >= 0 ? Math.min(after, 120) : null);
  return new ServerError(type === "exceed_context_size_error" ? "long" : "refused", said || `The server answers with status ${answer.status}.`);
}

/** The data of each server-sent event, however the bytes are cut. */
export async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  let data = [];
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      buffer += value;
      // A \r at the very end may be the first half of \r\n.
      for (let line; (line = /^([^\r\n]*)(?:\r\n|\n|\r(?=[^]))/.exec(buffer)); ) {
        buffer = buffer.slice(line[0].length);
        if (line[1].startsWith("data:")) data.push(line[1].slice(5).replace(/^ /, ""));
        else if (!line[1] && data.length) {
          yield data.join("\n");
          data = [];
        }
      }
    }
  } finally {
    reader.cancel().catch(() => {});
  }
}

/** The chunks of a chat completion. Throws where the stream ends before the answer does. */
export async function* chat(body, signal) {
  const answer = await ask("/v1/chat/completions", { body: { ...body, stream: true, stream_options: { include_usage: true } }, signal });
  let ended = false;
  try {
    for await (const data of events(answer.body)) {
      if (data === "[DONE]") return;
      const chunk = parseJson(data);
      if (!chunk) throw new ServerError("broken", "The server sent what is not an answer.");
      if (chunk.error) throw new ServerError("broken", chunk.error.message || "The server could not go on.");
      ended ||= Boolean(chunk.choices?.[0]?.finish_reason);
      yield chunk;
    }
  } catch (error) {
    if (error instanceof ServerError || error.name === "AbortError") throw error;
    throw new ServerError("broken", "The connection broke off.");
  }
  if (!ended) throw new ServerError("broken", "The connection broke off.");
}
