/**
 * The ELBO's terms in nats per image, as in `vaekit/maths/elbo.py`. Sums are in double precision.
 *
 * @module
 */

import { standardNormal } from "./noise.js";

/**
 * p(x|z): `gaussian` or `laplace` with one standard deviation sigma for all pixels, `bernoulli`, or `none`.
 *
 * @typedef {object} Likelihood
 * @property {string} name
 * @property {number | null} sigma
 */

/**
 * Draw one z from each q(z|x) with a shared eps, sample 0 of the seed: (N · size,).
 *
 * @param {Float32Array} mu
 * @param {Float32Array} logvar
 * @param {number} size numbers in one latent
 * @param {number | bigint} seed
 * @returns {Float32Array}
 */
export function posteriorSample(mu, logvar, size, seed) {
  const eps = standardNormal(seed, 0, 1, size);
  return mu.map((mean, j) => mean + Math.exp(0.5 * logvar[j]) * eps[j % size]);
}

/**
 * Compute KL(N(mu, diag exp(logvar)) ‖ N(0, I)) of one latent.
 *
 * @param {Float32Array} mu
 * @param {Float32Array} logvar
 * @returns {number}
 */
export function klStandardNormal(mu, logvar) {
  let sum = 0;
  for (let j = 0; j < mu.length; j++) sum += 0.5 * (Math.exp(logvar[j]) + mu[j] * mu[j] - 1 - logvar[j]);
  return sum;
}

/**
 * Compute log p(x|z) of one image, given the decoder's output.
 *
 * @param {Float32Array} image
 * @param {Float32Array} mean
 * @param {Likelihood} likelihood not `none`
 * @returns {number}
 */
export function logLikelihood(image, mean, likelihood) {
  const { name, sigma } = likelihood;
  const count = image.length;
  let sum = 0;
  if (sigma === null) {
    for (let j = 0; j < count; j++) {
      const m = Math.min(1 - 1e-7, Math.max(1e-7, mean[j])); // a float32 sigmoid can round to 0 or 1
      sum += image[j] * Math.log(m) + (1 - image[j]) * Math.log1p(-m);
    }
    return sum;
  }
  if (name === "laplace") {
    const scale = sigma / Math.SQRT2;
    for (let j = 0; j < count; j++) sum += Math.abs(image[j] - mean[j]);
    return -count * Math.log(2 * scale) - sum / scale;
  }
  const variance = sigma ** 2;
  for (let j = 0; j < count; j++) sum += (image[j] - mean[j]) ** 2;
  return -0.5 * (count * Math.log(2 * Math.PI * variance) + sum / variance);
}
