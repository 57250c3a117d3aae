/** Answer requests of a page's tests, as node.js does. */

import { answer } from "./driver.js";

const runtime = new URL("./node_modules/onnxruntime-web/dist/", import.meta.url);
const ort = await import(new URL("ort.wasm.min.mjs", runtime).href);
ort.env.wasm.wasmPaths = runtime.href;
ort.env.wasm.numThreads = 1;

Object.assign(window, {
  answer: async (/** @type {import("./driver.js").Request} */ request) => JSON.stringify(await answer(ort, request)),
});
