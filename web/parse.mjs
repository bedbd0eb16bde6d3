// Parse a features file in Node:  node parse.mjs BUNDLE FEATURES.npz   -> JSON of the events and probabilities
import {readFile, stat} from "node:fs/promises";
import * as ort from "onnxruntime-node";
import {Bundle, parse, readNpz} from "./parser.js";

const [folder, file] = process.argv.slice(2);
async function read(path) {
  try {
    if ((await stat(path)).isFile()) return new Uint8Array(await readFile(path)); // a pipe or a device might have no end
    throw new Error(`${path}: not a file`);
  } catch (error) {
    throw new Error(error.code === "ENOENT" ? `${path}: no such file` : error.message);
  }
}

try {
  const bundle = await Bundle.open(ort, (name) => read(`${folder}/${name}`));
  const result = await parse(await readNpz(await read(file)), bundle);
  const {events, videoProbability, probability} = result;
  const [audio, visual] = [probability.audio, probability.visual].map((x) => x && [...x]);
  console.log(JSON.stringify({events, videoProbability, audio, visual}));
} catch (error) {
  console.error(`error: ${error.message}`);
  process.exit(1);
}
