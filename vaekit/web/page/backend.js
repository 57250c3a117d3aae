/**
 * Choose how ONNX Runtime runs in this browser. Its files are in the folder `runtime`, and nothing else is loaded.
 *
 * @module
 */

/** @import { OnnxRuntime } from "../javascript/types.js" */

const MOST_THREADS = 4; // more rarely help for small models

/**
 * A way to run the graphs.
 *
 * @typedef {object} Backend
 * @property {string} provider ONNX Runtime's name
 * @property {string} name for people
 * @property {string} file of onnxruntime-web
 */

/**
 * Return the ways that this browser has, the default first.
 *
 * @returns {Promise<Backend[]>}
 */
export async function backends() {
  const threads = threadCount();
  const processor = `the processor, in WebAssembly with ${threads} thread${threads > 1 ? "s" : ""}`;
  const found = [{ provider: "wasm", name: processor, file: "ort.wasm.min.mjs" }];
  const gpu = /** @type {any} */ (navigator).gpu;
  if (gpu && (await gpu.requestAdapter().catch(() => null))) {
    found.push({ provider: "webgpu", name: "the GPU, with WebGPU", file: "ort.webgpu.min.mjs" });
  }
  return found;
}

/**
 * Load ONNX Runtime for a backend.
 *
 * @param {Backend} backend
 * @returns {Promise<OnnxRuntime>}
 */
export async function runtimeOf(backend) {
  const folder = new URL("../runtime/", import.meta.url);
  const ort = await import(new URL(backend.file, folder).href);
  ort.env.wasm.wasmPaths = folder.href;
  ort.env.wasm.numThreads = threadCount();
  return ort;
}

/**
 * Return how many threads WebAssembly can use: one, unless the server isolates the page from other origins.
 *
 * @returns {number}
 */
export function threadCount() {
  return globalThis.crossOriginIsolated ? Math.min(MOST_THREADS, navigator.hardwareConcurrency || 1) : 1;
}
