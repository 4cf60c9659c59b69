// The built-in page: one session of `WS /v1/stream` with its player, and the board of GPUs from `GET /status`.

import { Attachments, MAX_MESSAGE } from './attachments.js';
import { $, clock, make, ordinal, pad, phrase, plural, save, say, sentence, span } from './dom.js';
import { Gpus } from './gpus.js';
import { LatentField } from './latent_field.js';
import { Retry, ticket } from './lost.js';
import { JpegPlayer, MsePlayer } from './player.js';
import { Segment, SegmentList, recording } from './segment_list.js';

const MAX_WAITING = 8; // the server refuses more
const CONNECT_TIMEOUT_MS = 10_000; // browsers wait for minutes

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
  upstream_timeout: 'No language model has answered.',
  internal_error: 'The server had an internal fault.',
  prompt_blocked: 'This prompt was blocked by the safety filter.',
  unauthorized: 'You are not allowed to open a session here.',
  state_incompatible: 'The saved state does not fit this server.',
  segment_timeout: 'The segment took too long and was stopped.',
};

const COMPLETE_WORDS = {
  segment_cap: 'Finished: the session has all its segments',
  stop_requested: 'Session ended',
  error: 'The session ended after a fault',
  taken: 'The session is no longer here',
};

/** Close codes after which the session is still there: the server goes away, and no word at all. */
const LOST_CODES = [1001, 1005, 1006, 1012];
/** The same while the page tries to get it back, when the server may be full or have only begun. */
const RETRY_CODES = [...LOST_CODES, 1011, 1013];

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
    const limit = setTimeout(() => socket.close(), CONNECT_TIMEOUT_MS);
    socket.binaryType = 'arraybuffer';
    socket.onopen = () => {
      clearTimeout(limit);
      opened = true;
      this.send(first);
    };
    socket.onmessage = ({ data }) => {
      if (socket !== this.socket) return;
      if (typeof data === 'string') this.handlers.message(JSON.parse(data));
      else this.handlers.media(new Uint8Array(data));
    };
    socket.onclose = ({ code, reason }) => {
      clearTimeout(limit);
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

  /** Closes without a word to the handlers. */
  drop() {
    this.close();
    this.socket = null;
  }
}

/** The session as the user sees it: what the server said, what was asked for, and the words for both. */
class App {
  constructor() {
    this.segments = [];
    this.errors = [];
    this.waiting = []; // prompts asked for that have not begun
    this.asked = null; // the request that the running segment answers
    this.phase = 'idle'; // idle, connecting, queued, binding, active, lost, complete, closed
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
    this.attachments = new Attachments((title, text) => this.report(title, text));
    this.gpus = new Gpus((title, text) => this.report(title, text, true));
    this.retry = new Retry(() => this.connect(), () => this.giveUp());
    this.kept = ticket.load(); // of a session that this tab had before it was reloaded
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
  get live() { return ['connecting', 'queued', 'binding', 'active', 'lost'].includes(this.phase); }
  get resume() { return this.ticket ?? null; }
  set resume(resume) {
    this.ticket = resume;
    ticket.save(resume);
  }

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
    $('fresh').onclick = () => {
      this.resume = null;
      this.connect();
    };
    $('kept-go').onclick = () => {
      this.resume = this.kept;
      this.connect();
    };
    $('kept-drop').onclick = () => {
      this.kept = this.resume = null;
      this.render();
    };
    $('move').onclick = () => this.move();
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
      const last = this.segments.at(-1);
      const seed = $('prompt').value.trim() || this.curated()[0] || (last?.original ?? last?.prompt);
      if (!seed) say($('curated-note'), 'Write a prompt first.');
      else if (this.connection.send({ type: 'rewrite_seed_prompts', seed_prompt: seed, count: 3 })) say($('curated-note'), 'Asking…');
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
    this.waiting.push({ prompt, message, at: performance.now(), sent: false });
    if (!this.live) this.connect();
    this.flush();
    this.render();
    return true;
  }

