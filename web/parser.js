// The parser in JavaScript: the same steps as parse.py, in a browser (onnxruntime-web) or in Node (onnxruntime-node).
//
//   const bundle = await Bundle.open({cpu: () => ort}, read); // read(path) -> Promise<Uint8Array> of a file of the bundle
//   const result = await parse(await readNpz(bytes), bundle); // or: await featuresOfVideo(file, bundle)
//   result.events                                             // [{label, modality, onset, offset, probability}, ...]
//
// An array is {data: Float32Array | ..., shape: [...]}. T segments of one second, C classes.

import {timesOf} from "./container.js";

export const CLIP_SECONDS = 10; // segments: of LLP's clips. The bundle knows how long those were that its parser was trained on
export const PREFIXES = {audible: "audio", visible: "visual", both: "av"};
const BUNDLE_FORMAT = 2;
const JSON_FORMAT = 1; // of what `describe` returns (docs/deploy.md)
const ORIGIN = "seconds from the first time stamp of the file"; // of onsets and offsets
const SIZE = 224; // pixels of a picture's side
const RATE = 48000; // Hz
const HALF = 65504; // the largest number in half precision, in which parsers are trained
// Characters that no text of a bundle has: a terminal may obey them, or they are invisible, or turn what follows around.
const CONTROL = /[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ud800-\udfff]/u;
const AT_ONCE = 16; // windows through the parser
const CUT_SHORT = 0.5; // s by which a declared length may be too short
const UNPACKED = 2 ** 30; // bytes that an .npz file of features may unpack to
const TAIL = 0.1; // s: a last segment shorter than this is none
const LARGEST = 2 ** 31; // bytes, about, that a browser reads in one piece

// ---- the bundle ----

export class Bundle {
  // variant: "fp16" or "int8", for smaller graphs: the parser, which must have it, and the encoders that do.
  constructor(info, variant = "") {
    Object.assign(this, {info, variant, classes: info.classes, window: info.segments ?? CLIP_SECONDS});
    Object.assign(this, {sessions: {}, providers: {}, refused: {}}); // by graph
    this.parser = this.chosen("parser");
    if (variant && this.parser === "parser") throw new Error(`the bundle has no ${variant} parser; export it with --${variant}`);
  }

  // runtimes: {device: () => onnxruntime}, the best device first. read(path): the bytes of a file of the bundle.
  static async open(runtimes, read, variant = "") {
    const bytes = await read("bundle.json");
    let info = null;
    try {
      info = JSON.parse(new TextDecoder().decode(bytes));
    } catch {} // said below
    if (info?.format !== undefined && info.format !== BUNDLE_FORMAT) {
      throw new Error(`bundle.json: a bundle of format ${printable(JSON.stringify(info.format))}, this program reads ${BUNDLE_FORMAT}`);
    }
    if (!isWhole(info)) throw new Error("bundle.json: not the description of a bundle");
    return Object.assign(new Bundle(info, variant), {runtimes, read});
  }

  chosen(name) {
    const smaller = `${name}_${this.variant}`;
    return Object.hasOwn(this.info.files, smaller) ? smaller : name;
  }

  // The parser's inputs by modality.
  get inputs() {
    const names = Object.keys(this.info.files.parser.inputs);
    return {audio: ["audio"], visual: names.filter((name) => name !== "audio")};
  }

  // Why the events mean nothing, if they do: what the parser learned from, or its encoders, are not real. And whether
  // videos are prepared otherwise than those of the training.
  get warnings() {
    const random = Object.entries(this.info.files).filter(([, file]) => file.weights?.weights === "random");
    const reasons = [...random.map(([name]) => `RANDOM WEIGHTS in ${name}.onnx`), String(this.info.dry_run || "")];
    const why = reasons.filter(Boolean).join("; ");
    const recipe = this.info.preprocessing?.recipe_of_training;
    return [why && `a dry run (${why}): the events mean nothing for real videos`, recipe && recipe !== "uwav"
      && `trained on features of recipe ${recipe}, but videos are prepared by recipe uwav`].filter(Boolean);
  }

