// The built-in page: one session of `WS /v1/stream` with its player, and the GPUs of the server. This file only wires the parts:
// the reducer in session.js decides what an event leads to, and the other files run the effects and show the state.

import { moveSession } from './api.js';
import { Attachments } from './attachments.js';
import { Connection, TokenStore } from './connection.js';
import { $, save } from './dom.js';
import { Gpus } from './gpus.js';
import { Recording } from './recording.js';
import { SegmentList } from './segment_list.js';
import { reduce } from './session.js';
import { Stage } from './stage.js';
import { initialState } from './state.js';
import { createStore } from './store.js';
import { View } from './view.js';

const FOLLOW_MS = 150;
const REPORT_MS = 1000;

// Relative, since a proxy may serve the page below a path.
const url = new URL('v1/stream', document.baseURI);
url.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';

const tokens = new TokenStore(() => sessionStorage);
const connection = new Connection(() => new WebSocket(url), dispatch);
const recording = new Recording();
const list = new SegmentList(seek);
const stage = new Stage(
  () => store.state, (text) => report('The video cannot be shown.', text), follow, seekTo, (on) => dispatch({ type: 'starved', on }),
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
    recording.clear();
    stage.reset(mode);
  },
  open_player: ({ fps }) => stage.open(fps),
  allow_gap() { stage.player.holed = true; },
  finish_player: () => stage.player.finish(),
  start_media: ({ idx, mime }) => stage.player.startSegment(idx, mime),
  add_media({ idx, bytes, picture }) {
    recording.add(idx, bytes);
    const seen = () => dispatch({ type: 'first_picture', idx, start: stage.player.ranges()[0]?.[0] ?? 0 });
    stage.player.append(idx, bytes, picture ? seen : null);
  },
  finish_media: ({ idx }) => recording.finish(idx),
  void_media({ idx, from, again }) {
    recording.drop(idx);
    stage.player.cut(idx, from, again);
  },
};

const store = createStore({
  state: initialState(tokens.load()),
  reduce,
  run: (effect) => effects[effect.type](effect),
  render,
  now: () => performance.now(),
  failed: reportError,
});
const view = new View(dispatch);
const gpus = new Gpus(report, () => render(store.state));

$('download').onclick = async () => save(await downloadBlob(), `fastvideo-${(store.state.sessionId ?? 'session').slice(0, 8)}.mp4`);
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
  follow();
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
  stage.player.seek(time, () => recording.bytes(segment.idx));
  follow();
}

function downloadBlob() {
  return recording.file(store.state.segments.filter((s) => s.state === 'done').map((s) => s.idx));
}

/** A read-only interface for tests and for the browser's console. */
window.fastvideo = Object.freeze({
  get segments() {
    return store.state.segments.map(({ idx, state, prompt, source, attempt, start, duration, firstPictureMs, generationMs, latencyMs }) => (
      { idx, state, prompt, source, attempt, start, duration, firstPictureMs, generationMs, latencyMs, bytes: recording.size(idx) }));
  },
  get phase() { return store.state.phase; },
  get sessionId() { return store.state.sessionId; },
  get errors() { return store.state.errors.map((error) => ({ ...error })); },
  get stalls() { return stage.player.stalls; },
  buffered: () => stage.player.ranges(),
  downloadBlob,
});
