/**
 * Labels and known factors in the latent space, as in `vaekit/maths/attributes.py`.
 *
 * @module
 */

/**
 * @typedef {object} Label
 * @property {string} name
 * @property {number} images
 * @property {number[]} mean (d,), mean of mu over its held-out images
 * @property {number[]} weights (d,), of the read-out
 * @property {number} bias
 */

/**
 * @typedef {object} Factor
 * @property {string} name
 * @property {number} period 0 if it has none
 * @property {number} mean
 * @property {number} std
 * @property {number[][]} directions (m, d), with m = 2 for a factor with a period, and else 1
 * @property {number[][]} weights (m, d)
 * @property {number[]} biases (m,)
 * @property {number} r2
 */

/**
 * @typedef {object} Attributes
 * @property {Label[]} labels
 * @property {Factor[]} factors
 * @property {number} accuracy
 */

/**
 * Return the names of the labels and then of the factors.
 *
 * @param {Attributes} attributes
 * @returns {string[]}
 */
export function namesOf(attributes) {
  return [...attributes.labels, ...attributes.factors].map((each) => each.name);
}

/**
 * Return how likely each label is by the read-out: numbers with the sum 1.
 *
 * @param {Attributes} attributes
 * @param {ArrayLike<number>} mu one latent (d,); average a map over its positions first
 * @returns {number[]}
 */
export function scores(attributes, mu) {
  const logits = attributes.labels.map((label) => dot(label.weights, mu) + label.bias);
  const largest = Math.max(...logits);
  const powers = logits.map((logit) => Math.exp(logit - largest));
  const sum = powers.reduce((total, power) => total + power, 0);
  return powers.map((power) => power / sum);
}

/**
 * Read a factor's value from mu (d,). With a period it is from 0 to below the period.
 *
 * @param {Factor} factor
 * @param {ArrayLike<number>} mu
 * @returns {number}
 */
export function valueOf(factor, mu) {
  const numbers = factor.weights.map((weights, k) => dot(weights, mu) + factor.biases[k]);
  if (!factor.period) return factor.mean + factor.std * numbers[0];
  const turns = Math.atan2(numbers[1], numbers[0]) / (2 * Math.PI);
  return factor.period * (turns - Math.floor(turns));
}

/**
 * Return how far one latent moves towards a label or along a factor for each share, (shares, d).
 *
 * For a label, a share of 1 is the label's mean minus the means of the labels that the latent has by the read-out. For a
 * factor it is one standard deviation, or the whole period.
 *
 * @param {Attributes} attributes
 * @param {string} name
 * @param {ArrayLike<number>} mu one latent (d,); average a map over its positions first
 * @param {number[]} shares
 * @returns {number[][]}
 */
export function moves(attributes, name, mu, shares) {
  const label = attributes.labels.find((each) => each.name === name);
  if (label) {
    const own = scores(attributes, mu);
    const away = attributes.labels.map((each, k) => each.mean.map((value) => own[k] * value));
    const direction = label.mean.map((value, j) => value - away.reduce((sum, each) => sum + each[j], 0));
    return shares.map((share) => direction.map((value) => share * value));
  }
  const factor = /** @type {Factor} */ (attributes.factors.find((each) => each.name === name));
  if (!factor.period) return shares.map((share) => factor.directions[0].map((value) => share * value));
  const start = (2 * Math.PI * valueOf(factor, mu)) / factor.period;
  return shares.map((share) => {
    const angle = start + 2 * Math.PI * share;
    const [cosine, sine] = [Math.cos(angle) - Math.cos(start), Math.sin(angle) - Math.sin(start)];
    return factor.directions[0].map((value, j) => cosine * value + sine * factor.directions[1][j]);
  });
}

/**
 * @param {ArrayLike<number>} a
 * @param {ArrayLike<number>} b
 * @returns {number}
 */
function dot(a, b) {
  let sum = 0;
  for (let j = 0; j < a.length; j++) sum += a[j] * b[j];
  return sum;
}
