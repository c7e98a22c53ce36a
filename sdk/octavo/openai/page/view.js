// What a chat looks like: its messages, and the list of all chats.

import { Growing } from "./markdown.js";

export function make(name, className, text) {
  const made = document.createElement(name);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
}

function tool(label, action) {
  const button = make("button", "tool", label);
  button.type = "button";
  button.dataset.action = action;
  return button;
}

/** One message. Buttons say in data-action what they want; main.js acts. */
export class MessageView {
  #told = 0;

  constructor(message, name) {
    this.message = message;
    this.element = make("article", `message ${message.role}`);
    this.element.append(make("h2", "unseen", message.role === "user" ? "You" : name));
    this.body = make("div", message.role === "user" ? "said" : "prose");
    this.note = make("p", "note");
    this.tools = make("div", "tools");
    this.element.append(this.body, this.note, this.tools);
    this.thoughts = make("details", "thoughts");
    this.thoughts.append(make("summary", "", "Thoughts"), make("div"));
    this.body.before(this.thoughts);
    this.growing = message.role === "user" ? null : new Growing(this.body);
    this.tools.append(tool("Copy", "copy"), message.role === "user" ? tool("Edit", "edit") : tool("Regenerate", "again"));
    this.update(false);
  }

  /** Show the message as it is now. */
  update(running) {
    const { message } = this;
    if (this.growing) this.growing.update(message.content);
    else this.body.textContent = message.content;
    this.thoughts.hidden = !message.thoughts;
    this.thoughts.lastChild.textContent = message.thoughts ?? "";
    this.element.classList.toggle("running", running);
    this.element.setAttribute("aria-busy", String(running));
    this.tools.hidden = running;
    this.note.textContent = running ? "" : (message.note ?? "");
    this.note.hidden = !this.note.textContent;
    this.#problem(running ? undefined : message.problem);
  }

  #problem(text) {
    this.problem?.remove();
    this.problem = undefined;
    if (!text) return;
    this.problem = make("div", "problem");
    this.problem.append(make("p", "", text), tool("Try again", "again"));
    this.note.after(this.problem);
  }

  /** What has been completed since the last call, for the announcer. */
  news(all) {
    if (!this.growing) return "";
    const { text, count } = this.growing.complete(this.#told, all);
    this.#told = count;
    return text;
  }

  /** A form in the place of a user's message; resolves to its new text, or null where it was left. */
  edit() {
    const form = make("form", "edit");
    const field = make("textarea");
    field.value = this.message.content;
    field.ariaLabel = "Your message";
    field.rows = Math.min(12, Math.max(2, field.value.split("\n").length));
    const cancel = make("button", "", "Cancel");
    cancel.type = "button";
    const send = make("button", "primary", "Send");
    send.type = "submit";
    const foot = make("div", "dialog-foot");
    foot.append(cancel, send);
    form.append(field, foot);
    this.body.replaceWith(form);
    this.tools.hidden = true;
    field.focus();
    field.setSelectionRange(field.value.length, field.value.length);
    return new Promise((resolve) => {
      const end = (text) => {
        form.replaceWith(this.body);
        this.tools.hidden = false;
        resolve(text);
      };
      form.addEventListener("submit", (event) => {
        event.preventDefault();
        if (field.value.trim()) end(field.value.trim());
      });
      cancel.addEventListener("click", () => end(null));
      field.addEventListener("keydown", (event) => {
        if (event.key === "Escape") {
          event.stopPropagation();
          end(null);
        } else if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
          event.preventDefault();
          form.requestSubmit();
        }
      });
    });
  }
}

/** The list of chats into `list`; `current` is the id of the one that is shown, `running` tells whether one is. */
export function listChats(list, chats, current, running) {
  list.replaceChildren(
    ...chats.map((chat) => {
      const item = make("li");
      const open = make("button", "chat", chat.title || "New chat");
      open.type = "button";
      open.title = chat.title;
      open.dataset.open = chat.id;
      if (chat.id === current) open.setAttribute("aria-current", "page");
      if (running(chat.id)) open.classList.add("running");
      const remove = make("button", "plain remove");
      remove.type = "button";
      remove.dataset.remove = chat.id;
      remove.ariaLabel = `Delete the chat ${chat.title}`;
      remove.append(cross());
      item.append(open, remove);
      return item;
    }),
  );
}

function cross() {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", "m6 6 8 8M14 6l-8 8");
  svg.append(path);
  return svg;
}
