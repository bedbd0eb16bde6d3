// What a person does on the page: choose a bundle and a file, look, move, save.
import {PREFIXES, csvOf, decide, describe, featuresOfVideo, highest, parse} from "./parser.js";
import {Remote} from "./remote.js";

const $ = (id) => document.getElementById(id);
const asked = new URLSearchParams(location.search);
const CLOSEST = 30; // seconds that are shown at least, of a long file
const HIGHEST = 5; // probabilities that are told
let source = null, opening = null, bundle = null; // where the bundle lies; Promise of the bundle; the bundle
let file = null, result = null, address = null, latest = 0;
let rows = [], chosen = 0, at = 0, view = {from: 0, length: 1}; // strips; one of them; seconds

function say(text, alarm = false) {
  $("status").textContent = text;
  $("status").className = alarm ? "alarm" : "";
}

// Errors become a sentence on the page, never only in the console.
function guarded(action) {
  return async (...args) => {
    try {
      await action(...args);
    } catch (error) {
      $("progress").hidden = true;
      say(`This did not work: ${error.message || error}`, true);
    }
  };
}

// ---- choosing ----

// from: {path in the bundle: File}, or the address of a folder. Whether it is still wanted when it is open.
async function openBundle(from = source) {
  const another = from !== source;
  latest++;
  source = from;
  bundle?.stop();
  bundle = null;
  $("result").hidden = $("progress").hidden = true;
  const mine = opening = Remote.start(source, $("variant").value, $("device").value);
  const opened = await mine.catch((error) => { if (mine === opening) throw error; });
  if (mine !== opening) return opened?.stop();
  bundle = opened;
  const variants = Object.keys(bundle.info.files).filter((name) => name.startsWith("parser_")).map((name) => name.slice("parser_".length));
  $("variant").replaceChildren($("variant").options[0], ...variants.map((name) => new Option(name, name)));
  $("variant").value = bundle.variant;
  if (another) $("threshold").value = bundle.info.gate;
  $("options").hidden = $("sample").hidden = false;
  return true;
}

async function openAndRun(from) {
  if (!await openBundle(from)) return;
  const videos = bundle.info.files.clip_image && bundle.info.files.clap_audio;
  say(`Bundle of ${bundle.classes.length} classes (${bundle.info.made_from}). ` +
      (videos ? "Choose a video or a features file." : "It has no encoders: choose a features file."));
  if (file) await run(file);
}

$("bundle").addEventListener("change", guarded(async () => {
  const files = [...$("bundle").files].map((x) => [x.webkitRelativePath.split("/").slice(1).join("/"), x]);
  if (files.length) await openAndRun(Object.fromEntries(files));
}));

$("source").addEventListener("change", guarded(async () => {
  file = $("source").files[0] ?? file;
  if (file && opening) await run(file);
  else if (file) say("Now choose a bundle.");
}));

for (const name of ["variant", "device"]) $(name).addEventListener("change", guarded(() => openAndRun()));

$("threshold").addEventListener("change", () => {
  if ($("threshold").reportValidity() && result && !$("result").hidden) conclude(decide(result, $("threshold").valueAsNumber));
});

$("sample").addEventListener("click", guarded(async () => run(new File([await (await opening).ask("file", {path: "sample.npz"})], "sample.npz"))));

$("stop").addEventListener("click", guarded(async () => {
  file = null;
  $("source").value = "";
  say("Stopped. Choose another video, or the same one again.");
  $("source").focus(); // the button that had it is gone
  await openBundle(); // the worker ended, and with it what it computed
}));

// A file, or a bundle, that is chosen while another file is being parsed takes its place: what comes of that is dropped.
async function run(next) {
  const mine = ++latest, wanted = () => mine === latest;
  file = next;
  try {
    const parsed = await parseFile(next, await opening, wanted);
    if (!wanted()) return;
    window.parsed = result = parsed; // for the console, and for tests
  } catch (error) {
    if (wanted()) throw error;
    return;
  }
  $("progress").hidden = true;
  conclude(result);
}

