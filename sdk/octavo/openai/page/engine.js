// The engine's figures, asked for once a second while somebody looks; slower and slower while nothing answers.

import { getJSON } from "./api.js";
import { Plot } from "./plot.js";

const PERIOD = 1000;
const LONGEST = 15_000;

const whole = (value) => Math.round(value).toLocaleString("en");

export class Engine {
  #timer = 0;
  #before = null;
  #delay = PERIOD;

  /** onKey: the server wants a key. onBack: it answers again after it did not. */
  constructor(plots, status, { onKey, onBack }) {
    this.status = status;
    this.onKey = onKey;
    this.onBack = onBack;
    this.plots = {
      tokens: new Plot(plots, "Tokens/s", { floor: 10, show: (value) => (value < 10 ? value.toFixed(1) : whole(value)) }),
      running: new Plot(plots, "Running", { floor: 4, show: whole }),
      waiting: new Plot(plots, "Waiting", { floor: 4, show: whole }),
      cache: new Plot(plots, "Cache use", { floor: 0.1, show: (value) => `${(value * 100).toFixed(value < 0.1 ? 1 : 0)} %` }),
    };
    document.addEventListener("visibilitychange", () => (document.hidden ? this.pause() : this.start()));
    addEventListener("online", () => this.start());
  }

  /** Ask now, and from now on. */
  start() {
    clearTimeout(this.#timer);
    this.#delay = PERIOD;
    this.#ask();
  }

  pause() {
    clearTimeout(this.#timer);
    this.#before = null;
  }

  async #ask() {
    const mine = Symbol();
    this.asking = mine;
    try {
      const told = await getJSON("page/figures");
      if (this.asking !== mine) return;
      const wasLost = this.status.dataset.state !== "live";
      this.#take(told);
      this.#say("live", "live");
      this.#delay = PERIOD;
      if (wasLost) this.onBack();
    } catch (error) {
      if (this.asking !== mine) return;
      this.#before = null;
      Object.values(this.plots).forEach((plot) => plot.add(null));
      if (error.status === 401) {
        this.#say("waiting", "needs a key");
        this.onKey();
        return; // start() is called when there is one
      }
      this.#delay = Math.min(LONGEST, this.#delay * 1.6);
      this.#say("lost", error.status ? "engine unavailable" : "reconnecting");
      this.status.title = error.message;
    }
    if (!document.hidden) this.#timer = setTimeout(() => this.#ask(), this.#delay);
  }

  #take({ seconds, values }) {
    const tokens = values.generation_tokens ?? 0;
    const before = this.#before;
    const again = before && (tokens < before.tokens || seconds <= before.seconds); // another engine, or another worker
    if (before && !again) this.plots.tokens.add((tokens - before.tokens) / (seconds - before.seconds));
    this.#before = { seconds, tokens };
    this.plots.running.add(values.num_requests_running ?? 0);
    this.plots.waiting.add(values.num_requests_waiting ?? 0);
    this.plots.cache.add(values.kv_cache_usage_perc ?? 0);
  }

  #say(state, text) {
    if (this.status.dataset.state === state && this.status.textContent === text) return; // else it is read out again
    this.status.dataset.state = state;
    this.status.textContent = text;
    this.status.title = "";
  }
}
