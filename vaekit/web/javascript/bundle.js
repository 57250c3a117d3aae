/**
 * Read a bundle, and check it before use.
 *
 * The hashes in the manifest prove that the files are complete and belong together. They do not prove who made them.
 *
 * @module
 */

import { sameShape } from "./arrays.js";
import { BundleError, reasonOf } from "./errors.js";
import { filesAt } from "./files.js";
import {
  FEATURES,
  FORMAT,
  FORMAT_VERSION,
  MANIFEST,
  declaredFiles,
  encoderOutputs,
  parseManifest,
  whyNoElbo,
} from "./manifest.js";
import { readNpz } from "./npz.js";
import { readOnnx } from "./onnx_file.js";

/** @import { Source } from "./files.js" */
/** @import { GraphSpec, Manifest } from "./manifest.js" */
/** @import { TensorInfo } from "./onnx_file.js" */
/** @import { Floats, Numbers } from "./types.js" */

/**
 * A bundle that passed its checks. The hashed bytes are the ones that run.
 *
 * @typedef {object} Bundle
 * @property {string} name what it was loaded from, for messages
 * @property {Manifest} manifest
 * @property {any} document the parsed manifest.json, including unknown keys
 * @property {Map<string, Uint8Array>} files contents of every file that the manifest names
 */

/**
 * Read and check a bundle. Raises BundleError that names the failed check.
 *
 * @param {Source} source
 * @returns {Promise<Bundle>}
 */
export async function readBundle(source) {
  const { name, read } = await filesAt(source);
  const document = parseDocument(name, await read(MANIFEST));
  const manifest = manifestOf(name, document);
  const files = new Map();
  for (const declared of declaredFiles(manifest)) {
    const data = await read(declared.file);
    if ((await sha256(data)) !== declared.sha256) {
      throw new BundleError(
        `${name}/${declared.file} was changed after export: its sha256 differs from the manifest's. Copy or export the ` +
          "bundle again.",
      );
    }
    files.set(declared.file, data);
  }
  for (const graph of manifest.graphs.values()) {
    checkGraph(`${name}/${graph.file}`, graph, /** @type {Uint8Array} */ (files.get(graph.file)));
  }
  checkDeclarations(name, manifest);
  return { name, manifest, document, files };
}

/**
 * Return a bundle's golden vectors by name. Raises BundleError if they are unreadable or do not fit the manifest.
 *
 * @param {Bundle} bundle
 * @returns {Promise<Record<string, Floats>>}
 */
export async function readGolden(bundle) {
  const { manifest, name } = bundle;
  const arrays = await readArrays(bundle, manifest.golden.file);
  const image = [manifest.image.channels, manifest.image.height, manifest.image.width];
  const latent = manifest.latent.shape;
  const columns = manifest.flow?.labelWeights?.length;
  /** @type {[string, string, readonly number[]][]} names of arrays, and whose rows they have */
  const wanted = [
    ["image", "image", image],
    .../** @type {[string, string, readonly number[]][]} */ (
      encoderOutputs(manifest).map((key) => [key, "image", latent])
    ),
    ["z", "z", latent],
    ["decoded", "z", image],
  ];
  if (manifest.flow !== null) {
    wanted.push(["flow_z", "z", latent], ["flow_t", "z", []], ["velocity", "z", latent]);
    if (columns !== undefined) wanted.push(["flow_label", "z", [columns]]);
  }
  /** @type {Record<string, Floats>} */
  const golden = {};
  for (const [key, rows, shape] of wanted) {
    const found = arrays[key];
    const count = arrays[rows]?.shape[0];
    if (!(found?.data instanceof Float32Array) || !found.data.length || !sameShape(found.shape, [count, ...shape])) {
      throw new BundleError(`${name}/${manifest.golden.file} is damaged: ${key} is missing, or is not of its shape`);
    }
    const limit = key === "image" || key === "decoded" ? [0, 1] : [-Number.MAX_VALUE, Number.MAX_VALUE];
    if (!found.data.every((value) => value >= limit[0] && value <= limit[1])) {
      throw new BundleError(
        `${name}/${manifest.golden.file} is damaged: ${key} holds NaN, infinity, or pixels outside [0, 1]`,
      );
    }
    golden[key] = { data: found.data, shape: found.shape };
  }
  return golden;
}

