// Parse a features file in Node:  node parse.mjs BUNDLE FEATURES.npz [fp16|int8] [--csv] [--threshold=P]
// Prints the JSON that parse.py --json writes; with --csv, what its --csv writes.
import {readFile, stat} from "node:fs/promises";
import {basename} from "node:path";
import {Bundle, csvOf, describe, parse, printable, readNpz} from "./parser.js";

const words = process.argv.slice(2), threshold = words.find((word) => word.startsWith("--threshold="))?.split("=")[1];
const [folder, file, variant] = words.filter((word) => word !== "--csv" && !word.startsWith("--threshold="));
if (!file) {
  console.error("error: name a bundle and a features file: node parse.mjs BUNDLE FEATURES.npz [fp16|int8] [--csv] [--threshold=P]");
  process.exit(2);
}

async function read(path) {
  try {
    if ((await stat(path)).isFile()) return new Uint8Array(await readFile(path)); // a pipe or a device might have no end
    throw new Error(`${path}: not a file`);
  } catch (error) {
    throw new Error(error.code === "ENOENT" ? `${path}: no such file` : error.message);
  }
}

try {
  if (threshold !== undefined && !(threshold > 0 && threshold < 1)) throw new Error("--threshold takes a number between 0 and 1");
  const ort = await import("onnxruntime-node").catch(() => {
    throw new Error("this needs onnxruntime-node: npm ci --prefix web");
  });
  const bundle = await Bundle.open({cpu: () => ort}, (name) => read(`${folder}/${name}`), variant);
  const result = await parse(await readNpz(await read(file)), bundle, undefined, threshold && Number(threshold));
  if (words.includes("--csv")) process.stdout.write(csvOf(result, basename(file)));
  else console.log(JSON.stringify(describe(result, bundle, basename(file))));
} catch (error) {
  console.error(`error: ${printable(error.message)}`);
  process.exit(1);
}
