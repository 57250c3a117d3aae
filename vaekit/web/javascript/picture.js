/**
 * Turn pixels of any size into a model's images, by the rule of every bundle (docs/bundle-format.md, `image`).
 *
 * The resizing is Pillow's: a separable filter whose support grows as the image shrinks, with weights of 22 bits and a
 * picture of 8 bits between the two passes, so that the results are those of Pillow 13 to the bit. Earlier versions always
 * begin with the rows, which can differ by a few levels at hard edges.
 *
 * @module
 */

import { SourceError } from "./errors.js";

/** @import { Floats } from "./types.js" */

/**
 * A picture with 8 bits a channel, its channels last: 1 (grey), 3 (RGB) or 4 (RGBA, not premultiplied).
 *
 * @typedef {object} Picture
 * @property {Uint8Array | Uint8ClampedArray} data (height, width, channels)
 * @property {number} width
 * @property {number} height
 */

const PRECISION = 22; // bits of a weight after the point
const SUPPORT = 2; // of the bicubic filter

/**
 * Make images of pictures: transparency over white, to grey or RGB, resized to cover the size, and cropped.
 *
 * @param {readonly Picture[]} pictures
 * @param {number} channels
 * @param {number} height
 * @param {number} width
 * @returns {Floats} (N, channels, height, width) in [0, 1]
 */
export function imagesOf(pictures, channels, height, width) {
  const size = channels * height * width;
  const data = new Float32Array(pictures.length * size);
  pictures.forEach((picture, number) => {
    const planes = planesOf(picture, channels);
    planes.forEach((plane, channel) => {
      const fitted = fit(plane, picture.height, picture.width, height, width);
      const start = number * size + channel * height * width;
      for (let j = 0; j < fitted.length; j++) data[start + j] = fitted[j] / 255;
    });
  });
  return { data, shape: [pictures.length, channels, height, width] };
}

/**
 * Split a picture into a plane for each channel, without transparency.
 *
 * @param {Picture} picture
 * @param {number} channels
 * @returns {Uint8Array[]}
 */
function planesOf(picture, channels) {
  const count = picture.width * picture.height;
  const own = picture.data.length / count;
  if (![1, 3, 4].includes(own) || !count) {
    throw new SourceError(`a picture of ${picture.width} x ${picture.height} has ${picture.data.length} numbers`);
  }
  const planes = Array.from({ length: own === 1 ? 1 : 3 }, (_, channel) => {
    const plane = new Uint8Array(count);
    for (let pixel = 0; pixel < count; pixel++) {
      const value = picture.data[pixel * own + channel];
      const alpha = own === 4 ? picture.data[pixel * own + 3] : 255;
      plane[pixel] = alpha === 255 ? value : Math.round((value * alpha + 255 * (255 - alpha)) / 255);
    }
    return plane;
  });
  if (planes.length === channels) return planes;
  if (channels === 3) return [planes[0], planes[0], planes[0]];
  const [red, green, blue] = planes; // ITU-R 601-2 luma, as Pillow rounds it
  return [red.map((value, j) => (value * 19595 + green[j] * 38470 + blue[j] * 7471 + 0x8000) >> 16)];
}

/**
 * Resize a plane to cover a size and crop its centre, as Pillow's `ImageOps.fit` does.
 *
 * @param {Uint8Array} plane
 * @param {number} height
 * @param {number} width
 * @param {number} newHeight
 * @param {number} newWidth
 * @returns {Uint8Array}
 */
function fit(plane, height, width, newHeight, newWidth) {
  if (height === newHeight && width === newWidth) return plane;
  const ratio = newWidth / newHeight;
  let [cropWidth, cropHeight] = [width, height];
  if (width / height > ratio) cropWidth = ratio * height;
  else if (width / height < ratio) cropHeight = width / ratio;
  const [left, top] = [(width - cropWidth) * 0.5, (height - cropHeight) * 0.5];
  const across = weightsOf(width, left, left + cropWidth, newWidth);
  const down = weightsOf(height, top, top + cropHeight, newHeight);
  const downFirst = height > newHeight && height - newHeight > 2 * (width - newWidth);
  if (downFirst) return resizedAcross(resizedDown(plane, width, down), newHeight, width, across);
  return resizedDown(resizedAcross(plane, height, width, across), newWidth, down);
}