/**
 * Return all arrays of one of a bundle's .npz files. Raises BundleError if it is unreadable.
 *
 * @param {Bundle} bundle
 * @param {string} file
 * @returns {Promise<Record<string, Numbers>>}
 */
export async function readArrays(bundle, file) {
  try {
    return await readNpz(/** @type {Uint8Array} */ (bundle.files.get(file)));
  } catch (error) {
    throw new BundleError(`${bundle.name}/${file} cannot be read: ${reasonOf(error)}. Export the bundle again.`);
  }
}

/**
 * Parse the manifest's JSON, and check that this library can read the bundle.
 *
 * @param {string} name
 * @param {Uint8Array} data
 * @returns {any}
 */
function parseDocument(name, data) {
  let document;
  try {
    document = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(data));
  } catch {
    throw new BundleError(`${name}/${MANIFEST} is damaged or not a vaekit manifest. Export the bundle again.`);
  }
  if (document?.format !== FORMAT) throw new BundleError(`${name}/${MANIFEST} is not a vaekit manifest`);
  const version = document.format_version;
  if (!Number.isInteger(version) || version > FORMAT_VERSION) {
    throw new BundleError(
      `${name} has bundle format ${version}; this vaekit reads up to ${FORMAT_VERSION}. Upgrade vaekit.`,
    );
  }
  const requires = document.requires ?? [];
  if (!Array.isArray(requires) || !requires.every((feature) => typeof feature === "string")) {
    throw new BundleError(`${name}/${MANIFEST} is damaged: requires is not a list of names. Export the bundle again.`);
  }
  const unknown = requires.filter((feature) => !FEATURES.includes(feature));
  if (unknown.length)
    throw new BundleError(`${name} requires unknown features: ${unknown.join(", ")}. Upgrade vaekit.`);
  return document;
}

/**
 * @param {string} name
 * @param {any} document
 * @returns {Manifest}
 */
function manifestOf(name, document) {
  try {
    return parseManifest(document);
  } catch (error) {
    const reason = error instanceof RangeError ? error.message : "a part of it is missing";
    throw new BundleError(`${name}/${MANIFEST} is damaged: ${reason}. Export the bundle again.`);
  }
}

/**
 * Check that the manifest's sizes, tensors, statistics and priors agree.
 *
 * @param {string} name
 * @param {Manifest} manifest
 */
function checkDeclarations(name, manifest) {
  for (const [what, declared, expected] of expectedTensors(name, manifest)) {
    if (describe(declared) !== describe(expected)) {
      throw new BundleError(
        `${name} contradicts itself: ${what} are declared as ${describe(declared)}, but its sizes require ` +
          `${describe(expected)}`,
      );
    }
  }
  const used = ["encoder", "decoder", ...(manifest.flow === null ? [] : ["prior"])];
  for (const graph of used) {
    const { precision } = /** @type {GraphSpec} */ (manifest.graphs.get(graph));
    if (!manifest.tolerances.has(precision)) {
      throw new BundleError(`${name} contradicts itself: it has no tolerances for ${precision} graphs`);
    }
  }
  const { mean, std, kl, shape } = manifest.latent;
  const d = shape[0];
  if (mean.length !== d || std.length !== d || kl.length !== (manifest.posterior === "deterministic" ? 0 : d)) {
    throw new BundleError(`${name} contradicts itself: its latent statistics do not have ${d} dimensions`);
  }
  if (manifest.mixture !== null && shape.length > 1) {
    throw new BundleError(`${name} contradicts itself: its mixture prior does not have ${d} dimensions`);
  }
  if (manifest.flow?.start === "mixture" && manifest.mixture === null) {
    throw new BundleError(`${name} contradicts itself: its learned prior starts from a mixture, but it has none`);
  }
  if (manifest.scores !== null && whyNoElbo(manifest) !== null) {
    throw new BundleError(`${name} contradicts itself: it has scores, but ${whyNoElbo(manifest)}`);
  }
}

