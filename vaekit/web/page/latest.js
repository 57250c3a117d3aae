/**
 * Do work for the latest request only: while one is worked on, later ones replace each other.
 *
 * @module
 */

import { busy } from "./busy.js";

/**
 * Return a function that asks for the work. It never runs twice at once.
 *
 * @param {() => Promise<void>} work
 * @param {(error: unknown) => void} failed
 * @returns {() => void}
 */
export function latestOnly(work, failed) {
  let running = false;
  let asked = false;
  return async () => {
    asked = true;
    if (running) return;
    running = true;
    while (asked) {
      asked = false;
      try {
        await busy(work);
      } catch (error) {
        failed(error);
      }
    }
    running = false;
  };
}
