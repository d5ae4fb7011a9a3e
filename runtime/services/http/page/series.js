/* Show the answer for a series: its slices one at a time, and the probability along it. */

import { curve, isPositive, key, probabilityOf } from "./curve.js";
import { element } from "./dom.js";
import { viewer } from "./picture.js";
import { bar, facts, heading, noHeatmap, warningList } from "./result.js";
import { NOTICE, counted, figure, sentence, seriesCaution, seriesReason } from "./words.js";

const PAUSE_MS = 250; // how long the reader stays on a slice before its heatmap is drawn

/** Return the view of a series, as "sliceView" does. "load" gets the entry, the slice's number, and an AbortSignal. */
export function seriesView(entry, load) {
  const { result } = entry;
  const { slices } = result;
  let here = entry.slice ?? startingSlice(result);
  let timer = 0;
  let loading = null;

  const picture = viewer({ onWanted: () => show(here) });
  const slider = element("input", { type: "range", min: 0, max: slices.length - 1, step: 1, "aria-label": "Slice" });
  const previous = element(
    "button",
    { type: "button", "aria-label": "Previous slice", onclick: () => show(here - 1) },
    "←",
  );
  const next = element("button", { type: "button", "aria-label": "Next slice", onclick: () => show(here + 1) }, "→");
  const line = element("p", { class: "slice-line" });
  const drawn = curve(result, (number) => show(number));
  slider.addEventListener("input", () => show(Number(slider.value)));
  picture.node.querySelector(".screen").after(element("div", { class: "stepper" }, previous, slider, next), line);

  function show(number) {
    here = entry.slice = Math.min(slices.length - 1, Math.max(0, number));
    const slice = slices[here];
    slider.value = here;
    slider.setAttribute("aria-valuetext", describe(slice, here, result));
    previous.disabled = here === 0;
    next.disabled = here === slices.length - 1;
    line.replaceChildren(element("span", {}, placeOf(slice, here, slices.length)), answerOf(slice, result));
    drawn.mark(here);
    clearTimeout(timer);
    loading?.abort();
    loading = null;
    const layers = slice.layers ?? null;
    picture.show({ layers, text: slice.error ? sentence(slice.error) : "The picture is being loaded." });
    if (slice.error || ((layers?.heatmap || !picture.wantsHeatmap) && layers)) return;
    timer = setTimeout(() => loadLayers(here), PAUSE_MS);
  }

  async function loadLayers(number) {
    const slice = slices[number];
    const controller = new AbortController();
    loading = controller;
    picture.show({ layers: slice.layers ?? null, text: "The picture is being loaded.", busy: true });
    try {
      const alone = await load(entry, number, controller.signal);
      slice.layers = { ...alone, section: slice.layers?.section ?? alone.section };
      if (!controller.signal.aborted) picture.show({ layers: slice.layers, note: readAlone(slice, alone, result) });
    } catch (error) {
      if (controller.signal.aborted) return;
      picture.show({ layers: slice.layers ?? null, text: "No picture.", note: noHeatmap(error) });
    }
  }

  show(here);
  const positive = result.positive !== null && result.label === result.positive;
  const answer = element(
    "div",
    { class: "answer" },
    ...heading(
      entry.name,
      result.label ?? "No answer",
      result.label === null ? "" : positive ? "positive" : "negative",
    ),
    result.score === null ? null : bar("Score of the series", result.score, result.threshold, positive),
    element("p", { class: "sentence" }, seriesReason(result)),
    element("p", { class: "caution" }, seriesCaution(result)),
    element("p", { class: "notice" }, NOTICE),
    warningList(result.warnings),
  );
  const along = element(
    "section",
    { class: "series", "aria-label": "Probability along the series" },
    element("h3", {}, `Probability of “${result.positive}” along ${counted(result.count, "slice")}`),
    drawn.node,
    key(result),
    table(result),
  );
  return {
    parts: [picture.node, answer, along, facts(entry)],
    /** Move with the arrow keys, wherever the focus is in the view. The slider moves by itself. */
    onKey(event) {
      if (event.target.matches("input, select, button, .table")) return;
      const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
      if (step) {
        show(here + step);
        event.preventDefault();
      }
    },
    close() {
      clearTimeout(timer);
      loading?.abort();
      picture.close();
      drawn.close();
    },
  };
}

/** Return the slice to begin with: the one with the highest probability in the window that gave the score. */
function startingSlice(series) {
  if (!series.window) return Math.floor(series.slices.length / 2);
  let best = series.window.first;
  for (let number = best; number <= series.window.last; number++) {
    const [value, highest] = [number, best].map((each) => probabilityOf(series.slices[each], series) ?? -1);
    if (value > highest) best = number;
  }
  return best;
}

/** Return a note if the slice has another probability without its series, whose values set its gray levels. */
function readAlone(slice, { probabilities }, series) {
  const [together, alone] = [slice, { ...slice, probabilities }].map((each) => probabilityOf(each, series));
  return Math.abs(together - alone) < 0.01
    ? ""
    : "The heatmap is of the slice read without its series, by which its gray " +
        `levels differ: its probability is then ${figure(alone)}.`;
}

const placeOf = (slice, number, count) =>
  `Slice ${number + 1} of ${count}${slice.position_mm === null ? "" : `, at ${slice.position_mm.toFixed(1)} mm`}`;

function answerOf(slice, series) {
  const value = probabilityOf(slice, series);
  if (value === null) return element("span", { class: "failed" }, "no answer");
  return element("span", { class: isPositive(slice, series) ? "positive" : "" }, `${slice.label}, ${figure(value)}`);
}

function describe(slice, number, series) {
  return `${placeOf(slice, number, series.slices.length)}, ${answerOf(slice, series).textContent}`;
}

function table(series) {
  const head = [
    ["Slice", "number"],
    ["mm", "number"],
    ["Probability", "number"],
    ["Answer", ""],
    ["Notes", ""],
  ];
  const rows = series.slices.map((slice, number) => {
    const value = probabilityOf(slice, series);
    const notes = slice.error ?? slice.warnings.map(({ message }) => message).join("; ");
    return element(
      "tr",
      {},
      element("th", { scope: "row", class: "number" }, String(number + 1)),
      element("td", { class: "number" }, slice.position_mm === null ? "" : slice.position_mm.toFixed(1)),
      element("td", { class: "number" }, value === null ? "" : figure(value)),
      element("td", {}, slice.label ?? "no answer"),
      element("td", {}, notes),
    );
  });
  return element(
    "details",
    {},
    element("summary", {}, "Every slice as a table"),
    element(
      "div",
      { class: "table", tabindex: "0", role: "region", "aria-label": "Every slice" },
      element(
        "table",
        {},
        element(
          "thead",
          {},
          element("tr", {}, ...head.map(([name, kind]) => element("th", { scope: "col", class: kind }, name))),
        ),
        element("tbody", {}, ...rows),
      ),
    ),
  );
}
