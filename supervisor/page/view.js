// Renders the session's state, apart from the stage and the list of segments, and turns the user's input into events. Only what
// has changed is written to the DOM.

import { AdapterSliders } from './adapters.js';
import { $, make, mark, say, set } from './dom.js';
import { plural } from './format.js';
import {
  canApply, canContinue, curatedPrompts, current, finishedSegments, hasFeature, hasState, isLive, isReconnecting, isRunning, maxWaiting,
} from './state.js';
import { WaitingList } from './waiting_list.js';
import {
  applyWords, askWords, composerWords, curatedWords, drainWords, gpuWords, idleWords, queueWords, reconnectWords, roomWords, snapshotWords,
  statusWords, timeLeftWords,
} from './words.js';

const EXAMPLES = [
  'A red fox trots through fresh snow at dawn, breath steaming, handheld camera at its eye level',
  'Night train window, rain streaks across the glass, a city of neon signs slides past',
  'Macro shot of ink unfolding in clear water, slow, backlit',
  'A lighthouse keeper climbs a spiral stair with a lantern, waves thud outside',
  'Drone flight low over a green river canyon, morning fog lifting',
];

const SWITCHES = ['enhancement', 'auto', 'loop', 'pause'];
const SAMPLING = { negative: 'negative_prompt', seed: 'seed', 'num-steps': 'num_inference_steps', guidance: 'guidance_scale' };

export class View {
  /** @param {(event: import('./session.js').Event) => void} dispatch */
  constructor(dispatch) {
    this.dispatch = dispatch;
    this.shown = null;
    this.adapters = new AdapterSliders($('adapters'));
    this.waiting = new WaitingList($('waiting-list'), dispatch);
    this.bindComposer();
    this.bindSession();
    this.bindDirection();
  }

  // --- input ---

  bindComposer() {
    for (const text of EXAMPLES) {
      const item = make('li');
      const chip = make('button', '', text);
      chip.type = 'button';
      chip.onclick = () => this.submit(text, false);
      item.append(chip);
      $('chips').append(item);
    }
    $('composer').onsubmit = (event) => {
      event.preventDefault();
      const text = $('prompt').value.trim();
      if (text) this.submit(text, true);
      $('prompt').focus();
    };
    $('prompt').onkeydown = (event) => {
      if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      $('composer').requestSubmit();
    };
    $('composer').oninput = () => {
      const given = Object.keys(SAMPLING).filter((id) => $(id).value !== '').length;
      say($('advanced-brief'), given ? `(${given} set)` : '');
    };
  }

  /** Submits a prompt. `typed` tells that it comes from the prompt field. */
  submit(prompt, typed) {
    const sampling = this.sampling();
    if (sampling) this.dispatch({ type: 'prompt_submitted', prompt, typed, sampling });
  }

  /** Returns the sampling options; null while one of them is invalid, which is then shown. */
  sampling() {
    if (!$('composer').reportValidity()) return null;
    const sampling = {};
    for (const [id, field] of Object.entries(SAMPLING)) {
      const value = $(id).value.trim();
      sampling[field] = value === '' ? null : id === 'negative' ? value : Number(value);
    }
    const adapters = this.adapters.chosen();
    if (adapters) sampling.adapters = adapters;
    return sampling;
  }

  bindSession() {
    const on = (id, type) => { $(id).onclick = () => this.dispatch({ type }); };
    $('connect').onclick = () => this.dispatch({ type: this.shown.phase === 'complete' ? 'connect_fresh' : 'connect' });
    on('reconnect', 'connect');
    on('fresh', 'connect_fresh');
    on('kept-go', 'connect_kept');
    on('kept-drop', 'kept_dropped');
    on('ask-yes', 'new_session_confirmed');
    on('ask-no', 'new_session_declined');
    on('lost-now', 'reconnect_due');
    on('lost-end', 'give_up');
    on('move', 'move');
    on('leave', 'leave');
    on('cancel', 'cancel');
    on('waiting-clear', 'requests_cleared');
    on('snapshot', 'snapshot');
    on('drain-snapshot', 'snapshot');
    on('error-close', 'notice_closed');
    window.addEventListener('online', () => this.dispatch({ type: 'reconnect_due' }));
  }

