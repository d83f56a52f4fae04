// A second click would be a second job: the button rests until the page has answered.
for (const form of document.querySelectorAll("form")) {
  form.addEventListener("submit", () => {
    form.querySelector("button").disabled = true;
  });
}
