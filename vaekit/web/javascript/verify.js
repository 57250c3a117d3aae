/**
 * Check a device: run a bundle's golden vectors on it and compare with PyTorch's results.
 *
 * @module
 */

import { rows } from "./arrays.js";

/** @import { Tolerance } from "./manifest.js" */
/** @import { Floats } from "./types.js" */

/**
 * The difference of one output from PyTorch's. The graph runs on the whole batch and on single rows; the worse counts.
 *
 * @typedef {object} OutputCheck
 * @property {string} graph
 * @property {string} output
 * @property {boolean} passed whether |a − b| ≤ atol + rtol·|b| for every element
 * @property {number} maxAbs largest |a − b|; infinity if a result is not finite
 * @property {Tolerance} tolerance
 */

/**
 * @typedef {object} Verification
 * @property {boolean} passed
 * @property {string} provider
 * @property {OutputCheck[]} outputs
 */

/**
 * Run rows of a graph together and one by one, and compare each output with what is expected.
 *
 * @param {string} graph
 * @param {Record<string, Floats>} inputs
 * @param {Record<string, Floats>} expected by the names of outputs
 * @param {(inputs: Record<string, Floats>) => Promise<Floats[]>} run returns the outputs in the order of `expected`
 * @param {Tolerance} tolerance
 * @returns {Promise<OutputCheck[]>}
 */
export async function checkGraph(graph, inputs, expected, run, tolerance) {
  const names = Object.keys(expected);
  const count = Object.values(inputs)[0].shape[0];
  const checks = names.map((output) => ({ graph, output, passed: true, maxAbs: 0, tolerance }));
  for (const [first, last] of [[0, count], ...Array.from({ length: count }, (_, row) => [row, row + 1])]) {
    const part = Object.entries(inputs).map(([name, input]) => [name, rows(input, first, last)]);
    const results = await run(Object.fromEntries(part));
    names.forEach((name, number) => {
      const { passed, maxAbs } = compare(results[number].data, rows(expected[name], first, last).data, tolerance);
      checks[number].passed &&= passed;
      checks[number].maxAbs = Math.max(checks[number].maxAbs, maxAbs);
    });
  }
  return checks;
}

/**
 * @param {Float32Array} actual
 * @param {Float32Array} expected
 * @param {Tolerance} tolerance
 * @returns {{passed: boolean, maxAbs: number}}
 */
function compare(actual, expected, { atol, rtol }) {
  let passed = actual.length === expected.length;
  let maxAbs = passed ? 0 : Infinity;
  expected.forEach((value, j) => {
    const difference = Number.isFinite(actual[j]) ? Math.abs(actual[j] - value) : Infinity;
    passed &&= difference <= atol + rtol * Math.abs(value);
    maxAbs = Math.max(maxAbs, difference);
  });
  return { passed, maxAbs };
}
