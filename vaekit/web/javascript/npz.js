/**
 * Read and write NumPy's .npz files, without pickles.
 *
 * Format: NumPy Enhancement Proposal 1, "A Simple File Format for NumPy Arrays".
 *
 * @module
 */

import { sizeOf } from "./arrays.js";
import { archiveOf, entriesOf, readEntry } from "./zip.js";

/** @import { Numbers } from "./types.js" */

const MAGIC = "\x93NUMPY";

/** @type {Record<string, (buffer: ArrayBuffer) => Numbers["data"]>} */
const TYPES = {
  "<f4": (buffer) => new Float32Array(buffer),
  "<f8": (buffer) => new Float64Array(buffer),
  "|u1": (buffer) => new Uint8Array(buffer),
  "<i4": (buffer) => new Int32Array(buffer),
  "<i8": (buffer) => new BigInt64Array(buffer),
};

/**
 * Read all arrays of a .npz file by name. Raises RangeError or TypeError, with a reason, if it is damaged.
 *
 * @param {Uint8Array} archive
 * @returns {Promise<Record<string, Numbers>>}
 */
export async function readNpz(archive) {
  /** @type {Record<string, Numbers>} */
  const arrays = Object.create(null);
  for (const entry of entriesOf(archive)) {
    arrays[entry.name.replace(/\.npy$/, "")] = readNpy(await readEntry(archive, entry), entry.name);
  }
  return arrays;
}

/**
 * Write arrays of float32 as a .npz file.
 *
 * @param {Record<string, {data: Float32Array, shape: readonly number[]}>} arrays by name
 * @returns {Uint8Array}
 */
export function npzOf(arrays) {
  const files = Object.entries(arrays).map(([name, array]) => [`${name}.npy`, npyOf(array)]);
  return archiveOf(Object.fromEntries(files));
}

/**
 * @param {Uint8Array} bytes
 * @param {string} name
 * @returns {Numbers}
 */
function readNpy(bytes, name) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const magic = String.fromCharCode(...bytes.subarray(0, MAGIC.length));
  if (magic !== MAGIC) throw new RangeError(`${name} is not an array`);
  const wide = bytes[6] > 1; // versions 2 and 3 have a longer length
  const start = wide ? 12 : 10;
  const length = wide ? view.getUint32(8, true) : view.getUint16(8, true);
  const header = new TextDecoder().decode(bytes.subarray(start, start + length));
  const type = /'descr':\s*'([^']*)'/.exec(header)?.[1] ?? "";
  const shape = /'shape':\s*\(([\d,\s]*)\)/.exec(header)?.[1];
  if (!(type in TYPES) || shape === undefined || !/'fortran_order':\s*False/.test(header)) {
    throw new RangeError(`${name} is an array of a kind that is not read: ${header.trim()}`);
  }
  const sizes = shape
    .split(",")
    .filter((size) => size.trim())
    .map(Number);
  const data = TYPES[type](bytes.slice(start + length).buffer);
  if (data.length !== sizeOf(sizes)) throw new RangeError(`${name} is damaged`);
  return { data, shape: sizes };
}

/**
 * @param {{data: Float32Array, shape: readonly number[]}} array
 * @returns {Uint8Array}
 */
function npyOf(array) {
  const shape = array.shape.length === 1 ? `${array.shape[0]},` : array.shape.join(", ");
  const facts = `{'descr': '<f4', 'fortran_order': False, 'shape': (${shape}), }`;
  const length = Math.ceil((10 + facts.length + 1) / 64) * 64 - 10; // the data are aligned to 64 bytes
  const out = new Uint8Array(10 + length + array.data.byteLength);
  const header = MAGIC + "\x01\x00" + String.fromCharCode(length & 0xff, length >> 8) + facts.padEnd(length - 1) + "\n";
  for (let at = 0; at < header.length; at++) out[at] = header.charCodeAt(at);
  out.set(new Uint8Array(array.data.buffer, array.data.byteOffset, array.data.byteLength), 10 + length);
  return out;
}
