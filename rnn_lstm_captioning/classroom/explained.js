"use strict";
const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);

function bytes(text) {
  const binary = atob(text), out = new Uint8Array(binary.length);
  for (let k = 0; k < binary.length; k++) out[k] = binary.charCodeAt(k);
  return out;
}

function element(parent, tag, properties = {}, text = "") {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) made.setAttribute(name, value);
  made.textContent = text;
  parent.append(made);
  return made;
}

// ------------------------------------------------------------------ the network, in the browser
// A tensor is {data: Float32Array, shape}. Images are (channels, height, width), matrices are row by row.

const ACTIVATIONS = {
  relu: (x) => Math.max(0, x),
  hardsigmoid: (x) => Math.min(1, Math.max(0, x / 6 + 0.5)),
  hardswish: (x) => x * Math.min(1, Math.max(0, x / 6 + 0.5)),
};

function convolve(input, step, weight, bias) {
  const [C, height, width] = input.shape, [O, perGroup, k] = weight.shape, { stride, padding, groups } = step;
  const H = Math.floor((height + 2 * padding - k) / stride) + 1, W = Math.floor((width + 2 * padding - k) / stride) + 1;
  const out = new Float32Array(O * H * W), x = input.data, w = weight.data, outPerGroup = O / groups;
  for (let o = 0; o < O; o++) {
    const base = o * H * W, first = Math.floor(o / outPerGroup) * perGroup;
    out.fill(bias.data[o], base, base + H * W);
    for (let c = 0; c < perGroup; c++) {
      const plane = (first + c) * height * width;
      for (let i = 0; i < k; i++) {
        for (let j = 0; j < k; j++) {
          const value = w[((o * perGroup + c) * k + i) * k + j];
          for (let y = 0; y < H; y++) {
            const row = y * stride + i - padding;
            if (row < 0 || row >= height) continue;
            const from = plane + row * width + j - padding, to = base + y * W;
            const left = Math.max(0, Math.ceil((padding - j) / stride));
            const right = Math.min(W, Math.floor((width - 1 + padding - j) / stride) + 1);
            for (let z = left; z < right; z++) out[to + z] += value * x[from + z * stride];
          }
        }
      }
    }
  }
  return { data: out, shape: [O, H, W] };
}

function together(a, b, kind) {
  const scalar = b.data.length < a.data.length, per = a.data.length / b.data.length, out = new Float32Array(a.data.length);
  for (let k = 0; k < out.length; k++) {
    const other = b.data[scalar ? Math.floor(k / per) : k];
    out[k] = kind === "add" ? a.data[k] + other : a.data[k] * other;
  }
  return { data: out, shape: a.shape };
}

class Network {
  constructor(live) {
    const flat = new Float32Array(bytes(live.weights).buffer);
    let place = 0;
    this.tensors = live.shapes.map((shape) => {
      const size = shape.reduce((a, b) => a * b, 1);
      place += size;
      return { data: flat.subarray(place - size, place), shape };
    });
    this.live = live;
    this.p = Object.fromEntries(Object.entries(live.named).map(([name, k]) => [name, this.tensors[k]]));
    [this.D, this.H] = [this.p.words.shape[1], this.p.scoreW.shape[0]];
  }

  // pixels: bytes (3, side, side) -> features (C, grid, grid)
  encode(pixels) {
    const side = this.live.side, area = side * side, x = new Float32Array(3 * area);
    for (let k = 0; k < x.length; k++) {
      const c = Math.floor(k / area);
      x[k] = (pixels[k] / 255 - this.p.mean.data[c]) / this.p.std.data[c];
    }
    const results = [], input = { data: x, shape: [3, side, side] };
    for (const step of this.live.program) {
      const [a, b] = step.inputs.map((k) => (k < 0 ? input : results[k]));
      if (step.kind === "conv") results.push(convolve(a, step, this.tensors[step.weight], this.tensors[step.bias]));
      else if (step.kind === "pool") {
        const area = a.shape[1] * a.shape[2], out = new Float32Array(a.shape[0]);
        for (let k = 0; k < a.data.length; k++) out[Math.floor(k / area)] += a.data[k] / area;
        results.push({ data: out, shape: [a.shape[0], 1, 1] });
      } else if (step.kind === "add" || step.kind === "mul") {
        results.push(a.data.length >= b.data.length ? together(a, b, step.kind) : together(b, a, step.kind));
      } else results.push({ data: a.data.map(ACTIVATIONS[step.kind]), shape: a.shape });
    }
    return results[results.length - 1];
  }

