// Requests to the server that this page came from. Addresses are relative: the app may be mounted anywhere.

const PATIENCE = 10_000; // ms until a request that should be answered at once is given up

/** What went wrong, in words for a person. status: HTTP's, 0 where there was no answer. */
export class ApiError extends Error {
  constructor(message, { status = 0, code = null } = {}) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

// ---- the key: in this tab only, unless it was asked to be remembered

const KEY = "octavo.key";

export const key = {
  get: () => sessionStorage.getItem(KEY) ?? localStorage.getItem(KEY),
  set(value, keep) {
    key.forget();
    (keep ? localStorage : sessionStorage).setItem(KEY, value);
  },
  forget() {
    sessionStorage.removeItem(KEY);
    localStorage.removeItem(KEY);
  },
};

function headers(more = {}) {
  const value = key.get();
  return value ? { authorization: `Bearer ${value}`, ...more } : more;
}

async function request(path, options) {
  let answer;
  try {
    answer = await fetch(path, { credentials: "omit", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError(
      error.name === "TimeoutError" ? "The server does not answer." : "The server can't be reached.",
    );
  }
  if (!answer.ok) throw await refused(answer);
  return answer;
}

/** OpenAI's error envelope, or whatever a proxy in between has sent. */
async function refused(answer) {
  const text = await answer.text().catch(() => "");
  let told = {};
  try {
    told = JSON.parse(text).error ?? {};
  } catch {
    told = { message: `The server answered ${answer.status} ${answer.statusText}.` };
  }
  return new ApiError(told.message || `The server answered ${answer.status}.`, {
    status: answer.status,
    code: told.code ?? null,
  });
}

export async function getJSON(path) {
  const answer = await request(path, { headers: headers(), signal: AbortSignal.timeout(PATIENCE) });
  return answer.json();
}

/** The chunks of one streamed chat completion. Throws ApiError; a stream that ends early is an error too. */
export async function* stream(body, signal) {
  const answer = await request("v1/chat/completions", {
    method: "POST",
    headers: headers({ "content-type": "application/json" }),
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { done, value } = await reader.read();
      if (done) break;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const event of events) {
        if (!event.startsWith("data: ")) continue; // a comment that keeps the connection alive
        const data = event.slice(6);
        if (data === "[DONE]") return;
        const chunk = JSON.parse(data);
        if (chunk.error) throw new ApiError(chunk.error.message, { status: 500, code: chunk.error.code });
        yield chunk;
      }
    }
  } catch (error) {
    if (error instanceof ApiError || error.name === "AbortError") throw error;
    throw new ApiError("The connection broke before the answer was complete.");
  } finally {
    reader.cancel().catch(() => {});
  }
  throw new ApiError("The connection ended before the answer was complete.");
}
