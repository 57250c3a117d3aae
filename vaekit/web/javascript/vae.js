/**
 * Run a bundle's graphs with ONNX Runtime: the class VAE of `vaekit/vae.py`, in JavaScript.
 *
 * @module
 */

import { asInteger, checkedRows, linspace, pooled, rows, sameShape, sizeOf, zeros } from "./arrays.js";
import { moves, namesOf } from "./attributes.js";
import { readArrays, readBundle, readGolden } from "./bundle.js";
import { klStandardNormal, logLikelihood, posteriorSample } from "./elbo.js";
import { UsageError } from "./errors.js";
import { guided, integrate, oneHot } from "./flow.js";
import { interpolate } from "./latents.js";
import {
  MOST_FLOW_STEPS,
  PROVIDER_CLASSES,
  atSize,
  encoderOutputs,
  latentSize,
  priorsOf,
  whyNoDensity,
  whyNoElbo,
} from "./manifest.js";
import { imagesOf } from "./picture.js";
import { drawMixture, drawNormal, drawNumbers, logDensity, ofLabel } from "./prior.js";
import { openGraph, providerClass } from "./session.js";
import { MAP_KINDS, scoresOfMap, statisticsOf, surprise } from "./surprise.js";
import { checkGraph } from "./verify.js";

/** @import { Attributes } from "./attributes.js" */
/** @import { Bundle } from "./bundle.js" */
/** @import { Source } from "./files.js" */
/** @import { FlowSpec, GraphSpec, Manifest, Tolerance } from "./manifest.js" */
/** @import { Picture } from "./picture.js" */
/** @import { Mixture } from "./prior.js" */
/** @import { Graph } from "./session.js" */
/** @import { MapKind, ResidualStatistics } from "./surprise.js" */
/** @import { Floats, GraphName, OnnxRuntime, PriorName } from "./types.js" */
/** @import { OutputCheck, Verification } from "./verify.js" */

const DEFAULT_BATCH_SIZE = 64;
const PIXELS_AT_ONCE = 1 << 22; // in all images of one batch, so that few large ones take no more memory than many small
const WIDEST_SPAN = 1e30; // standard deviations; a wider traversal would overflow float32
const NAMED_LABELS = 20; // in an error message, at most
const PRIORS = ["flow", "mixture", "normal"];
const ELBO_SCORES = ["elbo", "reconstruction", "kl"];
const MAP_SCORES = ["map", "peak"];
const SCORES = [...ELBO_SCORES, ...MAP_SCORES, "mahalanobis", "density"];

/**
 * How a bundle is run.
 *
 * @typedef {object} LoadOptions
 * @property {OnnxRuntime} ort the module `onnxruntime-web` or `onnxruntime-node`
 * @property {readonly string[]} [providers] ONNX Runtime's names of providers; the first that runs a whole graph is
 *   taken. By default the processor: `wasm`, or `cpu` in Node.js
 * @property {number} [batchSize] rows that a graph processes at a time
 * @property {number} [threads] threads that run the graphs in Node.js, by default one for each core; in a browser, set
 *   `ort.env.wasm.numThreads` instead, before anything is loaded
 */

/**
 * @typedef {object} SampleOptions
 * @property {number | bigint} [seed] from 0 to 2**64 - 1
 * @property {PriorName} [prior] by default the bundle's first
 * @property {number} [temperature] factor of the standard deviations
 * @property {number | bigint} [start] number of the first sample
 * @property {number} [priorSteps] steps in which the flow is integrated
 * @property {string} [label] class of the images
 * @property {number} [guidance] for the flow and a label
 */

/**
 * Load a bundle, and open its encoder and decoder on first use.
 *
 * Raises BundleError if a file is missing, altered, of a newer format or unsafe, and UsageError for wrong arguments.
 *
 * @param {Source} source address of a folder or .zip file (in Node.js also a path), or a .zip file's contents
 * @param {LoadOptions} options
 * @returns {Promise<VAE>}
 */
export async function load(source, options) {
  if (!options?.ort?.InferenceSession || !options.ort.Tensor) {
    throw new UsageError("load needs ONNX Runtime: load(bundle, {ort}), with `import * as ort from 'onnxruntime-web'`");
  }
  const batchSize = asInteger(options.batchSize ?? DEFAULT_BATCH_SIZE, "batch size");
  if (batchSize < 1) throw new UsageError(`the batch size must be 1 or more, not ${batchSize}`);
  const node = typeof document === "undefined" && inNode();
  const threads = asInteger(options.threads ?? 0, "number of threads"); // 0 is ONNX Runtime's word for its default
  if (options.threads !== undefined && threads < 1) throw new UsageError(`threads must be 1 or more, not ${threads}`);
  if (threads && !node) throw new UsageError("in a browser, set ort.env.wasm.numThreads instead of threads");
  const bundle = await readBundle(source);
  const providers = options.providers ?? [node ? "cpu" : "wasm"];
  return new VAE(bundle, bundle.manifest, { ort: options.ort, providers, batchSize, threads }, new Map());
}

