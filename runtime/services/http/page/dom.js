/* Build elements. Text is always set as text, never as HTML, so that a file name cannot become markup. */

const SVG = "http://www.w3.org/2000/svg";

/** Return an element with attributes, event listeners ("onclick") and children; null children are left out. */
export function element(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children.filter((child) => child !== null));
  return node;
}

/** Set a custom property of CSS. This goes through the object model, which a strict Content-Security-Policy allows. */
export function property(node, name, value) {
  node.style.setProperty(name, value);
  return node;
}

/** Return the address of a picture that came as base64. Call URL.revokeObjectURL when it is not needed any more. */
export function pictureUrl(base64) {
  const bytes = Uint8Array.from(atob(base64), (letter) => letter.charCodeAt(0));
  return URL.createObjectURL(new Blob([bytes], { type: "image/png" }));
}

/** Let the browser save text as a file. */
export function download(name, type, text) {
  const url = URL.createObjectURL(new Blob([text], { type }));
  element("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 60_000);
}
