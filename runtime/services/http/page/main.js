/* Connect the parts of the page. */

import { download, element } from "./dom.js";
import { demos, fetchDemo } from "./demos.js";
import { ofInput, ofTransfer, plan } from "./intake.js";
import { List } from "./list.js";
import { failureView, sliceView } from "./result.js";
import { Scans } from "./scans.js";
import { seriesView } from "./series.js";
import { models } from "./server.js";
import { counted, figure, sentence } from "./words.js";

const at = (id) => document.getElementById(id);
const scans = new Scans(onChange, onSkipped);
const list = new List({ onOpen: open });
let opened = null; // the entry whose result is shown
let view = null;
let openNext = false; // whether the next answer is shown at once
let scheduled = false;

// --- scans come in

async function take(files) {
  const { jobs, notes } = await plan(files);
  at("notes").replaceChildren(...notes.map((text) => element("p", { class: "note" }, text)));
  if (notes.length) announce(notes.join(" "));
  if (!jobs.length) return;
  openNext = true;
  scans.add(jobs.map((job) => ({ ...job, model: at("model").value })));
  // The demo scans are hidden now, and one of them may have the focus.
  if (!document.activeElement?.checkVisibility()) at("main").focus({ preventScroll: true });
}

function onSkipped(names) {
  const text = `${counted(names.length, "file")} left out, because the server finds no scan in ${
    names.length === 1 ? "it" : "them"
  }: ${names.slice(0, 3).join(", ")}${names.length > 3 ? ", …" : ""}.`;
  at("notes").append(element("p", { class: "note" }, text));
}

for (const [button, input] of [
  ["choose-files", "files"],
  ["choose-folder", "folder"],
]) {
  at(button).addEventListener("click", () => at(input).click());
  at(input).addEventListener("change", async () => {
    const files = ofInput(at(input));
    at(input).value = "";
    await take(files);
  });
}
at("choose-folder").hidden = !("webkitdirectory" in at("folder")) || matchMedia("(pointer: coarse)").matches;

let depth = 0; // of elements that a drag has entered
addEventListener("dragenter", () => at("drop").classList.toggle("over", ++depth > 0));
addEventListener("dragleave", () => at("drop").classList.toggle("over", --depth > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", async (event) => {
  event.preventDefault();
  depth = 0;
  at("drop").classList.remove("over");
  await take(await ofTransfer(event.dataTransfer));
});
addEventListener("paste", async (event) => {
  if (event.target.matches("input")) return;
  const files = await ofTransfer(event.clipboardData);
  if (files.length) await take(files);
});

at("demo-list").append(
  ...demos.map((demo) =>
    element(
      "li",
      {},
      element(
        "button",
        { type: "button", "data-name": demo.name, onclick: () => takeDemo(demo) },
        demo.picture
          ? element("img", { src: demo.picture, alt: "", loading: "lazy" })
          : element("span", { class: "no-picture", "aria-hidden": "true" }, demo.mark),
        element("span", {}, element("strong", {}, demo.title), element("small", {}, demo.text)),
      ),
    ),
  ),
);

async function takeDemo(demo) {
  try {
    await take([{ file: await fetchDemo(demo), path: demo.name, named: true }]);
  } catch (error) {
    at("notes").replaceChildren(element("p", { class: "alert", role: "alert" }, sentence(error.message)));
  }
}

// --- results go out

function onChange(what, entries) {
  document.body.classList.add("has-results");
  at("results").hidden = false;
  at("clear").hidden = false;
  const answered = entries.find(({ state }) => state === "done" || state === "failed");
  if (what === "replaced" || what === "added") list.setEntries(scans.entries);
  else entries.forEach((entry) => list.update(entry));
  if (answered && (openNext || entries.includes(opened))) {
    openNext = false;
    open(answered);
  }
  if (what === "finished") announce(summary());
  schedule();
}

/** Show the progress at the next frame: hundreds of scans may change in between. */
function schedule() {
  if (scheduled) return;
  scheduled = true;
  requestAnimationFrame(() => {
    scheduled = false;
    const many = scans.entries.length > 1;
    at("list").hidden = !many;
    at("results").classList.toggle("many", many);
    list.updateTitle();
    showProgress();
  });
}

