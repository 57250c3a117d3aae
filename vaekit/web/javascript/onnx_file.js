/**
 * Read an ONNX file's metadata, to check a graph before running it. Weights are skipped.
 *
 * ONNX files are protocol buffers; the field numbers below are those of onnx.proto3.
 *
 * @module
 */

const DTYPES = new Map([
  [1, "float32"],
  [2, "uint8"],
  [3, "int8"],
  [6, "int32"],
  [7, "int64"],
  [9, "bool"],
  [10, "float16"],
  [11, "float64"],
]);
const INCOMPLETE = "it is not a complete ONNX file";

/**
 * A graph's input or output. A free size has a name, or "" if the file states neither.
 *
 * @typedef {object} TensorInfo
 * @property {string} name
 * @property {string} dtype
 * @property {readonly (number | string)[]} shape
 */

/**
 * An ONNX file's metadata.
 *
 * @typedef {object} OnnxInfo
 * @property {number} irVersion
 * @property {Map<string, number>} opsets by domain; the standard domain is ""
 * @property {TensorInfo[]} inputs
 * @property {TensorInfo[]} outputs
 * @property {Set<string>} domains of all nodes, including those in subgraphs and functions
 * @property {boolean} externalData whether any tensor is stored in another file
 */

/**
 * Read an ONNX file's metadata. Raises RangeError, with a reason, if it is not a complete ONNX file.
 *
 * @param {Uint8Array} data
 * @returns {OnnxInfo}
 */
export function readOnnx(data) {
  /** @type {OnnxInfo} */
  const info = { irVersion: 0, opsets: new Map(), inputs: [], outputs: [], domains: new Set(), externalData: false };
  try {
    for (const [number, value] of fields(data)) {
      if (number === 1) info.irVersion = integer(value);
      else if (number === 7) readGraph(nested(value), info, true);
      else if (number === 8) readOpset(nested(value), info);
      else if (number === 25) readFunction(nested(value), info);
    }
  } catch {
    throw new RangeError(INCOMPLETE); // a size beyond the end, text that is not UTF-8, or nesting without end
  }
  if (!info.irVersion || !info.opsets.size || !info.outputs.length) throw new RangeError(INCOMPLETE);
  return info;
}

/** @typedef {number | Uint8Array} Value an integer, or a field's bytes */

/**
 * @param {Uint8Array} message
 * @param {OnnxInfo} info
 */
function readOpset(message, info) {
  let [domain, version] = ["", 0];
  for (const [number, value] of fields(message)) {
    if (number === 1) domain = text(value);
    else if (number === 2) version = integer(value);
  }
  info.opsets.set(standard(domain), version);
}

/**
 * @param {Uint8Array} message
 * @param {OnnxInfo} info
 * @param {boolean} top
 */
function readGraph(message, info, top) {
  for (const [number, value] of fields(message)) {
    if (number === 1) readNode(nested(value), info);
    else if (number === 5) readTensor(nested(value), info);
    else if (number === 15) readSparseTensor(nested(value), info);
    else if (top && number === 11) info.inputs.push(tensorInfo(nested(value)));
    else if (top && number === 12) info.outputs.push(tensorInfo(nested(value)));
  }
}

/**
 * @param {Uint8Array} message
 * @param {OnnxInfo} info
 */
function readNode(message, info) {
  let domain = "";
  for (const [number, value] of fields(message)) {
    if (number === 7) domain = text(value);
    else if (number === 5) readAttribute(nested(value), info);
  }
  info.domains.add(standard(domain));
}

/**
 * @param {Uint8Array} message
 * @param {OnnxInfo} info
 */
function readAttribute(message, info) {
  for (const [number, value] of fields(message)) {
    if (number === 5 || number === 10) readTensor(nested(value), info);
    else if (number === 6 || number === 11) readGraph(nested(value), info, false);
    else if (number === 22 || number === 23) readSparseTensor(nested(value), info);
  }
}

/**
 * Read a model's local function. Its nodes are field 7, its attributes' defaults field 11.
 *
 * @param {Uint8Array} message
 * @param {OnnxInfo} info
 */
function readFunction(message, info) {
  for (const [number, value] of fields(message)) {
    if (number === 7) readNode(nested(value), info);
    else if (number === 11) readAttribute(nested(value), info);
  }
}

