// @ts-check
// The reducer of a session: from a state and an event it computes the next state and the effects to run. It is a pure function:
// it has no access to the DOM, a socket or a clock. Its parts are in the folder `session`.

import { plural, sentence, span } from './format.js';
import { canContinue, isLive, isUnsaved, maxWaiting } from './state.js';
import {
  closed, connect, giveUp, gpuAssigned, leave, queueStatus, serverError, sessionTimeout, streamComplete, streamStart,
} from './session/lifecycle.js';
import {
  applyCurated, editRequest, moveRequest, promptWritten, queueRequest, requestEdited, requestWithdrawn, rewrite, seedPromptsRewritten,
  sendWaiting, withdrawRequest,
} from './session/prompts.js';
import { continueSession, filmLoaded, restore } from './session/restoring.js';
import {
  addMedia, firstPicture, mediaInit, mediaSegmentComplete, preview, segmentCancelled, segmentComplete, segmentStart, stepComplete,
} from './session/segments.js';
import { beginFollowing, clearWaiting, playStory } from './session/story.js';
import { Transition } from './session/transition.js';
import { roomWords } from './words.js';

/**
 * @typedef {import('./state.js').SessionState} SessionState
 * @typedef {import('./session/transition.js').Event} Event
 * @typedef {import('./session/transition.js').Effect} Effect
 * @typedef {import('./session/transition.js').Switch} Switch
 * @typedef {import('./session/transition.js').Sampling} Sampling
 */

/**
 * Computes the state after an event. An event or message of an unknown type changes nothing.
 *
 * @param {SessionState} state  is not modified
 * @param {Event} event
 * @param {number} now  milliseconds of a monotonic clock
 * @returns {{state: SessionState, effects: Effect[]}}
 */
export function reduce(state, event, now) {
  const next = new Transition(state, now);
  const changed = handle(next, event);
  return changed ? { state: next.state, effects: next.effects } : { state, effects: [] };
}

/** @param {Transition} next @param {Event} event @returns {boolean} whether the event may change something */
function handle(next, event) {
  const { state } = next;
  switch (event.type) {
    case 'settings_changed': state.settings = event.settings; break;
    case 'switched': switched(next, event.name, event.on); break;
    case 'attachments_changed': Object.assign(state, { chosenImage: event.image, chosenState: event.state }); break;
    case 'prompt_submitted': submitPrompt(next, event); break;
    case 'request_edit': editRequest(next, event.id, event.prompt); break;
    case 'request_move': moveRequest(next, event.id, event.by); break;
    case 'request_withdraw': withdrawRequest(next, event.id); break;
    case 'requests_cleared': clearWaiting(next); break;
    case 'story_played': playStory(next, event.play); break;
    case 'curated_applied': applyCurated(next); break;
    case 'rewrite': rewrite(next, event.prompt); break;
    case 'connect': connect(next); break;
    case 'connect_fresh':
      next.keepToken(null);
      connect(next);
      break;
    case 'connect_kept': restore(next); break;
    case 'session_continued': return continueSession(next, event);
    case 'enhancer_told':
      if (state.hasEnhancer === event.hasEnhancer) return false;
      state.hasEnhancer = event.hasEnhancer;
      break;
    case 'film_loaded': filmLoaded(next, event); break;
    case 'new_session_confirmed': confirmed(next); break;
    case 'new_session_declined': state.asking = null; break;
    case 'watch_link_renewed':
      next.send({ type: 'renew_watch_token' });
      break;
    case 'downloaded': state.downloaded = state.segments.filter((s) => s.state === 'done').length; break;
    case 'kept_dropped':
      state.kept = null;
      next.keepToken(null);
      break;
    case 'leave': leave(next); break;
    case 'give_up': giveUp(next); break;
    case 'move': move(next); break;
    case 'moved': moved(next, event.error); break;
    case 'cancel': next.send({ type: 'cancel_segment' }); break;
    case 'snapshot': next.send({ type: 'snapshot_state' }); break;
    case 'notice_closed': state.notice = null; break;
    case 'reported': next.notice(event.title, event.text, { soft: event.soft }); break;
    case 'starved': state.starved = event.on; break;
    case 'viewed': return viewed(next, event);
    case 'first_picture': firstPicture(next, event); break;
    case 'reconnect_scheduled': if (state.reconnect) state.reconnect = { ...state.reconnect, dueAt: event.dueAt }; break;
    case 'reconnect_due': if (state.phase === 'lost') connect(next); break;
    case 'message': return handleMessage(next, event.message);
    case 'media': addMedia(next, event.bytes); break;
    case 'closed':
      closed(next, event);
      if (!isLive(state)) beginFollowing(next);
      break;
    default: return false;
  }
  return true;
}

/**
 * @param {Transition} next
 * @param {import('./protocol.js').ServerMessage} message
 * @returns {boolean} whether the message's type is known
 */
