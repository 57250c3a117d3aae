/**
 * Show images on canvases, and save files.
 *
 * @module
 */

import { roundHalfToEven } from "../javascript/arrays.js";

/** @import { Floats } from "../javascript/types.js" */

/**
 * Show the first of images on a canvas.
 *
 * @param {HTMLCanvasElement} canvas
 * @param {Floats} images (N, C, H, W) in [0, 1]
 */
export function show(canvas, { data, shape }) {
  const [, channels, height, width] = shape;
  const count = height * width;
  const pixels = new ImageData(width, height);
  for (let j = 0; j < count; j++) {
    for (let channel = 0; channel < 3; channel++) {
      const value = data[(channels === 1 ? 0 : channel) * count + j];
      pixels.data[4 * j + channel] = roundHalfToEven(value * 255);
    }
    pixels.data[4 * j + 3] = 255;
  }
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  contextOf(canvas).putImageData(pixels, 0, 0);
}

/**
 * Offer bytes as a download.
 *
 * @param {string} name
 * @param {Blob} blob
 */
export function save(name, blob) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

/**
 * Return a canvas as a PNG file.
 *
 * @param {HTMLCanvasElement} canvas
 * @returns {Promise<Blob>}
 */
export function pngOf(canvas) {
  return new Promise((resolve, reject) => {
    canvas.toBlob((blob) => (blob ? resolve(blob) : reject(new Error("this browser cannot write a PNG"))), "image/png");
  });
}

/**
 * @param {HTMLCanvasElement} canvas
 * @returns {CanvasRenderingContext2D}
 */
function contextOf(canvas) {
  const context = canvas.getContext("2d");
  if (context === null) throw new Error("this browser cannot draw on a canvas");
  return context;
}
