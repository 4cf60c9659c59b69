// The stage: the players, the controls over the picture, and the progress bar of the denoise steps.

import { $, mark, say, set } from './dom.js';
import { clock, pad } from './format.js';
import { LatentField } from './latent_field.js';
import { JpegPlayer } from './player/jpeg_player.js';
import { MsePlayer } from './player/mse_player.js';
import { current, isLive, isReconnecting, isUnderWay, shownPreview } from './state.js';
import { segmentWords } from './words.js';

const CONTROLS_HIDE_MS = 3500;
/** A player that stands for this long while a segment streams is explained: shorter pauses are not worth a word. */
const STARVED_MS = 600;
const VOLUME_STEP = 0.1;

/**
 * What a key does in the player.
 *
 * @type {{[key: string]: (stage: Stage) => void}}
 */
const KEYS = {
  ' ': (stage) => stage.togglePlay(),
  k: (stage) => stage.togglePlay(),
  j: (stage) => stage.skip(-10),
  l: (stage) => stage.skip(10),
  ArrowLeft: (stage) => stage.skip(-5),
  ArrowRight: (stage) => stage.skip(5),
  ArrowUp: (stage) => stage.louder(VOLUME_STEP),
  ArrowDown: (stage) => stage.louder(-VOLUME_STEP),
  m: (stage) => stage.toggleMute(),
  f: (stage) => stage.toggleFull(),
};

export class Stage {
  /**
   * @param {object} parts
   * @param {() => import('./state.js').SessionState} parts.getState
   * @param {import('./film.js').Film} parts.film
   * @param {(text: string) => void} parts.failed  is called when the video cannot be shown
   * @param {() => void} parts.changed  is called when the viewer has used the controls
   * @param {(time: number) => void} parts.seek  seeks to a position on the player's time line, in seconds
   * @param {(on: boolean) => void} parts.starved  is called when the player begins to stand because media are missing, and when it goes on
   * @param {{status: typeof import('./words.js').statusWords, starved: typeof import('./words.js').starvedWords}} parts.words
   */
  constructor({ getState, film, failed, changed, seek, starved, words }) {
    const hooks = { failed, ended: () => getState().phase !== 'active' };
    this.players = { av_fmp4: new MsePlayer($('video'), film, hooks), legacy_jpeg: new JpegPlayer($('jpeg'), hooks) };
    this.player = this.players.av_fmp4;
    this.field = new LatentField($('field'));
    this.getState = getState;
    this.changed = changed;
    this.seek = seek;
    this.starved = starved;
    this.words = words;
    this.starvedSince = null;
    this.wantsSound = true; // until the viewer turns it off
    this.hiding = null;
    this.rests = false; // whether it goes on by itself
    this.bind();
  }

  bind() {
    $('play').onclick = () => this.togglePlay();
    $('mute').onclick = $('unmute').onclick = () => this.toggleMute();
    $('full').onclick = () => this.toggleFull();
    document.addEventListener('keydown', (event) => this.press(event));
    // Browsers allow sound once the user has done something on the page.
    for (const gesture of ['click', 'keyup']) {
      document.addEventListener(gesture, ({ target }) => {
        const asks = target instanceof Element && target.closest('#mute, #unmute');
        if (this.wantsSound && $('video').muted && !asks) this.mute(false);
      }, { capture: true, once: true });
    }
    $('stage').onclick = ({ target }) => {
      if ([$('video'), $('jpeg')].includes(target)) this.togglePlay();
    };
    $('stage').onpointermove = $('stage').onpointerdown = () => this.wake();
    $('stage').addEventListener('focusin', () => this.wake());
  }

  /** Clears both players, and shows the one for this media mode. */
  reset(mode) {
    for (const player of Object.values(this.players)) player.reset();
    this.player = this.players[mode];
    set($('video'), { hidden: mode !== 'av_fmp4' });
    set($('jpeg'), { hidden: mode !== 'legacy_jpeg' });
  }

  open(fps) {
    this.players.legacy_jpeg.fps = fps;
    this.player.open();
  }

  /** Shows the controls over the picture until the viewer has been idle for a while. */
  wake() {
    mark($('stage'), { idle: false });
    clearTimeout(this.hiding);
    this.hiding = setTimeout(() => mark($('stage'), { idle: !this.player.paused }), CONTROLS_HIDE_MS);
  }

  /** Runs the player's keys while the focus is in the player, or nowhere. A button keeps its own keys. */
  press(event) {
    const act = KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
    const here = event.target === document.body || $('stage').contains(event.target);
    const seen = !$('stage').closest('[hidden]');
    if (!act || !here || !seen || event.ctrlKey || event.metaKey || event.altKey || $('stage').dataset.view !== 'media') return;
    if (event.key === ' ' && event.target.closest('button')) return;
    // Nothing but the player takes these keys from the page, which scrolls with them.
    if (['ArrowUp', 'ArrowDown'].includes(event.key) && event.target === document.body) return;
    event.preventDefault();
    this.wake();
    act(this);
  }

  mute(muted) {
    const video = $('video');
    video.muted = muted;
    const { av_fmp4: player } = this.players;
    if (player.playing && player.started && video.paused && !video.ended) player.wake(); // some browsers pause it then
    this.changed();
  }