/**
 * @param {Uint8Array} plane
 * @param {number} height
 * @param {number} width
 * @param {Weights | null} weights
 * @returns {Uint8Array}
 */
function resizedAcross(plane, height, width, weights) {
  return weights === null ? plane : resized(plane, height, width, 1, weights);
}

/**
 * @param {Uint8Array} plane
 * @param {number} width
 * @param {Weights | null} weights
 * @returns {Uint8Array}
 */
function resizedDown(plane, width, weights) {
  return weights === null ? plane : resized(plane, width, 1, width, weights);
}

/**
 * The pixels that each new pixel is made of.
 *
 * @typedef {object} Weights
 * @property {Int32Array} first (new length,)
 * @property {Int32Array[]} of (new length,) lists of integers: weights times 2**22
 */

/**
 * Return the weights along one axis, or null if nothing changes.
 *
 * @param {number} length
 * @param {number} start of the part that is kept, in pixels
 * @param {number} end
 * @param {number} newLength
 * @returns {Weights | null}
 */
function weightsOf(length, start, end, newLength) {
  if (newLength === length && start === 0 && end === length) return null;
  const scale = (end - start) / newLength;
  const stretch = Math.max(scale, 1);
  const support = SUPPORT * stretch;
  const first = new Int32Array(newLength);
  const of = Array.from({ length: newLength }, (_, place) => {
    const centre = start + (place + 0.5) * scale;
    first[place] = Math.max(0, Math.trunc(centre - support + 0.5));
    const last = Math.min(length, Math.trunc(centre + support + 0.5));
    const weights = new Float64Array(last - first[place]);
    let sum = 0;
    for (let i = 0; i < weights.length; i++) {
      weights[i] = bicubic((i + first[place] - centre + 0.5) * (1 / stretch));
      sum += weights[i];
    }
    return Int32Array.from(weights, (weight) => {
      const share = (sum === 0 ? weight : weight / sum) * 2 ** PRECISION;
      return Math.trunc(share < 0 ? share - 0.5 : share + 0.5);
    });
  });
  return { first, of };
}

/**
 * Keys's cubic convolution with a = −1/2 ("Cubic convolution interpolation for digital image processing", 1981).
 *
 * @param {number} x
 * @returns {number}
 */
function bicubic(x) {
  const a = -0.5;
  const distance = Math.abs(x);
  if (distance < 1) return ((a + 2) * distance - (a + 3)) * distance * distance + 1;
  if (distance < 2) return (((distance - 5) * distance + 8) * distance - 4) * a;
  return 0;
}

/**
 * Apply weights along one axis of a plane.
 *
 * @param {Uint8Array} plane
 * @param {number} lines that run along the axis
 * @param {number} between distance of two lines in memory
 * @param {number} step distance of two neighbours on a line
 * @param {Weights} weights
 * @returns {Uint8Array}
 */
function resized(plane, lines, between, step, weights) {
  const length = weights.first.length;
  const out = new Uint8Array(lines * length);
  const newBetween = step === 1 ? length : 1;
  for (let line = 0; line < lines; line++) {
    for (let place = 0; place < length; place++) {
      const list = weights.of[place];
      let at = line * between + weights.first[place] * step;
      let sum = 1 << (PRECISION - 1);
      for (let i = 0; i < list.length; i++, at += step) sum += list[i] * plane[at];
      out[line * newBetween + place * step] = Math.min(255, Math.max(0, Math.floor(sum / 2 ** PRECISION)));
    }
  }
  return out;
}
