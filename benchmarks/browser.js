/**
 * Times of decoding, for browser.py: in a page of a browser, and in Node.js as
 * `node benchmarks/browser.js BUNDLE THREADS BATCH SECONDS`.
 *
 * @module
 */

import { load } from "../vaekit/web/javascript/index.js";

/** @import { VAE } from "../vaekit/web/javascript/vae.js" */

/**
 * Return the median time of a call of `decode`.
 *
 * @param {VAE} vae
 * @param {number} batch
 * @param {number} seconds
 * @returns {Promise<number>} seconds
 */
async function medianOf(vae, batch, seconds) {
  const z = await vae.sampleLatents(batch, { prior: "normal" });
  const times = [];
  const begin = performance.now() + 1000 * seconds; // the browser compiles WebAssembly again, and better, as it runs
  while (performance.now() < begin + 1000 * seconds || times.length < 10) {
    const start = performance.now();
    await vae.decode(z);
    if (start > begin) times.push((performance.now() - start) / 1000);
  }
  return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
}

/**
 * Time decoding in a page, in WebAssembly.
 *
 * @param {string} bundle an address
 * @param {string} runtime an address of onnxruntime-web's folder dist
 * @param {number} threads
 * @param {number} batch
 * @param {number} seconds
 * @returns {Promise<number>} seconds
 */
export async function inPage(bundle, runtime, threads, batch, seconds) {
  const ort = await import(new URL("ort.wasm.min.mjs", runtime).href);
  ort.env.wasm.wasmPaths = runtime;
  ort.env.wasm.numThreads = threads;
  return medianOf(await load(bundle, { ort }), batch, seconds);
}

if (typeof process !== "undefined") {
  const { createRequire } = await import("node:module");
  const ort = createRequire(new URL("../tests/web/package.json", import.meta.url))("onnxruntime-node");
  const [bundle, ...numbers] = process.argv.slice(2);
  const [threads, batch, seconds] = numbers.map(Number);
  console.log(await medianOf(await load(bundle, { ort, threads }), batch, seconds));
}
