/* Take the pictures out of an answer, so that the result stays what "mri-edge predict --json" prints. */

/**
 * Remove "picture" and "explanation" from the record of a slice, and return them as layers, or null without a picture.
 *
 * "section" is a PNG in base64; "heatmap" is null if it was not asked for.
 */
export function takeLayers(record) {
  const { picture, explanation } = record;
  delete record.picture;
  delete record.explanation;
  if (!picture) return null;
  return {
    section: picture,
    heatmap: explanation
      ? {
          explained: explanation.label,
          picture: explanation.overlay,
          maximum: explanation.maximum,
          least: explanation.least_drawn,
          score: explanation.score,
        }
      : null,
    probabilities: record.probabilities,
  };
}