/**
 * A variational auto-encoder in a bundle. `load` makes one.
 *
 * Images are float32 (N, C, H, W) in [0, 1], and latents float32 (N, d) or (N, c, h, w), as `{data, shape}`.
 */
export class VAE {
  /** @type {Map<GraphName, Promise<Graph>>} */
  #graphs;
  /** @type {Required<LoadOptions>} */
  #options;
  /** @type {ResidualStatistics | null} */
  #residuals = null;

  /**
   * @param {Bundle} bundle
   * @param {Manifest} manifest
   * @param {Required<LoadOptions>} options
   * @param {Map<GraphName, Promise<Graph>>} graphs
   */
  constructor(bundle, manifest, options, graphs) {
    this.bundle = bundle;
    this.manifest = manifest;
    this.#options = options;
    this.#graphs = graphs;
  }

  /**
   * Return the same model for images of another size, sharing its graphs.
   *
   * The bundle must have been exported with free sizes. Raises UsageError for a size that the model does not accept.
   *
   * @param {number} height
   * @param {number} width
   * @returns {VAE}
   */
  at(height, width) {
    const manifest = atSize(this.bundle.manifest, asInteger(height, "height"), asInteger(width, "width"));
    return new VAE(this.bundle, manifest, this.#options, this.#graphs);
  }

  /** Shape of one image, (C, H, W). @returns {[number, number, number]} */
  get imageShape() {
    const { channels, height, width } = this.manifest.image;
    return [channels, height, width];
  }

  /** Shape of one latent, (d,) or (c, h, w). @returns {readonly number[]} */
  get latentShape() {
    return this.manifest.latent.shape;
  }

  /** The priors that `sample` can draw from, the default first. @returns {PriorName[]} */
  get priors() {
    return priorsOf(this.manifest);
  }

  /** The classes that latents can be drawn of. @returns {readonly string[]} */
  get labels() {
    return this.manifest.labels;
  }

  /** The latent's dimensions, or a map's channels, most active first. @returns {number[]} */
  get dimensions() {
    const { kl, std } = this.manifest.latent;
    const activity = kl.length ? kl : std;
    return activity.map((_, j) => j).sort((a, b) => activity[b] - activity[a] || a - b);
  }

  /** The classes' and known factors' directions. Raises UsageError if the bundle has none. @returns {Attributes} */
  get attributes() {
    const { attributes } = this.manifest;
    if (attributes === null) {
      throw new UsageError(`${this.bundle.name} has no attributes: its held-out images had no classes`);
    }
    return attributes;
  }

  /**
   * Make images of pictures by the bundle's rule: over white, grey or RGB, resized to cover, cropped at the centre.
   *
   * @param {readonly Picture[]} pictures with 8 bits a channel
   * @returns {Floats}
   */
  imagesOf(pictures) {
    return imagesOf(pictures, ...this.imageShape);
  }

  /**
   * Return mu and logvar of q(z|x); logvar is null for a deterministic encoder.
   *
   * Raises UsageError unless images are finite floats (N, C, H, W) in [0, 1].
   *
   * @param {Floats} images
   * @returns {Promise<{mu: Floats, logvar: Floats | null}>}
   */
  async encode(images) {
    const checked = this.#padded(this.#checkedImages(images));
    const names = encoderOutputs(this.manifest);
    const shape = [checked.shape[0], ...this.latentShape];
    const outputs = names.map(() => zeros(shape));
    await this.#inBatches(checked.shape[0], async (first, last) => {
      const found = await (await this.graph("encoder")).run({ image: rows(checked, first, last) }, names);
      outputs.forEach((output, number) => rows(output, first, last).data.set(found[number].data));
    });
    return { mu: outputs[0], logvar: outputs[1] ?? null };
  }

  /**
   * Return the mean of p(x|z) as images, (N, C, H, W). Raises UsageError unless z holds finite floats of its shape.
   *
   * @param {Floats} z
   * @returns {Promise<Floats>}
   */
  async decode(z) {
    const checked = this.#checkedLatents(z);
    const shape = [checked.shape[0], ...this.imageShape];
    let images = zeros([0]);
    await this.#inBatches(checked.shape[0], async (first, last) => {
      const [decoded] = await (await this.graph("decoder")).run({ z: rows(checked, first, last) }, ["image"]);
      if (sameShape(decoded.shape, shape)) {
        images = decoded; // all of them, and nothing to crop
        return;
      }
      if (first === 0) images = zeros(shape);
      copyCropped(decoded, rows(images, first, last));
    });
    return { data: images.data, shape };
  }

  /**
   * Encode images and decode their mu.
   *
   * @param {Floats} images
   * @returns {Promise<Floats>}
   */
  async reconstruct(images) {
    return this.decode((await this.encode(images)).mu);
  }

  /**
   * Draw n images from the prior. Image k of a seed does not depend on n.
   *
   * @param {number} [n]
   * @param {SampleOptions} [options]
   * @returns {Promise<Floats>}
   */
  async sample(n = 1, options = {}) {
    return this.decode(await this.sampleLatents(n, options));
  }

  /**
   * Draw latents `start` to `start + n - 1` of a seed from the prior.
   *
   * From the mixture and N(0, I) they have the same bits as in Python, and so has the start of the flow.
   *
   * @param {number} [n]
   * @param {SampleOptions} [options]
   * @returns {Promise<Floats>}
   */
  async sampleLatents(n = 1, options = {}) {
    const { seed = 0, temperature = 1, start = 0, priorSteps, label, guidance = 1 } = options;
    const prior = options.prior ?? this.priors[0];
    this.#checkSampling(n, { seed, temperature, start, priorSteps, label, guidance, prior });
    const { flow, mixture } = this.manifest;
    const number = label === undefined ? null : this.labels.indexOf(label);
    const draw = { seed, start, temperature };
    const shape = [n, ...this.latentShape];
    const fromMixture = prior === "mixture" || (prior === "flow" && flow?.start === "mixture");
    const chosen = fromMixture && mixture && number !== null ? ofLabel(mixture, number) : mixture;
    const data = fromMixture && chosen ? drawMixture(chosen, n, draw) : drawNormal(latentSize(this.manifest), n, draw);
    if (prior !== "flow" || flow === null) return { data, shape };
    const labels = this.#labelNumbers(n, seed, start, number);
    return this.#flowed({ data, shape }, flow, priorSteps ?? flow.steps, labels, guidance);
  }

  /**
   * Decode latents on a path from a to b, both included: (steps, C, H, W).
   *
   * Each of a and b is an image (C, H, W), which is encoded, or a latent; `latents` says which, where shapes do not.
   *
   * @param {Floats} a
   * @param {Floats} b
   * @param {{steps?: number, mode?: "linear" | "slerp", latents?: boolean}} [options]
   * @returns {Promise<Floats>}
   */
  async interpolate(a, b, { steps = 8, mode = "linear", latents } = {}) {
    const count = asInteger(steps, "number of steps");
    const [start, end] = [await this.#asLatent(a, latents), await this.#asLatent(b, latents)];
    return this.decode({ data: interpolate(start, end, count, mode), shape: [count, ...this.latentShape] });
  }

  /**
   * Vary each latent dimension in turn, (dimensions, steps, C, H, W), as Python's `VAE.traverse` does.
   *
   * `base` is an image, which is encoded, or a latent; by default it is sample 0 of `seed`. A dimension of a vector
   * covers its mean ± span · max(std, 1); a map's channel is shifted by as much at all positions, or only `at` one.
   *
   * @param {{base?: Floats, dimensions?: readonly number[], steps?: number, span?: number, seed?: number | bigint,
   *   latents?: boolean, at?: readonly [number, number]}} [options]
   * @returns {Promise<Floats>}
   */
  async traverse({ base, dimensions, steps = 9, span = 2.5, seed = 0, latents, at } = {}) {
    const chosen = dimensions ?? this.dimensions;
    const d = this.latentShape[0];
    if (!chosen.length || chosen.some((j) => !(Number.isInteger(j) && j >= 0 && j < d))) {
      throw new UsageError(`the latent's dimensions are 0 to ${d - 1}, not ${chosen.join(", ") || "none"}`);
    }
    if (asInteger(steps, "number of steps") < 2 || !(span > 0 && span < WIDEST_SPAN)) {
      throw new UsageError(`a traversal needs 2 steps or more and a positive span, not ${steps} and ${span}`);
    }
    const place = at === undefined ? null : this.#asPosition(at);
    const latent = base ? await this.#asLatent(base, latents) : (await this.sampleLatents(1, { seed })).data;
    const moved = chosen.flatMap((j) =>
      this.traversedValues(j, steps, span).map((value) => this.#moved(latent, j, value, place)),
    );
    const decoded = await this.decode(stacked(moved, this.latentShape));
    return { data: decoded.data, shape: [chosen.length, steps, ...this.imageShape] };
  }

  /**
   * Return the values that `traverse` uses for a dimension. A vector's is set to them; they are added to a map's channel.
   *
   * @param {number} dimension
   * @param {number} steps
   * @param {number} span
   * @returns {number[]}
   */
  traversedValues(dimension, steps, span) {
    const { mean, std } = this.manifest.latent;
    const middle = this.latentShape.length > 1 ? 0 : mean[dimension];
    const reach = span * Math.max(std[dimension], 1);
    return linspace(middle - reach, middle + reach, steps);
  }

  /**
   * Move an image or latent towards each label or along each factor, (labels, steps, C, H, W), as Python's `VAE.toward`.
   *
   * @param {Floats} base
   * @param {readonly string[]} labels
   * @param {{steps?: number, strength?: number, latents?: boolean}} [options]
   * @returns {Promise<Floats>}
   */
  async toward(base, labels, { steps = 9, strength = 1, latents } = {}) {
    const { attributes } = this;
    if (asInteger(steps, "number of steps") < 2 || !(Math.abs(strength) > 0 && Math.abs(strength) < WIDEST_SPAN)) {
      throw new UsageError(`moving needs 2 steps or more and a strength that is not 0, not ${steps} and ${strength}`);
    }
    if (!labels.length) throw new UsageError("moving needs one label or more");
    for (const label of labels) this.#checkName(label, namesOf(attributes));
    const latent = await this.#asLatent(base, latents);
    const shares = linspace(0, strength, steps);
    const places = sizeOf(this.latentShape.slice(1));
    const moved = labels.flatMap((label) =>
      moves(attributes, label, pooled(latent, this.latentShape), shares).map((move) =>
        latent.map((value, j) => value + move[Math.floor(j / places)]),
      ),
    );
    const decoded = await this.decode(stacked(moved, this.latentShape));
    return { data: decoded.data, shape: [labels.length, steps, ...this.imageShape] };
  }

  /**
   * Compute each image's E_q log p(x|z), by one draw, and KL(q ‖ N(0, I)), both in nats.
   *
   * All images share one eps, sample 0 of the seed. Raises UsageError if the bundle has no ELBO.
   *
   * @param {Floats} images
   * @param {{seed?: number | bigint}} [options]
   * @returns {Promise<{reconstruction: Float64Array, kl: Float64Array}>}
   */
  async elboTerms(images, { seed = 0 } = {}) {
    this.#checkElbo();
    const { mu, logvar } = await this.encode(images);
    const variance = /** @type {Floats} */ (logvar);
    const z = posteriorSample(mu.data, variance.data, latentSize(this.manifest), seed);
    const decoded = await this.decode({ data: z, shape: mu.shape });
    const row = (/** @type {Floats} */ array, /** @type {number} */ n) => rows(array, n, n + 1).data;
    const n = images.shape[0];
    const { likelihood } = this.manifest;
    return {
      reconstruction: Float64Array.from({ length: n }, (_, k) =>
        logLikelihood(row(images, k), row(decoded, k), likelihood),
      ),
      kl: Float64Array.from({ length: n }, (_, k) => klStandardNormal(row(mu, k), row(variance, k))),
    };
  }

  /**
   * Compute a score of each image; the higher it is, the less usual is the image. `by` is as in Python's `VAE.score`.
   *
   * @param {Floats} images
   * @param {{seed?: number | bigint, by?: string, mapBy?: MapKind}} [options]
   * @returns {Promise<Float64Array>}
   */
  async score(images, { seed = 0, by = "elbo", mapBy } = {}) {
    if (!SCORES.includes(by)) throw new UsageError(`there is no score '${by}': choose one of ${SCORES.join(", ")}`);
    if (by === "mahalanobis") return this.#mahalanobis((await this.encode(images)).mu);
    if (by === "density") return this.#density(images);
    if (by === "map" || by === "peak") {
      const maps = await this.scoreMap(images, { by: mapBy });
      return Float64Array.from({ length: maps.shape[0] }, (_, k) => scoresOfMap(rows(maps, k, k + 1).data)[by]);
    }
    const { reconstruction, kl } = await this.elboTerms(images, { seed });
    if (by === "kl") return kl;
    return reconstruction.map((value, k) => (by === "elbo" ? kl[k] - value : -value));
  }

  /**
   * Return where images differ from their reconstructions more than is usual, (N, H, W), in standard deviations.
   *
   * `by` is as in Python's `VAE.score_map`. Raises UsageError for a bundle without statistics of residuals.
   *
   * @param {Floats} images
   * @param {{by?: MapKind}} [options]
   * @returns {Promise<Floats>}
   */
  async scoreMap(images, { by } = {}) {
    const [statistics, kind] = await this.#residualStatistics(by);
    const decoded = await this.reconstruct(images);
    const [, height, width] = this.imageShape;
    const maps = zeros([images.shape[0], height, width]);
    for (let k = 0; k < images.shape[0]; k++) {
      const [image, other] = [rows(images, k, k + 1).data, rows(decoded, k, k + 1).data];
      rows(maps, k, k + 1).data.set(surprise(image, other, [height, width], statistics, kind));
    }
    return maps;
  }

  /**
   * Replay the golden vectors on the providers that run the graphs, and compare with PyTorch's results.
   *
   * @returns {Promise<Verification>}
   */
  async verify() {
    const own = this.at(this.bundle.manifest.image.height, this.bundle.manifest.image.width);
    const golden = await readGolden(this.bundle);
    const { image, z, decoded, velocity, flow_z: flowZ, flow_t: t, flow_label: label, ...codes } = golden;
    const outputs = [
      ...(await own.#replay("encoder", { image }, codes)),
      ...(await own.#replay("decoder", { z }, { image: decoded })),
    ];
    if (velocity) outputs.push(...(await own.#replay("prior", { z: flowZ, t, ...(label && { label }) }, { velocity })));
    const graphs = await Promise.all(this.#graphs.values());
    const providers = new Set(graphs.map((graph) => graph.provider));
    return { passed: outputs.every((output) => output.passed), provider: [...providers].join(" and "), outputs };
  }

  /**
   * Return the open graph, which says what provider runs it. Raises ProviderError if none does.
   *
   * @param {GraphName} name
   * @returns {Promise<Graph>}
   */
  graph(name) {
    let opening = this.#graphs.get(name);
    if (opening === undefined) {
      const { file, outputs } = /** @type {GraphSpec} */ (this.manifest.graphs.get(name));
      const model = /** @type {Uint8Array} */ (this.bundle.files.get(file));
      const { ort, providers, threads } = this.#options;
      opening = openGraph(
        ort,
        name,
        model,
        { providers, threads },
        this.#probe(name),
        outputs.map((output) => output.name),
      );
      this.#graphs.set(name, opening);
      opening.catch(() => this.#graphs.delete(name)); // so that a later call tries again
    }
    return opening;
  }

  /** Free the graphs' memory. Using the model afterwards opens them again. */
  async release() {
    const graphs = [...this.#graphs.values()];
    this.#graphs.clear();
    for (const opening of graphs) await (await opening).release();
  }

  /**
   * @param {number} n
   * @param {{seed: number | bigint, temperature: number, start: number | bigint, priorSteps?: number, label?: string,
   *   guidance: number, prior: PriorName}} options
   */
  #checkSampling(n, { temperature, start, priorSteps, label, guidance, prior }) {
    const { name } = this.bundle;
    if (asInteger(n, "number of samples") < 1)
      throw new UsageError(`the number of samples must be 1 or more, not ${n}`);
    if (!(typeof start === "bigint" || Number.isSafeInteger(start)) || start < 0) {
      throw new UsageError(`the start must be 0 or more, not ${start}`);
    }
    if (!(temperature >= 0 && temperature < Infinity)) {
      throw new UsageError(`the temperature must be 0 or more, not ${temperature}`);
    }
    if (!PRIORS.includes(prior)) {
      throw new UsageError(`there is no prior '${prior}': choose one of ${this.priors.join(", ")}`);
    }
    if (priorSteps !== undefined && prior !== "flow") {
      throw new UsageError(`steps belong to the flow, and not to the prior ${prior}`);
    }
    if (!this.priors.includes(prior)) {
      throw new UsageError(`${name} has no ${prior} prior: choose one of ${this.priors.join(", ")}`);
    }
    if (label !== undefined) this.#checkLabel(label, prior);
    if (!Number.isFinite(guidance)) throw new UsageError(`the guidance must be a finite number, not ${guidance}`);
    if (guidance !== 1 && (prior !== "flow" || label === undefined)) {
      throw new UsageError("guidance needs the flow and a label");
    }
    if (priorSteps !== undefined) {
      const steps = asInteger(priorSteps, "number of steps");
      if (steps < 1 || steps > MOST_FLOW_STEPS) {
        throw new UsageError(`a flow is integrated in 1 to ${MOST_FLOW_STEPS} steps, not ${steps}`);
      }
    }
  }

  /**
   * @param {string} label
   * @param {PriorName} prior
   */
  #checkLabel(label, prior) {
    const { flow, mixture } = this.manifest;
    if (!this.labels.length) {
      throw new UsageError(`${this.bundle.name} has no labels: its images had no classes, or its priors know none`);
    }
    this.#checkName(label, this.labels);
    const inMixture = mixture !== null && ofLabel(mixture, this.labels.indexOf(label)) !== null;
    const known = {
      flow: flow?.labelWeights != null && (flow.start === "normal" || inMixture),
      mixture: inMixture,
      normal: false,
    };
    if (known[prior]) return;
    const able = this.priors.filter((name) => known[name]);
    const advice = able.length ? `: use the prior ${able.join(" or ")}` : "";
    throw new UsageError(`the ${prior} prior does not know the label ${label}${advice}`);
  }

  /**
   * @param {string} label
   * @param {readonly string[]} names
   */
  #checkName(label, names) {
    if (names.includes(label)) return;
    const distances = names.map((name) => editDistance(String(label), name));
    const nearest = names[distances.indexOf(Math.min(...distances))];
    const more = names.length - NAMED_LABELS;
    const known = names.slice(0, NAMED_LABELS).join(", ") + (more > 0 ? ` and ${more} more` : "");
    throw new UsageError(
      `${this.bundle.name} has no label '${label}'. The nearest is '${nearest}'; there are ${known}`,
    );
  }

  /**
   * Return the numbers of samples' labels for the flow, or null if it knows none.
   *
   * @param {number} n
   * @param {number | bigint} seed
   * @param {number | bigint} start
   * @param {number | null} number of the label that was asked for
   * @returns {Int32Array | null}
   */
  #labelNumbers(n, seed, start, number) {
    const { flow, mixture } = this.manifest;
    if (flow === null || flow.labelWeights === null) return null;
    if (number !== null) return new Int32Array(n).fill(number);
    const size = latentSize(this.manifest);
    const labels = flow.start === "mixture" ? mixture?.labels : null;
    if (!mixture || !labels) return drawNumbers(flow.labelWeights, size, n, { seed, start });
    return drawNumbers(mixture.weights, size, n, { seed, start }).map((component) => labels[component]);
  }

  /**
   * Carry draws of the flow's start to latents along its velocity.
   *
   * @param {Floats} drawn
   * @param {FlowSpec} flow
   * @param {number} steps
   * @param {Int32Array | null} labels
   * @param {number} guidance
   * @returns {Promise<Floats>}
   */
  async #flowed(drawn, flow, steps, labels, guidance) {
    const places = sizeOf(drawn.shape.slice(2));
    const [mean, std] = [flow.mean, flow.std].map((numbers) => Float32Array.from(numbers));
    const channel = (/** @type {number} */ j) => Math.floor(j / places) % mean.length;
    const begin = (/** @type {number} */ value, /** @type {number} */ j) =>
      Math.fround(value - mean[channel(j)]) / std[channel(j)];
    const noise = flow.start === "mixture" ? drawn.data.map(begin) : drawn.data;
    const latents = zeros(drawn.shape);
    await this.#inBatches(drawn.shape[0], async (first, last) => {
      const part = rows({ data: noise, shape: drawn.shape }, first, last);
      const velocity = this.#velocity(part.shape, labels && labels.subarray(first, last), guidance);
      const z = await integrate(velocity, part.data, steps);
      rows(latents, first, last).data.set(z.map((value, j) => mean[channel(j)] + Math.fround(std[channel(j)] * value)));
    });
    return latents;
  }

  /**
   * Return the velocity of rows, with guidance.
   *
   * @param {readonly number[]} shape of z
   * @param {Int32Array | null} labels
   * @param {number} guidance
   * @returns {(z: Float32Array, t: number) => Promise<Float32Array>}
   */
  #velocity(shape, labels, guidance) {
    const n = shape[0];
    const columns = this.labels.length + 1;
    /** @type {(z: Float32Array, t: number, numbers: ArrayLike<number> | null) => Promise<Float32Array>} */
    const run = async (z, t, numbers) => {
      const inputs = { z: { data: z, shape }, t: { data: new Float32Array(n).fill(t), shape: [n] } };
      const label = numbers && { label: { data: oneHot(numbers, columns - 1), shape: [n, columns] } };
      const [velocity] = await (await this.graph("prior")).run({ ...inputs, ...label }, ["velocity"]);
      return velocity.data;
    };
    if (labels === null || guidance === 1) return (z, t) => run(z, t, labels);
    const none = new Int32Array(n).fill(-1);
    return async (z, t) => guided(await run(z, t, labels), await run(z, t, none), guidance);
  }

  /**
   * @param {Floats} mu
   * @returns {Float64Array}
   */
  #mahalanobis(mu) {
    const { mean, std } = this.manifest.latent;
    const places = sizeOf(this.latentShape.slice(1));
    return Float64Array.from({ length: mu.shape[0] }, (_, k) => {
      const squares = Array.from(rows(mu, k, k + 1).data, (value, j) => {
        const channel = Math.floor(j / places);
        return std[channel] > 0 ? ((value - mean[channel]) / std[channel]) ** 2 : 0;
      });
      return Math.sqrt(squares.reduce((sum, square) => sum + square, 0) / places);
    });
  }

  /**
   * @param {Floats} images
   * @returns {Promise<Float64Array>}
   */
  async #density(images) {
    const reason = whyNoDensity(this.manifest);
    if (reason !== null) throw new UsageError(`${this.bundle.name} cannot score images by density: ${reason}`);
    const mixture = /** @type {Mixture} */ (this.manifest.mixture);
    const { mu } = await this.encode(images);
    return Float64Array.from({ length: mu.shape[0] }, (_, k) => -logDensity(mixture, rows(mu, k, k + 1).data));
  }

  /**
   * @param {MapKind | undefined} by
   * @returns {Promise<[ResidualStatistics, MapKind]>}
   */
  async #residualStatistics(by) {
    const { name, manifest } = this.bundle;
    if (by !== undefined && !MAP_KINDS.includes(by)) {
      throw new UsageError(`there is no map by '${by}': choose one of ${MAP_KINDS.join(", ")}`);
    }
    if (manifest.residuals === null) {
      throw new UsageError(
        `${name} has no statistics of residuals, without which nothing is surprising: export it again`,
      );
    }
    const { file } = manifest.residuals;
    this.#residuals ??= statisticsOf(`${name}/${file}`, await readArrays(this.bundle, file));
    const statistics = this.#residuals;
    const free = statistics.kinds.contrast ? "contrast" : "gradient";
    const kind = by ?? (manifest.image.multipleOf === null ? "pixel" : free);
    if (kind === "pixel" && !sameShape(statistics.size, this.imageShape.slice(1))) {
      throw new UsageError("a map by pixel needs images of the bundle's own size: take the map by contrast");
    }
    if (!statistics.kinds[kind]) {
      throw new UsageError(`${name} has no statistics of residuals by ${kind}: export it again`);
    }
    return [statistics, kind];
  }

  #checkElbo() {
    const reason = whyNoElbo(this.manifest);
    if (reason !== null) throw new UsageError(`${this.bundle.name} cannot score images: ${reason}`);
  }

  /**
   * @param {GraphName} name
   * @param {Record<string, Floats>} inputs
   * @param {Record<string, Floats>} expected
   * @returns {Promise<OutputCheck[]>}
   */
  async #replay(name, inputs, expected) {
    const graph = await this.graph(name);
    const { precision } = /** @type {GraphSpec} */ (this.manifest.graphs.get(name));
    const kinds = /** @type {Record<string, Tolerance>} */ (this.manifest.tolerances.get(precision));
    const kind = PROVIDER_CLASSES.find((each) => each === providerClass(graph.provider));
    const outputs = Object.keys(expected);
    return checkGraph(name, inputs, expected, (part) => graph.run(part, outputs), kinds[kind ?? "reduced"]);
  }

  /**
   * @param {Floats} images (N, C, H, W)
   * @returns {Floats} padded by reflection to the next multiple, at the bottom and on the right
   */
  #padded(images) {
    const [, height, width] = this.imageShape;
    const step = this.manifest.image.multipleOf ?? 1;
    const [newHeight, newWidth] = [height, width].map((side) => Math.ceil(side / step) * step);
    if (newHeight === height && newWidth === width) return images;
    const planes = images.shape[0] * images.shape[1];
    const padded = zeros([images.shape[0], images.shape[1], newHeight, newWidth]);
    let at = 0;
    for (let plane = 0; plane < planes; plane++) {
      for (let row = 0; row < newHeight; row++) {
        const line = (plane * height + reflected(row, height)) * width;
        for (let column = 0; column < newWidth; column++)
          padded.data[at++] = images.data[line + reflected(column, width)];
      }
    }
    return padded;
  }

  /**
   * @param {GraphName} name
   * @returns {Record<string, Floats>}
   */
  #probe(name) {
    const { image, latent, flow } = this.bundle.manifest;
    const size = [1, image.channels, image.height, image.width];
    if (name === "encoder") return { image: { data: zeros(size).data.fill(0.5), shape: size } };
    const z = { z: zeros([1, ...latent.shape]) };
    if (name === "decoder") return z;
    const columns = flow?.labelWeights?.length;
    const label = columns && { label: { data: oneHot([-1], columns - 1), shape: [1, columns] } };
    return { ...z, t: zeros([1]), ...label };
  }

  /**
   * @param {number} count
   * @param {(first: number, last: number) => Promise<void>} work
   */
  async #inBatches(count, work) {
    const [, height, width] = this.imageShape;
    const step = Math.min(this.#options.batchSize, Math.max(1, Math.floor(PIXELS_AT_ONCE / (height * width))));
    for (let first = 0; first < count; first += step) await work(first, Math.min(count, first + step));
  }

  /**
   * Return a copy of a latent with one dimension set to a value, or one channel of a map shifted by it.
   *
   * @param {Float32Array} latent
   * @param {number} j
   * @param {number} value
   * @param {number | null} place position of a map, or null for all
   * @returns {Float32Array}
   */
  #moved(latent, j, value, place) {
    const moved = latent.slice();
    if (this.latentShape.length === 1) {
      moved[j] = value;
      return moved;
    }
    const places = sizeOf(this.latentShape.slice(1));
    const shift = Math.fround(value);
    for (let p = 0; p < places; p++) if (place === null || p === place) moved[j * places + p] += shift;
    return moved;
  }

  /**
   * @param {readonly [number, number]} at
   * @returns {number}
   */
  #asPosition([row, column]) {
    if (this.latentShape.length === 1) {
      throw new UsageError(`the latents of ${this.bundle.name} are vectors, which have no positions`);
    }
    const [, height, width] = this.latentShape;
    if (!(row >= 0 && row < height && column >= 0 && column < width && [row, column].every(Number.isInteger))) {
      throw new UsageError(
        `the positions of a latent are 0,0 to ${height - 1},${width - 1} (row, column) at this size, not ${row},${column}`,
      );
    }
    return row * width + column;
  }

  /**
   * Encode an image (C, H, W) to mu, or return a latent. If `isLatent` is undefined, the shape decides.
   *
   * @param {Floats} value
   * @param {boolean | undefined} isLatent
   * @returns {Promise<Float32Array>}
   */
  async #asLatent(value, isLatent) {
    const one = { data: value.data, shape: [1, ...value.shape] };
    const [fitsImage, fitsLatent] = [this.imageShape, this.latentShape].map((shape) => sameShape(value.shape, shape));
    if (isLatent === undefined && fitsImage && fitsLatent) {
      throw new UsageError(
        `images and latents of this model are both of shape (${value.shape.join(", ")}): say which these are, with ` +
          "latents: true or latents: false",
      );
    }
    if (fitsImage && !isLatent) return (await this.encode(one)).mu.data;
    if (fitsLatent && isLatent !== false) return this.#checkedLatents(one).data;
    const [image, latent] = [
      `an image of shape (${this.imageShape.join(", ")})`,
      `a latent of shape (${this.latentShape.join(", ")})`,
    ];
    const wanted = isLatent === undefined ? `${image} or ${latent}` : isLatent ? latent : image;
    throw new UsageError(`expected ${wanted}, not (${value.shape.join(", ")})`);
  }

  /**
   * @param {Floats} images
   * @returns {Floats}
   */
  #checkedImages(images) {
    const checked = checkedRows(images, "images", "(N, C, H, W) in [0, 1]", this.imageShape);
    if (!checked.data.every((value) => value >= 0 && value <= 1)) {
      throw new UsageError("images must be finite and in [0, 1]: divide 8-bit values by 255");
    }
    return checked;
  }

  /**
   * @param {Floats} z
   * @returns {Floats}
   */
  #checkedLatents(z) {
    const checked = checkedRows(z, "latents", "(N, …)", this.latentShape);
    if (!checked.data.every(Number.isFinite)) {
      throw new UsageError("latents must be finite, but these contain NaN or infinity");
    }
    return checked;
  }
}

