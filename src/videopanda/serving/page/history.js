// The list of conversations.

const $ = (id) => document.getElementById(id);

const element = (tag, properties, ...children) => {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
};

/** Lists conversations; `acts` has what the buttons do: open, remove. */
export function showHistory(conversations, current, acts) {
  const listed = conversations.filter((one) => !one.isEmpty || one === current);
  $("history-count").textContent = `(${listed.length})`;
  $("conversations").replaceChildren(...listed.map((conversation) => {
    const { title, clip, turns, running } = conversation;
    const count = turns.length && `${turns.length} ${turns.length === 1 ? "question" : "questions"}`;
    const about = [clip?.name !== title && clip?.name, count, running && "answering"].filter(Boolean).join(" · ");
    const name = element(
      "button",
      { type: "button", className: "link name" },
      element("span", { textContent: title }),
      element("span", { className: "quiet", textContent: about }),
    );
    if (conversation === current) name.setAttribute("aria-current", "true");
    name.addEventListener("click", () => acts.open(conversation));
    const remove = element("button", { type: "button", className: "link remove", textContent: "×" });
    remove.setAttribute("aria-label", `Delete the conversation: ${title}`);
    remove.addEventListener("click", () => acts.remove(conversation));
    return element("li", {}, name, remove);
  }));
}
