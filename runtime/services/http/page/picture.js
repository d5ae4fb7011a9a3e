/* Show a section with its heatmap above it, a switch and an opacity for the heatmap, and what its colors mean. */

import { element, pictureUrl, property } from "./dom.js";
import { change, heatmapMeaning, heatmapScore } from "./words.js";

// What the reader has chosen holds for all results.
const chosen = { shown: true, opacity: 55 };

/**
 * Return a viewer: its element, and a function that shows the layers of a result, or what is missing.
 *
 * "onWanted" is called when the reader switches the heatmap on.
 */
export function viewer({ onWanted }) {
  const section = element("img", { alt: "", hidden: true });
  const color = element("img", { alt: "", class: "color", hidden: true });
  const message = element("p", {});
  const screen = element("div", { class: "screen" }, section, color, message);
  const toggle = element("input", { type: "checkbox", role: "switch", id: "heatmap-switch", checked: chosen.shown });
  const opacity = element("input", { type: "range", min: 10, max: 100, step: 5, value: chosen.opacity });
  const opacityLabel = element("label", { class: "opacity" }, "Opacity", opacity);
  const legend = element("div", { class: "legend" });
  const tools = element(
    "div",
    { class: "tools" },
    element("label", { class: "switch" }, toggle, "Heatmap"),
    opacityLabel,
  );
  const node = element("figure", { class: "view" }, screen, tools, legend);
  let heatmap = null;
  const addresses = [];

  function update() {
    property(screen, "--opacity", chosen.opacity / 100);
    color.hidden = !chosen.shown || !color.src;
    legend.hidden = !chosen.shown || legend.childElementCount === 0;
    opacityLabel.hidden = !chosen.shown || !heatmap?.picture;
    if (heatmap) section.alt = alternative();
  }

  function alternative() {
    const colored = heatmap.picture && chosen.shown ? `, with the heatmap of “${heatmap.explained}” in color` : "";
    return `The section of the scan that the network got${colored}`;
  }

  toggle.addEventListener("change", () => {
    chosen.shown = toggle.checked;
    update();
    if (chosen.shown) onWanted();
  });
  opacity.addEventListener("input", () => {
    chosen.opacity = Number(opacity.value);
    update();
  });

  return {
    node,
    get wantsHeatmap() {
      return chosen.shown;
    },
    /** Show layers. "text" stands in place of a missing picture, "busy" while a heatmap is drawn. */
    show({ layers = null, text = "", busy = false, note = "" }) {
      addresses.splice(0).forEach(URL.revokeObjectURL);
      const address = (base64) => addresses[addresses.push(pictureUrl(base64)) - 1];
      heatmap = layers?.heatmap ?? null;
      section.hidden = !layers;
      section.alt = "The section of the scan that the network got";
      if (layers) section.src = address(layers.section);
      if (heatmap?.picture) color.src = address(heatmap.picture);
      else color.removeAttribute("src");
      message.textContent = layers ? "" : text;
      message.hidden = Boolean(layers);
      screen.classList.toggle("busy", busy);
      legend.replaceChildren(...legendOf(heatmap, busy ? "The heatmap is being drawn." : note));
      update();
    },
    close() {
      addresses.splice(0).forEach(URL.revokeObjectURL);
    },
  };
}

function legendOf(heatmap, note) {
  const notes = note ? [element("p", { class: "meaning" }, note)] : [];
  if (!heatmap) return notes;
  const parts = [];
  if (heatmap.picture) {
    parts.push(
      element("div", { class: "scale" }),
      element(
        "div",
        { class: "scale-ends" },
        element("span", {}, change(heatmap.least, heatmap)),
        element("span", {}, `change in log-odds of “${heatmap.explained}”`),
        element("span", {}, change(heatmap.maximum, heatmap)),
      ),
    );
  }
  return [
    ...parts,
    element("p", {}, heatmapMeaning(heatmap)),
    element("p", { class: "meaning" }, heatmapScore(heatmap)),
    ...notes,
  ];
}
