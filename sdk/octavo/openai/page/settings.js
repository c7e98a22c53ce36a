// System prompt, sampling and appearance: the form, what is kept, and what a request carries of it.

import { settings as kept } from "./store.js";

// name, label, smallest, largest, step, at first
const SAMPLING = [
  ["temperature", "Temperature", 0, 5, 0.05, 0.7],
  ["max_tokens", "Longest answer, tokens", 1, null, 1, null],
  ["top_p", "Top p", 0.01, 1, 0.01, null],
  ["top_k", "Top k", 0, null, 1, null],
  ["min_p", "Min p", 0, 1, 0.01, null],
  ["repetition_penalty", "Repetition penalty", 0.01, 10, 0.01, null],
  ["presence_penalty", "Presence penalty", -2, 2, 0.05, null],
  ["frequency_penalty", "Frequency penalty", -2, 2, 0.05, null],
  ["seed", "Seed", null, null, 1, null],
];
const THEMES = ["auto", "light", "dark"];

function defaults() {
  const sampling = Object.fromEntries(SAMPLING.map(([name, , , , , first]) => [name, first]));
  return { system: "", stop: "", theme: "auto", model: "", ...sampling };
}

export class Settings {
  constructor(form) {
    this.form = form;
    this.values = { ...defaults(), ...kept.load() };
    for (const [name, label, least, most, step] of SAMPLING) this.#field(name, label, least, most, step);
    form.addEventListener("input", () => this.#read());
    this.#fill();
  }

  #field(name, label, least, most, step) {
    const field = document.createElement("label");
    field.className = "field";
    const text = document.createElement("span");
    text.textContent = label;
    const input = document.createElement("input");
    Object.assign(input, { type: "number", name, step, inputMode: step < 1 ? "decimal" : "numeric", placeholder: "default" });
    if (least !== null) input.min = least;
    if (most !== null) input.max = most;
    field.append(text, input);
    this.form.querySelector("#sampling").append(field);
  }

  #fill() {
    for (const [name] of SAMPLING) this.form.elements[name].value = this.values[name] ?? "";
    for (const name of ["system", "stop", "theme"]) this.form.elements[name].value = this.values[name];
    this.#show();
  }

  #read() {
    for (const [name] of SAMPLING) {
      const input = this.form.elements[name];
      if (input.value === "" && !input.validity.badInput) this.values[name] = null;
      else if (input.validity.valid) this.values[name] = input.valueAsNumber;
    }
    for (const name of ["system", "stop", "theme"]) this.values[name] = this.form.elements[name].value;
    this.#show();
    kept.save(this.values);
  }

  #show() {
    const theme = THEMES.includes(this.values.theme) ? this.values.theme : "auto";
    document.documentElement.dataset.theme = theme;
  }

  set model(name) {
    this.values.model = name;
    kept.save(this.values);
  }

  get model() {
    return this.values.model;
  }

  reset() {
    this.values = { ...defaults(), model: this.values.model, theme: this.values.theme };
    this.#fill();
    kept.save(this.values);
  }

  /** The body of a request that goes on after these messages. */
  body(messages) {
    const told = this.values.system.trim() ? [{ role: "system", content: this.values.system.trim() }] : [];
    const said = messages.map(({ role, content }) => ({ role, content }));
    const body = { model: this.model, messages: [...told, ...said] };
    for (const [name] of SAMPLING) if (this.values[name] !== null) body[name] = this.values[name];
    const stop = this.values.stop.split("\n").filter(Boolean);
    if (stop.length) body.stop = stop;
    return body;
  }
}