  toggleMute() {
    this.wantsSound = $('video').muted;
    this.mute(!this.wantsSound);
  }

  louder(by) {
    const video = $('video');
    video.volume = Math.min(1, Math.max(0, video.volume + by));
    this.wantsSound = by > 0 || !video.muted;
    if (by > 0) video.muted = false;
    this.changed();
  }

  toggleFull() {
    if (document.fullscreenElement) document.exitFullscreen();
    else if ($('stage').requestFullscreen) $('stage').requestFullscreen();
    else $('video').webkitEnterFullscreen?.(); // iPhone
  }

  /** Goes on or back by seconds, within what was generated. */
  skip(by) {
    const { player } = this;
    const first = this.getState().segments[0]?.start ?? 0;
    const last = Math.max(first, player.end - 0.05);
    this.seek(Math.min(last, Math.max(first, player.time + by)));
  }

  togglePlay() {
    if (this.player.paused || $('video').ended) this.player.play();
    else this.player.pause();
    this.changed();
  }

  /** Pauses while the stage is not seen, and goes on afterwards. */
  rest(on) {
    if (on) {
      this.rests = !this.player.paused;
      this.player.pause();
    } else if (this.rests) {
      this.player.play();
    }
  }

  renderSteps(state) {
    const segment = current(state);
    const on = state.phase === 'active' && isUnderWay(segment);
    const done = on && segment.steps ? segment.step / segment.steps : 0;
    const bar = $('steps');
    mark(bar, { on, stage: segment?.state === 'streaming' ? 'media' : 'denoise' });
    bar.setAttribute('aria-valuemax', segment?.steps || 1);
    bar.setAttribute('aria-valuenow', on ? segment.step : 0);
    bar.setAttribute('aria-valuetext', on ? segmentWords(segment) : 'no segment is running');
    bar.firstElementChild.style.transform = `scaleX(${done})`;
    this.field.target = !isLive(state) ? 0.16 : 1 - 0.9 * done;
  }

  /** Shows the newest picture of the segment that is being made: behind the words until there is video, then in a corner. */
  showPreview(state) {
    const preview = shownPreview(state);
    const picture = $('preview-picture');
    if (preview) set(picture, { src: preview.src, alt: `Preview of segment ${pad(preview.idx)}` });
    else if (picture.hasAttribute('src')) picture.removeAttribute('src');
    set($('preview'), { hidden: !preview });
  }

  /** Updates what depends on the player's position. `at` is the segment there, or `null`. */
  follow(state, at) {
    const { player } = this;
    const segment = current(state);
    const view = player.hasPicture ? 'media' : isLive(state) ? 'work' : 'empty';
    if ($('stage').dataset.view !== view) this.wake();
    mark($('stage'), { view });
    set($('empty'), { hidden: view !== 'empty' });
    const shown = at ?? segment;
    say($('slate-main'), view === 'empty' ? '' : shown ? `Segment ${pad(shown.idx)}` : 'Standing by');
    say($('slate-side'), view === 'empty' ? '' : (shown?.prompt ?? '').slice(0, 90));

    const working = view === 'work' && state.phase !== 'queued';
    set($('working'), { hidden: !working });
    if (working) say($('working'), isUnderWay(segment) ? segmentWords(segment) : this.words.status(state)[1]);

    const expects = state.phase === 'active' || isReconnecting(state);
    // What streams may be there in a moment.
    const atEnd = view === 'media' && expects && player.atEnd && !player.paused && segment?.state !== 'streaming';
    const starved = this.isStarved(view === 'media' && segment?.state === 'streaming' && player.starved);
    if (starved !== state.starved) this.starved(starved);
    set($('hint'), { hidden: !(atEnd || starved) });
    if (atEnd || starved) say($('hint'), this.words.starved(state));
    this.followControls(view, state.mime);
    this.followClock(state.segments[0]?.start ?? 0);
  }

  /** Tells whether the player has stood for a while. */
  isStarved(stands) {
    if (!stands) this.starvedSince = null;
    else this.starvedSince ??= performance.now();
    return stands && performance.now() - this.starvedSince >= STARVED_MS;
  }

  followControls(view, mime) {
    const { player } = this;
    const video = $('video');
    const mp4 = player === this.players.av_fmp4;
    const sound = mp4 && /mp4a|opus|flac/i.test(mime ?? '');
    set($('unmute'), { hidden: !(view === 'media' && sound && video.muted && this.wantsSound) });
    set($('mute'), { hidden: !sound });
    const icon = (id, name, label) => {
      const [use, href] = [$(id).querySelector('use'), `#i-${name}`];
      if (use.getAttribute('href') === href) return;
      use.setAttribute('href', href);
      $(id).setAttribute('aria-label', label);
    };
    icon('mute', video.muted ? 'muted' : 'sound', video.muted ? 'Turn the sound on' : 'Turn the sound off');
    const stopped = player.paused || (mp4 && video.ended);
    icon('play', stopped ? 'play' : 'pause', stopped ? 'Play' : 'Pause');
    if (stopped) mark($('stage'), { idle: false });
  }

  followClock(origin) {
    say($('clock'), clock(Math.max(0, this.player.time - origin)));
    say($('clock-end'), `/ ${clock(Math.max(0, this.player.end - origin))}`);
  }
}
