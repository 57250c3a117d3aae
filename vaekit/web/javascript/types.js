/**
 * Types that several modules share.
 *
 * @module
 */

/**
 * An array of float32 in row-major order: images (N, C, H, W) in [0, 1], or latents (N, d) or (N, c, h, w).
 *
 * @typedef {object} Floats
 * @property {Float32Array} data
 * @property {readonly number[]} shape
 */

/**
 * An array of any numbers in row-major order.
 *
 * @typedef {object} Numbers
 * @property {Float32Array | Float64Array | Uint8Array | Int32Array | BigInt64Array} data
 * @property {readonly number[]} shape
 */

/** @typedef {"encoder" | "decoder" | "prior"} GraphName */
/** @typedef {"flow" | "mixture" | "normal"} PriorName */
/** @typedef {"cpu" | "accelerator" | "reduced"} ProviderClass */

/**
 * The parts of onnxruntime-web and onnxruntime-node that vaekit uses.
 *
 * @typedef {object} OnnxRuntime
 * @property {{create(model: Uint8Array, options?: object): Promise<Session>}} InferenceSession
 * @property {new (type: "float32", data: Float32Array, dims: readonly number[]) => object} Tensor
 */

/**
 * @typedef {object} Session
 * @property {(feeds: any) => Promise<Record<string, {data: unknown, dims: readonly number[]}>>} run
 * @property {() => Promise<void>} release
 */

export {};
