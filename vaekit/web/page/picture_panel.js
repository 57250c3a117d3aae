/**
 * The panel that takes a picture: from a file, the clipboard or the camera.
 *
 * @module
 */

import { reasonOf } from "../javascript/errors.js";
import { percentileOf, pixelsOf, readPicture } from "../javascript/index.js";
import { button, canvas, element, input, on } from "./dom.js";
import { show } from "./pixels.js";

/** @import { Point } from "./point.js" */
/** @import { Picture } from "../javascript/picture.js" */
/** @import { Floats } from "../javascript/types.js" */

/**
 * Fill the panel. A picture is encoded and reconstructed, and the point can go to it.
 *
 * @param {Point} point
 */
export function picturePanel(point) {
  const { vae } = point;
  /** @type {Float32Array | null} */
  let code = null;
  /** @type {(picture: Picture) => Promise<void>} */
  const take = async (picture) => {
    const images = vae.imagesOf([picture]);
    const { mu } = await vae.encode(images);
    const reconstruction = await vae.decode(mu);
    show(canvas("original"), images);
    show(canvas("reconstruction"), reconstruction);
    element("score", HTMLParagraphElement).textContent = await describe(point, images, reconstruction);
    element("result", HTMLDivElement).hidden = false;
    code = mu.data;
  };
  /** @type {(blob: Blob | null | undefined, name?: string) => Promise<void>} */
  const takeFile = async (blob, name) => {
    if (blob) await take(await readPicture(blob, name));
  };
  const file = input("file");
  on(button("choose"), "click", () => file.click());
  on(file, "change", async () => {
    await takeFile(file.files?.[0], file.files?.[0]?.name);
    file.value = ""; // so that the same file can be chosen again
  });
  const drop = element("drop", HTMLDivElement);
  on(document, "dragover", (event) => {
    event.preventDefault();
    drop.classList.add("over");
  });
  on(document, "dragleave", () => drop.classList.remove("over"));
  on(document, "drop", async (event) => {
    event.preventDefault();
    drop.classList.remove("over");
    const dropped = event.dataTransfer.files[0];
    if (!dropped) throw new Error("nothing was dropped that is a file");
    await takeFile(dropped, dropped.name);
  });
  on(document, "paste", (event) => takeFile(event.clipboardData.files[0], "the pasted picture"));
  on(button("move"), "click", () => code && point.goTo(code));
  camera(take);
}

/** @param {(picture: Picture) => Promise<void>} take */
function camera(take) {
  const video = element("video", HTMLVideoElement);
  const stop = () => {
    const stream = /** @type {MediaStream | null} */ (video.srcObject);
    stream?.getTracks().forEach((track) => track.stop());
    video.srcObject = null;
    video.hidden = button("shoot").hidden = true;
  };
  button("camera").hidden = !navigator.mediaDevices?.getUserMedia;
  on(button("camera"), "click", async () => {
    if (video.srcObject) return stop();
    try {
      video.srcObject = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment" } });
    } catch (error) {
      throw new Error(`the camera cannot be used: ${reasonOf(error)}`);
    }
    video.hidden = false;
    await video.play(); // from here on it has pictures
    button("shoot").hidden = false;
  });
  on(button("shoot"), "click", async () => {
    const picture = pixelsOf(video, "the camera's picture");
    stop();
    await take(picture);
  });
}

/**
 * Say how good the reconstruction is, and how usual the picture.
 *
 * @param {Point} point
 * @param {Floats} images
 * @param {Floats} reconstruction
 * @returns {Promise<string>}
 */
async function describe({ vae }, images, reconstruction) {
  const errors = images.data.reduce((sum, value, j) => sum + (value - reconstruction.data[j]) ** 2, 0);
  const psnr = `PSNR ${(10 * Math.log10(images.data.length / errors)).toFixed(1)} dB.`;
  const { scores } = vae.manifest;
  if (scores === null) return psnr;
  const [score] = await vae.score(images, { seed: scores.seed });
  const percent = percentileOf(scores, score);
  const ends = { 0: "lower than that of every", 100: "higher than that of every" };
  const place = ends[/** @type {0 | 100} */ (percent)] ?? `higher than that of ${percent.toFixed(1)} % of the`;
  const plural = percent === 0 || percent === 100 ? "image" : "images";
  return `${psnr} Score (−ELBO) ${score.toFixed(1)} nats: ${place} held-out ${plural}.`;
}
