// The built-in page: one session of `WS /v1/stream` with its player, the video jobs, and the GPUs of the server. This file only wires
// the parts: the reducer in session.js decides what an event leads to, and the other files run the effects and show the state.

import { ofServer } from './address.js';
import { fetchTicket, filmAddress, filmInfo, moveSession, useKey } from './api.js';
import { Attachments } from './attachments.js';
import { Connection, TokenStore } from './connection.js';
import { $, openAround, save, saveFrom, say } from './dom.js';
import { sentence } from './format.js';
import { Gpus } from './gpus.js';
import { HistoryTab } from './history/tab.js';
import { KeySocket, keepKey, takeKey } from './key.js';
import { mediaEffects, sessionFilm } from './media_effects.js';
import { SegmentList } from './segment_list.js';
import { reduce } from './session.js';
import { Stage } from './stage.js';
import { hasUnsaved, initialState, isLive } from './state.js';
import { createStore } from './store.js';
import { StoryBoard } from './stories/board.js';
import { Tabs } from './tabs.js';
import { bindThemeSwitch } from './theme/theme_switch.js';
import { VideosTab } from './videos/tab.js';
import { View } from './view.js';
import { WatchLink } from './watch_link.js';
import { sourceWords, starvedWords, statusWords } from './words.js';

const FOLLOW_MS = 150;
const REPORT_MS = 1000;

// Otherwise Chromium scrolls a reloaded page so far that the header lies over the offer to go on with the session.
history.scrollRestoration = 'manual';

const url = new URL(ofServer('v1/stream'), document.baseURI);
url.protocol = location.protocol === 'https:' ? 'wss:' : 'ws:';

const askedTab = new URLSearchParams(location.hash.slice(1)).get('tab');
let key = takeKey(() => sessionStorage, location, history);
useKey(key);
/** What the page does once the user has typed a key. @type {Set<() => void>} */
const withKey = new Set();

const tokens = new TokenStore(() => sessionStorage);
const connection = new Connection(openSocket, (event) => {
  if (event.type === 'message' && event.message.type === 'error' && event.message.code === 'unauthorized') askForKey(connectWithKey);
  dispatch(event);
});
const getState = () => store.state;
const film = sessionFilm(getState);
const list = new SegmentList(seek, sourceWords);
const stage = new Stage({
  getState, film, seek: seekTo, changed: follow,
  failed: (text) => report('The video cannot be shown.', text),
  starved: (on) => dispatch({ type: 'starved', on }),
  words: { status: statusWords, starved: starvedWords },
});
const attachments = new Attachments((files) => dispatch({ type: 'attachments_changed', ...files }), report);

/** Runs each type of effect. */
const media = mediaEffects(film, list, stage, getState, dispatch);
const effects = {
  ...media,
  finish_media(effect) {
    media.finish_media(effect);
    past.keepMedia(store.state, effect.idx, film.media.get(effect.idx));
  },
  connect: ({ first }) => connection.connect(first),
  schedule_reconnect: ({ attempt }) => connection.scheduleReconnect(attempt),
  send: ({ message }) => connection.send(message),
  close: () => connection.close(),
  drop: () => connection.drop(),
  save_token: ({ token }) => tokens.save(token),
  move: ({ sessionId }) => moveSession(sessionId).then(() => null, ({ message }) => message)
    .then((error) => dispatch({ type: 'moved', error })),
  save_state: ({ state, name }) => {
    save(new Blob([JSON.stringify(state)], { type: 'application/json' }), name);
    past.keepState(store.state.sessionId, state);
  },
  clear_attachments: () => attachments.clear(),
  clear_prompt: () => view.clearPrompt(),
  return_prompt: ({ prompt }) => view.returnPrompt(prompt),
  write_curated: ({ text }) => view.writeCurated(text),
  load_film: ({ key }) => filmInfo(key).catch(() => null)
    .then((info) => dispatch({ type: 'film_loaded', sessionId: key.session_id, film: info })),
};

const kept = tokens.load();
const curated = tokens.loadCurated();
let remembered = []; // what was stored last for a reload
const store = createStore({
  state: initialState(kept, performance.timeOrigin),
  reduce,
  run: (effect) => effects[effect.type](effect),
  render,
  now: () => performance.now(),
  failed: reportError,
});
const view = new View(dispatch);
const board = new StoryBoard({ getState, play, unauthorized: askForKey, wantPrompt: () => view.wantPrompt() });
const gpus = new Gpus(report, () => render(store.state), (hasEnhancer) => dispatch({ type: 'enhancer_told', hasEnhancer }));
const watchLink = new WatchLink(dispatch);
const tabs = new Tabs($('tabs'), showPanel);
const past = new HistoryTab({
  offered: () => offerTab('history', true), report: (title, text) => report(title, text, true), pictureOf: (idx) => list.pictureOf(idx),
  isBusy: () => isLive(store.state), resume, openWith,
});
const videos = new VideosTab({
  offered: (isOffered) => offerTab('videos', isOffered), unauthorized: () => askForKey(retryVideos),
});

