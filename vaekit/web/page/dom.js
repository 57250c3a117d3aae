/**
 * Find and fill elements. Text is always set as text, never as HTML.
 *
 * @module
 */

import { reasonOf } from "../javascript/errors.js";
import { busy } from "./busy.js";

/**
 * Return the element with an id, of a class.
 *
 * @template {Element} T
 * @param {string} id
 * @param {new () => T} kind
 * @returns {T}
 */
export function element(id, kind) {
  const found = document.getElementById(id);
  if (!(found instanceof kind)) throw new Error(`the page has no ${id}`);
  return found;
}

/** @param {string} id @returns {HTMLButtonElement} */
export const button = (id) => element(id, HTMLButtonElement);

/** @param {string} id @returns {HTMLCanvasElement} */
export const canvas = (id) => element(id, HTMLCanvasElement);

/** @param {string} id @returns {HTMLInputElement} */
export const input = (id) => element(id, HTMLInputElement);

/** @param {string} id @returns {HTMLSelectElement} */
export const select = (id) => element(id, HTMLSelectElement);

/**
 * Fill a list of choices.
 *
 * @param {HTMLSelectElement} list
 * @param {readonly [string, string][]} options values and names
 * @param {string} chosen
 */
export function fill(list, options, chosen) {
  list.replaceChildren(...options.map(([value, name]) => new Option(name, value, false, value === chosen)));
}

/**
 * Show an error to people, or nothing.
 *
 * @param {unknown} error
 */
export function showError(error) {
  const place = element("error", HTMLParagraphElement);
  const message = reasonOf(error ?? "");
  place.textContent = message && `error: ${message}`;
  place.hidden = !message;
}

/**
 * Listen to an event; an error of the listener is shown, and the next success hides it.
 *
 * @param {EventTarget} target
 * @param {string} event
 * @param {(event: any) => unknown} listener
 */
export function on(target, event, listener) {
  target.addEventListener(event, async (fired) => {
    try {
      await busy(() => listener(fired));
      showError(null);
    } catch (error) {
      showError(error);
    }
  });
}
