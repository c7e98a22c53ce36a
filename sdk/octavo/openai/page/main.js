// The page: what clicks and keys do. One chat is shown; answers of others go on meanwhile.

import { getJSON, key } from "./api.js";
import { Engine } from "./engine.js";
import { Run } from "./run.js";
import { Settings } from "./settings.js";
import * as store from "./store.js";
import { MessageView, listChats, make } from "./view.js";

const SUGGESTIONS = [
  "Explain how a hummingbird can hover.",
  "Write a short poem about the sea at night.",
  "Show me a Python function that reverses a linked list.",
  "Compare trains and planes in a table.",
];
const TITLE = 60; // characters of a first message that name its chat

const $ = (id) => document.getElementById(id);
const narrow = matchMedia("(max-width: 52rem)");
const settings = new Settings($("settings-form"));
const runs = new Map(); // chat id -> Run

let chat = store.newChat();
let views = [];
let following = true; // the end of the chat stays in sight as it grows

// ---- the chat that is shown --------------------------------------------------------------------------------------

function show(next) {
  const run = runs.get(chat.id);
  if (run) run.onText = () => {};
  chat = runs.get(next.id)?.chat ?? next;
  views = [];
  $("messages").replaceChildren();
  chat.messages.forEach(append);
  const mine = runs.get(chat.id);
  if (mine) follow(mine, views.at(-1));
  following = true;
  refresh();
  toEnd();
}

function append(message) {
  const view = new MessageView(message, settings.model);
  view.news(true); // old ones are read, not announced
  views.push(view);
  $("messages").append(view.element);
  return view;
}

function refresh() {
  const running = runs.has(chat.id);
  $("title").textContent = chat.title || "New chat";
  document.title = chat.title ? `${chat.title} – octavo` : "octavo";
  $("welcome").hidden = chat.messages.length > 0;
  $("send").hidden = running;
  $("stop").hidden = !running;
  const all = store.chats();
  listChats($("chats"), all, chat.id, (id) => runs.has(id));
  $("no-chats").hidden = all.length > 0;
}

function truncate(count) {
  chat.messages.length = count;
  views.splice(count).forEach((view) => view.element.remove());
}

function keep(kept) {
  if (!store.save(kept)) announce("This chat is too long for the browser's storage; it is not kept.");
}

function announce(text) {
  $("announcer").textContent = text;
}

// ---- answers -------------------------------------------------------------------------------------------------------

function ask(text) {
  if (runs.has(chat.id)) return;
  chat.title ||= text.split("\n")[0].slice(0, TITLE);
  const message = { role: "user", content: text };
  chat.messages.push(message);
  append(message);
  answer();
}

/** The model goes on after the messages as they are. */
function answer() {
  const said = [...chat.messages];
  const message = { role: "assistant", content: "" };
  chat.messages.push(message);
  keep(chat);
  const run = new Run(chat, message);
  runs.set(chat.id, run);
  run.onEnd = () => ended(run);
  follow(run, append(message));
  following = true;
  refresh();
  toEnd();
  announce("Answering.");
  const found = $("model").value ? null : findModels(); // a quick writer is here before the list of models
  Promise.resolve(found).then(() => run.start(settings.body(said)));
}

/** Draw once a frame, however many tokens came; a page that nobody sees has no frames, and draws at the end. */
function follow(run, view) {
  let drawing = false;
  run.onText = () => {
    if (drawing) return;
    drawing = true;
    requestAnimationFrame(() => {
      drawing = false;
      if (runs.get(run.chat.id) !== run || view !== views.at(-1)) return;
      view.update(true);
      const news = view.news(false);
      if (news) announce(news);
      if (following) toEnd();
    });
  };
  view.update(true);
}

function ended(run) {
  runs.delete(run.chat.id);
  keep(run.chat);
  if (run.problem?.status === 401) askKey(() => runs.has(run.chat.id) || (chat === run.chat && again()));
  if (chat === run.chat) {
    const view = views.at(-1);
    view.update(false);
    announce(run.problem ? `Failed: ${run.problem.message}` : `${view.news(true)}\nAnswer ${run.message.stopped ? "stopped" : "complete"}.`);
    if (following) toEnd();
  }
  refresh();
  // The button that had the focus has gone.
  if (document.activeElement === document.body && !narrow.matches) $("text").focus({ preventScroll: true });
}

function again() {
  if (runs.has(chat.id)) return;
  while (chat.messages.at(-1)?.role === "assistant") truncate(chat.messages.length - 1);
  if (chat.messages.length) answer();
}

async function edit(index) {
  if (runs.has(chat.id)) return;
  const text = await views[index].edit();
  $("text").focus();
  if (text === null || runs.has(chat.id)) return;
  truncate(index);
  if (index === 0) chat.title = "";
  ask(text);
}

// ---- the end of the chat in sight

function toEnd() {
  $("log").scrollTop = $("log").scrollHeight;
}

$("log").addEventListener("scroll", () => {
  const log = $("log");
  following = log.scrollHeight - log.scrollTop - log.clientHeight < 48;
  $("to-end").hidden = following;
});
$("to-end").addEventListener("click", () => {
  following = true;
  toEnd();
});

// ---- clicks in messages and in the list ----------------------------------------------------------------------------

