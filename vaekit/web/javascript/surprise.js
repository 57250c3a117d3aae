/**
 * Maps of surprise: where an image differs from its reconstruction more than is usual there.
 *
 * docs/bundle-format.md, residuals.npz, says what the arrays are and how a map is computed from them.
 *
 * @module
 */

import { roundHalfToEven } from "./arrays.js";
import { BundleError } from "./errors.js";

/** @import { Numbers } from "./types.js" */

const OFFSET = Math.fround(0.02);
const WIDTH = 3; // standard deviations of the Gaussian on each side of its kernel
const NARROWEST = 0.1; // pixels
const LEAST_SHARE = 0.1; // of the deviation of all pixels
const TOP_SHARE = 0.01;

/** @typedef {"pixel" | "gradient" | "brightness" | "contrast"} MapKind */
/** @type {MapKind[]} */
export const MAP_KINDS = ["pixel", "gradient", "brightness", "contrast"];

/**
 * Means and deviations of held-out images' errors, in classes that are separated by edges.
 *
 * @typedef {object} Classes
 * @property {Float32Array} edges
 * @property {Float32Array} distances for contrast alone: between classes of the distance from the border
 * @property {Float32Array} mean
 * @property {Float32Array} std
 */

/**
 * @typedef {object} ResidualStatistics
 * @property {number} smooth standard deviation of the Gaussian that smooths errors, in pixels
 * @property {readonly number[]} size (height, width) of `pixel`
 * @property {Partial<Record<MapKind, Classes>>} kinds
 */

/**
 * Take the statistics from the arrays of residuals.npz. Raises BundleError if they do not fit together.
 *
 * @param {string} path
 * @param {Record<string, Numbers>} arrays
 * @returns {ResidualStatistics}
 */
export function statisticsOf(path, arrays) {
  /** @type {(mean: string, std: string, edges?: string, distances?: string) => Classes} */
  const classes = (mean, std, edges, distances) => ({
    edges: edges === undefined ? new Float32Array() : floats(path, arrays, edges),
    distances: distances === undefined ? new Float32Array() : floats(path, arrays, distances),
    mean: floats(path, arrays, mean),
    std: floats(path, arrays, std),
  });
  /** @type {ResidualStatistics["kinds"]} */
  const kinds = {
    pixel: classes("pixel_mean", "pixel_std"),
    gradient: classes("gradient_mean", "gradient_std", "edges"),
  };
  if ("levels" in arrays) kinds.brightness = classes("brightness_mean", "brightness_std", "levels");
  if ("contrast_levels" in arrays) {
    kinds.contrast = classes("contrast_mean", "contrast_std", "contrast_levels", "distances");
  }
  for (const [kind, { edges, distances, mean, std }] of Object.entries(kinds)) {
    const count = kind === "pixel" ? mean.length : (edges.length + 1) * (distances.length + 1);
    if (mean.length !== count || std.length !== count) {
      throw new BundleError(`${path} is damaged: the statistics by ${kind} do not have one number for each class`);
    }
  }
  const [smooth] = floats(path, arrays, "smooth");
  return { smooth, size: arrays.pixel_mean.shape, kinds };
}

/**
 * Return how many standard deviations each pixel's error lies above the usual, (H · W,).
 *
 * @param {Float32Array} image (C, H, W)
 * @param {Float32Array} decoded its reconstruction
 * @param {readonly [number, number]} size (H, W)
 * @param {ResidualStatistics} statistics which has this kind
 * @param {MapKind} kind
 * @returns {Float32Array}
 */
export function surprise(image, decoded, size, statistics, kind) {
  const count = size[0] * size[1];
  const { smooth } = statistics;
  const { edges, distances, mean, std } = /** @type {Classes} */ (statistics.kinds[kind]);
  const contrast = kind === "contrast";
  const error = (/** @type {number} */ j) =>
    contrast ? Math.log((image[j] + OFFSET) / (decoded[j] + OFFSET)) ** 2 : (image[j] - decoded[j]) ** 2;
  const errors = blurred(overChannels(image.length, count, error), size, smooth);
  const bright = overChannels(image.length, count, (j) => decoded[j]);
  const values = kind === "gradient" ? blurred(gradients(bright, size), size, smooth) : bright;
  const all = /** @type {Classes} */ (contrast ? statistics.kinds.contrast : statistics.kinds.pixel).std;
  const least = Math.max(LEAST_SHARE * Math.sqrt(all.reduce((sum, each) => sum + each * each, 0) / all.length), 1e-12);
  return errors.map((value, pixel) => {
    const row = classOf(edges, values[pixel]);
    const place = contrast ? row * (distances.length + 1) + classOf(distances, fromBorder(pixel, size)) : row;
    const number = kind === "pixel" ? pixel : place;
    return (value - mean[number]) / Math.max(std[number], least);
  });
}

