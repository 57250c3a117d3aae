/**
 * manifest.json: everything that is needed to use a bundle's graphs. docs/bundle-format.md says what its keys mean.
 *
 * @module
 */

import { sizeOf } from "./arrays.js";
import { UsageError } from "./errors.js";
import { hasDensity } from "./prior.js";

/** @import { Attributes, Factor, Label } from "./attributes.js" */
/** @import { Likelihood } from "./elbo.js" */
/** @import { TensorInfo } from "./onnx_file.js" */
/** @import { Mixture } from "./prior.js" */
/** @import { PriorName, ProviderClass } from "./types.js" */

export const FORMAT = "vaekit-bundle";
export const FORMAT_VERSION = 3;
export const MANIFEST = "manifest.json";
export const MOST_FLOW_STEPS = 1000;

/** The features that this library knows. */
export const FEATURES = ["likelihood-laplace", "prior-label", "prior-starts-from-mixture"];

const POSTERIORS = ["diagonal", "isotropic", "deterministic"];
const LIKELIHOODS = ["gaussian", "laplace", "bernoulli", "none"];
const PRECISIONS = ["fp32", "fp16", "int8", "fp16-weights", "int8-weights"];
const FLOW_STARTS = ["mixture", "normal"];
const PLAIN_NAME = /^[A-Za-z0-9_][A-Za-z0-9_.-]*$/;

/** From the strictest tolerances to the loosest. @type {ProviderClass[]} */
export const PROVIDER_CLASSES = ["cpu", "accelerator", "reduced"];

/**
 * @typedef {object} ImageSpec
 * @property {number} channels
 * @property {number} height
 * @property {number} width
 * @property {string} preprocessing how any picture becomes such an image, in words
 * @property {number | null} multipleOf if sizes are free, what they are multiples of
 */

/**
 * Statistics are one number for each dimension of a vector, or for each channel of a map.
 *
 * @typedef {object} LatentSpec
 * @property {number[]} shape (d,) or (c, h, w)
 * @property {number[]} mean of mu over held-out images
 * @property {number[]} std of mu
 * @property {number[]} kl in nats; empty for a deterministic encoder
 */

/**
 * @typedef {object} FlowSpec
 * @property {number} steps
 * @property {number[]} mean
 * @property {number[]} std
 * @property {Float64Array | null} labelWeights
 * @property {string} start "normal" or "mixture"
 */

/**
 * @typedef {object} GraphSpec
 * @property {string} file
 * @property {string} sha256
 * @property {number} opset
 * @property {number} irVersion
 * @property {string} precision
 * @property {TensorInfo[]} inputs
 * @property {TensorInfo[]} outputs
 */

/** @typedef {{file: string, sha256: string}} FileSpec */
/** @typedef {{atol: number, rtol: number}} Tolerance */

/**
 * @typedef {object} ScoreStatistics
 * @property {number} images
 * @property {number} seed
 * @property {[number, number][]} quantiles percentages and scores, in order
 */

/**
 * @typedef {object} Manifest
 * @property {ImageSpec} image
 * @property {LatentSpec} latent
 * @property {string} posterior
 * @property {Likelihood} likelihood
 * @property {Mixture | null} mixture
 * @property {FlowSpec | null} flow
 * @property {string[]} labels
 * @property {Attributes | null} attributes
 * @property {Map<string, GraphSpec>} graphs
 * @property {FileSpec} golden
 * @property {FileSpec | null} residuals
 * @property {Map<string, Record<ProviderClass, Tolerance>>} tolerances
 * @property {ScoreStatistics | null} scores of −ELBO
 * @property {Map<string, ScoreStatistics>} scoresBy
 */

/**
 * Parse a manifest's JSON object. Raises RangeError or TypeError, with a reason, if it is invalid.
 *
 * @param {any} document
 * @returns {Manifest}
 */
