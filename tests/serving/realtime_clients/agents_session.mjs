// A session with `@openai/agents`, run where it is installed: node agents_session.mjs PORT QUESTION.wav
// with AGENTS being the folder of its node_modules. The last line is JSON: what was said and heard.

import { readFileSync } from 'node:fs';
import { createRequire } from 'node:module';
import { pathToFileURL } from 'node:url';

const [port, question] = process.argv.slice(2);
const require = createRequire(pathToFileURL(process.env.AGENTS + '/index.js'));
const { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession } = require('@openai/agents/realtime');

const url = `ws://127.0.0.1:${port}/v1/realtime?model=tone`;
const transport = new OpenAIRealtimeWebSocket({ url, useInsecureApiKey: true });
const agent = new RealtimeAgent({ name: 'tone', instructions: 'Answer in tones.' });
const session = new RealtimeSession(agent, { transport, model: 'tone' });
const seen = [], errors = [], sounds = [];
let history = [], interrupted = 0;
session.on('transport_event', (event) => seen.push(event.type));
session.on('audio', (event) => sounds.push(Buffer.from(event.data)));
session.on('error', (event) => errors.push(String(event.error?.message ?? JSON.stringify(event))));
session.on('history_updated', (items) => { history = items; });
session.on('audio_interrupted', () => { interrupted += 1; });

const until = async (test, what) => {
  for (let waited = 0; waited < 40000; waited += 20) {
    if (test()) return;
    await new Promise((done) => setTimeout(done, 20));
  }
  throw new Error(`waited for ${what}; ${JSON.stringify({ seen, errors })}`);
};
const count = (type) => seen.filter((one) => one === type).length;

await session.connect({ apiKey: 'local' });
await until(() => count('session.updated') >= 1, 'session.updated');
const wav = readFileSync(question);
const sound = wav.subarray(44);
const speak = () => {
  for (let at = 0; at < sound.length; at += 9600) {
    const piece = sound.subarray(at, at + 9600);
    session.sendAudio(piece.buffer.slice(piece.byteOffset, piece.byteOffset + piece.byteLength));
  }
};
speak();
await until(() => count('response.done') === 1, 'the answer');
await until(() => count('conversation.item.input_audio_transcription.completed') >= 1, 'the transcript');
await until(() => count('conversation.item.retrieved') >= 1, 'the item with its transcript');
speak();
await until(() => count('response.done') === 2, 'the second answer');
session.interrupt();
await new Promise((done) => setTimeout(done, 300));
const items = session.history.map((item) => ({
  role: item.role, text: item.content.map((part) => part.transcript ?? part.text ?? '').join(' '), status: item.status,
}));
const version = JSON.parse(readFileSync(process.env.AGENTS + '/node_modules/@openai/agents/package.json')).version;
const found = { version, types: seen, errors, items, interrupted, audio: Buffer.concat(sounds).toString('base64') };
session.close();
process.stdout.write(JSON.stringify(found) + '\n', () => process.exit(0));
