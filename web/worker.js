// The graphs of a bundle, beside the page, so that the page stays awake. A message is {id, task, ...}, its answer
// {id, value} or {id, error}. One task at a time.
import {Bundle, contentOf, readNpz} from "./parser.js";
import {findRuntimes} from "./runtime.js";

let bundle, before = Promise.resolve();

const tasks = {
  // source: {path in the bundle: File}, or the address of a folder.
  async open({source, variant, device}) {
    const {runtimes, threads, why} = await findRuntimes(device);
    bundle = await Bundle.open(runtimes, (path) => read(source, path), variant);
    await Object.values(runtimes)[0](); // what is missing is said now
    return {info: bundle.info, threads, why};
  },
  begin: () => { bundle.providers = {}; },
  run: ({name, inputs}) => bundle.run(name, inputs),
  picture: ({pixels}) => bundle.picture(pixels),
  features: async ({file}) => readNpz(new Uint8Array(await contentOf(file))),
  file: ({path}) => bundle.read(path),
};

async function read(source, path) {
  if (typeof source !== "string") {
    if (!Object.hasOwn(source, path)) throw new Error(`${path} is not in that folder`);
    return new Uint8Array(await source[path].arrayBuffer());
  }
  const answer = await fetch(`${source}/${path}`);
  if (!answer.ok) throw new Error(`${source}/${path}: the server says ${answer.status}`);
  return new Uint8Array(await answer.arrayBuffer());
}

addEventListener("message", ({data: {id, task, ...options}}) => {
  before = before.then(async () => {
    try {
      const value = await tasks[task](options);
      postMessage({id, value, ran: {providers: bundle.providers, refused: bundle.refused}});
    } catch (error) {
      postMessage({id, error: error.message});
    }
  });
});