export function parseManifest(document) {
  const latent = latentOf(document.latent);
  const labels = labelsOf(document.labels ?? []);
  const { mixture, flow } = document.prior;
  const attributes = document.attributes ?? null;
  return {
    image: imageOf(document.image),
    latent,
    posterior: oneOf(POSTERIORS, document.posterior, "posterior"),
    likelihood: likelihoodOf(document.likelihood),
    mixture: mixture === undefined ? null : mixtureOf(mixture, latent.shape[0], labels.length),
    flow: flow === undefined ? null : flowOf(flow, latent.shape[0], labels.length),
    labels,
    attributes: attributes === null ? null : attributesOf(attributes, latent.shape[0]),
    graphs: new Map(
      ["encoder", "decoder", ...Object.keys(document.graphs)].map((name) => [
        name,
        graphOf(document.graphs[name], name),
      ]),
    ),
    golden: fileOf(document.golden, "golden"),
    residuals: document.residuals === undefined ? null : fileOf(document.residuals, "residuals"),
    tolerances: tolerancesOf(document.verify),
    scores: document.scores === null ? null : scoresOf(document.scores),
    scoresBy: new Map(Object.entries(document.scores_by ?? {}).map(([name, scores]) => [name, scoresOf(scores)])),
  };
}

/**
 * Return every file that the manifest names, with its hash.
 *
 * @param {Manifest} manifest
 * @returns {FileSpec[]}
 */
export function declaredFiles(manifest) {
  return [...manifest.graphs.values(), manifest.golden, ...(manifest.residuals === null ? [] : [manifest.residuals])];
}

/**
 * Return the priors that latents can be drawn from, the default first.
 *
 * @param {Manifest} manifest
 * @returns {PriorName[]}
 */
export function priorsOf(manifest) {
  /** @type {PriorName[]} */
  const priors = [];
  if (manifest.flow !== null) priors.push("flow");
  if (manifest.mixture !== null) priors.push("mixture");
  return [...priors, "normal"];
}

/**
 * Return the encoder's outputs.
 *
 * @param {Manifest} manifest
 * @returns {("mu" | "logvar")[]}
 */
export function encoderOutputs(manifest) {
  return manifest.posterior === "deterministic" ? ["mu"] : ["mu", "logvar"];
}

/**
 * Return why a model has no ELBO, or null if it has one.
 *
 * @param {Manifest} manifest
 * @returns {string | null}
 */
export function whyNoElbo(manifest) {
  if (manifest.posterior === "deterministic") {
    return "its encoder is deterministic (mu without logvar), so there is no q(z|x) and no ELBO";
  }
  if (manifest.likelihood.name === "none") {
    return "it states no likelihood p(x|z), so there is no ELBO; export it with one, such as --sigma 0.1";
  }
  return null;
}

/**
 * Return why latents have no density under a mixture prior, or null if they have one.
 *
 * @param {Manifest} manifest
 * @returns {string | null}
 */
export function whyNoDensity({ mixture, latent }) {
  if (mixture === null) {
    const reason = latent.shape.length > 1 ? "none is fitted to maps" : "it was trained with another prior";
    return `it has no mixture prior, whose density this score is: ${reason}`;
  }
  return hasDensity(mixture) ? null : "its mixture prior has no density: a covariance is singular";
}

/**
 * Return the manifest for images of another size; it has no scores, which were measured at the default size.
 *
 * Raises UsageError for a size that the model does not accept.
 *
 * @param {Manifest} manifest
 * @param {number} height
 * @param {number} width
 * @returns {Manifest}
 */
export function atSize(manifest, height, width) {
  const { image, latent } = manifest;
  const step = image.multipleOf;
  if (height === image.height && width === image.width) return manifest;
  if (step === null) {
    throw new UsageError(
      `the model's images are ${image.height} x ${image.width}; only a bundle that was exported with free sizes accepts ` +
        "other sizes",
    );
  }
  if (Math.min(height, width) < step) {
    throw new UsageError(`heights and widths must be ${step} or more for this model, not ${height}x${width}`);
  }
  const [channels, high, wide] = latent.shape;
  const [padded, paddedWidth] = [height, width].map((side) => Math.ceil(side / step) * step);
  const shape = [channels, Math.floor((padded * high) / image.height), Math.floor((paddedWidth * wide) / image.width)];
  return {
    ...manifest,
    image: { ...image, height, width },
    latent: { ...latent, shape },
    scores: null,
    scoresBy: new Map(),
  };
}