  // The outputs of a graph by name; inputs are {name: array}. A device that cannot run it is left for the next one.
  async run(graph, inputs) {
    const name = this.chosen(graph), file = Object.hasOwn(this.info.files, name) && this.info.files[name];
    if (!file) throw new Error(`the bundle has no ${name}.onnx: it parses features, not videos`);
    const devices = Object.keys(this.runtimes).filter((device) => !(device === "webgpu" && name.endsWith("_int8"))); // it has no 8-bit kernels
    for (let n = devices.indexOf(this.sessions[name]?.device ?? devices[0]); ; n++) {
      try {
        const outputs = await this.runOn(devices[n], name, file, inputs);
        this.providers[name] = DEVICES[devices[n]];
        return outputs;
      } catch (error) {
        if (error.ofFile || n + 1 === devices.length) throw error;
        this.refused[name] = `${DEVICES[devices[n]]}: ${error.message.split("\n")[0].slice(0, 200)}`;
        delete this.sessions[name];
      }
    }
  }

  async runOn(device, name, file, inputs) {
    const ort = await this.runtimes[device](), feeds = {};
    if (!this.sessions[name]) {
      const bytes = await this.checked(`onnx/${name}.onnx`, file), options = {executionProviders: [device], logSeverityLevel: 3};
      this.sessions[name] = {device, session: await ort.InferenceSession.create(bytes, options)};
    }
    for (const [key, x] of Object.entries(inputs)) {
      feeds[key] = new ort.Tensor(x.data instanceof Uint8Array ? "uint8" : "float32", x.data, x.shape);
    }
    const outputs = await this.sessions[name].session.run(feeds);
    return Object.fromEntries(Object.entries(outputs).map(([key, x]) => [key, {data: x.data, shape: [...x.dims].map(Number)}]));
  }

  // The CLIP embedding of a picture, {data: RGBA, width, height}.
  picture(pixels) {
    return this.run("clip_image", {pixels: {data: squareImage(pixels), shape: [1, SIZE, SIZE, 3]}});
  }

  async checked(path, file) {
    const bytes = await this.read(path); // not file.file: what a bundle says must not choose what is read
    const problem = namesOtherFiles(bytes) ? "keeps weights in other files, which are not read"
      : await sha256(bytes) !== file.sha256 ? "not the file that bundle.json describes (its checksum differs)" : "";
    if (problem) throw Object.assign(new Error(`${path}: ${problem}`), {ofFile: true});
    return bytes;
  }
}

const DEVICES = {cpu: "CPU", wasm: "WASM", webgpu: "WebGPU"};

function isWhole(info) {
  const {format, classes, files, gate, segments = CLIP_SECONDS} = info ?? {}, inputs = files?.parser?.inputs;
  if (format !== BUNDLE_FORMAT || !Array.isArray(classes) || !inputs?.audio || !inputs.visual_2d) return false;
  const numbers = [segments, ...Object.values(inputs).map((x) => x?.shape?.at?.(-1))];
  return classes.length > 0 && new Set(classes).size === classes.length && gate > 0 && gate < 1 && typeof gate === "number"
    && classes.every((name) => typeof name === "string") && !texts(info).some((x) => CONTROL.test(x)) && numbers.every((n) => Number.isInteger(n) && n > 0)
    && Object.values(files).every((file) => typeof file?.sha256 === "string") && typeof info.features?.set === "string";
}

// Every text of a JSON file, at any depth.
function texts(x) {
  if (typeof x === "string") return [x];
  return x && typeof x === "object" ? Object.entries(x).flatMap(([key, value]) => [key, ...texts(value)]) : [];
}

export function printable(text) {
  return text.replace(new RegExp(CONTROL.source, "gu"), "?");
}

