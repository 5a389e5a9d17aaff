"use strict";
// What the page carries, unpacked when it is wanted: base64, gzip, JSON.

const bytesOf = (text) => {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let place = 0; place < binary.length; place += 1) bytes[place] = binary.charCodeAt(place);
  return bytes;
};

gpo.unpack = async (element) => {
  const bytes = bytesOf(element.textContent);
  const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
  return JSON.parse(await new Response(stream).text());
};

gpo.store = {
  story: null,
  index: null,
  chunks: [],
  async open() {
    this.elements = [...document.querySelectorAll("script.chunk")];
    this.size = this.elements.length ? Number(this.elements[0].dataset.size) : 1;
    this.story = await gpo.unpack(gpo.byId("story"));
  },
  async openIndex() {
    this.index = await gpo.unpack(gpo.byId("index"));
    for (const row of this.index) row.low = `${row.id} ${row.text}`.toLowerCase();
  },
  chunk(number) {
    this.chunks[number] ??= gpo.unpack(this.elements[number]);
    return this.chunks[number];
  },
  /** Messages and appearances of the prompt with that place in the index. */
  async prompt(place) {
    const rows = await this.chunk(Math.floor(place / this.size));
    return rows[place % this.size];
  },
  /** Add all answers to what is searched; done once, when first asked for. */
  openAnswers() {
    this.answers ??= (async () => {
      for (const row of this.index) {
        const { messages, appearances } = await this.prompt(row.n);
        const texts = appearances.flatMap((one) => one.answers.map((answer) => answer.text));
        row.lowAnswers = [...messages.map((message) => message.content), ...texts].join("\n").toLowerCase();
      }
    })();
    return this.answers;
  },
};
