/**
 * Read and write .zip archives, as far as bundles and .npz files need it: no encryption and no zip64.
 *
 * Format: PKWARE, ".ZIP File Format Specification" (APPNOTE), version 6.3.
 *
 * @module
 */

const END = 0x06054b50;
const ENTRY = 0x02014b50;
const LOCAL = 0x04034b50;
const [STORED, DEFLATED] = [0, 8];
const LONGEST_COMMENT = 0xffff;
const UTF8_NAMES = 1 << 11;

/**
 * @typedef {object} Entry
 * @property {string} name
 * @property {number} method
 * @property {number} crc
 * @property {number} packed bytes in the archive
 * @property {number} size bytes
 * @property {number} at offset of its local header
 */

/**
 * List an archive's entries. Raises RangeError or TypeError, with a reason, if it is no readable archive.
 *
 * @param {Uint8Array} archive
 * @returns {Entry[]}
 */
export function entriesOf(archive) {
  const view = viewOf(archive);
  const end = endOf(view);
  const count = view.getUint16(end + 10, true);
  const entries = [];
  let at = view.getUint32(end + 16, true);
  for (let number = 0; number < count; number++) {
    if (view.getUint32(at, true) !== ENTRY) throw new RangeError("its list of files is damaged");
    const [nameLength, extra, comment] = [28, 30, 32].map((offset) => view.getUint16(at + offset, true));
    entries.push({
      name: text(archive, at + 46, nameLength),
      method: view.getUint16(at + 10, true),
      crc: view.getUint32(at + 16, true),
      packed: view.getUint32(at + 20, true),
      size: view.getUint32(at + 24, true),
      at: view.getUint32(at + 42, true),
    });
    at += 46 + nameLength + extra + comment;
  }
  return entries;
}

/**
 * Return an entry's bytes. Raises RangeError or TypeError if they are damaged.
 *
 * @param {Uint8Array} archive
 * @param {Entry} entry
 * @returns {Promise<Uint8Array>}
 */
export async function readEntry(archive, entry) {
  const view = viewOf(archive);
  if (view.getUint32(entry.at, true) !== LOCAL) throw new RangeError(`${entry.name} is damaged`);
  const start = entry.at + 30 + view.getUint16(entry.at + 26, true) + view.getUint16(entry.at + 28, true);
  const packed = archive.subarray(start, start + entry.packed);
  if (entry.method !== STORED && entry.method !== DEFLATED) {
    throw new RangeError(`${entry.name} is compressed by an unknown method`);
  }
  const data = entry.method === STORED ? packed : await inflate(packed, entry);
  if (data.length !== entry.size || crc32(data) !== entry.crc) throw new RangeError(`${entry.name} is damaged`);
  return data;
}

/**
 * Write files as an archive, uncompressed.
 *
 * @param {Record<string, Uint8Array>} files by name
 * @returns {Uint8Array}
 */
export function archiveOf(files) {
  /** @type {Uint8Array[]} */
  const parts = [];
  /** @type {Uint8Array[]} */
  const list = [];
  let at = 0;
  for (const [name, data] of Object.entries(files)) {
    const encoded = new TextEncoder().encode(name);
    const [local, entry] = headersOf(encoded, data, at);
    parts.push(local, encoded, data);
    list.push(entry, encoded);
    at += local.length + encoded.length + data.length;
  }
  const end = new Uint8Array(22);
  const view = viewOf(end);
  view.setUint32(0, END, true);
  view.setUint16(8, list.length / 2, true);
  view.setUint16(10, list.length / 2, true);
  view.setUint32(12, total(list), true);
  view.setUint32(16, at, true);
  return joined([...parts, ...list, end]);
}

/**
 * Return the local header and the entry in the list of a file's name and data.
 *
 * @param {Uint8Array} name
 * @param {Uint8Array} data
 * @param {number} at
 * @returns {[Uint8Array, Uint8Array]}
 */
function headersOf(name, data, at) {
  const common = new Uint8Array(26);
  const view = viewOf(common);
  view.setUint16(0, 20, true); // version 2.0
  view.setUint16(2, UTF8_NAMES, true);
  view.setUint16(8, 0x21, true); // 1 January 1980: the archive does not say when it was made
  view.setUint32(10, crc32(data), true);
  view.setUint32(14, data.length, true);
  view.setUint32(18, data.length, true);
  view.setUint16(22, name.length, true);
  const entry = new Uint8Array(46);
  viewOf(entry).setUint32(0, ENTRY, true);
  viewOf(entry).setUint16(4, 20, true);
  entry.set(common, 6);
  viewOf(entry).setUint32(42, at, true);
  const local = new Uint8Array(30);
  viewOf(local).setUint32(0, LOCAL, true);
  local.set(common, 4);
  return [local, entry];
}

/**
 * Inflate data, and stop where it is larger than its entry says.
 *
 * @param {Uint8Array} packed
 * @param {Entry} entry
 * @returns {Promise<Uint8Array>}
 */
async function inflate(packed, entry) {
  const bytes = /** @type {Uint8Array<ArrayBuffer>} */ (packed);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  const reader = stream.getReader();
  const parts = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return joined(parts);
    size += value.length;
    if (size > entry.size) {
      await reader.cancel();
      throw new RangeError(`${entry.name} is larger than the archive says`);
    }
    parts.push(value);
  }
}

/**
 * @param {DataView} view
 * @returns {number}
 */
function endOf(view) {
  const last = view.byteLength - 22;
  for (let at = last; at >= Math.max(0, last - LONGEST_COMMENT); at--) {
    if (view.getUint32(at, true) === END) return at;
  }
  throw new RangeError("it is not a .zip file, or not a whole one");
}

/**
 * @param {Uint8Array} bytes
 * @param {number} at
 * @param {number} length
 * @returns {string}
 */
function text(bytes, at, length) {
  if (at + length > bytes.length) throw new RangeError("its list of files is damaged");
  return new TextDecoder("utf-8", { fatal: true }).decode(bytes.subarray(at, at + length));
}

/**
 * @param {Uint8Array} bytes
 * @returns {DataView}
 */
function viewOf(bytes) {
  return new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}

/**
 * @param {Uint8Array[]} parts
 * @returns {number}
 */
function total(parts) {
  return parts.reduce((sum, part) => sum + part.length, 0);
}

/**
 * @param {Uint8Array[]} parts
 * @returns {Uint8Array}
 */
function joined(parts) {
  const out = new Uint8Array(total(parts));
  let at = 0;
  for (const part of parts) {
    out.set(part, at);
    at += part.length;
  }
  return out;
}

const CRC_TABLE = Uint32Array.from({ length: 256 }, (_, byte) => {
  let value = byte;
  for (let bit = 0; bit < 8; bit++) value = value & 1 ? (value >>> 1) ^ 0xedb88320 : value >>> 1;
  return value;
});

/**
 * Return the CRC-32 of bytes (ISO 3309).
 *
 * @param {Uint8Array} bytes
 * @returns {number}
 */
function crc32(bytes) {
  let crc = 0xffffffff;
  for (let at = 0; at < bytes.length; at++) crc = (crc >>> 8) ^ CRC_TABLE[(crc ^ bytes[at]) & 0xff];
  return (crc ^ 0xffffffff) >>> 0;
}