/**
 * Return the scores `map`, the mean of the highest hundredth of a map's numbers, and `peak`, the highest.
 *
 * @param {Float32Array} map
 * @returns {{map: number, peak: number}}
 */
export function scoresOfMap(map) {
  const highest = map
    .slice()
    .sort()
    .reverse()
    .subarray(0, Math.max(1, roundHalfToEven(TOP_SHARE * map.length)));
  return { map: highest.reduce((sum, value) => sum + value, 0) / highest.length, peak: highest[0] };
}

/**
 * @param {string} path
 * @param {Record<string, Numbers>} arrays
 * @param {string} name
 * @returns {Float32Array}
 */
function floats(path, arrays, name) {
  const found = arrays[name]?.data;
  const numbers = found === undefined ? [] : Float32Array.from(found, Number);
  if (!(numbers instanceof Float32Array) || !numbers.every((value) => value >= 0 && value < Infinity)) {
    throw new BundleError(`${path} is damaged: ${name} is missing, not finite, or negative`);
  }
  return numbers;
}

/**
 * Average what is computed of each element over the channels.
 *
 * @param {number} length
 * @param {number} count pixels
 * @param {(element: number) => number} of
 * @returns {Float32Array}
 */
function overChannels(length, count, of) {
  const channels = length / count;
  const out = new Float32Array(count);
  for (let j = 0; j < length; j++) out[j % count] += of(j) / channels;
  return out;
}

/**
 * Blur a map with a Gaussian, mirrored at the edges. Below a tenth of a pixel, nothing is blurred.
 *
 * @param {Float32Array} map
 * @param {readonly [number, number]} size
 * @param {number} smooth
 * @returns {Float32Array}
 */
function blurred(map, [height, width], smooth) {
  if (smooth < NARROWEST) return map;
  const reach = Math.ceil(WIDTH * smooth);
  const kernel = Array.from({ length: 2 * reach + 1 }, (_, i) => Math.exp(-0.5 * ((i - reach) / smooth) ** 2));
  const total = kernel.reduce((sum, weight) => sum + weight, 0);
  /** @type {(source: Float32Array, length: number, step: number, other: number, across: number) => Float32Array} */
  const along = (source, length, step, other, across) => {
    const out = new Float32Array(source.length);
    for (let line = 0; line < other; line++) {
      for (let place = 0; place < length; place++) {
        let sum = 0;
        for (let i = -reach; i <= reach; i++) {
          sum += (kernel[i + reach] / total) * source[line * across + mirrored(place + i, length) * step];
        }
        out[line * across + place * step] = sum;
      }
    }
    return out;
  };
  return along(along(map, height, width, width, 1), width, 1, height, width);
}

/**
 * Return the place that a place beyond an edge mirrors, the outermost one included.
 *
 * @param {number} place
 * @param {number} length
 * @returns {number}
 */
function mirrored(place, length) {
  const folded = ((place % (2 * length)) + 2 * length) % (2 * length);
  return folded < length ? folded : 2 * length - 1 - folded;
}

/**
 * Return the gradient's length at each pixel: central differences, one-sided at the edges.
 *
 * @param {Float32Array} grey
 * @param {readonly [number, number]} size
 * @returns {Float32Array}
 */
function gradients(grey, [height, width]) {
  /** @type {(pixel: number, place: number, length: number, step: number) => number} */
  const difference = (pixel, place, length, step) => {
    if (length === 1) return 0;
    const before = place === 0 ? 0 : 1;
    const after = place === length - 1 ? 0 : 1;
    return (grey[pixel + after * step] - grey[pixel - before * step]) / (before + after);
  };
  return grey.map((_, pixel) => {
    const [row, column] = [Math.floor(pixel / width), pixel % width];
    return Math.hypot(difference(pixel, row, height, width), difference(pixel, column, width, 1));
  });
}

/**
 * Return how many edges are not greater than a value.
 *
 * @param {Float32Array} edges increasing
 * @param {number} value
 * @returns {number}
 */
function classOf(edges, value) {
  let [low, high] = [0, edges.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (edges[middle] <= value) low = middle + 1;
    else high = middle;
  }
  return low;
}

/**
 * @param {number} pixel
 * @param {readonly [number, number]} size
 * @returns {number}
 */
function fromBorder(pixel, [height, width]) {
  const [row, column] = [Math.floor(pixel / width), pixel % width];
  return Math.min(row, height - 1 - row, column, width - 1 - column);
}