$("messages").addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const index = views.findIndex((view) => view.element.contains(button));
  if (button.dataset.copy) copy(button, button.closest("figure").querySelector("code").textContent);
  else if (button.dataset.action === "copy") copy(button, chat.messages[index].content);
  else if (button.dataset.action === "edit") edit(index);
  else if (button.dataset.action === "again" && !runs.has(chat.id)) {
    truncate(index + 1); // an answer in the middle is given anew, and what followed it goes
    again();
  }
});

async function copy(button, text) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    button.textContent = "Not allowed";
  }
  announce(button.textContent);
  setTimeout(() => (button.textContent = label), 1500);
}

$("chats").addEventListener("click", (event) => {
  const { open, remove } = event.target.closest("button")?.dataset ?? {};
  if (open) {
    const found = runs.get(open)?.chat ?? store.chat(open);
    if (found) show(found);
    closeSide();
  } else if (remove) {
    runs.get(remove)?.stop();
    runs.delete(remove);
    store.remove(remove);
    if (remove === chat.id) show(store.newChat());
    else refresh();
    ($("chats").querySelector("button") ?? $("new-chat")).focus();
  }
});

$("new-chat").addEventListener("click", () => {
  show(store.newChat());
  closeSide();
  $("text").focus();
});

store.watch(refresh);

// ---- the message box -----------------------------------------------------------------------------------------------

function fit() {
  const text = $("text");
  text.style.height = "auto";
  text.style.height = `${text.scrollHeight}px`;
}

$("text").addEventListener("input", fit);
$("text").addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && !event.shiftKey) {
    event.preventDefault();
    $("composer").requestSubmit();
  } else if (event.key === "ArrowUp" && !event.target.value) {
    const last = chat.messages.findLastIndex((message) => message.role === "user");
    if (last < 0) return;
    event.preventDefault();
    edit(last);
  }
});
$("composer").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = $("text").value.trim();
  if (!text || runs.has(chat.id)) return;
  $("text").value = "";
  fit();
  ask(text);
});
$("stop").addEventListener("click", () => {
  runs.get(chat.id)?.stop();
  $("text").focus();
});
addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if (document.body.classList.contains("side-open")) closeSide();
  else runs.get(chat.id)?.stop();
});

for (const text of SUGGESTIONS) {
  const button = make("button", "suggestion", text);
  button.type = "button";
  button.addEventListener("click", () => {
    $("text").focus();
    ask(text);
  });
  $("suggestions").append(button);
}

// ---- the side, which covers the chat where there is little room ----------------------------------------------------

function setSide(open) {
  document.body.classList.toggle("side-open", open);
  $("open-side").setAttribute("aria-expanded", String(open));
  $("shade").hidden = !open;
  $("side").inert = narrow.matches && !open;
  document.querySelector("main").inert = open;
}

function closeSide() {
  const wasOpen = document.body.classList.contains("side-open");
  setSide(false);
  if (wasOpen) $("open-side").focus();
}

$("open-side").addEventListener("click", () => {
  setSide(true);
  $("close-side").focus();
});
$("close-side").addEventListener("click", closeSide);
$("shade").addEventListener("click", closeSide);
narrow.addEventListener("change", () => setSide(false));
setSide(false);

// ---- settings, the key, the model ----------------------------------------------------------------------------------

$("open-settings").addEventListener("click", () => {
  $("forget-key").hidden = !key.get();
  $("settings").showModal();
});
$("reset-settings").addEventListener("click", () => settings.reset());
$("forget-key").addEventListener("click", () => {
  key.forget();
  location.reload();
});
$("delete-chats").addEventListener("click", () => {
  if (!confirm("Delete all chats from this browser?")) return;
  runs.forEach((run) => run.stop());
  runs.clear();
  store.removeAll();
  $("settings").close();
  show(store.newChat());
});
// A click beside a dialog closes it.
$("settings").addEventListener("click", (event) => event.target === $("settings") && $("settings").close());

let onKey = [];

function askKey(then) {
  onKey.push(then);
  $("key-problem").hidden = !key.get();
  if (!$("ask-key").open) $("ask-key").showModal();
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const { key: field, keep: kept } = event.target.elements;
  key.set(field.value.trim(), kept.checked);
  field.value = "";
  $("ask-key").close();
  const waiting = onKey;
  onKey = [];
  waiting.forEach((then) => then());
});
$("cancel-key").addEventListener("click", () => $("ask-key").close());

async function findModels() {
  let names;
  try {
    names = (await getJSON("v1/models")).data.map((model) => model.id);
  } catch {
    return; // the engine's figures tell of it, and this is asked again when they come back
  }
  $("model").replaceChildren(...names.map((name) => new Option(name, name)));
  if (!names.includes(settings.model)) settings.model = names[0];
  $("model").value = settings.model;
  $("model").classList.toggle("only", names.length === 1);
}

$("model").addEventListener("change", () => (settings.model = $("model").value));

const engine = new Engine($("plots"), $("connection"), {
  onKey: () => askKey(() => engine.start()),
  onBack: findModels,
});

addEventListener("pagehide", () => runs.forEach((run) => store.save(run.chat)));

show(chat);
engine.start();
$("text").focus();