  // y = x W + b for one row; W is (in, out)
  affine(x, W, b, out = new Float32Array(W.shape[1])) {
    if (b) out.set(b.data);
    const n = W.shape[1];
    for (let i = 0; i < x.length; i++) {
      const value = x[i], row = i * n;
      if (value !== 0) for (let j = 0; j < n; j++) out[j] += value * W.data[row + j];
    }
    return out;
  }

  // features -> what the cell reads: rows of H numbers, one for each region, or a single one, their mean
  project(features) {
    const [C, height, width] = features.shape, G = height * width, rows = [];
    const standard = (c, value) => (value - this.p.featureMean.data[c]) / this.p.featureStd.data[c];
    if (this.live.usesGrid) {
      for (let g = 0; g < G; g++) {
        const x = new Float32Array(C);
        for (let c = 0; c < C; c++) x[c] = standard(c, features.data[c * G + g]);
        rows.push(this.affine(x, this.p.imageW, this.p.imageB));
      }
    } else {
      const x = new Float32Array(C);
      for (let c = 0; c < C; c++) {
        let sum = 0;
        for (let g = 0; g < G; g++) sum += features.data[c * G + g];
        x[c] = standard(c, sum / G);
      }
      rows.push(this.affine(x, this.p.imageW, this.p.imageB));
    }
    return rows;
  }

  start(rows) {
    const h = new Float32Array(this.H);
    for (const row of rows) for (let k = 0; k < this.H; k++) h[k] += row[k] / rows.length;
    return { h, c: this.live.usesGrid ? h.slice() : new Float32Array(this.H) };
  }

  // One step of the cell. held: name of a gate -> its value. Returns: the next state, and the attention weights.
  step(word, state, rows, held) {
    const H = this.H, p = this.p, x = p.words.data.subarray(word * this.D, (word + 1) * this.D);
    const sigmoid = (a) => 1 / (1 + Math.exp(-a));
    const gate = (k, a) => held[this.live.gates[k]] ?? sigmoid(a);
    const h = new Float32Array(H), c = new Float32Array(H);
    if (this.live.cell === "rnn") {
      const a = this.affine(state.h, p.Wh, null, this.affine(x, p.Wx, p.b));
      return { state: { h: a.map(Math.tanh), c } };
    }
    if (this.live.cell === "gru") {
      const a = this.affine(x, p.Wx, p.b), u = this.affine(state.h, p.Wh, null);
      for (let k = 0; k < H; k++) {
        const r = gate(0, a[k] + u[k]), z = gate(1, a[H + k] + u[H + k]);
        h[k] = (1 - z) * Math.tanh(a[2 * H + k] + r * u[2 * H + k]) + z * state.h[k];
      }
      return { state: { h, c } };
    }
    const a = this.affine(state.h, p.Wh, null, this.affine(x, p.Wx, p.b));
    let weights;
    if (this.live.cell === "attn") {
      const scores = rows.map((row) => row.reduce((sum, value, k) => sum + value * state.h[k], 0) / Math.sqrt(H));
      const top = Math.max(...scores), e = scores.map((score) => Math.exp(score - top)), sum = e.reduce((s, v) => s + v, 0);
      weights = e.map((value) => value / sum);
      const attn = new Float32Array(H);
      rows.forEach((row, g) => { for (let k = 0; k < H; k++) attn[k] += weights[g] * row[k]; });
      this.affine(attn, p.Wattn, null, a);
    }
    for (let k = 0; k < H; k++) {
      c[k] = gate(1, a[H + k]) * state.c[k] + gate(0, a[k]) * Math.tanh(a[3 * H + k]);
      h[k] = gate(2, a[2 * H + k]) * Math.tanh(c[k]);
    }
    return { state: { h, c }, weights };
  }

