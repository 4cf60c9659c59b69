// Sends one request of the package `openai`, for record.py, which starts it. Without arguments it names them all.
//
//     node record.mjs NODE_MODULES URL NAME ID

import { createRequire } from "node:module";

const [modules, url, name, id] = process.argv.slice(2);

const PNG = Buffer.from(
  "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de0000000c4944415408d763f8cfc0000003010100c9fe92ef" +
    "0000000049454e44ae426082",
  "hex",
);
const DATA_URL = "data:image/png;base64,iVBORw0KGgo=";

const CALLS = {
  create: (videos) => videos.create({ prompt: "a fox", model: "sora-2", seconds: "4", size: "1280x720" }),
  create_with_file: async (videos, toFile) =>
    videos.create({ prompt: "a fox", input_reference: await toFile(PNG, "fox.png", { type: "image/png" }) }),
  create_with_data_url: (videos) => videos.create({ prompt: "a fox", input_reference: { image_url: DATA_URL } }),
  create_with_extras: (videos) =>
    videos.create(
      {
        prompt: "ein Fuchs läuft\nüber „Schnee“",
        seed: "18446744073709551615",
        fps: 24,
        guidance_scale: 1.5,
        enhance_prompt: true,
        metadata: { project: "winter", shot: "7" },
        video_params: { width: 640, height: 384 },
      },
      { headers: { "Idempotency-Key": "shot-7" } },
    ),
  remix: (videos) => videos.remix(id, { prompt: "a wolf" }),
  edit: (videos) => videos.edit({ prompt: "a wolf", video: { id } }),
  extend: (videos) => videos.extend({ prompt: "it stops", seconds: "4", video: { id } }),
  list: (videos) => videos.list({ after: id, limit: 2, order: "asc" }),
  retrieve: (videos) => videos.retrieve(id),
  download_content: (videos) => videos.downloadContent(id, { variant: "thumbnail" }),
  delete: (videos) => videos.delete(id),
};

if (!name) {
  console.log(Object.keys(CALLS).join("\n"));
} else {
  const openai = createRequire(`${modules}/`)("openai");
  const client = new openai.OpenAI({ baseURL: url, apiKey: "key", maxRetries: 0 });
  await CALLS[name](client.videos, openai.toFile);
}