/**
 * Return the percentage of held-out images whose score is lower, by linear interpolation, from 0 to 100.
 *
 * @param {ScoreStatistics} statistics
 * @param {number} score
 * @returns {number}
 */
export function percentileOf(statistics, score) {
  const { quantiles } = statistics;
  const next = quantiles.findIndex(([, known]) => known > score);
  if (next === 0) return 0;
  if (next < 0) return 100;
  const [[percent, known], [percentAbove, above]] = [quantiles[next - 1], quantiles[next]];
  return percent + ((score - known) / (above - known)) * (percentAbove - percent);
}

/**
 * @param {any} document
 * @returns {ImageSpec}
 */
function imageOf(document) {
  const step = document.multiple_of ?? null;
  const image = {
    channels: positive(document.channels, "the image's channels"),
    height: positive(document.height, "the image's height"),
    width: positive(document.width, "the image's width"),
    preprocessing: words(document.preprocessing, "the image's preprocessing"),
    multipleOf: step === null ? null : positive(step, "the image's multiple_of"),
  };
  if (image.channels !== 1 && image.channels !== 3) throw new RangeError("images have 1 or 3 channels");
  if (image.multipleOf && (image.height % image.multipleOf || image.width % image.multipleOf)) {
    throw new RangeError(`image size ${image.height} x ${image.width} is not a multiple of ${image.multipleOf}`);
  }
  return image;
}

/**
 * @param {any} document
 * @returns {LatentSpec}
 */
function latentOf(document) {
  const shape = list(document.shape, "the latent's shape").map((size) => positive(size, "the latent's shape"));
  if (shape.length !== 1 && shape.length !== 3) {
    throw new RangeError(`the latent's shape must be (d,) or (c, h, w), not (${shape.join(", ")})`);
  }
  const [mean, std, kl] = ["mean", "std", "kl"].map((key) => numbers(document[key], `the latent's ${key}`));
  return { shape, mean, std, kl };
}

/**
 * @param {any} document
 * @returns {Likelihood}
 */
function likelihoodOf(document) {
  const name = oneOf(LIKELIHOODS, document.name, "likelihood");
  const sigma = document.sigma === null ? null : number(document.sigma, "the likelihood's sigma");
  const scaled = name === "gaussian" || name === "laplace";
  if (scaled ? sigma === null || sigma <= 0 : sigma !== null) {
    throw new RangeError(`the sigma of a ${name} likelihood is not ${sigma}`);
  }
  return { name, sigma };
}

/**
 * @param {any} document
 * @param {number} d
 * @param {number} labels
 * @returns {Mixture}
 */
function mixtureOf(document, d, labels) {
  const weights = numbers(document.weights, "the mixture's weights");
  const means = numbers(list(document.means, "the mixture's means").flat(), "the mixture's means");
  const cholesky = numbers(list(document.cholesky, "the mixture's factors").flat(2), "the mixture's factors");
  const k = weights.length;
  if (!k || means.length !== k * d || cholesky.length !== k * d * d) {
    throw new RangeError("the mixture's weights, means and Cholesky factors have inconsistent shapes");
  }
  if (weights.some((weight) => weight < 0) || Math.abs(sum(weights) - 1) > 1e-5) {
    throw new RangeError("the mixture's weights are negative or do not sum to 1");
  }
  const of = document.labels ?? null;
  if (of !== null && (of.length !== k || !of.every((/** @type {any} */ each) => isLabel(each, labels)))) {
    throw new RangeError("the mixture's labels are not numbers of labels");
  }
  return {
    weights: Float64Array.from(weights),
    means: Float64Array.from(means),
    cholesky: Float64Array.from(cholesky),
    labels: of === null ? null : Int32Array.from(of),
  };
}

/**
 * @param {any} document
 * @param {number} d
 * @param {number} labels
 * @returns {FlowSpec}
 */
