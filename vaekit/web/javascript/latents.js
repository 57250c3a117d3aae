/**
 * Paths through the latent space, as in `vaekit/maths/latents.py`. Latents are flat arrays.
 *
 * @module
 */

import { linspace } from "./arrays.js";
import { UsageError } from "./errors.js";

const MODES = ["linear", "slerp"];
const PARALLEL = 1e-6; // radians; closer to 0 or pi than this, two directions count as parallel

/**
 * Interpolate between two latents, both ends included: (steps, length of a latent).
 *
 * `linear` follows a straight line. `slerp` follows the great circle between the two directions and interpolates the
 * length linearly (Shoemake, "Animating rotation with quaternion curves", SIGGRAPH 1985).
 *
 * @param {Float32Array} a
 * @param {Float32Array} b
 * @param {number} steps
 * @param {string} [mode]
 * @returns {Float32Array}
 */
export function interpolate(a, b, steps, mode = "linear") {
  if (steps < 2) throw new UsageError(`an interpolation includes both ends: it needs 2 steps or more, not ${steps}`);
  if (!MODES.includes(mode)) {
    throw new UsageError(`there is no interpolation mode '${mode}': choose one of ${MODES.join(", ")}`);
  }
  const [lengthA, lengthB] = [norm(a), norm(b)];
  const cosine = dot(a, b) / (lengthA * lengthB);
  const angle = lengthA * lengthB === 0 ? 0 : Math.acos(Math.min(1, Math.max(-1, cosine)));
  const onCircle = mode === "slerp" && angle > PARALLEL && angle < Math.PI - PARALLEL;
  const out = new Float32Array(steps * a.length);
  linspace(0, 1, steps).forEach((t, step) => {
    let [shareA, shareB] = [1 - t, t];
    if (onCircle) {
      const length = ((1 - t) * lengthA + t * lengthB) / Math.sin(angle);
      shareA = (length * Math.sin((1 - t) * angle)) / lengthA;
      shareB = (length * Math.sin(t * angle)) / lengthB;
    }
    for (let j = 0; j < a.length; j++) out[step * a.length + j] = shareA * a[j] + shareB * b[j];
  });
  return out;
}

/**
 * @param {Float32Array} a
 * @param {Float32Array} b
 * @returns {number}
 */
function dot(a, b) {
  return a.reduce((sum, value, j) => sum + value * b[j], 0);
}

/**
 * @param {Float32Array} a
 * @returns {number}
 */
function norm(a) {
  return Math.sqrt(dot(a, a));
}
