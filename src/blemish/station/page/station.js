// The page of a station. Words come from texts.json alone; what is shown comes from the same routes that machines ask.

const $ = (id) => document.getElementById(id);
const VIEWS = ["judge", "history", "model", "learn"];
const AT_HAND = 200; // pictures that are kept as blobs

const state = { texts: {}, language: "en", token: sessionStorage.getItem("token"), models: [], card: null, line: null, learning: null, p_values: [], latest: [], hurries: false };

// Words

function t(key, values = {}) {
  const text = state.texts[state.language][key];
  return text.replace(/\{(\w+)\}/g, (_, name) => values[name]);
}

function translate() {
  document.documentElement.lang = state.language;
  for (const part of document.querySelectorAll("[data-text]")) part.textContent = t(part.dataset.text);
  for (const part of document.querySelectorAll("[data-label]")) part.setAttribute("aria-label", t(part.dataset.label));
  showStrip();
}

const number = (value, digits = 0) => value.toLocaleString(state.language, { maximumFractionDigits: digits });
const percent = (share) => `${number(100 * share, share < 0.1 ? 2 : 0)}\u00a0%`;
const moment = (text) => new Date(text).toLocaleString(state.language, { dateStyle: "medium", timeStyle: "medium" });

function pInWords(p) {
  const hundred = Math.ceil(100 * p - 1e-9);
  if (p >= 0.5) return t("p_most");
  if (state.card?.lowest_rate && p <= state.card.lowest_rate + 1e-9) return t("p_lowest", { share: number(100 * p, 1) });
  return p >= 0.01 ? t("p_words", { share: hundred }) : t("p_words_few", { share: Math.ceil(1000 * p - 1e-9) });
}

// What is asked of the station

