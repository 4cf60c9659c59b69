// The storyboard of the page: its reducer with its effects and its view. It survives a reload of the tab.

import { $ } from '../dom.js';
import { createStore } from '../store.js';
import { BoardView } from './board_view.js';
import { loadBoard, saveBoard } from './board_memory.js';
import { rollOut } from './rollout.js';
import { reduceBoard } from './storyboard.js';

const UNAUTHORIZED = 401;

export class StoryBoard {
  /**
   * @param {object} page
   * @param {() => import('../state.js').SessionState} page.getState
   * @param {(play: Omit<import('../session/story.js').Play, 'sampling'>) => void} page.play
   * @param {(again: () => void) => void} page.unauthorized  is called when the server asks for a key, with what to do once there is one
   * @param {() => void} page.wantPrompt  is called when shots are asked for without a prompt
   */
  constructor({ getState, play, unauthorized, wantPrompt }) {
    this.getState = getState;
    this.play = play;
    this.unauthorized = unauthorized;
    this.view = new BoardView((event) => this.store.dispatch(event));
    /** @type {?AbortController} */
    this.writing = null;
    const effects = {
      roll_out: ({ wish }) => this.rollOut(wish, new AbortController()),
      stop_rollout: () => this.writing?.abort(),
      play: ({ version, fresh }) => this.begin(version, fresh),
      want_prompt: wantPrompt,
    };
    this.store = createStore({
      state: loadBoard(() => sessionStorage),
      reduce: reduceBoard,
      run: (effect) => effects[effect.type](effect),
      render: (board) => {
        this.view.render(board, getState());
        saveBoard(() => sessionStorage, board);
      },
      now: () => performance.now(),
      failed: reportError,
    });
  }

  /** Shows what has become of the shots. */
  follow() {
    this.view.render(this.store.state, this.getState());
  }

  /** Has shots written. Where the server asks for a key first, they stay asked for until it has one or the user stops. */
  async rollOut(wish, writing) {
    this.writing = writing;
    const say = (event) => { if (writing === this.writing && !writing.signal.aborted) this.store.dispatch(event); };
    try {
      say({ type: 'rollout_came', rollout: await rollOut(wish, writing.signal) });
    } catch (error) {
      if (error.status === UNAUTHORIZED) return this.unauthorized(() => { if (!writing.signal.aborted) this.rollOut(wish, writing); });
      say({ type: 'rollout_failed', message: `The shots were not written: ${error.message}` });
    }
  }

  begin({ id, prompts, by }, fresh) {
    this.play({ id, prompts, fresh, source: by === 'model' ? 'enhanced' : 'user' });
    $('stage').scrollIntoView({ block: 'nearest' });
  }
}
