// The storyboard of the page: its reducer with its effects and its view. It survives a reload of the tab.

import { $ } from '../dom.js';
import { createStore } from '../store.js';
import { BoardView } from './board_view.js';
import { loadBoard, saveBoard } from './board_memory.js';
import { rollOut } from './rollout.js';
import { reduceBoard } from './storyboard.js';

export class StoryBoard {
  /**
   * @param {object} page
   * @param {() => import('../state.js').SessionState} page.getState
   * @param {(play: Omit<import('../session/story.js').Play, 'sampling'>) => void} page.play
   */
  constructor({ getState, play }) {
    this.getState = getState;
    this.play = play;
    this.view = new BoardView((event) => this.store.dispatch(event));
    /** @type {?AbortController} */
    this.writing = null;
    const effects = {
      roll_out: ({ wish }) => this.rollOut(wish),
      stop_rollout: () => this.writing?.abort(),
      play: ({ version, fresh }) => this.begin(version, fresh),
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

  async rollOut(wish) {
    const writing = this.writing = new AbortController();
    const say = (event) => { if (writing === this.writing && !writing.signal.aborted) this.store.dispatch(event); };
    try {
      say({ type: 'rollout_came', rollout: await rollOut(wish, writing.signal) });
    } catch (error) {
      say({ type: 'rollout_failed', message: `The shots were not written: ${error.message}` });
    }
  }

  begin({ id, prompts, by }, fresh) {
    this.play({ id, prompts, fresh, source: by === 'model' ? 'enhanced' : 'user' });
    $('stage').scrollIntoView({ block: 'nearest' });
  }
}
