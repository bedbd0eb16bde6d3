// When the sound of a file is heard: a browser's decoder returns samples, laid end to end, without their beginning and
// without the gaps between them. MP4 and Matroska (WebM) have time stamps; every other container begins at 0 here.

const GAP = 0.1; // s between two pieces of sound that count as silence; less is rounding of time stamps

// {begin, end, pieces}, in s: the first time stamp of all; the last one and what it lasts; [{from, at}]: samples from
// `from` on are heard at `at`, which counts from `begin`. bytes: of the whole file.
export function timesOf(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  const tracks = [...(view.byteLength > 8 && view.getUint32(0) === 0x1a45dfa3 ? matroska : mp4)(view).values()].filter((track) => track.times.length);
  const sound = tracks.find(({kind}) => kind === "sound");
  if (!tracks.length) return {begin: 0, end: 0, pieces: [{from: 0, at: 0}]};
  const begin = Math.max(0, Math.min(...tracks.map(({times}) => times[0].at))); // as FFmpeg has it
  const end = Math.max(...tracks.map(({times}) => times.at(-1).at + times.at(-1).lasts));
  const pieces = [];
  let from = 0; // s of sound so far
  for (const {at, lasts} of sound?.times ?? []) {
    const last = pieces.at(-1);
    if (!last || at - begin > last.at + (from - last.from) + GAP) pieces.push({from, at: at - begin});
    from += lasts;
  }
  return {begin, end: end - begin, pieces: pieces.length ? pieces : [{from: 0, at: 0}]};
}

// ---- Matroska ----

const ENTERED = new Set([0x18538067, 0x1549a966, 0x1654ae6b, 0xae, 0x1f43b675, 0xa0]); // Segment, Info, Tracks, TrackEntry, Cluster, BlockGroup
const KINDS = {1: "picture", 2: "sound"};

// Track number -> {kind, times: [{at, lasts}]}. Elements are entered or skipped, so that a length which a recorder left
// open does not matter.
function matroska(view) {
  const tracks = new Map();
  let scale = 1e6, cluster = 0, track = {};
  const number = (at, size) => { let x = 0; for (let i = 0; i < size; i++) x = 256 * x + view.getUint8(at + i); return x; };
  const length = (at) => Math.clz32(view.getUint8(at)) - 23; // bytes of a number whose first byte tells how many they are
  const told = (at, wide) => (view.getUint8(at) & (0xff >> wide)) * 256 ** (wide - 1) + number(at + 1, wide - 1);
  for (let at = 0; at + 2 < view.byteLength;) {
    const id = number(at, length(at)), start = at + length(at), wide = length(start);
    if (start + wide > view.byteLength || length(at) > 4 || wide > 8) break; // it is cut short
    const size = told(start, wide), content = start + wide;
    at = ENTERED.has(id) ? content : content + size;
    if (at > view.byteLength) break;
    if (id === 0x2ad7b1) scale = number(content, size); // ns of a unit of time
    else if (id === 0xae) track = {times: []};
    else if (id === 0xd7) tracks.set(number(content, size), track);
    else if (id === 0x83) track.kind = KINDS[number(content, size)];
    else if (id === 0xe7) cluster = number(content, size);
    else if (id === 0xa3 || id === 0xa1) { // SimpleBlock, Block
      const wide = length(content), to = tracks.get(told(content, wide));
      if (to) to.times.push((cluster + view.getInt16(content + wide)) * scale / 1e9);
    }
  }
  for (const track of tracks.values()) track.times = lasting(track.times);
  return tracks;
}

// Times of packets -> with how long each lasts: until the next, unless that leaves a gap.
function lasting(times) {
  const sorted = times.toSorted((a, b) => a - b), steps = sorted.map((at, n) => sorted[n + 1] - at).slice(0, -1);
  const usual = steps.toSorted((a, b) => a - b)[steps.length >> 1] ?? 0;
  return sorted.map((at, n) => ({at, lasts: steps[n] <= usual + GAP ? steps[n] : usual}));
}

// ---- MP4 ----

const BOXES = new Set(["moov", "trak", "mdia", "minf", "stbl", "edts", "mvex", "moof", "traf"]); // entered; others are skipped
const HANDLERS = {vide: "picture", soun: "sound"};

