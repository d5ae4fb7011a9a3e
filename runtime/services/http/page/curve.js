/* Draw the probability of each slice along a series, the threshold, and the window that the score comes from. */

import { element, svg } from "./dom.js";
import { figure } from "./words.js";

// Pixels, with text of the usual size. They grow with enlarged text.
const HEIGHT = 200;
const PRINTED_WIDTH = 640; // so that the text is as large as the text around it
const EDGE = { left: 34, right: 10, top: 12, bottom: 34 };

/** Return the probability of the positive label of a slice, or null if it has no answer. */
export const probabilityOf = (slice, series) =>
  slice.probabilities ? slice.probabilities[series.positive ?? slice.label] : null;

export const isBlank = (slice) => (slice.warnings ?? []).some(({ code }) => code === "blank");
export const isPositive = (slice, series) => series.positive !== null && slice.label === series.positive;

/**
 * Return the curve of a series: its element, and a function that marks a slice.
 *
 * "onPick" gets the number of a slice that is clicked.
 */
export function curve(series, onPick) {
  const drawing = svg("svg", { class: "curve", role: "img", "aria-label": summary(series) });
  let width = 0;
  let height = HEIGHT;
  let edge = EDGE;
  let here = 0;
  const count = series.slices.length;
  const x = (number) => edge.left + (count < 2 ? 0.5 : number / (count - 1)) * (width - edge.left - edge.right);
  const y = (value) => edge.top + (1 - value) * (height - edge.top - edge.bottom);

  function draw() {
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawing.replaceChildren(...band(), ...axes(), ...line(), ...marks(), ...thresholdName(), ...current());
  }

  function band() {
    if (!series.window || series.count < 2) return [];
    const from = x(series.window.first) - 5;
    return [
      svg("rect", {
        class: "window",
        x: from,
        y: edge.top,
        width: x(series.window.last) + 5 - from,
        height: height - edge.top - edge.bottom,
        rx: 4,
      }),
    ];
  }

  function axes() {
    const parts = [];
    for (const value of [0, 0.5, 1]) {
      parts.push(
        svg("line", { class: "grid", x1: edge.left, x2: width - edge.right, y1: y(value), y2: y(value) }),
        svg("text", { x: edge.left - 6, y: y(value), dy: "0.33em", "text-anchor": "end" }, value.toString()),
      );
    }
    for (const [number, anchor] of [
      [0, "start"],
      [count - 1, "end"],
    ]) {
      const { position_mm: mm } = series.slices[number];
      const text = `slice ${number + 1}${mm === null ? "" : `, ${mm.toFixed(0)} mm`}`;
      parts.push(svg("text", { x: x(number), y: height - 12, "text-anchor": anchor }, text));
    }
    if (series.threshold !== null) {
      const at = y(series.threshold);
      parts.push(svg("line", { class: "threshold", x1: edge.left, x2: width - edge.right, y1: at, y2: at }));
    }
    return parts;
  }

  function line() {
    const pieces = [[]];
    series.slices.forEach((slice, number) => {
      const value = probabilityOf(slice, series);
      if (value === null || isBlank(slice)) pieces.push([]);
      else pieces.at(-1).push(`${x(number).toFixed(1)},${y(value).toFixed(1)}`);
    });
    return pieces
      .filter((piece) => piece.length > 1)
      .map((piece) => svg("polyline", { class: "line", points: piece.join(" ") }));
  }

  function marks() {
    const room = (width - edge.left - edge.right) / Math.max(count, 1);
    const size = Math.min(4, Math.max(1.5, room / 2.5));
    return series.slices.map((slice, number) => markOf(slice, series, x(number), y, size));
  }

  /** Return the name of the threshold, at that end of the curve where fewer slices are near it. */
  function thresholdName() {
    if (series.threshold === null) return [];
    const near = (slice) => Math.abs((probabilityOf(slice, series) ?? 0) - series.threshold) < 0.25;
    const half = Math.ceil(count / 2);
    const left = series.slices.slice(0, half).filter(near).length <= series.slices.slice(-half).filter(near).length;
    const at = y(series.threshold);
    return [
      svg(
        "text",
        {
          class: "threshold-text",
          x: left ? edge.left + 6 : width - edge.right - 6,
          y: at,
          dy: at > height / 2 ? "-0.5em" : "1.25em",
          "text-anchor": left ? "start" : "end",
        },
        `threshold ${figure(series.threshold)}`,
      ),
    ];
  }

  function current() {
    const value = probabilityOf(series.slices[here], series);
    const parts = [
      svg("line", { class: "here", x1: x(here), x2: x(here), y1: edge.top, y2: height - edge.bottom + 5 }),
    ];
    if (value !== null) parts.push(svg("circle", { class: "here-dot", cx: x(here), cy: y(value), r: 7 }));
    return parts;
  }

  function pick(event) {
    const box = drawing.getBoundingClientRect();
    const across = ((event.clientX - box.left) / box.width) * width;
    const proportion = (across - edge.left) / (width - edge.left - edge.right);
    onPick(Math.min(count - 1, Math.max(0, Math.round(proportion * (count - 1)))));
  }
  drawing.addEventListener("pointerdown", pick);
  drawing.addEventListener("pointermove", (event) => event.buttons && pick(event));

  const redraw = (wide) => {
    const growth = parseFloat(getComputedStyle(document.documentElement).fontSize) / 16;
    width = wide;
    height = HEIGHT * growth;
    edge = Object.fromEntries(Object.entries(EDGE).map(([side, pixels]) => [side, pixels * growth]));
    draw();
  };
  const watcher = new ResizeObserver(([{ contentRect }]) => {
    const wide = Math.round(contentRect.width);
    if (wide && wide !== width) redraw(wide);
  });
  watcher.observe(drawing);
  const listening = new AbortController();
  const { signal } = listening;
  addEventListener("beforeprint", () => redraw(PRINTED_WIDTH), { signal });
  addEventListener("afterprint", () => redraw(Math.round(drawing.getBoundingClientRect().width)), { signal });

  return {
    node: drawing,
    mark(number) {
      here = number;
      if (width) draw();
    },
    close() {
      watcher.disconnect();
      listening.abort();
    },
  };
}

