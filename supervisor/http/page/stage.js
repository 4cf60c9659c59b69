// The stage: the players, the controls over the picture, and the progress bar of the denoise steps.

import { $, mark, say, set } from './dom.js';
import { clock, pad } from './format.js';
import { LatentField } from './latent_field.js';
import { JpegPlayer, MsePlayer } from './player.js';
import { current, isLive, isReconnecting, isUnderWay } from './state.js';
import { segmentWords, starvedWords, statusWords } from './words.js';

const CONTROLS_HIDE_MS = 3500;

export class Stage {
  /**
   * @param {() => import('./state.js').SessionState} getState
   * @param {(text: string) => void} failed  is called when the video cannot be shown
   * @param {() => void} changed  is called when the viewer has used the controls
   */
  constructor(getState, failed, changed) {
    const hooks = {
      failed,
      segmentStart: (time) => getState().segments.findLast((s) => time >= s.start)?.start ?? 0,
      ended: () => getState().phase !== 'active',
    };
    this.players = { av_fmp4: new MsePlayer($('video'), hooks), legacy_jpeg: new JpegPlayer($('jpeg'), hooks) };
    this.player = this.players.av_fmp4;
    this.field = new LatentField($('field'));
    this.changed = changed;
    this.hiding = null;
    this.bind();
  }

  bind() {
    $('play').onclick = () => this.togglePlay();
    $('mute').onclick = $('unmute').onclick = () => {
      $('video').muted = !$('video').muted;
      this.changed();
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

  togglePlay() {
    if (this.player.paused || $('video').ended) this.player.play();
    else this.player.pause();
    this.changed();
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

  /** Updates what depends on the player's position. `at` is the segment there, or `null`. */
  follow(state, at) {
    const { player } = this;
    const segment = current(state);
    player.nudge(segment?.state === 'streaming');
    const view = player.hasPicture ? 'media' : isLive(state) ? 'work' : 'empty';
    if ($('stage').dataset.view !== view) this.wake();
    mark($('stage'), { view });
    set($('empty'), { hidden: view !== 'empty' });
    const shown = at ?? segment;
    say($('slate-main'), view === 'empty' ? '' : shown ? `Segment ${pad(shown.idx)}` : 'Standing by');
    say($('slate-side'), view === 'empty' ? '' : (shown?.prompt ?? '').slice(0, 90));

    const working = view === 'work' && state.phase !== 'queued';
    set($('working'), { hidden: !working });
    if (working) say($('working'), isUnderWay(segment) ? segmentWords(segment) : statusWords(state)[1]);

    const expects = state.phase === 'active' || isReconnecting(state);
    const starved = view === 'media' && expects && player.atEnd && !player.paused;
    set($('hint'), { hidden: !starved });
    if (starved) say($('hint'), starvedWords(state));
    this.followControls(view, state.mime);
    this.followClock(state.segments[0]?.start ?? 0);
  }

  followControls(view, mime) {
    const { player } = this;
    const video = $('video');
    const mp4 = player === this.players.av_fmp4;
    const sound = mp4 && /mp4a|opus|flac/i.test(mime ?? '');
    set($('unmute'), { hidden: !(view === 'media' && sound && video.muted) });
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