  logProbs(h) {
    const scores = this.affine(h, this.p.scoreW, this.p.scoreB);
    scores[0] = scores[1] = scores[3] = -Infinity; // <NULL>, <START> and <UNK> are never written
    const top = Math.max(...scores), sum = scores.reduce((s, v) => s + Math.exp(v - top), 0);
    return scores.map((score) => score - top - Math.log(sum));
  }

  // Greedy search; with given words, the log-probabilities of these instead
  caption(rows, held = {}, given = null, length = 15) {
    let state = this.start(rows), word = 1;
    const words = [], logProbs = [], attention = [];
    while (words.length < (given ? given.length : length)) {
      const next = this.step(word, state, rows, held);
      const found = this.logProbs(next.state.h);
      word = given ? given[words.length] : found.indexOf(Math.max(...found));
      state = next.state;
      words.push(word);
      logProbs.push(found[word]);
      attention.push(next.weights);
      if (word === this.live.end) break;
    }
    return { words, logProbs, attention };
  }

  // How much the log-probability of word t falls without each region: region by region, measured anew
  occlusion(features, words, t) {
    const [C, height, width] = features.shape, G = height * width, given = words.slice(0, t + 1);
    const means = Array.from({ length: C }, (_, c) => {
      let sum = 0;
      for (let g = 0; g < G; g++) sum += features.data[c * G + g];
      return sum / G;
    });
    const whole = this.caption(this.project(features), this.held ?? {}, given).logProbs[t];
    return Array.from({ length: G }, (_, g) => {
      const copy = features.data.slice();
      for (let c = 0; c < C; c++) copy[c * G + g] = means[c];
      return whole - this.caption(this.project({ data: copy, shape: features.shape }), this.held ?? {}, given).logProbs[t];
    });
  }
}

// ------------------------------------------------------------------------------------ drawing

// Values of the regions over a picture: dark where a region says nothing, orange where it speaks against the word
function drawRegions(canvas, picture, values, grid) {
  const context = canvas.getContext("2d"), { width, height } = canvas, [rows, columns] = grid;
  context.drawImage(picture, 0, 0, width, height);
  const peak = Math.max(...values.map(Math.abs), 1e-12);
  for (let g = 0; g < values.length; g++) {
    const x = (g % columns) * width / columns, y = Math.floor(g / columns) * height / rows;
    const share = values[g] / peak;
    context.fillStyle = share >= 0 ? `rgba(0,0,0,${0.72 * (1 - share)})` : `rgba(190,70,0,${0.72 * -share})`;
    context.fillRect(x, y, width / columns + 1, height / rows + 1);
    if (share < 0) {
      context.fillStyle = "rgba(0,0,0,.6)";
      context.fillRect(x, y, width / columns + 1, height / rows + 1);
    }
  }
  const best = values.indexOf(Math.max(...values)); // framed, since a black scene has no bright regions
  context.setLineDash([]);
  context.strokeStyle = "#3b9dff";
  context.lineWidth = 3;
  context.strokeRect((best % columns) * width / columns, Math.floor(best / columns) * height / rows, width / columns, height / rows);
  context.lineWidth = 1;
}

function percent(logProb) { return `${(100 * Math.exp(logProb)).toFixed(1)} %`; }

