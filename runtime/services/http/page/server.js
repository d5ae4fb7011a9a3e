/* Send scans to the server of this page. A token is kept in memory only. */

import { sentence } from "./words.js";

let token = null;
let welcome = false; // whether the server has answered without asking for a token
let asking = null; // one dialog for all requests that are refused at the same time

const MOST_TRIES = 6; // of a request that the server is too busy for

/**
 * An error that people can read: the problem, a hint, and the status of HTTP, which is 0 without an answer. "body" is
 * the object that the server answered with.
 */
export class Refusal extends Error {
  constructor(error, hint = "", status = 0, body = {}) {
    super(error);
    this.failure = { ...body, error, hint };
    this.status = status;
  }
}

/**
 * Classify files, and return the object that the server answers with.
 *
 * "options" become the parameters of the address. "onUpload" is called with the proportion of the bytes that are sent.
 * An aborted "signal" raises an AbortError.
 */
export async function classify(files, options, { signal, onUpload = () => {} } = {}) {
  await knock();
  const address = new URL("v1/classify", document.baseURI);
  for (const [name, value] of Object.entries(options)) address.searchParams.set(name, value);
  for (let tries = 1; ; tries++) {
    const form = new FormData();
    for (const { file, path } of files) form.append("file", file, path);
    const sentWith = token;
    const answer = await post(address, form, signal, onUpload);
    if (answer.status === 401) {
      if (token === sentWith) await askForToken(sentWith !== null);
    } else if ((answer.status === 429 || answer.status === 503) && answer.retryAfter && tries < MOST_TRIES) {
      await wait(answer.retryAfter * 1000 * tries, signal);
    } else if (answer.body === null) {
      throw new Refusal(`The server answered with status ${answer.status} and no readable text`, "", answer.status);
    } else if (answer.status >= 400 && !answer.body.results) {
      // with several scans, each result says what is wrong
      const { error = `status ${answer.status}`, hint = "" } = answer.body;
      throw new Refusal(error, hint, answer.status, answer.body);
    } else {
      return answer.body;
    }
  }
}

/** Return the names of the models on the server, the default first. The description of the server needs no token. */
export async function models() {
  const answer = await fetch(new URL("openapi.json", document.baseURI));
  const { paths } = await answer.json();
  return paths["/v1/classify"].post.parameters.find(({ name }) => name === "model").schema.enum;
}

/** Ask for a token, if the server needs one, before a large upload that it would refuse. */
async function knock() {
  for (; !welcome;) {
    const sentWith = token;
    const { status } = await fetch(new URL("v2", document.baseURI), { headers: authorization() }).catch(() => ({}));
    if (status !== 401) welcome = true;
    else if (token === sentWith) await askForToken(sentWith !== null);
  }
}

const authorization = () => (token ? { Authorization: `Bearer ${token}` } : {});

/** Post a form. XMLHttpRequest reports how much of the body is sent, which fetch does not. */
function post(address, form, signal, onUpload) {
  return new Promise((resolve, reject) => {
    signal?.throwIfAborted();
    const request = new XMLHttpRequest();
    const abort = () => request.abort();
    signal?.addEventListener("abort", abort, { once: true });
    request.open("POST", address);
    request.responseType = "json";
    for (const [name, value] of Object.entries(authorization())) request.setRequestHeader(name, value);
    request.upload.onprogress = (event) => event.lengthComputable && onUpload(event.loaded / event.total);
    request.onload = () =>
      resolve({
        status: request.status,
        body: request.response,
        retryAfter: Number(request.getResponseHeader("Retry-After")),
      });
    request.onerror = () =>
      reject(
        new Refusal(
          "The connection to the server broke",
          "Check that it runs. It also breaks the connection if files are larger than it accepts",
        ),
      );
    request.onabort = () => reject(new DOMException("cancelled", "AbortError"));
    request.onloadend = () => signal?.removeEventListener("abort", abort);
    request.send(form);
  });
}

function askForToken(wasWrong) {
  asking ??= new Promise((resolve, reject) => {
    const dialog = document.getElementById("token");
    const input = document.getElementById("token-value");
    const text = document.getElementById("token-text");
    if (wasWrong) text.textContent = sentence("The server refused this token. Check it, and enter it again");
    input.value = "";
    dialog.returnValue = "";
    dialog.onclose = () => {
      asking = null;
      // A copied token may bring invisible characters, which no token has and no header may contain.
      const given = input.value.replace(/[^\x21-\x7e]/g, "");
      if (dialog.returnValue === "use" && given) {
        token = given;
        resolve();
      } else {
        reject(new Refusal("The server needs a token", "Try again and enter it", 401));
      }
      input.value = "";
    };
    dialog.showModal();
  });
  return asking;
}

function wait(milliseconds, signal) {
  return new Promise((resolve, reject) => {
    const stop = () => reject(new DOMException("cancelled", "AbortError"));
    if (signal?.aborted) stop();
    signal?.addEventListener("abort", stop, { once: true });
    setTimeout(() => {
      signal?.removeEventListener("abort", stop);
      resolve();
    }, milliseconds);
  });
}