// As above; of files in one piece and of fragments. Of an edit list what it says of the beginning.
function mp4(view) {
  const tracks = new Map(), defaults = {};
  const u32 = (at) => view.getUint32(at), u64 = (at) => Number(view.getBigUint64(at));
  let movie = 1, track = {}, fragment = {};
  const put = (track, count, lasts) => {
    if (count) track.packets.push({next: track.next, count, lasts});
    track.next += count * lasts;
  };
  const readers = {
    trak() { track = {packets: [], next: 0, delay: 0, skip: 0, shown: 0}; },
    mvhd(at, wide) { movie = u32(at + (wide ? 20 : 12)); },
    tkhd(at, wide) { tracks.set(u32(at + (wide ? 20 : 12)), track); },
    mdhd(at, wide) { track.scale = u32(at + (wide ? 20 : 12)); },
    hdlr(at) { track.kind ??= HANDLERS[String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + at + 8, 4))]; }, // QuickTime has a second one
    elst(at, wide) {
      const long = wide ? (x) => Number(view.getBigInt64(x)) : (x) => view.getInt32(x), size = wide ? 20 : 12;
      for (let entry = at + 8, n = u32(at + 4); n > 0; n--, entry += size) {
        track.skip = long(entry + size / 2 - 2); // -1: nothing is shown
        if (track.skip >= 0) break;
        track.delay += long(entry);
      }
    },
    stts(at) { for (let n = 0; n < u32(at + 4); n++) put(track, u32(at + 8 + 8 * n), u32(at + 12 + 8 * n)); },
    ctts(at) { if (u32(at + 4)) track.shown = view.getInt32(at + 12); },
    trex(at) { defaults[u32(at + 4)] = u32(at + 12); },
    tfhd(at, wide, flags) {
      const id = u32(at + 4), given = at + 8 + (flags & 1 ? 8 : 0) + (flags & 2 ? 4 : 0);
      fragment = {track: tracks.get(id), lasts: flags & 8 ? u32(given) : defaults[id] ?? 0};
    },
    tfdt(at, wide) { if (fragment.track) fragment.track.next = wide ? u64(at + 4) : u32(at + 4); },
    trun(at, wide, flags) {
      const size = [0x100, 0x200, 0x400, 0x800].filter((bit) => flags & bit).length * 4, {track, lasts} = fragment;
      let entry = at + 8 + (flags & 1 ? 4 : 0) + (flags & 4 ? 4 : 0);
      if (track && !track.packets.length && flags & 0x800) track.shown = view.getInt32(entry + size - 4);
      if (track && !(flags & 0x100)) put(track, u32(at + 4), lasts);
      else for (let n = u32(at + 4); track && n > 0; n--, entry += size) put(track, 1, u32(entry));
    },
  };
  for (let at = 0; at + 8 <= view.byteLength;) {
    const type = String.fromCharCode(...new Uint8Array(view.buffer, view.byteOffset + at + 4, 4)), long = u32(at) === 1;
    const content = at + (long ? 16 : 8), size = long ? u64(at + 8) : u32(at) || view.byteLength - at; // 0: until the end
    if (size < content - at || content > view.byteLength) break;
    readers[type]?.(content, view.byteLength > content && view.getUint8(content), view.byteLength >= content + 4 && u32(content) & 0xffffff);
    at = BOXES.has(type) ? content : at + size;
  }
  for (const track of tracks.values()) {
    const {scale = 1, packets, delay, skip, shown} = track, counts = {};
    for (const {count, lasts} of packets) counts[lasts] = (counts[lasts] ?? 0) + count;
    const usual = Number(Object.entries(counts).sort((a, b) => b[1] - a[1])[0]?.[0]); // of a packet; one that lasts long leaves a gap
    const place = (next) => delay / movie + Math.max(0, next + shown - Math.max(0, skip)) / scale; // s
    const run = (from, to) => ({at: place(from), lasts: place(to) - place(from)});
    track.times = packets.flatMap(({next, count, lasts}) => (lasts <= usual + GAP * scale ? [run(next, next + count * lasts)]
      : Array.from({length: count}, (_, n) => run(next + n * lasts, next + n * lasts + usual))));
  }
  return tracks;
}
