/**
 * Load the bundle beside this page, prove that this browser computes what PyTorch did, and fill the panels.
 *
 * @module
 */

import { load } from "../javascript/index.js";
import { backends, runtimeOf, threadCount } from "./backend.js";
import { element, fill, on, select, showError } from "./dom.js";
import { gallery } from "./gallery.js";
import { latentPanel } from "./latent_panel.js";
import { pathPanel } from "./path_panel.js";
import { picturePanel } from "./picture_panel.js";
import { Point } from "./point.js";

/** @import { Backend } from "./backend.js" */
/** @import { VAE } from "../javascript/vae.js" */
/** @import { Verification } from "../javascript/verify.js" */

const BACKEND = "backend"; // in the address: ?backend=webgpu

/** Load and show everything. */
async function main() {
  const found = await backends();
  const asked = new URLSearchParams(location.search).get(BACKEND);
  const backend = found.find((each) => each.provider === asked) ?? found[0];
  chooser(found, backend);
  if (asked !== null && backend.provider !== asked) throw new Error(`this browser has no backend '${asked}'`);
  const vae = await load(new URL("../bundle/", import.meta.url), {
    ort: await runtimeOf(backend),
    providers: [backend.provider],
  });
  describe(vae);
  const verified = await vae.verify();
  const who = vae.bundle.document.provenance?.compression ? "the machine that compressed it" : "PyTorch";
  if (!verified.passed) throw new Error(refusal(verified, who));
  const proof = element("proof", HTMLParagraphElement);
  proof.textContent = proved(verified, who);
  proof.classList.add("good");
  const point = new Point(vae);
  latentPanel(point);
  picturePanel(point);
  gallery(point);
  await pathPanel(point);
  point.goTo((await vae.sampleLatents(1)).data);
  element("panels", HTMLElement).hidden = false;
  document.body.dataset.ready = "yes";
}

/**
 * @param {readonly Backend[]} found
 * @param {Backend} backend
 */
function chooser(found, backend) {
  const list = select("backend");
  fill(
    list,
    found.map(({ provider, name }) => [provider, name]),
    backend.provider,
  );
  on(list, "change", () => {
    const address = new URL(location.href);
    address.searchParams.set(BACKEND, list.value);
    location.assign(address);
  });
  const several = threadCount() > 1 || backend.provider !== "wasm" || navigator.hardwareConcurrency === 1;
  const note = "More threads need a server that isolates the page, as `vaekit web --serve` does.";
  element("backend-note", HTMLSpanElement).textContent = several ? "" : note;
}

/** @param {VAE} vae */
function describe(vae) {
  const { dataset, model } = vae.bundle.document.provenance ?? {};
  const [channels, height, width] = vae.imageShape;
  const origin = typeof model === "string" ? model : dataset;
  if (typeof origin === "string") element("title", HTMLHeadingElement).textContent = origin;
  document.title = typeof origin === "string" ? `${origin} – vaekit` : "vaekit";
  element("about", HTMLParagraphElement).textContent =
    `A variational auto-encoder of ${channels === 1 ? "grey" : "colour"} images, ${height} x ${width} pixels, from ` +
    `${vae.latentShape.join(" x ")} numbers. It runs in this browser: pictures never leave it.`;
}

/**
 * @param {Verification} verified
 * @param {string} who computed the golden vectors
 * @returns {string}
 */
function proved(verified, who) {
  const largest = Math.max(...verified.outputs.map((output) => output.maxAbs));
  return `Proved here: this browser computes the bundle's golden vectors as ${who} did, within ${largest.toExponential(1)}.`;
}

/**
 * @param {Verification} verified
 * @param {string} who
 * @returns {string}
 */
function refusal(verified, who) {
  const failed = verified.outputs.filter((output) => !output.passed);
  const each = failed.map(({ graph, output, maxAbs }) => `${graph} ${output} by ${maxAbs.toExponential(1)}`);
  return (
    `this browser does not compute what ${who} did: ${each.join(", ")} on ${verified.provider}. ` +
    "Try another backend or browser."
  );
}

main().catch((error) => {
  element("about", HTMLParagraphElement).textContent = "The model cannot run here.";
  showError(error);
  document.body.dataset.ready = "failed";
});
