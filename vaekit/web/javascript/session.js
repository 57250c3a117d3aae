/**
 * Open a graph with ONNX Runtime, on a provider that really runs it.
 *
 * @module
 */

import { sizeOf } from "./arrays.js";
import { ProviderError, reasonOf } from "./errors.js";

/** @import { Floats, GraphName, OnnxRuntime, ProviderClass, Session } from "./types.js" */

/** The processor, under its names in onnxruntime-web and onnxruntime-node. */
const PROCESSOR = ["wasm", "cpu", "xnnpack"];
const REDUCED = ["webnn", "coreml", "qnn", "nnapi", "webgl"];

/**
 * A graph that is open, and proven to run.
 *
 * @typedef {object} Graph
 * @property {GraphName} name
 * @property {string} provider
 * @property {string[]} fellBack why other providers do not run it
 * @property {(feeds: Record<string, Floats>, outputs: readonly string[]) => Promise<Floats[]>} run
 * @property {() => Promise<void>} release
 */

/**
 * Return the class whose tolerances hold for a provider.
 *
 * @param {string} provider
 * @returns {ProviderClass}
 */
export function providerClass(provider) {
  if (PROCESSOR.includes(provider)) return "cpu";
  return REDUCED.includes(provider) ? "reduced" : "accelerator";
}

/**
 * Open a graph on the first of these providers that runs all of it.
 *
 * Providers other than the processor may leave no node to the processor, so that the result's `provider` is true. Raises
 * ProviderError with each provider's reason if none runs it.
 *
 * @param {OnnxRuntime} ort
 * @param {GraphName} name
 * @param {Uint8Array} model
 * @param {{providers: readonly string[], threads: number}} options 0 threads are ONNX Runtime's default
 * @param {Record<string, Floats>} probe inputs that are run once
 * @param {readonly string[]} outputs
 * @returns {Promise<Graph>}
 */
export async function openGraph(ort, name, model, { providers, threads }, probe, outputs) {
  const fellBack = [];
  for (const provider of providers) {
    try {
      const session = await inTurn(ort, provider, () =>
        ort.InferenceSession.create(model, optionsOf(provider, threads)),
      );
      /** @type {Graph["run"]} */
      const run = (feeds, wanted) => inTurn(ort, provider, () => runSession(ort, session, feeds, wanted));
      await run(probe, outputs);
      return {
        name,
        provider,
        fellBack,
        run,
        release: () => session.release(),
      };
    } catch (error) {
      fellBack.push(`${provider} cannot run the ${name}: ${reasonOf(error).split("\n")[0]}`);
    }
  }
  throw new ProviderError(fellBack.join("; ") || "no provider was named");
}

/**
 * @param {string} provider
 * @param {number} threads
 * @returns {object}
 */
function optionsOf(provider, threads) {
  const strict = PROCESSOR.includes(provider) ? {} : { extra: { session: { disable_cpu_ep_fallback: "1" } } };
  return { executionProviders: [provider], logSeverityLevel: 3, intraOpNumThreads: threads, ...strict };
}

/**
 * @param {OnnxRuntime} ort
 * @param {Session} session
 * @param {Record<string, Floats>} feeds
 * @param {readonly string[]} outputs
 * @returns {Promise<Floats[]>}
 */
async function runSession(ort, session, feeds, outputs) {
  const tensors = Object.entries(feeds).map(([name, { data, shape }]) => [
    name,
    new ort.Tensor("float32", data, shape),
  ]);
  const results = await session.run(Object.fromEntries(tensors));
  return outputs.map((name) => {
    const { data, dims } = results[name];
    if (!(data instanceof Float32Array) || data.length !== sizeOf(dims)) {
      throw new ProviderError(`the output ${name} is not float32`);
    }
    return { data, shape: dims };
  });
}

/** The work that each ONNX Runtime does now. @type {WeakMap<OnnxRuntime, Promise<unknown>>} */
const turns = new WeakMap();

/**
 * Work when all earlier work is done: onnxruntime-web does one thing at a time, and fails if it is asked for two.
 *
 * @template T
 * @param {OnnxRuntime} ort
 * @param {string} provider
 * @param {() => Promise<T>} work
 * @returns {Promise<T>}
 */
function inTurn(ort, provider, work) {
  if (provider === "cpu") return work(); // onnxruntime-node, which can do several things at once
  const turn = (turns.get(ort) ?? Promise.resolve()).then(work, work);
  turns.set(
    ort,
    turn.catch(() => null),
  );
  return turn;
}
