/**
 * Noise with the same bits as in Python: one Philox-4x64 stream per seed, one block of 64-bit words per sample.
 *
 * `vaekit/maths/noise.py` says how words become uniforms and normals. The logarithm, sine and cosine use only additions,
 * multiplications, divisions and square roots, which every engine rounds in the same way. A 64-bit word is held as two
 * halves of 32 bits, the low one first, because BigInt is many times slower.
 *
 * Philox: Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
 *
 * @module
 */

import { UsageError } from "./errors.js";

const WORDS_PER_COUNT = 4;
const ROUNDS = 10;
const LOG_TERMS = 12;
const TRIG_TERMS = 9;

// High and low halves of Philox's constants.
const [M0_HIGH, M0_LOW] = [0xd2e7470e | 0, 0xe14c6c93 | 0];
const [M1_HIGH, M1_LOW] = [0xca5a8263 | 0, 0x95121157 | 0];
const [W0_HIGH, W0_LOW] = [0x9e3779b9 | 0, 0x7f4a7c15 | 0];
const [W1_HIGH, W1_LOW] = [0xbb67ae85 | 0, 0x84caa73b | 0];

/**
 * Return the number of 64-bit words that a sample of so many normals uses, a multiple of four.
 *
 * @param {number} dimensions
 * @returns {number}
 */
export function blockWords(dimensions) {
  const needed = 2 * Math.ceil(dimensions / 2) + 1;
  return WORDS_PER_COUNT * Math.ceil(needed / WORDS_PER_COUNT);
}

/**
 * Return the words of samples `start` to `start + count - 1`, each as its low and high half, (count, 2 · width).
 *
 * Raises UsageError for a seed outside 0 … 2**64 - 1.
 *
 * @param {number | bigint} seed
 * @param {number | bigint} start
 * @param {number} count
 * @param {number} width words a sample, a multiple of four
 * @returns {Uint32Array}
 */
export function words(seed, start, count, width) {
  const key = checkedSeed(seed);
  const out = new Uint32Array(2 * count * width);
  const counter = halves(BigInt(start) * BigInt(width / WORDS_PER_COUNT), 8);
  const [keyLow, keyHigh] = halves(key, 2);
  for (let at = 0; at < out.length; at += 2 * WORDS_PER_COUNT) {
    increment(counter); // NumPy counts before it computes
    philox(counter, keyLow, keyHigh, out, at);
  }
  return out;
}

/**
 * Return word `index` as a uniform in [0, 1), from its upper 53 bits.
 *
 * @param {Uint32Array} raw
 * @param {number} index
 * @returns {number}
 */
export function uniform(raw, index) {
  return (raw[2 * index + 1] * 2 ** 21 + (raw[2 * index] >>> 11)) * 2 ** -53;
}

/**
 * Write the standard normals of one block to `out`.
 *
 * @param {Uint32Array} raw
 * @param {number} first number of the block's first word
 * @param {Float64Array} out as many numbers as dimensions
 */
export function normals(raw, first, out) {
  for (let j = 0; j < out.length; j += 2) {
    const radius = Math.sqrt(-2 * log(1 - uniform(raw, first + j)));
    const [cosine, sine] = cosSinTurns(uniform(raw, first + j + 1));
    out[j] = radius * cosine;
    if (j + 1 < out.length) out[j + 1] = radius * sine;
  }
}

/**
 * Draw standard normals for samples `start` to `start + count - 1` of a seed, (count, dimensions).
 *
 * @param {number | bigint} seed
 * @param {number | bigint} start
 * @param {number} count
 * @param {number} dimensions
 * @returns {Float64Array}
 */
export function standardNormal(seed, start, count, dimensions) {
  const width = blockWords(dimensions);
  const raw = words(seed, start, count, width);
  const out = new Float64Array(count * dimensions);
  for (let k = 0; k < count; k++) normals(raw, k * width, out.subarray(k * dimensions, (k + 1) * dimensions));
  return out;
}

/**
 * @param {unknown} seed
 * @returns {bigint}
 */
function checkedSeed(seed) {
  if (typeof seed !== "bigint" && !Number.isSafeInteger(seed)) {
    throw new UsageError(`the seed must be a whole number, as a BigInt above 2**53, not ${seed}`);
  }
  const key = BigInt(/** @type {number | bigint} */ (seed));
  if (key < 0n || key >= 2n ** 64n)
    throw new UsageError(`seed ${seed} is out of range: choose one from 0 to 2**64 - 1`);
  return key;
}

/**
 * Split a number into 32-bit parts, the lowest first.
 *
 * @param {bigint} value
 * @param {number} count
 * @returns {Int32Array}
 */
function halves(value, count) {
  return Int32Array.from({ length: count }, (_, k) => Number(BigInt.asIntN(32, value >> BigInt(32 * k))));
}

/** @param {Int32Array} counter */
function increment(counter) {
  for (let k = 0; k < counter.length; k++) {
    counter[k] += 1;
    if (counter[k]) return;
  }
}

/**
 * Return the high half of the 64 bits of a · b, from products of 16 bits. All halves are signed integers of 32 bits here,
 * with which engines compute three times as fast as with unsigned ones; `less` compares them as unsigned.
 *
 * @param {number} a
 * @param {number} b
 * @returns {number}
 */