function conclude({T, events: {length}, threshold, lacks}) {
  show();
  say(`${file.name}: ${T} s, ${length} event${length === 1 ? "" : "s"} above ${threshold}${lacks && `; ${lacks} in it`}.`);
}

async function parseFile(file, bundle, wanted) {
  const tell = (what) => (done, of) => {
    if (!wanted()) throw new Error("another file was chosen");
    Object.assign($("progress").firstChild, {max: of, value: done});
    $("done").textContent = `${done} of ${of} s`;
    const words = `${what} ${file.name}`; // once: a screen reader tells what changes here
    if ($("status").textContent !== words) say(words);
  };
  const isVideo = !file.name.toLowerCase().endsWith(".npz");
  $("result").hidden = true;
  $("progress").hidden = false;
  $("progress").firstChild.removeAttribute("value");
  $("done").textContent = "";
  say(`Opening ${file.name}`);
  if (address) URL.revokeObjectURL(address);
  address = isVideo ? URL.createObjectURL(file) : null;
  await bundle.ask("begin"); // what ran before belongs to another file
  const features = isVideo ? await featuresOfVideo(await openVideo(file), file, bundle, tell("Looking at and listening to")) : await bundle.ask("features", {file});
  if (wanted()) $("video").hidden = !isVideo;
  return parse(features, bundle, tell("Parsing"), $("threshold").checkValidity() ? $("threshold").valueAsNumber : undefined);
}

async function openVideo({name}) {
  const video = $("video");
  await new Promise((resolve, reject) => {
    video.onloadeddata = resolve;
    video.onerror = () => reject(new Error(`${name}: the browser cannot read this video`));
    video.src = address;
    video.load();
  });
  video.onerror = null;
  return video;
}

// ---- showing ----

function show() {
  const {T, classes} = result, found = [...new Set(result.events.map((e) => e.label))];
  const element = (tag, className, text = "") => Object.assign(document.createElement(tag), {className, textContent: text});
  rows = [];
  $("strips").replaceChildren();
  for (const label of found) {
    const line = element("div", "event"), title = label.replaceAll("_", " "), bars = element("div", "");
    for (const [modality, m] of Object.entries(PREFIXES)) {
      const there = result.probability[m]; // nothing to say of a stream that is not there
      const strip = there ? element("canvas", modality) : element("div", `absent ${modality}`, result.lacks);
      strip.dataset.row = rows.length;
      rows.push({title, modality, m, c: classes.indexOf(label), strip, there});
      bars.append(strip);
    }
    line.append(element("div", "", title), bars);
    $("strips").append(line);
  }
  const ruler = element("div", "ruler");
  ruler.append(element("div", ""), element("div", "marks"));
  $("strips").append(ruler);
  fill("table", ["class", "modality", "when", "probability"], `Events of ${file.name}`, result.events.map((e) =>
    [e.label, e.modality, span(e.onset, e.offset), e.probability.toFixed(2)]));
  fill("highest", ["class", "modality", "when", "of the second", "of the video around it", "stopped by"], `An event needs more than ${result.threshold} twice`,
    highest(result, HIGHEST).map((x) => [x.label, x.modality, span(x.at, x.at + 1), x.second.toFixed(3), x.video.toFixed(3), x.stopped.join(" and ") || "nothing: an event"]));
  $("closest").open = !found.length;
  $("none").textContent = `No event: nothing has a probability above ${result.threshold} both in a second and in the video around it.`;
  const skipped = !$("video").hidden && $("video").unseen > 0.1 && `this browser shows nothing of the first ${$("video").unseen.toFixed(1)} s`;
  $("notes").textContent = [...bundle.warnings, skipped].filter(Boolean).join("; ");
  $("ran").textContent = bundle.ranOn;
  $("zoom").hidden = T <= 2 * CLOSEST;
  $("timeline").hidden = $("told").hidden = !found.length;
  $("none").hidden = found.length > 0;
  $("cursor").setAttribute("aria-valuemax", T);
  $("result").hidden = false;
  [chosen, view] = [0, {from: 0, length: T}];
  look(0, T);
  moveTo(0);
}

