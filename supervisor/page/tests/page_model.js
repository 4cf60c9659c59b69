// A page without a browser for the tests of the reducer: it records the effects, and the test plays the server.

import { reduce } from '../session.js';
import { initialState } from '../state.js';

export const TOKEN = Object.freeze({ session_id: 's1', token: 't1' });

const NO_SAMPLING = Object.freeze({ negative_prompt: null, seed: null, num_inference_steps: null, guidance_scale: null });

/** Freezes a state deeply, so that a reducer that modifies it throws. */
function freeze(value) {
  if (value && typeof value === 'object' && !Object.isFrozen(value) && !ArrayBuffer.isView(value)) {
    Object.freeze(value);
    Object.values(value).forEach(freeze);
  }
  return value;
}

export class PageModel {
  constructor({ kept = null, settings = {} } = {}) {
    this.state = freeze(initialState(kept));
    this.now = 1000;
    this.effects = [];
    this.event('settings_changed', { settings: { ...this.state.settings, ...settings } });
  }

  event(type, fields = {}) {
    const { state, effects } = reduce(this.state, freeze({ type, ...fields }), this.now);
    this.state = freeze(state);
    this.effects.push(...effects);
    return this;
  }

  wait(ms) {
    this.now += ms;
    return this;
  }

  /** Receives a message from the server. */
  says(type, fields = {}) {
    return this.event('message', { message: { type, ...fields } });
  }

  media(...sizes) {
    for (const size of sizes) this.event('media', { bytes: new Uint8Array(size) });
    return this;
  }

  closes(reason, code, text = '') {
    return this.event('closed', { reason, code, text });
  }

  submit(prompt, typed = true) {
    return this.event('prompt_submitted', { prompt, typed, sampling: NO_SAMPLING });
  }

  /** Receives the messages with which the server opens or resumes a session. */
  opens({ features = {}, next = 0, id = 's1', token = 't1', cap = 0, limits } = {}) {
    this.says('queue_status', { position: 0, queue_depth: 0 });
    this.says('gpu_assigned', { gpu_id: 0, session_timeout: 60, session_id: id, resume_token: token, worker_id: 'w', model_id: 'synthetic' });
    return this.says('ltx2_stream_start', {
      width: 128, height: 96, fps: 24, num_frames: 24, generation_segment_cap: cap, next_segment_idx: next, features, limits,
    });
  }

  /** Returns a page with an active session in which no segment runs. */
  static active({ features, ...options } = {}) {
    const page = new PageModel(options).event('connect').opens({ features });
    page.effects = [];
    return page;
  }

  starts(idx, prompt, fields = {}) {
    return this.says('ltx2_segment_start', { segment_idx: idx, prompt, total_steps: 4, source: 'user', attempt: 1, ...fields });
  }

  streams(idx) {
    this.says('media_init', { segment_idx: idx, mime: 'video/mp4', stream_id: 'x', mode: 'av_fmp4' });
    return this.media(10, 20);
  }

  completes(idx, seconds = 1) {
    this.says('media_segment_complete', { segment_idx: idx, chunks: 1, duration_ms: seconds * 1000, pts_base_ms: idx * seconds * 1000 });
    return this.says('ltx2_segment_complete', { segment_idx: idx, generation_time_ms: 500, e2e_latency_ms: 700 });
  }

  get segment() { return this.state.segments.at(-1); }
  get sent() { return this.ran('send').map(({ message }) => message); }
  get waiting() { return this.state.waiting.map((request) => request.prompt); }

  ran(type) {
    return this.effects.filter((effect) => effect.type === type);
  }

  /** The opening message of the latest connection. */
  get opening() { return JSON.parse(this.ran('connect').at(-1).first); }
}