function high(a, b) {
  const aLow = a & 0xffff;
  const aHigh = a >>> 16;
  const bLow = b & 0xffff;
  const bHigh = b >>> 16;
  const middle = (Math.imul(aHigh, bLow) >>> 0) + (Math.imul(aLow, bLow) >>> 16);
  const other = (Math.imul(aLow, bHigh) >>> 0) + (middle & 0xffff);
  return (Math.imul(aHigh, bHigh) + (middle >>> 16) + (other >>> 16)) | 0;
}

/**
 * Return 1 if a is less than b, both unsigned, and else 0: the carry of a sum a = b + c.
 *
 * @param {number} a
 * @param {number} b
 * @returns {number}
 */
function less(a, b) {
  return (a ^ 0x80000000) < (b ^ 0x80000000) ? 1 : 0;
}

const product = new Int32Array(4);

/**
 * Write the 128 bits of (aHigh, aLow) · (bHigh, bLow) to `product`, the lowest part first.
 *
 * @param {number} aHigh
 * @param {number} aLow
 * @param {number} bHigh
 * @param {number} bLow
 */
function multiply(aHigh, aLow, bHigh, bLow) {
  const lowHigh = Math.imul(aLow, bHigh);
  const highLow = Math.imul(aHigh, bLow);
  const highHigh = Math.imul(aHigh, bHigh);
  let second = (high(aLow, bLow) + lowHigh) | 0;
  let carry = less(second, lowHigh);
  second = (second + highLow) | 0;
  carry += less(second, highLow);
  const upper = high(aLow, bHigh);
  let third = (upper + high(aHigh, bLow)) | 0;
  let fourth = high(aHigh, bHigh) + less(third, upper);
  third = (third + highHigh) | 0;
  fourth += less(third, highHigh);
  third = (third + carry) | 0;
  fourth += less(third, carry);
  product[0] = Math.imul(aLow, bLow);
  product[1] = second;
  product[2] = third;
  product[3] = fourth;
}

/**
 * Write the four words of one counter value to `out`.
 *
 * @param {Int32Array} counter eight halves
 * @param {number} keyLow
 * @param {number} keyHigh
 * @param {Uint32Array} out
 * @param {number} at
 */
function philox(counter, keyLow, keyHigh, out, at) {
  let [a0, a1, b0, b1, c0, c1, d0, d1] = counter; // words a, b, c and d: low, high
  let [k0, k1, l0, l1] = [keyLow, keyHigh, 0, 0]; // both words of the key
  for (let round = 0; round < ROUNDS; round++) {
    multiply(M0_HIGH, M0_LOW, a1, a0);
    const [p0, p1, p2, p3] = [product[0], product[1], product[2], product[3]];
    multiply(M1_HIGH, M1_LOW, c1, c0);
    [a0, a1, b0, b1] = [product[2] ^ b0 ^ k0, product[3] ^ b1 ^ k1, product[0], product[1]];
    [c0, c1, d0, d1] = [p2 ^ d0 ^ l0, p3 ^ d1 ^ l1, p0, p1];
    k0 = (k0 + W0_LOW) | 0;
    k1 = (k1 + W0_HIGH + less(k0, W0_LOW)) | 0;
    l0 = (l0 + W1_LOW) | 0;
    l1 = (l1 + W1_HIGH + less(l0, W1_LOW)) | 0;
  }
  out[at] = a0;
  out[at + 1] = a1;
  out[at + 2] = b0;
  out[at + 3] = b1;
  out[at + 4] = c0;
  out[at + 5] = c1;
  out[at + 6] = d0;
  out[at + 7] = d1;
}

const float = new DataView(new ArrayBuffer(8));

/**
 * Compute ln x for a normal number x > 0.
 *
 * With x = 2^k m and m in [sqrt(1/2), sqrt(2)), ln m = 2 artanh((m - 1) / (m + 1)).
 *
 * @param {number} x
 * @returns {number}
 */
function log(x) {
  float.setFloat64(0, x);
  let power = ((float.getUint16(0) >> 4) & 0x7ff) - 1022;
  float.setUint16(0, (float.getUint16(0) & 0x800f) | (1022 << 4)); // m in [1/2, 1)
  let mantissa = float.getFloat64(0);
  if (mantissa < Math.SQRT1_2) {
    mantissa *= 2;
    power -= 1;
  }
  const s = (mantissa - 1) / (mantissa + 1);
  const square = s * s;
  let series = 1 / (2 * LOG_TERMS - 1);
  for (let term = LOG_TERMS - 1; term > 0; term--) series = series * square + 1 / (2 * term - 1);
  return power * Math.LN2 + 2 * s * series;
}

/**
 * Compute cosine and sine of 2 pi t for t in [0, 1), by Taylor series around the nearest quarter turn.
 *
 * @param {number} turns
 * @returns {[number, number]}
 */
function cosSinTurns(turns) {
  const quarters = Math.floor(turns * 4 + 0.5);
  const angle = (turns * 4 - quarters) * (Math.PI / 2);
  const square = angle * angle;
  let cosine = 1;
  let sine = 1;
  for (let term = TRIG_TERMS; term > 0; term--) {
    cosine = 1 - (square / ((2 * term - 1) * (2 * term))) * cosine;
    sine = 1 - (square / (2 * term * (2 * term + 1))) * sine;
  }
  sine *= angle;
  switch (quarters % 4) {
    case 0:
      return [cosine, sine];
    case 1:
      return [-sine, cosine];
    case 2:
      return [-cosine, -sine];
    default:
      return [sine, -cosine];
  }
}
