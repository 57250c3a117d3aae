/**
 * Small helpers for arrays of float32 in row-major order.
 *
 * @module
 */

import { UsageError } from "./errors.js";

/** @import { Floats } from "./types.js" */

/**
 * Return the product of sizes.
 *
 * @param {readonly number[]} shape
 * @returns {number}
 */
export function sizeOf(shape) {
  return shape.reduce((product, size) => product * size, 1);
}

/**
 * Return rows `first` to `last - 1` of an array, sharing its memory.
 *
 * @param {Floats} array
 * @param {number} first
 * @param {number} last
 * @returns {Floats}
 */
export function rows(array, first, last) {
  const size = sizeOf(array.shape.slice(1));
  return { data: array.data.subarray(first * size, last * size), shape: [last - first, ...array.shape.slice(1)] };
}

/**
 * Return an array of zeros.
 *
 * @param {readonly number[]} shape
 * @returns {Floats}
 */
export function zeros(shape) {
  return { data: new Float32Array(sizeOf(shape)), shape };
}

/**
 * Return `count` evenly spaced numbers from `start` to `end`, both included.
 *
 * @param {number} start
 * @param {number} end
 * @param {number} count
 * @returns {number[]}
 */
export function linspace(start, end, count) {
  const step = (end - start) / (count - 1);
  return Array.from({ length: count }, (_, k) => (k === count - 1 ? end : start + k * step));
}

/**
 * Return whether two lists of sizes are equal.
 *
 * @param {readonly unknown[]} a
 * @param {readonly unknown[]} b
 * @returns {boolean}
 */
export function sameShape(a, b) {
  return a.length === b.length && a.every((size, axis) => size === b[axis]);
}

/**
 * Raise UsageError unless a value is a whole number.
 *
 * @param {unknown} value
 * @param {string} what
 * @returns {number}
 */
export function asInteger(value, what) {
  if (typeof value !== "number" || !Number.isSafeInteger(value)) {
    throw new UsageError(`the ${what} must be a whole number, not ${value}`);
  }
  return value;
}

/**
 * Raise UsageError unless an array is of float32 with rows of a shape.
 *
 * @param {Floats} array
 * @param {string} what
 * @param {string} axes
 * @param {readonly number[]} shape of one row
 * @returns {Floats}
 */
export function checkedRows(array, what, axes, shape) {
  if (!(array?.data instanceof Float32Array) || !Array.isArray(array.shape)) {
    throw new UsageError(`${what} must be floats ${axes}: {data: Float32Array, shape: number[]}`);
  }
  if (!sameShape(array.shape.slice(1), shape) || sizeOf(array.shape) !== array.data.length) {
    throw new UsageError(`${what} must have the shape (N, ${shape.join(", ")}), not (${array.shape.join(", ")})`);
  }
  return array;
}

/**
 * Return the mean of a map (d, h, w) over its positions, or a vector (d,) as it is.
 *
 * @param {Float32Array} latent
 * @param {readonly number[]} shape
 * @returns {Float64Array}
 */
export function pooled(latent, shape) {
  const places = sizeOf(shape.slice(1));
  const out = new Float64Array(shape[0]);
  latent.forEach((value, j) => (out[Math.floor(j / places)] += value / places));
  return out;
}

/**
 * Round as NumPy does: halves go to the even neighbour.
 *
 * @param {number} value
 * @returns {number}
 */
export function roundHalfToEven(value) {
  const nearest = Math.round(value);
  return nearest - value === 0.5 && nearest % 2 ? nearest - 1 : nearest;
}