function handleMessage(next, message) {
  switch (message.type) {
    case 'queue_status': queueStatus(next, message); break;
    case 'gpu_assigned': gpuAssigned(next, message); break;
    case 'ltx2_stream_start': streamStart(next, message); break;
    case 'ltx2_segment_start': segmentStart(next, message); break;
    case 'step_complete': stepComplete(next, message); break;
    case 'ltx2_preview': preview(next, message); break;
    case 'media_init': mediaInit(next, message); break;
    case 'media_segment_complete': mediaSegmentComplete(next, message); break;
    case 'ltx2_segment_complete': segmentComplete(next, message); break;
    case 'segment_cancelled': segmentCancelled(next, message); break;
    case 'request_withdrawn': requestWithdrawn(next, message); break;
    case 'request_edited': requestEdited(next, message); break;
    case 'idle_warning': {
      next.state.endsAt = next.now + message.seconds_left * 1000;
      const text = `It ends in ${span(message.seconds_left)} unless you ask for something, so that others get its GPU.`;
      next.notice('Nothing happens in this session.', text, { soft: true, until: 'segment' });
      break;
    }
    case 'spectators': next.state.spectators = message.count; break;
    case 'watch_token':
      next.state.watchToken = message.watch_token;
      next.state.watchNote = 'The old link does not work any more. Copy the new one.';
      break;
    case 'ltx2_stream_complete': streamComplete(next, message); break;
    case 'session_timeout': sessionTimeout(next, message); break;
    case 'continuation_state_snapshot': stateSnapshot(next, message); break;
    case 'server_draining': next.state.drainDeadline = next.now + message.deadline_seconds * 1000; break;
    case 'prompt_enhanced': promptWritten(next, message, message.prompt); break;
    case 'prompt_fallback':
      promptWritten(next, message, message.original_prompt);
      next.notice('A prompt is used as it was.', sentence(message.reason), { soft: true, until: 'request' });
      break;
    case 'seed_prompts_rewritten': seedPromptsRewritten(next, message); break;
    case 'error': serverError(next, message); break;
    default: return false; // a later server may send it
  }
  return true;
}

/** @param {Transition} next @param {Switch} name @param {boolean} on */
function switched(next, name, on) {
  next.state.settings = { ...next.state.settings, [name]: on };
  switch (name) {
    case 'enhancement': next.send({ type: 'enhancement_updated', enabled: on }); break;
    case 'auto': next.send({ type: 'auto_extension_updated', enabled: on }); break;
    case 'loop': next.send({ type: 'loop_generation_updated', enabled: on }); break;
    case 'pause': next.send({ type: 'generation_paused_updated', paused: on }); break;
    default:
  }
}

/**
 * Queues a prompt. If there is no session, the one that has ended goes on, or a new one is opened; when its film would take the
 * place of another one, the user is asked first.
 *
 * @param {Transition} next
 * @param {{prompt: string, typed: boolean, sampling: Sampling}} submitted
 * @param {boolean} [agreed]  whether the user has agreed to a new session
 */
function submitPrompt(next, { prompt, typed, sampling }, agreed = false) {
  const { state } = next;
  const isNew = !isLive(state) && (state.chosenState !== null || !canContinue(state, next.now));
  if (isNew) {
    const asks = state.chosenState ? isUnsaved(state) : state.segments.length > 0;
    if (asks && !agreed) {
      state.asking = { prompt, typed, sampling };
      return;
    }
    if (state.resume) next.keepToken(null);
  }
  const most = maxWaiting(state);
  if (state.waiting.length >= most) {
    const { length } = state.waiting;
    next.notice(`There are already ${plural(length, 'prompt')} waiting.`, roomWords(length, most), { soft: true, until: 'segment' });
    return;
  }
  if (typed) next.run({ type: 'clear_prompt' });
  queueRequest(next, { prompt, source: 'user', sampling });
  if (!isLive(state)) connect(next);
  sendWaiting(next);
}

/** Opens another session for what has waited for the user's consent. @param {Transition} next */
function confirmed(next) {
  const { state } = next;
  const { asking } = state;
  state.asking = null;
  if (!asking) return;
  if ('story' in asking) playStory(next, asking.story, true);
  else if ('continued' in asking) continueSession(next, asking.continued, true);
  else submitPrompt(next, asking, true);
}

/**
 * Tells the server what the viewer sees, if that is news. It is no activity of the user.
 *
 * @param {Transition} next
 * @param {{position: number, playing: boolean}} view  the position is in seconds on the session's time line
 * @returns {boolean} whether the server is told
 */
function viewed(next, { position, playing }) {
  const { state } = next;
  const { told } = state;
  // The JPEG player counts from the page's first picture.
  if (state.phase !== 'active' || state.playerMode === 'legacy_jpeg' || !state.segments.length) return false;
  if (told?.position === position && told.playing === playing) return false;
  state.told = { position, playing };
  next.run({ type: 'send', message: { type: 'playback', position_ms: Math.round(position * 1000), playing } });
  return true;
}

/** @param {Transition} next */
function move(next) {
  const { state } = next;
  if (!state.sessionId) return;
  state.moving = true;
  next.run({ type: 'move', sessionId: state.sessionId });
}

/** @param {Transition} next @param {?string} error */
function moved(next, error) {
  next.state.moving = false;
  if (error !== null) next.notice('The session was not moved.', sentence(error), { soft: true });
}

/** @param {Transition} next @param {import('./protocol.js').StateSnapshot} message */
function stateSnapshot(next, { state }) {
  const after = state?.payload?.segment_index;
  const name = `fastvideo-${(next.state.sessionId ?? 'session').slice(0, 8)}-state${after == null ? '' : `-${after + 1}`}.json`;
  next.run({ type: 'save_state', state, name });
}
