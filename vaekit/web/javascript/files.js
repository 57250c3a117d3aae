/**
 * Where a bundle's files are: under an address, in a folder (Node.js), or in a .zip archive.
 *
 * @module
 */

import { BundleError, reasonOf } from "./errors.js";
import { MANIFEST } from "./manifest.js";
import { entriesOf, readEntry } from "./zip.js";

/**
 * An address of a folder or .zip file, in Node.js also a path; or the contents of a .zip file.
 *
 * @typedef {string | URL | Blob | ArrayBuffer | Uint8Array} Source
 */

/**
 * A bundle's name for messages, and a function that reads a file of it.
 *
 * @typedef {object} Files
 * @property {string} name
 * @property {(file: string) => Promise<Uint8Array>} read raises BundleError
 */

/**
 * Open a bundle. Raises BundleError if there is none.
 *
 * @param {Source} source
 * @returns {Promise<Files>}
 */
export async function filesAt(source) {
  if (source instanceof Blob)
    return archived("name" in source ? String(source.name) : "the bundle", await bytesOf(source));
  if (source instanceof Uint8Array) return archived("the bundle", source);
  if (source instanceof ArrayBuffer) return archived("the bundle", new Uint8Array(source));
  const inNode = typeof process !== "undefined" && process.versions?.node !== undefined;
  const isPath = source instanceof URL ? source.protocol === "file:" : !/^https?:/i.test(source);
  return inNode && isPath ? onDisk(source) : atAddress(source);
}

/**
 * @param {string | URL} source
 * @returns {Promise<Files>}
 */
async function onDisk(source) {
  const [fs, { fileURLToPath }, { join }] = await Promise.all([
    import("node:fs/promises"),
    import("node:url"),
    import("node:path"),
  ]);
  const path = source instanceof URL || source.startsWith("file:") ? fileURLToPath(source) : source;
  const found = await fs.stat(path).catch(() => null);
  if (found === null)
    throw new BundleError(`there is no bundle at ${path}: write one with \`vaekit export -o ${path}\``);
  if (!found.isDirectory()) return archived(path, new Uint8Array(await fs.readFile(path)));
  const read = async (/** @type {string} */ file) => {
    const data = await fs.readFile(join(path, file)).catch(() => null);
    if (data === null) throw missing(path, file);
    return new Uint8Array(data);
  };
  return { name: path, read };
}

/**
 * @param {string | URL} source
 * @returns {Promise<Files>}
 */
async function atAddress(source) {
  const base = typeof document === "undefined" ? undefined : document.baseURI;
  const address = new URL(source, base);
  if (address.pathname.endsWith(".zip")) {
    const data = await download(address);
    if (data === null) throw new BundleError(`there is no bundle at ${address.href}`);
    return archived(address.href, data);
  }
  if (!address.pathname.endsWith("/")) address.pathname += "/";
  const name = address.href.replace(/\/$/, "");
  const read = async (/** @type {string} */ file) => {
    const data = await download(new URL(file, address));
    if (data === null) throw missing(name, file);
    return data;
  };
  return { name, read };
}

/**
 * Return the bytes at an address, or null if there is nothing.
 *
 * @param {URL} address
 * @returns {Promise<Uint8Array | null>}
 */
async function download(address) {
  let response;
  try {
    response = await fetch(address);
  } catch (error) {
    throw new BundleError(`cannot load ${address.href}: ${reasonOf(error)}`);
  }
  if (response.status === 404) return null;
  if (!response.ok) throw new BundleError(`cannot load ${address.href}: the server says ${response.status}`);
  return bytesOf(response);
}

/**
 * @param {Blob | Response} body
 * @returns {Promise<Uint8Array>}
 */
async function bytesOf(body) {
  return new Uint8Array(await body.arrayBuffer());
}

/**
 * @param {string} name
 * @param {Uint8Array} archive
 * @returns {Files}
 */
function archived(name, archive) {
  const entries = bundleEntries(name, archive);
  const read = async (/** @type {string} */ file) => {
    const entry = entries.get(file);
    if (entry === undefined) throw new BundleError(`${name} is not a complete bundle: it has no ${file}`);
    try {
      return await readEntry(archive, entry);
    } catch (error) {
      throw new BundleError(`${name} cannot be read: ${reasonOf(error)}`);
    }
  };
  return { name, read };
}

/**
 * Return the entries in the manifest's folder by name.
 *
 * @param {string} name
 * @param {Uint8Array} archive
 */
function bundleEntries(name, archive) {
  let entries;
  try {
    entries = entriesOf(archive);
  } catch (error) {
    throw new BundleError(`${name} is neither a bundle's folder nor a readable .zip file: ${reasonOf(error)}`);
  }
  /** @type {(path: string) => string} */
  const folderOf = (path) => path.slice(0, path.lastIndexOf("/") + 1);
  const manifests = entries.filter((entry) => entry.name === folderOf(entry.name) + MANIFEST);
  if (!manifests.length) throw new BundleError(`${name} is not a complete bundle: it has no ${MANIFEST}`);
  if (manifests.length > 1) {
    throw new BundleError(`${name} contains ${manifests.length} bundles: put only one bundle in a .zip file`);
  }
  const folder = folderOf(manifests[0].name);
  const inside = entries.filter((entry) => folderOf(entry.name) === folder);
  return new Map(inside.map((entry) => [entry.name.slice(folder.length), entry]));
}

/**
 * @param {string} name
 * @param {string} file
 * @returns {BundleError}
 */
function missing(name, file) {
  if (file === MANIFEST) {
    return new BundleError(`${name} is not a bundle: it has no ${MANIFEST}. \`vaekit export\` writes one.`);
  }
  return new BundleError(`${name}/${file} is missing: export the bundle again, or copy all of its files`);
}