/**
 * Read a sparse tensor. Its values are field 1, its indices field 2.
 *
 * @param {Uint8Array} message
 * @param {OnnxInfo} info
 */
function readSparseTensor(message, info) {
  for (const [number, value] of fields(message)) {
    if (number === 1 || number === 2) readTensor(nested(value), info);
  }
}

/**
 * Read a tensor. Field 13 gives the location of external data; field 14 is 1 if the data is external.
 *
 * @param {Uint8Array} message
 * @param {OnnxInfo} info
 */
function readTensor(message, info) {
  for (const [number, value] of fields(message)) {
    if (number === 13 || (number === 14 && value === 1)) info.externalData = true;
  }
}

/**
 * Read a ValueInfoProto. Its name is field 1 and its type field 2, whose field 1 is the tensor type.
 *
 * @param {Uint8Array} message
 * @returns {TensorInfo}
 */
function tensorInfo(message) {
  /** @type {TensorInfo} */
  let found = { name: "", dtype: "", shape: [] };
  for (const [number, value] of fields(message)) {
    if (number === 1) found = { ...found, name: text(value) };
    if (number !== 2) continue;
    for (const [inner, tensor] of fields(nested(value))) {
      if (inner === 1) found = { ...found, ...tensorType(nested(tensor)) };
    }
  }
  return found;
}

/**
 * @param {Uint8Array} message
 * @returns {{dtype: string, shape: (number | string)[]}}
 */
function tensorType(message) {
  let dtype = "";
  /** @type {(number | string)[]} */
  let shape = [];
  for (const [number, value] of fields(message)) {
    if (number === 1) dtype = DTYPES.get(integer(value)) ?? `type ${value}`;
    else if (number === 2) {
      shape = [...fields(nested(value))].filter(([inner]) => inner === 1).map(([, size]) => dimension(nested(size)));
    }
  }
  return { dtype, shape };
}

/**
 * @param {Uint8Array} message
 * @returns {number | string}
 */
function dimension(message) {
  for (const [number, value] of fields(message)) {
    if (number === 1) return integer(value);
    if (number === 2) return text(value);
  }
  return "";
}

/**
 * Yield a message's fields.
 *
 * @param {Uint8Array} message
 * @returns {Generator<[number, Value]>}
 */
function* fields(message) {
  let at = 0;
  while (at < message.length) {
    const [key, afterKey] = varint(message, at);
    const [number, kind] = [Math.floor(key / 8), key % 8];
    at = afterKey;
    let size = kind === 1 ? 8 : 4;
    if (kind === 0 || kind === 2) {
      const [value, after] = varint(message, at);
      at = after;
      if (kind === 0) {
        yield [number, value];
        continue;
      }
      size = value;
    } else if (kind !== 1 && kind !== 5) throw new RangeError(INCOMPLETE);
    if (at + size > message.length) throw new RangeError(INCOMPLETE);
    yield [number, message.subarray(at, at + size)];
    at += size;
  }
}

/**
 * Read an integer of up to 64 bits. Above 2**53 it is not exact, which no field that is read needs.
 *
 * @param {Uint8Array} message
 * @param {number} start
 * @returns {[number, number]} the integer, and the offset after it
 */
function varint(message, start) {
  let value = 0;
  for (let at = start; at < start + 10; at++) {
    if (at >= message.length) break;
    value += (message[at] & 0x7f) * 2 ** (7 * (at - start));
    if (message[at] < 0x80) return [value, at + 1];
  }
  throw new RangeError(INCOMPLETE);
}

/**
 * @param {Value} value
 * @returns {number}
 */
function integer(value) {
  if (typeof value !== "number") throw new RangeError(INCOMPLETE);
  return value;
}

/**
 * @param {Value} value
 * @returns {Uint8Array}
 */
function nested(value) {
  if (typeof value === "number") throw new RangeError(INCOMPLETE);
  return value;
}

/**
 * @param {Value} value
 * @returns {string}
 */
function text(value) {
  return new TextDecoder("utf-8", { fatal: true }).decode(nested(value));
}

/**
 * @param {string} domain
 * @returns {string}
 */
function standard(domain) {
  return domain === "ai.onnx" ? "" : domain;
}
