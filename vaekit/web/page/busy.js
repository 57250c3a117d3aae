/**
 * Whether the page is at work: `data-busy` on the body says so, for tests and for style.
 *
 * @module
 */

let count = 0;

/**
 * Do work, and mark the page as busy until it has ended.
 *
 * @template T
 * @param {() => T | Promise<T>} work
 * @returns {Promise<T>}
 */
export async function busy(work) {
  count += 1;
  document.body.dataset.busy = "yes";
  try {
    return await work();
  } finally {
    count -= 1;
    if (!count) delete document.body.dataset.busy;
  }
}
