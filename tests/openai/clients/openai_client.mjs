// openai for JavaScript: an answer, a stream, a tool call, /v1/responses, an error's class.
import OpenAI from "openai";

const client = new OpenAI();
const base = { model: "smol", temperature: 0, max_tokens: 60 };
const messages = [{ role: "user", content: "What is the capital of France?" }];

const whole = await client.chat.completions.create({ ...base, messages });
let streamed = "";
for await (const chunk of await client.chat.completions.create({ ...base, messages, stream: true })) {
  streamed += chunk.choices[0]?.delta?.content ?? "";
}
const parameters = { type: "object", properties: { city: { type: "string" } }, required: ["city"] };
const runner = client.chat.completions.stream({
  ...base,
  messages: [{ role: "user", content: "How is the weather in Paris?" }],
  tools: [{ type: "function", function: { name: "weather", parameters } }],
  tool_choice: "required",
});
const call = (await runner.finalChatCompletion()).choices[0].message.tool_calls[0].function;
const events = [];
let spoken = "";
const { max_tokens: max_output_tokens, ...rest } = base;
for await (const event of client.responses.stream({ ...rest, max_output_tokens, input: messages[0].content })) {
  events.push(event.type);
  if (event.type === "response.output_text.delta") spoken += event.delta;
}
let error = "";
try {
  await client.chat.completions.create({ ...base, model: "other", messages });
} catch (refusal) {
  error = refusal.constructor.name;
}
console.log(
  JSON.stringify({
    whole: whole.choices[0].message.content,
    streamed,
    call: [call.name, JSON.parse(call.arguments)],
    responses: spoken,
    last: events.at(-1),
    error,
  }),
);