function fill(table, columns, caption, lines) {
  const text = (tag, textContent) => Object.assign(document.createElement(tag), {textContent});
  $(table).replaceChildren(text("caption", caption));
  $(table).createTHead().insertRow().append(...columns.map((name) => Object.assign(text("th", name), {scope: "col"})));
  const body = $(table).createTBody();
  for (const line of lines) body.insertRow().append(...line.map((x) => text("td", x.replaceAll("_", " "))));
}

// Seconds; of more than two minutes, minutes and seconds.
function time(t) {
  return result.T > 120 ? `${Math.floor(t / 60)}:${String(Math.floor(t % 60)).padStart(2, "0")}` : `${Math.floor(t)}`;
}
const unit = () => (result.T > 120 ? "" : " s");
const span = (from, to) => `${time(from)} to ${time(to)}${unit()}`;

// Show `length` seconds from `from` on.
function look(from, length) {
  const {T} = result;
  view.length = Math.min(T, Math.max(length, CLOSEST));
  view.from = Math.max(0, Math.min(from, T - view.length));
  Object.assign($("pan"), {max: T - view.length, value: view.from, hidden: view.length === T});
  draw();
}

function draw() {
  if (!rows.length) return;
  const {C, T} = result, end = Math.min(T, view.from + view.length);
  for (const {strip, m, c, there} of rows) {
    if (!there) continue;
    const dot = devicePixelRatio, context = strip.getContext("2d");
    [strip.width, strip.height] = [strip.clientWidth * dot, strip.clientHeight * dot];
    context.fillStyle = getComputedStyle(strip).color;
    const place = (t) => Math.round((t - view.from) / view.length * strip.width);
    for (let t = Math.floor(view.from); t < end; t++) {
      const event = result.event[m][t * C + c];
      context.globalAlpha = event ? 1 : 0.35 * Math.min(1, there[t * C + c]);
      context.fillRect(place(t), 0, Math.max(place(t + 1) - place(t), event ? dot : 0), strip.height); // a short event is seen, too
    }
  }
  mark();
  moveTo(at, false);
}

// The seconds under the strips: as many as have room.
function mark() {
  const marks = $("strips").querySelector(".marks"), room = Math.max(1, marks.clientWidth / 48), end = view.from + view.length;
  const step = [1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800].find((s) => view.length / s <= room) ?? 3600, times = [];
  for (let t = step * Math.ceil(view.from / step); t <= end - 0.75 * step; t += step) times.push(t);
  marks.replaceChildren(...[...times, end].map((t) => {
    const label = document.createElement("span");
    label.textContent = `${time(t)}${unit()}`;
    label.style.left = `${100 * (t - view.from) / view.length}%`;
    return label;
  }));
}

// The cursor, and with it the video and what is told.
function moveTo(time, seek = true) {
  const {T} = result, video = $("video");
  at = Math.max(0, Math.min(time, T));
  if (seek && !video.hidden) video.currentTime = video.begins + Math.min(at, video.duration);
  if (!rows.length) return;
  const marks = $("strips").querySelector(".marks").getBoundingClientRect(), part = (at - view.from) / view.length;
  $("cursor").style.left = `${marks.left - $("timeline").getBoundingClientRect().left + marks.width * part}px`;
  $("cursor").style.opacity = part >= 0 && part <= 1 ? 1 : 0;
  $("cursor").setAttribute("aria-valuenow", at.toFixed(1));
  $("cursor").setAttribute("aria-valuetext", `${at.toFixed(0)} s`);
  rows.forEach(({strip}, n) => strip.classList.toggle("chosen", n === chosen));
  $("told").ariaLive = video.paused ? "polite" : "off"; // while it plays, the video is heard
  const words = sentence(rows[chosen], Math.min(Math.floor(at), T - 1));
  if ($("told").textContent !== words) $("told").textContent = words;
}