// A cell of a table that a spreadsheet opens, which would run what looks like a formula.
function cell(x) {
  const text = `${typeof x === "string" && /^'*[=+@\uff0b\uff0d\uff1d\uff20-]/.test(x) ? "'" : ""}${x}`;
  return /[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
}

async function sha256(bytes) {
  if (!globalThis.crypto?.subtle) throw new Error("checksums need a page from https or from localhost");
  return [...new Uint8Array(await crypto.subtle.digest("SHA-256", bytes))].map((b) => b.toString(16).padStart(2, "0")).join("");
}

// A tensor of an .onnx file may name another file, anywhere, to take its numbers from, under the key "location": a
// string in protobuf, after a byte that ends its length, 8 (or 0, if that is written longer than needed).
function namesOtherFiles(bytes) {
  const word = new TextEncoder().encode("location");
  for (let i = bytes.indexOf(word[0], 1); i > 0; i = bytes.indexOf(word[0], i + 1)) {
    if ((bytes[i - 1] === 8 || bytes[i - 1] === 0) && word.every((letter, k) => bytes[i + k] === letter)) return true;
  }
  return false;
}

// ---- parsing ----

// features: {audio: (T, Da), visual_2d: (T, D2), ...}; those of one modality may be absent. As in parse.py: a window from
// every second on; probabilities are averaged, a segment weighing the more the farther it lies from the ends of a window;
// an event needs one window that admits it: above the threshold, the bundle's gate unless another is given. For inputs that are not there the parser is given zeros, and what it says of
// their modality is left out: null, and no event. tell(done, of) is called after every batch.
export async function parse(features, bundle, tell = () => {}, threshold = bundle.info.gate) {
  const inputs = bundle.info.files.parser.inputs, given = Object.keys(features), groups = Object.values(bundle.inputs);
  const there = groups.filter((names) => names.some((name) => given.includes(name)));
  const known = given.every((name) => Object.hasOwn(inputs, name)) && there.length; // absent, not misnamed
  const needed = (known ? there : groups).flat(), T = features[needed[0]]?.shape[0];
  for (const name of needed) {
    const x = features[name], {shape} = inputs[name], size = shape[shape.length - 1];
    if (!x?.data || x.shape.length !== 2 || x.shape[1] !== size || !x.shape[0]) {
      const shown = (shape) => `(${shape.join(", ")}${shape.length === 1 ? "," : ""})`; // as Python writes a tuple
      throw new Error(`the parser needs ${name} of shape (T, ${size}), but ${x ? `${name} is ${x.type ?? "float32"} ${shown(x.shape)}` : `it has [${given.map((key) => `'${key}'`).join(", ")}]`}`);
    }
    if (x.shape[0] !== T) throw new Error(`${name} has another length than ${needed[0]}`);
    if (!x.data.every((value) => Math.abs(value) <= HALF)) throw new Error(`${name} holds NaN or infinite values, or values beyond half precision`);
  }
  const length = Math.min(T, bundle.window), windows = T - length + 1, C = bundle.classes.length;
  const weight = Array.from({length}, (_, i) => Math.min(i, length - 1 - i) + 1), covered = new Float64Array(T);
  const total = {audio: new Float64Array(T * C), visual: new Float64Array(T * C)};
  const result = {T, C, classes: bundle.classes, probability: {}, around: new Float32Array(T * C)}; // of a second's best window
  for (let first = 0; first < windows; first += AT_ONCE) {
    const B = Math.min(AT_ONCE, windows - first), batch = {};
    for (const [name, {shape}] of Object.entries(inputs)) {
      const D = shape[shape.length - 1], data = new Float32Array(B * length * D), x = features[name]?.data;
      for (let w = 0; x && w < B; w++) data.set(x.subarray((first + w) * D, (first + w + length) * D), w * length * D);
      batch[name] = {data, shape: [B, length, D]};
    }
    const out = await bundle.run("parser", batch);
    for (const [name, count] of Object.entries({audio_prob: length * C, visual_prob: length * C, video_prob: C})) {
      if (out[name]?.data.length !== B * count || !out[name].data.every(Number.isFinite)) {
        throw new Error(`onnx/${bundle.parser}.onnx: its outputs are not those of a parser of ${C} classes, or not finite`);
      }
    }
    for (let w = 0; w < B; w++) {
      for (let i = 0; i < length; i++) {
        covered[first + w + i] += weight[i];
        for (let c = 0; c < C; c++) {
          const to = (first + w + i) * C + c, from = (w * length + i) * C + c;
          for (const m of ["audio", "visual"]) total[m][to] += weight[i] * out[`${m}_prob`].data[from];
          result.around[to] = Math.max(result.around[to], out.video_prob.data[w * C + c]);
        }
      }
    }
    tell(first + B === windows ? T : first + B, T);
  }
  for (const m of ["audio", "visual"]) {
    const there = bundle.inputs[m].some((name) => given.includes(name));
    result.probability[m] = there ? Float32Array.from(total[m], (x, i) => x / covered[Math.floor(i / C)]) : null;
  }
  const {audio, visual} = result.probability;
  result.probability.av = audio && visual && audio.map((x, i) => Math.min(x, visual[i]));
  result.lacks = audio ? visual ? "" : "no picture" : "no sound";
  return decide(result, threshold);
}

// The events of a result, by another threshold than before.
export function decide(result, threshold) {
  const {T, C, probability, around} = result, above = Math.fround(threshold); // as the probabilities are stored
  const passes = (p) => Uint8Array.from({length: T * C}, (_, i) => p && p[i] > above && around[i] > above);
  const event = {audio: passes(probability.audio), visual: passes(probability.visual)};
  event.av = event.audio.map((x, i) => x & event.visual[i]);
  Object.assign(result, {threshold, event});
  result.events = events(result);
  return result;
}

// The classes and modalities of the highest probabilities, and the gates that these do not pass, "second" or "video".
export function highest({T, C, classes, probability, around, threshold}, count) {
  const found = [], above = Math.fround(threshold);
  for (const modality of ["audible", "visible"]) {
    const p = probability[PREFIXES[modality]];
    for (let c = 0; p && c < C; c++) {
      let t = 0;
      for (let later = 1; later < T; later++) if (p[later * C + c] > p[t * C + c]) t = later;
      const [second, video] = [p[t * C + c], around[t * C + c]];
      const stopped = [...second > above ? [] : ["second"], ...video > above ? [] : ["video"]];
      found.push({label: classes[c], modality, at: t, second, video, stopped});
    }
  }
  return found.sort((a, b) => b.second - a.second).slice(0, count);
}

// Everything as JSON, in the format that parse.py writes too: docs/deploy.md.
export function describe(result, bundle, source) {
  const {T, C, classes, events, probability, around, threshold} = result, round = (x) => Number(x.toFixed(6));
  const table = (p) => p && Array.from({length: T}, (_, t) => Array.from(p.subarray(t * C, (t + 1) * C), round));
  return {
    format: JSON_FORMAT, source, bundle: {made_from: bundle.info.made_from ?? null, parser: bundle.info.files[bundle.parser].sha256},
    warnings: bundle.warnings, seconds: T, times: ORIGIN, threshold, classes, events: events.map((e) => ({...e, probability: round(e.probability)})),
    providers: bundle.providers, video_prob: classes.map((_, c) => round(around.reduce((top, x, i) => i % C === c ? Math.max(top, x) : top, 0))),
    audio_prob: table(probability.audio), visual_prob: table(probability.visual),
  };
}

// The table that parse.py --csv writes: an event a row, each with its video.
export function csvOf(result, source) {
  const columns = ["video", "label", "modality", "onset", "offset", "probability"];
  const rows = result.events.map((e) => ({...e, video: source, probability: Number(e.probability.toFixed(6))}));
  return [columns.join(","), ...rows.map((row) => columns.map((c) => cell(row[c])).join(",")), ""].join("\r\n");
}

// Every run of positive segments.
function events({T, C, classes, probability, event}) {
  const found = [];
  for (let c = 0; c < C; c++) {
    for (const [modality, m] of Object.entries(PREFIXES)) {
      for (let t = 0; t < T; t++) {
        if (!event[m][t * C + c]) continue;
        const onset = t;
        let sum = 0;
        for (; t < T && event[m][t * C + c]; t++) sum += probability[m][t * C + c];
        found.push({label: classes[c], modality, onset, offset: t, probability: sum / (t - onset)});
      }
    }
  }
  return found;
}

// ---- feature files ----

// The arrays of an .npz file (np.savez or np.savez_compressed), by name; {type, shape} alone of those that hold no numbers.
export async function readNpz(bytes) {
  try {
    return await arraysOf(bytes);
  } catch (error) {
    throw new Error(`not an .npz file of features (${error.message})`);
  }
}

async function arraysOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength), arrays = {};
  let end = bytes.length - 22; // of the central directory
  while (end >= 0 && view.getUint32(end, true) !== 0x06054b50) end--;
  if (end < 0) throw new Error("it is no archive");
  let entry = view.getUint32(end + 16, true), unpacked = 0;
  for (let n = view.getUint16(end + 10, true); n > 0; n--) {
    if (entry + 46 > bytes.length || view.getUint32(entry, true) !== 0x02014b50) throw new Error("it is damaged");
    const method = view.getUint16(entry + 10, true), packed = view.getUint32(entry + 20, true);
    const nameLength = view.getUint16(entry + 28, true), local = view.getUint32(entry + 42, true);
    unpacked += view.getUint32(entry + 24, true);
    if (unpacked > UNPACKED) throw new Error("it would unpack to more than 1 GB");
    if (method !== 0 && method !== 8) throw new Error("it is not compressed the way np.savez_compressed does it");
    const name = new TextDecoder().decode(bytes.subarray(entry + 46, entry + 46 + nameLength));
    const start = local + 30 + view.getUint16(local + 26, true) + view.getUint16(local + 28, true);
    let content = bytes.subarray(start, start + packed);
    if (method === 8) {
      const stream = new Blob([content]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
      content = new Uint8Array(await new Response(stream).arrayBuffer());
    }
    if (crc32(content) !== view.getUint32(entry + 16, true)) throw new Error("it is damaged");
    arrays[name.replace(/\.npy$/, "")] = readNpy(content);
    entry += 46 + nameLength + view.getUint16(entry + 30, true) + view.getUint16(entry + 32, true);
  }
  return arrays;
}

