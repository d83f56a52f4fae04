// Makes pages livelier: they update by themselves, tables sort without a jump, keys work. Without it every
// page works too. It asks for the address it is at, gets <main> anew, and changes only what differs, so that
// focus, selection, ticks and what is open stay.
(function () {
  "use strict";

  var FRAGMENT = "X-Kestrel-Fragment";
  var MAX_WAIT_S = 120;
  var $ = function (id) { return document.getElementById(id); };
  var main = $("main");

  function stored(area, name, otherwise) {
    try { return area.getItem("kestrel-web." + name) || otherwise; } catch (error) { return otherwise; }
  }
  function store(area, name, value) {
    try { area.setItem("kestrel-web." + name, value); } catch (error) { /* then it holds for this page */ }
  }

  // Change what differs -----------------------------------------------------------------------------------

  function isField(node) { return /^(INPUT|SELECT|TEXTAREA)$/.test(node.nodeName); }

  function copyAttributes(from, to) {
    var keep = from.nodeName === "DETAILS" && from.hasAttribute("data-keep");
    Array.from(from.attributes).forEach(function (attribute) {
      if (!to.hasAttribute(attribute.name) && !(keep && attribute.name === "open")) from.removeAttribute(attribute.name);
    });
    Array.from(to.attributes).forEach(function (attribute) {
      if (from.getAttribute(attribute.name) !== attribute.value) from.setAttribute(attribute.name, attribute.value);
    });
  }

  // `fresh`: another address was asked for, so fields show what that address says.
  function morph(from, to, fresh) {
    if (from.nodeType !== Node.ELEMENT_NODE) {
      if (from.data !== to.data) from.data = to.data;
      return;
    }
    if (from.hasAttribute("data-morph-skip")) return;
    if (from.isEqualNode(to) && !fresh) return;
    var chosen = from.nodeName === "SELECT" ? from.value : null;
    copyAttributes(from, to);
    morphChildren(from, to, fresh);
    if (chosen !== null && !fresh) from.value = chosen;
    if (fresh && isField(from) && from !== document.activeElement && from.type !== "checkbox") from.value = to.value;
  }

  function morphChildren(from, to, fresh) {
    var known = new Map();
    Array.from(from.children).forEach(function (child) { if (child.id) known.set(child.id, child); });
    var wanted = new Set();
    Array.from(to.children).forEach(function (child) { if (child.id) wanted.add(child.id); });
    var at = from.firstChild;
    Array.from(to.childNodes).forEach(function (next) {
      while (at && at.id && !wanted.has(at.id)) { var gone = at; at = at.nextSibling; gone.remove(); }
      var match = next.id ? known.get(next.id) : null;
      if (match && match.nodeName === next.nodeName) {
        if (match === at) at = at.nextSibling;
        else place(from, match, at);
        morph(match, next, fresh);
      } else if (!next.id && at && !at.id && at.nodeName === next.nodeName) {
        var same = at;
        at = at.nextSibling;
        morph(same, next, fresh);
      } else {
        from.insertBefore(document.importNode(next, true), at);
      }
    });
    while (at) { var rest = at; at = at.nextSibling; rest.remove(); }
  }

  function place(parent, node, before) {
    if (parent.moveBefore) parent.moveBefore(node, before);
    else parent.insertBefore(node, before);
  }

  function show(text, fresh) {
    var next = new DOMParser().parseFromString(text, "text/html").querySelector("main");
    if (!next) throw new Error("no page in the answer");
    var focused = document.activeElement;
    var inside = main.contains(focused) && focused !== main;
    var before = alerts();
    morph(main, next, fresh);
    if (inside && document.activeElement !== focused) {
      var again = focused.isConnected ? focused : (focused.id && $(focused.id)) || main;
      again.focus({ preventScroll: true });
    }
    announce(before, alerts());
    dress();
  }

  // Alerts are read out, nothing else is: numbers that change every other second would never be quiet.
  function alerts() {
    return { count: Number(main.dataset.alerts || 0), texts: new Map(Array.from(main.querySelectorAll("[data-alert]")).map(
      function (item) { return [item.id, item.querySelector("a").textContent]; })) };
  }
  function announce(before, after) {
    var fresh = Array.from(after.texts).filter(function (pair) { return !before.texts.has(pair[0]); });
    if (fresh.length && before.texts.size + before.count) $("say").textContent = "New: " + fresh.map(function (pair) { return pair[1]; }).join(". ");
    else if (after.count !== before.count) $("say").textContent = after.count ? after.count + " need attention" : "Nothing needs attention";
  }

  // Updates ---------------------------------------------------------------------------------------------

  var live = $("live"), liveText = $("live-text"), pauseButton = $("live-pause"), everySelect = $("live-every");
  var etag = null, timer = null, running = null, failures = 0, updatedAt = new Date(), title = document.title;
  var paused = stored(sessionStorage, "paused", "") === "yes";

  function isLive() { return main && !main.hasAttribute("data-still"); }
  // A page of something that is over soon says how often it should be shown.
  function every() { return Math.min(Number(everySelect.value) || 5, Number(main.dataset.every) || Infinity); }
  function clock(date) { return date.toTimeString().slice(0, 8); }

  function say(state, text) { live.dataset.state = state; liveText.textContent = text; }
  function sayCalm() {
    if (paused) say("paused", "paused, as of " + clock(updatedAt));
    else say("live", "updated " + clock(updatedAt));
  }

  function plan() {
    clearTimeout(timer);
    if (!isLive() || paused || document.hidden) return;
    timer = setTimeout(update, 1000 * Math.min(MAX_WAIT_S, every() * Math.pow(2, failures)));
  }

  function ask(address, known) {
    if (running) running.abort();
    var mine = running = new AbortController();
    var timeout = setTimeout(function () { mine.abort(); }, 20000);
    var headers = { Accept: "text/html" };
    headers[FRAGMENT] = "main";
    if (known) headers["If-None-Match"] = known;
    return fetch(address, { headers: headers, cache: "no-store", credentials: "same-origin", signal: mine.signal })
      .then(function (answer) {
        return answer.text().then(function (text) { return { answer: answer, text: text, current: running === mine }; });
      })
      .finally(function () { clearTimeout(timeout); if (running === mine) running = null; });
  }

  function update() {
    clearTimeout(timer);
    var address = location.href;
    return ask(address, etag).then(function (got) {
      if (!got.current || location.href !== address) return;
      if (got.answer.status === 401) { location.reload(); return; }
      if (got.answer.status !== 304) {
        if (!got.answer.ok && got.answer.status !== 404) throw new Error("HTTP " + got.answer.status);
        etag = got.answer.headers.get("ETag");
        show(got.text, false);
      }
      failures = 0;
      updatedAt = new Date();
      sayCalm();
      plan();
    }).catch(function (error) {
      if (location.href !== address) return;
      if (error.name === "AbortError" && running) return;
      failures = Math.min(failures + 1, 6);
      say("error", "not updated since " + clock(updatedAt));
      plan();
    });
  }

  // Go to another address of the same page without loading everything anew.
  function go(address, how, tolerant) {
    return ask(address, null).then(function (got) {
      if (!got.current) return;
      var next = new DOMParser().parseFromString(got.text, "text/html");
      if (!got.answer.ok || got.answer.redirected) { location.assign(address); return; }
      // Half of a term is typed: what was there stays until it is a filter.
      if (tolerant && next.querySelector("#f[aria-invalid]")) return;
      if (how === "push") history.pushState(null, "", address);
      else if (how === "replace") history.replaceState(null, "", address);
      etag = got.answer.headers.get("ETag");
      failures = 0;
      updatedAt = new Date();
      show(got.text, !tolerant);
      if (!paused) sayCalm();
      plan();
    }).catch(function (error) { if (error.name !== "AbortError") location.assign(address); });
  }

  function setPaused(value) {
    paused = value;
    store(sessionStorage, "paused", value ? "yes" : "no");
    pauseButton.setAttribute("aria-pressed", String(value));
    pauseButton.textContent = value ? "Paused" : "Pause";
    sayCalm();
    if (value) { clearTimeout(timer); if (running) running.abort(); } else update();
  }

  // What only a script can offer ----------------------------------------------------------------------------

  function boxes() { return Array.from(main.querySelectorAll("tbody input[type=checkbox][name=key]")); }

  function dress() {
    var all = $("select-all"), bulk = $("bulk");
    var count = Number(main.dataset.alerts || 0);
    document.title = (count ? "(" + count + ") " : "") + title;
    if (!bulk) return;
    var ticked = boxes().filter(function (box) { return box.checked; });
    if (all) {
      all.hidden = false;
      all.checked = ticked.length > 0 && ticked.length === boxes().length;
      all.indeterminate = ticked.length > 0 && !all.checked;
    }
    $("bulk-count").textContent = ticked.length ? ticked.length + " selected:" : "With those selected";
    Array.from(bulk.querySelectorAll("button[formaction]")).forEach(function (button) {
      if (button.hasAttribute("title")) return;
      button.disabled = ticked.length === 0;
    });
  }

  function formAddress(form, submitter) {
    var address = new URL((submitter && submitter.getAttribute("formaction")) || form.getAttribute("action") || location.pathname, location.href);
    var query = new URLSearchParams();
    new FormData(form).forEach(function (value, name) { if (value !== "" && typeof value === "string") query.append(name, value); });
    address.search = query.toString();
    return address.href;
  }

  function peek(form) {
    var panel = $(form.dataset.panel);
    panel.setAttribute("aria-busy", "true");
    var headers = {};
    headers[FRAGMENT] = "main";
    fetch(formAddress(form), { headers: headers, cache: "no-store", credentials: "same-origin" })
      .then(function (answer) { return answer.text(); })
      .then(function (text) {
        var next = new DOMParser().parseFromString(text, "text/html");
        var result = next.getElementById("peek-result") || next.querySelector("main .error-page") || next.querySelector("main");
        panel.replaceChildren(document.importNode(result, true));
      })
      .catch(function () { panel.textContent = "The item could not be fetched; try again."; })
      .finally(function () { panel.removeAttribute("aria-busy"); });
  }

  document.addEventListener("click", function (event) {
    var link = event.target.closest("a[data-soft]");
    if (!link || event.defaultPrevented || event.button || event.metaKey || event.ctrlKey || event.shiftKey || event.altKey) return;
    event.preventDefault();
    go(link.href, link.hasAttribute("data-toggle") ? "replace" : "push");
  });

  document.addEventListener("submit", function (event) {
    var form = event.target;
    if (form.hasAttribute("data-soft")) {
      event.preventDefault();
      clearTimeout(typing);
      go(formAddress(form), "push");
    } else if (form.hasAttribute("data-panel")) {
      event.preventDefault();
      peek(form);
    }
  });

  var typing = null;
  document.addEventListener("input", function (event) {
    if (event.target.id !== "f") return;
    clearTimeout(typing);
    typing = setTimeout(function () {
      var address = formAddress($("filter"));
      if (address !== location.href) go(address, "replace", true);
    }, 350);
  });

  document.addEventListener("change", function (event) {
    if (event.target.id === "select-all") boxes().forEach(function (box) { box.checked = event.target.checked; });
    if (event.target.type === "checkbox") dress();
  });

  window.addEventListener("popstate", function () { go(location.href, "stay"); });

  // A pointer over a chart reads its numbers; the table below has them for everybody.
  function read(chart, clientX) {
    var points = chart.dataset.points ? chart.dataset.points.split(";") : [];
    var out = chart.closest("figure").querySelector(".readout");
    var line = chart.querySelector(".cursor");
    if (clientX === null || !points.length) { if (line) line.remove(); if (out) out.textContent = ""; return; }
    var box = chart.getBoundingClientRect(), view = chart.viewBox.baseVal;
    var x = (clientX - box.left) / box.width * view.width;
    var best = points.map(function (point) { return point.split("|"); }).reduce(function (one, other) {
      return Math.abs(other[0] - x) < Math.abs(one[0] - x) ? other : one;
    });
    if (!line) {
      line = document.createElementNS("http://www.w3.org/2000/svg", "line");
      line.setAttribute("class", "cursor");
      line.setAttribute("y1", 10);
      line.setAttribute("y2", view.height - 24);
      chart.appendChild(line);
    }
    line.setAttribute("x1", best[0]);
    line.setAttribute("x2", best[0]);
    if (out) out.textContent = best[1] + "  " + best[2];
  }
  document.addEventListener("pointermove", function (event) {
    var chart = event.target.closest && event.target.closest("svg.chart");
    document.querySelectorAll("svg.chart .cursor").forEach(function (line) { if (line.closest("svg") !== chart) read(line.closest("svg"), null); });
    if (chart) read(chart, event.clientX);
  });

  // A menu closes when something else is used.
  document.addEventListener("click", function (event) {
    document.querySelectorAll("details.menu[open]").forEach(function (menu) { if (!menu.contains(event.target)) menu.open = false; });
  });

  // Keys ----------------------------------------------------------------------------------------------------

  var prefix = 0;
  function rows() { return Array.from(main.querySelectorAll("tr[data-row]")); }
  function currentRow() { return document.activeElement && document.activeElement.closest ? document.activeElement.closest("tr[data-row]") : null; }
  function step(by) {
    var all = rows(), at = all.indexOf(currentRow());
    var next = all[Math.max(0, Math.min(all.length - 1, at < 0 ? 0 : at + by))];
    var link = next && next.querySelector("th a:not(.toggle)");
    if (link) link.focus();
  }

  var KEYS = {
    "/": function () { var field = $("f") || $("text"); if (!field) return false; field.focus(); field.select(); },
    "?": function () { $("help").showModal(); },
    j: function () { step(1); },
    k: function () { step(-1); },
    x: function () { var row = currentRow(), box = row && row.querySelector("input[name=key]"); if (box) { box.checked = !box.checked; dress(); } },
    e: function () { var row = currentRow(), toggle = row && row.querySelector(".toggle"); if (toggle) toggle.click(); },
    p: function () { if (isLive()) setPaused(!paused); },
    r: function () { if (isLive()) update(); },
    g: function () { prefix = Date.now(); },
  };

  document.addEventListener("keydown", function (event) {
    if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
    var field = isField(event.target) && !/^(checkbox|radio|submit|button)$/.test(event.target.type);
    if (event.key === "Escape") {
      var menu = document.querySelector("details.menu[open]");
      if (menu) { menu.open = false; menu.querySelector("summary").focus(); } else if (field) event.target.blur();
      return;
    }
    if (event.key === " " && event.target.matches && event.target.matches("a[role=button]")) {
      event.preventDefault();
      event.target.click();
      return;
    }
    if (field || document.querySelector("dialog[open]")) return;
    if (prefix && Date.now() - prefix < 1500) {
      prefix = 0;
      var link = document.querySelector("[data-go='" + CSS.escape(event.key) + "']");
      if (link) { event.preventDefault(); link.click(); return; }
    }
    if (Object.prototype.hasOwnProperty.call(KEYS, event.key) && KEYS[event.key]() !== false) event.preventDefault();
  });

  // Start ---------------------------------------------------------------------------------------------------

  var themes = { "": "as the system has them", dark: "dark", light: "light" };
  var themeButton = $("theme");
  function showTheme() {
    var chosen = document.documentElement.dataset.theme || "";
    themeButton.setAttribute("aria-label", "Colours: " + themes[chosen]);
    themeButton.title = "Colours: " + themes[chosen];
  }
  if (themeButton) {
    themeButton.hidden = false;
    showTheme();
    themeButton.addEventListener("click", function () {
      var systemDark = matchMedia("(prefers-color-scheme: dark)").matches;
      var order = systemDark ? ["", "light", "dark"] : ["", "dark", "light"];
      var next = order[(order.indexOf(document.documentElement.dataset.theme || "") + 1) % 3];
      if (next) document.documentElement.dataset.theme = next;
      else delete document.documentElement.dataset.theme;
      store(localStorage, "theme", next);
      showTheme();
    });
  }
  if ($("keys")) {
    $("keys").hidden = false;
    $("keys").addEventListener("click", function () { $("help").showModal(); });
  }
  if (live && isLive()) {
    live.hidden = false;
    everySelect.value = stored(localStorage, "every", "5");
    if (!everySelect.value) everySelect.value = "5";
    everySelect.addEventListener("change", function () { store(localStorage, "every", everySelect.value); failures = 0; plan(); });
    pauseButton.addEventListener("click", function () { setPaused(!paused); });
    document.addEventListener("visibilitychange", function () {
      if (document.hidden) { clearTimeout(timer); } else if (!paused) update();
    });
    pauseButton.setAttribute("aria-pressed", String(paused));
    pauseButton.textContent = paused ? "Paused" : "Pause";
    sayCalm();
    plan();
  }
  dress();
})();
