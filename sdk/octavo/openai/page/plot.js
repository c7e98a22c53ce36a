// A small plot of the last two minutes: a line, the area below it, and the newest value in words.

const SVG = "http://www.w3.org/2000/svg";
const WIDTH = 120; // points, one a second
const HEIGHT = 32;

function shape(name, attributes, parent) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  parent?.append(made);
  return made;
}

export class Plot {
  #values = [];
  #line;
  #area;
  #value;
  #svg;

  /** floor: the least that the full height stands for. show: a value in words. */
  constructor(parent, title, { floor, show }) {
    this.title = title;
    this.floor = floor;
    this.show = show;
    const figure = document.createElement("figure");
    const caption = document.createElement("figcaption");
    const label = document.createElement("span");
    label.textContent = title;
    this.#value = document.createElement("output");
    this.#value.textContent = "–";
    caption.append(label, this.#value);
    this.#svg = shape("svg", {
      viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none", role: "img", "aria-label": `${title}: no figures yet`,
    });
    this.#area = shape("path", { class: "area" }, this.#svg);
    this.#line = shape("path", { class: "line", "vector-effect": "non-scaling-stroke" }, this.#svg);
    figure.append(caption, this.#svg);
    parent.append(figure);
  }

  /** null leaves a gap: nothing is known of that second. */
  add(value) {
    this.#values.push(value);
    if (this.#values.length > WIDTH) this.#values.shift();
    this.#value.textContent = value === null ? "–" : this.show(value);
    this.#draw();
  }

  #draw() {
    const known = this.#values.filter((value) => value !== null);
    const most = Math.max(this.floor, ...known);
    const left = WIDTH - this.#values.length;
    let line = "";
    let area = "";
    let start = -1;
    this.#values.forEach((value, i) => {
      if (value === null) {
        if (start >= 0) area += `L${left + i - 1} ${HEIGHT}Z`;
        start = -1;
        return;
      }
      const at = `${left + i} ${(HEIGHT - 1.5 - (value / most) * (HEIGHT - 3)).toFixed(2)}`;
      line += (start < 0 ? "M" : "L") + at;
      area += start < 0 ? `M${left + i} ${HEIGHT}L${at}` : `L${at}`;
      if (start < 0) start = i;
    });
    if (start >= 0) area += `L${WIDTH - 1} ${HEIGHT}Z`;
    this.#line.setAttribute("d", line);
    this.#area.setAttribute("d", area);
    const now = known.length ? `${this.show(known.at(-1))}, at most ${this.show(Math.max(...known))}` : "no figures";
    this.#svg.setAttribute("aria-label", `${this.title}, last two minutes: now ${now}`);
  }
}