/**
 * Return what tensors are, what the manifest declares them to be, and what its sizes require.
 *
 * @param {string} name
 * @param {Manifest} manifest
 * @returns {[string, TensorInfo[], TensorInfo[]][]}
 */
function expectedTensors(name, manifest) {
  const { image, latent, flow, graphs } = manifest;
  const free = image.multipleOf !== null;
  const imageAxes = free ? [image.channels, "height", "width"] : [image.channels, image.height, image.width];
  const latentAxes = free ? [latent.shape[0], "latent_height", "latent_width"] : latent.shape;
  /** @type {(name: string, axes: readonly (number | string)[]) => TensorInfo} */
  const tensor = (key, axes) => ({ name: key, dtype: "float32", shape: ["batch", ...axes] });
  const [encoder, decoder] = ["encoder", "decoder"].map((key) => /** @type {GraphSpec} */ (graphs.get(key)));
  const codes = encoderOutputs(manifest).map((key) => tensor(key, latentAxes));
  /** @type {[string, TensorInfo[], TensorInfo[]][]} */
  const wanted = [
    ["the encoder's inputs", encoder.inputs, [tensor("image", imageAxes)]],
    ["the encoder's outputs", encoder.outputs, codes],
    ["the decoder's inputs", decoder.inputs, [tensor("z", latentAxes)]],
    ["the decoder's outputs", decoder.outputs, [tensor("image", imageAxes)]],
  ];
  if (flow === null) return wanted;
  const prior = graphs.get("prior");
  if (prior === undefined) {
    throw new BundleError(`${name} contradicts itself: it has a learned prior, but no graph of that name`);
  }
  const labels = flow.labelWeights === null ? [] : [tensor("label", [flow.labelWeights.length])];
  wanted.push(
    ["the prior's inputs", prior.inputs, [tensor("z", latentAxes), tensor("t", []), ...labels]],
    ["the prior's outputs", prior.outputs, [tensor("velocity", latentAxes)]],
  );
  return wanted;
}

/**
 * Check that a graph is what the manifest declares.
 *
 * @param {string} path
 * @param {GraphSpec} declared
 * @param {Uint8Array} data
 */
function checkGraph(path, declared, data) {
  let info;
  try {
    info = readOnnx(data);
  } catch (error) {
    throw new BundleError(`${path} cannot be used: ${reasonOf(error)}`);
  }
  if (info.externalData) {
    throw new BundleError(`${path} stores tensors in other files; vaekit only loads single-file models`);
  }
  const unknown = [...info.domains].filter((domain) => domain !== "").sort();
  if (unknown.length) throw new BundleError(`${path} has operators of an unknown domain: ${unknown.join(", ")}`);
  for (const kind of /** @type {const} */ (["inputs", "outputs"])) {
    if (describe(info[kind]) !== describe(declared[kind])) {
      throw new BundleError(
        `${path} has ${kind} ${describe(info[kind])}, but the manifest declares ${describe(declared[kind])}`,
      );
    }
  }
  const opset = info.opsets.get("");
  if (opset !== declared.opset || info.irVersion !== declared.irVersion) {
    throw new BundleError(
      `${path} has opset ${opset} and IR version ${info.irVersion}, but the manifest declares ${declared.opset} and ` +
        `${declared.irVersion}`,
    );
  }
}

/**
 * @param {readonly TensorInfo[]} tensors
 * @returns {string}
 */
function describe(tensors) {
  return tensors.map(({ name, dtype, shape }) => `${name} ${dtype} (${shape.join(", ")})`).join(", ") || "none";
}

/**
 * Return the SHA-256 of bytes, in hexadecimal digits.
 *
 * @param {Uint8Array} data
 * @returns {Promise<string>}
 */
async function sha256(data) {
  if (!globalThis.crypto?.subtle) {
    throw new BundleError(
      "this page cannot check the bundle's hashes, because browsers compute them only for https and for localhost: " +
        "serve it over https",
    );
  }
  const digest = await crypto.subtle.digest("SHA-256", /** @type {Uint8Array<ArrayBuffer>} */ (data));
  return [...new Uint8Array(digest)].map((byte) => byte.toString(16).padStart(2, "0")).join("");
}
