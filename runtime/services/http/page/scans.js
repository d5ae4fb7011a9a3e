/* Classify scans, a few at a time, and keep what is known about each of them. */

import { takeLayers } from "./layers.js";
import { Refusal, classify } from "./server.js";

const TOGETHER = 3; // requests at a time: the server decodes in several threads, and others use it too
const MOST_PICTURES = 60; // of how many scans at once pictures are loaded for the list

let nextId = 1;

/**
 * What is known about a scan or a series: "state" is waiting, sending, done or failed. When it is one of the last two,
 * "result" is the object of the server. When it is done, "kind" says what it is about: slice or series, and "layers" are
 * the pictures of a slice.
 */
function entryOf(job, name = job.name) {
  return { id: nextId++, job, name, state: "waiting", sent: 0, result: null, kind: null, failure: null, layers: null };
}

/**
 * The scans of this page. "onChange" is called with "added", "changed", "replaced" or "finished", and the
 * entries; "onSkipped" with the names of files that the server left out because they are no scans.
 */
export class Scans {
  constructor(onChange, onSkipped) {
    this.entries = [];
    this._onChange = onChange;
    this._onSkipped = onSkipped;
    this._queue = [];
    this._running = 0;
    this._controller = null;
  }

  get busy() {
    return this._running > 0 || this._queue.length > 0;
  }

  /** Queue jobs of "plan". With several models on the server, "job.model" is the name of one. */
  add(jobs) {
    const entries = jobs.map((job) => entryOf(job));
    const options = jobs.length <= MOST_PICTURES ? { picture: 1 } : {};
    for (const entry of entries) entry.options = options;
    this.entries.push(...entries);
    this._controller ??= new AbortController();
    this._queue.push(...entries);
    this._onChange("added", entries);
    this._start();
  }

  /** Stop what runs, and forget what has no answer yet. Return how many scans that are. */
  cancel() {
    this._queue = [];
    this._running = 0; // what is aborted counts no longer
    this._controller?.abort();
    this._controller = null;
    const open = this.entries.filter(({ state }) => state === "waiting" || state === "sending");
    this.entries = this.entries.filter((entry) => !open.includes(entry));
    return open.length;
  }

  /** Classify a series again, although it is not axial. */
  classifyAnyPlane(entry) {
    const position = this.entries.indexOf(entry);
    if (position < 0) return; // it is being classified again already
    this.entries.splice(position, 1);
    this.add([{ ...entry.job, name: entry.name, anyPlane: true, only: entry.result }]);
  }

  /** Return the layers of a slice with its heatmap. */
  async layersOf(entry, signal) {
    const options = { ...about(entry.result, entry.job), picture: 1, heatmap: 1 };
    return takeLayers(only(await classify(entry.job.files, options, { signal })));
  }

  /** The same for a slice of a series. Only the file of the slice is sent. */
  async layersOfSlice(entry, number, signal) {
    const slice = entry.result.slices[number];
    const file = entry.job.files.find(({ path }) => path === slice.file);
    if (!file || /\.zip$/i.test(file.path))
      throw new Refusal("Slices in a zip file have none. Unpack it and drop the folder");
    const options = { ...about(slice, entry.job), picture: 1, heatmap: 1 };
    return takeLayers(only(await classify([file], options, { signal })));
  }

  _start() {
    while (this._running < TOGETHER && this._queue.length) this._work();
  }

  async _work() {
    this._running++;
    const { signal } = this._controller;
    while (this._queue.length && !signal.aborted) await this._classify(this._queue.shift(), signal);
    if (signal.aborted) return;
    this._running--;
    if (!this.busy) {
      this._controller = null;
      this._onChange("finished", []);
    }
  }

  async _classify(entry, signal) {
    const { job } = entry;
    const options = { ...entry.options, ...about({}, job) };
    if (job.bySeries) options.by = "series";
    if (job.anyPlane) options.plane = "any";
    const onUpload = (proportion) => {
      entry.sent = proportion;
      this._onChange("changed", [entry]);
    };
    entry.state = "sending";
    this._onChange("changed", [entry]);
    try {
      let answer = await classify(job.files, options, { signal, onUpload });
      if (!job.bySeries && answer.results?.some(({ frames }) => frames > 1)) {
        // one file with many slices
        job.bySeries = true;
        answer = await classify(job.files, { ...options, by: "series" }, { signal, onUpload });
      }
      this._replace(entry, answer.results ?? [answer]);
      if (answer.skipped?.length) this._onSkipped(answer.skipped);
    } catch (error) {
      if (error.name === "AbortError") return;
      // Without a token, the page would ask for it again for each scan in the queue.
      const failed = error.status === 401 ? [entry, ...this._queue.splice(0)] : [entry];
      const failure = error.failure ?? { error: `This page failed: ${error.message}`, hint: "Reload it" };
      for (const each of failed) {
        Object.assign(each, { state: "failed", failure, result: { file: each.name, ...failure } });
      }
      this._onChange("changed", failed);
    }
  }

  /** Put the results of one request in the place of its entry. */
  _replace(entry, answers) {
    const wanted = answers.filter((result) => !entry.job.only || isSameSeries(result, entry.job.only));
    const results = wanted.length ? wanted : answers; // otherwise the scan would have no result
    const entries = results.map((result) => {
      const each = results.length === 1 ? entry : entryOf(entry.job, nameOf(result, entry));
      each.state = result.error ? "failed" : "done";
      if (result.error) each.failure = result;
      else each.kind = result.by === "series" ? "series" : "slice";
      if (each.kind === "slice") each.layers = takeLayers(result);
      for (const slice of result.slices ?? []) slice.layers = takeLayers(slice);
      each.result = result;
      each.answered = new Date();
      return each;
    });
    const position = this.entries.indexOf(entry);
    if (position < 0) return; // cancelled in the meantime
    this.entries.splice(position, 1, ...entries);
    this._onChange(results.length === 1 ? "changed" : "replaced", entries);
  }
}

/** Return whether two answers are about one series. The "id" of a series that is not DICOM differs in each answer. */
const isSameSeries = (one, other) => ["series", "file", "part"].every((key) => one[key] === other[key]);

/** Return the options that name a frame of a file, and the model. */
function about({ index }, { model }) {
  return { ...(index === undefined ? {} : { index }), ...(model ? { model } : {}) };
}

const only = (answer) => answer.results?.[0] ?? answer;

/** Return the name of one of several results of a request. A series has that of its first file. */
function nameOf({ file, part, parts, index, frames }, entry) {
  const name = file ?? entry.name;
  if (parts > 1) return `${name} (part ${part} of ${parts})`;
  return frames > 1 ? `${name} (slice ${index + 1} of ${frames})` : name;
}
