/* List the scans beside the open result. */

import { element, pictureUrl } from "./dom.js";
import { counted, failureText, figure, sentence, shownLabel } from "./words.js";

const KINDS = [
  ["all", "all", () => true],
  ["positive", "positive", (entry) => isPositive(entry)],
  ["other", "other answers", (entry) => entry.state === "done" && !entry.result.skipped && !isPositive(entry)],
  ["warned", "with warnings", (entry) => entry.state === "done" && entry.result.warnings.length > 0],
  ["failed", "without an answer", (entry) => entry.state === "failed" || Boolean(entry.result?.skipped)],
];

const isPositive = ({ state, result }) =>
  state === "done" && result.positive !== null && result.label === result.positive;

export class List {
  constructor({ onOpen }) {
    this._onOpen = onOpen;
    this._rows = new Map(); // entry -> { item, button, thumbnail, answer, value, address }
    this._entries = [];
    this._node = document.getElementById("rows");
    this._filter = document.getElementById("filter");
    this._filter.append(...KINDS.map(([value, text]) => element("option", { value }, text)));
    this._filter.addEventListener("change", () => this._entries.forEach((entry) => this._hide(entry)));
    this._node.addEventListener("keydown", (event) => this._move(event));
  }

  /** Show these entries. Rows of entries that stay are kept, with the focus on them. */
  setEntries(entries) {
    for (const [entry, row] of this._rows) {
      if (!entries.includes(entry)) {
        if (row.address) URL.revokeObjectURL(row.address);
        row.item.remove();
        this._rows.delete(entry);
      }
    }
    this._entries = entries;
    let before = null;
    for (const entry of entries) {
      if (!this._rows.has(entry)) this._rows.set(entry, this._row(entry));
      const { item } = this._rows.get(entry);
      const expected = before ? before.nextElementSibling : this._node.firstElementChild;
      if (item !== expected) this._node.insertBefore(item, expected);
      before = item;
      this.update(entry);
    }
  }

  /** Show what is known about an entry now. */
  update(entry) {
    const row = this._rows.get(entry);
    if (!row) return;
    const { text, kind, value } = describe(entry);
    row.answer.textContent = text;
    row.answer.className = `row-answer ${kind}`;
    row.value.textContent = value;
    row.button.disabled = entry.state !== "done" && entry.state !== "failed";
    const picture = entry.layers?.section ?? entry.result?.slices?.[entry.result.window?.first ?? 0]?.layers?.section;
    if (picture && !row.address) {
      row.address = pictureUrl(picture);
      row.thumbnail.replaceChildren(element("img", { class: "thumbnail", alt: "", src: row.address }));
    }
    this._hide(entry);
  }

  /** Mark the entry whose result is open. */
  mark(opened) {
    for (const [entry, { button }] of this._rows) {
      if (entry === opened) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  /** Show how many scans of each kind there are. */
  updateTitle() {
    document.getElementById("list-title").textContent = counted(this._entries.length, "scan");
    KINDS.forEach(([, text, matches], number) => {
      const count = this._entries.filter(matches).length;
      this._filter.options[number].textContent = `${text} (${count.toLocaleString("en")})`;
    });
  }

  _hide(entry) {
    const [, , matches] = KINDS[this._filter.selectedIndex];
    this._rows.get(entry).item.hidden = !matches(entry);
  }

  _row(entry) {
    const thumbnail = element("span", { class: "thumbnail" });
    const answer = element("span", {});
    const value = element("span", { class: "row-value" });
    const button = element(
      "button",
      { type: "button", class: "row", onclick: () => this._onOpen(entry) },
      thumbnail,
      element("span", { class: "row-text" }, element("span", { class: "row-name" }, entry.name), answer),
      value,
    );
    return { item: element("li", {}, button), button, thumbnail, answer, value, address: null };
  }

  _move(event) {
    const step = { ArrowDown: "nextElementSibling", ArrowUp: "previousElementSibling" }[event.key];
    if (!step) return;
    event.preventDefault();
    let item = event.target.closest("li")[step];
    while (item && (item.hidden || item.firstElementChild.disabled)) item = item[step];
    item?.firstElementChild.focus();
  }
}

function describe(entry) {
  const { state, result, failure } = entry;
  if (state === "waiting") return { text: "waiting", kind: "", value: "" };
  if (state === "sending") return { text: entry.sent < 1 ? "sending" : "being classified", kind: "", value: "" };
  if (state === "failed") return { text: failureText(failure, entry.name), kind: "failed", value: "" };
  if (result.skipped) return { text: sentence(result.skipped.message), kind: "failed", value: "" };
  const warnings = result.warnings.length ? `, ${counted(result.warnings.length, "warning")}` : "";
  const size = entry.kind === "series" ? `, ${counted(result.count, "slice")}` : "";
  const value = entry.kind === "series" ? result.score : result.probabilities[shownLabel(result)];
  return {
    text: `${result.label ?? "no answer"}${size}${warnings}`,
    kind: isPositive(entry) ? "positive" : "",
    value: value === null ? "" : figure(value),
  };
}
