// onnxruntime-web, and what it runs on: WebGPU where there is one, else WebAssembly, with threads where the server
// isolates the page (headers COOP and COEP). A worker has no import map, so the library is looked for here.
const PLACES = ["./vendor", "./node_modules/onnxruntime-web/dist"]; // vendor.sh fills the first, npm the second
const THREADS = 4; // at most

// {runtimes: {device: () => onnxruntime}, the best first; why there is no WebGPU; threads}. wanted: "webgpu" (a software
// adapter, too), "wasm" or "".
export async function findRuntimes(wanted = "") {
  const adapter = wanted === "wasm" ? null : await navigator.gpu?.requestAdapter().catch(() => null);
  const software = adapter?.info?.isFallbackAdapter && wanted !== "webgpu"; // slower than WebAssembly
  const threads = self.crossOriginIsolated ? Math.min(THREADS, navigator.hardwareConcurrency) : 1;
  const runtimes = {webgpu: () => load("ort.webgpu.min.mjs", threads), wasm: () => load("ort.wasm.min.mjs", threads)};
  if (!adapter || software) delete runtimes.webgpu;
  return {runtimes, threads, why: adapter ? software ? "WebGPU is software here" : "" : wanted === "wasm" ? "" : "no WebGPU here"};
}

async function load(file, threads) {
  for (const place of PLACES) {
    let ort;
    try {
      ort = await import(`${place}/${file}`);
    } catch {
      continue;
    }
    ort.env.wasm.numThreads = threads;
    ort.env.logLevel = "error";
    return ort;
  }
  throw new Error("onnxruntime-web is not there: run `bash web/vendor.sh`, or start the page with `python parse.py --serve BUNDLE`");
}