function showProgress() {
  const { entries } = scans;
  if (!scans.busy && document.activeElement === at("cancel")) at("main").focus({ preventScroll: true });
  at("progress").hidden = !scans.busy;
  if (!scans.busy) return;
  const bar = at("progress-bar");
  const finished = entries.filter(({ state }) => state === "done" || state === "failed").length;
  const sending = entries.filter(({ state }) => state === "sending");
  const sent = sending.reduce((sum, entry) => sum + entry.sent, 0);
  const open = entries.length - finished;
  if (open > 1) {
    at("progress-text").textContent = `${finished.toLocaleString("en")} of ${counted(entries.length, "scan")} answered`;
    bar.value = (finished + sent / 2) / entries.length;
  } else if (sent < 1) {
    at("progress-text").textContent = `Sending ${sending[0]?.name ?? "the scan"}: ${Math.round(sent * 100)}%`;
    bar.value = sent;
  } else {
    at("progress-text").textContent = `Waiting for the answer about ${sending[0].name}`;
    bar.removeAttribute("value");
  }
}

function open(entry) {
  // A reader who is not in the middle of something else can use the arrow keys at once.
  const takeFocus =
    [document.body, at("main")].includes(document.activeElement) || at("detail").contains(document.activeElement);
  view?.close();
  opened = entry;
  const buttons = [];
  if (entry.result?.skipped?.code === "plane") {
    buttons.push(element("button", { type: "button", onclick: () => anyPlane(entry) }, "Classify it all the same"));
  }
  const failed = entry.state === "failed" || Boolean(entry.result?.skipped);
  if (failed) view = failureView(entry, buttons);
  else if (entry.kind === "series") view = seriesView(entry, (...args) => scans.layersOfSlice(...args));
  else view = sliceView(entry, (...args) => scans.layersOf(...args));
  const detail = at("detail");
  detail.classList.toggle("failure", failed);
  detail.replaceChildren(...view.parts);
  detail.hidden = false;
  list.mark(entry);
  if (takeFocus) detail.focus({ preventScroll: true });
  if (scans.entries.length > 1 || !scans.busy) announce(spoken(entry));
}

function anyPlane(entry) {
  openNext = true;
  scans.classifyAnyPlane(entry);
}

function spoken(entry) {
  const { result } = entry;
  if (entry.state === "failed") return `${entry.name}: no answer. ${sentence(entry.failure.error)}`;
  if (result.skipped) return `${entry.name}: not classified. ${sentence(result.skipped.message)}`;
  if (entry.kind === "series" && result.score === null) return `${entry.name}: no answer.`;
  if (entry.kind === "series") return `${entry.name}: ${result.label}, score ${figure(result.score)}.`;
  const shown = result.positive ?? result.label;
  const warnings = result.warnings.length ? ` ${counted(result.warnings.length, "warning")}.` : "";
  return `${entry.name}: ${result.label}, probability of ${shown} ${figure(result.probabilities[shown])}.${warnings}`;
}

function summary() {
  const { entries } = scans;
  if (entries.length === 1) return spoken(entries[0]);
  const failed = entries.filter(({ state }) => state === "failed").length;
  return `${counted(entries.length, "result")}${failed ? `, ${failed} without an answer` : ""}.`;
}

function announce(text) {
  at("live").textContent = text;
}

at("cancel").addEventListener("click", () => {
  const left = scans.cancel();
  list.setEntries(scans.entries);
  const text = `Cancelled: ${counted(left, "scan")} ${left === 1 ? "was" : "were"} not classified.`;
  at("notes").replaceChildren(element("p", { class: "note" }, text));
  announce(text);
  if (!scans.entries.length) clear();
  schedule();
  at("choose-files").focus();
});

function clear() {
  view?.close();
  view = opened = null;
  scans.cancel();
  scans.entries = [];
  list.setEntries([]);
  at("detail").replaceChildren();
  at("detail").hidden = true;
  at("results").hidden = at("clear").hidden = true;
  document.body.classList.remove("has-results");
  schedule();
}

at("clear").addEventListener("click", () => {
  clear();
  at("notes").replaceChildren();
  announce("The results are cleared.");
  at("choose-files").focus();
});

at("save-all").addEventListener("click", () => {
  const lines = scans.entries.filter(({ result }) => result).map(({ result }) => JSON.stringify(result));
  download("mri-edge-results.jsonl", "application/jsonl", `${lines.join("\n")}\n`);
});

at("detail").addEventListener("keydown", (event) => view?.onKey?.(event));
for (const radio of document.querySelectorAll('[name="theme"]')) {
  radio.addEventListener("change", () => {
    document.documentElement.dataset.theme = radio.value;
  });
}
// The table of a series is printed, too.
addEventListener("beforeprint", () =>
  document.querySelectorAll("details").forEach((each) => {
    each.open = true;
  }),
);

// Without names, the server takes its default.
const names = await models().catch(() => []);
at("model").append(...names.map((name) => element("option", {}, name)));
at("model-choice").hidden = names.length < 2;
