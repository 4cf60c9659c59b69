// The built-in page: one session of `WS /v1/stream` with its player, and the board of GPUs from `GET /status`.

const $ = (id) => document.getElementById(id);
const MIB = 1024 * 1024;
const MAX_WAITING = 8; // the server refuses more
const MAX_IMAGE = 32 * MIB;
const MAX_MESSAGE = 48 * MIB;
const still = matchMedia('(prefers-reduced-motion: reduce)');

const EXAMPLES = [
  'A red fox trots through fresh snow at dawn, breath steaming, handheld camera at its eye level',
  'Night train window, rain streaks across the glass, a city of neon signs slides past',
  'Macro shot of ink unfolding in clear water, slow, backlit',
  'A lighthouse keeper climbs a spiral stair with a lantern, waves thud outside',
  'Drone flight low over a green river canyon, morning fog lifting',
];

const CLOSE_WORDS = {
  1000: 'The session has ended.',
  1001: 'The server is going away.',
  1003: 'The server did not accept the opening message.',
  1006: 'The connection broke off.',
  1008: 'The server closed the session because a rule was broken.',
  1009: 'A message was too large for the server.',
  1011: 'The server had an internal fault.',
  1013: 'The server is full at the moment. Try again in a little while.',
};

const ERROR_WORDS = {
  session_rejected: 'The server did not take this session.',
  invalid_message: 'The server did not accept that.',
  preset_mismatch: 'The server serves another preset.',
  gpu_unavailable: 'No GPU is available.',
  worker_failed: 'The segment failed on its GPU.',
  upstream_timeout: 'The GPU took too long to answer.',
  internal_error: 'The server had an internal fault.',
  prompt_blocked: 'This prompt was blocked by the safety filter.',
  unauthorized: 'You are not allowed to open a session here.',
  state_incompatible: 'The saved state does not fit this server.',
  segment_timeout: 'The segment took too long and was stopped.',
};
/** Errors after which the running segment gives nothing more. `worker_failed` that is retryable runs again by itself. */
const SEGMENT_ERRORS = new Set(['worker_failed', 'upstream_timeout', 'segment_timeout', 'internal_error', 'gpu_unavailable']);

const COMPLETE_WORDS = {
  segment_cap: 'Finished: the session has all its segments',
  stop_requested: 'Session ended',
  error: 'The session ended after a fault',
};

const GPU_WORDS = {
  spawning: 'Starting', connecting: 'Connecting', loading: 'Loading the model', warming_up: 'Warming up', ready: 'Ready',
  busy: 'Generating', draining: 'Draining', exited: 'Not running', backing_off: 'Restarting soon', quarantined: 'Quarantined',
};

const EXIT_WORDS = { asked: 'stopped on request', crashed: 'crashed', stuck: 'hung', boot: 'did not start', bad_link: 'spoke nonsense' };

const SOURCE_WORDS = { user: 'you', curated: 'curated', enhanced: 'enhanced', auto_extension: 'extended' };