  /** Sends what waits here, as far as the server has room. */
  flush() {
    if (this.phase !== 'active') return;
    const enhance = Boolean(this.stream?.features?.enhancement) && $('t-enhancement').checked;
    for (const request of this.waiting.slice(0, MAX_WAITING)) {
      if (!request.sent) Object.assign(request, { enhance, written: null, sent: this.connection.send(request.message) });
    }
  }

  connect() {
    if (this.live && this.phase !== 'lost') return;
    const on = (id) => $(id).checked;
    if (this.attachments.state) this.resume = null;
    const { resume } = this;
    $('error').hidden = true;
    this.complete = this.draining = this.refusal = this.kept = null;
    this.leaving = false;
    this.resuming = Boolean(resume);
    // A session that is resumed has its player, and its first image as long as nothing was made from it.
    const same = resume && resume.session_id === this.sessionId;
    if (!same) this.image = this.attachments.image;
    // With prompts to be sent, the loop would run one of its own before them.
    this.holdsLoop = this.waiting.length > 0 || this.asked?.message.source === 'user';
    const first = {
      type: 'session_init_v2', curated_prompts: same ? this.rotated() : this.curated(), initial_image: this.image,
      enhancement_enabled: on('t-enhancement'), auto_extension_enabled: on('t-auto'),
      loop_generation_enabled: on('t-loop') && !this.holdsLoop, single_clip_mode: on('t-single'),
      stream_mode: same ? this.streamMode : on('t-jpeg') ? 'legacy_jpeg' : 'av_fmp4',
      continuation_state: this.attachments.state, resume,
    };
    const text = JSON.stringify(first);
    if (text.length > MAX_MESSAGE) {
      this.stopped();
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

  /** The curated prompts from where the loop was: a segment that was not finished is made again, others are not. */
  rotated() {
    const all = this.curated();
    const last = this.segments.findLast((s) => s.source === 'curated');
    const at = all.indexOf(last?.original ?? last?.prompt) + (last?.state === 'interrupted' ? 0 : 1);
    return [...all.slice(at), ...all.slice(0, at)];
  }

  leave() {
    this.resume = null;
    this.leaving = true;
    if (this.retry.on) this.giveUp();
    else if (this.phase !== 'active' || !this.connection.send({ type: 'leave' })) this.connection.close();
  }

  /** No more tries, for now or, when the user leaves, at all. */
  giveUp() {
    this.connection.drop();
    this.stopped();
    this.phase = 'closed';
    this.player.finish();
    if (this.resume) this.report('The connection is lost.', 'The server keeps the session for a while.', true, true);
    this.render();
  }

  async move() {
    $('move').disabled = true;
    try {
      const answer = await fetch(`/v1/sessions/${this.sessionId}/move`, { method: 'POST' });
      if (!answer.ok) throw new Error((await answer.json()).error.message);
    } catch (error) {
      this.report('The session was not moved.', sentence(error.message), true);
    }
    $('move').disabled = false;
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
    this.retry.stop();
    this.phase = 'queued';
    this.queue = { position, depth: queue_depth };
  }

  on_gpu_assigned(message) {
    this.retry.stop();
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
    this.asked = null;
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
    this.attachments.setImage(null);
    this.attachments.setState(null);
    this.retry.reset();
    this.resuming = false;
    this.goOn(message.next_segment_idx ?? 0);
    if ($('t-pause').checked) this.connection.send({ type: 'generation_paused_updated', paused: true });
    this.flush();
    if (this.holdsLoop && $('t-loop').checked) this.connection.send({ type: 'loop_generation_updated', enabled: true });
  }

  /** A resumed session goes on with segment `next`: one that was under way is all here, or is asked for again. */
  goOn(next) {
    const segment = this.current;
    const { asked } = this;
    this.asked = null;
    if (segment?.state !== 'interrupted') return;
    if (segment.idx < next) {
      // The server had finished it, and could not say so any more.
      this.player.holed ||= !segment.duration;
      segment.duration ||= this.stream.num_frames / this.stream.fps;
      this.done(segment);
    } else if (asked && !(asked.message.source === 'curated' && $('t-loop').checked)) {
      this.waiting.unshift({ ...asked, sent: false });
    }
  }

  on_ltx2_segment_start(message) {
    const idx = message.segment_idx;
    let segment = this.segments.find((s) => s.idx === idx);
    const before = this.segments.findLast((s) => s.idx < idx);
    const start = before ? before.start + before.duration : segment?.start ?? 0;
    if (segment) {
      // The index runs again: after a fault, a cancel or a lost connection.
      const again = message.attempt > 1 || (segment.state === 'interrupted' && message.prompt === segment.prompt);
      this.player.cut(segment, start, again);
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
    if (segment.attempt === 1) this.begin(segment);
    this.update(segment);
  }

  /** Finds the request that the segment answers. Its clock runs from the request, or from when the GPU was free for it. */
  begin(segment) {
    const prompt = segment.original ?? segment.prompt;
    const mine = ['user', 'enhanced'].includes(segment.source);
    const source = mine ? 'user' : segment.source;
    let at = this.waiting.findIndex((request) => request.prompt === prompt && request.message.source === source);
    if (mine) at = Math.max(0, at);
    const [request] = at < 0 ? [] : this.waiting.splice(at, 1);
    if (request) segment.requested = Math.max(request.at, this.freeSince ?? 0);
    this.asked = request ?? { prompt, message: { type: 'segment_prompt_source', prompt, source }, at: performance.now() };
    this.flush();
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
    Object.assign(segment, { generation: message.generation_time_ms, latency: message.e2e_latency_ms });
    this.done(segment);
  }

  done(segment) {
    segment.state = 'done';
    this.asked = this.image = null;
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
    this.asked = null;
    this.freeSince = performance.now();
    this.update(segment);
  }

  on_ltx2_stream_complete({ reason }) {
    // A server that goes away says so too, and closes with 1001: the session can be gone on with.
    if (reason === 'stop_requested' && !this.leaving && this.resume) return;
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

  on_prompt_enhanced({ original_prompt, prompt }) {
    this.written(original_prompt, prompt);
  }

  on_prompt_fallback({ original_prompt, reason }) {
    this.written(original_prompt, original_prompt);
    this.report('A prompt is used as it was.', sentence(reason), true);
  }

  /** What a model has made of a prompt that waits. */
  written(original, prompt) {
    const request = this.waiting.find((r) => r.prompt === original && !r.written);
    if (request) request.written = prompt;
  }

  on_seed_prompts_rewritten({ alternatives = [] }) {
    $('curated').value = [...this.curated(), ...alternatives].join('\n');
    say($('curated-note'), `${plural(alternatives.length, 'variant')} added. Apply to use them.`);
  }

  on_error({ code, message, retryable, segment_idx, restarting: again = false }) {
    const segment = this.current;
    this.errors.push({ code, message, retryable, at: Date.now() });
    if (code === 'upstream_timeout') say($('curated-note'), '');
    if (segment?.running && segment.idx === segment_idx) {
      segment.state = again ? 'restarting' : 'failed';
      if (!again) this.asked = null;
      this.update(segment);
    } else if (['invalid_message', 'prompt_blocked'].includes(code) && this.phase === 'active') {
      this.refused();
    }
    if (this.resuming && retryable) {
      this.refusal = { title: '', text: sentence(message) }; // is tried again
      return;
    }
    const taken = code === 'session_rejected' && this.phase === 'active';
    if (taken) this.complete = 'taken';
    const over = ['session_rejected', 'state_incompatible', 'unauthorized'].includes(code);
    const cannot = over && this.resuming && 'The session cannot be gone on with.';
    if (over) this.resume = null;
    const words = taken ? 'The session is no longer on this page.' : cannot || ERROR_WORDS[code];
    const title = again ? 'The segment is being made again.' : words ?? `${phrase(code)}.`;
    const text = sentence(message);
    this.refusal = this.phase === 'active' ? null : { title, text };
    this.passing = again; // goes away with the fault
    this.report(title, text, retryable || taken, taken);
  }

  /** The error does not say which request it means. It is the newest one when it comes soon after it was sent. */
  refused() {
    const request = this.waiting.at(-1);
    if (!request || performance.now() - request.at > 5000) return;
    this.waiting.pop();
    if (!$('prompt').value) $('prompt').value = request.prompt;
  }

  closed(code, reason, opened) {
    const ended = this.phase === 'complete' || ['timeout', 'taken'].includes(this.complete);
    if (this.resume && !ended && !this.leaving && (this.resuming ? RETRY_CODES : LOST_CODES).includes(code)) {
      this.lost();
      return;
    }
    const asked = this.leaving || code === 1000 || code === 1005;
    this.stopped();
    this.phase = ended ? 'complete' : 'closed';
    this.player.finish();
    const cutOff = !ended || code === 1001; // a server that goes away completes the session first
    if (cutOff && !asked) {
      const title = opened ? CLOSE_WORDS[code] ?? `The connection was closed (code ${code}).` : 'The server cannot be reached.';
      const next = this.resume && code !== 1003 ? 'Reconnect to go on where you were.' : '';
      this.errors.push({ code, message: reason || title, at: Date.now() });
      // What was said just before says more than the close code.
      const { refusal } = this;
      const more = this.resuming ? '' : title;
      if (refusal) this.report(refusal.title, [refusal.text, more, next].filter(Boolean).join(' '), false, true);
      else this.report(title, [reason, next].filter(Boolean).join(' '), false, true);
    }
    this.render();
  }

  /** The session is still there, the connection is not. What is here plays on. */
  lost() {
    const segment = this.current;
    if (segment && (segment.running || segment.state === 'restarting')) {
      segment.state = 'interrupted';
      this.update(segment);
    }
    for (const request of this.waiting) request.sent = false;
    this.phase = 'lost';
    this.draining = null;
    this.retry.later(this.refusal?.text);
    this.render();
  }

  /** Nothing more comes. Prompts that never ran go back to the box, so that they are not lost. */
  stopped() {
    const segment = this.current;
    if (segment && (segment.running || ['restarting', 'interrupted'].includes(segment.state))) {
      segment.state = this.complete === 'stop_requested' ? 'cancelled' : 'failed';
      this.update(segment);
    }
    if (this.asked?.message.source === 'user' && this.retry.tries) this.waiting.unshift(this.asked);
    this.asked = null;
    this.retry.reset();
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
    $('fresh').hidden = !(reconnect && this.resume);
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
      case 'lost': return ['wait', 'Reconnecting'];
      case 'connecting': return ['wait', this.resuming ? 'Reconnecting' : 'Connecting'];
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
    if (this.waiting[0]?.enhance && !this.waiting[0].written) return ['work', 'A language model writes the prompt'];
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
    $('kept').hidden = live || !this.kept;
    $('move').hidden = phase !== 'active' || this.gpus.cards.size < 2;
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
    const key = this.waiting.map((request) => `${request.at} ${request.written ?? ''}`).join();
    if ($('waiting-list').dataset.key === key) return;
    $('waiting-list').dataset.key = key;
    $('waiting-list').replaceChildren(...this.waiting.map((request, i) => {
      const item = make('li');
      item.dataset.testid = `waiting-${i}`;
      item.dataset.state = 'queued';
      item.append(make('b', '', `+${i + 1}`), make('span', '', request.written ?? request.prompt));
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

    const starved = view === 'media' && (this.phase === 'active' || this.retry.on) && player.atEnd && !player.paused;
    $('hint').hidden = !starved;
    const idle = $('t-pause').checked ? 'Generation is paused' : 'Send a prompt to go on from here';
    const comes = running || this.waiting.length;
    if (starved && this.retry.on) say($('hint'), 'Waiting for the connection');
    else if (starved) say($('hint'), !comes ? idle : running ? `Waiting for the next segment: ${segment.words}` : 'Waiting for the next segment');

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