function flowOf(document, d, labels) {
  const steps = positive(document.steps, "the flow's steps");
  const [mean, std] = ["mean", "std"].map((key) => numbers(document[key], `the flow's ${key}`));
  const start = oneOf(FLOW_STARTS, document.start ?? "normal", "start of a flow");
  const least = start === "mixture" ? Number.MIN_VALUE : 0;
  if (steps > MOST_FLOW_STEPS || std.some((deviation) => deviation < least)) {
    throw new RangeError(
      `a flow has 1 to ${MOST_FLOW_STEPS} steps, and no deviations that are negative or divide by 0`,
    );
  }
  if (mean.length !== d || std.length !== d) throw new RangeError(`its learned prior does not have ${d} dimensions`);
  const given = document.label_weights ?? null;
  const shares = given === null ? null : numbers(given, "the flow's label_weights");
  if (shares && (shares.length !== labels + 1 || Math.min(...shares) < 0 || Math.abs(sum(shares) - 1) > 1e-6)) {
    throw new RangeError("a flow's label weights are not a share for each label and one for none, with sum 1");
  }
  return { steps, mean, std, labelWeights: shares && Float64Array.from(shares), start };
}

/**
 * @param {any} document
 * @returns {string[]}
 */
function labelsOf(document) {
  const labels = list(document, "labels").map((name) => words(name, "a label"));
  if (labels.includes("") || new Set(labels).size < labels.length) {
    throw new RangeError("the labels are not different names");
  }
  return labels;
}

/**
 * @param {any} document
 * @param {number} d
 * @returns {Attributes}
 */
function attributesOf(document, d) {
  /** @type {Label[]} */
  const labels = list(document.labels, "the attributes' labels").map((label) => ({
    name: words(label.name, "an attribute's name"),
    images: positive(label.images, "an attribute's images"),
    mean: sized(label.mean, d, "an attribute's mean"),
    weights: sized(label.weights, d, "an attribute's weights"),
    bias: number(label.bias, "an attribute's bias"),
  }));
  const factors = list(document.factors ?? [], "the attributes' factors").map((factor) => factorOf(factor, d));
  const names = [...labels, ...factors].map((each) => each.name);
  if (!labels.length || names.includes("") || new Set(names).size < names.length) {
    throw new RangeError("the attributes do not have a name each, all of them different");
  }
  return { labels, factors, accuracy: number(document.accuracy, "the attributes' accuracy") };
}

/**
 * @param {any} document
 * @param {number} d
 * @returns {Factor}
 */
function factorOf(document, d) {
  const [period, mean, std, r2] = ["period", "mean", "std", "r2"].map((key) =>
    number(document[key], `a factor's ${key}`),
  );
  const m = period ? 2 : 1;
  const [directions, weights] = ["directions", "weights"].map((key) =>
    list(document[key], `a factor's ${key}`).map((row) => sized(row, d, `a factor's ${key}`)),
  );
  if (directions.length !== m || weights.length !== m) {
    throw new RangeError("a factor's directions and weights have inconsistent shapes");
  }
  const biases = sized(document.biases, m, "a factor's biases");
  return { name: words(document.name, "a factor's name"), period, mean, std, directions, weights, biases, r2 };
}

/**
 * @param {any} document
 * @param {string} name
 * @returns {GraphSpec}
 */
function graphOf(document, name) {
  if (document === undefined) throw new RangeError(`'${name}' is missing`);
  return {
    ...fileOf(document, name),
    opset: positive(document.opset, "a graph's opset"),
    irVersion: positive(document.ir_version, "a graph's ir_version"),
    precision: oneOf(PRECISIONS, document.precision, "precision"),
    inputs: tensorsOf(document.inputs),
    outputs: tensorsOf(document.outputs),
  };
}

/**
 * @param {any} document
 * @returns {TensorInfo[]}
 */
function tensorsOf(document) {
  return list(document, "a graph's tensors").map((tensor) => ({
    name: words(tensor.name, "a tensor's name"),
    dtype: words(tensor.dtype, "a tensor's dtype"),
    shape: list(tensor.shape, "a tensor's shape"),
  }));
}