  bindDirection() {
    for (const name of SWITCHES) {
      $(`t-${name}`).onchange = ({ target }) => this.dispatch({ type: 'switched', name, on: target.checked });
    }
    $('curated-apply').onclick = () => this.dispatch({ type: 'curated_applied' });
    $('rewrite').onclick = () => this.dispatch({ type: 'rewrite', prompt: $('prompt').value.trim() });
    const changed = () => this.dispatch({ type: 'settings_changed', settings: this.settings() });
    for (const id of ['curated', 't-single', 't-jpeg']) $(id).addEventListener('input', changed);
    // The browser may restore the fields' earlier values without an `input` event.
    window.addEventListener('pageshow', changed);
  }

  settings() {
    const on = (id) => $(`t-${id}`).checked;
    return {
      enhancement: on('enhancement'), auto: on('auto'), loop: on('loop'), pause: on('pause'), single: on('single'), jpeg: on('jpeg'),
      curated: $('curated').value,
    };
  }

  // --- effects ---

  clearPrompt() {
    $('prompt').value = '';
  }

  /** Puts a prompt that did not run back into its field, unless the user is writing another one. */
  returnPrompt(prompt) {
    if (!$('prompt').value) $('prompt').value = prompt;
  }

  /** Asks for a prompt, until the user writes one. */
  wantPrompt() {
    say($('composer-note'), 'Write a prompt first.');
    $('prompt').focus();
    $('prompt').addEventListener('input', () => this.renderWaiting(this.shown), { once: true });
  }

  writeCurated(text) {
    $('curated').value = text;
  }

  // --- output ---

  /** @param {import('./state.js').SessionState} state @param {number} gpus  the number of GPUs of the server */
  render(state, gpus) {
    const before = this.shown;
    const changed = (...keys) => keys.some((key) => state[key] !== before?.[key]);
    this.shown = state;
    this.renderStatus(state);
    this.renderActions(state, gpus);
    if (changed('phase', 'notice', 'resume', 'reconnect', 'kept', 'asking', 'downloaded')) this.renderNotices(state);
    if (changed('gpu', 'stream', 'segments')) this.renderFacts(state);
    if (changed('phase', 'stream', 'hasEnhancer', 'settings', 'curatedNote')) this.renderDirection(state);
    if (changed('waiting', 'stream', 'phase', 'resume')) this.renderWaiting(state);
  }

  renderStatus(state) {
    const [tone, words] = statusWords(state);
    mark($('tally'), { state: tone });
    say($('status'), words);
    say($('f-none'), isLive(state) ? `${words}.` : 'Your first prompt opens one. It is given a GPU, and keeps it while you direct.');
    const queue = state.phase === 'queued' && state.queue;
    set($('queue'), { hidden: !queue });
    if (!queue) return;
    const { place, text } = queueWords(queue);
    say($('queue-number'), place);
    say($('queue-text'), text);
  }

  renderActions(state, gpus) {
    const { phase, segments } = state;
    const live = isLive(state);
    const active = phase === 'active';
    const jpeg = state.playerMode === 'legacy_jpeg';
    set($('connect'), { hidden: live });
    set($('leave'), { hidden: !live });
    const again = state.resume && phase === 'closed';
    say($('connect'), again ? 'Reconnect' : phase === 'idle' ? 'Connect' : 'New session');
    set($('opening'), { disabled: live, hidden: live });
    set($('snapshot'), { disabled: !hasState(state), title: snapshotWords(state) });
    set($('drain-snapshot'), { hidden: !hasState(state) });
    set($('move'), { hidden: !active || gpus < 2, disabled: state.moving });
    set($('download'), {
      disabled: jpeg || !segments.some((s) => s.state === 'done'),
      title: jpeg ? 'JPEG frames are not kept as a video file' : 'All finished segments as one file',
    });
    set($('cancel'), { hidden: !(active && isRunning(current(state))) });
    set($('curated-apply'), { disabled: !canApply(state), title: applyWords(state) });
  }

