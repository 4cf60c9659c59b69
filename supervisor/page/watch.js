// The spectators' page: the film of one session, as it is made or as it was kept. This file only wires the parts.

import { ofServer } from './address.js';
import { filmInfo, Refused } from './api.js';
import { Connection } from './connection.js';
import { $, mark, say, set } from './dom.js';
import { mediaEffects, sessionFilm } from './media_effects.js';
import { SegmentList } from './segment_list.js';
import { Stage } from './stage.js';
import { createStore } from './store.js';
import { bindThemeSwitch } from './theme/theme_switch.js';
import { initialWatchState, nextSegment, reduceWatch } from './watch_session.js';
import { emptyWords, watchSourceWords, watchStarvedWords, watchStatusWords } from './words.js';

const FOLLOW_MS = 150;

const link = new URLSearchParams(location.hash.slice(1));
const key = { session_id: link.get('session') ?? '', token: link.get('token') ?? '' };
window.addEventListener('hashchange', () => location.reload());

const getState = () => store.state;
const film = sessionFilm(getState);
const connection = new Connection(() => new WebSocket(address()), dispatch, { silenceMs: Infinity });
const list = new SegmentList(seek, watchSourceWords);
const stage = new Stage({
  getState, film, seek: seekTo, changed: follow,
  failed: (text) => dispatch({ type: 'reported', title: 'The video cannot be shown.', text }),
  starved: (on) => dispatch({ type: 'starved', on }),
  words: { status: watchStatusWords, starved: watchStarvedWords },
});

const effects = {
  ...mediaEffects(film, list, stage, getState, dispatch),
  connect: () => connection.connect(''),
  schedule_reconnect: ({ attempt }) => connection.scheduleReconnect(attempt),
  load_film: () => filmInfo(key).then(
    (info) => dispatch({ type: 'film_loaded', film: info, refused: false }),
    (error) => dispatch({ type: 'film_loaded', film: null, refused: error instanceof Refused && error.status === 404 }),
  ),
};

const store = createStore({
  state: initialWatchState(key),
  reduce: reduceWatch,
  run: (effect) => effects[effect.type]?.(effect),
  render,
  now: () => performance.now(),
  failed: reportError,
});

setInterval(follow, FOLLOW_MS);
window.addEventListener('online', () => dispatch({ type: 'reconnect_due' }));
dispatch({ type: 'open' });
bindThemeSwitch($('theme'), () => localStorage);

function dispatch(event) {
  store.dispatch(event);
}

function address() {
  const url = new URL(ofServer('v1/watch'), document.baseURI);
  url.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';
  url.search = new URLSearchParams({ session: key.session_id, token: key.token, from: nextSegment(store.state) });
  return url;
}

function render(state) {
  const [tone, words] = watchStatusWords(state);
  mark($('tally'), { state: tone });
  say($('status'), words);
  const { title, text } = emptyWords(state);
  say($('empty-title'), title);
  say($('empty-text'), text);
  set($('error'), { hidden: !state.notice });
  say($('error-title'), state.notice?.title ?? '');
  say($('error-text'), state.notice?.text ?? '');
  say($('takes-count'), state.segments.length ? `${state.segments.length}` : '');
  set($('takes-empty'), { hidden: state.segments.length > 0 });
  list.render(state.segments);
  stage.renderSteps(state);
  follow();
}

function follow() {
  stage.follow(store.state, list.follow(store.state.segments, stage.player));
}

function seek(idx, part) {
  seekTo(list.positionOf(store.state.segments, idx, part, stage.player));
}

function seekTo(time) {
  stage.player.seek(time);
  follow();
}

/** A read-only interface for tests and for the browser's console. */
window.fastvideo = Object.freeze({
  get segments() {
    return store.state.segments.map(({ idx, state, prompt, start, duration }) => ({ idx, state, prompt, start, duration }));
  },
  get phase() { return store.state.phase; },
  get stalls() { return stage.player.stalls; },
  buffered: () => stage.player.ranges(),
});
