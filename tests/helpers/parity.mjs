// node parity.mjs PARSER.onnx INPUTS.npz...: outputs of onnxruntime-node for each inputs file, as JSON.
import {readFile} from "node:fs/promises";
import * as ort from "onnxruntime-node";
import {readNpz} from "../../web/parser.js";

const [model, ...files] = process.argv.slice(2), results = [];
const session = await ort.InferenceSession.create(model, {logSeverityLevel: 3});
for (const file of files) {
  const arrays = await readNpz(new Uint8Array(await readFile(file)));
  const feeds = Object.fromEntries(Object.entries(arrays).map(([k, x]) => [k, new ort.Tensor("float32", x.data, x.shape)]));
  const outputs = await session.run(feeds);
  results.push(Object.fromEntries(Object.entries(outputs).map(([k, x]) => [k, [...x.data].map(Number)])));
}
console.log(JSON.stringify(results));
