/**
 * Draw latents from a learned prior by integrating its velocity, as `vaekit/maths/flow.py` does.
 *
 * @module
 */

const { fround } = Math;

/**
 * Carry noise (n, …) from t = 0 to t = 1 in steps of Heun's method, in float32.
 *
 * @param {(z: Float32Array, t: number) => Promise<Float32Array>} velocity
 * @param {Float32Array} noise
 * @param {number} steps
 * @returns {Promise<Float32Array>}
 */
export async function integrate(velocity, noise, steps) {
  const size = fround(1 / steps);
  let z = noise;
  for (let step = 0; step < steps; step++) {
    const here = await velocity(z, step / steps);
    const ahead = await velocity(
      z.map((value, j) => value + fround(size * here[j])),
      (step + 1) / steps,
    );
    z = z.map((value, j) => value + fround((size / 2) * fround(here[j] + ahead[j])));
  }
  return z;
}

/**
 * Return the velocity with guidance: free + guidance · (given − free).
 *
 * Source: Ho and Salimans, "Classifier-Free Diffusion Guidance", 2022, equation 6 with guidance = 1 + w.
 *
 * @param {Float32Array} given velocity with the label
 * @param {Float32Array} free velocity without one
 * @param {number} guidance
 * @returns {Float32Array}
 */
export function guided(given, free, guidance) {
  const weight = fround(guidance);
  return free.map((value, j) => value + fround(weight * fround(given[j] - value)));
}

/**
 * Return labels as a velocity takes them, (n, labels + 1): 1 in the column of the number, else 0.
 *
 * The last column is that of -1, no label.
 *
 * @param {ArrayLike<number>} numbers
 * @param {number} labels
 * @returns {Float32Array}
 */
export function oneHot(numbers, labels) {
  const out = new Float32Array(numbers.length * (labels + 1));
  for (let row = 0; row < numbers.length; row++) {
    out[row * (labels + 1) + (numbers[row] < 0 ? labels : numbers[row])] = 1;
  }
  return out;
}
