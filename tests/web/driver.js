/**
 * Answer requests of the tests: load a bundle, call a method, and return what came of it as JSON. Arrays of float32
 * travel as {f32: base64, shape}, and arrays of float64 as {f64: base64}.
 *
 * @module
 */

import * as vaekit from "../../vaekit/web/javascript/index.js";
import { standardNormal } from "../../vaekit/web/javascript/noise.js";

/** @import { OnnxRuntime } from "../../vaekit/web/javascript/types.js" */

/**
 * @typedef {object} Request
 * @property {string} [bundle] a path or an address
 * @property {string} [zip] contents of a .zip file in base64, instead of a bundle
 * @property {readonly string[]} [providers]
 * @property {number} [batchSize]
 * @property {[number, number]} [at] size of the images
 * @property {string} call a method or property of VAE, or `standardNormal`
 * @property {any[]} [args]
 */

/**
 * @param {OnnxRuntime} ort
 * @param {Request} request
 * @returns {Promise<object>}
 */
export async function answer(ort, request) {
  try {
    return { result: packed(await resultOf(ort, request)) };
  } catch (error) {
    if (!(error instanceof Error)) throw error;
    return { error: error.name, message: error.message, stack: error.stack };
  }
}

/**
 * @param {OnnxRuntime} ort
 * @param {Request} request
 * @returns {Promise<unknown>}
 */
async function resultOf(ort, { bundle, zip, providers, batchSize, at, call, args = [] }) {
  const values = args.map(unpacked);
  if (call === "standardNormal") return standardNormal.apply(null, /** @type {any} */ (values));
  const source = zip === undefined ? /** @type {string} */ (bundle) : bytesOf(zip);
  const loaded = await vaekit.load(source, { ort, providers, batchSize });
  const vae = at === undefined ? loaded : loaded.at(...at);
  const member = /** @type {any} */ (vae)[call];
  const result = typeof member === "function" ? await member.apply(vae, values) : member;
  if (call !== "graph") await loaded.release();
  return call === "graph" ? { provider: result.provider, fellBack: result.fellBack } : result;
}

/**
 * @param {any} value
 * @returns {any}
 */
function packed(value) {
  if (value instanceof Float32Array) return { f32: base64Of(value), shape: [value.length] };
  if (value instanceof Float64Array) return { f64: base64Of(value) };
  if (value?.data instanceof Float32Array) return { f32: base64Of(value.data), shape: value.shape };
  if (Array.isArray(value) || value === null || typeof value !== "object") return value;
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, packed(each)]));
}

/**
 * @param {any} value
 * @returns {any}
 */
function unpacked(value) {
  if (Array.isArray(value)) return value.map(unpacked);
  if (value === null || typeof value !== "object") return value;
  if ("bigint" in value) return BigInt(value.bigint);
  if ("f32" in value) return { data: new Float32Array(bytesOf(value.f32).buffer), shape: value.shape };
  if ("u8" in value) return { data: bytesOf(value.u8), width: value.width, height: value.height };
  return Object.fromEntries(Object.entries(value).map(([key, each]) => [key, unpacked(each)]));
}

/**
 * @param {Float32Array | Float64Array} array
 * @returns {string}
 */
function base64Of(array) {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  let text = "";
  for (const byte of bytes) text += String.fromCharCode(byte);
  return btoa(text);
}

/**
 * @param {string} text
 * @returns {Uint8Array<ArrayBuffer>}
 */
function bytesOf(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
