/**
 * Draw latents from N(0, I) or a Gaussian mixture, with the same bits as `vaekit/maths/prior.py`.
 *
 * @module
 */

import { blockWords, normals, uniform, words } from "./noise.js";

/**
 * A Gaussian mixture over latents of d dimensions, with K components.
 *
 * @typedef {object} Mixture
 * @property {Float64Array} weights (K,), not negative, with sum 1
 * @property {Float64Array} means (K, d)
 * @property {Float64Array} cholesky (K, d, d), lower triangular factors L of the covariances L Lᵀ
 * @property {Int32Array | null} labels (K,), the number of each component's label, or -1
 */

/**
 * What chooses the samples: their seed, the number of the first one, and a factor of the standard deviations.
 *
 * @typedef {object} Draw
 * @property {number | bigint} seed
 * @property {number | bigint} start
 * @property {number} temperature
 */

const CHUNK = 1 << 16; // words drawn at a time; this does not affect the result

/**
 * Return the mixture of one label's components, or null if it has none.
 *
 * @param {Mixture} mixture
 * @param {number} label
 * @returns {Mixture | null}
 */
export function ofLabel(mixture, label) {
  const { labels } = mixture;
  if (labels === null) return null;
  const weight = mixture.weights.reduce((sum, each, k) => (labels[k] === label ? sum + each : sum), 0);
  if (weight === 0) return null;
  return { ...mixture, weights: mixture.weights.map((each, k) => (labels[k] === label ? each / weight : 0)) };
}

/**
 * Return whether no covariance is singular.
 *
 * @param {Mixture} mixture
 * @returns {boolean}
 */
export function hasDensity({ weights, means, cholesky }) {
  const d = means.length / weights.length;
  return cholesky.every((value, j) => (j % (d * d)) % (d + 1) !== 0 || value > 0);
}

/**
 * Compute ln p(z) of one latent (d,) under the mixture, in nats.
 *
 * @param {Mixture} mixture
 * @param {Float32Array} z
 * @returns {number}
 */
export function logDensity({ weights, means, cholesky }, z) {
  const d = z.length;
  const logs = Array.from(weights, (weight, c) => {
    let log = Math.log(weight) - 0.5 * d * Math.log(2 * Math.PI);
    const eps = new Float64Array(d); // L eps = z - mean, solved from the first row on
    for (let row = 0; row < d; row++) {
      let rest = z[row] - means[c * d + row];
      for (let column = 0; column < row; column++) rest -= cholesky[(c * d + row) * d + column] * eps[column];
      const diagonal = cholesky[(c * d + row) * d + row];
      eps[row] = rest / diagonal;
      log -= Math.log(diagonal) + 0.5 * eps[row] ** 2;
    }
    return log;
  });
  const largest = Math.max(...logs);
  return largest + Math.log(logs.reduce((sum, log) => sum + Math.exp(log - largest), 0));
}

/**
 * Draw samples from N(0, temperature² I), (count, dimensions).
 *
 * @param {number} dimensions
 * @param {number} count
 * @param {Draw} draw
 * @returns {Float32Array}
 */
export function drawNormal(dimensions, count, draw) {
  const out = new Float32Array(count * dimensions);
  const eps = new Float64Array(dimensions);
  for (const [sample, raw, first] of blocks(dimensions, count, draw)) {
    normals(raw, first, eps);
    for (let j = 0; j < dimensions; j++) out[sample * dimensions + j] = draw.temperature * eps[j];
  }
  return out;
}

/**
 * Draw samples from the mixture, (count, d).
 *
 * Sample k's last uniform chooses a component c in proportion to the weights. The sample is
 * mean_c + temperature · L_c eps, with the same eps as `drawNormal`.
 *
 * @param {Mixture} mixture
 * @param {number} count
 * @param {Draw} draw
 * @returns {Float32Array}
 */
export function drawMixture(mixture, count, draw) {
  const d = mixture.means.length / mixture.weights.length;
  const out = new Float32Array(count * d);
  const eps = new Float64Array(d);
  for (const [sample, raw, first] of blocks(d, count, draw)) {
    normals(raw, first, eps);
    const c = chosen(mixture.weights, uniform(raw, first + blockWords(d) - 1));
    for (let row = 0; row < d; row++) {
      let total = 0;
      for (let column = 0; column < d; column++) {
        total += mixture.cholesky[(c * d + row) * d + column] * (draw.temperature * eps[column]);
      }
      out[sample * d + row] = mixture.means[c * d + row] + total;
    }
  }
  return out;
}

/**
 * Draw numbers in proportion to weights (K,), with the uniforms that would choose a mixture's components, (count,).
 *
 * @param {Float64Array} weights
 * @param {number} dimensions of the samples' latents
 * @param {number} count
 * @param {Omit<Draw, "temperature">} draw
 * @returns {Int32Array}
 */
export function drawNumbers(weights, dimensions, count, draw) {
  const out = new Int32Array(count);
  for (const [sample, raw, first] of blocks(dimensions, count, draw)) {
    out[sample] = chosen(weights, uniform(raw, first + blockWords(dimensions) - 1));
  }
  return out;
}

/**
 * Yield each sample's number, words that hold its block, and the number of the block's first word among them.
 *
 * @param {number} dimensions
 * @param {number} count
 * @param {Omit<Draw, "temperature">} draw
 * @returns {Generator<[number, Uint32Array, number]>}
 */
function* blocks(dimensions, count, draw) {
  const width = blockWords(dimensions);
  const step = Math.max(1, Math.floor(CHUNK / width));
  for (let first = 0; first < count; first += step) {
    const rows = Math.min(step, count - first);
    const raw = words(draw.seed, BigInt(draw.start) + BigInt(first), rows, width);
    for (let row = 0; row < rows; row++) yield [first + row, raw, row * width];
  }
}

/**
 * Return the first number whose cumulative weight exceeds a uniform.
 *
 * @param {Float64Array} weights
 * @param {number} value
 * @returns {number}
 */
function chosen(weights, value) {
  let sum = 0;
  for (let k = 0; k < weights.length; k++) {
    sum += weights[k];
    if (sum > value) return k;
  }
  return weights.length - 1;
}
