// Elements that stay the same from one update to the next, so that focus, selection and scroll
// positions stay too. All text is set as text: nothing that comes from outside is ever HTML.

/** A new element with a class, inside another. */
function add(parent, tag, className = "") {
  const element = document.createElement(tag);
  if (className) element.className = className;
  parent.append(element);
  return element;
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setTone(element, tone) {
  if (tone) element.dataset.tone = tone;
  else delete element.dataset.tone;
}

/** A line of the last minutes; the newest value is at the right edge. */
class Sparkline {
  constructor(parent, length) {
    const make = (tag, className, inside) => {
      const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
      element.setAttribute("class", className);
      inside.append(element);
      return element;
    };
    this.length = length;
    const svg = make("svg", "spark", parent);
    svg.setAttribute("viewBox", `0 0 ${length - 1} 100`);
    svg.setAttribute("preserveAspectRatio", "none");
    svg.setAttribute("aria-hidden", "true");
    this.area = make("path", "area", svg);
    this.line = make("path", "line", svg);
  }

  /** Draw values from 0 to `top`. */
  show(values, top) {
    const shown = values.slice(-this.length);
    const left = this.length - shown.length;
    const y = (value) => (100 - (100 * value) / (top || 1)).toFixed(1);
    const line = shown.map((value, i) => `${i ? "L" : "M"}${left + i} ${y(value)}`).join("");
    this.line.setAttribute("d", line);
    this.area.setAttribute("d", line && `${line}V100H${left}Z`);
  }
}

/**
 * A cell. A column {label, title, className, dot, bar, spark, show} has in its cells a line of
 * text, with a dot before it, a bar or a sparkline of so many values; and a smaller line below.
 * `show` says of an item what they hold: {text, tone, sub, subTone, share, barTone, history, top,
 * title}, of which any may be left out.
 */
class Cell {
  constructor(row, column) {
    const cell = add(row, "td", column.className);
    cell.setAttribute("role", "cell");
    cell.dataset.label = column.label;
    this.cell = cell;
    const figures = add(cell, "div", "figures");
    this.main = add(figures, "div", "main");
    if (column.dot) add(this.main, "span", "dot").setAttribute("aria-hidden", "true");
    this.text = add(this.main, "span");
    if (column.bar) {
      this.bar = add(figures, "div", "bar");
      this.bar.setAttribute("aria-hidden", "true");
      this.fill = add(this.bar, "i");
    }
    if (column.spark) this.spark = new Sparkline(figures, column.spark);
    this.sub = add(cell, "div", "sub");
  }

  show({ text = UNKNOWN, tone, sub = "", subTone, share, barTone, history, top, title = "" }) {
    setText(this.text, text);
    setTone(this.main, tone);
    setText(this.sub, sub);
    setTone(this.sub, subTone);
    if (this.cell.title !== title) this.cell.title = title;
    if (this.bar) {
      this.bar.hidden = !known(share);
      this.fill.style.width = `${100 * (share ?? 0)}%`;
      setTone(this.bar, barTone);
    }
    this.spark?.show(history ?? [], top);
  }
}

/** A table with a row per item; `columns` say what each cell shows of an item. */
class LiveTable {
  constructor(table, columns, key) {
    this.columns = columns;
    this.key = key;
    this.rows = new Map();
    const head = add(add(table, "thead"), "tr");
    head.parentElement.setAttribute("role", "rowgroup");
    head.setAttribute("role", "row");
    for (const { label, title } of columns) {
      const cell = add(head, "th");
      cell.setAttribute("role", "columnheader");
      cell.scope = "col";
      cell.textContent = label;
      if (title) cell.title = title;
    }
    this.body = add(table, "tbody");
    this.body.setAttribute("role", "rowgroup");
  }

  /** Show these items, in their order; `context` is for all of them. */
  update(items, context) {
    const wanted = new Set(items.map(this.key));
    for (const [key, { row }] of this.rows) {
      if (wanted.has(key)) continue;
      row.remove();
      this.rows.delete(key);
    }
    items.forEach((item, position) => {
      const { row, cells } = this.rowOf(this.key(item));
      if (this.body.children[position] !== row) {
        this.body.insertBefore(row, this.body.children[position] ?? null);
      }
      this.columns.forEach((column, i) => cells[i].show(column.show(item, context)));
    });
  }

  rowOf(key) {
    let known = this.rows.get(key);
    if (!known) {
      const row = document.createElement("tr");
      row.setAttribute("role", "row");
      known = { row, cells: this.columns.map((column) => new Cell(row, column)) };
      this.rows.set(key, known);
    }
    return known;
  }
}
