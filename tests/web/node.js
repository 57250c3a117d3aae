/** Answer requests, one JSON document a line of stdin, with one a line of stdout. */

import * as ort from "onnxruntime-node";
import { createInterface } from "node:readline";
import { answer } from "./driver.js";

for await (const line of createInterface({ input: process.stdin })) {
  console.log(JSON.stringify(await answer(/** @type {any} */ (ort), JSON.parse(line))));
}
