/**
 * The panel of samples from the prior.
 *
 * @module
 */

import { busy } from "./busy.js";
import { button, element, on, showError } from "./dom.js";
import { drawOptions } from "./latent_panel.js";
import { show } from "./pixels.js";

/** @import { Point } from "./point.js" */

const COUNT = 24;

/**
 * Fill the panel with samples of the seed, prior and label that are chosen.
 *
 * @param {Point} point
 */
export function gallery(point) {
  const { vae } = point;
  let start = 0;
  const fill = async () => {
    const options = { ...drawOptions(vae.labels), start };
    const latents = await vae.sampleLatents(COUNT, options);
    const images = await vae.decode(latents);
    const size = latents.data.length / COUNT;
    const pixels = images.data.length / COUNT;
    const buttons = Array.from({ length: COUNT }, (_, k) => {
      const one = document.createElement("button");
      one.type = "button";
      one.setAttribute("aria-label", `Sample ${start + k}`);
      const picture = document.createElement("canvas");
      show(picture, { data: images.data.subarray(k * pixels), shape: images.shape });
      one.append(picture);
      on(one, "click", () => point.goTo(latents.data.slice(k * size, (k + 1) * size)));
      return one;
    });
    element("samples", HTMLDivElement).replaceChildren(...buttons);
  };
  const again = () => {
    start = 0;
    return fill();
  };
  on(button("next"), "click", () => {
    start += COUNT;
    return fill();
  });
  on(element("draw", HTMLFormElement), "submit", again);
  on(button("random"), "click", again);
  on(element("prior", HTMLSelectElement), "change", again);
  on(element("label", HTMLSelectElement), "change", again);
  busy(fill).catch(showError);
}