// One button for each word; made anew only if the words change, so that focus and pointer stay where they are
function wordButtons(box, words, chosen, shades, choose) {
  if (box.dataset.words !== words.join(" ")) {
    box.dataset.words = words.join(" ");
    box.textContent = "";
    words.forEach((word, t) => {
      const button = element(box, "button", { type: "button" }, word);
      element(button, "span", { class: "bar" });
      button.addEventListener("click", () => choose(t));
      button.addEventListener("mouseenter", () => choose(t, false));
    });
  }
  box.querySelectorAll("button").forEach((button, t) => {
    const shade = shades?.[t] ?? 0, bar = button.querySelector(".bar");
    button.setAttribute("aria-pressed", String(t === chosen));
    button.tabIndex = t === (chosen ?? 0) ? 0 : -1; // one stop for the Tab key; the arrow keys walk on
    bar.style.background = shade >= 0 ? "var(--mark)" : "#d9730d";
    bar.style.width = `${Math.round(100 * Math.min(1, Math.abs(shade)))}%`;
  });
}

function arrowKeys(box, count, current, choose) {
  box.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    choose((current() + by + count()) % count());
    box.querySelector('[aria-pressed="true"]')?.focus();
  });
}

// ------------------------------------------------------------------------------ recorded captions

const WAYS = {
  attention: "Attention: where the network looked. The weights sum to 1. They do not say why the word was chosen.",
  gradient: "Gradient: the same as occlusion, but estimated from the slope at the present point, without measuring again. " +
    "Bright regions speak for the word, orange ones against it.",
  occlusion: "Occlusion: one region at a time is replaced by the mean of all regions, and the word's probability is " +
    "measured again. Where it falls, the region speaks for the word (bright); where it rises, against it (orange).",
};

const shown = { caption: 0, word: 0, way: "occlusion", picture: new Image() };

function showCaption(index) {
  shown.caption = index;
  shown.word = 0;
  const caption = data.captions[index];
  shown.picture = new Image();
  shown.picture.onload = drawWord;
  shown.picture.src = caption.image;
  $("picture").setAttribute("aria-label", `${caption.name}: ${caption.words.join(" ")}`);
  const ways = $("ways");
  ways.querySelectorAll("label").forEach((label) => label.remove());
  if (!caption.attention && shown.way === "attention") shown.way = "occlusion";
  for (const way of Object.keys(WAYS)) {
    if (!caption[way]) continue;
    const label = element(ways, "label");
    const radio = element(label, "input", { type: "radio", name: "way", value: way });
    radio.checked = way === shown.way;
    radio.addEventListener("change", () => { shown.way = way; drawWord(); });
    label.append(` ${way} `);
  }
  drawMaps(caption);
  drawWord();
}

function drawWord() {
  const caption = data.captions[shown.caption], t = shown.word;
  const before = shown.way === "gradient" ? caption.wordGradient[t] : caption.wordOcclusion[t];
  const peak = Math.max(...before.map(Math.abs), 1e-9);
  // the word at place j was read before word j + 1
  const shades = caption.words.map((_, j) => (j < t && shown.way !== "attention" ? before[j + 1] / peak : 0));
  wordButtons($("words"), caption.words, t, shades, (word) => { shown.word = word; drawWord(); });
  $("say").textContent = `"${caption.words[t]}" has ${percent(caption.logProbs[t])}.` +
    (shown.way === "attention" || t === 0 ? "" : " Bars under earlier words: how much they speak for it (orange: against it).");
  $("way-text").textContent = WAYS[shown.way];
  if (shown.picture.complete) drawRegions($("picture"), shown.picture, caption[shown.way][t], caption.grid);
  $("top").textContent = "";
  for (const [word, p] of caption.top[t]) {
    const row = element($("top"), "div");
    element(row, "span", {}, word);
    element(element(row, "span"), "span", { class: "bar" }).style.cssText = `display:block;width:${100 * p}%`;
    element(row, "span", {}, `${(100 * p).toFixed(1)} %`);
  }
}

