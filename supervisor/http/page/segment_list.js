// Segments: what is known of each, their rows and thumbnails, and the file that they make together.

import { $, facts, make, pad, phrase, say, seconds, still } from './dom.js';

const SOURCE_WORDS = { user: 'you', curated: 'curated', enhanced: 'enhanced', auto_extension: 'extended' };

/** One generated stretch of video, as far as this page knows it. */
export class Segment {
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
export async function recording(segments) {
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
export class SegmentList {
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
    if (['cancelled', 'failed'].includes(segment.state)) {
      v.thumb.width = 0; // the index will show something else
      v.thumbAt = null;
    }
    v.block.style.setProperty('--grow', Math.max(1, Math.round(segment.duration || 1)));
    v.block.style.setProperty('--done', segment.steps ? segment.step / segment.steps : 0);
  }

  /** Marks where the viewer is, and keeps a picture of each segment as its thumbnail: an early one, then one from its middle. */
  follow(segments, player) {
    const time = player.time;
    const at = segments.findLast((s) => (s.duration || ['streaming', 'interrupted'].includes(s.state)) && time >= s.start - 0.02) ?? null;
    for (const segment of segments) {
      const view = this.views.get(segment.idx);
      if (!view) continue;
      const here = segment === at && player.hasPicture;
      view.row.dataset.playing = view.block.dataset.playing = here;
      if (!here) continue;
      const length = segment.duration || Math.max(player.end - segment.start, 1);
      view.block.style.setProperty('--at', Math.min(1, Math.max(0, (time - segment.start) / length)).toFixed(3));
      const seen = time - segment.start;
      const due = view.thumbAt == null ? 0.3 : view.thumbAt < length / 2 ? length / 2 : Infinity;
      if (seen > due && this.thumbnail(view.thumb, player.picture)) view.thumbAt = seen;
    }
    return at;
  }

  thumbnail(canvas, picture) {
    const width = picture.videoWidth || picture.width;
    const height = picture.videoHeight || picture.height;
    if (!width) return false;
    canvas.width = 240;
    canvas.height = Math.round((240 * height) / width);
    canvas.getContext('2d').drawImage(picture, 0, 0, canvas.width, canvas.height);
    return true;
  }
}
