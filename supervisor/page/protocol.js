// @ts-check
// The messages of `WS /v1/stream` as types for type checkers, with the protocol's limits. docs/protocol.md describes what the
// messages mean.

/** The largest opening message that the server accepts, in bytes. */
export const MAX_MESSAGE = 48 * 1024 * 1024;
/** The largest initial image, in bytes. */
export const MAX_IMAGE = 32 * 1024 * 1024;
/** The number of requests that may wait in a session, unless the server says another. The server refuses more. */
export const MAX_WAITING = 8;

/**
 * @typedef {'av_fmp4' | 'legacy_jpeg'} MediaMode
 * @typedef {'user' | 'curated' | 'enhanced' | 'auto_extension'} PromptSource
 * @typedef {{session_id: string, token: string}} ResumeToken
 * @typedef {{segments: number, messages: number}} Have  whole segments, and binary messages of the next one
 * @typedef {{mime: string, name: string, data: string}} InitialImage  `data` is base64
 * @typedef {{kind: string, payload: {[field: string]: any}}} ContinuationState
 * @typedef {{enhancement?: boolean, auto_extension?: boolean, rewrite?: boolean, safety?: boolean, audio?: boolean,
 *   preview?: boolean, adapters?: Adapter[]}} Features
 * @typedef {{name: string, strength: number}} Adapter
 */

/**
 * The messages that the client sends.
 *
 * @typedef {object} SessionInit
 * @property {'session_init_v2'} type
 * @property {string[]} curated_prompts
 * @property {?InitialImage} initial_image
 * @property {boolean} enhancement_enabled
 * @property {boolean} auto_extension_enabled
 * @property {boolean} loop_generation_enabled
 * @property {boolean} single_clip_mode
 * @property {MediaMode} stream_mode
 * @property {?ContinuationState} continuation_state
 * @property {?(ResumeToken & {have?: Have})} resume
 * @property {boolean} heartbeat
 * @property {boolean} preview  asks for pictures of segments before their media
 * @property {boolean} [extend]  continues a session that has ended by its cap
 *
 * @typedef {object} PromptRequest
 * @property {'segment_prompt_source'} type
 * @property {string} [request_id]
 * @property {string} prompt
 * @property {PromptSource} source
 * @property {?string} [negative_prompt]
 * @property {?number} [seed]
 * @property {?number} [num_inference_steps]
 * @property {?number} [guidance_scale]
 * @property {Adapter[]} [adapters]  those that act from this segment on
 *
 * @typedef {{type: 'enhancement_updated' | 'auto_extension_updated' | 'loop_generation_updated', enabled: boolean}
 *   | {type: 'generation_paused_updated', paused: boolean}
 *   | {type: 'seed_prompts_updated', seed_prompts: string[]}
 *   | {type: 'rewrite_seed_prompts', seed_prompt: string, count: number}
 *   | {type: 'playback', position_ms: number, playing: boolean}
 *   | {type: 'media_received', segment_idx: number, messages: number}
 *   | {type: 'edit_request', request_id: string, prompt?: string, position?: number}
 *   | {type: 'withdraw_request', request_id: string}
 *   | {type: 'renew_watch_token'}
 *   | {type: 'cancel_segment' | 'snapshot_state' | 'leave'}} Command
 *
 * @typedef {PromptRequest | Command} ClientMessage
 */

