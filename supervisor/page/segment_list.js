// The list of segments, and the time line (the reel) with a block for each of them.

import { $, facts, make, mark, prefersStill, say, set } from './dom.js';
import { pad, seconds } from './format.js';
import { segmentWords } from './words.js';

export class SegmentList {
  /**
   * @param {(idx: number, part: number) => void} seek  seeks to a position within a segment, from 0 to 1
   * @param {(source: string) => string} sourceWords  names the source of a prompt
   */
  constructor(seek, sourceWords) {
    this.sourceWords = sourceWords;
    this.seek = seek;
    this.views = new Map();
    this.playing = null;
  }

  clear() {
    this.render([]);
    this.playing = null;
  }

  /** Returns a small picture of a segment as a file; null while there is none. @param {number} idx @returns {?Promise<?Blob>} */
  pictureOf(idx) {
    const thumb = this.views.get(idx)?.thumb;
    return thumb?.width ? new Promise((resolve) => { thumb.toBlob(resolve, 'image/jpeg', 0.8); }) : null;
  }

  /** Shows a picture of a segment that was not played here yet. */
  showPicture(idx, picture) {
    const view = this.views.get(idx);
    if (view && view.thumbAt === null) draw(view.thumb, picture, picture.width, picture.height);
  }

  /** Shows these segments. Only those that have changed are updated. */
  render(segments) {
    const known = new Set(segments.map((segment) => segment.idx));
    for (const [idx, view] of this.views) {
      if (known.has(idx)) continue;
      view.row.remove();
      view.block.remove();
      this.views.delete(idx);
    }
    for (const segment of segments) {
      const view = this.views.get(segment.idx) ?? this.add(segment.idx);
      if (view.segment !== segment) this.update(view, segment);
      view.segment = segment;
    }
  }

  add(idx) {
    const row = make('li');
    row.dataset.testid = `segment-${idx}`;
    const num = make('button', 'num', pad(idx));
    num.type = 'button';
    num.setAttribute('aria-label', `Play segment ${pad(idx)}`);
    const text = make('div', 'text');
    const state = make('div', 'state');
    const line = make('div', 'facts-line');
    row.append(num, text, state, line);
    const next = [...this.views.keys()].sort((a, b) => a - b).find((other) => other > idx);
    const after = next === undefined ? null : this.views.get(next);
    if (after) after.row.after(row);
    else $('takes').prepend(row);

    const block = make('li');
    const button = make('button');
    button.type = 'button';
    const thumb = make('canvas');
    thumb.width = thumb.height = 0;
    button.append(thumb, make('span', 'fill'), make('b', '', pad(idx)));
    block.append(make('span', 'head'), button);
    $('reel').insertBefore(block, after?.block ?? null);

    num.onclick = () => this.seek(idx, 0);
    button.onclick = (event) => {
      const box = button.getBoundingClientRect();
      this.seek(idx, event.detail ? (event.clientX - box.left) / box.width : 0); // detail is 0 when the keyboard was used
    };
    const view = { row, num, text, state, line, block, button, thumb, thumbAt: null, badge: make('span', 'badge'), segment: null };
    this.views.set(idx, view);
    block.scrollIntoView({ block: 'nearest', inline: 'end', behavior: prefersStill() ? 'auto' : 'smooth' });
    return view;
  }

  update(v, segment) {
    const words = segmentWords(segment);
    for (const node of [v.row, v.block]) mark(node, { state: segment.state });
    const playable = segment.duration > 0 || segment.state === 'streaming';
    for (const node of [v.num, v.button]) set(node, { disabled: !playable });
    v.button.setAttribute('aria-label', `Segment ${pad(segment.idx)}, ${words}`);
    if (v.segment?.prompt !== segment.prompt || v.segment?.original !== segment.original) {
      v.text.textContent = segment.prompt;
      if (segment.original && segment.original !== segment.prompt) v.text.append(make('span', 'was', `from: ${segment.original}`));
    }
    say(v.state, words);
    facts(v.line, [
      ['first picture', seconds(segment.firstPictureMs)], ['generated in', seconds(segment.generationMs)],
      ['end to end', seconds(segment.latencyMs)], ['length', segment.duration ? seconds(segment.duration * 1000) : ''],
    ]);
    mark(v.badge, { source: segment.source });
    say(v.badge, this.sourceWords(segment.source));
    if (v.line.firstChild !== v.badge) v.line.prepend(v.badge);
    if (['cancelled', 'failed'].includes(segment.state)) {
      v.thumb.width = 0; // the next segment with this index has other pictures
      v.thumbAt = null;
    }
    v.block.style.setProperty('--grow', Math.max(1, Math.round(segment.duration || 1)));
    v.block.style.setProperty('--done', segment.steps ? segment.step / segment.steps : 0);
  }

  /**
   * Marks the segment at the player's position and returns it. Takes its thumbnail: an early picture first, then one from its
   * middle.
   */
  follow(segments, player) {
    const time = player.time;
    const at = segments.findLast((s) => (s.duration || ['streaming', 'interrupted'].includes(s.state)) && time >= s.start - 0.02) ?? null;
    const view = (player.hasPicture && at && this.views.get(at.idx)) || null;
    if (view !== this.playing) {
      for (const [v, playing] of [[this.playing, false], [view, true]]) if (v) for (const node of [v.row, v.block]) mark(node, { playing });
      this.playing = view;
    }
    if (!view) return at;
    const length = at.duration || Math.max(player.end - at.start, 1);
    const seen = time - at.start;
    view.block.style.setProperty('--at', Math.min(1, Math.max(0, seen / length)).toFixed(3));
    const due = view.thumbAt == null ? 0.3 : view.thumbAt < length / 2 ? length / 2 : Infinity;
    if (seen > due && this.thumbnail(view.thumb, player.picture)) view.thumbAt = seen;
    return at;
  }

  /** Returns a position within a segment, from 0 to 1, as seconds on the time line. */
  positionOf(segments, idx, part, player) {
    const segment = segments.find((s) => s.idx === idx);
    const length = segment.duration || Math.max(0, player.end - segment.start);
    return segment.start + Math.min(part, 0.98) * length;
  }

  thumbnail(canvas, picture) {
    const width = picture.videoWidth || picture.width;
    const height = picture.videoHeight || picture.height;
    if (!width) return false;
    draw(canvas, picture, width, height);
    return true;
  }
}

/** Draws a small picture. */
function draw(canvas, picture, width, height) {
  canvas.width = 240;
  canvas.height = Math.round((240 * height) / width);
  canvas.getContext('2d').drawImage(picture, 0, 0, canvas.width, canvas.height);
}