/**
 * @param {any} document
 * @param {string} what
 * @returns {FileSpec}
 */
function fileOf(document, what) {
  const file = words(document.file, `the file of ${what}`);
  if (!PLAIN_NAME.test(file)) throw new RangeError(`'${file}' is not a plain file name`);
  return { file, sha256: words(document.sha256, `the sha256 of ${what}`) };
}

/**
 * @param {any} document
 * @returns {Map<string, Record<ProviderClass, Tolerance>>}
 */
function tolerancesOf(document) {
  return new Map(
    Object.entries(document).map(([precision, kinds]) => {
      const tolerances = PROVIDER_CLASSES.map((kind) => {
        const [atol, rtol] = [number(kinds[kind].atol, "atol"), number(kinds[kind].rtol, "rtol")];
        if (atol < 0 || rtol < 0) throw new RangeError("tolerances must not be negative");
        return [kind, { atol, rtol }];
      });
      return [oneOf(PRECISIONS, precision, "precision"), Object.fromEntries(tolerances)];
    }),
  );
}

/**
 * @param {any} document
 * @returns {ScoreStatistics}
 */
function scoresOf(document) {
  /** @type {[number, number][]} */
  const quantiles = Object.entries(document.quantiles).map(([name, score]) => {
    const percent = name.startsWith("p") ? Number(name.slice(1)) : NaN;
    if (!(percent >= 0 && percent <= 100)) throw new RangeError("the scores' quantiles are not named p0 to p100");
    return [percent, number(score, "a quantile")];
  });
  if (!quantiles.length) throw new RangeError("the scores have no quantiles");
  quantiles.sort(([a], [b]) => a - b);
  return { images: positive(document.images, "the scores' images"), seed: number(document.seed, "a seed"), quantiles };
}

/**
 * @param {number[]} values
 * @returns {number}
 */
function sum(values) {
  return values.reduce((total, value) => total + value, 0);
}

/**
 * @param {any} value
 * @param {number} labels
 * @returns {boolean}
 */
function isLabel(value, labels) {
  return Number.isInteger(value) && value >= -1 && value < labels;
}

/**
 * @param {readonly string[]} known
 * @param {unknown} value
 * @param {string} what
 * @returns {string}
 */
function oneOf(known, value, what) {
  if (typeof value === "string" && known.includes(value)) return value;
  throw new RangeError(`unknown ${what} '${value}', expected one of ${known.join(", ")}`);
}

/**
 * @param {unknown} value
 * @param {string} what
 * @returns {string}
 */
function words(value, what) {
  if (typeof value !== "string") throw new RangeError(`${what} is not text`);
  return value;
}

/**
 * @param {unknown} value
 * @param {string} what
 * @returns {number}
 */
function number(value, what) {
  if (typeof value !== "number" || !Number.isFinite(value)) throw new RangeError(`${what} is not a number`);
  return value;
}

/**
 * @param {unknown} value
 * @param {string} what
 * @returns {number}
 */
function positive(value, what) {
  const found = number(value, what);
  if (!Number.isSafeInteger(found) || found < 1) throw new RangeError(`${what} is not a whole number of 1 or more`);
  return found;
}

/**
 * @param {unknown} value
 * @param {string} what
 * @returns {any[]}
 */
function list(value, what) {
  if (!Array.isArray(value)) throw new RangeError(`${what} is not a list`);
  return value;
}

/**
 * @param {unknown} value
 * @param {string} what
 * @returns {number[]}
 */
function numbers(value, what) {
  return list(value, what).map((each) => number(each, what));
}

/**
 * @param {unknown} value
 * @param {number} count
 * @param {string} what
 * @returns {number[]}
 */
function sized(value, count, what) {
  const found = numbers(value, what);
  if (found.length !== count) throw new RangeError(`${what} is not ${count} numbers`);
  return found;
}

/**
 * Return the count of numbers in one latent.
 *
 * @param {Manifest} manifest
 * @returns {number}
 */
export function latentSize(manifest) {
  return sizeOf(manifest.latent.shape);
}
