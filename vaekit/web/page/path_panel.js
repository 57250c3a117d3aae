/**
 * The panel of a path between two stored points.
 *
 * @module
 */

import { button, canvas, input, on, showError } from "./dom.js";
import { latestOnly } from "./latest.js";
import { show } from "./pixels.js";

/** @import { Point } from "./point.js" */

const SECONDS = 3; // from one end to the other

/**
 * Fill the panel. The path begins between two samples; each end can be set to the point.
 *
 * @param {Point} point
 */
export async function pathPanel(point) {
  const { vae } = point;
  const latents = await vae.sampleLatents(2, { seed: 0 });
  const size = latents.data.length / 2;
  /** @type {Record<"start" | "end", Float32Array>} */
  const ends = { start: latents.data.slice(0, size), end: latents.data.slice(size) };
  const place = input("place");
  const one = (/** @type {Float32Array} */ data) => ({ data, shape: [1, ...vae.latentShape] });
  const draw = latestOnly(async () => {
    const t = place.valueAsNumber;
    const between = ends.start.map((value, j) => (1 - t) * value + t * ends.end[j]);
    show(canvas("between"), await vae.decode(one(between)));
  }, showError);
  for (const end of /** @type {const} */ (["start", "end"])) {
    show(canvas(end), await vae.decode(one(ends[end])));
    on(button(`set-${end}`), "click", async () => {
      ends[end] = point.latent;
      show(canvas(end), await vae.decode(one(ends[end])));
      draw();
    });
  }
  on(place, "input", draw);
  playback(place, draw);
  draw();
}

/**
 * Let the place run to and fro while the button is pressed.
 *
 * @param {HTMLInputElement} place
 * @param {() => void} draw
 */
function playback(place, draw) {
  const play = button("play");
  const playing = () => play.getAttribute("aria-pressed") === "true";
  on(play, "click", () => {
    play.setAttribute("aria-pressed", String(!playing()));
    const begin = performance.now() - place.valueAsNumber * SECONDS * 1000;
    const frame = (/** @type {number} */ now) => {
      if (!playing() || !play.isConnected) return;
      const turn = Math.max(0, (now - begin) / 1000 / SECONDS) % 2;
      place.value = String(turn < 1 ? turn : 2 - turn);
      draw();
      requestAnimationFrame(frame);
    };
    if (playing()) requestAnimationFrame(frame);
  });
}
