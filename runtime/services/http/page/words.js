/* Turn results, warnings and errors into sentences. */

export const NOTICE = "Research use only: not a medical device.";

/** Return a probability with as many digits as the table of the command line. */
export const figure = (value) => value.toFixed(3);

/** Return a message as a sentence: with a capital letter and a period. */
export function sentence(text) {
  const trimmed = text.trim();
  if (!trimmed) return "";
  return trimmed[0].toUpperCase() + trimmed.slice(1) + (/[.!?]$/.test(trimmed) ? "" : ".");
}

/** Return what went wrong with a file, without the name of the file, beside which it is shown. */
export function failureText(failure, name) {
  const problem = failure.error.startsWith(`${name}: `) ? failure.error.slice(name.length + 2) : failure.error;
  return [sentence(problem), sentence(failure.hint ?? "")].filter(Boolean).join(" ");
}

/** Return the label that people see the probability of: the positive one of two labels, otherwise the answer. */
export function shownLabel(result) {
  const labels = Object.keys(result.probabilities);
  return result.positive === null || labels.length > 2 ? result.label : result.positive;
}

/** Return why a result has its label. */
export function reason(result) {
  if (result.threshold === null || result.positive === null) {
    return `The answer is the likeliest label, “${result.label}”.`;
  }
  const value = `The probability of “${result.positive}” is ${figure(result.probabilities[result.positive])}.`;
  const threshold = figure(result.threshold);
  return result.label === result.positive
    ? `${value} It reaches the threshold of the model, ${threshold}, so the answer is “${result.label}”.`
    : `${value} It is below the threshold of the model, ${threshold}, so the answer is “${result.label}”.`;
}

/** Return why a series has its label. */
export function seriesReason(series) {
  if (series.score === null) return "No slice of this series has an answer that counts, so it has no score.";
  const score = series.count < 2 ? "The score is the probability of the only slice." : scoreOf(series);
  if (series.threshold === null) return score;
  const comparison = series.score >= series.threshold ? "reaches" : "is below";
  return `${score} It ${comparison} the threshold, ${figure(series.threshold)}, so the answer is “${series.label}”.`;
}

function scoreOf({ positive, score, window }) {
  const [first, last] = [window.first + 1, window.last + 1];
  const slices = first === last ? `slice ${first}` : `slices ${first} to ${last}`;
  return (
    `The score is the highest probability of “${positive}” that at least half of the slices in some stretch of ` +
    `neighbors reach: ${figure(score)}, in ${slices}.`
  );
}

/** Return what a series answer must not be taken for. "calibration" says on what data the rule was chosen. */
export function seriesCaution({ rule }) {
  return `The score is not a probability that the patient has a tumor. Calibration of the rule: ${rule.calibration}.`;
}

/** Return a change in log-odds, with as many digits as tell the largest from the least that is drawn. */
export function change(value, { least, maximum }) {
  return value.toFixed(maximum >= least && maximum - least < 0.1 ? 2 : 1);
}

/** Return what the color of a heatmap means. */
export function heatmapMeaning(heatmap) {
  const { explained, least, maximum, picture } = heatmap;
  const fall = `lowers the log-odds of “${explained}” by ${change(least, heatmap)} or more`;
  if (picture === null) {
    return (
      `Covering a region of this slice with what healthy tissue would look like never ${fall}, so nothing is ` +
      "colored. " +
      "This is usual without a tumor, and happens with some tumors too."
    );
  }
  return (
    `Covering a colored region with what healthy tissue would look like ${fall}, at most by ` +
    `${change(maximum, heatmap)}. The map describes the model. It is not the outline of a tumor.`
  );
}

/** Return how well such heatmaps were measured to point at a lesion. */
export function heatmapScore({ score }) {
  if (score === null) return "How well the heatmaps of this artifact point at lesions was not measured.";
  const proportion = `${score.value.toFixed(2)} (${score.low.toFixed(2)} to ${score.high.toFixed(2)})`;
  return (
    `Measured on drawn lesions that this model found: in ${proportion} of them, the highest value of the heatmap ` +
    "lies in the lesion."
  );
}

/** Return a number with its noun: "1 file", "3 files", "2 series". */
export const counted = (count, noun, many = `${noun}s`) => `${count.toLocaleString("en")} ${count === 1 ? noun : many}`;
