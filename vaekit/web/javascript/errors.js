/**
 * Every error that the library raises on purpose. Their messages are one line: what is wrong and what to do.
 *
 * @module
 */

/** The base class. */
export class VaekitError extends Error {
  /** @param {string} message @param {ErrorOptions} [options] */
  constructor(message, options) {
    super(message, options);
    this.name = new.target.name;
  }
}

/** An argument is wrong. */
export class UsageError extends VaekitError {}

/** A picture cannot be read. */
export class SourceError extends VaekitError {}

/** A bundle is missing, altered, of a newer format, or unsafe to load. */
export class BundleError extends VaekitError {}

/** ONNX Runtime, or one of its execution providers, cannot run here. */
export class ProviderError extends VaekitError {}

/**
 * Return why something failed, whatever was thrown.
 *
 * @param {unknown} error
 * @returns {string}
 */
export function reasonOf(error) {
  return error instanceof Error ? error.message : String(error);
}
