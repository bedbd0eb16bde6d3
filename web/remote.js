// A bundle whose graphs run in a worker.
import {Bundle} from "./parser.js";

export class Remote extends Bundle {
  // source: {path in the bundle: File}, or the address of a folder; device: "webgpu", "wasm", or "" for the best.
  static async start(source, variant, device) {
    const worker = new Worker(new URL("./worker.js", import.meta.url), {type: "module"}), waiting = new Map();
    let bundle = null, count = 0, ended = "";
    const ask = (task, options = {}, transfer = []) => new Promise((resolve, reject) => {
      if (ended) throw new Error(ended);
      waiting.set(++count, {resolve, reject});
      worker.postMessage({id: count, task, ...options}, transfer);
    });
    const stop = (reason = "stopped") => {
      ended = reason;
      worker.terminate();
      for (const {reject} of waiting.values()) reject(new Error(reason));
    };
    worker.onmessage = ({data: {id, value, error, ran}}) => {
      Object.assign(bundle ?? {}, ran);
      error === undefined ? waiting.get(id).resolve(value) : waiting.get(id).reject(new Error(error));
      waiting.delete(id);
    };
    worker.onerror = (event) => stop(event.message || "the worker of this page cannot be started");
    try {
      const {info, threads, why} = await ask("open", {source, variant, device});
      return bundle = Object.assign(new Remote(info, variant), {ask, stop, threads, why});
    } catch (error) {
      stop();
      throw error;
    }
  }

  run(name, inputs) {
    return this.ask("run", {name, inputs}, Object.values(inputs).map((x) => x.data.buffer));
  }

  picture({data, width, height}) {
    return this.ask("picture", {pixels: {data, width, height}}, [data.buffer]);
  }

  // "WebGPU", or "WASM, 4 threads", or which graph on which; with the reason if WebGPU was not taken.
  get ranOn() {
    const device = (name) => name === "WASM" ? `WASM, ${this.threads} thread${this.threads === 1 ? "" : "s"}` : name;
    const used = Object.entries(this.providers), kinds = [...new Set(used.map(([, name]) => name))];
    const text = kinds.length === 1 ? device(kinds[0]) : used.map(([graph, name]) => `${graph} ${device(name)}`).join("; ");
    const refused = Object.entries(this.refused).filter(([graph]) => graph in this.providers);
    const reasons = [this.why, ...refused.map(([graph, reason]) => `${graph} not on ${reason}`)].filter(Boolean);
    return used.length ? `Ran on: ${text}${reasons.length ? ` (${reasons.join("; ")})` : ""}.` : "";
  }
}
