/* Show the answer for one slice, or why there is none. */

import { download, element, property } from "./dom.js";
import { viewer } from "./picture.js";
import { NOTICE, failureText, figure, reason, sentence, shownLabel } from "./words.js";

/**
 * Return the view of one slice: its elements, and "close".
 *
 * "load" gets the entry and an AbortSignal, and returns a promise of the layers with a heatmap.
 */
export function sliceView(entry, load) {
  const { result } = entry;
  const picture = viewer({ onWanted: loadHeatmap });
  const controller = new AbortController();

  async function loadHeatmap() {
    if (entry.layers?.heatmap) return;
    picture.show({ layers: entry.layers, text: "The picture is being loaded.", busy: true });
    try {
      entry.layers = await load(entry, controller.signal);
      if (!controller.signal.aborted) picture.show({ layers: entry.layers });
    } catch (error) {
      if (!controller.signal.aborted)
        picture.show({ layers: entry.layers, text: "No picture.", note: noHeatmap(error) });
    }
  }

  if (entry.layers?.heatmap || (entry.layers && !picture.wantsHeatmap)) picture.show({ layers: entry.layers });
  else loadHeatmap();

  const answer = element(
    "div",
    { class: "answer" },
    ...heading(entry.name, result.label, result.positive === null ? "" : tone(result)),
    ...bars(result),
    element("p", { class: "sentence" }, reason(result)),
    element("p", { class: "notice" }, NOTICE),
    warningList(result.warnings),
  );
  return {
    parts: [picture.node, answer, facts(entry)],
    close() {
      controller.abort();
      picture.close();
    },
  };
}

/** Return the view of a file that has no answer, with buttons if something can be done about it. */
export function failureView(entry, buttons = []) {
  const text = entry.failure ? failureText(entry.failure, entry.name) : sentence(entry.result.skipped.message);
  return {
    parts: [
      ...heading(entry.name, entry.failure ? "No answer" : "Not classified", "failure"),
      element("p", { class: "alert" }, text),
      buttons.length ? element("p", { class: "buttons tools" }, ...buttons) : "",
    ],
    close() {},
  };
}

/** Return why a heatmap is missing, as a sentence. */
export const noHeatmap = (error) => `No heatmap. ${error.failure ? failureText(error.failure, "") : error.message}`;

const tone = (result) => (result.label === result.positive ? "positive" : "negative");

/** Return the name of the scan and the label. */
export function heading(name, label, kind) {
  return [
    element("p", { class: "source" }, name),
    element("h2", { class: `label ${kind}`, id: "detail-title" }, label),
  ];
}

function bars(result) {
  const shown = shownLabel(result);
  if (Object.keys(result.probabilities).length <= 2) {
    const threshold = shown === result.positive ? result.threshold : null;
    return [bar(`Probability of “${shown}”`, result.probabilities[shown], threshold, tone(result) === "positive")];
  }
  return Object.entries(result.probabilities).map(([label, value]) =>
    bar(
      `Probability of “${label}”`,
      value,
      label === result.positive ? result.threshold : null,
      label === result.label,
    ),
  );
}

/** Return a value from 0 to 1 as a number and as a bar on which the threshold is marked. */
export function bar(title, value, threshold, positive) {
  const line = element(
    "div",
    { class: `bar${positive ? " positive" : ""}${threshold === null ? " no-threshold" : ""}`, "aria-hidden": "true" },
    element("i"),
  );
  const marks = element(
    "p",
    { class: "marks" },
    element("span", { class: "zero" }, "0"),
    element("span", { class: "one" }, "1"),
  );
  property(line, "--value", value);
  if (threshold !== null) {
    for (const node of [line, marks]) property(node, "--threshold", threshold);
    if (threshold > 0.7) marks.classList.add("crowded");
    if (threshold < 0.3) marks.classList.add("crowded-left");
    marks.append(element("span", { class: "mark" }, `threshold ${figure(threshold)}`));
  }
  return element("div", {}, element("p", { class: "chance" }, title, element("b", {}, figure(value))), line, marks);
}

/** Return the warnings as sentences, or nothing. */
export function warningList(warnings) {
  if (!warnings.length) return null;
  return element(
    "section",
    { class: "warnings", "aria-label": "Warnings" },
    element("h3", {}, warnings.length === 1 ? "A reason to doubt this answer" : "Reasons to doubt this answer"),
    element("ul", {}, ...warnings.map(({ message }) => element("li", {}, sentence(message)))),
  );
}

/** Return what ran, and what can be done with the result. */
export function facts(entry) {
  const { result } = entry;
  const rows = [
    ["Model", result.model],
    ["Artifact", `${result.artefact} (SHA-256 ${result.model_hash}…)`],
    ["Engine", `${result.engine}, ${result.provider}`],
    [
      "Answered",
      `${entry.answered.toLocaleString("en", { dateStyle: "medium", timeStyle: "short" })}${timeOf(result)}`,
    ],
    ...headerFacts(result.dicom ?? result.nifti),
  ];
  const save = () =>
    download(`${fileName(entry.name)}.json`, "application/json", `${JSON.stringify(result, null, 2)}\n`);
  return element(
    "div",
    { class: "facts" },
    element("dl", {}, ...rows.flatMap(([name, value]) => [element("dt", {}, name), element("dd", {}, value)])),
    element(
      "p",
      { class: "buttons" },
      element("button", { type: "button", onclick: save }, "Download JSON"),
      element("button", { type: "button", onclick: () => window.print() }, "Print or save as PDF"),
    ),
  );
}

const timeOf = ({ latency_ms: time }) => (time ? `, in ${time.total.toFixed(1)} ms` : "");

function headerFacts(header) {
  if (!header) return [];
  const { plane, position, window: levels } = header;
  const rows = [];
  if (plane) rows.push(["Plane", position === null ? plane : `${plane}, at ${position.toFixed(1)} mm`]);
  if (levels?.width) {
    const origin = { file: "of the file", option: "as configured", percentiles: "by percentiles" }[levels.from];
    rows.push(["Gray levels", `center ${levels.center.toFixed(0)}, width ${levels.width.toFixed(0)}, ${origin}`]);
  }
  return rows;
}

const fileName = (name) =>
  name
    .split("/")
    .at(-1)
    .replace(/[^\w.-]+/g, "_");