/** @returns {boolean} */
function inNode() {
  return typeof process !== "undefined" && process.versions?.node !== undefined;
}

/**
 * Copy images into smaller ones, without the padding at the bottom and on the right.
 *
 * @param {Floats} source (N, C, H', W')
 * @param {Floats} target (N, C, H, W)
 */
function copyCropped(source, target) {
  const [sourceHeight, sourceWidth] = source.shape.slice(2);
  const [height, width] = target.shape.slice(2);
  if (sameShape(source.shape, target.shape)) {
    target.data.set(source.data);
    return;
  }
  for (let line = 0; line < target.data.length / width; line++) {
    const [plane, row] = [Math.floor(line / height), line % height];
    const start = (plane * sourceHeight + row) * sourceWidth;
    target.data.set(source.data.subarray(start, start + width), line * width);
  }
}

/**
 * @param {readonly Float32Array[]} latents
 * @param {readonly number[]} shape of one
 * @returns {Floats}
 */
function stacked(latents, shape) {
  const out = zeros([latents.length, ...shape]);
  latents.forEach((latent, n) => out.data.set(latent, n * latent.length));
  return out;
}

/**
 * Return the place that a place beyond an edge reflects, without repeating the edge.
 *
 * @param {number} place
 * @param {number} length
 * @returns {number}
 */
function reflected(place, length) {
  if (length === 1) return 0;
  const period = 2 * (length - 1);
  const folded = place % period;
  return folded < length ? folded : period - folded;
}

/**
 * Return Levenshtein's distance: the fewest letters to insert, delete or replace.
 *
 * @param {string} a
 * @param {string} b
 * @returns {number}
 */
function editDistance(a, b) {
  let row = Array.from({ length: b.length + 1 }, (_, j) => j);
  for (let i = 1; i <= a.length; i++) {
    const next = [i];
    for (let j = 1; j <= b.length; j++) {
      next.push(Math.min(row[j] + 1, next[j - 1] + 1, row[j - 1] + (a[i - 1] === b[j - 1] ? 0 : 1)));
    }
    row = next;
  }
  return row[b.length];
}