function markOf(slice, series, x, y, size) {
  const value = probabilityOf(slice, series);
  if (value === null) {
    const foot = y(0);
    return svg("path", { class: "cross", d: `M${x - 3} ${foot - 3}l6 6m0-6l-6 6` });
  }
  if (isBlank(slice)) return svg("circle", { class: "dot blank", cx: x, cy: y(value), r: size });
  return isPositive(slice, series)
    ? svg("rect", { class: "dot positive", x: x - size, y: y(value) - size, width: 2 * size, height: 2 * size })
    : svg("circle", { class: "dot", cx: x, cy: y(value), r: size });
}

/** Return the key of the marks, only of those that occur. */
export function key(series) {
  const kinds = [
    [
      (slice) => isPositive(slice, series) && !isBlank(slice),
      `${series.positive}`,
      svg("rect", { class: "dot positive", x: 2, y: 2, width: 8, height: 8 }),
    ],
    [
      (slice) => slice.label && !isPositive(slice, series) && !isBlank(slice),
      otherLabels(series),
      svg("circle", { class: "dot", cx: 6, cy: 6, r: 4 }),
    ],
    [isBlank, "blank, does not count", svg("circle", { class: "dot blank", cx: 6, cy: 6, r: 4 })],
    [(slice) => slice.error, "no answer", svg("path", { class: "cross", d: "M3 3l6 6m0-6l-6 6" })],
  ];
  const items = kinds
    .filter(([occurs]) => series.slices.some(occurs))
    .map(([, text, mark]) =>
      element("li", {}, svg("svg", { class: "curve", "aria-hidden": "true", viewBox: "0 0 12 12" }, mark), text),
    );
  if (series.window && series.count > 1) {
    items.push(
      element(
        "li",
        {},
        svg(
          "svg",
          { class: "curve", "aria-hidden": "true", viewBox: "0 0 12 12" },
          svg("rect", { class: "window", width: 12, height: 12, rx: 2 }),
        ),
        "where the score comes from",
      ),
    );
  }
  return element("ul", { class: "key" }, ...items);
}

function otherLabels(series) {
  const labels = new Set(series.slices.map(({ label }) => label));
  return [...labels].filter((label) => label && label !== series.positive).join(" or ");
}

function summary(series) {
  const positive = series.slices.filter((slice) => isPositive(slice, series)).length;
  return (
    `Curve of the probability along ${series.slices.length} slices: ${positive} are “${series.positive}”. ` +
    "The table below has every value."
  );
}