const seconds = (ms) => (ms == null ? '' : `${(ms / 1000).toFixed(ms < 9950 ? 2 : 1)} s`);
const clock = (s) => {
  const whole = Math.floor(s + 0.05); // 3.999 is the end of four seconds
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, '0')}`;
};
const span = (s) => (s < 1 ? 'less than 1 s' : s < 120 ? `${Math.round(s)} s` : s < 5400 ? `${Math.round(s / 60)} min` : `${(s / 3600).toFixed(1)} h`);
const gib = (bytes) => (bytes < 1024 ** 3 ? `${Math.round(bytes / MIB)} MiB` : `${(bytes / 1024 ** 3).toFixed(1)} GiB`);
const plural = (n, word) => `${n} ${word}${n === 1 ? '' : 's'}`;
const phrase = (text) => String(text).replaceAll('_', ' ');
const sentence = (text) => (text ? text[0].toUpperCase() + text.slice(1).replace(/([^.!?])$/, '$1.') : '');
const ordinal = (n) => `${n}${['th', 'st', 'nd', 'rd'][n % 100 > 10 && n % 100 < 14 ? 0 : n % 10] ?? 'th'}`;
const pad = (idx) => String(idx + 1).padStart(2, '0');

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text != null) node.textContent = text;
  return node;
}

/** Writes only what differs, so that live regions and selections are left in peace. */
function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function facts(node, pairs) {
  const parts = pairs.filter(([, value]) => value !== '' && value != null);
  const key = JSON.stringify(parts);
  if (node.dataset.key === key) return;
  node.dataset.key = key;
  node.replaceChildren(...parts.map(([name, value]) => {
    const part = make('span', '', `${name} `);
    part.append(make('b', '', value));
    return part;
  }));
}

function save(blob, name) {
  const link = make('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60_000);
}

// ---------------------------------------------------------------------------------------------------------------------

/** One WebSocket; knows JSON and bytes, not what they mean. */
class Connection {
  constructor(handlers) {
    this.handlers = handlers;
    this.socket = null;
    this.lastSent = 0;
  }

  get open() {
    return this.socket?.readyState === WebSocket.OPEN;
  }

  connect(first) {
    const url = new URL('/v1/stream', location.href);
    url.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';
    const socket = new WebSocket(url);
    let opened = false;
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => {
      opened = true;
      this.send(first);
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      if (typeof data === 'string') this.handlers.message(JSON.parse(data));
      else this.handlers.media(new Uint8Array(data));
    };
    socket.onclose = ({ code, reason }) => {
      if (socket !== this.socket) return;
      this.socket = null;
      this.handlers.closed(code, reason, opened);
    };
    this.socket = socket;
  }

  send(message) {
    if (!this.open) return false;
    this.socket.send(typeof message === 'string' ? message : JSON.stringify(message));
    this.lastSent = performance.now();
    return true;
  }

  close() {
    this.socket?.close(1000);
  }
}

// ---------------------------------------------------------------------------------------------------------------------

/** Plays fragmented MP4 by Media Source. Every change of the buffer is an operation in one queue. */
class MsePlayer {
  constructor(video, hooks) {
    this.video = video;
    this.hooks = hooks;
    this.stalls = 0;
    video.disableRemotePlayback = true; // ManagedMediaSource opens only then
    video.addEventListener('waiting', () => this.waiting());
    video.addEventListener('playing', () => { this.started = this.end > 0; });
    video.addEventListener('error', () => {
      if (this.source) this.fail(`The browser could not play the stream: ${video.error?.message || 'decoding failed'}.`);
    });
    this.reset();
  }

  get time() { return this.video.currentTime; }
  get paused() { return !this.playing; }
  get end() { return this.video.buffered.length ? this.video.buffered.end(this.video.buffered.length - 1) : 0; }
  get atEnd() { return this.end - this.time < 0.12; }
  get hasPicture() { return this.video.readyState >= 2 && this.end > 0; }
  get picture() { return this.video; }
  ranges() {
    const b = this.video.buffered;
    return Array.from({ length: b.length }, (_, i) => [b.start(i), b.end(i)]);
  }

  reset() {
    if (this.url) URL.revokeObjectURL(this.url);
    this.source = this.buffer = this.url = null;
    this.queue = [];
    this.onUpdated = null;
    this.resumeAt = null;
    this.started = this.dead = false;
    this.playing = true;
    if (this.video.hasAttribute('src')) {
      this.video.removeAttribute('src');
      this.video.load();
    }
  }

  /** Before the first media, so that the source is open when they come. */
  open() {
    if (this.source) return;
    const Source = window.MediaSource ?? window.ManagedMediaSource;
    if (!Source) {
      this.fail('This browser cannot play streamed MP4. Choose JPEG frames and open a new session.');
      return;
    }
    const source = new Source();
    source.addEventListener('sourceopen', () => this.pump());
    this.source = source;
    this.url = URL.createObjectURL(source);
    this.video.src = this.url;
  }

  fail(text) {
    if (this.dead) return; // one report is enough
    this.dead = true;
    this.queue = [];
    this.hooks.failed(text);
  }

  startSegment(segment, mime) {
    this.open();
    if (!this.source) return;
    if (!this.source.constructor.isTypeSupported(mime)) {
      this.fail(`This browser cannot play ${mime}. Choose JPEG frames and open a new session.`);
      return;
    }
    this.add(segment, () => {
      if (!this.buffer) {
        const buffer = this.source.addSourceBuffer(mime);
        buffer.addEventListener('updateend', () => { if (buffer === this.buffer) this.updated(); });
        buffer.addEventListener('error', () => { if (buffer === this.buffer) this.fail('The browser could not read the stream.'); });
        this.buffer = buffer;
      } else if (mime !== this.mime) {
        this.buffer.changeType(mime);
      }
      this.mime = mime;
    });
  }

  append(segment, bytes, done) {
    this.add(segment, () => this.buffer.appendBuffer(bytes), () => {
      this.settle();
      done?.();
    });
  }

  /** Takes the segment's media away, from `from` seconds on. With `hold` the same pictures will come again. */
  cut(segment, from, hold) {
    this.queue = this.queue.filter((op) => op.segment !== segment);
    this.add(null, () => {
      if (!this.buffer) return;
      if (this.source.readyState === 'open') this.buffer.abort(); // forget half a box
      if (this.end > from) this.buffer.remove(from, Infinity);
    }, () => {
      if (this.time <= from) return;
      // A seek to where nothing is buffered would be ignored, so that one waits for the media.
      this.resumeAt = hold ? this.time : Math.max(0, from - 0.05);
      this.settle();
    });
  }

  finish() {
    this.add(null, () => {
      if (this.buffer && this.source.readyState === 'open') this.source.endOfStream();
    });
  }

  add(segment, run, done) {
    if (this.dead) return;
    this.queue.push({ segment, run, done });
    this.pump();
  }

  pump() {
    while (this.queue.length && this.source && this.source.readyState !== 'closed' && !this.buffer?.updating && !this.onUpdated) {
      const op = this.queue[0];
      try {
        op.run();
      } catch (error) {
        if (error.name === 'QuotaExceededError') this.makeRoom();
        else this.fail(`The player stopped: ${error.message}`);
        return;
      }
      this.queue.shift();
      if (this.buffer?.updating) this.onUpdated = op.done ?? (() => {});
      else op.done?.();
    }
  }

  updated() {
    const done = this.onUpdated;
    this.onUpdated = null;
    done?.();
    this.pump();
  }

  /** Removing inside a segment would take its pictures up to the next key frame, which the viewer is looking at. */
  makeRoom() {
    const before = this.hooks.segmentStart(this.time) - 0.01;
    const first = this.video.buffered.length ? this.video.buffered.start(0) : Infinity;
    if (first < before) this.buffer.remove(first, before);
    else setTimeout(() => this.pump(), 500);
  }

  settle() {
    const ranges = this.ranges();
    if (!ranges.length) return;
    const inside = (t) => ranges.some(([from, to]) => t >= from - 0.001 && t < to);
    if (!this.started && !inside(this.time)) this.video.currentTime = ranges[0][0];
    if (this.resumeAt != null && inside(this.resumeAt)) {
      // A seek makes the decoder start at the new key frame; without it Chromium would wait for the next segment's.
      this.video.currentTime = this.resumeAt;
      this.resumeAt = null;
    }
    if (this.playing && this.video.paused) this.play();
  }

  async play() {
    this.playing = true;
    try {
      await this.video.play();
    } catch (error) {
      if (error.name !== 'NotAllowedError' || this.video.muted) return;
      this.video.muted = true;
      this.video.play().catch(() => {});
    }
  }

  pause() {
    this.playing = false;
    this.video.pause();
  }

  /** `again` gives the bytes of the segment there, should they have been evicted. */
  async seek(to, again) {
    this.resumeAt = null;
    const have = this.ranges().some(([from, end]) => to >= from - 0.05 && to < end);
    if (!have && this.buffer) for (const bytes of await again()) this.append(null, bytes);
    this.video.currentTime = to;
    if (this.playing && this.video.paused) this.play();
  }

  waiting() {
    const { video } = this;
    // The event is late: by now the state may be better again, or this may still be the start.
    if (!this.started || video.seeking || video.readyState !== 2 || this.atEnd || this.resumeAt != null) return;
    this.stalls += 1;
    const next = this.ranges().find(([from]) => from > video.currentTime);
    if (next && next[0] - video.currentTime < 1) video.currentTime = next[0] + 0.001;
  }

  /**
   * Called on a clock. After it has run dry, Chromium wants more than the rest of a segment before it goes on; a seek makes
   * it play what there is. While media come (`more`), it is given the time to gather some.
   */
  nudge(more) {
    const { video } = this;
    const ahead = this.end - this.time;
    const stuck = this.playing && this.started && !video.seeking && video.readyState === 2 && ahead > (more ? 1.2 : 0.12);
    this.stuck = stuck ? (this.stuck ?? 0) + 1 : 0;
    if (this.stuck < 4) return;
    this.stuck = 0;
    video.currentTime += 0.001;
  }
}

/** `legacy_jpeg`: draws one picture per message, paced by the frame rate. Same surface as `MsePlayer`. */
class JpegPlayer {
  constructor(canvas, hooks) {
    this.canvas = canvas;
    this.hooks = hooks;
    this.fps = 24;
    this.stalls = 0;
    this.reset();
    const tick = (now) => {
      this.draw(now);
      requestAnimationFrame(tick);
    };
    requestAnimationFrame(tick);
  }

  get time() { return this.next / this.fps; }
  get paused() { return !this.playing; }
  get end() { return this.frames.length / this.fps; }
  get atEnd() { return this.next >= this.frames.length; }
  get hasPicture() { return this.drawn; }
  get picture() { return this.canvas; }
  ranges() { return this.frames.length ? [[0, this.end]] : []; }

  reset() {
    this.frames = [];
    this.next = 0;
    this.due = 0;
    this.playing = true;
    this.drawn = this.decoding = false;
  }

  open() {}
  startSegment() {}
  finish() {}
  append(_segment, bytes, done) {
    this.frames.push(new Blob([bytes], { type: 'image/jpeg' }));
    done?.();
  }

  nudge() {}
  cut(_segment, from) {
    this.frames.length = Math.min(this.frames.length, Math.round(from * this.fps));
    this.next = Math.min(this.next, this.frames.length);
  }

  async draw(now) {
    if (!this.playing || this.decoding || this.atEnd || now < this.due) return;
    const frame = this.frames[this.next];
    this.next += 1;
    this.due = Math.max(this.due + 1000 / this.fps, now - 100);
    this.decoding = true;
    try {
      const image = await createImageBitmap(frame);
      if (this.canvas.width !== image.width || this.canvas.height !== image.height) {
        this.canvas.width = image.width;
        this.canvas.height = image.height;
      }
      this.canvas.getContext('2d').drawImage(image, 0, 0);
      image.close();
      this.drawn = true;
    } catch {
      this.hooks.failed('A picture could not be decoded.');
    }
    this.decoding = false;
  }

  play() {
    if (this.atEnd && this.hooks.ended()) this.next = 0;
    this.playing = true;
  }

  pause() { this.playing = false; }
  seek(to) { this.next = Math.min(this.frames.length, Math.round(to * this.fps)); }
}

// ---------------------------------------------------------------------------------------------------------------------

/** One generated stretch of video, as far as this page knows it. */
class Segment {
  constructor(idx, start) {
    Object.assign(this, { idx, start, source: 'user', prompt: '', original: null, attempt: 1, requested: performance.now() });
    this.restart('denoising');
  }

  restart(state) {
    Object.assign(this, { state, step: 0, steps: 0, stage: 'denoise', parts: [], blob: null, initSize: 0, duration: 0 });
    Object.assign(this, { firstPicture: null, generation: null, latency: null });
  }

  get running() { return this.state === 'denoising' || this.state === 'streaming'; }
  get words() {
    const stage = { denoise: 'denoising', refine: 'refining', decode: 'decoding' }[this.stage] ?? phrase(this.stage);
    const steps = this.steps ? ` ${this.step} of ${this.steps}` : '';
    const state = { denoising: `${stage}${steps}`, restarting: 'starting again' }[this.state] ?? this.state;
    return this.attempt > 1 ? `${state}, attempt ${this.attempt}` : state;
  }

  /** Past segments are kept as a Blob, which the browser may move out of memory. */
  finish() {
    this.initSize = this.parts[0]?.byteLength ?? 0;
    this.blob = new Blob(this.parts);
    this.parts = [];
  }

  async bytes() {
    if (!this.blob) return this.parts;
    const all = new Uint8Array(await this.blob.arrayBuffer());
    return all.length ? [all.subarray(0, this.initSize), all.subarray(this.initSize)] : [];
  }
}

/** All finished segments as one file: the first init segment, then fragments, whose times are continuous. */
async function recording(segments) {
  const parts = [];
  let init = null;
  for (const segment of segments.filter((s) => s.state === 'done' && s.blob?.size)) {
    const own = new Uint8Array(await segment.blob.slice(0, segment.initSize).arrayBuffer());
    const same = init?.length === own.length && init.every((byte, i) => byte === own[i]);
    if (!same) parts.push(own);
    init = own;
    parts.push(segment.blob.slice(segment.initSize));
  }
  return new Blob(parts, { type: 'video/mp4' });
}

/** The rows below the player and the reel above them. */
class SegmentList {
  constructor(seek) {
    this.seek = seek;
    this.views = new Map();
  }

  clear() {
    this.views.clear();
    $('takes').replaceChildren();
    $('reel').replaceChildren();
  }

  view(segment) {
    const known = this.views.get(segment.idx);
    if (known) return known;
    const row = make('li');
    row.dataset.testid = `segment-${segment.idx}`;
    const num = make('button', 'num', pad(segment.idx));
    num.type = 'button';
    const text = make('div', 'text');
    const state = make('div', 'state');
    const line = make('div', 'facts-line');
    row.append(num, text, state, line);
    $('takes').prepend(row);

    const block = make('li');
    const button = make('button');
    button.type = 'button';
    const thumb = make('canvas');
    thumb.width = thumb.height = 0;
    button.append(thumb, make('span', 'fill'), make('b', '', pad(segment.idx)));
    block.append(make('span', 'head'), button);
    $('reel').append(block);

    num.onclick = () => this.seek(segment.idx, 0);
    button.onclick = (event) => {
      const box = button.getBoundingClientRect();
      this.seek(segment.idx, event.detail ? (event.clientX - box.left) / box.width : 0); // detail is 0 for the keyboard
    };
    const view = { row, num, text, state, line, block, button, thumb };
    this.views.set(segment.idx, view);
    block.scrollIntoView({ block: 'nearest', inline: 'end', behavior: still.matches ? 'auto' : 'smooth' });
    return view;
  }

  update(segment) {
    const v = this.view(segment);
    v.row.dataset.state = v.block.dataset.state = segment.state;
    const playable = segment.duration > 0 || segment.state === 'streaming';
    v.num.disabled = v.button.disabled = !playable;
    v.num.setAttribute('aria-label', `Play segment ${segment.idx + 1}`);
    v.button.setAttribute('aria-label', `Segment ${segment.idx + 1}, ${segment.words}`);
    const textKey = `${segment.prompt}\n${segment.original ?? ''}`;
    if (v.text.dataset.key !== textKey) {
      v.text.dataset.key = textKey;
      v.text.textContent = segment.prompt;
      if (segment.original && segment.original !== segment.prompt) v.text.append(make('span', 'was', `from: ${segment.original}`));
    }
    say(v.state, segment.words);
    facts(v.line, [
      ['first picture', seconds(segment.firstPicture)], ['generated in', seconds(segment.generation)],
      ['end to end', seconds(segment.latency)], ['length', segment.duration ? seconds(segment.duration * 1000) : ''],
    ]);
    if (!v.badge) v.badge = make('span', 'badge');
    v.badge.dataset.source = segment.source;
    say(v.badge, SOURCE_WORDS[segment.source] ?? phrase(segment.source));
    if (!v.badge.isConnected || v.line.firstChild !== v.badge) v.line.prepend(v.badge);
    v.block.style.setProperty('--grow', Math.max(1, Math.round(segment.duration || 1)));
    v.block.style.setProperty('--done', segment.steps ? segment.step / segment.steps : 0);
  }

  /** Marks where the viewer is, and keeps the first picture seen of each segment as its thumbnail. */
  follow(segments, player) {
    const time = player.time;
    const at = segments.findLast((s) => (s.duration || s.state === 'streaming') && time >= s.start - 0.02) ?? null;
    for (const segment of segments) {
      const view = this.views.get(segment.idx);
      if (!view) continue;
      const here = segment === at && player.hasPicture;
      view.row.dataset.playing = view.block.dataset.playing = here;
      if (!here) continue;
      const length = segment.duration || Math.max(player.end - segment.start, 1);
      view.block.style.setProperty('--at', Math.min(1, Math.max(0, (time - segment.start) / length)).toFixed(3));
      if (view.thumb.width === 0 && time > segment.start + 0.3) this.thumbnail(view.thumb, player.picture);
    }
    return at;
  }

  thumbnail(canvas, picture) {
    const width = picture.videoWidth || picture.width;
    const height = picture.videoHeight || picture.height;
    if (!width) return;
    canvas.width = 240;
    canvas.height = Math.round((240 * height) / width);
    canvas.getContext('2d').drawImage(picture, 0, 0, canvas.width, canvas.height);
  }
}

// ---------------------------------------------------------------------------------------------------------------------

/** The field of cells behind an empty stage: noise that settles as the denoise steps go by. */
class LatentField {
  constructor(canvas) {
    this.canvas = canvas;
    this.context = canvas.getContext('2d');
    this.image = this.context.createImageData(canvas.width, canvas.height);
    this.target = this.noise = 0.2;
    this.draw(0);
    setInterval(() => {
      if (!document.hidden && !still.matches && $('stage').dataset.view !== 'media') this.draw(performance.now() / 1000);
    }, 80);
  }

  draw(t) {
    const { width, height } = this.canvas;
    this.noise += (this.target - this.noise) * 0.15;
    const pixels = this.image.data;
    for (let y = 0, at = 0; y < height; y += 1) {
      for (let x = 0; x < width; x += 1, at += 4) {
        const u = x / width, v = y / height;
        const warm = 0.5 + 0.5 * Math.sin(4.1 * u + 1.7 * Math.sin(2.3 * v + t * 0.21) + t * 0.17);
        const cold = 0.5 + 0.5 * Math.sin(3.2 * v - 2.6 * u + 1.3 * Math.sin(3.1 * u - t * 0.13) + 2);
        const bright = (Math.random() - 0.5) * 110 * this.noise;
        const grain = () => bright + (Math.random() - 0.5) * 60 * this.noise;
        const lime = Math.max(0, warm * cold - 0.45) * 1.6;
        pixels[at] = 16 + 165 * warm * (1 - cold) + 120 * lime + grain();
        pixels[at + 1] = 16 + 60 * warm * (1 - cold) + 70 * cold + 140 * lime + grain();
        pixels[at + 2] = 22 + 30 * warm * (1 - cold) + 120 * cold * (1 - lime) + grain();
        pixels[at + 3] = 255;
      }
    }
    this.context.putImageData(this.image, 0, 0);
  }
}

// ---------------------------------------------------------------------------------------------------------------------

/** Polls `GET /status` while the page is seen. Every field may be missing. */
class Board {
  constructor() {
    this.cards = new Map();
    document.addEventListener('visibilitychange', () => { if (!document.hidden) this.poll(); });
    this.poll();
  }

  async poll() {
    clearTimeout(this.timer);
    if (document.hidden) return;
    try {
      const answer = await fetch('/status', { cache: 'no-store', signal: AbortSignal.timeout(4000) });
      if (!answer.ok) throw new Error(`${answer.status}`);
      this.show(await answer.json());
    } catch (error) {
      const status = /^\d+$/.test(error.message) ? ` (status ${error.message})` : '';
      this.brief(`The server does not answer${status}. Trying again every second.`, true);
      say($('gpu-brief'), 'no answer');
    }
    clearTimeout(this.timer);
    this.timer = setTimeout(() => this.poll(), 1000);
  }

  brief(text, bad) {
    say($('board-brief'), text);
    $('board-brief').dataset.bad = $('gpus').dataset.stale = bad;
  }

  show(status) {
    const gpus = Object.entries(status.gpu_status ?? {}).sort(([a], [b]) => a.localeCompare(b, undefined, { numeric: true }));
    const total = status.total_gpus ?? gpus.length;
    const waiting = status.queue_size ? `, ${plural(status.queue_size, 'session')} waiting` : ', nobody waiting';
    this.brief(total ? `${status.available_gpus ?? 0} of ${total} free${waiting}${status.draining ? '. The server is shutting down' : ''}` : 'This server has no GPU workers.', false);
    say($('gpu-brief'), total ? `${status.available_gpus ?? 0} of ${total} GPUs free` : 'no GPUs');
    $('board-synthetic').hidden = !gpus.some(([, gpu]) => gpu.current_model_id === 'synthetic');
    for (const [id, card] of this.cards) {
      if (status.gpu_status?.[id]) continue;
      card.root.remove();
      this.cards.delete(id);
    }
    gpus.forEach(([id, gpu], i) => this.card(id, gpu, i));
    while ($('gpu-dots').children.length > gpus.length) $('gpu-dots').lastChild.remove();
  }

  state(gpu) {
    const given = typeof gpu.state === 'object' && gpu.state ? gpu.state.state ?? Object.keys(gpu.state)[0] : gpu.state;
    if (given) return String(given).replace(/([a-z])([A-Z])/g, '$1_$2').toLowerCase();
    if (gpu.process_alive === false) return 'exited';
    return gpu.ready ? (gpu.available === false ? 'busy' : 'ready') : 'loading';
  }

  make(id) {
    const root = make('li', 'gpu');
    root.dataset.testid = `gpu-${id}`;
    const top = make('div', 'gpu-top');
    const word = make('span');
    top.append(make('b', '', `GPU ${id}`), word);
    const model = make('p', 'model');
    const meter = make('div', 'meter');
    meter.append(make('i'));
    const line = make('div', 'facts-line');
    const last = make('p', 'last');
    root.append(top, model, meter, line, last);
    $('gpus').append(root);
    const card = { root, word, model, meter, line, last };
    this.cards.set(id, card);
    return card;
  }

  card(id, gpu, i) {
    const card = this.cards.get(id) ?? this.make(id);
    const state = this.state(gpu);
    const dot = $('gpu-dots').children[i] ?? $('gpu-dots').appendChild(make('i'));
    card.root.dataset.state = dot.dataset.state = state;
    say(card.word, GPU_WORDS[state] ?? phrase(state));
    const model = gpu.current_model_id === 'synthetic' ? 'synthetic engine' : gpu.current_model_id;
    say(card.model, [model, gpu.device?.name].filter(Boolean).join(' on ') || 'no model');
    const progress = state === 'loading' && typeof gpu.load_progress?.fraction === 'number' ? gpu.load_progress : null;
    card.meter.hidden = !progress;
    card.meter.firstChild.style.setProperty('--v', progress?.fraction ?? 0);
    if (progress) say(card.word, `${phrase(progress.what || 'loading')} ${Math.round(progress.fraction * 100)}%`);
    const { load_ms: load, first_segment_ms: first, second_segment_ms: second } = gpu.warmup_timings ?? {};
    facts(card.line, [
      ['sessions', gpu.client_count ?? 0], ['segments', gpu.segments_finished], ['restarts', gpu.restarts],
      ['GPU memory', gpu.device?.memory_bytes ? gib(gpu.device.memory_bytes) : ''],
      ['process', gpu.resident_bytes ? gib(gpu.resident_bytes) : ''], ['loaded in', seconds(load)],
      ['warmed up in', first == null ? '' : seconds(first + (second ?? 0))],
      ['pid', gpu.process_alive === false ? '' : gpu.pid], ['worker', gpu.worker_id],
    ]);
    const last = [];
    const exit = gpu.last_exit?.reason ?? gpu.last_exit?.kind;
    if (gpu.warmup_error && gpu.warmup_error !== exit) last.push(`Warm-up failed: ${gpu.warmup_error}.`);
    if (gpu.last_exit) last.push(`Last exit: ${this.exit(gpu.last_exit)}.`);
    if (state === 'quarantined') last.push('It failed too often and is not started again until an operator lifts this.');
    say(card.last, last.join(' '));
    card.last.hidden = !last.length;
  }

  exit(last) {
    if (typeof last !== 'object') return phrase(last);
    const what = EXIT_WORDS[last.kind] ?? phrase(last.kind ?? '');
    const after = last.uptime_seconds == null ? '' : `after ${span(last.uptime_seconds)}`;
    return [[what, after].filter(Boolean).join(' '), last.reason].filter(Boolean).join(': ');
  }
}

// ---------------------------------------------------------------------------------------------------------------------

/** What only the opening message carries: a first image, a saved state, and how the session runs. */
class Opening {
  constructor(report) {
    this.report = report;
    this.image = this.state = null;
    $('image').onchange = ({ target }) => this.take(target.files[0], target);
    $('state').onchange = ({ target }) => this.take(target.files[0], target);
    $('image-remove').onclick = () => this.setImage(null);
    $('state-remove').onclick = () => this.setState(null);
    const holdsFile = (event) => event.dataTransfer?.types.includes('Files') && !$('opening').disabled;
    document.addEventListener('dragover', (event) => {
      if (!holdsFile(event)) return;
      event.preventDefault();
      document.body.dataset.drop = true;
    });
    document.addEventListener('dragleave', (event) => { if (!event.relatedTarget) delete document.body.dataset.drop; });
    document.addEventListener('drop', (event) => {
      delete document.body.dataset.drop;
      if (!holdsFile(event)) return;
      event.preventDefault();
      this.take(event.dataTransfer.files[0]);
    });
  }

  async take(file, input) {
    if (input) input.value = ''; // so that the same file can be chosen again
    if (!file) return;
    try {
      if (file.name.endsWith('.json') || file.type === 'application/json') await this.readState(file);
      else await this.readImage(file);
    } catch (error) {
      this.report('This file cannot be used.', error.message);
    }
  }

  async readImage(file) {
    if (!['image/png', 'image/jpeg', 'image/webp'].includes(file.type)) throw new Error('A first image is a PNG, JPEG or WebP file.');
    if (file.size > MAX_IMAGE) throw new Error(`The image has ${(file.size / MIB).toFixed(1)} MiB, at most 32 are allowed.`);
    const url = await new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.onload = () => resolve(reader.result);
      reader.onerror = () => reject(new Error('The file could not be read.'));
      reader.readAsDataURL(file);
    });
    this.setImage({ mime: file.type, name: file.name, data: url.slice(url.indexOf(',') + 1) }, file);
  }

  async readState(file) {
    const state = JSON.parse(await file.text().catch(() => ''));
    if (typeof state?.kind !== 'string' || typeof state.payload !== 'object') throw new Error('A saved state has a kind and a payload.');
    if (file.size > MAX_MESSAGE) throw new Error('The state is larger than the server accepts in one message.');
    this.setState(state, file.name);
  }

  setImage(image, file) {
    this.image = image;
    if (this.preview) URL.revokeObjectURL(this.preview);
    this.preview = file ? URL.createObjectURL(file) : null;
    $('image-preview').hidden = $('image-remove').hidden = !file;
    if (file) $('image-preview').src = this.preview;
    else $('image-preview').removeAttribute('src');
    say($('image-note'), file ? `${file.name}, ${(file.size / 1024).toFixed(0)} KiB` : 'or drop it here. PNG, JPEG or WebP, up to 32 MiB.');
  }

  setState(state, name) {
    this.state = state;
    $('state-remove').hidden = !state;
    const index = state?.payload.segment_index;
    const after = index == null ? '' : `, after segment ${index + 1}`;
    say($('state-note'), state ? `${name}: ${state.kind}${after}` : 'to go on from an earlier session.');
  }
}

// ---------------------------------------------------------------------------------------------------------------------

/** The session as the user sees it: what the server said, what was asked for, and the words for both. */
class App {
  constructor() {
    this.segments = [];
    this.errors = [];
    this.waiting = []; // prompts asked for that have not begun
    this.phase = 'idle'; // idle, connecting, queued, binding, active, complete, closed
    const hooks = {
      failed: (text) => this.report('The video cannot be shown.', text),
      segmentStart: (time) => this.segments.findLast((s) => time >= s.start)?.start ?? 0,
      ended: () => this.phase !== 'active',
    };
    this.mse = new MsePlayer($('video'), hooks);
    this.jpeg = new JpegPlayer($('jpeg'), hooks);
    this.player = this.mse;
    this.list = new SegmentList((idx, part) => this.seek(idx, part));
    this.field = new LatentField($('field'));
    this.opening = new Opening((title, text) => this.report(title, text));
    this.board = new Board();
    this.connection = new Connection({
      message: (message) => this.receive(message),
      media: (bytes) => this.media(bytes),
      closed: (code, reason, opened) => this.closed(code, reason, opened),
    });
    this.bind();
    setInterval(() => this.follow(), 150);
    this.render();
  }

  get current() { return this.segments.at(-1); }
  get live() { return ['connecting', 'queued', 'binding', 'active'].includes(this.phase); }

  // --- what the user does ---

  bind() {
    for (const text of EXAMPLES) {
      const item = make('li');
      const chip = make('button', '', text);
      chip.type = 'button';
      chip.onclick = () => this.ask(text);
      item.append(chip);
      $('chips').append(item);
    }
    $('composer').onsubmit = (event) => {
      event.preventDefault();
      const text = $('prompt').value.trim();
      if (text && this.ask(text)) $('prompt').value = '';
      $('prompt').focus();
    };
    $('prompt').onkeydown = (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      $('composer').requestSubmit();
    };
    $('composer').oninput = () => this.renderAdvanced();
    $('connect').onclick = () => this.connect();
    $('reconnect').onclick = () => this.connect();
    $('leave').onclick = () => this.leave();
    $('cancel').onclick = () => this.connection.send({ type: 'cancel_segment' });
    $('snapshot').onclick = $('drain-snapshot').onclick = () => this.connection.send({ type: 'snapshot_state' });
    $('download').onclick = async () => save(await recording(this.segments), `fastvideo-${(this.sessionId ?? 'session').slice(0, 8)}.mp4`);
    $('error-close').onclick = () => { $('error').hidden = true; };

    const toggles = { enhancement: 'enhancement_updated', auto: 'auto_extension_updated', loop: 'loop_generation_updated' };
    for (const [id, type] of Object.entries(toggles)) {
      $(`t-${id}`).onchange = ({ target }) => this.connection.send({ type, enabled: target.checked });
    }
    $('t-pause').onchange = ({ target }) => {
      this.connection.send({ type: 'generation_paused_updated', paused: target.checked });
      this.render();
    };
    $('curated').oninput = () => this.render();
    $('curated-apply').onclick = () => {
      this.sentCurated = $('curated').value;
      this.connection.send({ type: 'seed_prompts_updated', seed_prompts: this.curated() });
      say($('curated-note'), 'Holds from the next segment on.');
      this.render();
    };
    $('rewrite').onclick = () => {
      const seed = $('prompt').value.trim() || this.curated()[0];
      if (seed && this.connection.send({ type: 'rewrite_seed_prompts', seed_prompt: seed, count: 3 })) say($('curated-note'), 'Asking…');
    };

    $('play').onclick = () => this.togglePlay();
    $('mute').onclick = $('unmute').onclick = () => {
      $('video').muted = !$('video').muted;
      this.follow();
    };
    $('full').onclick = () => {
      if (document.fullscreenElement) document.exitFullscreen();
      else if ($('stage').requestFullscreen) $('stage').requestFullscreen();
      else $('video').webkitEnterFullscreen?.(); // iPhone
    };
    $('stage').onkeydown = (event) => {
      if (event.target !== $('stage') || event.key !== ' ') return;
      event.preventDefault();
      this.togglePlay();
    };
    $('stage').onclick = ({ target }) => {
      if ([$('video'), $('jpeg')].includes(target)) this.togglePlay();
    };
    $('stage').onpointermove = $('stage').onpointerdown = () => this.wake();
    $('stage').addEventListener('focusin', () => this.wake());
  }

  /** Shows the controls over the picture, for a while. */
  wake() {
    $('stage').dataset.idle = false;
    clearTimeout(this.sleep);
    this.sleep = setTimeout(() => { $('stage').dataset.idle = !this.player.paused; }, 3500);
  }

  curated() {
    return $('curated').value.split('\n').map((line) => line.trim()).filter(Boolean);
  }

  /** Sends a prompt, or keeps it until the session is open. */
  ask(prompt) {
    if (!$('composer').reportValidity()) return false;
    if (this.waiting.length >= MAX_WAITING) {
      this.report('There are already eight prompts waiting.', 'Send this one when the next segment has begun.', true);
      return false;
    }
    const number = (id) => ($(id).value === '' ? null : Number($(id).value));
    const message = {
      type: 'segment_prompt_source', prompt, source: 'user', negative_prompt: $('negative').value.trim() || null,
      seed: number('seed'), num_inference_steps: number('num-steps'), guidance_scale: number('guidance'),
    };
    if (!this.live) this.connect();
    const request = { prompt, message, at: performance.now(), sent: false };
    this.waiting.push(request);
    if (this.phase === 'active') request.sent = this.connection.send(message);
    this.render();
    return true;
  }

  connect() {
    if (this.live) return;
    const on = (id) => $(id).checked;
    $('error').hidden = true;
    this.complete = this.draining = this.refusal = null;
    this.leaving = false;
    const first = {
      type: 'session_init_v2', curated_prompts: this.curated(), initial_image: this.opening.image,
      enhancement_enabled: on('t-enhancement'), auto_extension_enabled: on('t-auto'), loop_generation_enabled: on('t-loop'),
      single_clip_mode: on('t-single'), stream_mode: on('t-jpeg') ? 'legacy_jpeg' : 'av_fmp4',
      continuation_state: this.opening.state, resume: this.opening.state ? null : this.resume ?? null,
    };
    const text = JSON.stringify(first);
    if (text.length > MAX_MESSAGE) {
      this.report('The opening message is too large.', 'Image and state together may have 48 MiB. Remove one of them.');
      return;
    }
    this.sentCurated = $('curated').value;
    this.streamMode = first.stream_mode;
    this.phase = 'connecting';
    this.queue = null;
    this.connection.connect(text);
    this.render();
  }

  leave() {
    this.resume = null;
    this.leaving = true;
    if (this.phase !== 'active' || !this.connection.send({ type: 'leave' })) this.connection.close();
  }

  togglePlay() {
    if (this.player.paused || $('video').ended) this.player.play();
    else this.player.pause();
    this.follow();
  }

  seek(idx, part) {
    const segment = this.segments.find((s) => s.idx === idx);
    if (!segment) return;
    const length = segment.duration || Math.max(0, this.player.end - segment.start);
    this.player.seek(segment.start + Math.min(part, 0.98) * length, () => segment.bytes());
    this.follow();
  }

  // --- what the server says ---

  receive(message) {
    this[`on_${message.type}`]?.(message); // unknown types are for later clients
    this.render();
  }

  on_queue_status({ position, queue_depth }) {
    this.phase = 'queued';
    this.queue = { position, depth: queue_depth };
  }

  on_gpu_assigned(message) {
    if (this.phase !== 'active') { // otherwise it is a handoff to another GPU
      this.phase = 'binding';
      if (!this.sessionId || message.session_id !== this.sessionId) this.newSession();
    }
    this.sessionId = message.session_id ?? null;
    this.gpu = message;
    this.resume = message.resume_token ? { session_id: message.session_id, token: message.resume_token } : null;
  }

  /** A session that was resumed keeps its video; any other begins with an empty reel. */
  newSession() {
    this.segments = [];
    this.list.clear();
    this.mse.reset();
    this.jpeg.reset();
    this.player = this.streamMode === 'legacy_jpeg' ? this.jpeg : this.mse;
    $('video').hidden = this.player === this.jpeg;
    $('jpeg').hidden = this.player === this.mse;
  }

  on_ltx2_stream_start(message) {
    this.phase = 'active';
    this.stream = message;
    this.jpeg.fps = message.fps || 24;
    this.player.open();
    this.opening.setImage(null);
    this.opening.setState(null);
    if ($('t-pause').checked) this.connection.send({ type: 'generation_paused_updated', paused: true });
    for (const request of this.waiting) if (!request.sent) request.sent = this.connection.send(request.message);
  }

  on_ltx2_segment_start(message) {
    const idx = message.segment_idx;
    let segment = this.segments.find((s) => s.idx === idx);
    const before = this.segments.findLast((s) => s.idx < idx);
    const start = before ? before.start + before.duration : segment?.start ?? 0;
    if (segment) {
      // The index runs again: after a fault, a cancel or a lost connection.
      this.player.cut(segment, start, message.attempt > 1);
      const again = message.attempt > 1;
      segment.restart('denoising');
      if (!again) segment.requested = performance.now();
    } else {
      segment = new Segment(idx, start);
      this.segments.push(segment);
    }
    segment.start = start;
    segment.prompt = message.prompt;
    segment.original = message.original_prompt ?? null;
    segment.source = message.source ?? 'user';
    segment.attempt = message.attempt ?? 1;
    segment.steps = message.total_steps;
    if (segment.attempt === 1 && ['user', 'enhanced'].includes(segment.source)) this.begin(segment);
    this.update(segment);
  }

  /** Finds the request that the segment answers. Its clock runs from the request, or from when the GPU was free for it. */
  begin(segment) {
    const text = segment.original ?? segment.prompt;
    const at = Math.max(0, this.waiting.findIndex((request) => request.prompt === text));
    const [request] = this.waiting.splice(at, 1);
    if (request) segment.requested = Math.max(request.at, this.freeSince ?? 0);
  }

  on_step_complete({ step, total_steps, stage }) {
    const segment = this.current;
    if (!segment) return;
    Object.assign(segment, { step, steps: total_steps, stage: stage ?? 'denoise' });
    if (!segment.running) segment.state = 'denoising';
    this.update(segment);
  }

  on_media_init({ mime }) {
    const segment = this.current;
    if (!segment) return;
    this.mime = mime;
    this.player.startSegment(segment, mime);
  }

  media(bytes) {
    const segment = this.current;
    if (!segment) return;
    const pictures = this.player === this.jpeg ? 1 : 2; // the first message of MP4 is the init segment
    segment.parts.push(bytes);
    const isFirst = segment.parts.length === pictures;
    this.player.append(segment, bytes, !isFirst ? null : () => {
      segment.firstPicture = performance.now() - segment.requested;
      if (segment.idx === this.segments[0].idx && this.player === this.mse) segment.start = this.mse.ranges()[0]?.[0] ?? 0;
      this.update(segment);
      this.follow();
    });
    if (segment.state === 'streaming') return;
    segment.state = 'streaming';
    this.update(segment);
    this.render();
  }

  on_media_segment_complete(message) {
    const segment = this.current;
    segment.duration = message.duration_ms / 1000;
    if (this.player === this.mse && message.pts_base_ms != null) segment.start = message.pts_base_ms / 1000;
    this.update(segment);
  }

  on_ltx2_segment_complete(message) {
    const segment = this.segments.find((s) => s.idx === message.segment_idx);
    if (!segment) return;
    Object.assign(segment, { state: 'done', generation: message.generation_time_ms, latency: message.e2e_latency_ms });
    this.freeSince = performance.now();
    segment.finish();
    if (this.passing) $('error').hidden = true;
    this.passing = false;
    this.update(segment);
  }

  on_segment_cancelled({ segment_idx }) {
    const segment = this.segments.find((s) => s.idx === segment_idx);
    if (!segment) return;
    this.player.cut(segment, segment.start, false);
    segment.restart('cancelled');
    this.freeSince = performance.now();
    this.update(segment);
  }

  on_ltx2_stream_complete({ reason }) {
    this.complete = reason;
    this.resume = null;
    this.stopped();
    this.phase = 'complete';
    this.player.finish();
  }

  on_session_timeout({ timeout_seconds }) {
    this.complete = 'timeout';
    this.resume = null;
    this.report('The session has ended.', `Nothing happened in it for ${span(timeout_seconds)}.`, true, true);
  }

  on_continuation_state_snapshot({ state }) {
    const after = state.payload?.segment_index;
    const name = `fastvideo-${(this.sessionId ?? 'session').slice(0, 8)}-state${after == null ? '' : `-${after + 1}`}.json`;
    save(new Blob([JSON.stringify(state)], { type: 'application/json' }), name);
  }

  on_server_draining({ deadline_seconds }) {
    this.draining = performance.now() + deadline_seconds * 1000;
  }

  on_prompt_fallback({ reason }) {
    this.report('The prompt was used as you wrote it.', `It could not be enhanced: ${reason}`, true);
  }

  on_seed_prompts_rewritten({ alternatives = [] }) {
    $('curated').value = [...this.curated(), ...alternatives].join('\n');
    say($('curated-note'), `${plural(alternatives.length, 'variant')} added. Apply to use them.`);
  }

  on_error({ code, message, retryable }) {
    const segment = this.current;
    const again = code === 'worker_failed' && retryable;
    this.errors.push({ code, message, retryable, at: Date.now() });
    if (segment?.running && SEGMENT_ERRORS.has(code)) {
      segment.state = again ? 'restarting' : 'failed';
      this.update(segment);
    } else if (['invalid_message', 'prompt_blocked'].includes(code) && this.phase === 'active') {
      this.refused(message);
    }
    if (['session_rejected', 'state_incompatible', 'unauthorized'].includes(code)) this.resume = null;
    const title = again ? 'The segment is being made again.' : ERROR_WORDS[code] ?? `${phrase(code)}.`;
    const text = sentence(message);
    this.refusal = this.phase === 'active' ? null : { title, text };
    this.passing = again; // goes away with the fault
    this.report(title, text, retryable);
  }

  /** The error does not say which request it means. It is the newest one when it comes soon after it was sent. */
  refused() {
    const request = this.waiting.at(-1);
    if (!request || performance.now() - request.at > 5000) return;
    this.waiting.pop();
    if (!$('prompt').value) $('prompt').value = request.prompt;
  }

  closed(code, reason, opened) {
    const ended = this.phase === 'complete' || this.complete === 'timeout';
    const asked = this.leaving || code === 1000 || code === 1005;
    this.stopped();
    this.phase = ended ? 'complete' : 'closed';
    this.player.finish();
    if (!ended && !asked) {
      const title = opened ? CLOSE_WORDS[code] ?? `The connection was closed (code ${code}).` : 'The server cannot be reached.';
      const next = this.resume && code !== 1003 ? 'Reconnect to go on where you were.' : '';
      this.errors.push({ code, message: reason || title, at: Date.now() });
      // What was said just before says more than the close code.
      const { refusal } = this;
      if (refusal) this.report(refusal.title, [refusal.text, title, next].filter(Boolean).join(' '), false, true);
      else this.report(title, [reason, next].filter(Boolean).join(' '), false, true);
    }
    this.render();
  }

  /** Nothing more comes. Prompts that never ran go back to the box, so that they are not lost. */
  stopped() {
    const segment = this.current;
    if (segment && (segment.running || segment.state === 'restarting')) {
      segment.state = this.complete === 'stop_requested' ? 'cancelled' : 'failed';
      this.update(segment);
    }
    if (this.waiting.length && !$('prompt').value) $('prompt').value = this.waiting[0].prompt;
    this.waiting = [];
  }

  // --- what is shown ---

  report(title, text, soft = false, reconnect = false) {
    this.passing &&= title === 'The segment is being made again.';
    say($('error-title'), title);
    say($('error-text'), text ?? '');
    $('error').dataset.tone = soft ? 'soft' : 'hard';
    $('reconnect').hidden = !reconnect;
    $('error').hidden = false;
  }

  update(segment) {
    this.list.update(segment);
    this.renderSteps();
  }

  status() {
    const segment = this.current;
    switch (this.phase) {
      case 'idle': return ['idle', 'Not connected'];
      case 'connecting': return ['wait', 'Connecting'];
      case 'queued': return ['wait', 'Waiting for a GPU'];
      case 'binding': return ['wait', `GPU ${this.gpu?.gpu_id} assigned`];
      case 'complete': return ['idle', COMPLETE_WORDS[this.complete] ?? 'Session ended'];
      case 'closed': return $('error').hidden ? ['idle', 'Session ended'] : ['bad', 'Disconnected'];
      default:
    }
    if (segment?.state === 'streaming') return ['air', `Segment ${segment.idx + 1} is streaming`];
    if (segment?.state === 'denoising') return ['work', `Segment ${segment.idx + 1} is being generated`];
    if (segment?.state === 'restarting') return ['wait', `Segment ${segment.idx + 1} starts again`];
    if ($('t-pause').checked) return ['wait', 'Paused'];
    return this.waiting.length ? ['work', 'Asking for the next segment'] : ['ready', 'Ready for a prompt'];
  }

  render() {
    const { live, phase, stream, gpu } = this;
    const [tone, words] = this.status();
    $('tally').dataset.state = tone;
    say($('status'), words);
    $('connect').hidden = live;
    $('leave').hidden = !live;
    say($('connect'), phase === 'idle' ? 'Connect' : 'New session');
    if (this.resume && phase === 'closed') say($('connect'), 'Reconnect');
    say($('reconnect'), this.resume ? 'Reconnect' : 'New session');
    $('opening').disabled = $('opening').hidden = live;
    $('snapshot').disabled = phase !== 'active';
    const jpeg = this.player === this.jpeg;
    $('download').disabled = jpeg || !this.segments.some((s) => s.state === 'done');
    $('download').title = jpeg ? 'JPEG frames are not kept as a video file' : 'All finished segments as one file';
    $('cancel').hidden = !(phase === 'active' && this.current?.running);
    $('curated-apply').disabled = phase !== 'active' || $('curated').value === this.sentCurated;

    const queued = phase === 'queued' && this.queue;
    $('queue').hidden = !queued;
    if (queued) {
      const { position, depth } = this.queue;
      say($('queue-number'), ordinal(position + 1));
      say($('queue-text'), `${position ? `${position} ahead of you` : 'You are next'}, ${depth} waiting`);
    }
    this.renderFacts(stream, gpu);
    this.renderFeatures(stream?.features);
    this.renderWaiting();
    this.renderSteps();
    this.follow();
  }

  renderFacts(stream, gpu) {
    const done = this.segments.filter((s) => s.state === 'done').length;
    const cap = stream?.generation_segment_cap;
    const synthetic = gpu?.model_id === 'synthetic';
    $('facts').hidden = !gpu;
    $('f-none').hidden = Boolean(gpu);
    say($('f-none'), this.live ? `${this.status()[1]}.` : 'Your first prompt opens one. It is given a GPU, and keeps it while you direct.');
    $('keep').hidden = !gpu;
    say($('f-gpu'), `${gpu?.gpu_id}`);
    say($('f-worker'), gpu?.worker_id ?? 'not told');
    say($('f-model'), gpu?.model_id ?? 'not told');
    say($('f-format'), stream ? `${stream.width}×${stream.height}, ${stream.fps} fps` : 'not told');
    say($('f-cap'), cap ? `${done} of ${cap}` : `${done}`);
    $('cap-meter').hidden = !cap;
    $('cap-meter').firstElementChild.style.setProperty('--v', cap ? Math.min(1, done / cap) : 0);
    $('synthetic').hidden = !synthetic;
    say($('takes-count'), this.segments.length ? `${this.segments.length}` : '');
    $('takes-empty').hidden = this.segments.length > 0;
  }

  renderFeatures(features) {
    const set = (id, works, why, note) => {
      $(`t-${id}`).disabled = !works;
      $(`t-${id}`).closest('label').title = works ? '' : why;
      say($(`n-${id}`), works ? note : why);
    };
    const why = 'Has no effect here: this server has no prompt enhancer.';
    set('enhancement', features?.enhancement !== false, why, 'A language model writes them out in detail.');
    set('auto', features?.auto_extension !== false, why, 'With no prompt waiting, the story is continued.');
    const loop = this.curated().length ? 'With no prompt waiting, the next one of the list runs.' : 'Needs curated prompts in the list below.';
    say($('n-loop'), loop);
    $('rewrite').hidden = !(this.phase === 'active' && features?.rewrite);
  }

  renderWaiting() {
    const full = this.waiting.length >= MAX_WAITING;
    $('waiting').hidden = !this.waiting.length;
    say($('waiting-count'), `${this.waiting.length} of ${MAX_WAITING}`);
    $('send').disabled = full;
    say($('composer-note'), full ? 'Eight prompts wait. There is room when the next segment begins.' : 'Enter sends, Shift+Enter starts a new line.');
    const key = this.waiting.map((request) => request.at).join();
    if ($('waiting-list').dataset.key === key) return;
    $('waiting-list').dataset.key = key;
    $('waiting-list').replaceChildren(...this.waiting.map((request, i) => {
      const item = make('li');
      item.dataset.testid = `waiting-${i}`;
      item.dataset.state = 'queued';
      item.append(make('b', '', `+${i + 1}`), make('span', '', request.prompt));
      return item;
    }));
  }

  renderAdvanced() {
    const set = ['negative', 'seed', 'num-steps', 'guidance'].filter((id) => $(id).value !== '').length;
    say($('advanced-brief'), set ? `(${set} set)` : '');
  }

  renderSteps() {
    const segment = this.current;
    const on = this.phase === 'active' && Boolean(segment?.running || segment?.state === 'restarting');
    const bar = $('steps');
    bar.dataset.on = on;
    bar.dataset.stage = segment?.state === 'streaming' ? 'media' : 'denoise';
    bar.setAttribute('aria-valuemax', segment?.steps || 1);
    bar.setAttribute('aria-valuenow', on ? segment.step : 0);
    bar.setAttribute('aria-valuetext', on ? segment.words : 'no segment is running');
    bar.firstElementChild.style.transform = `scaleX(${on && segment.steps ? segment.step / segment.steps : 0})`;
    this.field.target = !this.live ? 0.16 : on && segment.steps ? 1 - 0.9 * (segment.step / segment.steps) : 1;
  }

  /** What changes with the clock: where the player is, and how long is left. */
  follow() {
    const { player } = this;
    const segment = this.current;
    const running = segment?.running || segment?.state === 'restarting';
    player.nudge(segment?.state === 'streaming');
    const view = player.hasPicture ? 'media' : this.live ? 'work' : 'empty';
    const stage = $('stage');
    if (stage.dataset.view !== view) this.wake();
    stage.dataset.view = view;
    $('empty').hidden = view !== 'empty';
    const at = this.list.follow(this.segments, player);
    const shown = at ?? segment;
    say($('slate-main'), view === 'empty' ? '' : shown ? `Segment ${pad(shown.idx)}` : 'Standing by');
    say($('slate-side'), view === 'empty' ? '' : (shown?.prompt ?? '').slice(0, 90));

    const working = view === 'work' && this.phase !== 'queued';
    $('working').hidden = !working;
    if (working) say($('working'), running ? segment.words : this.status()[1]);

    const starved = view === 'media' && this.phase === 'active' && player.atEnd && !player.paused;
    $('hint').hidden = !starved;
    const idle = $('t-pause').checked ? 'Generation is paused' : 'Send a prompt to go on from here';
    const comes = running || this.waiting.length;
    if (starved) say($('hint'), !comes ? idle : running ? `Waiting for the next segment: ${segment.words}` : 'Waiting for the next segment');

    const mp4 = player === this.mse;
    const sound = mp4 && /mp4a|opus|flac/i.test(this.mime ?? '');
    $('unmute').hidden = !(view === 'media' && sound && $('video').muted);
    $('mute').hidden = !sound;
    const icon = (id, name, label) => {
      $(id).querySelector('use').setAttribute('href', `#i-${name}`);
      $(id).setAttribute('aria-label', label);
    };
    icon('mute', $('video').muted ? 'muted' : 'sound', $('video').muted ? 'Turn the sound on' : 'Turn the sound off');
    const stopped = player.paused || (mp4 && $('video').ended);
    icon('play', stopped ? 'play' : 'pause', stopped ? 'Play' : 'Pause');
    if (stopped) stage.dataset.idle = false;
    const origin = this.segments[0]?.start ?? 0;
    say($('clock'), clock(Math.max(0, player.time - origin)));
    say($('clock-end'), `/ ${clock(Math.max(0, player.end - origin))}`);

    const limit = this.gpu?.session_timeout;
    const since = (performance.now() - Math.max(this.connection.lastSent, this.freeSince ?? 0)) / 1000;
    const left = Math.max(0, limit - since);
    const counts = this.phase === 'active' && !running;
    say($('f-idle'), limit == null ? 'none' : counts && left < limit - 5 ? `ends in ${clock(left)}` : span(limit));

    $('drain').hidden = this.draining == null || !this.live;
    if (this.draining != null) {
      const rest = Math.max(0, Math.round((this.draining - performance.now()) / 1000));
      say($('drain-text'), `No new segments begin, and it stops in ${span(rest)}. Save the state to go on elsewhere.`);
    }
  }
}

const app = new App();

/** Facts for tests and the console; read only. */
window.fastvideo = Object.freeze({
  get segments() {
    return app.segments.map((s) => ({
      idx: s.idx, state: s.state, prompt: s.prompt, source: s.source, attempt: s.attempt, start: s.start, duration: s.duration,
      firstPictureMs: s.firstPicture, generationMs: s.generation, latencyMs: s.latency, bytes: s.blob?.size ?? 0,
    }));
  },
  get phase() { return app.phase; },
  get sessionId() { return app.sessionId ?? null; },
  get errors() { return app.errors.map((error) => ({ ...error })); },
  get stalls() { return app.player.stalls; },
  buffered: () => app.player.ranges(),
  downloadBlob: () => recording(app.segments),
});
