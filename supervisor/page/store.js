// @ts-check
// Holds the state: passes each event to the reducer, runs the effects and renders the new state.

/**
 * @template State, Event, Effect
 * @typedef {object} Parts
 * @property {State} state  the initial state
 * @property {(state: State, event: Event, now: number) => {state: State, effects: Effect[]}} reduce
 * @property {(effect: Effect) => void} run
 * @property {(state: State) => void} render
 * @property {() => number} now
 * @property {(error: unknown) => void} failed  receives the exceptions of the other parts, which do not stop the page
 */

/**
 * Creates a store. An event that is dispatched while another one is handled, for example by an effect, is handled after it.
 *
 * @template State, Event, Effect
 * @param {Parts<State, Event, Effect>} parts
 */
export function createStore({ state, reduce, run, render, now, failed }) {
  /** @type {{event: Event, at: number}[]} */
  const events = [];
  let busy = false;

  /** @param {() => void} part */
  const attempt = (part) => {
    try {
      part();
    } catch (error) {
      failed(error);
    }
  };

  /** @param {Event} event @param {number} at */
  const handle = (event, at) => {
    const next = reduce(state, event, at);
    const isNew = next.state !== state;
    state = next.state;
    for (const effect of next.effects) attempt(() => run(effect));
    if (isNew) attempt(() => render(state));
  };

  return {
    get state() { return state; },
    /** @param {Event} event */
    dispatch(event) {
      events.push({ event, at: now() });
      if (busy) return;
      busy = true;
      for (let next = events.shift(); next; next = events.shift()) {
        const { event: taken, at } = next;
        attempt(() => handle(taken, at));
      }
      busy = false;
    },
  };
}