function shade(value, gate) {
  if (!gate) {
    const x = 2 * value - 1, fade = Math.round(255 * (1 - Math.abs(x)));
    return x >= 0 ? [255, fade, fade] : [fade, fade, 255];
  }
  return [Math.round(68 + 185 * value), Math.round(1 + 230 * value), Math.round(84 + 60 * value - 107 * value * value)];
}

function drawMaps(caption) {
  $("maps").textContent = "";
  $("unit").textContent = "";
  for (const map of caption.gates) {
    const T = caption.words.length, values = bytes(map.values), figure = element($("maps"), "figure");
    const gate = map.name.includes("gate");
    element(figure, "figcaption", {}, `${map.name}: ${map.meaning} (${map.units} units, sorted by their means)`);
    const canvas = element(figure, "canvas", { width: T, height: map.units, role: "application", tabindex: 0,
      "aria-label": `${map.name}, a map. The arrow keys walk over it.` });
    const context = canvas.getContext("2d"), image = context.createImageData(T, map.units);
    values.forEach((value, k) => image.data.set([...shade(value / 255, gate), 255], 4 * k));
    context.putImageData(image, 0, 0);
    let t = 0, unit = 0;
    const read = () => {
      const value = map.low + values[unit * T + t] / 255 * (map.high - map.low);
      $("unit").textContent = `${map.name}, "${caption.words[t]}", row ${unit + 1}: ${value.toFixed(2)}.   ${map.equation}`;
    };
    for (const kind of ["pointermove", "pointerdown"]) {
      canvas.addEventListener(kind, (event) => {
        t = Math.min(T - 1, Math.floor(event.offsetX / canvas.clientWidth * T));
        unit = Math.min(map.units - 1, Math.floor(event.offsetY / canvas.clientHeight * map.units));
        read();
      });
    }
    canvas.addEventListener("pointerleave", () => { $("unit").textContent = ""; });
    canvas.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
      if (!by) return;
      event.preventDefault();
      t = (t + by[0] + T) % T;
      unit = (unit + by[1] + map.units) % map.units;
      read();
    });
  }
}

// ------------------------------------------------------------------------------------ the live scene

const live = data.live && new Network(data.live);
const scene = {
  ground: "white", chosen: 0, word: null,
  objects: [
    { shape: "square", colour: "blue", size: "big", x: 84, y: 60 },
    { shape: "star", colour: "red", size: "small", x: 30, y: 58 },
  ],
};
const big = document.createElement("canvas");

function rgb(colour) { return `rgb(${colour.join()})`; }

function drawScene(context, scale) {
  const side = data.live.side;
  context.fillStyle = rgb(data.live.backgrounds[scene.ground]);
  context.fillRect(0, 0, side * scale, side * scale);
  for (const thing of scene.objects) {
    const [low, high] = data.live.sizes[thing.size], r = (low + high) / 2 * scale, x = thing.x * scale, y = thing.y * scale;
    context.fillStyle = rgb(data.live.colours[thing.colour]);
    context.beginPath();
    if (thing.shape === "circle") context.arc(x, y, r, 0, 7);
    else if (thing.shape === "square") context.rect(x - 0.9 * r, y - 0.9 * r, 1.8 * r, 1.8 * r);
    else if (thing.shape === "cross") {
      context.rect(x - r, y - r / 3, 2 * r, 2 * r / 3);
      context.rect(x - r / 3, y - r, 2 * r / 3, 2 * r);
    } else {
      const corners = thing.shape === "triangle" ? 3 : 10, radius = corners === 3 ? [1.15 * r] : [1.15 * r, 0.5 * r];
      for (let k = 0; k < corners; k++) {
        const angle = 2 * Math.PI * k / corners - Math.PI / 2, far = radius[k % radius.length];
        context.lineTo(x + far * Math.cos(angle), y + far * Math.sin(angle));
      }
    }
    context.fill();
  }
}

