/**
 * Run a vaekit bundle, a variational auto-encoder as ONNX, in a browser or in Node.js.
 *
 * @module
 */

export { pixelsOf, readPicture } from "./browser.js";
export { BundleError, ProviderError, SourceError, UsageError, VaekitError } from "./errors.js";
export { percentileOf } from "./manifest.js";
export { npzOf, readNpz } from "./npz.js";
export { imagesOf } from "./picture.js";
export { VAE, load } from "./vae.js";
