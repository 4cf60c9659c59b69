// @ts-check
// The types that the parts of the reducer share: events, effects, and the transition that they build up.

/** The number of errors that are kept for the console. */
const MAX_ERRORS = 100;

/**
 * @typedef {import('../state.js').SessionState} SessionState
 * @typedef {import('../state.js').Settings} Settings
 * @typedef {import('../state.js').Segment} Segment
 * @typedef {import('../state.js').Request} Request
 * @typedef {import('../protocol.js').ResumeToken} ResumeToken
 * @typedef {import('../protocol.js').ClientMessage} ClientMessage
 * @typedef {'enhancement' | 'auto' | 'loop' | 'pause'} Switch
 */

/**
 * An event: the user's input, a report of the connection, or a picture in the player. `typed` tells that the prompt comes from
 * its field, which is then cleared.
 *
 * @typedef {{type: 'settings_changed', settings: Settings}
 *   | {type: 'switched', name: Switch, on: boolean}
 *   | {type: 'attachments_changed', image: SessionState['chosenImage'], state: SessionState['chosenState']}
 *   | {type: 'prompt_submitted', prompt: string, typed: boolean, sampling: Sampling}
 *   | {type: 'new_session_confirmed' | 'new_session_declined' | 'watch_link_renewed' | 'downloaded'}
 *   | {type: 'enhancer_told', hasEnhancer: boolean}
 *   | {type: 'film_loaded', sessionId: string, film: ?import('../protocol.js').FilmInfo}
 *   | {type: 'curated_applied' | 'connect' | 'connect_fresh' | 'connect_kept' | 'kept_dropped' | 'leave' | 'give_up' | 'move'}
 *   | {type: 'rewrite', prompt: string}
 *   | {type: 'request_edit', id: string, prompt: string}
 *   | {type: 'request_move', id: string, by: number}
 *   | {type: 'request_withdraw', id: string}
 *   | {type: 'requests_cleared'}
 *   | {type: 'story_played', play: import('./story.js').Play}
 *   | {type: 'session_continued'} & import('./restoring.js').Continued
 *   | {type: 'cancel' | 'snapshot' | 'notice_closed'}
 *   | {type: 'moved', error: ?string}
 *   | {type: 'reported', title: string, text: string, soft?: boolean}
 *   | {type: 'first_picture', idx: number, start: number}
 *   | {type: 'starved', on: boolean}
 *   | {type: 'viewed', position: number, playing: boolean}
 *   | import('../connection.js').ConnectionEvent} Event
 *
 * @typedef {Pick<import('../protocol.js').PromptRequest, 'negative_prompt' | 'seed' | 'num_inference_steps' | 'guidance_scale'
 *   | 'adapters'>} Sampling
 */

/**
 * An effect: something outside the state that the page runs, in this order. `again` tells that the same pictures will follow;
 * `picture` marks the message with the segment's first picture.
 *
 * @typedef {{type: 'connect', first: string}
 *   | {type: 'schedule_reconnect', attempt: number}
 *   | {type: 'send', message: ClientMessage}
 *   | {type: 'close' | 'drop'}
 *   | {type: 'save_token', token: ?ResumeToken}
 *   | {type: 'move', sessionId: string}
 *   | {type: 'save_state', state: import('../protocol.js').ContinuationState, name: string}
 *   | {type: 'clear_attachments' | 'clear_prompt'}
 *   | {type: 'return_prompt', prompt: string}
 *   | {type: 'write_curated', text: string}
 *   | {type: 'reset_player', mode: import('../protocol.js').MediaMode}
 *   | {type: 'open_player', fps: number}
 *   | {type: 'finish_player'}
 *   | {type: 'load_film', key: ResumeToken}
 *   | {type: 'show_film', mime: string, fps: number, pictures: number[], position: ?number}
 *   | {type: 'start_media', idx: number, mime: string}
 *   | {type: 'add_media', idx: number, bytes: Uint8Array, picture: boolean}
 *   | {type: 'finish_media' | 'refill_media', idx: number}
 *   | {type: 'void_media', idx: number, from: number, again: boolean}} Effect
 */

/** One transition of the reducer: the next state while it is built up, and the effects so far. */
export class Transition {
  /** @param {SessionState} state @param {number} now */
  constructor(state, now) {
    this.state = { ...state };
    this.now = now;
    /** @type {Effect[]} */
    this.effects = [];
  }

  /** @param {Effect} effect */
  run(effect) {
    this.effects.push(effect);
  }

  /** Sends a message, which restarts the session's idle timeout. @param {ClientMessage} message */
  send(message) {
    Object.assign(this.state, { activeAt: this.now, endsAt: null });
    this.run({ type: 'send', message });
  }

  /** Changes fields of a segment. @param {number} idx @param {Partial<Segment>} changes */
  change(idx, changes) {
    this.state.segments = this.state.segments.map((s) => (s.idx === idx ? { ...s, ...changes } : s));
  }

  /** Sets the resume token, and stores it for a reload. @param {?ResumeToken} token */
  keepToken(token) {
    this.state.resume = token;
    this.run({ type: 'save_token', token });
  }

  /**
   * Shows a notice in place of any other.
   *
   * @param {string} title
   * @param {string} text
   * @param {{soft?: boolean, reconnect?: boolean, until?: import('../state.js').NoticeEnd}} [how]
   */
  notice(title, text, { soft = false, reconnect = false, until = null } = {}) {
    this.state.notice = { title, text, soft, reconnect, fresh: reconnect && this.state.resume !== null, until, at: this.now };
  }

  /** @param {{code: string | number, message: string, retryable?: boolean}} error */
  recordError(error) {
    this.state.errors = [...this.state.errors, { ...error, at: this.now }].slice(-MAX_ERRORS);
  }
}