// The picture that the network sees: three times as large, then the mean of 3 by 3 pixels; bytes (3, side, side)
function pixels() {
  const side = data.live.side;
  big.width = big.height = 3 * side;
  const context = big.getContext("2d", { willReadFrequently: true });
  drawScene(context, 3);
  const from = context.getImageData(0, 0, 3 * side, 3 * side).data, out = new Uint8Array(3 * side * side);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < side; y++) {
      for (let x = 0; x < side; x++) {
        let sum = 0;
        for (let i = 0; i < 3; i++) for (let j = 0; j < 3; j++) sum += from[4 * ((3 * y + i) * 3 * side + 3 * x + j) + c];
        out[(c * side + y) * side + x] = Math.round(sum / 9);
      }
    }
  }
  return out;
}

function held() {
  const found = {};
  for (const row of $("gates").querySelectorAll("div")) {
    if (row.querySelector("input[type=checkbox]").checked) {
      found[row.dataset.gate] = Number(row.querySelector("input[type=range]").value);
    }
  }
  return found;
}

function sentence(found) {
  const words = found.words.filter((word) => word !== data.live.end).map((word) => data.live.vocabulary[word]);
  return words.join(" ") + (found.words.includes(data.live.end) ? "" : " ... (cut after 15 words)");
}

function recaption() {
  live.features = live.encode(pixels());
  live.held = held();
  const rows = live.project(live.features);
  live.found = live.caption(rows, live.held);
  const broken = Object.keys(live.held).length > 0;
  $("live-free").textContent = broken ? `With free gates: ${sentence(live.caption(rows))}` : "";
  if (scene.word !== null && scene.word >= live.found.words.length) scene.word = null;
  drawLive();
}

function drawLive() {
  const words = live.found.words.map((word) => data.live.vocabulary[word]);
  const grid = live.features.shape.slice(1), t = scene.word, canvas = $("scene");
  if (t === null) {
    drawScene(canvas.getContext("2d"), canvas.width / data.live.side);
    const thing = scene.objects[scene.chosen], scale = canvas.width / data.live.side;
    const r = (1.2 * data.live.sizes[thing.size][1] + 1) * scale;
    const context = canvas.getContext("2d");
    context.setLineDash([5, 4]);
    context.strokeStyle = scene.ground === "black" ? "#fff" : "#000";
    context.strokeRect(thing.x * scale - r, thing.y * scale - r, 2 * r, 2 * r);
  } else {
    drawRegions(canvas, big, live.found.attention[t] ? Array.from(live.found.attention[t]) : live.occluded ?? [1], grid);
  }
  wordButtons($("live-caption"), words, t, null, chooseLive);
  const cut = words[words.length - 1] === data.live.vocabulary[data.live.end] ? "" : "Cut after 15 words. ";
  $("live-say").textContent = cut + (t === null ? "Choose a word to see where the network looked." :
    `"${words[t]}" has ${percent(live.found.logProbs[t])}. Bright: ` +
    (live.found.attention[t] ? "where it looked." : "the regions it needs (occlusion)."));
}

function chooseLive(t, click = true) {
  if (!click) return;
  scene.word = t === scene.word ? null : t;
  if (scene.word !== null && !live.found.attention[t]) live.occluded = live.occlusion(live.features, live.found.words, t);
  drawLive();
  $("live-caption").querySelector('[aria-pressed="true"]')?.focus();
}

