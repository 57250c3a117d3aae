/**
 * The panel that shows one point: its image, sliders, the pad of two dimensions, and draws from the prior.
 *
 * @module
 */

import { npzOf } from "../javascript/index.js";
import { button, canvas, element, fill, input, on, select, showError } from "./dom.js";
import { latestOnly } from "./latest.js";
import { pngOf, save, show } from "./pixels.js";

/** @import { Point } from "./point.js" */
/** @import { PriorName } from "../javascript/types.js" */

const SHOWN = 8; // sliders at first
const STEPS = 200; // of a slider, from one end to the other
const KEY_STEP = 0.04; // share of the range that an arrow key moves the pad

/**
 * Fill the panel for a point.
 *
 * @param {Point} point
 */
export function latentPanel(point) {
  const draw = latestOnly(async () => show(canvas("image"), await point.vae.decode(point.batch)), showError);
  point.whenMoved(draw);
  sliders(point);
  pad(point);
  draws(point);
  on(button("save-png"), "click", async () => save("image.png", await pngOf(canvas("image"))));
  on(button("save-npz"), "click", () => {
    const bytes = /** @type {Uint8Array<ArrayBuffer>} */ (npzOf({ mu: point.batch }));
    save("latent.npz", new Blob([bytes], { type: "application/zip" }));
  });
}

/** @param {Point} point */
function sliders(point) {
  const { dimensions } = point.vae;
  const rows = dimensions.map((dimension, place) => slider(point, dimension, place >= SHOWN));
  element("sliders", HTMLDivElement).replaceChildren(...rows);
  const more = button("more");
  more.hidden = dimensions.length <= SHOWN;
  on(more, "click", () => {
    for (const row of rows) row.hidden = false;
    rows[SHOWN].querySelector("input")?.focus();
    more.hidden = true;
  });
}

/**
 * @param {Point} point
 * @param {number} dimension
 * @param {boolean} hidden
 * @returns {HTMLLabelElement}
 */
function slider(point, dimension, hidden) {
  const [low, high] = point.range(dimension);
  const range = Object.assign(document.createElement("input"), { type: "range", min: low, max: high });
  range.step = String((high - low) / STEPS);
  const output = document.createElement("output");
  const label = document.createElement("label");
  label.append(`z${dimension}`, range, output);
  label.hidden = hidden;
  on(range, "input", () => point.set({ [dimension]: range.valueAsNumber }));
  const follow = () => {
    const value = point.values[dimension];
    range.value = String(value);
    output.textContent = value.toFixed(2);
  };
  point.whenMoved(follow);
  follow();
  return label;
}

/** @param {Point} point */
function pad(point) {
  const area = element("pad", HTMLDivElement);
  const [across, up] = [select("pad-x"), select("pad-y")];
  const { dimensions } = point.vae;
  const options = /** @type {[string, string][]} */ (dimensions.map((j) => [String(j), `z${j}`]));
  fill(across, options, String(dimensions[0]));
  fill(up, options, String(dimensions[Math.min(1, dimensions.length - 1)]));

  /** @type {(list: HTMLSelectElement) => number} */
  const share = (list) => {
    const [low, high] = point.range(Number(list.value));
    return (point.values[Number(list.value)] - low) / (high - low);
  };
  /** @type {(x: number, y: number) => void} */
  const go = (x, y) => {
    const [[lowX, highX], [lowY, highY]] = [across, up].map((list) => point.range(Number(list.value)));
    const [shareX, shareY] = [x, y].map((value) => Math.min(1, Math.max(0, value)));
    const [valueX, valueY] = [lowX + shareX * (highX - lowX), lowY + shareY * (highY - lowY)];
    point.set({ [Number(across.value)]: valueX, [Number(up.value)]: valueY });
  };
  const follow = () => {
    const [x, y] = [share(across), share(up)];
    const dot = element("pad-dot", HTMLDivElement);
    dot.style.left = `${100 * Math.min(1, Math.max(0, x))}%`;
    dot.style.top = `${100 * (1 - Math.min(1, Math.max(0, y)))}%`;
    const [valueX, valueY] = [across, up].map((list) => point.values[Number(list.value)].toFixed(2));
    area.setAttribute("aria-valuenow", String(Math.round(100 * x)));
    area.setAttribute("aria-valuetext", `z${across.value} ${valueX}, z${up.value} ${valueY}`);
  };
  point.whenMoved(follow);
  on(across, "change", follow);
  on(up, "change", follow);
  follow();

  /** @type {(event: PointerEvent) => void} */
  const drag = (event) => {
    const box = area.getBoundingClientRect();
    go((event.clientX - box.left) / box.width, 1 - (event.clientY - box.top) / box.height);
  };
  on(area, "pointerdown", (event) => {
    area.setPointerCapture(event.pointerId);
    drag(event);
  });
  on(area, "pointermove", (event) => {
    if (area.hasPointerCapture(event.pointerId)) drag(event);
  });
  on(area, "keydown", (event) => {
    const moves = /** @type {Record<string, [number, number]>} */ ({
      ArrowLeft: [-KEY_STEP, 0],
      ArrowRight: [KEY_STEP, 0],
      ArrowUp: [0, KEY_STEP],
      ArrowDown: [0, -KEY_STEP],
    });
    const move = moves[event.key];
    if (!move) return;
    event.preventDefault();
    go(share(across) + move[0], share(up) + move[1]);
  });
}

/** @param {Point} point */
function draws(point) {
  const { priors, labels } = point.vae;
  const names = { flow: "learned flow", mixture: "mixture", normal: "N(0, I)" };
  fill(
    select("prior"),
    priors.map((prior) => [prior, names[prior]]),
    priors[0],
  );
  const choice = element("label-choice", HTMLLabelElement);
  fill(
    select("label"),
    [["", "any"], .../** @type {[string, string][]} */ (labels.map((_, k) => [String(k), labels[k]]))],
    "",
  );
  const follow = () => (choice.hidden = !labels.length || select("prior").value === "normal");
  on(select("prior"), "change", follow);
  follow();
  const goToDraw = async () => point.goTo((await point.vae.sampleLatents(1, drawOptions(labels))).data);
  on(element("draw", HTMLFormElement), "submit", (event) => {
    event.preventDefault();
    return goToDraw();
  });
  on(button("random"), "click", () => {
    const [seed] = crypto.getRandomValues(new Uint32Array(1));
    input("seed").value = String(seed);
    return goToDraw();
  });
  on(button("mean"), "click", () => point.goTo(point.mean()));
}

/**
 * Return what the form asks for.
 *
 * @param {readonly string[]} labels
 * @returns {{seed: bigint, prior: PriorName, label?: string}}
 */
export function drawOptions(labels) {
  const text = input("seed").value.trim();
  if (!/^[0-9]+$/.test(text)) throw new Error(`the seed must be a whole number of 0 or more, not '${text}'`);
  const prior = /** @type {PriorName} */ (select("prior").value);
  const label = select("label").value;
  const labelled = label !== "" && prior !== "normal";
  return { seed: BigInt(text), prior, ...(labelled && { label: labels[Number(label)] }) };
}