  renderNotices(state) {
    const { notice, reconnect } = state;
    set($('error'), { hidden: !notice });
    if (notice) {
      say($('error-title'), notice.title);
      say($('error-text'), notice.text);
      mark($('error'), { tone: notice.soft ? 'soft' : 'hard' });
      set($('reconnect'), { hidden: !notice.reconnect });
      set($('fresh'), { hidden: !notice.fresh });
    }
    say($('reconnect'), state.resume ? 'Reconnect' : 'New session');
    set($('lost'), { hidden: !isReconnecting(state) });
    set($('lost-now'), { disabled: reconnect?.dueAt == null });
    say($('lost-why'), reconnect?.why ?? '');
    set($('kept'), { hidden: isLive(state) || !state.kept });
    const isAsked = $('ask').hidden && state.asking;
    set($('ask'), { hidden: !state.asking });
    if (isAsked) $('ask').scrollIntoView({ block: 'center' }); // what was clicked may be far below
    const { title, text, yes, no } = askWords(state);
    say($('ask-title'), title);
    say($('ask-text'), text);
    say($('ask-yes'), yes);
    say($('ask-no'), no);
  }

  renderFacts(state) {
    const { gpu, stream, segments } = state;
    const done = finishedSegments(state);
    const cap = stream?.generation_segment_cap;
    for (const id of ['facts', 'keep']) set($(id), { hidden: !gpu });
    set($('f-none'), { hidden: Boolean(gpu) });
    say($('f-gpu'), gpuWords(gpu));
    say($('f-worker'), gpu?.worker_id ?? 'not told');
    say($('f-model'), gpu?.model_id ?? 'not told');
    say($('f-format'), stream ? `${stream.width}×${stream.height}, ${stream.fps} fps` : 'not told');
    say($('f-cap'), cap ? `${done} of ${cap}` : `${done}`);
    set($('cap-meter'), { hidden: !cap });
    $('cap-meter').firstElementChild.style.setProperty('--v', cap ? Math.min(1, done / cap) : 0);
    set($('synthetic'), { hidden: gpu?.model_id !== 'synthetic' });
    say($('takes-count'), segments.length ? `${segments.length}` : '');
    set($('takes-empty'), { hidden: segments.length > 0 });
  }

  renderDirection(state) {
    const { phase, stream, settings } = state;
    const features = stream?.features;
    if (features) this.adapters.render(features.adapters ?? []);
    const why = 'Has no effect here: this server has no prompt enhancer.';
    // A switch that has no effect is off, whatever it was before the server was known.
    const feature = (id, works, on, note) => {
      set($(`t-${id}`), { disabled: !works, checked: works && on });
      set($(`t-${id}`).closest('label'), { title: works ? '' : why });
      say($(`n-${id}`), works ? note : why);
    };
    feature('enhancement', hasFeature(state, 'enhancement'), settings.enhancement, 'A language model writes them out in detail.');
    feature('auto', hasFeature(state, 'auto_extension'), settings.auto, 'With no prompt waiting, the story is continued.');
    const hasCurated = curatedPrompts(settings).length > 0;
    say($('n-loop'), hasCurated ? 'With no prompt waiting, the next one of the list runs.' : 'Needs curated prompts in the list below.');
    set($('rewrite'), { hidden: !(phase === 'active' && features?.rewrite) });
    say($('curated-note'), curatedWords(state));
  }

  renderWaiting(state) {
    const { waiting } = state;
    const most = maxWaiting(state);
    const full = waiting.length >= most;
    set($('waiting'), { hidden: !waiting.length });
    say($('waiting-count'), waiting.length > most ? `${waiting.length}` : `${waiting.length} of ${most}`);
    set($('waiting-clear'), { hidden: waiting.length < 2 });
    set($('send'), { disabled: full });
    const goesOn = state.phase === 'complete' && canContinue(state, performance.now());
    say($('composer-note'), full ? `${plural(waiting.length, 'prompt')} waiting. ${roomWords(waiting.length, most)}` : composerWords(goesOn));
    this.waiting.render(waiting);
  }

  /** Updates the countdowns. */
  follow(state, now) {
    say($('f-idle'), idleWords(state, now));
    const left = timeLeftWords(state, now);
    set($('left'), { hidden: !left });
    say($('left-name'), left?.name ?? '');
    say($('left-time'), left?.left ?? '');
    say($('left-spoken'), left?.spoken ?? '');
    if (isReconnecting(state)) say($('lost-text'), reconnectWords(state, now));
    const draining = state.drainDeadline !== null && isLive(state);
    set($('drain'), { hidden: !draining });
    if (!draining) return;
    const rest = Math.max(0, Math.round((state.drainDeadline - now) / 1000));
    say($('drain-text'), drainWords(rest, hasState(state)));
  }
}
