// Keeps the table of queues fresh while somebody looks at it.
const SECONDS = 2;
const complaint = document.getElementById("queues-error");

async function refresh() {
  try {
    const answer = await fetch("/queues", { headers: { Accept: "application/json" } });
    const { queues, error } = await answer.json();
    if (error) {
      throw new Error(error);
    }
    for (const [name, counts] of Object.entries(queues)) {
      const row = document.querySelector(`tr[data-queue="${CSS.escape(name)}"]`);
      for (const cell of row?.querySelectorAll("[data-count]") ?? []) {
        cell.textContent = counts[cell.dataset.count] ?? "–";
      }
    }
    say("");
  } catch (error) {
    say(`The queues cannot be counted: ${error.message}`);
  }
}

function say(text) {
  if (complaint) {
    complaint.textContent = text;
  }
}

async function watch() {
  if (document.visibilityState === "visible") {
    await refresh();
  }
  setTimeout(watch, SECONDS * 1000);
}

// A second click would be a second job: the button rests until the page has answered.
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", () => {
    form.querySelector("button").disabled = true;
  });
}

if (document.querySelector("table.queues")) {
  watch();
}
