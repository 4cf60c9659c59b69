// The effects that change the player, the list of segments, and the media in the film. Both pages run them.

import { filmPicture, filmSegment } from './api.js';
import { Film } from './film.js';

/**
 * Makes a film whose missing media come from the server, if that keeps them.
 *
 * @param {() => import('./state.js').SessionState} getState
 */
export const sessionFilm = (getState) => new Film(() => getState().segments, () => {
  const { filmKey } = getState();
  return filmKey && ((idx) => filmSegment(filmKey, idx));
});

/**
 * @param {Film} film
 * @param {import('./segment_list.js').SegmentList} list
 * @param {import('./stage.js').Stage} stage
 * @param {() => import('./state.js').SessionState} getState
 * @param {(event: any) => void} dispatch
 */
export const mediaEffects = (film, list, stage, getState, dispatch) => ({
  reset_player({ mode }) {
    film.clear();
    list.clear();
    stage.reset(mode);
  },
  open_player: ({ fps }) => stage.open(fps),
  finish_player: () => stage.player.finish(),
  async show_film({ mime, fps, pictures, position }) {
    film.mime ??= mime;
    stage.open(fps || 24);
    // What was under way then is not part of the film.
    if (position !== null && stage.player.time === 0) stage.player.seek(Math.min(position, Math.max(0, film.end - 0.05)));
    const { filmKey } = getState();
    for (const idx of pictures) {
      const picture = await filmPicture(filmKey, idx).then(createImageBitmap).catch(() => null);
      if (getState().filmKey?.session_id !== filmKey.session_id) return;
      if (picture) list.showPicture(idx, picture);
    }
  },
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
  refill_media({ idx }) {
    film.drop(idx);
    stage.player.refill(idx);
  },
  void_media({ idx, from, again }) {
    film.drop(idx);
    stage.player.cut(idx, from, again);
  },
});
