// The built-in page: one session of `WS /v1/stream` with its player, and the GPUs of the server. This file only wires the parts:
// the reducer in session.js decides what an event leads to, and the other files run the effects and show the state.

import { filmAddress, filmInfo, filmPicture, filmSegment, moveSession } from './api.js';
import { Attachments } from './attachments.js';
import { Connection, TokenStore } from './connection.js';
import { $, follow as followLink, save } from './dom.js';
import { Film } from './film.js';
import { Gpus } from './gpus.js';
import { SegmentList } from './segment_list.js';
import { reduce } from './session.js';
import { Stage } from './stage.js';
import { initialState, isUnsaved } from './state.js';
import { createStore } from './store.js';
import { View } from './view.js';
import { WatchLink } from './watch_link.js';

const FOLLOW_MS = 150;
const REPORT_MS = 1000;

// Relative, since a proxy may serve the page below a path.
const url = new URL('v1/stream', document.baseURI);
url.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';

const tokens = new TokenStore(() => sessionStorage);
const connection = new Connection(() => new WebSocket(url), dispatch);
const film = new Film(() => store.state.segments, () => {
  const { filmKey } = store.state;
  return filmKey && ((idx) => filmSegment(filmKey, idx));
});
const list = new SegmentList(seek);
const stage = new Stage(
  () => store.state, film, (text) => report('The video cannot be shown.', text), follow, seekTo, (on) => dispatch({ type: 'starved', on }),
);
const attachments = new Attachments((files) => dispatch({ type: 'attachments_changed', ...files }), report);

/** Runs each type of effect. */
const effects = {
  connect: ({ first }) => connection.connect(first),
  schedule_reconnect: ({ attempt }) => connection.scheduleReconnect(attempt),
  send: ({ message }) => connection.send(message),
  close: () => connection.close(),
  drop: () => connection.drop(),
  save_token: ({ token }) => tokens.save(token),
  move: ({ sessionId }) => moveSession(sessionId).then(() => null, ({ message }) => message)
    .then((error) => dispatch({ type: 'moved', error })),
  save_state: ({ state, name }) => save(new Blob([JSON.stringify(state)], { type: 'application/json' }), name),
  clear_attachments: () => attachments.clear(),
  clear_prompt: () => view.clearPrompt(),
  return_prompt: ({ prompt }) => view.returnPrompt(prompt),
  write_curated: ({ text }) => view.writeCurated(text),
  reset_player({ mode }) {
    film.clear();
    list.clear();
    stage.reset(mode);
  },
  open_player: ({ fps }) => stage.open(fps),
  load_film: ({ key }) => filmInfo(key).catch(() => null)
    .then((info) => dispatch({ type: 'film_loaded', sessionId: key.session_id, film: info })),
  show_film({ mime, fps, pictures }) {
    film.mime ??= mime;
    stage.open(fps || 24);
    if (kept?.position && stage.player.time === 0) stage.player.seek(kept.position);
    showPictures(pictures);
  },
  finish_player: () => stage.player.finish(),
  start_media({ idx, mime }) {
    film.begin(idx, mime);
    stage.player.startSegment(idx, mime);
  },
  add_media({ idx, bytes, picture }) {
    film.add(idx, bytes);
    const seen = () => dispatch({ type: 'first_picture', idx, start: stage.player.ranges()[0]?.[0] ?? 0 });
    stage.player.added(idx, picture ? seen : null, bytes);
  },
  finish_media({ idx }) {
    film.finish(idx);
    stage.player.wake();
  },
  void_media({ idx, from, again }) {
    film.drop(idx);
    stage.player.cut(idx, from, again);
  },
};

const kept = tokens.load();
const store = createStore({
  state: initialState(kept, performance.timeOrigin),
  reduce,
  run: (effect) => effects[effect.type](effect),
  render,
  now: () => performance.now(),
  failed: reportError,
});
const view = new View(dispatch);
const gpus = new Gpus(report, () => render(store.state));
const watchLink = new WatchLink(dispatch);

$('download').onclick = download;
window.addEventListener('pagehide', () => tokens.remember(store.state, stage.player.time));
window.addEventListener('beforeunload', (event) => {
  if (isUnsaved(store.state)) event.preventDefault();
});
setInterval(follow, FOLLOW_MS);
setInterval(() => dispatch({ type: 'viewed', position: stage.player.time, playing: !stage.player.paused && !stage.player.starved }), REPORT_MS);
dispatch({ type: 'settings_changed', settings: view.settings() });

function dispatch(event) {
  store.dispatch(event);
}

function report(title, text, soft = false) {
  dispatch({ type: 'reported', title, text, soft });
}

function render(state) {
  list.render(state.segments);
  view.render(state, gpus.count);
  stage.renderSteps(state);
  watchLink.render(state);
  follow();
  remember(state);
}

let remembered = null;

/** Stores the requests for a reload, when they have changed. The position is stored when the page is left. */
function remember(state) {
  const { resume, waiting, asked } = state;
  if (remembered?.resume === resume && remembered.waiting === waiting && remembered.asked === asked) return;
  remembered = { resume, waiting, asked };
  tokens.remember(state, stage.player.time);
}

/** Updates what depends on the player's position and on the clock. */
function follow() {
  const { state } = store;
  stage.follow(state, list.follow(state.segments, stage.player));
  view.follow(state, performance.now());
}

function seek(idx, part) {
  const segment = store.state.segments.find((s) => s.idx === idx);
  if (!segment) return;
  const length = segment.duration || Math.max(0, stage.player.end - segment.start);
  seekTo(segment.start + Math.min(part, 0.98) * length);
}

/** Seeks to a position on the player's time line, in seconds. */
function seekTo(time) {
  const segment = store.state.segments.findLast((s) => time >= s.start) ?? store.state.segments[0];
  if (!segment) return;
  stage.player.seek(time);
  follow();
}

async function showPictures(indices) {
  const { filmKey } = store.state;
  for (const idx of indices) {
    const picture = await filmPicture(filmKey, idx).then(createImageBitmap).catch(() => null);
    if (store.state.filmKey?.session_id !== filmKey.session_id) return;
    if (picture) list.showPicture(idx, picture);
  }
}

/** Saves the film: that which the server keeps, or else what was received. */
async function download() {
  const { filmKey } = store.state;
  const name = `fastvideo-${(store.state.sessionId ?? 'session').slice(0, 8)}.mp4`;
  const atServer = filmKey && await filmInfo(filmKey).catch(() => null);
  if (atServer) followLink(filmAddress(filmKey, name), name);
  else save(await downloadBlob(), name);
  dispatch({ type: 'downloaded' });
}

function downloadBlob() {
  return film.file(store.state.segments.filter((s) => s.state === 'done').map((s) => s.idx));
}

/** A read-only interface for tests and for the browser's console. */
window.fastvideo = Object.freeze({
  get segments() {
    return store.state.segments.map(({ idx, state, prompt, source, attempt, start, duration, firstPictureMs, generationMs, latencyMs }) => (
      { idx, state, prompt, source, attempt, start, duration, firstPictureMs, generationMs, latencyMs, bytes: film.size(idx) }));
  },
  get phase() { return store.state.phase; },
  get sessionId() { return store.state.sessionId; },
  get errors() { return store.state.errors.map((error) => ({ ...error })); },
  get stalls() { return stage.player.stalls; },
  buffered: () => stage.player.ranges(),
  downloadBlob,
});
