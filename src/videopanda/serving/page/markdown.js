// Markdown of answers as DOM nodes: headings, lists, code, bold, italic, and times as buttons. Text stays text: nothing
// that a model writes is parsed as HTML, and links are not made.

const INLINE = /`([^`\n]+)`|\*\*(\S(?:[^\n]*?\S)?)\*\*|\*([^\s*](?:[^*\n]*[^\s*])?)\*|\b(\d+:[0-5]\d(?::[0-5]\d)?(?:\.\d+)?)\b|\b((?:\d+(?:\.\d+)?\s?(?:h|hours?)\s?)?(?:\d+(?:\.\d+)?\s?(?:m|mins?|minutes?)\s?)?\d+(?:\.\d+)?\s?(?:s|secs?|seconds?))\b/g;
const PART = /([\d.]+)\s?([hms])/g;
const ITEM = /^\s*(?:([-*+])|(\d+)[.)])\s+(.*)$/;

const node = (tag, ...children) => {
  const made = document.createElement(tag);
  made.append(...children);
  return made;
};

/** Seconds of "1:05" or "0:01:05.5". */
const clock = (text) => text.split(":").reduce((sum, part) => 60 * sum + Number(part), 0);

/** Seconds of "5 s" or "2 min 5 s". */
const sum = (text) => [...text.matchAll(PART)].reduce((all, [, count, unit]) => all + count * { h: 3600, m: 60, s: 1 }[unit], 0);

function* inline(text, timeLink) {
  let last = 0;
  for (const match of text.matchAll(INLINE)) {
    const [whole, code, bold, italic, stamp, seconds] = match;
    yield text.slice(last, match.index);
    last = match.index + whole.length;
    if (code !== undefined) yield node("code", code);
    else if (bold !== undefined) yield node("strong", ...inline(bold, timeLink));
    else if (italic !== undefined) yield node("em", ...inline(italic, timeLink));
    else yield timeLink(whole, stamp === undefined ? sum(seconds) : clock(stamp)) ?? whole;
  }
  yield text.slice(last);
}

/** Renders `text`. `timeLink(text, seconds)` makes the element for a time, or null to leave it as text. */
export function render(text, timeLink) {
  const rendered = document.createDocumentFragment();
  const lines = text.split("\n");
  let paragraph = [];
  const flush = () => {
    if (paragraph.length) rendered.append(node("p", ...inline(paragraph.join("\n"), timeLink)));
    paragraph = [];
  };
  while (lines.length) {
    const line = lines.shift();
    const heading = line.match(/^#{1,6}\s+(.*)$/);
    if (line.startsWith("```")) {
      flush();
      const end = lines.findIndex((one) => one.startsWith("```"));
      const code = lines.splice(0, end < 0 ? lines.length : end + 1);
      rendered.append(node("pre", node("code", code.slice(0, end < 0 ? undefined : -1).join("\n"))));
    } else if (heading) {
      flush();
      rendered.append(node("p", node("strong", ...inline(heading[1], timeLink))));
    } else if (ITEM.test(line)) {
      flush();
      const [, bullet, number] = line.match(ITEM);
      const list = Object.assign(node(bullet ? "ul" : "ol"), bullet ? {} : { start: Number(number) });
      for (let item = line.match(ITEM); item && Boolean(item[1]) === Boolean(bullet); item = lines[0]?.match(ITEM)) {
        if (list.childNodes.length) lines.shift();
        list.append(node("li", ...inline(item[3], timeLink)));
      }
      rendered.append(list);
    } else if (line.trim()) {
      paragraph.push(line);
    } else {
      flush();
    }
  }
  flush();
  return rendered;
}
