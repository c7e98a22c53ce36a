// One answer: from the request to its last token, stopped or broken off.

import { ApiError, stream } from "./api.js";

/** Fills `message` of `chat`. onText after new text, onEnd when nothing comes any more; `problem` is an ApiError. */
export class Run {
  #controller = new AbortController();

  constructor(chat, message) {
    this.chat = chat;
    this.message = message;
    this.problem = null;
    this.onText = () => {};
    this.onEnd = () => {};
  }

  stop() {
    this.#controller.abort();
  }

  async start(body) {
    const begun = performance.now();
    let first = 0;
    let last = 0;
    let chunks = 0;
    let usage = null;
    let cut = false;
    try {
      for await (const chunk of stream(body, this.#controller.signal)) {
        usage = chunk.usage ?? usage;
        const choice = chunk.choices?.[0];
        const { content, reasoning_content: thoughts } = choice?.delta ?? {};
        if (content || thoughts) {
          last = performance.now();
          first ||= last;
          chunks += 1;
          this.message.content += content ?? "";
          if (thoughts) this.message.thoughts = (this.message.thoughts ?? "") + thoughts;
          this.onText();
        }
        cut ||= choice?.finish_reason === "length";
      }
    } catch (error) {
      if (error.name === "AbortError") this.message.stopped = true;
      else this.problem = error instanceof ApiError ? error : new ApiError(`The page failed: ${error.message}`);
    }
    const tokens = usage?.completion_tokens ?? chunks;
    this.message.note = note(tokens, begun, first, last, this.message.stopped, cut);
    this.message.problem = this.problem?.message;
    this.onEnd();
  }
}

function note(tokens, begun, first, last, stopped, cut) {
  const parts = [];
  if (tokens && first) parts.push(`${tokens} token${tokens === 1 ? "" : "s"}`);
  if (tokens > 1 && last > first) parts.push(`${(((tokens - 1) * 1000) / (last - first)).toFixed(1)} tokens/s`);
  if (first) parts.push(`first after ${((first - begun) / 1000).toFixed(2)} s`);
  if (stopped) parts.push("stopped");
  else if (cut) parts.push("cut at the length limit");
  return parts.join(" · ");
}
