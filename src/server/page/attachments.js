// What becomes of a file that is dropped, pasted or picked? A picture, a document's text, the pages of a document as
// pictures, or a sentence that says why not. Every picture is decoded here first: one that cannot be would spoil each
// later request of its conversation.
import {make} from "./dom.js";
import {notice} from "./notices.js";
import {load} from "./rich.js";
import {state} from "./state.js";

const AS_THEY_ARE = ["image/png", "image/jpeg", "image/webp"];
const PICTURE_MAX = 6 << 20;    // bytes; larger ones are painted anew
const SIDE_MAX = 2400;          // pixels of one painted anew
const TEXT_MAX = 4 << 20;       // bytes
const PDF_MAX = 64 << 20;       // bytes
const PAGES_MAX = 16;           // of a PDF file without text, as pictures
const PDF_PAGES_MAX = 500;

function dataUrl(blob) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader.readAsDataURL(blob);
  });
}

async function isOfType(file) {
  const head = new Uint8Array(await file.slice(0, 12).arrayBuffer());
  const text = String.fromCharCode(...head);
  return (file.type === "image/png" && text.startsWith("\x89PNG")) ||
         (file.type === "image/jpeg" && text.startsWith("\xff\xd8")) ||
         (file.type === "image/webp" && text.startsWith("RIFF") && text.slice(8) === "WEBP");
}

async function readPicture(file) {
  const bitmap = await createImageBitmap(file);
  try {
    if (AS_THEY_ARE.includes(file.type) && file.size <= PICTURE_MAX && await isOfType(file)) return await dataUrl(file);
    const scale = Math.min(1, SIDE_MAX / Math.max(bitmap.width, bitmap.height));
    const canvas = make("canvas", {width: Math.max(1, Math.round(bitmap.width * scale)),
                                   height: Math.max(1, Math.round(bitmap.height * scale))});
    canvas.getContext("2d").drawImage(bitmap, 0, 0, canvas.width, canvas.height);
    return canvas.toDataURL(file.size > PICTURE_MAX ? "image/jpeg" : "image/png", 0.92);
  } finally {
    bitmap.close();
  }
}

// The text of a file, or null where it is none.
async function readText(file) {
  if (file.size > TEXT_MAX) return null;
  try {
    const text = new TextDecoder("utf-8", {fatal: true}).decode(await file.arrayBuffer());
    return text.includes("\0") ? null : text;
  } catch {
    return null;
  }
}

async function pageText(page) {
  const {items} = await page.getTextContent();
  return items.map((item) => item.str + (item.hasEOL ? "\n" : "")).join("").trim();
}

async function pagePicture(page) {
  const wanted = page.getViewport({scale: 1});
  const viewport = page.getViewport({scale: Math.min(2, 1600 / Math.max(wanted.width, wanted.height))});
  const canvas = make("canvas", {width: Math.ceil(viewport.width), height: Math.ceil(viewport.height)});
  await page.render({canvasContext: canvas.getContext("2d"), viewport}).promise;
  return canvas.toDataURL("image/jpeg", 0.9);
}

async function readPages(pdf, file) {
  const texts = [];
  for (let i = 1; i <= Math.min(pdf.numPages, PDF_PAGES_MAX); ++i) texts.push(await pageText(await pdf.getPage(i)));
  if (texts.some((text) => text)) {
    if (pdf.numPages > PDF_PAGES_MAX) {
      notice(`Of ${file.name} the first ${PDF_PAGES_MAX} pages are taken.`, {stays: true});
    }
    return {images: [], documents: [{name: file.name, text: texts.join("\n\n")}]};
  }
  if (!state.model?.vision) throw new Error("it has no text, and the model sees no pictures");
  const images = [];
  for (let i = 1; i <= Math.min(pdf.numPages, PAGES_MAX); ++i) {
    images.push({src: await pagePicture(await pdf.getPage(i))});
  }
  const which = pdf.numPages > PAGES_MAX ? `: the first ${PAGES_MAX}.` : ".";
  notice(`${file.name} has no text, so its pages are sent as pictures${which}`);
  return {images, documents: []};
}

async function readPdf(file) {
  await load("pdf").catch((error) => { throw new Error("PDF files cannot be read here, because " + error.message); });
  if (file.size > PDF_MAX) throw new Error(`it is larger than ${PDF_MAX >> 20} MiB`);
  const library = window.pdfjsLib ?? window["pdfjs-dist/build/pdf"];
  library.GlobalWorkerOptions.workerSrc = "pdf.worker.js";
  // Fonts are drawn as paths: the page's policy allows neither eval nor fonts from elsewhere.
  const task = library.getDocument({data: await file.arrayBuffer(), isEvalSupported: false, disableFontFace: true,
                                    useSystemFonts: false, enableXfa: false, verbosity: 0});
  try {
    return await readPages(await task.promise, file);
  } catch (error) {
    if (error.name === "PasswordException") throw new Error("it is protected by a password");
    throw error.name === "InvalidPDFException" ? new Error("it is damaged") : error;
  } finally {
    task.destroy();
  }
}

async function readFile(file) {
  if (file.type.startsWith("image/") && file.type !== "image/svg+xml") {
    if (state.model && !state.model.vision) throw new Error("the model sees no pictures");
    const src = await readPicture(file).catch(() => { throw new Error("this browser cannot read it as a picture"); });
    return {images: [{src}], documents: []};
  }
  if (file.type === "application/pdf" || /\.pdf$/i.test(file.name)) return readPdf(file);
  const text = await readText(file);
  if (text === null) {
    throw new Error(file.size > TEXT_MAX ? `it is larger than ${TEXT_MAX >> 20} MiB`
                                         : "it is neither a picture, a text nor a PDF file");
  }
  if (!text.trim()) throw new Error("it is empty");
  return {images: [], documents: [{name: file.name, text}]};
}

// {images, documents} of the files that can be read. Of each of the others a notice says why not.
export async function readFiles(files) {
  const all = {images: [], documents: []};
  for (const file of files) {
    try {
      const {images, documents} = await readFile(file);
      all.images.push(...images);
      all.documents.push(...documents);
    } catch (error) {
      notice(`${file.name} was not added: ${error.message}.`, {failed: true});
    }
  }
  return all;
}