function setUpLive() {
  $("live").hidden = false;
  const things = ["first", "second"];
  const fill = (id, names, changed) => {
    for (const name of names) element($(id), "option", { value: name }, name);
    $(id).addEventListener("change", () => { changed($(id).value); scene.word = null; showChoice(); recaption(); });
  };
  const showChoice = () => {
    const thing = scene.objects[scene.chosen];
    $("object").value = things[scene.chosen];
    for (const key of ["shape", "colour", "size"]) $(key).value = thing[key];
    $("ground").value = scene.ground;
  };
  fill("object", things, (name) => { scene.chosen = things.indexOf(name); });
  fill("shape", data.live.shapesOfObjects, (name) => { scene.objects[scene.chosen].shape = name; });
  fill("colour", Object.keys(data.live.colours), (name) => { scene.objects[scene.chosen].colour = name; });
  fill("size", Object.keys(data.live.sizes), (name) => { scene.objects[scene.chosen].size = name; });
  fill("ground", Object.keys(data.live.backgrounds), (name) => { scene.ground = name; });

  for (const name of data.live.gates) {
    const row = element($("gates"), "div", { "data-gate": name }), label = element(row, "label");
    const box = element(label, "input", { type: "checkbox" });
    label.append(` ${name}`);
    const slider = element(row, "input", { type: "range", min: 0, max: 1, step: 0.05, value: 0.5, "aria-label": `value of ${name}` });
    const value = element(row, "span", {}, "free");
    const changed = () => {
      value.textContent = box.checked ? Number(slider.value).toFixed(2) : "free";
      $("live-equation").textContent = data.live.equations[name];
      recaption();
    };
    box.addEventListener("change", changed);
    slider.addEventListener("input", () => { box.checked = true; changed(); });
    element(row, "small", {}, data.live.meanings[name]);
    row.addEventListener("pointerenter", () => { $("live-equation").textContent = data.live.equations[name]; });
  }
  if (!data.live.gates.length) $("gates").hidden = true;

  const canvas = $("scene"), side = data.live.side;
  const where = (event) => [event.offsetX / canvas.clientWidth * side, event.offsetY / canvas.clientHeight * side];
  const move = (x, y) => {
    const thing = scene.objects[scene.chosen];
    [thing.x, thing.y] = [x, y].map((value) => Math.min(side - 12, Math.max(12, value)));
    scene.word = null;
    if (!scene.waiting) scene.waiting = requestAnimationFrame(() => { scene.waiting = 0; recaption(); });
  };
  let grip = null;
  canvas.addEventListener("pointerdown", (event) => {
    const [x, y] = where(event);
    const far = scene.objects.map((thing) => Math.hypot(thing.x - x, thing.y - y));
    scene.chosen = far.indexOf(Math.min(...far));
    const thing = scene.objects[scene.chosen];
    grip = Math.min(...far) < 24 ? [thing.x - x, thing.y - y] : [0, 0];
    canvas.setPointerCapture(event.pointerId);
    showChoice();
    move(x + grip[0], y + grip[1]);
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!grip) return;
    const [x, y] = where(event);
    move(x + grip[0], y + grip[1]);
  });
  for (const name of ["pointerup", "pointercancel"]) canvas.addEventListener(name, () => { grip = null; });
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowLeft: [-3, 0], ArrowRight: [3, 0], ArrowUp: [0, -3], ArrowDown: [0, 3] }[event.key];
    if (!by) return;
    event.preventDefault();
    move(scene.objects[scene.chosen].x + by[0], scene.objects[scene.chosen].y + by[1]);
  });
  $("live-caption").addEventListener("keydown", (event) => {
    if (event.key === "Escape") { scene.word = null; drawLive(); }
  });
  arrowKeys($("live-caption"), () => live.found.words.length, () => scene.word ?? -1, (t) => { scene.word = null; chooseLive(t); });
  showChoice();
  recaption();
}

if (live) setUpLive();
if (data.captions.length) {
  data.captions.forEach((caption, k) => element($("caption"), "option", { value: k }, caption.name));
  $("choice").hidden = data.captions.length < 2;
  $("caption").addEventListener("change", () => showCaption(Number($("caption").value)));
  arrowKeys($("words"), () => data.captions[shown.caption].words.length, () => shown.word, (t) => { shown.word = t; drawWord(); });
  showCaption(0);
} else $("captions").hidden = true;