/**
 * The messages that the server sends.
 *
 * @typedef {{type: 'queue_status', position: number, queue_depth: number}} QueueStatus
 *
 * @typedef {object} GpuAssigned
 * @property {'gpu_assigned'} type
 * @property {number} gpu_id
 * @property {?number} [session_timeout]  seconds
 * @property {string} [session_id]
 * @property {string} [resume_token]
 * @property {string} [watch_token]
 * @property {string} [worker_id]
 * @property {string} [model_id]
 * @property {string} [server]  the operator's name for the server
 *
 * @typedef {object} StreamStart
 * @property {'ltx2_stream_start'} type
 * @property {number} width
 * @property {number} height
 * @property {number} fps
 * @property {number} num_frames
 * @property {?number} [generation_segment_cap]
 * @property {number} [next_segment_idx]
 * @property {Features} [features]
 * @property {{max_waiting_requests?: number, recording?: boolean, max_cap_extensions?: number}} [limits]
 *
 * @typedef {object} SegmentStart
 * @property {'ltx2_segment_start'} type
 * @property {number} segment_idx
 * @property {string} prompt
 * @property {number} total_steps
 * @property {PromptSource} [source]
 * @property {string} [original_prompt]
 * @property {number} [attempt]
 * @property {string} [request_id]
 * @property {boolean} [replayed]  whether a finished segment is sent again
 *
 * @typedef {{type: 'step_complete', segment_idx: number, step: number, total_steps: number, stage?: string}} StepComplete
 * @typedef {object} Preview
 * @property {'ltx2_preview'} type
 * @property {number} segment_idx
 * @property {number} attempt
 * @property {number} frame  the position among the frames of the segment's media
 * @property {number} num_frames
 * @property {number} width
 * @property {number} height
 * @property {string} jpeg  base64
 *
 * @typedef {{type: 'media_init', segment_idx: number, mime: string, stream_id: string, mode: MediaMode}} MediaInit
 *
 * @typedef {object} MediaSegmentComplete
 * @property {'media_segment_complete'} type
 * @property {number} segment_idx
 * @property {number} duration_ms
 * @property {?number} [pts_base_ms]
 *
 * @typedef {object} SegmentComplete
 * @property {'ltx2_segment_complete'} type
 * @property {number} segment_idx
 * @property {number} generation_time_ms
 * @property {number} e2e_latency_ms
 *
 * @typedef {{type: 'segment_cancelled', segment_idx: number}} SegmentCancelled
 * @typedef {{type: 'request_withdrawn', request_id: string}} RequestWithdrawn
 * @typedef {{type: 'request_edited', request_id: string, position: number}} RequestEdited
 * @typedef {{type: 'idle_warning', seconds_left: number}} IdleWarning
 * @typedef {{type: 'ltx2_stream_complete', reason: string, resumable_until?: string}} StreamComplete
 * @typedef {{type: 'session_timeout', timeout_seconds: number, resumable_until?: string}} SessionTimeout
 * @typedef {{type: 'spectators', count: number}} Spectators
 * @typedef {{type: 'watch_token', watch_token: string}} WatchToken
 * @typedef {{type: 'continuation_state_snapshot', state: ContinuationState}} StateSnapshot
 * @typedef {{type: 'server_draining', deadline_seconds: number}} ServerDraining
 * @typedef {{type: 'prompt_enhanced', original_prompt: string, prompt: string, request_id?: string}} PromptEnhanced
 * @typedef {{type: 'prompt_fallback', original_prompt: string, reason: string, request_id?: string}} PromptFallback
 * @typedef {{type: 'seed_prompts_rewritten', seed_prompt: string, alternatives?: string[]}} SeedPromptsRewritten
 *
 * @typedef {object} ServerError
 * @property {'error'} type
 * @property {string} code
 * @property {string} message
 * @property {boolean} retryable
 * @property {number} [segment_idx]
 * @property {boolean} [restarting]
 * @property {string} [request_id]
 *
 * @typedef {QueueStatus | GpuAssigned | StreamStart | SegmentStart | StepComplete | Preview | MediaInit | MediaSegmentComplete
 *   | RequestWithdrawn | RequestEdited | IdleWarning | SegmentComplete | SegmentCancelled | StreamComplete | SessionTimeout | StateSnapshot | ServerDraining | PromptEnhanced
 *   | PromptFallback | SeedPromptsRewritten | Spectators | WatchToken | ServerError} ServerMessage
 */

/**
 * What the server keeps of a film.
 *
 * @typedef {object} FilmSegment
 * @property {number} segment_idx
 * @property {number} start_ms
 * @property {number} duration_ms
 * @property {number} bytes
 * @property {boolean} kept  whether its media are still there
 * @property {boolean} thumbnail
 * @property {string} prompt
 * @property {?string} original_prompt
 * @property {PromptSource} prompt_source
 * @property {number} attempt
 * @property {number} generation_time_ms
 *
 * @typedef {object} FilmInfo
 * @property {string} session_id
 * @property {?string} mime  null while it has no segment
 * @property {number} width
 * @property {number} height
 * @property {number} fps
 * @property {boolean} live
 * @property {boolean} resumable
 * @property {number} duration_ms
 * @property {?string} expires_at
 * @property {number} spectators
 * @property {FilmSegment[]} segments
 */

/**
 * Parses a text message. Returns `null` for anything but an object with a `type`; the page ignores such a message, as it
 * ignores the types that a later server adds.
 *
 * @param {string} text
 * @returns {?ServerMessage}
 */
export function parseMessage(text) {
  try {
    const message = JSON.parse(text);
    return typeof message?.type === 'string' ? message : null;
  } catch {
    return null;
  }
}
