// node parity.mjs GRAPH.onnx <CASES.json: outputs of onnxruntime-node for each case {input: [type, numbers, shape]}, as JSON.
import {readFileSync} from "node:fs";
import * as ort from "onnxruntime-node";

const session = await ort.InferenceSession.create(process.argv[2], {logSeverityLevel: 3}), results = [];
const kinds = {float32: Float32Array, uint8: Uint8Array, bool: Uint8Array};
for (const feeds of JSON.parse(readFileSync(0, "utf-8"))) {
  const inputs = Object.entries(feeds).map(([k, [type, data, shape]]) => [k, new ort.Tensor(type, kinds[type].from(data), shape)]);
  const outputs = await session.run(Object.fromEntries(inputs));
  results.push(Object.fromEntries(Object.entries(outputs).map(([k, x]) => [k, [...x.data].map(Number)])));
}
console.log(JSON.stringify(results));
