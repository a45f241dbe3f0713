// Server-sent events out of the body of an answer to a POST, which EventSource cannot read.

/** The data of each event, until the stream ends. */
async function* events(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      const blocks = (rest + value).split("\n\n");
      rest = blocks.pop();
      for (const block of blocks) {
        if (block.startsWith("data: ")) yield block.slice("data: ".length);
      }
    }
  } finally {
    // Of a stream that broke there is nothing to cancel.
    reader.cancel().catch(() => {});
  }
}