async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(state.token ? { Authorization: `Bearer ${state.token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Error(t("unreachable"));
  }
  if (answer.status === 401) {
    await askToken();
    return ask(path, options);
  }
  if (!answer.ok && answer.status !== 422) throw new Error((await answer.json()).error);
  return answer;
}

async function askJson(path, options) {
  const found = await (await ask(path, options)).json();
  if (found.error) throw new Error(found.error);
  return found;
}

let asking = null;
function askToken() {
  asking ??= new Promise((done) => {
    $("ask-token").addEventListener("close", () => {
      state.token = $("token").value;
      sessionStorage.setItem("token", state.token);
      asking = null;
      done();
    }, { once: true });
    $("ask-token").showModal();
  });
  return asking;
}

const blobs = new Map();
async function blob(path) {
  if (!blobs.has(path)) {
    const answer = await ask(path);
    if (!answer.ok) throw new Error(path);
    blobs.set(path, URL.createObjectURL(await answer.blob()));
    for (const [old, url] of blobs) {
      if (blobs.size <= AT_HAND) break;
      URL.revokeObjectURL(url);
      blobs.delete(old);
    }
  }
  return blobs.get(path);
}

async function fill(image, path) {
  image.dataset.path = path;
  try {
    const url = await blob(path);
    if (image.dataset.path === path) image.src = url;
  } catch {
    if (image.dataset.path === path) image.removeAttribute("src");
  }
}

// Small parts

function h(tag, properties = {}, ...children) {
  const part = Object.assign(document.createElement(tag), properties);
  part.append(...children);
  return part;
}

function note(text, kind = "bad") {
  const close = h("button", { type: "button", onclick: () => box.remove() }, t("close"));
  const box = h("div", { className: `note ${kind}` }, h("span", {}, text), close);
  $("notes").replaceChildren(box);
}

const word = (line) => (line.error ? t("not_judged") : line.anomalous === null ? t("score_only") : t(line.anomalous ? "check" : "ok"));
const kind = (line) => (line.error || line.anomalous === null ? "none" : line.anomalous ? "check" : "ok");

// Judge

function show(line) {
  state.line = line;
  const verdict = $("verdict");
  verdict.className = `verdict ${line ? kind(line) : "none"}`;
  $("word").textContent = line ? word(line) : t(state.models.length ? "ready" : "no_model");
  $("answers").hidden = !line?.id;
  if (!line) {
    $("why").textContent = state.models.length ? "" : t("no_model_why");
    $("about").textContent = "";
    $("stage").hidden = true;
    showReasons(null);
    return;
  }
  const { image, part, time } = line;
  showReasons(null);
  $("why").textContent = line.error ?? (line.p_value === null ? t("score_words", { score: number(line.score, 3) }) : pInWords(line.p_value));
  const whole = "part_anomalous" in line ? ` · ${t("whole", { word: t(line.part_anomalous ? "check" : "ok") })}` : "";
  $("about").textContent = line.error ? "" : t(part ? "about_part" : "about", { image, part, time: moment(time) }) + whole;
  for (const said of ["fine", "defect"]) $(said).setAttribute("aria-pressed", String(line.feedback === said));
  $("stage").hidden = Boolean(line.error);
  if (line.error) return;
  $("photo").alt = t("photo", { image });
  $("overlay").alt = t("overlay");
  $("overlay").hidden = false;
  showRegions(line);
  fill($("photo"), `/v1/pictures/${line.picture}?side=1280`);
  fill($("overlay"), `/v1/verdicts/${line.id}/overlay`);
  lookForReasons(line);
}

/** One verdict for several pictures: the part's, over that of its worst picture. */
function showPart(part, lines) {
  show(lines.find(({ image }) => image === part.worst) ?? lines[0]);
  $("verdict").className = `verdict ${part.anomalous ? "check" : "ok"}`;
  $("word").textContent = t(part.anomalous ? "check" : "ok");
  $("why").textContent = pInWords(part.p_value);
  $("about").textContent = t("about_whole", { part: part.part, count: part.images.length, worst: part.worst });
}

// Why

const WAYS = ["way_level", "way_up", "way_upright", "way_down"];

/** A difference in words; lines have directions, in degrees, all else numbers. */
function differenceInWords({ kind: why, own, usual }) {
  const spell = ["turned", "lined", "unlined"].includes(why) ? (angle) => t(WAYS[Math.round(angle / 45) % 4]) : (value) => number(value);
  return t(`why_${why}`, { own: spell(own), usual: spell(usual) });
}

async function lookForReasons(line) {
  if (!line?.regions?.length || state.hurries) return; // while pictures come, nobody reads why of each
  $("reasons").hidden = false;
  $("reasons").replaceChildren(h("p", { className: "quiet" }, t("reasons_busy")));
  let found;
  try {
    found = await askJson(`/v1/verdicts/${line.id}/reasons`);
  } catch (error) {
    if (state.line === line) $("reasons").replaceChildren(h("p", { className: "quiet" }, error.message));
    return;
  }
  if (state.line === line) showReasons(found);
}

function showReasons(found) {
  $("reasons").hidden = !found?.reasons.length;
  if ($("reasons").hidden) return $("reasons").replaceChildren();
  const rows = found.reasons.map(({ crop, differences, nearest, p_value: p }, at) => {
    const words = differences.length ? differences.map(differenceInWords).join("; ") : t("why_none");
    const places = nearest.slice(0, 1).map((place) => h("figure", {}, h("img", { src: place.crop, alt: t("place_normal") }), h("figcaption", {}, t("place_normal"))));
    const here = h("figure", {}, h("img", { src: crop, alt: t("place_here") }), h("figcaption", {}, t("place_here")));
    return h("li", {}, h("span", { className: "number" }, String(at + 1)), here, ...places, h("p", {}, words, h("span", { className: "quiet" }, ` · p ${number(p, 3)}`)));
  });
  $("reasons").replaceChildren(h("h2", {}, t("reasons")), h("ol", { className: "reasons" }, ...rows), h("p", { className: "quiet" }, t("reasons_from", { count: found.compared })));
}

/** Contours in pixels of the picture, in a drawing of its size that lies over it. */
function showRegions({ regions, size }) {
  const found = size ? regions ?? [] : [];
  if (size) $("regions").setAttribute("viewBox", `0 0 ${size[1]} ${size[0]}`);
  const draw = (tag, values) => {
    const part = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(values)) part.setAttribute(name, value);
    return part;
  };
  $("regions").replaceChildren(...found.flatMap(({ contour, box }, at) => {
    const outline = draw("polygon", { points: contour.map((point) => point.join(",")).join(" ") });
    const side = size[0] / 18; // of the number beside it, inside the picture
    const label = draw("text", { x: Math.max(0, box[0] - 0.7 * side), y: Math.max(side, box[1]), "font-size": side });
    label.textContent = String(at + 1);
    return at < 3 ? [outline, label] : [outline];
  }));
  const lowest = Math.min(...found.map((region) => region.p_value));
  $("region-words").textContent = found.length ? t(found.length === 1 ? "region" : "regions", { count: found.length, p: number(lowest, 3) }) : "";
}

/** Lines of pictures, in the order in which they came, become the latest ones. */
function remember(lines) {
  state.latest = [...lines.filter((line) => line.id).reverse(), ...state.latest].slice(0, 24);
  showStrip();
}

/** All pictures in one request: those of one part have one verdict too. */
async function judgeTogether(files) {
  const body = new FormData();
  for (const file of files) body.append("picture", file, (file.name || "picture").slice(-200));
  const query = new URLSearchParams({ draw: "true", ...($("part").value ? { part: $("part").value } : {}) });
  $("word").textContent = t("busy");
  try {
    const { results, parts } = await askJson(`/v1/models/${encodeURIComponent($("models").value)}/predict?${query}`, { method: "POST", body });
    remember(results);
    const worst = parts?.toSorted((a, b) => a.p_value - b.p_value)[0];
    if (worst) showPart(worst, results.filter(({ image, error }) => !error && worst.images.includes(image)));
    else show(results.at(-1));
  } catch (error) {
    show(null);
    note(error.message);
  }
  lookForDrift();
}

async function judge(files) {
  if (!state.models.length) return note(t("no_model_why"), "");
  $("notes").replaceChildren();
  if ($("part").value || (state.card?.part_by && files.length > 1)) return judgeTogether(files);
  state.hurries = files.length > 1;
  for (const file of files) {
    $("word").textContent = t("busy");
    $("verdict").classList.add("busy");
    try {
      const query = new URLSearchParams({ image: (file.name || "picture").slice(-200), draw: "true" });
      const path = `/v1/models/${encodeURIComponent($("models").value)}/predict?${query}`;
      const { results } = await askJson(path, { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } });
      show(results[0]);
      remember(results);
    } catch (error) {
      show(null);
      note(error.message);
    }
  }
  state.hurries = false;
  if (files.length > 1) lookForReasons(state.line);
  lookForDrift();
}

function showStrip() {
  $("strip").replaceChildren(...state.latest.map((line) => {
    const image = h("img", { alt: line.image });
    fill(image, `/v1/pictures/${line.picture}?side=192`);
    const open = () => { show(line); scrollTo({ top: 0 }); };
    return h("li", {}, h("button", { type: "button", className: `is-${kind(line)}`, onclick: open }, image, h("span", {}, word(line))));
  }));
}

async function say(said) {
  const line = state.line;
  if (!line?.id) return;
  const next = line.feedback === said ? null : said;
  try {
    await askJson(`/v1/verdicts/${line.id}/feedback${next ? `?said=${next}` : ""}`, { method: "POST" });
  } catch (error) {
    return note(error.message);
  }
  line.feedback = next;
  for (const one of ["fine", "defect"]) $(one).setAttribute("aria-pressed", String(next === one));
  const row = document.querySelector(`#rows [data-id="${line.id}"] .said`);
  if (row) row.textContent = next ? t(`was_${next}`) : "";
}

// Camera

async function startCamera() {
  try {
    const stream = await navigator.mediaDevices.getUserMedia({ video: { facingMode: "environment", width: { ideal: 4096 } } });
    $("video").srcObject = stream;
    $("live").hidden = false;
    await $("video").play();
    $("shoot").focus();
  } catch (error) {
    note(t("no_camera", { reason: error.message ?? String(error) }));
  }
}

function stopCamera() {
  for (const track of $("video").srcObject?.getTracks() ?? []) track.stop();
  $("video").srcObject = null;
  $("live").hidden = true;
}

async function shoot() {
  const { videoWidth: width, videoHeight: height } = $("video");
  const canvas = h("canvas", { width, height });
  canvas.getContext("2d").drawImage($("video"), 0, 0);
  const picture = await new Promise((done) => canvas.toBlob(done, "image/png"));
  await take([new File([picture], "camera.png")]);
}

// History

async function listHistory(before) {
  const query = new URLSearchParams([...new FormData($("filters"))].filter(([, value]) => value !== ""));
  if ($("models").value) query.set("model", $("models").value);
  if (before) query.set("before", before);
  const { verdicts } = await askJson(`/v1/verdicts?${query}`);
  const rows = verdicts.map(historyRow);
  if (before) $("rows").append(...rows);
  else $("rows").replaceChildren(...(rows.length ? rows : [h("li", { className: "quiet" }, t("nothing"))]));
  $("more").hidden = verdicts.length < 50;
}

function historyRow(line) {
  const image = h("img", { alt: "", loading: "lazy" });
  fill(image, `/v1/pictures/${line.picture}?side=192`);
  const said = line.feedback ? t(`was_${line.feedback}`) : "";
  const open = () => { show(line); go("judge"); };
  const button = h("button", { type: "button", onclick: open, onfocus: () => { state.line = line; } },
    image,
    h("span", { className: `badge is-${kind(line)}` }, word(line)),
    h("span", { className: "name" }, line.image, line.part ? ` · ${t("part")} ${line.part}` : "", h("span", { className: "quiet" }, line.p_value === null ? "" : ` · p ${number(line.p_value, 3)}`)),
    h("span", { className: "when quiet" }, moment(line.time)),
    h("span", { className: "said" }, said));
  button.dataset.id = line.id;
  return h("li", {}, button);
}

function move(step) {
  const rows = [...document.querySelectorAll("#rows button")];
  const at = rows.indexOf(document.activeElement);
  rows[Math.min(rows.length - 1, Math.max(0, at + step))]?.focus();
}

// Model

async function showModel() {
  const name = $("models").value;
  $("facts").replaceChildren();
  if (!name) return;
  await loadCard();
  $("facts").replaceChildren(...Object.entries(state.card.facts).map(([key, value]) => h("tr", {}, h("th", { scope: "row" }, key), h("td", {}, value))));
  state.p_values = (await askJson(`/v1/models/${encodeURIComponent(name)}/p-values?days=7`)).p_values;
  const has = state.card.lowest_rate !== null;
  $("rate").disabled = !has;
  if (has) $("rate").value = 100 * (Math.log(state.card.false_alarm_rate / state.card.lowest_rate) / Math.log(0.5 / state.card.lowest_rate));
  showRate();
  showRevision(await askJson("/v1/revision"));
  await showSample();
}

/** Whether the pictures of the period are a complete sample, and for which rate they are enough. */
async function showSample() {
  const found = await askJson(`/v1/models/${encodeURIComponent($("models").value)}/sample?days=${$("sample").value}`);
  const count = found.pictures - found.defects - found.gone;
  const rates = Object.entries(found.rates).filter(([, needed]) => needed <= count).map(([rate]) => Number(rate));
  const words = [t("sample_words", { count: found.pictures, defects: found.defects })];
  words.push(rates.length ? t("sample_enough", { rate: percent(Math.min(...rates)) }) : t("sample_few"));
  if (found.gone) words.push(t("sample_gone", { count: found.gone }));
  if (found.unanswered) words.push(t("sample_open", { count: found.unanswered }));
  $("sample-words").textContent = words.join(" ");
  $("answer").hidden = !found.unanswered;
}

/** The flagged pictures of the period that nobody has spoken of, to go through with F, D, J and K. */
async function answerOpen() {
  const filters = $("filters").elements;
  filters.anomalous.value = "true";
  filters.said.value = "nothing";
  filters.days.value = $("sample").value;
  filters.part.value = "";
  await go("history");
  move(1);
}

function showRate() {
  if (state.card?.lowest_rate == null) {
    $("rate-shown").textContent = "";
    $("rate-words").textContent = t("rate_no_threshold");
    return;
  }
  const low = state.card.lowest_rate;
  const rate = low * (0.5 / low) ** ($("rate").value / 100);
  const above = (limit) => state.p_values.filter((p) => p <= limit + 1e-9).length;
  const now = state.card.false_alarm_rate;
  $("rate-shown").textContent = percent(rate);
  $("rate").setAttribute("aria-valuetext", percent(rate));
  state.rate = rate;
  $("rate-words").textContent = state.p_values.length
    ? t("rate_words", { rate: percent(rate), flagged: above(rate), count: state.p_values.length, now: percent(now), before: above(now) })
    : t("rate_none");
}

// A new version of the model: tried first, then saved

function showRevision(status) {
  const works = status.state === "working";
  $("revising").hidden = !works;
  $("revise-bar").value = status.total ? status.done / status.total : 0;
  for (const id of ["revise", "try-rate"]) $(id).disabled = works || state.card?.lowest_rate == null;
  $("undo").disabled = works || !state.card?.versions.length;
  const tried = status.state === "done" && status.tried && status.model === $("models").value;
  $("preview").hidden = !tried;
  if (!tried) return;
  const { fine, defect } = status.tried;
  const rows = [["tried_fine", fine], ["tried_defect", defect]].filter(([, row]) => row.pictures);
  const words = rows.map(([key, row]) => t(key, { count: row.pictures, before: row.flagged_before, after: row.flagged_after }));
  if (status.sample) words.unshift(t("tried_from", { learned: status.learned_from, sample: status.sample }));
  if (!rows.length) words.push(t("tried_nothing"));
  $("preview-rows").replaceChildren(...words.map((line) => h("li", {}, line)));
  $("preview-promise").textContent = t("tried_promise", { rate: percent(status.promise.false_alarm_rate), count: status.promise.held_out });
}

async function revise(query) {
  let status = await askJson(`/v1/models/${encodeURIComponent($("models").value)}/revise?${query}`, { method: "POST" });
  showRevision(status);
  while (status.state === "working") {
    await new Promise((done) => setTimeout(done, 300));
    status = await askJson("/v1/revision");
    showRevision(status);
  }
  if (status.error) note(status.error);
  else $("save").focus();
}

async function settleRevision(path, method, words) {
  await askJson(path, { method });
  await go("model");
  if (words) note(t(words), "good");
}

/** What a button does, and one line where it cannot. */
const trying = (work) => async () => {
  try {
    await work();
  } catch (error) {
    note(error.message);
  }
};

async function loadCard() {
  const name = $("models").value;
  state.card = name ? await askJson(`/v1/models/${encodeURIComponent(name)}`) : null;
}

async function loadModels(wanted) {
  state.models = (await askJson("/v1/models")).models;
  const before = wanted ?? $("models").value;
  $("models").replaceChildren(...state.models.map(({ name }) => h("option", { value: name }, name)));
  if (state.models.some(({ name }) => name === before)) $("models").value = before;
  $("models").disabled = !state.models.length;
  await loadCard();
}

async function lookForDrift() {
  try {
    await loadCard();
    if (state.card?.drift?.is_alarm) note(t("drift"));
  } catch { /* said when it is asked for */ }
}

// Learn

function showLearning(status) {
  state.learning = status;
  const odd = new Map();
  for (const { kind: why, pictures } of status.findings ?? []) for (const one of pictures) odd.set(one, why);
  const few = status.count < status.least;
  $("count").textContent = t(few ? "count_few" : "count", status);
  $("tray").replaceChildren(...status.pictures.map(({ picture, name }) => trayRow(picture, name, odd.get(picture))));
  $("findings").replaceChildren(...(status.findings ? findingsOf(status.findings) : []));
  $("findings").className = status.findings ? "card" : "";
  const works = status.state === "working";
  $("working").hidden = !works;
  for (const id of ["add", "clear", "start", "name"]) $(id).disabled = works;
  $("start").disabled ||= few;
  if (works) {
    $("bar").value = status.total ? status.done / status.total : 0;
    $("stage-words").textContent = t(`stage_${["inspect", "calibrate"].includes(status.stage) ? status.stage : "fit"}`);
  }
}

function trayRow(picture, name, why) {
  const image = h("img", { alt: name, title: why ? t(`find_${why}`, { count: 1 }) : name });
  fill(image, `/v1/learning/pictures/${picture}?side=256`);
  const remove = h("button", { type: "button", onclick: () => learning("DELETE", `/pictures/${picture}`) }, "\u00d7");
  remove.setAttribute("aria-label", t("remove", { image: name }));
  return h("li", { className: why ? "odd" : "" }, image, remove);
}

function findingsOf(findings) {
  if (!findings.length) return [h("p", {}, t("findings_none"))];
  const rows = findings.map(({ kind: why, pictures }) => h("li", {}, t(`find_${why}`, { count: pictures.length })));
  return [h("h2", {}, t("findings")), h("ul", {}, ...rows)];
}

async function learning(method, path, body) {
  try {
    const headers = { "Content-Type": "application/octet-stream" };
    showLearning(await askJson(`/v1/learning${path}`, { method, body, headers }));
    if (state.learning.state === "working") await watchLearning();
  } catch (error) {
    note(error.message);
  }
}

async function watchLearning() {
  while (state.learning.state === "working") {
    await new Promise((done) => setTimeout(done, 400));
    showLearning(await askJson("/v1/learning"));
  }
  const { error, learned, rate } = state.learning;
  if (error) note(error);
  if (!learned) return;
  await loadModels(learned);
  state.line = null;
  await go("judge");
  note(t("learned", { name: learned, rate: percent(rate) }), "good");
  $("choose").focus();
}

async function addNormals(files) {
  for (const file of files) {
    await learning("POST", `/pictures?${new URLSearchParams({ image: file.name.slice(-200) })}`, file);
  }
  if (state.learning.count) await learning("POST", "/inspect");
}

// All views

const openers = { judge: () => show(state.line), history: () => listHistory(), model: showModel, learn: () => learning("GET", "") };

async function go(view) {
  for (const name of VIEWS) {
    $(name).hidden = name !== view;
    const button = document.querySelector(`nav [data-view="${name}"]`);
    if (name === view) button.setAttribute("aria-current", "page");
    else button.removeAttribute("aria-current");
  }
  if (view !== "judge") stopCamera();
  $("notes").replaceChildren();
  document.title = `${t(`view_${view}`)} · blemish`;
  try {
    await openers[view]();
  } catch (error) {
    note(error.message);
  }
}

const current = () => VIEWS.find((name) => !$(name).hidden);

/** Pictures that somebody gave, in whichever way: to learn from or to judge. */
async function take(files) {
  if (!files.length) return;
  if (current() === "learn") return addNormals(files);
  if (current() !== "judge") await go("judge");
  await judge(files);
}

const KEYS = {
  1: () => go("judge"), 2: () => go("history"), 3: () => go("model"), 4: () => go("learn"),
  f: () => say("fine"), d: () => say("defect"), o: () => $("files").click(), c: startCamera,
  p: () => $("part").focus(), j: () => move(1), k: () => move(-1), Escape: stopCamera,
};

function listen() {
  for (const button of document.querySelectorAll("nav button")) button.addEventListener("click", () => go(button.dataset.view));
  $("choose").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", () => { const files = [...$("files").files]; $("files").value = ""; take(files); });
  $("camera").addEventListener("click", startCamera);
  $("shoot").addEventListener("click", shoot);
  $("stop").addEventListener("click", stopCamera);
  $("fine").addEventListener("click", () => say("fine"));
  $("defect").addEventListener("click", () => say("defect"));
  $("add").addEventListener("click", () => $("normals").click());
  $("normals").addEventListener("change", () => { const files = [...$("normals").files]; $("normals").value = ""; addNormals(files); });
  $("clear").addEventListener("click", () => learning("DELETE", "/pictures"));
  $("learn-form").addEventListener("submit", (event) => {
    event.preventDefault();
    learning("POST", `/fit?${new URLSearchParams({ name: $("name").value })}`);
  });
  $("opacity").addEventListener("input", () => { $("overlay").style.opacity = $("opacity").value / 100; });
  $("rate").addEventListener("input", showRate);
  $("try-rate").addEventListener("click", trying(() => revise(`rate=${state.rate.toPrecision(3)}`)));
  $("sample").addEventListener("change", trying(showSample));
  $("answer").addEventListener("click", trying(answerOpen));
  $("revise").addEventListener("click", trying(() => revise(`days=${$("sample").value}`)));
  $("save").addEventListener("click", trying(() => settleRevision("/v1/revision/save", "POST", "saved")));
  $("discard").addEventListener("click", trying(() => settleRevision("/v1/revision", "DELETE")));
  $("undo").addEventListener("click", trying(() => settleRevision(`/v1/models/${encodeURIComponent($("models").value)}/undo`, "POST", "undone")));
  $("filters").addEventListener("change", () => go("history"));
  $("filters").addEventListener("submit", (event) => event.preventDefault());
  $("more").addEventListener("click", () => listHistory(document.querySelector("#rows li:last-child button").dataset.id));
  $("models").addEventListener("change", async () => { state.line = null; await loadCard(); go(current()); });
  $("language").addEventListener("change", () => {
    state.language = $("language").value;
    localStorage.setItem("language", state.language);
    translate();
    go(current());
  });
  document.addEventListener("paste", (event) => take([...event.clipboardData.files]));
  document.addEventListener("dragover", (event) => { event.preventDefault(); $("drop").classList.add("is-over"); });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) $("drop").classList.remove("is-over"); });
  document.addEventListener("drop", (event) => {
    event.preventDefault();
    $("drop").classList.remove("is-over");
    take([...event.dataTransfer.files]);
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.matches("input:not([type=range]), select, textarea, dialog *");
    if (typing || event.ctrlKey || event.metaKey || event.altKey || !KEYS[event.key]) return;
    event.preventDefault();
    KEYS[event.key]();
  });
}

async function begin() {
  state.texts = await (await fetch("/texts.json")).json();
  const wanted = localStorage.getItem("language") ?? navigator.language.slice(0, 2);
  state.language = wanted in state.texts ? wanted : "en";
  $("language").value = state.language;
  $("overlay").style.opacity = $("opacity").value / 100;
  translate();
  listen();
  try {
    await loadModels();
  } catch (error) {
    note(error.message);
  }
  await go(state.models.length ? "judge" : "learn");
  document.body.dataset.ready = "true";
}

begin();
