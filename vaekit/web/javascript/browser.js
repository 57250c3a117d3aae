/**
 * Read pictures in a browser, which decodes them.
 *
 * The result is upright (EXIF), not converted to another colour space, and not premultiplied with its transparency.
 *
 * @module
 */

import { SourceError } from "./errors.js";

/** @import { Picture } from "./picture.js" */

const MOST_PIXELS = 100_000_000;

/** Formats that vaekit reads and browsers do not, by their first bytes. @type {[string, RegExp][]} */
const UNKNOWN_TO_BROWSERS = [
  ["TIFF", /^(II\*\0|MM\0\*)/],
  ["PPM", /^P[1-6]\s/],
];

/**
 * Decode a picture. Raises SourceError if it is none, or one that browsers do not decode.
 *
 * @param {Blob} blob a file or a download
 * @param {string} [name] for messages
 * @returns {Promise<Picture>} 8 bits a channel, RGBA
 */
export async function readPicture(blob, name = "the picture") {
  const start = new TextDecoder("latin1").decode(await blob.slice(0, 4).arrayBuffer());
  const format = UNKNOWN_TO_BROWSERS.find(([, pattern]) => pattern.test(start));
  if (format) throw new SourceError(`${name} is a ${format[0]} file, which browsers cannot decode: convert it to PNG`);
  let bitmap;
  try {
    bitmap = await createImageBitmap(blob, { colorSpaceConversion: "none", premultiplyAlpha: "none" });
  } catch {
    throw new SourceError(`${name} is not a picture that this browser can decode`);
  }
  try {
    return pixelsOf(bitmap, name);
  } finally {
    bitmap.close();
  }
}

/**
 * Return the pixels of a decoded picture or of the current frame of a video.
 *
 * @param {ImageBitmap | HTMLVideoElement} source
 * @param {string} [name]
 * @returns {Picture}
 */
export function pixelsOf(source, name = "the picture") {
  const width = "videoWidth" in source ? source.videoWidth : source.width;
  const height = "videoHeight" in source ? source.videoHeight : source.height;
  if (width * height > MOST_PIXELS) throw new SourceError(`${name} has more than ${MOST_PIXELS} pixels`);
  const canvas = new OffscreenCanvas(width, height);
  const context = canvas.getContext("2d", { willReadFrequently: true });
  if (context === null) throw new SourceError(`this browser cannot hold ${name} of ${width} x ${height} pixels`);
  context.drawImage(source, 0, 0);
  const { data } = context.getImageData(0, 0, width, height);
  return { data, width, height };
}
