// @ts-check
// The stories that the page offers: six shots each. A model sees one prompt at a time, so each of them names who is seen, what they
// wear and in what light, in the same words.

/**
 * @typedef {object} Story
 * @property {string} title
 * @property {readonly string[]} prompts
 */

const KEEPER = 'The lighthouse keeper, an old woman with a white braid and a yellow oilskin coat,';
const ROBOT = 'The small round robot with one green lamp for an eye and a dented copper shell';
const FOX = 'The young red fox with a torn left ear and a snow-dusted back';
const COURIER = 'The bicycle courier, a woman of twenty in an orange jacket with a silver helmet,';
const BAKER = 'The baker, a broad man with flour on his beard and a blue striped apron,';

/** @type {readonly Story[]} */
export const STORIES = Object.freeze([
  {
    title: 'The keeper and the whale',
    prompts: [
      `${KEEPER} climbs a spiral stair with a brass lantern, storm light in the narrow windows, warm lantern glow on wet stone, slow upward camera`,
      `${KEEPER} wipes rain from the glass of the lamp room and leans forward, outside a black sea under torn clouds, close on her face`,
      'Far below the lighthouse a whale lifts its back out of the black sea, rain and foam, the turning beam of the lamp sweeps over it, wide shot from above',
      `${KEEPER} swings the great lamp by hand until its beam lies as a white road on the water, gears turning, sparks of rain, low angle`,
      'The whale follows the white road of light between two reefs, waves breaking on both sides, seen from just above the water',
      `${KEEPER} stands on the gallery at dawn and raises one hand, the storm is over, pink light on her coat, the whale breathes a tall plume far out`,
    ],
  },
  {
    title: 'Seeds for the red planet',
    prompts: [
      `${ROBOT} rolls out of a half-buried lander onto red dust, thin morning light, long shadows, wide shot`,
      `${ROBOT} opens a drawer in its chest and looks at six glowing seeds, macro shot, green light on copper`,
      `${ROBOT} digs a row of small holes with a folding spade, red dust in the air, a pale sun low over a crater rim, side view`,
      `A dust storm rolls over the crater and ${ROBOT.toLowerCase()} bends over the holes to shelter them, dark orange air, handheld camera`,
      `After the storm ${ROBOT.toLowerCase()} lies on its side, dusty and still, and beside it the first leaf breaks the ground, macro shot, clear light`,
      `${ROBOT} rights itself amid a round garden of white flowers under a pale sky, petals turning to its lamp, camera rising slowly`,
    ],
  },
  {
    title: 'First winter',
    prompts: [
      `${FOX} looks out of its den at the first snow, breath steaming, blue dawn, close-up at its eye level`,
      `${FOX} walks over a frozen pond on careful paws, its reflection under the ice, pale sun through fog, low tracking shot`,
      `${FOX} leaps high and dives nose first into deep snow, only the tail is seen, slow motion, backlit powder`,
      `${FOX} meets a white hare on a ridge, both stand still, wind draws snow between them, wide shot in evening light`,
      `${FOX} runs through a birch forest at dusk beside the white hare, trunks flicking past, camera runs along`,
      `${FOX} curls up under a fallen fir as the stars come out, the white hare sits near it, a green aurora over the trees, slow pull back`,
    ],
  },
  {
    title: 'Last delivery',
    prompts: [
      `${COURIER} rides out of a tunnel into a city at night, rain, neon signs mirrored on the asphalt, camera in front of her wheel`,
      `${COURIER} lifts a small wooden box from her bag and sees warm light through its slits, close-up, neon rain behind`,
      `${COURIER} weaves between standing trams, sparks from the wires overhead, fast tracking shot from the side`,
      `${COURIER} carries her bicycle up a long wet stair between old houses, laundry and lanterns above her, view from the top`,
      `An old watchmaker with round glasses opens a green door for ${COURIER.toLowerCase().replace(/,$/, '')}, warm light falls on the rain`,
      'The watchmaker with round glasses opens the small wooden box on the table, and tiny golden birds of brass rise from it and circle the lamp, slow orbit',
    ],
  },
  {
    title: 'The dragon in the oven',
    prompts: [
      `${BAKER} opens his shop before dawn, lamplight on copper pans, steam, a slow camera through the door`,
      `${BAKER} bends down to the brick oven and sees two golden eyes in the dark between the logs, close-up, ember light`,
      `A dragon as small as a cat, with scales like burnt sugar, climbs onto the table beside the dough and sneezes a spark, macro shot`,
      `${BAKER} laughs and holds up a tray while the dragon as small as a cat breathes on the loaves, crusts turning gold, sparks in the air`,
      `A line of neighbours in winter coats waits before the glowing window in blue morning snow, seen from the street`,
      `${BAKER} sits on the step with a broken loaf, the dragon as small as a cat asleep in his apron, sun over the roofs, slow push in`,
    ],
  },
]);