// By the cursor or a key; what is shown comes along.
function go(time) {
  moveTo(time);
  if (at < view.from || at > view.from + view.length) look(at - view.length / 2, view.length);
}

function sentence({title, modality, m, c, there}, t) {
  const n = t * result.C + c;
  if (!there) return `${title}, ${modality}: ${result.lacks}`;
  return `${title}, ${modality}, ${span(t, t + 1)}: probability ${there[n].toFixed(2)}${result.event[m][n] ? ", an event" : ""}`;
}

function follow() {
  const {hidden, currentTime, begins} = $("video");
  if (result && !hidden && Math.abs(currentTime - begins - at) > 0.02) {
    moveTo(currentTime - begins, false);
    if (at > view.from + view.length) look(at, view.length);
  }
  requestAnimationFrame(follow);
}
follow();

// ---- moving ----

const zoom = (factor) => look(at - view.length * factor / 2, view.length * factor);
const secondAt = (x) => {
  const box = $("strips").querySelector(".marks").getBoundingClientRect();
  return x >= box.left ? view.from + Math.min(1, (x - box.left) / box.width) * view.length : null;
};

$("strips").addEventListener("click", (event) => {
  const time = secondAt(event.clientX);
  if (time === null) return;
  chosen = Number(event.target.dataset.row ?? chosen);
  $("cursor").focus({preventScroll: true});
  go(time);
});
$("cursor").addEventListener("keydown", (event) => {
  const to = {ArrowRight: at + 1, ArrowLeft: at - 1, PageDown: at + 10, PageUp: at - 10, Home: 0, End: result.T}[event.key];
  const step = {ArrowDown: 1, ArrowUp: -1}[event.key], factor = {"+": 0.5, "-": 2}[event.key];
  if (to !== undefined) go(to);
  else if (step) {
    chosen = Math.max(0, Math.min(chosen + step, rows.length - 1));
    moveTo(at, false);
  } else if (factor) zoom(factor);
  else if (event.key === " " && !$("video").hidden) $("video")[$("video").paused ? "play" : "pause"]();
  else return;
  event.preventDefault();
});
$("strips").addEventListener("pointermove", (event) => {
  const row = rows[event.target.dataset?.row], time = secondAt(event.clientX), tip = $("tip");
  tip.hidden = !row || time === null;
  if (tip.hidden) return;
  tip.textContent = sentence(row, Math.min(Math.floor(time), result.T - 1));
  tip.style.left = `${Math.max(0, Math.min(event.clientX + 12, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${event.clientY + 14}px`;
});
$("strips").addEventListener("pointerleave", () => { $("tip").hidden = true; });
$("zoom").addEventListener("click", ({target}) => { if (target.ariaLabel) zoom(target.ariaLabel === "Wider" ? 0.5 : 2); });
$("pan").addEventListener("input", () => look(Number($("pan").value), view.length));
addEventListener("resize", () => { if (result) draw(); });
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { if (result) draw(); });

// ---- saving ----

function save(ending, type, text) {
  const link = Object.assign(document.createElement("a"), {href: URL.createObjectURL(new Blob([text], {type})), download: `${file.name}.${ending}`});
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}
$("json").addEventListener("click", () => save("json", "application/json", `${JSON.stringify(describe(result, bundle, file.name))}\n`));
$("csv").addEventListener("click", () => save("csv", "text/csv", csvOf(result, file.name)));

// ---- beginning ----

// ?bundle=FOLDER opens a bundle that lies on the server of this page; ?device=wasm|webgpu, ?variant=fp16|int8.
$("device").value = asked.get("device") ?? "";
if (asked.get("variant")) $("variant").add(new Option(asked.get("variant"), asked.get("variant"), false, true));
if (asked.get("bundle")) {
  $("bundle").closest(".choice").hidden = true;
  guarded(openAndRun)(new URL(asked.get("bundle"), location).href);
}
