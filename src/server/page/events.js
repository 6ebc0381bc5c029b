// How is a stream of server-sent events read?

// Calls `each` with every event's data, until it returns true or the stream ends.
export async function readEvents(response, each) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (let rest = ""; ;) {
    const {value, done} = await reader.read();
    if (done) return;
    const whole = (rest + value).replace(/\r\n/g, "\n");
    const events = whole.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      const lines = event.split("\n").filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).replace(/^ /, "")).join("\n");
      if (data && each(data)) { await reader.cancel(); return; }
    }
  }
}