const CRC = Uint32Array.from({length: 256}, (_, n) => {
  for (let k = 0; k < 8; k++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});

function crc32(bytes) {
  let crc = 0xffffffff;
  for (const byte of bytes) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  return (crc ^ 0xffffffff) >>> 0;
}

const ARRAYS = { // of numbers, little-endian: 16-bit floats have their own reader below
  f2: Uint16Array, f4: Float32Array, f8: Float64Array, i1: Int8Array, i2: Int16Array, i4: Int32Array, i8: BigInt64Array,
  u1: Uint8Array, u2: Uint16Array, u4: Uint32Array, u8: BigUint64Array};

function readNpy(bytes) {
  const text = (a, b) => new TextDecoder("latin1").decode(bytes.subarray(a, b));
  if (text(1, 6) !== "NUMPY") throw new Error("not an .npy array");
  const view = new DataView(bytes.buffer, bytes.byteOffset), wide = bytes[6] > 1;
  const start = (wide ? 12 : 10) + (wide ? view.getUint32(8, true) : view.getUint16(8, true)), header = text(10, start);
  const type = /['"]descr['"]:\s*(?:['"]([^'"]+)['"]|\[)/.exec(header), shape = /['"]shape['"]:\s*\(([^)]*)\)/.exec(header)?.[1];
  if (!type || shape === undefined) throw new Error("not an .npy array");
  if (/\|O/.test(type[1] ?? header)) throw new Error("it holds something other than arrays");
  const sizes = shape.split(",").filter((s) => s.trim()).map(Number), count = sizes.reduce((a, b) => a * b, 1);
  const [, order, kind] = /^([<>|=]?)([fiu]\d)$/.exec(type[1]) ?? [], Kind = ARRAYS[kind];
  if (!Kind) return {type: type[1] === "|b1" ? "bool" : type[1] ?? "of several fields", shape: sizes};
  const content = bytes.slice(start, start + count * Kind.BYTES_PER_ELEMENT), size = Kind.BYTES_PER_ELEMENT; // aligned
  if (content.length !== count * size) throw new Error("an array that was cut short");
  if (order === ">") for (let i = 0; i < content.length; i += size) content.subarray(i, i + size).reverse();
  let data = Float64Array.from(new Kind(content.buffer), kind === "f2" ? half : Number);
  if (/True/.test(header) && sizes.length === 2) { // in Fortran's order
    const [rows, columns] = sizes;
    data = Float64Array.from(data, (_, i) => data[(i % columns) * rows + Math.floor(i / columns)]);
  }
  const name = {f: "float", i: "int", u: "uint"}[kind[0]] + 8 * size; // as NumPy has it
  return {data, shape: sizes, type: order === ">" && size > 1 ? type[1] : name};
}

// The number behind the 16 bits of a half.
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1, exponent = (bits >> 10) & 31, fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}

// ---- videos (browser only) ----

// CLIP and CLAP embeddings of every second. `video` is a <video> element that has loaded its metadata; `file` the same
// video as a Blob, for its sound. tell(done, of) is called after each step.
export async function featuresOfVideo(video, file, bundle, tell = () => {}) {
  const {inputs} = bundle.info.files.parser;
  if (bundle.info.features.set !== "clip_clap") throw new Error("the bundle's parser does not read CLIP and CLAP features: give it a features file");
  const content = await contentOf(file), {begin, end} = timesOf(new Uint8Array(content)), wave = await waveOf(file, content);
  const absolute = Number.isFinite(video.duration) ? video.duration - end > begin / 2 : video.currentTime > begin - TAIL;
  video.begins = absolute ? begin : 0; // some browsers count from the file's first time stamp, others by what it says
  video.unseen = Math.max(0, video.currentTime - video.begins); // s at the beginning that this browser skips
  const told = video.duration - video.begins, seconds = Number.isFinite(told) && told > end - CUT_SHORT ? told : end || wave?.length / RATE;
  const T = Math.ceil(seconds - TAIL); // a recorder leaves the length open: Infinity
  if (!(T >= 1)) throw new Error("the video has no length");
  const empty = (name) => ({data: new Float32Array(T * inputs[name].shape[2]), shape: [T, inputs[name].shape[2]]});
  const features = {};
  const put = (name, t, {embedding}) => features[name].data.set(embedding.data, t * features[name].shape[1]);
  if (wave) features.audio = empty("audio");
  if (video.videoWidth) features.visual_2d = empty("visual_2d");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [video.videoWidth, video.videoHeight];
  const context = canvas.getContext("2d", {willReadFrequently: true});
  for (let t = 0; t < T; t++) {
    if (video.videoWidth) await seek(video, video.begins + Math.min(t + 0.5, seconds - 0.001));
    tell(t + 1, T);
    if (video.videoWidth) {
      context.drawImage(video, 0, 0);
      put("visual_2d", t, await bundle.picture(context.getImageData(0, 0, canvas.width, canvas.height)));
    }
    if (wave) {
      const second = new Float32Array(RATE);
      second.set(wave.subarray(t * RATE, (t + 1) * RATE));
      put("audio", t, await bundle.run("clap_audio", {wave: {data: second, shape: [1, RATE]}}));
    }
  }
  return features;
}

// The frame of that time. A browser may say that it is there before it can be drawn: then it comes with one of the next refreshes.
function seek(video, time) {
  return new Promise((resolve, reject) => {
    const drawn = new Promise((shown) => video.requestVideoFrameCallback?.(shown));
    video.addEventListener("seeked", () => Promise.race([drawn, new Promise((late) => setTimeout(late, 250))]).then(resolve), {once: true});
    video.addEventListener("error", () => reject(new Error("the browser cannot show this video")), {once: true});
    video.currentTime = time;
  });
}

// The sound of a file, 48 kHz, from the file's first time stamp on: two channels are averaged, more are first mixed down to
// two, as ITU-R BS.775 has it; null without sound. content: the file's bytes, which are gone afterwards.
export async function waveOf(file, content = null) {
  content ??= await contentOf(file);
  const {pieces} = timesOf(new Uint8Array(content));
  let sound;
  try {
    sound = await new OfflineAudioContext(1, 1, RATE).decodeAudioData(content);
  } catch {
    return null;
  }
  if (sound.numberOfChannels > 2) {
    const context = new OfflineAudioContext(2, sound.length, RATE), source = new AudioBufferSourceNode(context, {buffer: sound});
    source.connect(context.destination);
    source.start();
    sound = await context.startRendering();
  }
  const wave = new Float32Array(sound.length);
  for (let c = 0; c < sound.numberOfChannels; c++) {
    const channel = sound.getChannelData(c);
    for (let i = 0; i < wave.length; i++) wave[i] += channel[i] / sound.numberOfChannels;
  }
  return placed(wave, pieces);
}

// Decoded samples at the times when they are heard, silence between them.
function placed(wave, pieces) {
  const sample = (seconds) => Math.round(seconds * RATE), last = pieces.at(-1);
  const out = new Float32Array(sample(last.at) + Math.max(0, wave.length - sample(last.from)));
  pieces.forEach(({from, at}, n) => out.set(wave.subarray(sample(from), n + 1 < pieces.length ? sample(pieces[n + 1].from) : wave.length), sample(at)));
  return out;
}

// All of a file, which a browser decodes in one piece.
export async function contentOf(file) {
  try {
    return await file.arrayBuffer();
  } catch (error) {
    if (file.size < LARGEST) throw error;
    throw new Error(`${file.name}: ${(file.size / 1e9).toFixed(1)} GB are more than a browser reads at once (2 GB); \`python parse.py\` has no such limit`);
  }
}

// {data: RGBA, width, height} -> RGB (224, 224, 3): short side 224 by Pillow's bicubic filter, in its fixed-point
// arithmetic, then the centre. A browser's own scaling differs from browser to browser.
export function squareImage({data, width, height}) {
  const short = Math.min(width, height);
  const w = width <= height ? SIZE : Math.trunc(SIZE * width / height), h = width <= height ? Math.trunc(SIZE * height / width) : SIZE;
  let rgb = new Uint8Array(width * height * 3);
  for (let i = 0, j = 0; i < data.length; i += 4) {
    rgb[j++] = data[i];
    rgb[j++] = data[i + 1];
    rgb[j++] = data[i + 2];
  }
  if (short !== SIZE) {
    if (w !== width) rgb = resizeRows(rgb, width, height, w, 3, width * 3);
    if (h !== height) rgb = resizeColumns(rgb, w, height, h);
  }
  const left = roundHalfToEven((w - SIZE) / 2), top = roundHalfToEven((h - SIZE) / 2);
  const out = new Uint8Array(SIZE * SIZE * 3);
  for (let y = 0; y < SIZE; y++) out.set(rgb.subarray(((y + top) * w + left) * 3, ((y + top) * w + left + SIZE) * 3), y * SIZE * 3);
  return out;
}

const BITS = 22; // of Pillow's filter coefficients

function roundHalfToEven(x) {
  const floor = Math.floor(x);
  return x - floor === 0.5 ? floor + (floor & 1) : Math.round(x);
}

// For every output pixel: the first input pixel it reads, and the filter's coefficients.
function coefficients(from, to) {
  const scale = from / to, stretch = Math.max(scale, 1), support = 2 * stretch, rows = [];
  const filter = (x) => {
    x = Math.abs(x);
    const a = -0.5;
    if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
    return x < 2 ? (((x - 5) * x + 8) * x - 4) * a : 0;
  };
  for (let i = 0; i < to; i++) {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - support + 0.5)), last = Math.min(from, Math.trunc(centre + support + 0.5));
    const weights = [];
    let total = 0;
    for (let j = first; j < last; j++) {
      weights.push(filter((j - centre + 0.5) / stretch));
      total += weights[weights.length - 1];
    }
    rows.push({first, weights: weights.map((x) => Math.trunc(x / total * (1 << BITS) + (x < 0 ? -0.5 : 0.5)))});
  }
  return rows;
}

const clip8 = (sum) => Math.max(0, Math.min(255, Math.floor(sum / (1 << BITS))));

function resizeRows(rgb, width, height, to) {
  const out = new Uint8Array(to * height * 3), rows = coefficients(width, to);
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < to; x++) {
      const {first, weights} = rows[x];
      for (let k = 0; k < 3; k++) {
        let sum = 1 << (BITS - 1);
        for (let j = 0; j < weights.length; j++) sum += rgb[(y * width + first + j) * 3 + k] * weights[j];
        out[(y * to + x) * 3 + k] = clip8(sum);
      }
    }
  }
  return out;
}

function resizeColumns(rgb, width, height, to) {
  const out = new Uint8Array(width * to * 3), rows = coefficients(height, to);
  for (let y = 0; y < to; y++) {
    const {first, weights} = rows[y];
    for (let i = 0; i < width * 3; i++) {
      let sum = 1 << (BITS - 1);
      for (let j = 0; j < weights.length; j++) sum += rgb[(first + j) * width * 3 + i] * weights[j];
      out[y * width * 3 + i] = clip8(sum);
    }
  }
  return out;
}