$('download').onclick = () => download().catch(({ message }) => report('The film could not be saved.', sentence(message)));
window.addEventListener('pagehide', () => tokens.remember(store.state, stage.player.time));
window.addEventListener('beforeunload', (event) => {
  if (hasUnsaved(store.state)) event.preventDefault();
});
setInterval(follow, FOLLOW_MS);
setInterval(() => dispatch({ type: 'viewed', position: stage.player.time, playing: !stage.player.paused && !stage.player.starved }), REPORT_MS);
// A form is not sent while a field of it is invalid. The event does not bubble.
document.addEventListener('invalid', ({ target }) => openAround(target), { capture: true });
if (curated) view.writeCurated(curated);
dispatch({ type: 'settings_changed', settings: view.settings() });
if (askedTab === 'videos') tabs.show('videos');
videos.begin();
past.begin();
bindThemeSwitch($('theme'), () => localStorage);

$('key-form').onsubmit = (event) => {
  event.preventDefault();
  key = $('key').value.trim();
  if (!key) return;
  keepKey(() => sessionStorage, key);
  useKey(key);
  $('key').value = '';
  $('key-form').hidden = true;
  const waiting = [...withKey];
  withKey.clear();
  waiting.forEach((then) => then());
};

/** Asks the user for a key. @param {() => void} then  is called when there is one */
function askForKey(then) {
  withKey.add(then);
  $('key-form').hidden = false;
  $('key-form').scrollIntoView({ block: 'center' });
  $('key').focus({ preventScroll: true });
}

function retryVideos() {
  videos.retry();
}

function connectWithKey() {
  dispatch({ type: 'notice_closed' });
  dispatch({ type: 'connect' });
}

function openSocket() {
  return key ? new KeySocket(url, key, fetchTicket, (to, protocols) => new WebSocket(to, protocols)) : new WebSocket(url);
}

/** Is called when another tab is shown. A reload comes back to it. */
function showPanel(panel) {
  const isAtLive = panel === 'live';
  document.body.dataset.tab = panel;
  history.replaceState(history.state, '', isAtLive ? location.pathname + location.search : `#tab=${panel}`);
  $('skip').href = { live: '#prompt', videos: '#make-prompt', history: '#history-title' }[panel];
  say($('skip'), panel === 'history' ? 'Skip to the past sessions' : 'Skip to the prompt');
  stage.rest(!isAtLive);
  videos.show(panel === 'videos');
  past.show(panel === 'history');
}

/** Offers a tab besides the first one, and shows it where the page was at it before a reload. */
function offerTab(panel, isOffered) {
  tabs.offer(panel, isOffered);
  if (isOffered && panel === 'history' && askedTab === panel) tabs.show(panel);
}

/** Goes on with a session of the history. @param {import('./session/restoring.js').Continued} continued */
function resume(continued) {
  tabs.show('live');
  dispatch({ type: 'session_continued', ...continued });
}

/** Makes the next session begin with a state of the history. */
function openWith(state) {
  tabs.show('live');
  attachments.choose({ state }, { name: 'From the history' });
  report('The next prompt goes on from the saved state.', 'It opens a new session.', true);
  $('prompt').focus();
}

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
  stage.showPreview(state);
  watchLink.render(state);
  board.follow();
  past.observe(state);
  follow();
  remember(state);
}

/** Stores the requests and curated prompts for a reload, when they have changed. The position is stored when the page is left. */
function remember(state) {
  const facts = [state.resume, state.waiting, state.asked, state.outcome, state.settings.curated];
  if (facts.every((fact, i) => fact === remembered[i])) return;
  remembered = facts;
  tokens.remember(state, stage.player.time);
}

/** Updates what depends on the player's position and on the clock. */
function follow() {
  const { state } = store;
  stage.follow(state, list.follow(state.segments, stage.player));
  view.follow(state, performance.now());
  past.follow(state);
}

/** Plays the shots of a story, unless a sampling option is invalid. */
function play(version) {
  const sampling = view.sampling();
  if (sampling) dispatch({ type: 'story_played', play: { ...version, sampling } });
}

function seek(idx, part) {
  seekTo(list.positionOf(store.state.segments, idx, part, stage.player));
}

/** Seeks to a position on the player's time line, in seconds. */
function seekTo(time) {
  stage.player.seek(time);
  follow();
}

/** Saves the film: that which the server keeps, or else what was received. */
async function download() {
  const { filmKey, watchToken } = store.state;
  const name = `fastvideo-${(store.state.sessionId ?? 'session').slice(0, 8)}.mp4`;
  const atServer = filmKey && await filmInfo(filmKey).catch(() => null);
  // An address may be logged: the token in it should not allow more than it has to.
  if (atServer) saveFrom(filmAddress({ ...filmKey, token: watchToken ?? filmKey.token }, name), name);
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
