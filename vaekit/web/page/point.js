/**
 * The point in the latent space that the page shows, and who wants to know when it moves.
 *
 * @module
 */

import { sizeOf } from "../javascript/arrays.js";

/** @import { VAE } from "../javascript/vae.js" */

const SPAN = 2.5; // standard deviations on each side, as `vaekit traverse` covers

/** A latent that moves. A vector's dimensions are set to values; a map's channels are shifted from where it stood. */
export class Point {
  /** @type {((latent: Float32Array) => void)[]} */
  #listeners = [];
  /** @type {Float32Array} */
  #base;

  /** @param {VAE} vae */
  constructor(vae) {
    this.vae = vae;
    this.isMap = vae.latentShape.length > 1;
    this.places = sizeOf(vae.latentShape.slice(1));
    this.#base = this.mean();
    /** Values of a vector's dimensions, or shifts of a map's channels. @type {Float32Array} */
    this.values = this.#start();
  }

  /** The latent as the decoder takes it. @returns {Float32Array} */
  get latent() {
    if (!this.isMap) return this.values.slice();
    return this.#base.map((value, j) => value + this.values[Math.floor(j / this.places)]);
  }

  /** The latent as a batch of one. @returns {{data: Float32Array, shape: number[]}} */
  get batch() {
    return { data: this.latent, shape: [1, ...this.vae.latentShape] };
  }

  /**
   * Return the mean of held-out images' latents.
   *
   * @returns {Float32Array}
   */
  mean() {
    const { mean } = this.vae.manifest.latent;
    return Float32Array.from({ length: mean.length * this.places }, (_, j) => mean[Math.floor(j / this.places)]);
  }

  /**
   * Return the smallest and largest value of a dimension.
   *
   * @param {number} dimension
   * @returns {[number, number]}
   */
  range(dimension) {
    const [low, high] = this.vae.traversedValues(dimension, 2, SPAN);
    return [low, high];
  }

  /** @param {(latent: Float32Array) => void} listener */
  whenMoved(listener) {
    this.#listeners.push(listener);
  }

  /**
   * Go to a latent.
   *
   * @param {Float32Array} latent
   */
  goTo(latent) {
    this.#base = latent.slice();
    this.values = this.#start();
    this.#moved();
  }

  /**
   * Set values of dimensions.
   *
   * @param {Record<number, number>} values
   */
  set(values) {
    for (const [dimension, value] of Object.entries(values)) this.values[Number(dimension)] = value;
    this.#moved();
  }

  /** @returns {Float32Array} */
  #start() {
    return this.isMap ? new Float32Array(this.vae.latentShape[0]) : this.#base.slice();
  }

  #moved() {
    const { latent } = this;
    for (const listener of this.#listeners) listener(latent);
  }
}
